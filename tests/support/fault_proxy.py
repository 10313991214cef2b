"""A loopback proxy between a client and a registry that counts bytes and does what it is told to the traffic.

Speaks HTTP/1.1 just well enough: one request at a time per connection, bodies by Content-Length. A `rule` sees each
request before it goes on and may answer it, spoil its reply, or cut it.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_ESTABLISHED = 1  # of Linux's TCP states


@dataclass(slots=True)
class Seen:
    """One request as the proxy saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body_nbytes: int = 0
    status: int | None = None  # of the registry's answer


@dataclass(slots=True)
class Fault:
    """What happens to one request.

    Args:
        status: answer this status instead of passing it on.
        headers: with these headers.
        body: and this body.
        cut_request: break the connection after so many bytes of the request's body; 0: before it is passed on.
        cut_reply: break the connection after so many bytes of the reply's body.
        flip: flip a bit of the reply's body at this offset.
        then: called when the connection is cut.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_request: int | None = None
    cut_reply: int | None = None
    flip: int | None = None
    then: Callable[[], object] = lambda: None


Rule = Callable[[Seen], Fault | None]


class FaultProxy:
    """The running proxy: `address` to talk to, `seen` requests, `sent` and `received` body bytes of blobs."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.rule: Rule = lambda seen: None
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self.sent = 0
        self.received = 0
        self.address = ""
        self.add_headers: dict[str, str] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.generation = 0
        self.under_way = 0
        self.over = threading.Condition()

    def reset(self) -> None:
        """Drop what waits, let what was passed on end, forget what was seen, and pass everything on."""
        with self.lock:
            self.generation += 1
            self.rule = lambda seen: None
        self.gate.set()
        with self.over:
            assert self.over.wait_for(lambda: not self.under_way, 60), "the registry does not answer"
        with self.lock:
            self.seen, self.sent, self.received = [], 0, 0

    @contextmanager
    def passing(self) -> Iterator[None]:
        """One request is under way."""
        with self.over:
            self.under_way += 1
        try:
            yield
        finally:
            with self.over:
                self.under_way -= 1
                self.over.notify_all()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy
    generation = 0

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        with self.proxy.passing():
            self._serve_one()

    def _serve_one(self) -> None:
        proxy, self.generation = self.proxy, self.proxy.generation
        proxy.gate.wait()
        if not self._is_awaited():
            self.close_connection = True  # a process that was killed asked, and this thread got round to it late
            return
        length = int(self.headers.get("Content-Length", "0"))
        seen = Seen(self.command, self.path, dict(self.headers.items()), length)
        with proxy.lock:
            if self.generation != proxy.generation:
                self.close_connection = True  # whoever asked was killed
                return
            proxy.seen.append(seen)
            fault = proxy.rule(seen) or Fault()
        is_blob = "/blobs/" in self.path
        body = self._read(min(length, fault.cut_request) if fault.cut_request is not None else length)
        with proxy.lock:
            if self.generation != proxy.generation:
                self.close_connection = True
                return
            proxy.sent += len(body) if is_blob else 0
        if fault.status is not None:
            self._reply(fault.status, list(fault.headers.items()), fault.body)
            return
        if fault.cut_request is not None:
            if body:
                self._pass_cut(body, length)
            fault.then()
            self._break()
            return
        status, headers, reply = self._pass(body)
        seen.status = status
        if fault.flip is not None and len(reply) > fault.flip:
            reply = reply[: fault.flip] + bytes([reply[fault.flip] ^ 1]) + reply[fault.flip + 1 :]
        if fault.cut_reply is not None and self.command != "HEAD":
            self._head(status, headers, len(reply))
            self.wfile.write(reply[: fault.cut_reply])
            self._count(is_blob, min(len(reply), fault.cut_reply))
            self.wfile.flush()
            fault.then()
            self._break()
            return
        self._count(is_blob, len(reply))
        self._reply(status, headers, reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the base class names them

    def _is_awaited(self) -> bool:
        """Whether the other side still holds the connection open."""
        state = self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state == _ESTABLISHED

    def _count(self, is_blob: bool, nbytes: int) -> None:
        with self.proxy.lock:
            if is_blob and self.command == "GET" and self.generation == self.proxy.generation:
                self.proxy.received += nbytes

    def _read(self, nbytes: int) -> bytes:
        return self.rfile.read(nbytes) if nbytes else b""

    def _upstream(self) -> tuple[http.client.HTTPConnection, dict[str, str]]:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "content-length")}
        return http.client.HTTPConnection(self.proxy.upstream, timeout=20), headers

    def _pass(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection, headers = self._upstream()
        if self.command not in ("GET", "HEAD"):
            headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body=body or None, headers=headers)
        response = connection.getresponse()
        reply = response.read()
        rows = [(k, v) for k, v in response.getheaders() if k.lower() not in ("transfer-encoding", "connection")]
        connection.close()
        return response.status, rows, reply

    def _pass_cut(self, body: bytes, length: int) -> None:
        """Give the registry the first bytes of a body, and break off, as a killed client does."""
        connection, headers = self._upstream()
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for key, value in (headers | {"Content-Length": str(length)}).items():
            connection.putheader(key, value)
        connection.endheaders(body)
        connection.sock.shutdown(socket.SHUT_WR)
        while connection.sock.recv(65536):  # until the registry has given the request up
            pass
        connection.close()

    def _head(self, status: int, headers: list[tuple[str, str]], length: int) -> None:
        self.send_response_only(status)
        for key, value in [*headers, *self.proxy.add_headers.items()]:
            if key.lower() != "content-length" or self.command == "HEAD":
                self.send_header(key, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self._head(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _break(self) -> None:
        self.wfile.flush()
        self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed, or that we cut, is no error."""


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy in front of `upstream` (`host:port`)."""
    proxy = FaultProxy(upstream)
    handler = type("Handler", (_Handler,), {"proxy": proxy, "timeout": 10})
    server = _Server(("127.0.0.1", 0), handler)
    proxy.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.gate.set()  # a test that failed may have left it closed
        server.shutdown()
        thread.join()
        server.server_close()

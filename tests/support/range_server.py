"""A loopback HTTP server for files, that answers ranges as it should or in one of many wrong ways."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class RangeServer:
    """What the server holds, how it behaves, and what it was asked.

    Args:
        files: bytes by path.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.tags: dict[str, str] = {path: f'"{len(data)}"' for path, data in files.items()}
        self.mode = "good"
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        self.url = ""
        self.stop = threading.Event()

    @property
    def ranges(self) -> list[str]:
        """The ranges asked for so far."""
        return [headers.get("range", "") for _, headers in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: RangeServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401 - the base class says so
        pass

    def do_GET(self) -> None:
        state = self.state
        headers = {name.lower(): value for name, value in self.headers.items()}
        state.asked.append((self.path, headers))
        plain = self.path.partition("?")[0]
        behave = getattr(self, f"_{state.mode}", None)
        if behave is not None:
            behave(plain, headers)
        elif plain not in state.files:
            self._reply(404, b"", {})
        else:
            self._answer(plain, headers)

    def _answer(self, path: str, headers: dict[str, str], *, shift: int = 0, cut: int = 0, **extra: str) -> None:
        data, tag = self.state.files[path], self.state.tags[path]
        wanted = headers.get("range")
        if wanted is None or headers.get("if-range", tag) != tag:
            self._reply(200, data, {"ETag": tag, **extra})
            return
        first, last = (int(text) for text in wanted.removeprefix("bytes=").split("-"))
        if first >= len(data):
            self._reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        last = min(last, len(data) - 1)
        body = data[first : last + 1 - cut]
        place = f"bytes {first + shift}-{last + shift}/{len(data)}"
        self._reply(206, body, {"Content-Range": place, "ETag": tag, **extra})

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        try:
            for at in range(0, len(body), 65_536):
                self.state.sent += len(body[at : at + 65_536])
                self.wfile.write(body[at : at + 65_536])
        except OSError:
            self.close_connection = True

    # --- ways to be wrong ---

    def _no_ranges(self, path: str, headers: dict[str, str]) -> None:
        self._answer(path, {name: value for name, value in headers.items() if name != "range"})

    def _no_ranges_no_length(self, path: str, headers: dict[str, str]) -> None:
        self.close_connection = True
        self._reply(200, self.state.files[path], {"Content-Length": "", "Connection": "close"})

    def _forgets_ranges(self, path: str, headers: dict[str, str]) -> None:
        self._answer(path, headers if len(self.state.asked) == 1 else {})

    def _other_range(self, path: str, headers: dict[str, str]) -> None:
        self._answer(path, headers, shift=1)

    def _no_content_range(self, path: str, headers: dict[str, str]) -> None:
        data = self.state.files[path]
        self._reply(206, data[:65_536], {})

    def _short(self, path: str, headers: dict[str, str]) -> None:
        self._answer(path, headers, cut=1)

    def _cut_off(self, path: str, headers: dict[str, str]) -> None:
        self.close_connection = True
        data = self.state.files[path]
        place = f"bytes 0-{min(len(data), 65_536) - 1}/{len(data)}"
        self._reply(206, data[:100], {"Content-Length": str(min(len(data), 65_536)), "Content-Range": place})

    def _endless(self, path: str, headers: dict[str, str]) -> None:
        """The right range in its headers, and then chunks without end."""
        data = self.state.files[path]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes 0-{min(len(data), 65_536) - 1}/{len(data)}")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chunk = b"1000\r\n" + bytes(4096) + b"\r\n"
        try:
            while not self.state.stop.is_set():
                self.wfile.write(chunk)
                self.state.sent += 4096
        except OSError:
            self.close_connection = True

    def _silent(self, path: str, headers: dict[str, str]) -> None:
        self.state.stop.wait(20)
        self.close_connection = True

    def _compressed(self, path: str, headers: dict[str, str]) -> None:
        self._answer(path, headers, **{"Content-Encoding": "gzip"})

    def _other_tag(self, path: str, headers: dict[str, str]) -> None:
        self._answer(path, {**headers, "if-range": self.state.tags[path]}, ETag=f'"{time.monotonic_ns()}"')

    def _loop(self, path: str, headers: dict[str, str]) -> None:
        self._reply(302, b"", {"Location": path})

    def _to_file(self, path: str, headers: dict[str, str]) -> None:
        self._reply(302, b"", {"Location": "file:///etc/passwd"})

    def _moved(self, path: str, headers: dict[str, str]) -> None:
        if path.startswith("/moved"):
            self._reply(307, b"", {"Location": "/x.obm?secret=1"})
        else:
            self._answer(path, headers)

    def _expiring(self, path: str, headers: dict[str, str]) -> None:
        """A redirect to an address that is good for one answer."""
        if path.startswith("/moved"):
            self._reply(302, b"", {"Location": f"/x.obm?{len(self.state.asked)}"})
        elif sum(asked == self.path for asked, _ in self.state.asked) > 1:
            self._reply(403, b"", {})
        else:
            self._answer(path, headers)

    def _denied(self, path: str, headers: dict[str, str]) -> None:
        self._reply(401, b"", {})

    def _broken(self, path: str, headers: dict[str, str]) -> None:
        self._reply(500, b"sorry", {})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[RangeServer]:
    """A server on a free port of the loopback, with what it holds and was asked."""
    state = RangeServer(files)
    handler = type("Handler", (_Handler,), {"state": state})
    server = _Server(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        state.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()

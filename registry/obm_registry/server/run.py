"""Run the server: one process, one listening address, a clean end.

Listens on loopback unless told otherwise, and elsewhere only with TLS or an explicit wish for plain HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server as GranianServer

from obm_format.errors import RegistryError, UsageError
from obm_registry.blobs.place import note_place, require_place
from obm_registry.server.app import make_app
from obm_registry.server.home import catalog_file, ensure_admin, open_home
from obm_registry.server.sessions import load_key
from obm_registry.server.settings import Ceilings, is_loopback, make_server

if sys.platform == "win32":
    resource = None
else:
    import resource

DRAIN_S = 20.0
MAX_CONNECTIONS = 1024  # idle ones count, and each client keeps some
_FILES_EACH = 3  # the connection, a blob, and what catalog and log need


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What `obm serve` is told.

    Args:
        home: folder of catalog, blobs, key and token file, unless `db` and `blobs` say otherwise.
        host: address or name to listen on.
        port: port, 0 for a free one.
        db: URL of the catalog, `sqlite:///PATH`; None for `registry.sqlite3` in `home`.
        blobs: URL of the blobs, `file:///PATH` or `s3://BUCKET/PREFIX`; None for `data` in `home`.
        strangers: whether callers without a token may pull what is public.
        tls: certificate and key, PEM files; None for plain HTTP.
        insecure_http: whether plain HTTP may leave this machine.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = 0
    db: str | None = None
    blobs: str | None = None
    strangers: bool = False
    tls: tuple[Path, Path] | None = None
    insecure_http: bool = False


def serve(options: ServeOptions, ready: Callable[[str, Path], None], *, ceilings: Ceilings | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        options: where and what.
        ready: told the URL and the file with the administrator's token once connections are taken.
        ceilings: limits on requests.

    Raises:
        UsageError: `usage` for an address or URL that is not allowed.
        RegistryError: `exists` when the port is taken; `io`, `busy`, `disk_full`.
    """
    _require_safe(options)
    catalog = catalog_file(options.home, options.db)
    require_place(catalog, options.blobs)
    opened = open_home(options.home, db=options.db, blobs=options.blobs)
    with opened as registry, _reserve(options.host, options.port) as (address, port):
        note_place(catalog, options.blobs)
        token_file = ensure_admin(registry, options.home)
        server = make_server(
            registry, load_key(options.home / "server.key"), strangers=options.strangers, ceilings=ceilings
        )
        http = _HttpServer(
            make_app(server),
            address=address,
            port=port,
            backlog=MAX_CONNECTIONS,
            backpressure=_connections(),
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=int(server.ceilings.idle_s * 1000)),
            websockets=False,
            log_enabled=False,
            ssl_cert=options.tls[0] if options.tls else None,
            ssl_key=options.tls[1] if options.tls else None,
        )
        url = f"{'https' if options.tls else 'http'}://{_url_host(options.host)}:{port}"
        asyncio.run(_run(http, address, port, lambda: ready(url, token_file)))


class _HttpServer(GranianServer):
    """An HTTP server that drops who stops reading, by the system: what granian still has to send knows no time-out."""

    def _init_shared_socket(self) -> None:
        super()._init_shared_socket()  # type: ignore[no-untyped-call]
        own: Any = self
        if not hasattr(socket, "TCP_USER_TIMEOUT") or not (hasattr(own, "_shd") and hasattr(own, "_ssp")):
            return  # where granian keeps its parts elsewhere, all stays as it is
        own._shd, own._ssp = own._shd or own._ssp.build(), None
        with socket.socket(fileno=os.dup(own._shd.get_fd())) as listening:
            # connections inherit it
            idle_ms = own.http1_settings.header_read_timeout
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, idle_ms)


async def _run(http: GranianServer, address: str, port: int, ready: Callable[[], None]) -> None:
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    serving = loop.create_task(http.serve())
    await _accepting(address, port, serving)
    ready()
    await told.wait()
    http.stop()  # type: ignore[no-untyped-call]
    # requests under way end; who does not end in time is cut off
    done, _ = await asyncio.wait([serving], timeout=DRAIN_S)
    if not done:
        logging.getLogger("obm.server").warning("requests were cut off after %.0f seconds", DRAIN_S)
        os._exit(0)
    await serving


async def _accepting(address: str, port: int, serving: asyncio.Task[None]) -> None:
    """Wait until the port takes connections."""
    while not serving.done():
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(address, port)
            writer.close()
            return
        await asyncio.sleep(0.005)
    await serving


# --- before anything listens -----------------------------------------------------------------------------------------


def _require_safe(options: ServeOptions) -> None:
    if options.tls or options.insecure_http or is_loopback(options.host):
        return
    raise UsageError(
        "usage",
        "plain HTTP would send tokens readable over the network",
        where=f"--host {options.host}",
        expected="a loopback address, or --tls-cert and --tls-key",
        hint="behind a proxy that does TLS say --insecure-http",
    )


def _connections() -> int:
    """How many connections may be open at once, so that none is refused a file that it needs."""
    if resource is None:
        return MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS * _FILES_EACH
    if 0 <= soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(MAX_CONNECTIONS, max(soft // _FILES_EACH, 1)) if soft >= 0 else MAX_CONNECTIONS


@contextlib.contextmanager
def _reserve(host: str, port: int) -> Iterator[tuple[str, int]]:
    """Find the address and a port that nobody uses, and hold it bound while the server listens on it.

    The server opens its own socket on the port, which Linux allows to the same user when both ask for it.
    """
    family, _, _, _, target = _resolve(host, port)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        _bind(probe, (*target[:1], port, *target[2:]), host)
        number = probe.getsockname()[1]
    with socket.socket(family, socket.SOCK_STREAM) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _bind(held, (*target[:1], number, *target[2:]), host)
        yield str(target[0]), number


def _resolve(host: str, port: int) -> tuple[int, int, int, str, tuple[object, ...]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UsageError("usage", "this is no address of this machine", where=f"--host {host}") from error
    return found[0]


def _bind(held: socket.socket, target: tuple[object, ...], host: str) -> None:
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind(target)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = "choose another one, or 0 for a free one"
            raise RegistryError("exists", "the port is taken", where=f"{host}:{target[1]}", hint=hint) from error
        raise RegistryError("io", f"cannot listen: {error.strerror}", where=f"{host}:{target[1]}") from error


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host

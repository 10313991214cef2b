"""What every request passes first: limits on its head, one meaning of its framing, progress in time; and one log line.

Plain ASGI, in front of everything else. Never looks at credentials or bodies, and never logs either.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from obm_format.errors import ObmError, RegistryError
from obm_registry.refs import printable
from obm_registry.server.replies import error_reply
from obm_registry.server.settings import Server

_log = logging.getLogger("obm.server")
_HIDDEN_IN_PATHS = re.compile(rb"%(?:2f|5c|00|2e)|\\|/\.\.?(?:/|$)", re.IGNORECASE)
_ONCE = (b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-range", b"range")
_MAX_FIELDS = 100

_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    b"cross-origin-resource-policy": b"same-origin",
}
_CLOSE = (b"connection", b"close")
_API_VERSION = (b"docker-distribution-api-version", b"registry/2.0")


class Stalled(RegistryError):
    """The other side made no progress for too long."""

    def __init__(self, idle_s: float) -> None:
        super().__init__("stalled", "nothing arrived for too long", expected=f"progress within {idle_s:.0f} seconds")


class Guard:
    """The application behind it, guarded.

    Args:
        app: the application.
        server: limits and counters.
    """

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand over with a receive that does not wait for ever."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = [0]
        idle = self._server.ceilings.idle_s
        # the HTTP server may have dropped a length that contradicts the chunks, so nothing is read behind them
        closes = any(name.lower() == b"transfer-encoding" for name, _ in scope["headers"])

        async def marked_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                headers = _marked(message.get("headers", ()), scope["path"], closes=closes)
                message = {**message, "headers": headers}
            try:
                async with asyncio.timeout(idle):
                    await send(message)
            except TimeoutError as error:  # nobody is there to be told
                raise ClientDisconnect from error

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                reply = error_reply(refusal, headers={"Connection": "close"})
                await reply(scope, receive, marked_send)
            else:
                await self._app(scope, _patient(receive, idle), marked_send)
        finally:
            seconds = time.perf_counter() - began
            path = printable(scope["path"], 300)
            _log.info("%s %s %s %d %.3fs", _address(scope), scope["method"], path, status[0], seconds)

    def _refusal(self, scope: Scope) -> ObmError | None:
        """What is wrong with the head of a request, or None."""
        fields, ceilings = scope["headers"], self._server.ceilings
        raw_path = scope.get("raw_path") or scope["path"].encode()
        if len(raw_path) + len(scope["query_string"]) > ceilings.target_nbytes:
            return RegistryError("limit_exceeded", "the request target is too long")
        if len(fields) > _MAX_FIELDS or sum(len(k) + len(v) + 4 for k, v in fields) > ceilings.header_nbytes:
            return RegistryError("limit_exceeded", "the header is too large")
        names = [name.lower() for name, _ in fields]
        for name in _ONCE:
            if names.count(name) > 1:
                return _bad_request("a header field is there twice", name.decode())
        found = dict(zip(names, (value for _, value in fields), strict=True))
        if b"transfer-encoding" in found and (
            b"content-length" in found or found[b"transfer-encoding"].strip().lower() != b"chunked"
        ):
            return _bad_request("the length of the body is given twice, or not at all", "transfer-encoding")
        length = found.get(b"content-length", b"0")
        if not (length.isdigit() and len(length) <= 18):
            return _bad_request("malformed length", "content-length")
        if found.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
            return _bad_request("compressed bodies are not taken", "content-encoding")
        if _HIDDEN_IN_PATHS.search(raw_path):
            return _bad_request("the path hides a slash, a backslash, a dot or a NUL", "path")
        return self._spend(_address(scope))

    def _spend(self, address: str) -> ObmError | None:
        wait = self._server.requests.wait_s(address)
        if wait:
            return RegistryError("rate_limited", "too many requests", hint=f"wait {wait:.0f} seconds")
        self._server.requests.take(address)
        return None


def _bad_request(message: str, where: str) -> RegistryError:
    return RegistryError("bad_request", message, where=where)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _patient(receive: Receive, idle_s: float) -> Receive:
    """A receive that waits no longer than this for each piece of a body.

    Raises:
        Stalled: nothing came.
    """
    is_whole = False

    async def next_message() -> Message:
        nonlocal is_whole
        if is_whole:  # whoever asks on only wants to know when the other side hangs up
            return await receive()
        try:
            async with asyncio.timeout(idle_s):
                message = await receive()
        except TimeoutError as error:
            raise Stalled(idle_s) from error
        is_whole = not message.get("more_body", False)
        return message

    return next_message


def _marked(headers: Iterable[tuple[bytes, bytes]], path: str, *, closes: bool) -> list[tuple[bytes, bytes]]:
    """The header fields of a reply with those that every reply has, unless it says otherwise itself.

    With `closes` it is the last one of its connection.
    """
    own = list(headers)
    names = {name.lower() for name, _ in own}
    own += [(name, value) for name, value in _HEADERS.items() if name not in names]
    if path.startswith("/v2"):
        own.append(_API_VERSION)
    if closes and _CLOSE[0] not in names:
        own.append(_CLOSE)
    return own

"""Replies that every part of the server gives: errors in the OCI envelope, work in threads, links to a next page."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar
from urllib.parse import urlencode

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from obm_format.errors import ObmError, RegistryError
from obm_registry.refs import printable
from obm_registry.server.settings import Server

P = ParamSpec("P")
T = TypeVar("T")

# OCI's words for our reasons, where they do not depend on what was asked for
_CODES = {
    "blob_digest": "DIGEST_INVALID",
    "bad_digest": "DIGEST_INVALID",
    "bad_ref": "NAME_INVALID",
    "bad_manifest": "MANIFEST_INVALID",
    "backbone_unknown": "MANIFEST_INVALID",
    "backbone_mismatch": "MANIFEST_INVALID",
    "upload_unknown": "BLOB_UPLOAD_UNKNOWN",
    "bad_range": "BLOB_UPLOAD_INVALID",
    "busy": "BLOB_UPLOAD_INVALID",
    "limit_exceeded": "SIZE_INVALID",
    "quota_exceeded": "TOOMANYREQUESTS",
    "rate_limited": "TOOMANYREQUESTS",
    "unauthorized": "UNAUTHORIZED",
    "denied": "DENIED",
    "tag_exists": "DENIED",
    "tag_immutable": "DENIED",
    "in_use": "DENIED",
    "blob_unknown": "BLOB_UNKNOWN",
    "not_found": "NAME_UNKNOWN",
}
_HIDDEN = {"internal", "io", "blob_damaged"}  # what the machine says is for its owner


def server_of(request: Request) -> Server:
    """The server that a request came to."""
    server = request.app.state.server
    assert isinstance(server, Server)  # noqa: S101 - set when the application is made
    return server


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what waits for disk or database beside the event loop."""
    return await anyio.to_thread.run_sync(functools.partial(call, *args, **kwargs))


def json_reply(
    document: object, status: int = 200, headers: Mapping[str, str] | None = None, media_type: str = "application/json"
) -> Response:
    """A JSON document."""
    body = json.dumps(document, separators=(",", ":")).encode()
    return Response(body, status, headers, media_type=media_type)


def error_reply(error: ObmError, code: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the OCI envelope.

    Args:
        error: what was refused.
        code: OCI's code where the reason alone does not tell it.
        headers: further header fields.
    """
    hidden = error.reason in _HIDDEN
    detail = {
        "reason": error.reason,
        "where": None if hidden else error.where,
        "expected": None if hidden else error.expected,
        "got": None if hidden else error.got,
        "hint": error.hint,
    }
    message = "the server cannot read or write its own storage" if hidden else printable(error.message, 2000)
    entry = {"code": code or _CODES.get(error.reason, "UNSUPPORTED"), "message": message, "detail": detail}
    return json_reply({"errors": [entry]}, error.http_status, headers)


def next_link(request: Request, **changed: object) -> dict[str, str]:
    """The header that leads to the next page: this request with other parameters."""
    query = {key: value for key, value in request.query_params.items() if key not in changed}
    query |= {key: str(value) for key, value in changed.items()}
    return {"Link": f'<{request.url.path}?{urlencode(query)}>; rel="next"'}


def page_size(request: Request, *, most: int, default: int | None = None) -> int:
    """The parameter `n`, at most `most`.

    Raises:
        RegistryError: `bad_page` for what is no number.
    """
    text = request.query_params.get("n")
    if text is None:
        return default or most
    if not (text.isascii() and text.isdigit()):
        raise RegistryError("bad_page", "`n` is a number of rows, 0 or more", got=printable(text))
    return min(int(text[:10]), most) if len(text) <= 10 else most

"""What the handlers of the API share: bodies, cursors, pages, administrators."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from obm_format.errors import RegistryError
from obm_registry.manifest.strictjson import parse_json
from obm_registry.refs import printable
from obm_registry.server.credentials import Identity, Unauthorized, identify
from obm_registry.server.replies import json_reply, next_link, server_of
from obm_registry.service.access import require_admin

MAX_BODY_NBYTES = 64 << 10


async def require_known(request: Request) -> Identity:
    """Who asks, if a token was shown.

    Raises:
        Unauthorized: without one.
    """
    who = await identify(request)
    if who.token is None:
        raise Unauthorized("this takes a token")
    return who


async def require_reader(request: Request) -> Identity:
    """Who asks, if a token was shown or strangers are let in.

    Raises:
        Unauthorized: otherwise.
    """
    who = await identify(request)
    if who.token is None and not server_of(request).strangers:
        raise Unauthorized("this takes a token")
    return who


async def require_administrator(request: Request, namespace: str) -> Identity:
    """Who asks, if they may set the rules of a namespace, or with "*" look after the whole registry.

    Raises:
        Unauthorized: without a token.
        RegistryError: `denied`.
    """
    who = await require_known(request)
    require_admin(who.caller, namespace)
    return who


async def body_of(
    request: Request, *required: str, optional: tuple[str, ...] = (), max_nbytes: int = MAX_BODY_NBYTES
) -> dict[str, object]:
    """The JSON object in the body of a request.

    Args:
        request: the request.
        required: fields that it has.
        optional: fields that it may have; others are refused.
        max_nbytes: most bytes of it.

    Raises:
        RegistryError: `bad_request`, `limit_exceeded`.
    """
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > max_nbytes:
            raise RegistryError("limit_exceeded", "the body is too large", expected=f"at most {max_nbytes} bytes")
    try:
        document = parse_json(bytes(data), max_nbytes=max_nbytes, where="body")
    except RegistryError as error:
        raise RegistryError("bad_request", error.message, where="body") from error
    if not isinstance(document, dict) or not set(required) <= set(document) <= {*required, *optional}:
        expected = f"an object with {', '.join(required) or 'nothing required'}"
        if optional:
            expected += f", and perhaps {', '.join(optional)}"
        raise RegistryError("bad_request", "the body has other fields", where="body", expected=expected)
    return document


def text_field(document: dict[str, object], key: str, default: str = "") -> str:
    """A field that is text.

    Raises:
        RegistryError: `bad_request`.
    """
    value = document.get(key, default)
    if not isinstance(value, str):
        raise RegistryError("bad_request", "this field is text", where=key, got=printable(str(value)))
    return value


def list_field(document: dict[str, object], key: str) -> list[str]:
    """A field that is a list of texts.

    Raises:
        RegistryError: `bad_request`.
    """
    value = document.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RegistryError("bad_request", "this field is a list of texts", where=key)
    return value


def number_field(document: dict[str, object], key: str) -> float | None:
    """A field that is a number or null.

    Raises:
        RegistryError: `bad_request`.
    """
    value = document.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise RegistryError("bad_request", "this field is a number", where=key, got=printable(str(value)))
    return value


def cursor_of(request: Request) -> int | None:
    """The parameter `cursor`.

    Raises:
        RegistryError: `bad_page`.
    """
    text = request.query_params.get("cursor")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise RegistryError("bad_page", "the cursor is malformed", where="cursor", got=printable(text))
    return int(text)


def page_reply(request: Request, key: str, rows: list[dict[str, object]], cursor: int | str | None) -> Response:
    """One page of a list, with the way to the next one in the body and in a Link header."""
    more = next_link(request, cursor=cursor) if cursor is not None else None
    return json_reply({key: rows, "next": None if cursor is None else str(cursor)}, headers=more)

"""Who looks at the page: a token that was typed in once, kept as a cookie that can only read.

Only the page looks at this cookie: nothing under /v2/ or /api/ does, so no other site can make a browser change
anything there.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from obm_format.errors import RegistryError
from obm_registry.server.credentials import Unauthorized, identify_shown
from obm_registry.server.replies import in_thread, server_of
from obm_registry.server.sessions import PREFIX, SignedSession
from obm_registry.service.access import ANONYMOUS, PULL, Caller, Scope, check_token

COOKIE = "obm_visit"
VISIT_S = 12 * 3600
_MAX_FORM_NBYTES = 4096


async def visitor(request: Request) -> Caller | None:
    """Who looks at the page; None where strangers are not let in and no good cookie was sent."""
    server, shown = server_of(request), request.cookies.get(COOKIE, "")
    if shown.startswith(PREFIX):
        try:
            who = await in_thread(identify_shown, server, shown)
        except RegistryError as error:
            if error.reason != "unauthorized":
                raise
        else:
            return who.caller
    return Caller(name=ANONYMOUS, roles={}, strangers=True) if server.strangers else None


async def sign_in(request: Request) -> Response:
    """`POST /login`: a token in exchange for a cookie that reads with it.

    Raises:
        Unauthorized: the token is not good.
        RegistryError: `bad_request` when the form comes from another site, `rate_limited`.
    """
    server = server_of(request)
    require_own_form(request)
    address = request.client.host if request.client else ""
    wait = server.wrong_credentials.wait_s(address)
    if wait:
        raise RegistryError("rate_limited", "too many wrong tokens", hint=f"wait {wait:.0f} seconds")
    shown = (await _form(request)).get("token", [""])[0].strip()
    try:
        token = await in_thread(check_token, server.registry, shown)
    except RegistryError as error:
        server.wrong_credentials.take(address)
        raise Unauthorized(error.message) from error
    until = server.registry.clock() + VISIT_S * 1000
    visit = SignedSession(public_id=token.public_id, scopes=(Scope("*", frozenset({PULL})),), expires_at=until)
    reply = RedirectResponse("/", status_code=303)
    secure = request.url.scheme == "https"
    value = server.sessions.sign(visit)
    reply.set_cookie(COOKIE, value, max_age=VISIT_S, httponly=True, samesite="lax", secure=secure)
    return reply


async def sign_out(request: Request) -> Response:
    """`POST /logout`."""
    require_own_form(request)
    reply = RedirectResponse("/", status_code=303)
    reply.delete_cookie(COOKIE, httponly=True, samesite="lax")
    return reply


def require_own_form(request: Request) -> None:
    """Refuse a form that another site made the browser send.

    Raises:
        RegistryError: `bad_request`.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign or site not in ("same-origin", "none"):
        raise RegistryError("bad_request", "this form came from another site")


async def _form(request: Request) -> dict[str, list[str]]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_NBYTES:
            raise RegistryError("limit_exceeded", "the form is too large")
    return parse_qs(body.decode("utf-8", "replace"), max_num_fields=10)

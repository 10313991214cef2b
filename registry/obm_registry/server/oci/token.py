"""The Docker token protocol: a token in exchange for a short-lived one that is good for what was asked, or less."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from obm_format.errors import RegistryError
from obm_registry.refs import is_repository
from obm_registry.server.credentials import Identity, Unauthorized, allows, identify
from obm_registry.server.replies import in_thread, json_reply, server_of
from obm_registry.server.sessions import LIFETIME_S, SignedSession, wanted_scopes
from obm_registry.server.settings import Server
from obm_registry.service.access import ACTIONS, PUSH, Scope, caller_of, check_token

MAX_FORM_NBYTES = 16 << 10
MAX_SCOPES = 50


async def exchange(request: Request) -> Response:
    """`GET` and `POST /v2/token`."""
    server = server_of(request)
    if request.method == "POST":
        form = await _form(request)
        who = await _who_posts(request, form)
        texts = form.get("scope", [])
    else:
        who = await identify(request)
        texts = request.query_params.getlist("scope")
    if who.is_session:
        raise Unauthorized("a short-lived token gives no other one", error="invalid_token")
    if who.token is None and not server.strangers:
        raise Unauthorized("this takes a token")
    if len(wanted_scopes(texts)) > MAX_SCOPES:
        raise RegistryError("limit_exceeded", "too many scopes", expected=f"at most {MAX_SCOPES}")
    session = await in_thread(_narrow, server, who, texts)
    signed = server.sessions.sign(session)
    now = datetime.fromtimestamp(server.registry.clock() / 1000, UTC).isoformat(timespec="seconds")
    answer = {"token": signed, "access_token": signed, "expires_in": LIFETIME_S, "issued_at": now}
    return json_reply(answer, headers={"Cache-Control": "no-store"})


def _narrow(server: Server, who: Identity, texts: list[str]) -> SignedSession:
    scopes = []
    for name, actions in wanted_scopes(texts):
        # only names that could be one reach further than themselves: a pattern is none
        granted = {a for a in actions if a in ACTIONS and is_repository(name) and allows(server, who.caller, a, name)}
        if PUSH in granted:
            granted |= {"move"}  # whether it is allowed is up to the owner's role; stock clients have no word for it
        if granted:
            scopes.append(Scope(name, frozenset(granted)))
    return SignedSession(
        public_id=who.token.public_id if who.token else "",
        scopes=tuple(scopes),
        expires_at=server.registry.clock() + LIFETIME_S * 1000,
    )


async def _form(request: Request) -> dict[str, list[str]]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_NBYTES:
            raise RegistryError("limit_exceeded", "the form is too large", expected=f"at most {MAX_FORM_NBYTES} bytes")
    try:
        return parse_qs(body.decode(), max_num_fields=100)
    except ValueError as error:
        raise RegistryError("bad_page", "malformed form") from error


async def _who_posts(request: Request, form: dict[str, list[str]]) -> Identity:
    kind = form.get("grant_type", [""])[0]
    shown = form.get({"password": "password", "refresh_token": "refresh_token"}.get(kind, ""), [""])[0]
    if not shown:
        return await identify(request)
    server = server_of(request)
    address = request.client.host if request.client else ""
    if server.wrong_credentials.wait_s(address):
        raise RegistryError("rate_limited", "too many wrong credentials", hint="wait a minute")
    try:
        token = await in_thread(check_token, server.registry, shown)
    except RegistryError as error:
        server.wrong_credentials.take(address)
        raise Unauthorized(error.message, error="invalid_token") from error
    caller = await in_thread(caller_of, server.registry, token, strangers=server.strangers)
    return Identity(caller=caller, owner=caller, token=token)

"""Who asks: from the Authorization header to a caller, and the answer to those who may not.

Nobody learns whether something is there that they may not see: the decision comes before any look-up, and the refusal
does not depend on it.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, replace

from starlette.requests import Request

from obm_format.errors import RegistryError
from obm_registry.catalog.rows import Token
from obm_registry.refs import parse_repository
from obm_registry.server.replies import in_thread, server_of
from obm_registry.server.sessions import PREFIX
from obm_registry.server.settings import Server
from obm_registry.service.access import ANONYMOUS, PULL, Caller, caller_of, check_token, is_good, may

_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")
REALM = "/v2/token"
SERVICE = "obm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who asks.

    Args:
        caller: the caller.
        owner: the caller without the limits of a short-lived token; what may be listed does not depend on those.
        token: the token behind what was shown, None without one.
        is_session: whether a short-lived token was shown, which its owner could ask anew with a wider scope.
    """

    caller: Caller
    owner: Caller
    token: Token | None = None
    is_session: bool = False


class Unauthorized(RegistryError):
    """A refusal that tells how to come back with credentials; `scope` is what they must be good for."""

    def __init__(self, message: str, *, scope: str = "", error: str = "") -> None:
        super().__init__("unauthorized", message, hint="log in with a token: `obm login`")
        self.scope = scope
        self.error = error


async def identify(request: Request) -> Identity:
    """Who asks.

    Raises:
        Unauthorized: wrong credentials.
        RegistryError: `rate_limited` after too many wrong ones.
    """
    header = request.headers.get("authorization")
    server = server_of(request)
    if header is None:
        return _known(Caller(name=ANONYMOUS, roles={}, strangers=server.strangers))
    address = request.client.host if request.client else ""
    wait = server.wrong_credentials.wait_s(address)
    if wait:
        raise RegistryError("rate_limited", "too many wrong credentials", hint=f"wait {wait:.0f} seconds")
    try:
        return await in_thread(_identify, server, header)
    except RegistryError as error:
        if error.reason != "unauthorized":
            raise
        server.wrong_credentials.take(address)
        raise Unauthorized(error.message, error="invalid_token") from error


def _identify(server: Server, header: str) -> Identity:
    kind, _, value = header.partition(" ")
    if kind.lower() == "basic":
        value = _password(value)
    elif kind.lower() != "bearer":
        raise RegistryError("unauthorized", "unknown kind of credentials", expected="Bearer or Basic")
    if value.startswith(PREFIX):
        return identify_shown(server, value)
    token = check_token(server.registry, value)
    return _known(caller_of(server.registry, token, strangers=server.strangers), token)


def _known(caller: Caller, token: Token | None = None) -> Identity:
    return Identity(caller=caller, owner=caller, token=token)


def identify_shown(server: Server, value: str) -> Identity:
    """Who shows a short-lived token.

    Raises:
        RegistryError: `unauthorized`.
    """
    now = server.registry.clock()
    session = server.sessions.read(value, now)
    if not session.public_id:
        caller = Caller(name=ANONYMOUS, roles={}, strangers=server.strangers)
        return Identity(caller=caller, owner=caller, is_session=True)
    with server.registry.catalog.read() as rows:
        token = rows.access.token(session.public_id)
    if token is None or not is_good(token, now):
        raise RegistryError("unauthorized", "the token is unknown, expired or revoked")
    caller = caller_of(server.registry, token, strangers=server.strangers)
    narrowed = replace(caller, limits=(*caller.limits, session.scopes))
    return Identity(caller=narrowed, owner=caller, token=token, is_session=True)


def _password(value: str) -> str:
    try:
        text = base64.b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise RegistryError("unauthorized", "malformed Basic credentials") from error
    return text.partition(":")[2]


async def authorize(request: Request, action: str, repository: str, *, also: str = "") -> Caller:
    """Let a caller pass who may do `action` in a repository, whether that is there or not.

    Args:
        request: what was asked.
        action: an action.
        repository: where.
        also: a further scope that the caller is told to ask for, since the request could make use of it.

    Raises:
        Unauthorized: who may not, and could come back with (other) credentials.
        RegistryError: `denied` for who may not, `rate_limited`.
        UsageError: `bad_ref`.
    """
    parse_repository(repository)
    who = await identify(request)
    if await in_thread(allows, server_of(request), who.caller, action, repository):
        return who.caller
    wanted = _docker_actions(action)
    if request.method == "HEAD":
        # whoever only asks whether something is there is most likely about to push, and some clients ask for one
        # short-lived token and keep it; a token gives no more than its owner may do
        wanted = "pull,push"
    scope = f"repository:{repository}:{wanted} {also}".strip()
    if who.caller.is_anonymous or who.is_session:
        error = "insufficient_scope" if who.is_session else ""
        raise Unauthorized("this takes a token that allows it", scope=scope, error=error)
    raise RegistryError("denied", f"your token does not allow to {action} here", where=repository)


def allows(server: Server, caller: Caller, action: str, repository: str) -> bool:
    """Whether a caller may do `action` in a repository."""
    with server.registry.catalog.read() as session:
        return may(session, caller, action, repository)


def _docker_actions(action: str) -> str:
    return {"pull": "pull", "push": "pull,push", "move": "pull,push"}.get(action, "pull,push,delete")


def challenge(request: Request, refusal: Unauthorized) -> dict[str, str]:
    """The header fields that tell how to come back with credentials."""
    parts = [f'Bearer realm="{base_url(request)}{REALM}"', f'service="{SERVICE}"']
    if refusal.scope:
        parts.append(f'scope="{refusal.scope}"')
    if refusal.error:
        parts.append(f'error="{refusal.error}"')
    return {"WWW-Authenticate": ",".join(parts)}


def base_url(request: Request) -> str:
    """Scheme and host as the caller named them; a host that is none is left out."""
    host = request.headers.get("host", "")
    return f"{request.url.scheme}://{host}" if _HOST.fullmatch(host) else ""


def can_pull_everything(caller: Caller) -> bool:
    """Whether a caller may pull from every repository there is."""
    return "*" in caller.roles and all(
        any(scope.target == "*" and PULL in scope.actions for scope in limit) for limit in caller.limits
    )

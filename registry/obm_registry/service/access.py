"""Who may do what: principals, their roles in namespaces, tokens, and the decision about one action.

A token is `obm_<public part>_<secret>`; only the SHA-256 of the secret is kept, which is enough for a secret of 256
random bits. What a token allows is looked up anew for every request, so that a revoked token or a removed role ends
at once.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from obm_format.errors import RegistryError, UsageError
from obm_registry.catalog.rows import Principal, Token
from obm_registry.catalog.store import Session
from obm_registry.refs import is_repository, namespace_of, printable
from obm_registry.service.listing import iso_time
from obm_registry.service.registry import Registry, now_ms

EVERYWHERE = "*"
ROLES = ("reader", "writer", "maintainer", "admin")
# read; publish under new tags; let a tag name something else; remove and withdraw; rules, members and upkeep
PULL, PUSH, MOVE, DELETE, ADMIN = ACTIONS = ("pull", "push", "move", "delete", "admin")
_ALLOWED = dict(zip(ROLES, map(frozenset, (ACTIONS[:1], ACTIONS[:2], ACTIONS[:4], ACTIONS)), strict=True))

_PRINCIPAL = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_TOKEN = re.compile(r"obm_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
MAX_SCOPES = 100


@dataclass(frozen=True, slots=True)
class Scope:
    """Actions on one repository, on those of a namespace (`acme/*`), or on all (`*`)."""

    target: str
    actions: frozenset[str]

    def covers(self, repository: str) -> bool:
        """Whether `repository` is meant."""
        if self.target in (EVERYWHERE, repository):
            return True
        return self.target.endswith("/*") and namespace_of(repository) == self.target[:-2]

    def __str__(self) -> str:
        return f"{self.target}:{','.join(action for action in ACTIONS if action in self.actions)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Somebody who asks for something.

    Args:
        name: for history and audit log; `anonymous` for who has shown no token.
        roles: role by namespace, "*" for all namespaces.
        limits: what the shown token is good for; every one of them must allow an action, which the roles allow.
        strangers: whether the server lets callers without a token pull what is public.
    """

    name: str
    roles: dict[str, str]
    limits: tuple[tuple[Scope, ...], ...] = ()
    strangers: bool = False

    @property
    def is_anonymous(self) -> bool:
        """Whether no token was shown."""
        return self.name == ANONYMOUS


ANONYMOUS = "anonymous"


def parse_scope(text: str) -> Scope:
    """Parse `TARGET:action,action`, where TARGET is a repository, `namespace/*` or `*`.

    Raises:
        UsageError: `usage`.
    """
    target, colon, actions = text.rpartition(":")
    wanted = frozenset(actions.split(","))
    named = target == EVERYWHERE or is_repository(target.removesuffix("/*") + ("/x" if target.endswith("/*") else ""))
    if not colon or not named or not wanted <= set(ACTIONS):
        expected = f"REPOSITORY:ACTIONS, actions of {', '.join(ACTIONS)}"
        raise UsageError("usage", "malformed scope", where=printable(text), expected=expected)
    return Scope(target, wanted)


def may(session: Session, caller: Caller, action: str, repository: str) -> bool:
    """Whether `caller` may do `action` in a repository, there or not; within the caller's transaction."""
    if action == PULL and caller.strangers and _is_public(session, repository):
        return True
    held = (caller.roles.get(namespace_of(repository)), caller.roles.get(EVERYWHERE))
    if not any(action in _ALLOWED[role] for role in held if role is not None):
        return False
    return all(any(action in scope.actions and scope.covers(repository) for scope in limit) for limit in caller.limits)


def _is_public(session: Session, repository: str) -> bool:
    found = session.names.repository(repository)
    return found is not None and found.namespace.visibility == "public"


def require_admin(caller: Caller, namespace: str) -> None:
    """Refuse who may not change rules and members of a namespace, or with "*" look after the whole registry.

    Raises:
        RegistryError: `denied`.
    """
    roles = {caller.roles.get(EVERYWHERE), caller.roles.get(namespace)}
    target = EVERYWHERE if namespace == EVERYWHERE else f"{namespace}/*"
    in_scope = all(
        any(ADMIN in scope.actions and scope.target in (EVERYWHERE, target) for scope in limit)
        for limit in caller.limits
    )
    if "admin" not in roles or not in_scope:
        raise RegistryError("denied", "this takes an administrator", where=printable(namespace))


# --- tokens ----------------------------------------------------------------------------------------------------------


def create_token(
    registry: Registry,
    principal: str,
    *,
    actor: str,
    scopes: Sequence[str] = (),
    lifetime_s: float | None = None,
) -> tuple[str, Token]:
    """Make a token for a principal, who is made too when not there yet.

    Args:
        registry: where.
        principal: whose it will be.
        actor: who makes it, for the audit log.
        scopes: what it is good for, each as `parse_scope` reads it; none for everything that the principal may.
        lifetime_s: seconds until it ends, or None.

    Returns:
        The token as its owner shows it, which is nowhere kept, and what is kept of it.

    Raises:
        UsageError: `usage`.
    """
    _check_principal(principal)
    if len(scopes) > MAX_SCOPES or (lifetime_s is not None and lifetime_s <= 0):
        raise UsageError("usage", "too many scopes, or a lifetime that is over already", where=principal)
    parsed = tuple(str(parse_scope(scope)) for scope in scopes)
    public, secret, now = secrets.token_hex(8), secrets.token_urlsafe(32), registry.clock()
    token = Token(
        public_id=public,
        principal=principal,
        secret_sha256=_hashed(secret),
        scopes=parsed,
        created_at=now,
        expires_at=None if lifetime_s is None else now + int(lifetime_s * 1000),
        revoked_at=None,
    )
    with registry.catalog.write() as session:
        owner = session.access.ensure_principal(principal, now)
        session.access.insert_token(token, owner.id)
        session.audit.record(actor, "token.create", public, now, f"for {principal}: {' '.join(parsed) or 'everything'}")
    return f"obm_{public}_{secret}", token


def list_tokens(registry: Registry, *, principal: str | None = None, after: str = "", limit: int = 1000) -> list[Token]:
    """Tokens by their public part, behind `after`."""
    with registry.catalog.read() as session:
        return session.access.tokens(principal=principal, after=after, limit=limit)


def find_token(registry: Registry, public_id: str) -> Token:
    """The token with this public part.

    Raises:
        RegistryError: `not_found`.
    """
    with registry.catalog.read() as session:
        found = session.access.token(public_id)
    if found is None:
        raise RegistryError("not_found", "there is no such token", where=printable(public_id))
    return found


def revoke_token(registry: Registry, public_id: str, *, actor: str) -> None:
    """End a token; the next request that shows it is refused.

    Raises:
        RegistryError: `not_found`, also for one that is revoked already.
    """
    now = registry.clock()
    with registry.catalog.write() as session:
        if not session.access.revoke(public_id, now):
            raise RegistryError("not_found", "there is no such token, or it is revoked", where=printable(public_id))
        session.audit.record(actor, "token.revoke", public_id, now)


def check_token(registry: Registry, shown: str) -> Token:
    """The token that somebody shows, if it is good now.

    Raises:
        RegistryError: `unauthorized`; the same for an unknown, wrong, expired and revoked one.
    """
    match = _TOKEN.fullmatch(shown)
    found = None
    if match is not None:
        with registry.catalog.read() as session:
            found = session.access.token(match[1])
    # the comparison runs for an unknown token too, so that time tells nothing
    secret_ok = hmac.compare_digest(_hashed(match[2] if match else ""), found.secret_sha256 if found else "0" * 64)
    if found is None or not secret_ok or not is_good(found, registry.clock()):
        raise RegistryError("unauthorized", "the token is unknown, expired or revoked", hint="`obm login`")
    return found


def describe_token(token: Token) -> dict[str, object]:
    """What may be shown of a token: everything but what was kept of its secret."""
    state = "revoked" if token.revoked_at is not None else "good" if is_good(token, now_ms()) else "expired"
    return {
        "id": token.public_id,
        "principal": token.principal,
        "scopes": list(token.scopes),
        "state": state,
        "created_at": iso_time(token.created_at),
        "expires_at": None if token.expires_at is None else iso_time(token.expires_at),
    }


def is_good(token: Token, now: int) -> bool:
    """Whether a token is neither revoked nor over."""
    return token.revoked_at is None and (token.expires_at is None or now < token.expires_at)


def caller_of(registry: Registry, token: Token, *, strangers: bool) -> Caller:
    """Who shows a token that was checked, with the roles of this moment."""
    with registry.catalog.read() as session:
        owner = session.access.principal(token.principal)
    limits = (tuple(parse_scope(text) for text in token.scopes),) if token.scopes else ()
    return Caller(name=token.principal, roles=owner.roles if owner else {}, limits=limits, strangers=strangers)


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


# --- members ---------------------------------------------------------------------------------------------------------


def set_role(registry: Registry, principal: str, namespace: str, role: str | None, *, actor: str) -> Principal:
    """Give somebody a role in a namespace, or in all with "*", or take it away with None.

    Raises:
        UsageError: `usage`, `bad_ref`.
    """
    _check_principal(principal)
    if role is not None and role not in ROLES:
        raise UsageError("usage", "unknown role", expected=", ".join(ROLES), got=printable(role))
    if namespace != EVERYWHERE and not is_repository(f"{namespace}/x"):
        raise UsageError("bad_ref", "the namespace is malformed", where=printable(namespace))
    now = registry.clock()
    with registry.catalog.write() as session:
        owner = session.access.ensure_principal(principal, now)
        session.access.set_role(owner.id, namespace, role)
        session.audit.record(actor, "member.set", namespace, now, f"{principal}: {role or 'none'}")
    return owner


def list_members(registry: Registry, namespace: str) -> dict[str, str]:
    """Role by name of everybody who has one in exactly this namespace."""
    with registry.catalog.read() as session:
        return session.access.members(namespace)


def _check_principal(name: str) -> None:
    if not _PRINCIPAL.fullmatch(name) or name == ANONYMOUS:
        expected = "1 to 64 lower-case letters, digits, dots, dashes"
        raise UsageError("usage", "malformed name", where=printable(name), expected=expected)

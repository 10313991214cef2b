"""Answer a registry's challenge: Basic, or a Bearer token that its token endpoint gives.

Never gives a credential to another origin than the one it was stored for: a token endpoint elsewhere is asked
with what was stored for that origin, or with nothing. Source: RFC 9110 clause 11; the Docker token protocol,
"Token Authentication Specification".
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import httpx

from obm_format.errors import RegistryError
from obm_registry.client.credentials import Credential
from obm_registry.client.origin import Origin, follow, origin_of, shown
from obm_registry.manifest.strictjson import parse_json

MAX_TOKEN_REPLY = 1 << 20
_MAX_CHALLENGE = 8192
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9-]*)(?:\s+|$)")
_PARAM = re.compile(r'\s*([A-Za-z_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)')

Scopes = tuple[str, ...]
FetchToken = Callable[[httpx.URL, Mapping[str, str]], bytes]
"""GET of a URL with these headers: the body of a 200 reply, bounded; anything else raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One way in that a registry offers; parameter names are in lower case."""

    scheme: str
    params: Mapping[str, str]


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """Parse `WWW-Authenticate` headers, one challenge each; what is malformed is left aside."""
    found = []
    for header in headers:
        match = _SCHEME.match(header) if len(header) <= _MAX_CHALLENGE else None
        if match is None:
            continue
        params, at = {}, match.end()
        while at < len(header) and (param := _PARAM.match(header, at)):
            quoted = param[2]
            params[param[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else param[3]
            at = param.end()
        found.append(Challenge(scheme=match[1].lower(), params=params))
    return found


def basic(credential: Credential) -> str:
    """The `Authorization` header of a user name and a secret."""
    text = f"{credential.username}:{credential.secret}"
    return "Basic " + base64.b64encode(text.encode("utf-8")).decode("ascii")


class Authenticator:
    """What is sent as `Authorization` to one registry.

    Args:
        origin: the registry.
        credential: what is stored for an origin, or None.
        fetch: asks a token endpoint.
    """

    def __init__(self, origin: Origin, credential: Callable[[Origin], Credential | None], fetch: FetchToken) -> None:
        self._origin = origin
        self._credential = credential
        self._fetch = fetch
        self._headers: dict[Scopes, str] = {}
        self._lock = threading.Lock()

    def header(self, scopes: Scopes) -> str | None:
        """The header that worked last for these scopes, or None."""
        with self._lock:
            return self._headers.get(scopes)

    def answer(self, url: httpx.URL, challenges: Sequence[Challenge], scopes: Scopes, failed: str | None) -> str | None:
        """The header for a request that was refused with 401.

        Args:
            url: what was asked; of the registry's origin.
            challenges: what the reply offers.
            scopes: what the request needs.
            failed: the header that was refused; None when there was none.

        Returns:
            The header, or None when there is no way in.

        Raises:
            RegistryError: `network` or `denied` from the token endpoint.
        """
        with self._lock:
            current = self._headers.get(scopes)
            if current is not None and current != failed:
                return current  # another thread was faster
            found = self._answer(url, challenges, scopes)
            if found is None or found == failed:
                self._headers.pop(scopes, None)
                return None
            self._headers[scopes] = found
            return found

    def _answer(self, url: httpx.URL, challenges: Sequence[Challenge], scopes: Scopes) -> str | None:
        for challenge in challenges:
            if challenge.scheme == "bearer" and "realm" in challenge.params:
                return "Bearer " + self._token(url, challenge, scopes)
        if any(challenge.scheme == "basic" for challenge in challenges):
            own = self._credential(self._origin)
            return basic(own) if own is not None else None
        return None

    def _token(self, url: httpx.URL, challenge: Challenge, scopes: Scopes) -> str:
        realm = follow(url, challenge.params["realm"])
        wanted = scopes or tuple(challenge.params.get("scope", "").split())
        query = [(key, challenge.params[key]) for key in ("service",) if key in challenge.params]
        query += [("scope", scope) for scope in wanted]
        own = self._credential(origin_of(realm))
        headers = {"Authorization": basic(own)} if own is not None else {}
        target = realm.copy_with(params=[*realm.params.multi_items(), *query])
        return _parse_token(self._fetch(target, headers), realm)


def _parse_token(body: bytes, realm: httpx.URL) -> str:
    try:
        document = parse_json(body, max_nbytes=MAX_TOKEN_REPLY, where="token")
    except RegistryError:
        document = None  # its message could quote a token
    row = document if isinstance(document, dict) else {}
    token = row.get("token") or row.get("access_token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
        raise RegistryError("network", "the token endpoint gives no token", where=shown(realm))
    return token

"""Short-lived tokens of the Docker token protocol: what somebody may do for some minutes, signed by this server.

Such a token only ever narrows another one: it names that one, which is looked up again for every request. It is no
JWT: it has one form, one algorithm (HMAC-SHA256) and no header that could name another.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from obm_format.errors import RegistryError, UsageError
from obm_registry.durable import disk_errors, sync_folder
from obm_registry.service.access import Scope, parse_scope

PREFIX = "obms_"
LIFETIME_S = 300
MAX_NBYTES = 16 << 10
_KEY_NBYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedSession:
    """What a short-lived token says.

    Args:
        public_id: the token that it narrows, "" for a caller without one.
        scopes: what it is good for.
        expires_at: when it ends, milliseconds since 1970, UTC.
    """

    public_id: str
    scopes: tuple[Scope, ...]
    expires_at: int


class SessionKey:
    """Signs and reads short-lived tokens.

    Args:
        key: 32 random bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, session: SignedSession) -> str:
        """The token that says `session`."""
        document = [session.public_id, [str(scope) for scope in session.scopes], session.expires_at]
        payload = _text(json.dumps(document, separators=(",", ":")).encode())
        return f"{PREFIX}{payload}.{_text(self._mac(payload))}"

    def read(self, shown: str, now: int) -> SignedSession:
        """What a token says.

        Raises:
            RegistryError: `unauthorized` when it is not ours, altered, or over.
        """
        payload, _, mac = shown.removeprefix(PREFIX).partition(".")
        try:
            genuine = len(shown) <= MAX_NBYTES and hmac.compare_digest(_bytes(mac), self._mac(payload))
            public_id, scopes, expires_at = json.loads(_bytes(payload)) if genuine else ("", [], 0)
            session = SignedSession(public_id=public_id, scopes=tuple(map(parse_scope, scopes)), expires_at=expires_at)
        except (ValueError, binascii.Error, UsageError) as error:
            raise _refused() from error
        if now >= session.expires_at:
            raise _refused()
        return session

    def _mac(self, payload: str) -> bytes:
        return hmac.digest(self._key, payload.encode(), hashlib.sha256)


def _refused() -> RegistryError:
    return RegistryError("unauthorized", "the short-lived token is unknown or expired", hint="ask for a new one")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def load_key(path: Path) -> SessionKey:
    """The key in a file that only its owner reads, made when it is not there yet.

    Raises:
        ObmError: `io`, `disk_full`.
    """
    with disk_errors(str(path)):
        if not path.exists():
            _make_key(path)
        key = path.read_bytes()
    if len(key) != _KEY_NBYTES:
        raise RegistryError("io", "the key file is broken", where=str(path), hint="delete it; a new one is made")
    return SessionKey(key)


def _make_key(path: Path) -> None:
    """Make the file, whole or not at all, unless another process is quicker."""
    draft = path.with_name(f".{path.name}.{os.urandom(6).hex()}.part")
    try:
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(os.urandom(_KEY_NBYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def wanted_scopes(texts: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """What a Docker client asks for: repository and actions of each scope `repository:NAME:pull,push`.

    Scopes of other kinds and malformed ones are left aside, as that protocol wants.
    """
    wanted = []
    for text in " ".join(texts).split():
        kind, _, rest = text.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind == "repository" and name:
            named = actions.split(",")
            wanted.append((name, ("pull", "push", "delete") if "*" in named else tuple(named)))
    return wanted

"""A journal of uploads: where an unfinished one goes on, and which repository got a blob.

So a push that was killed sends only the rest, and a second repository of a registry can have a blob without its
being sent again. One small file per note, readable by its owner alone: the address of an upload can hold a
secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from obm_format.errors import ObmError
from obm_registry.durable import disk_errors
from obm_registry.manifest.strictjson import encode_json, parse_json
from obm_registry.refs import is_repository

MAX_AGE_S = 7 * 86_400
_MAX_NBYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """An upload that goes on at `location` behind `offset` bytes."""

    location: str
    offset: int


class Journal:
    """Notes in a folder.

    Args:
        folder: made when the first note is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, origin: str, repository: str, digest: str) -> Unfinished | None:
        """The note of an upload; None when there is none, or it cannot be read."""
        document = self._read(self._path(origin, repository, digest)) or {}
        location, offset = document.get("location"), document.get("offset")
        if isinstance(location, str) and type(offset) is int and offset >= 0:
            return Unfinished(location=location, offset=offset)
        return None

    def put(self, origin: str, repository: str, digest: str, note: Unfinished) -> None:
        """Write the note of an upload."""
        document = {"at": int(time.time()), "location": note.location, "offset": note.offset}
        self._write(self._path(origin, repository, digest), document)

    def _write(self, path: Path, document: dict[str, object]) -> None:
        draft = path.with_name(f"{path.stem}.{secrets.token_hex(6)}.part")
        # not flushed: a power cut may cost the note, which costs a chunk
        with disk_errors(str(path)):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(draft, "xb", opener=_private) as file:
                file.write(encode_json(document))
            draft.replace(path)

    def _read(self, path: Path) -> dict[str, object] | None:
        with contextlib.suppress(OSError, ObmError):
            document = parse_json(path.read_bytes(), max_nbytes=_MAX_NBYTES, where="")
            at = document.get("at") if isinstance(document, dict) else None
            if isinstance(document, dict) and type(at) is int and time.time() - at < MAX_AGE_S:
                return document
        return None

    def learn(self, origin: str, digest: str, repository: str) -> None:
        """Note that a repository of a registry has a blob."""
        self._write(self._path(origin, "", digest), {"at": int(time.time()), "repository": repository})

    def whereabouts(self, origin: str, digest: str) -> str | None:
        """A repository of a registry that had the blob lately; None when none is known."""
        name = (self._read(self._path(origin, "", digest)) or {}).get("repository")
        return name if isinstance(name, str) and is_repository(name) else None

    def drop(self, origin: str, repository: str, digest: str) -> None:
        """Forget an upload, and others that are too old to go on."""
        self._path(origin, repository, digest).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if time.time() - path.stat().st_mtime > MAX_AGE_S:
                    path.unlink(missing_ok=True)

    def _path(self, origin: str, repository: str, digest: str) -> Path:
        key = hashlib.sha256(f"{origin}\0{repository}\0{digest}".encode()).hexdigest()
        return self._folder / f"{key}.json"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

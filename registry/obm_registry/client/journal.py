"""A journal of unfinished uploads: where each goes on, so that a push that was killed sends only the rest.

One small file per upload, readable by its owner alone, since the address of an upload can hold a secret.
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
        with contextlib.suppress(OSError, ObmError, KeyError, TypeError):
            document = parse_json(self._path(origin, repository, digest).read_bytes(), max_nbytes=_MAX_NBYTES, where="")
            if not isinstance(document, dict) or time.time() - document["at"] > MAX_AGE_S:
                return None
            location, offset = document["location"], document["offset"]
            if isinstance(location, str) and type(offset) is int and offset >= 0:
                return Unfinished(location=location, offset=offset)
        return None

    def put(self, origin: str, repository: str, digest: str, note: Unfinished) -> None:
        """Write the note of an upload."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        document = {"at": int(time.time()), "location": note.location, "offset": note.offset}
        path = self._path(origin, repository, digest)
        draft = path.with_name(f"{path.stem}.{secrets.token_hex(6)}.part")
        # not flushed: a power cut may cost the note, which costs a chunk
        with disk_errors(str(path)), open(draft, "xb", opener=_private) as file:
            file.write(encode_json(document))
        with disk_errors(str(path)):
            draft.replace(path)

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

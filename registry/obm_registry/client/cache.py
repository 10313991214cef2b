"""The cache of pulled experts: whole files by artifact id, and the drafts of those that are still coming.

Two processes that want the same expert share one download: a lock per artifact. What is here is content-addressed
and verified before it is handed out. The oldest go when the cache is above its limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from obm_format.container.reader import Container
from obm_format.digest import ARTIFACT_PREFIX, is_sha256_hex
from obm_format.errors import ObmError, RegistryError
from obm_format.progress import Progress
from obm_registry.client.draft import Draft, Fetch
from obm_registry.client.http import Patience
from obm_registry.client.locks import exclusive, exclusive_if_free
from obm_registry.durable import disk_errors, replaced_file
from obm_registry.manifest.expert import ExpertLayers
from obm_registry.manifest.oci import MAX_MANIFEST_NBYTES, digest_of
from obm_registry.manifest.strictjson import encode_json, parse_json
from obm_registry.refs import is_digest

DEFAULT_LIMIT = 20_000_000_000
IN_USE_S = 600  # what was handed out since then is not removed to make room


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedExpert:
    """A file of the cache; `used_at` in seconds since 1970, `complete` False for a draft."""

    id: str
    path: Path
    nbytes: int
    used_at: float
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An expert that is in the cache now, and how many bytes came for it and were there."""

    path: Path
    received: int
    reused: int


class Cache:
    """Experts in a folder.

    Args:
        root: the folder; made with the first use.
        limit: bytes to keep.
        patience: time between tries of a download.
    """

    def __init__(self, root: Path, limit: int = DEFAULT_LIMIT, patience: Patience | None = None) -> None:
        self._root = root
        self._limit = limit
        self.patience = patience or Patience()

    # --- experts --------------------------------------------------------------------------------------------

    def path(self, artifact_id: str) -> Path:
        """Where the file of an expert is, or would be.

        Raises:
            RegistryError: `bad_digest`, no artifact id.
        """
        digits = artifact_id.removeprefix(ARTIFACT_PREFIX)
        if not is_sha256_hex(digits):
            raise RegistryError("bad_digest", "malformed artifact id")
        return self._root / "experts" / f"{digits}.obm"

    def hold(self, layers: ExpertLayers, fetch: Fetch, progress: Progress) -> Held:
        """Make sure that an expert is here, whole and verified.

        Args:
            layers: its blobs.
            fetch: gives the bytes of a blob from an offset on.
            progress: told how far it is.

        Raises:
            RegistryError: `blob_damaged` when a segment does not hash to its digest again and again,
                `network`, `disk_full`, `io`. What arrived is kept for the next try.
            FormatError: the segments are no `.obm` file.
        """
        path = self.path(layers.artifact_id)
        with self._locked(path):
            if path.is_file():
                if self._is_sound(path, layers, progress):
                    os.utime(path)
                    return Held(path=path, received=0, reused=layers.nbytes)
                # only the bad segments are fetched again
                path.replace(path.with_suffix(".part"))
                path.with_suffix(".marks").unlink(missing_ok=True)
            received = self._complete(path, layers, fetch, progress)
        self.prune(self._limit)
        return Held(path=path, received=received, reused=max(0, layers.nbytes - received))

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        locks = self._root / "locks"
        with disk_errors(str(self._root)):
            for folder in (path.parent, locks):
                folder.mkdir(parents=True, exist_ok=True)
        with exclusive(locks / f"{path.stem}.lock"):
            yield

    def _is_sound(self, path: Path, layers: ExpertLayers, progress: Progress) -> bool:
        if path.stat().st_size != layers.nbytes:
            return False
        done = 0
        with disk_errors(str(path)), path.open("rb") as file:
            for layer in layers.all:
                algorithm, _, expected = layer.digest.partition(":")
                if _hash_next(file.fileno(), done, layer.size, algorithm) != expected:
                    return False
                done += layer.size
                progress("verifying", done, layers.nbytes)
        return True

    def _complete(self, path: Path, layers: ExpertLayers, fetch: Fetch, progress: Progress) -> int:
        with Draft(path.with_suffix(".part"), path.with_suffix(".marks"), layers.all) as draft:
            received = draft.fill(fetch, progress, self.patience)
            try:
                with Container.open(str(draft.path), expected_id=layers.artifact_id):
                    pass
            except ObmError:
                draft.discard()
                raise
            draft.finish(path)
        return received

    # --- upkeep ---------------------------------------------------------------------------------------------

    def entries(self) -> list[CachedExpert]:
        """What is here, the least recently used first."""
        found = []
        with disk_errors(str(self._root)):
            folder = self._root / "experts"
            for path in folder.iterdir() if folder.is_dir() else ():
                if path.suffix in (".obm", ".part") and is_sha256_hex(path.stem):
                    with contextlib.suppress(FileNotFoundError):  # another process may prune
                        status = path.stat()
                        found.append(
                            CachedExpert(
                                id=ARTIFACT_PREFIX + path.stem,
                                path=path,
                                nbytes=status.st_blocks * 512 if path.suffix == ".part" else status.st_size,
                                used_at=status.st_mtime,
                                complete=path.suffix == ".obm",
                            )
                        )
        return sorted(found, key=lambda entry: (entry.used_at, entry.id))

    def prune(self, limit: int, *, in_use_s: float = IN_USE_S) -> list[CachedExpert]:
        """Remove the least recently used until at most `limit` bytes are left.

        What is being downloaded, or was handed out in the last `in_use_s` seconds, stays.

        Returns:
            What was removed.
        """
        entries = self.entries()
        total, removed = sum(entry.nbytes for entry in entries), []
        for entry in entries:
            if total <= limit:
                break
            if time.time() - entry.used_at < in_use_s:
                continue
            with exclusive_if_free(self._root / "locks" / f"{entry.path.stem}.lock") as free:
                if free:
                    entry.path.unlink(missing_ok=True)
                    entry.path.with_suffix(".marks").unlink(missing_ok=True)
                    total -= entry.nbytes
                    removed.append(entry)
        return removed

    def remove(self, entry: CachedExpert) -> None:
        """Remove one file."""
        with self._locked(entry.path):
            entry.path.unlink(missing_ok=True)

    # --- what references stood for, for work without a network ------------------------------------------------

    def remember(self, registry: str, repository: str, target: str, body: bytes) -> None:
        """Keep a manifest, and that `target` named it."""
        digest = digest_of(body)
        folder = self._root / "manifests"
        with disk_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{digest.partition(':')[2]}.json"
        if not path.exists():
            with replaced_file(path) as file:
                file.write(body)
        name = self._name(registry, repository, target)
        if self._digest_of(name) != digest:
            with replaced_file(name) as file:
                file.write(encode_json({"digest": digest, "ref": f"{registry}/{repository}:{target}"}))

    def recall(self, registry: str, repository: str, target: str) -> bytes | None:
        """The manifest that `target` named when it was last asked for; None when it never was."""
        digest = self._digest_of(self._name(registry, repository, target))
        if digest is None:
            return None
        with contextlib.suppress(OSError):
            body = (self._root / "manifests" / f"{digest.partition(':')[2]}.json").read_bytes()
            if digest_of(body) == digest:
                return body
        return None

    def _digest_of(self, name: Path) -> str | None:
        with contextlib.suppress(OSError, ObmError):
            document = parse_json(name.read_bytes(), max_nbytes=MAX_MANIFEST_NBYTES, where=name.name)
            digest = document.get("digest") if isinstance(document, dict) else None
            return digest if isinstance(digest, str) and is_digest(digest) else None
        return None

    def _name(self, registry: str, repository: str, target: str) -> Path:
        key = hashlib.sha256(f"{registry}\0{repository}\0{target}".encode()).hexdigest()
        return self._root / "manifests" / f"{key}.ref"


def _hash_next(descriptor: int, offset: int, nbytes: int, algorithm: str) -> str:
    total = hashlib.new(algorithm)
    while nbytes:
        data = os.pread(descriptor, min(nbytes, 1 << 20), offset)
        if not data:
            break
        total.update(data)
        offset, nbytes = offset + len(data), nbytes - len(data)
    return total.hexdigest()

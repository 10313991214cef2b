"""Uploads that go on over several calls: begin, receive, ask how far, finish, give up.

What has arrived and is durable stays when a call breaks off, so the sender goes on from there. Bytes first, row
second: the row says how far the durable bytes go, and whatever the object has beyond that is cut off.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from types import TracebackType
from typing import Self

from obm_format.errors import ObmError, RegistryError
from obm_registry.blobs.base import ObjectWriter, new_key
from obm_registry.catalog.rows import Blob, Upload
from obm_registry.durable import disk_errors
from obm_registry.refs import ALGORITHMS, namespace_of, parse_digest, parse_repository, printable
from obm_registry.service.blobs import adopt, wrong_digest
from obm_registry.service.registry import Registry, require_repository

DEFAULT_ALGORITHM = "sha256"


def begin_upload(registry: Registry, repository: str, *, algorithm: str = DEFAULT_ALGORITHM) -> Upload:
    """Make room for a blob that will arrive in pieces.

    Args:
        registry: where.
        repository: made when it is not there yet.
        algorithm: hash that the sender will name the blob by.

    Raises:
        UsageError: `bad_ref`.
        RegistryError: `bad_digest` for an unknown algorithm.
    """
    name = parse_repository(repository)
    if algorithm not in ALGORITHMS:
        raise RegistryError(
            "bad_digest", "unknown digest algorithm", expected=" or ".join(ALGORITHMS), got=printable(algorithm)
        )
    session, key, now = secrets.token_hex(16), new_key(), registry.clock()
    with registry.catalog.write() as rows:
        repo = rows.names.ensure_repository(name, namespace_of(name), now)
        rows.blobs.begin_upload(key, repo.id, now, session=session, algorithm=algorithm)
    return Upload(session=session, repo_id=repo.id, storage_key=key, algorithm=algorithm, received=0)


def find_upload(registry: Registry, repository: str, session: str) -> Upload:
    """An upload that is under way.

    Raises:
        RegistryError: `upload_unknown`, `not_found`.
    """
    with registry.catalog.read() as rows:
        found = rows.blobs.upload(require_repository(rows, repository).id, session)
    if found is None:
        raise RegistryError(
            "upload_unknown", "there is no such upload", where=printable(session), hint="begin a new one"
        )
    return found


def cancel_upload(registry: Registry, repository: str, session: str) -> None:
    """Give an upload up; what has arrived of it is deleted.

    Raises:
        RegistryError: `upload_unknown`, `not_found`.
    """
    upload = find_upload(registry, repository, session)
    _discard(registry, upload)


def _discard(registry: Registry, upload: Upload) -> None:
    with registry.catalog.write() as rows:
        ours = rows.blobs.end_upload(upload.storage_key)
    registry.hashes.drop(upload.session)
    if ours:
        registry.blobs.delete(upload.storage_key)


class Receiver:
    """Takes further bytes of an upload; a context that keeps what arrived however it ends.

    Args:
        registry: where.
        upload: from `begin_upload` or `find_upload`.
        max_nbytes: most bytes that the blob may have.
    """

    def __init__(self, registry: Registry, upload: Upload, *, max_nbytes: int) -> None:
        self._registry = registry
        self._upload = upload
        self._max_nbytes = max_nbytes
        self._open = contextlib.ExitStack()
        self._writer: ObjectWriter
        self._hash: hashlib._Hash
        self._refused = False
        self.received = upload.received

    def __enter__(self) -> Self:
        upload = self._upload
        self._writer = self._open.enter_context(self._registry.blobs.resume(upload.storage_key, self._durable))
        with contextlib.ExitStack() as undo:
            undo.push(self._open)
            total = self._registry.hashes.take(upload.session, upload.received, upload.algorithm)
            self._hash = total or self._rehash(upload.algorithm, upload.received)
            undo.pop_all()
        return self

    def _durable(self) -> int:
        """How many bytes count, now that nobody else can write: as many as when the caller looked, or refuse."""
        upload = self._upload
        with self._registry.catalog.read() as rows:
            now = rows.blobs.upload(upload.repo_id, upload.session)
        if now != upload:
            raise _moved(upload)
        return upload.received

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            RegistryError: `limit_exceeded`, `disk_full`, `io`.
        """
        if self.received + len(data) > self._max_nbytes:
            raise RegistryError("limit_exceeded", "the blob is too large", expected=f"at most {self._max_nbytes} bytes")
        try:
            with disk_errors(f"object {self._upload.storage_key}"):
                self._writer.write(data)
        except ObmError:
            self._refused = True
            raise
        self._hash.update(data)
        self.received += len(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._open.close()
            if not self._refused:
                self._note()
        except ObmError as failure:
            self._refused = failure.reason in ("disk_full", "io")
            raise
        finally:
            if self._refused:
                self._cut_back()

    def _note(self) -> None:
        """Let what has arrived count."""
        upload = self._upload
        self._registry.hashes.keep(upload.session, self.received, self._hash)
        if self.received != upload.received:
            with self._registry.catalog.write() as rows:
                now = self._registry.clock()
                if not rows.blobs.note_received(upload.storage_key, upload.received, self.received, now):
                    raise _moved(upload)

    def _cut_back(self) -> None:
        """Give the space of what does not count back, or one blob too large keeps a full disk full."""
        self._registry.hashes.drop(self._upload.session)
        with contextlib.suppress(ObmError), self._registry.blobs.resume(self._upload.storage_key, self._durable):
            pass

    def digest(self, algorithm: str) -> str:
        """Digest of all that has arrived."""
        total = self._hash if self._hash.name == algorithm else self._rehash(algorithm, self.received)
        return f"{algorithm}:{total.hexdigest()}"

    def _rehash(self, algorithm: str, nbytes: int) -> hashlib._Hash:
        total = hashlib.new(algorithm)
        for chunk in self._registry.blobs.read(self._upload.storage_key, 0, nbytes):
            total.update(chunk)
        return total


def _moved(upload: Upload) -> RegistryError:
    return RegistryError("upload_unknown", "the upload ended or went on elsewhere meanwhile", where=upload.session)


def finish_upload(registry: Registry, repository: str, session: str, digest: str) -> Blob:
    """Make what has arrived a blob of the repository.

    Args:
        registry: where.
        repository: the repository of the upload.
        session: the upload.
        digest: what its bytes must hash to.

    Returns:
        The stored blob; when the same bytes were there already, those.

    Raises:
        RegistryError: `blob_digest` when the bytes are others, and the upload is gone then; `bad_digest`,
            `upload_unknown`, `quota_exceeded`.
    """
    algorithm = parse_digest(digest).partition(":")[0]
    upload = find_upload(registry, repository, session)
    with Receiver(registry, upload, max_nbytes=upload.received) as receiver:  # nobody else appends meanwhile
        found = receiver.digest(algorithm)
        blob = _make(registry, repository, upload, digest) if found == digest else None
    if blob is None:
        _discard(registry, upload)
        raise wrong_digest(digest, found)
    registry.hashes.drop(session)
    if blob.storage_key != upload.storage_key:
        registry.blobs.delete(upload.storage_key)
    return blob


def _make(registry: Registry, repository: str, upload: Upload, digest: str) -> Blob:
    registry.blobs.finish(upload.storage_key)
    return adopt(registry, repository, upload.storage_key, digest, upload.received)

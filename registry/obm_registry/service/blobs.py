"""Take blobs in, give them out, let another repository read them.

Digests are checked against what arrived, never against what somebody says. Hashing and writing happen outside
any transaction.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from obm_format.errors import ObmError, RegistryError
from obm_registry.blobs.base import damaged, new_key
from obm_registry.catalog.rows import Blob
from obm_registry.catalog.store import Session
from obm_registry.refs import namespace_of, parse_digest, parse_repository
from obm_registry.service.registry import Registry, require_quota, require_repository

TOUCH_EVERY_MS = 600_000  # a blob asked for again and again is written to the catalog this often


def find_blob(registry: Registry, repository: str, digest: str) -> Blob:
    """A blob that the repository may read.

    Raises:
        RegistryError: `blob_unknown`, `not_found`, `bad_digest`.
    """
    with registry.catalog.read() as session:
        repo = require_repository(session, repository)
        found = session.blobs.linked(repo.id, parse_digest(digest))
    if found is None:
        raise unknown_blob(repository, digest)
    return found


def is_whole(registry: Registry, blob: Blob) -> bool:
    """Whether the stored object is there with all its bytes; what they are is for an examination to say."""
    return registry.blobs.nbytes(blob.storage_key) == blob.size


def require_whole(registry: Registry, blob: Blob) -> None:
    """Refuse a blob whose object is missing or has another size.

    Raises:
        RegistryError: `blob_damaged`.
    """
    if not is_whole(registry, blob):
        raise damaged(blob.storage_key, "the object is missing or has another size")


def offer_blob(registry: Registry, repository: str, digest: str) -> bool:
    """Whether the repository has the blob already; if so, no collection takes it for the grace period.

    One whose object is missing or has another size counts as none, so that whoever has the bytes sends them again.

    Raises:
        RegistryError: `bad_digest`.
        UsageError: `bad_ref`.
    """
    with registry.catalog.read() as session:
        repo = session.names.repository(parse_repository(repository))
        found = session.blobs.linked(repo.id, parse_digest(digest)) if repo else None
    if found is None or not is_whole(registry, found):
        return False
    if registry.clock() - found.touched_at >= TOUCH_EVERY_MS:
        with registry.catalog.write() as session:
            session.blobs.touch([found.id], registry.clock())
    return True


def read_blob(
    registry: Registry, repository: str, digest: str, start: int = 0, stop: int | None = None
) -> Iterator[bytes]:
    """The bytes [start, stop) of a blob in chunks.

    Raises:
        RegistryError: as `find_blob`; `blob_damaged` when the stored object is missing or too short.
    """
    blob = find_blob(registry, repository, digest)
    return registry.blobs.read(blob.storage_key, start, blob.size if stop is None else min(stop, blob.size))


def put_blob(registry: Registry, repository: str, chunks: Iterable[bytes], digest: str) -> Blob:
    """Store a blob and let the repository read it.

    Args:
        registry: where to.
        repository: made when it is not there yet.
        chunks: the bytes.
        digest: what they must hash to.

    Returns:
        The stored blob; when the same bytes were there already, those.

    Raises:
        RegistryError: `blob_digest` when the bytes are others, `quota_exceeded`, `blob_unknown` when a
            collection took the unfinished upload, `disk_full`, `io`; nothing is kept then.
        UsageError: `bad_ref`.
    """
    name = parse_repository(repository)
    key = new_key()
    with registry.catalog.write() as session:
        repo = session.names.ensure_repository(name, namespace_of(name), registry.clock())
        session.blobs.begin_upload(key, repo.id, registry.clock())
    try:
        size = _receive(registry, key, chunks, parse_digest(digest))
        blob = adopt(registry, name, key, digest, size)
    except BaseException:
        _abandon(registry, key)
        raise
    if blob.storage_key != key:
        registry.blobs.delete(key)
    return blob


def _receive(registry: Registry, key: str, chunks: Iterable[bytes], digest: str) -> int:
    algorithm, _, expected = digest.partition(":")
    total, size = hashlib.new(algorithm), 0
    with registry.blobs.create(key) as writer:
        for chunk in chunks:
            total.update(chunk)
            writer.write(chunk)
            size += len(chunk)
        if total.hexdigest() != expected:
            raise wrong_digest(digest, f"{algorithm}:{total.hexdigest()}")
    return size


def wrong_digest(expected: str, got: str) -> RegistryError:
    """The refusal of bytes that are not what they were sent as."""
    message = "the bytes do not hash to the digest that they were sent under"
    return RegistryError("blob_digest", message, expected=expected, got=got, hint="send them again")


def adopt(registry: Registry, repository: str, key: str, digest: str, size: int) -> Blob:
    """Make a received object live, or take the live one that has the same digest, unless that has lost its bytes.

    Args:
        registry: where.
        repository: may read the blob then.
        key: the object, whose upload ends with this.
        digest: what its bytes hash to; the caller has checked that.
        size: number of its bytes.

    Raises:
        RegistryError: `blob_unknown` when a collection took the upload, `quota_exceeded`.
    """
    now, lost = registry.clock(), _damaged_key(registry, digest)
    with registry.catalog.write() as session:
        if not session.blobs.end_upload(key):
            raise RegistryError("blob_unknown", "the upload was collected before it was done", where=digest)
        repo = require_repository(session, repository)
        blob = session.blobs.live(digest)
        if blob is None:
            blob_id = session.blobs.insert(digest, size, key, now)
            blob = Blob(id=blob_id, digest=digest, size=size, storage_key=key, touched_at=now)
        elif blob.storage_key == lost:
            session.blobs.store_anew(blob.id, key)
            blob = replace(blob, storage_key=key)
        session.blobs.link(repo.id, blob.id, "upload", now)
        session.blobs.touch([blob.id], now)
        require_quota(session, repo.namespace)
    if blob.storage_key == key and lost is not None:
        registry.blobs.delete(lost)
    return blob


def _damaged_key(registry: Registry, digest: str) -> str | None:
    """Key of the object that a digest stands for, if that is missing or has another size; None where all is well."""
    with registry.catalog.read() as session:
        blob = session.blobs.live(digest)
    return None if blob is None or is_whole(registry, blob) else blob.storage_key


def _abandon(registry: Registry, key: str) -> None:
    """Remove a failed upload. Whatever cannot be removed now is left to the next collection."""
    with contextlib.suppress(ObmError):
        with registry.catalog.write() as session:
            # without its reservation the object is live, or a collection is removing it
            ours = session.blobs.end_upload(key)
        if ours:
            registry.blobs.delete(key)


def mount_blob(registry: Registry, repository: str, digest: str, source: str | None = None) -> bool:
    """Let a repository read a blob that another one has, without sending it.

    Args:
        registry: where.
        repository: made when it is not there yet.
        digest: the blob.
        source: the repository that has it; None for any, which only a caller who may read all of them may
            ask.

    Returns:
        Whether the repository can read the blob now.

    Raises:
        RegistryError: `bad_digest`, `quota_exceeded`.
        UsageError: `bad_ref`.
    """
    name, now = parse_repository(repository), registry.clock()
    with registry.catalog.read() as session:
        blob = _mountable(session, digest, source)
    if blob is None or not is_whole(registry, blob):
        return False
    with registry.catalog.write() as session:
        blob = _mountable(session, digest, source)
        if blob is None:
            return False  # a collection or a removal was quicker
        repo = session.names.ensure_repository(name, namespace_of(name), now)
        session.blobs.link(repo.id, blob.id, "mount", now)
        session.blobs.touch([blob.id], now)
        require_quota(session, repo.namespace)
    return True


def _mountable(session: Session, digest: str, source: str | None) -> Blob | None:
    if source is None:
        return session.blobs.live(parse_digest(digest))
    origin = session.names.repository(parse_repository(source))
    return session.blobs.linked(origin.id, parse_digest(digest)) if origin else None


def send_blob(registry: Registry, repository: str, digest: str, chunks: Iterable[bytes]) -> int:
    """Store a blob unless the repository, or another one, has it; for callers who may read all repositories.

    Returns:
        The number of bytes stored.

    Raises:
        RegistryError: as `put_blob`.
    """
    if offer_blob(registry, repository, digest) or mount_blob(registry, repository, digest):
        return 0
    return put_blob(registry, repository, chunks, digest).size


def remove_blob(registry: Registry, repository: str, digest: str, *, actor: str) -> None:
    """Take a blob from a repository; the bytes go with the next collection, unless others use them.

    Raises:
        RegistryError: `in_use` when a manifest of the repository names it, `blob_unknown`, `not_found`.
    """
    with registry.catalog.write() as session:
        repo = require_repository(session, repository)
        blob = session.blobs.linked(repo.id, parse_digest(digest))
        if blob is None:
            raise unknown_blob(repository, digest)
        if session.blobs.is_used_in(repo.id, blob.id):
            raise RegistryError("in_use", "a manifest of the repository names this blob", where=digest)
        session.blobs.unlink(repo.id, blob.id)
        session.audit.record(actor, "blob.remove", f"{repository}@{digest}", registry.clock())


def unknown_blob(repository: str, digest: str) -> RegistryError:
    """The refusal of a blob that the repository cannot read."""
    return RegistryError("blob_unknown", f"there is no such blob in {repository}", where=digest)

"""Delete the bytes that nothing refers to, while others push and pull.

Two phases: a blob is first condemned in the catalog (nobody can link it any more), then its object is
deleted, then its row. A crash between them leaves a row that says so, and the next collection goes on. An
object key is never used again, so a push of the same bytes at the same time has an object and a row of its
own. The grace period protects what a push has found or sent but not yet named in a manifest.
"""

from __future__ import annotations

from dataclasses import dataclass

from obm_registry.catalog.rows import Blob
from obm_registry.service.registry import Registry

DEFAULT_GRACE_S = 24 * 3600.0
_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection deleted, or would delete.

    Args:
        deleted: blobs that no manifest names.
        deleted_bytes: their bytes.
        uploads: uploads that were never finished.
        orphans: objects that no row names.
        orphan_bytes: their bytes.
    """

    deleted: int
    deleted_bytes: int
    uploads: int
    orphans: int
    orphan_bytes: int


def collect(registry: Registry, *, dry_run: bool = False, grace_s: float = DEFAULT_GRACE_S) -> Collected:
    """Delete what nothing refers to and nobody has touched for the grace period.

    Args:
        registry: where.
        dry_run: only tell.
        grace_s: seconds that bytes without a manifest are kept; when it is shorter than a push that is under
            way, that push may have to send again.

    Raises:
        RegistryError: `busy` or `io`; what was deleted until then stays deleted.
    """
    before = registry.clock() - int(grace_s * 1000)
    uploads = _reap_uploads(registry, before, dry_run=dry_run)
    blobs = _reap_blobs(registry, before, dry_run=dry_run)
    orphans = _reap_orphans(registry, before, dry_run=dry_run)
    return Collected(
        deleted=len(blobs),
        deleted_bytes=sum(blob.size for blob in blobs),
        uploads=uploads,
        orphans=len(orphans),
        orphan_bytes=sum(orphans),
    )


def _reap_uploads(registry: Registry, before: int, *, dry_run: bool) -> int:
    with registry.catalog.read() as session:
        stale = session.blobs.stale_uploads(before)
    if dry_run:
        return len(stale)
    for key in stale:
        with registry.catalog.write() as session:
            ours = session.blobs.end_upload(key)
        if ours:  # else it was finished meanwhile, and the object is live
            registry.blobs.delete(key)
    return len(stale)


def _reap_blobs(registry: Registry, before: int, *, dry_run: bool) -> list[Blob]:
    with registry.catalog.read() as session:
        condemned = session.blobs.condemned()
        if dry_run:
            return condemned + session.blobs.unused(before)
    for blob in condemned:
        _delete(registry, blob)
    done = list(condemned)
    while True:
        with registry.catalog.read() as session:
            page = session.blobs.unused(before, limit=_PAGE)
        if not page:
            return done
        for blob in page:
            with registry.catalog.write() as session:
                ours = session.blobs.condemn(blob.id, before)
            if ours:
                _delete(registry, blob)
                done.append(blob)


def _delete(registry: Registry, blob: Blob) -> None:
    registry.blobs.delete(blob.storage_key)
    with registry.catalog.write() as session:
        session.blobs.forget(blob.id)


def _reap_orphans(registry: Registry, before: int, *, dry_run: bool) -> list[int]:
    # objects first, rows second: what appears in between is not listed, what is adopted in between is known
    objects = [found for found in registry.blobs.objects() if found.written_at < before]
    with registry.catalog.read() as session:
        known = session.blobs.known_keys()
    orphans = [found for found in objects if found.key not in known]
    if not dry_run:
        for found in orphans:
            registry.blobs.delete(found.key)
    return [found.nbytes for found in orphans]

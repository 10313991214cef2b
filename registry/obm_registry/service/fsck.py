"""Hold the catalog and the stored bytes against each other, and tell everything that does not agree.

Changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from obm_format.errors import ObmError, RegistryError
from obm_format.progress import Progress, silent
from obm_registry.catalog.rows import Blob, Manifest
from obm_registry.manifest.oci import digest_of, parse_manifest
from obm_registry.service.audit import check_audit
from obm_registry.service.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Args:
        reason: a reason code.
        where: the blob, manifest or row.
        detail: one line for people.
    """

    reason: str
    where: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What an examination looked at, and what it found."""

    blobs: int
    nbytes: int
    manifests: int
    problems: tuple[Problem, ...]


def examine(registry: Registry, *, progress: Progress = silent) -> Examined:
    """Read and hash every blob, and check every manifest and the database itself.

    Args:
        registry: where.
        progress: told how many bytes are hashed.

    Raises:
        RegistryError: `io` or `busy` when the catalog cannot be read at all.
    """
    with registry.catalog.read() as session:
        problems = [Problem(reason="io", where="catalog", detail=line) for line in session.defects()]
        blobs = session.blobs.all_live()
    total, done = sum(blob.size for blob in blobs), 0
    for blob in blobs:
        problems += _blob_problems(registry, blob)
        done += blob.size
        progress("hash", done, total)
    manifests = 0
    for manifest in _manifests(registry):
        problems += _manifest_problems(registry, manifest)
        manifests += 1
    try:
        check_audit(registry)
    except RegistryError as error:
        problems.append(Problem(reason=error.reason, where=error.where or "audit", detail=error.message))
    return Examined(blobs=len(blobs), nbytes=total, manifests=manifests, problems=tuple(problems))


def _blob_problems(registry: Registry, blob: Blob) -> Iterator[Problem]:
    total, size = hashlib.new(blob.digest.partition(":")[0]), 0
    try:
        for chunk in registry.blobs.read(blob.storage_key):
            total.update(chunk)
            size += len(chunk)
    except ObmError as error:
        if _is_live(registry, blob):
            yield Problem(reason=error.reason, where=blob.digest, detail=error.message)
        return
    if size != blob.size:
        detail = f"the object has {size} bytes, the catalog says {blob.size}"
        yield Problem(reason="blob_damaged", where=blob.digest, detail=detail)
    elif total.hexdigest() != blob.digest.partition(":")[2]:
        yield Problem(reason="blob_damaged", where=blob.digest, detail="the object has other bytes")


def _is_live(registry: Registry, blob: Blob) -> bool:
    """Whether the blob is still there, and not taken by a collection while we read."""
    with registry.catalog.read() as session:
        now = session.blobs.live(blob.digest)
    return now is not None and now.storage_key == blob.storage_key


def _manifests(registry: Registry) -> Iterator[Manifest]:
    after = 0
    while True:
        with registry.catalog.read() as session:
            page = session.manifests.page(after=after)
        if not page:
            return
        yield from page
        after = page[-1].id


def _manifest_problems(registry: Registry, manifest: Manifest) -> Iterator[Problem]:
    if digest_of(manifest.body, manifest.digest.partition(":")[0]) != manifest.digest:
        yield Problem(reason="bad_manifest", where=manifest.digest, detail="the manifest has other bytes")
        return
    try:
        parsed = parse_manifest(manifest.body, media_type=manifest.media_type)
    except ObmError as error:
        yield Problem(reason=error.reason, where=manifest.digest, detail=str(error))
        return
    with registry.catalog.read() as session:
        known = session.blobs.linked_many(manifest.repo_id, (blob.digest for blob in parsed.blobs))
        edges = session.manifests.blob_count(manifest.id)
        still_there = session.manifests.get(manifest.repo_id, manifest.digest) is not None
    if not still_there:
        return
    if not len(parsed.required_blobs) <= edges <= len(parsed.blobs):
        yield Problem(reason="bad_manifest", where=manifest.digest, detail="blobs of the manifest are not recorded")
    for blob in parsed.required_blobs:
        if blob.digest not in known:
            yield Problem(reason="blob_unknown", where=blob.digest, detail=f"{manifest.digest} names it")

"""What a use case needs: the catalog, the blob store, the time; and the rules that several use cases share.

Bytes first, row second: objects are durable before a row names them, and rows are gone before objects are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from obm_format.errors import RegistryError
from obm_registry.blobs.base import BlobStore
from obm_registry.catalog.rows import Namespace, Repository
from obm_registry.catalog.store import Catalog, Session
from obm_registry.refs import parse_repository
from obm_registry.service.hashes import RunningHashes


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """One registry: who refers to what, and the bytes.

    Args:
        catalog: the rows.
        blobs: the objects.
        clock: milliseconds since 1970, UTC.
        hashes: running hashes of uploads under way in this process.
    """

    catalog: Catalog
    blobs: BlobStore
    clock: Callable[[], int] = now_ms
    hashes: RunningHashes = field(default_factory=RunningHashes)


def require_repository(session: Session, name: str) -> Repository:
    """The repository called `name`.

    Raises:
        RegistryError: `not_found`.
        UsageError: `bad_ref`.
    """
    found = session.names.repository(parse_repository(name))
    if found is None:
        raise RegistryError("not_found", "there is no such repository", where=name, hint="`obm ls` lists what there is")
    return found


def require_quota(session: Session, namespace: Namespace) -> None:
    """Refuse what has just been recorded when it takes the namespace above its quota; call it last.

    Raises:
        RegistryError: `quota_exceeded`; the enclosing transaction is undone.
    """
    if namespace.quota_nbytes is None:
        return
    used = session.names.used_nbytes(namespace)
    if used > namespace.quota_nbytes:
        raise RegistryError(
            "quota_exceeded",
            "the namespace would be above its quota",
            where=namespace.name,
            expected=f"at most {namespace.quota_nbytes} bytes",
            got=f"{used} bytes",
            hint="remove what is not needed, then run `obm gc`",
        )

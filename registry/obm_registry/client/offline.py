"""Without a network: what the cache remembers of a registry, and one clear line for everything else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from obm_format.errors import RegistryError
from obm_registry import reports
from obm_registry.client.cache import Cache
from obm_registry.client.store import FoundManifest, ReadFrom, TagRule
from obm_registry.manifest.oci import Descriptor, digest_of


class OfflineStore:
    """A `Store` that knows the manifests which the cache remembers.

    Args:
        name: the registry.
        cache: where it looks.
    """

    def __init__(self, name: str, cache: Cache) -> None:
        self._name = name
        self._cache = cache

    @property
    def name(self) -> str:
        """See `Store.name`."""
        return self._name

    def close(self) -> None:
        """Nothing is held."""

    def manifest(self, repository: str, target: str) -> FoundManifest:
        """See `Store.manifest`; what the target named when it was last pulled."""
        body = self._cache.recall(self._name, repository, target)
        if body is None:
            self._refuse(f"{repository}:{target}")
        return FoundManifest(body=body, media_type=None, digest=digest_of(body))

    def referrers(self, repository: str, digest: str, artifact_type: str) -> list[Descriptor]:
        """None are known."""
        return []

    def read_blob(self, repository: str, blob: Descriptor, start: int = 0) -> Iterator[bytes]:
        """See `Store.read_blob`; refused."""
        self._refuse(blob.digest)

    def put_manifest(
        self, repository: str, body: bytes, media_type: str, tag: TagRule | None = None
    ) -> tuple[str, ...]:
        """See `Store.put_manifest`; refused."""
        self._refuse(repository)

    def has_blob(self, repository: str, digest: str) -> bool:
        """See `Store.has_blob`; refused."""
        self._refuse(repository)

    def put_blob(self, repository: str, blob: Descriptor, read: ReadFrom) -> int:
        """See `Store.put_blob`; refused."""
        self._refuse(repository)

    def repositories(self) -> list[str]:
        """See `Store.repositories`; refused."""
        self._refuse(self._name)

    def tags(self, repository: str) -> list[str]:
        """See `Store.tags`; refused."""
        self._refuse(repository)

    def remove_tag(self, repository: str, tag: str) -> None:
        """See `Store.remove_tag`; refused."""
        self._refuse(repository)

    def remove_manifest(self, repository: str, digest: str) -> None:
        """See `Store.remove_manifest`; refused."""
        self._refuse(repository)

    def history(self, repository: str, tag: str) -> list[reports.LogEntry]:
        """See `Extras.history`; refused."""
        self._refuse(repository)

    def withdraw(self, repository: str, digest: str, reason: str, *, undo: bool) -> bool:
        """See `Extras.withdraw`; refused."""
        self._refuse(repository)

    def _refuse(self, what: str) -> NoReturn:
        raise RegistryError(
            "network", "not in the cache, and OBM_OFFLINE is set", where=what, hint="unset OBM_OFFLINE to fetch it"
        )

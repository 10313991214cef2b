"""What the client needs of the other side: blobs and manifests by digest, tags, referrers.

The same for a server and for an OCI image layout. Whoever implements it checks digests of manifests; those of
blobs are checked by whoever reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from obm_registry.manifest.oci import Descriptor

ReadFrom = Callable[[int], Iterator[bytes]]
"""Gives the bytes of a blob from an offset on, in chunks; may be called again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundManifest:
    """A manifest as the other side keeps it.

    Args:
        body: its bytes, which hash to `digest`.
        media_type: what it was sent as, or None.
        digest: `algorithm:hex`.
        warnings: what the other side says beside it.
    """

    body: bytes
    media_type: str | None
    digest: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRule:
    """What a tag must name now, for a manifest to be put under it; the digest, or None for nothing yet."""

    name: str
    now: str | None


class Store(Protocol):
    """Repositories of blobs and manifests."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def close(self) -> None:
        """Give back what it holds."""

    def manifest(self, repository: str, target: str) -> FoundManifest:
        """The manifest that a tag or a digest names.

        Raises:
            RegistryError: `not_found`; `blob_digest` when its bytes are others.
        """

    def put_manifest(
        self, repository: str, body: bytes, media_type: str, tag: TagRule | None = None
    ) -> tuple[str, ...]:
        """Publish a manifest whose blobs are there, and list it among the referrers of its subject.

        Returns:
            Warnings.

        Raises:
            RegistryError: `tag_exists` when the tag names another one by now, and the store can tell.
        """

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether the repository has a blob."""

    def put_blob(self, repository: str, blob: Descriptor, read: ReadFrom) -> int:
        """Store a blob that the repository lacks; the number of bytes that were sent for it."""

    def read_blob(self, repository: str, blob: Descriptor, start: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from `start` on in chunks: as many as `blob.size` says, or an error."""

    def repositories(self) -> list[str]:
        """Names of all repositories."""

    def tags(self, repository: str) -> list[str]:
        """Tags of a repository, without those that only serve as an index of referrers."""

    def referrers(self, repository: str, digest: str, artifact_type: str) -> list[Descriptor]:
        """Manifests of a type whose subject is `digest`."""

    def remove_tag(self, repository: str, tag: str) -> None:
        """Remove a tag."""

    def remove_manifest(self, repository: str, digest: str) -> None:
        """Remove a manifest and all its tags, also from the referrers of its subject."""

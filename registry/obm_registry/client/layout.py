"""An OCI image layout as a registry: `oci-layout`, `index.json` and `blobs/`, in a folder or a bucket.

One layout holds all repositories: a tag is an entry of the index named `namespace/backbone:tag`, which stock tools
can read too. No name becomes a path; blobs lie under their digests. Source: OCI image spec v1.1, "Image Layout".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from obm_format.errors import RegistryError
from obm_registry.client.referrers import describe_referrer, is_fallback_tag
from obm_registry.client.store import FoundManifest, ReadFrom, TagRule
from obm_registry.manifest.oci import (
    IMAGE_INDEX,
    MAX_MANIFEST_NBYTES,
    Descriptor,
    OciManifest,
    digest_of,
    encode_manifest,
    parse_manifest,
)
from obm_registry.refs import is_digest, is_repository, is_tag

REF_NAME = "org.opencontainers.image.ref.name"
REPOSITORY = "io.obm.repository"
MARKER = b'{"imageLayoutVersion":"1.0.0"}'


class LayoutFiles(Protocol):
    """Where a layout lies. Digests are checked by the layout, and well formed."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def index(self) -> bytes | None:
        """The bytes of `index.json`; None where there is no layout yet."""

    def update_index(self, change: Callable[[bytes | None], bytes]) -> None:
        """Replace `index.json`, and `oci-layout` where it is missing, so that no other writer's change is lost."""

    def has(self, digest: str) -> bool:
        """Whether there is a blob."""

    def put(self, digest: str, chunks: Iterator[bytes]) -> None:
        """Store a blob, whole or not at all.

        Raises:
            RegistryError: `blob_digest` when the bytes are others.
        """

    def read(self, digest: str, start: int) -> Iterator[bytes]:
        """The bytes of a blob from `start` on.

        Raises:
            RegistryError: `blob_unknown`.
        """

    def close(self) -> None:
        """Give back what is held."""


class LayoutStore:
    """A `Store` in an OCI image layout.

    Args:
        files: where it lies.
    """

    def __init__(self, files: LayoutFiles) -> None:
        self._files = files

    @property
    def name(self) -> str:
        """See `Store.name`."""
        return self._files.name

    def close(self) -> None:
        """See `Store.close`."""
        self._files.close()

    # --- manifests ------------------------------------------------------------------------------------------

    def manifest(self, repository: str, target: str) -> FoundManifest:
        """See `Store.manifest`."""
        for row in self._rows():
            named = row.digest == target if is_digest(target) else _tag(row, repository) == target
            if named and _repository(row) == repository:
                return self._read(row)
        mark = "@" if is_digest(target) else ":"
        raise RegistryError(
            "not_found",
            "there is no such manifest",
            where=f"{self.name}: {repository}{mark}{target}",
            hint=f"`obm ls {repository}` lists what there is",
        )

    def _read(self, row: Descriptor) -> FoundManifest:
        body = bytearray()
        for chunk in self._files.read(row.digest, 0):
            body += chunk
            if len(body) > MAX_MANIFEST_NBYTES:
                raise RegistryError("limit_exceeded", "the manifest is too large", where=row.digest)
        own = digest_of(bytes(body), row.digest.partition(":")[0])
        if own != row.digest:
            raise RegistryError(
                "blob_digest", "the manifest has other bytes", where=self.name, expected=row.digest, got=own
            )
        return FoundManifest(body=bytes(body), media_type=row.media_type, digest=own)

    def put_manifest(
        self, repository: str, body: bytes, media_type: str, tag: TagRule | None = None
    ) -> tuple[str, ...]:
        """See `Store.put_manifest`."""
        manifest = parse_manifest(body, media_type=media_type)
        for blob in manifest.blobs:
            if not self._files.has(blob.digest):
                raise RegistryError("blob_unknown", "the layout does not have the blob", where=blob.digest)
        row = describe_referrer(body, media_type)
        if not self._files.has(row.digest):
            self._files.put(row.digest, iter([body]))

        def change(rows: list[Descriptor]) -> list[Descriptor]:
            here = [r for r in rows if _repository(r) == repository]
            if tag is None:
                return rows if any(r.digest == row.digest for r in here) else [*rows, _untagged(row, repository)]
            now = next((r.digest for r in here if _tag(r, repository) == tag.name), None)
            if now not in (tag.now, row.digest):
                raise RegistryError(
                    "tag_exists",
                    "the tag was moved meanwhile",
                    where=f"{repository}:{tag.name}",
                    expected=tag.now,
                    got=now,
                )
            kept = [r for r in rows if _tag(r, repository) != tag.name and not _is_bare(r, repository, row.digest)]
            kept += [
                _untagged(r, repository)
                for r in here
                if r.digest == now != row.digest and _is_last(r, kept, repository)
            ]
            return [*kept, _tagged(row, repository, tag.name)]

        self._update(change)
        return ()

    def remove_tag(self, repository: str, tag: str) -> None:
        """See `Store.remove_tag`; the manifest stays, under its digest."""

        def change(rows: list[Descriptor]) -> list[Descriptor]:
            gone = [row for row in rows if _tag(row, repository) == tag]
            kept = [row for row in rows if _tag(row, repository) != tag]
            return kept + [_untagged(row, repository) for row in gone if _is_last(row, kept, repository)]

        self._update(change)

    def remove_manifest(self, repository: str, digest: str) -> None:
        """See `Store.remove_manifest`; its blobs stay."""
        self._update(lambda rows: [r for r in rows if r.digest != digest or _repository(r) != repository])

    def _rows(self) -> list[Descriptor]:
        return _parse_index(self._files.index())

    def _update(self, change: Callable[[list[Descriptor]], list[Descriptor]]) -> None:
        def rewrite(body: bytes | None) -> bytes:
            rows = change(_parse_index(body))
            return encode_manifest(OciManifest(media_type=IMAGE_INDEX, children=tuple(rows)))

        self._files.update_index(rewrite)

    # --- blobs ----------------------------------------------------------------------------------------------

    def has_blob(self, repository: str, digest: str) -> bool:
        """See `Store.has_blob`; the blobs of a layout belong to all its repositories."""
        return self._files.has(digest)

    def put_blob(self, repository: str, blob: Descriptor, read: ReadFrom) -> int:
        """See `Store.put_blob`."""
        self._files.put(blob.digest, read(0))
        return blob.size

    def read_blob(self, repository: str, blob: Descriptor, start: int = 0) -> Iterator[bytes]:
        """See `Store.read_blob`."""
        at = start
        for chunk in self._files.read(blob.digest, start):
            at += len(chunk)
            if at > blob.size:
                break
            yield chunk
        if at != blob.size:
            raise RegistryError(
                "blob_damaged", "the blob has another size", where=blob.digest, expected=f"{blob.size} bytes"
            )

    # --- lists ----------------------------------------------------------------------------------------------

    def repositories(self) -> list[str]:
        """See `Store.repositories`."""
        return sorted({name for row in self._rows() if (name := _repository(row))})

    def tags(self, repository: str) -> list[str]:
        """See `Store.tags`."""
        found = {_tag(row, repository) for row in self._rows()}
        return sorted(tag for tag in found if tag and not is_fallback_tag(tag))

    def referrers(self, repository: str, digest: str, artifact_type: str) -> list[Descriptor]:
        """See `Store.referrers`."""
        found: dict[str, Descriptor] = {}
        for row in self._rows():
            if _repository(row) != repository or row.digest in found or row.artifact_type not in ("", artifact_type):
                continue
            body = self._read(row)
            manifest = parse_manifest(body.body, media_type=body.media_type)
            if manifest.subject is not None and manifest.subject.digest == digest:
                found[row.digest] = describe_referrer(body.body, body.media_type)
        return [row for row in found.values() if row.artifact_type == artifact_type]


def _parse_index(body: bytes | None) -> list[Descriptor]:
    return [] if body is None else list(parse_manifest(body, media_type=IMAGE_INDEX).children)


def _split(row: Descriptor) -> tuple[str, str]:
    """Repository and tag of an entry; empty where it has none."""
    repository, _, tag = row.annotations.get(REF_NAME, "").partition(":")
    if is_repository(repository) and is_tag(tag):
        return repository, tag
    kept = row.annotations.get(REPOSITORY, "")
    return (kept, "") if is_repository(kept) else ("", "")


def _repository(row: Descriptor) -> str:
    return _split(row)[0]


def _tag(row: Descriptor, repository: str) -> str:
    own, tag = _split(row)
    return tag if own == repository else ""


def _is_bare(row: Descriptor, repository: str, digest: str) -> bool:
    """Whether an entry only keeps the manifest `digest` in the repository, without a tag."""
    return row.digest == digest and _split(row) == (repository, "")


def _is_last(row: Descriptor, kept: list[Descriptor], repository: str) -> bool:
    """Whether nothing else keeps an entry's manifest in the repository."""
    return not any(other.digest == row.digest and _repository(other) == repository for other in kept)


def _tagged(row: Descriptor, repository: str, tag: str) -> Descriptor:
    return replace(row, annotations={REF_NAME: f"{repository}:{tag}"})


def _untagged(row: Descriptor, repository: str) -> Descriptor:
    return replace(row, annotations={REPOSITORY: repository})

"""Small manifests that refer to another one: a signature of an expert, the mark that it was withdrawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from obm_registry.manifest.oci import (
    EMPTY_BODY,
    EMPTY_TYPE,
    Descriptor,
    OciManifest,
    describe,
    digest_of,
    encode_manifest,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What is published: the manifest, its digest, and its blobs with their descriptors."""

    body: bytes
    digest: str
    blobs: tuple[tuple[Descriptor, bytes], ...]


def attach(
    subject: Descriptor, artifact_type: str, layers: Sequence[tuple[str, bytes]], annotations: Mapping[str, str]
) -> Attached:
    """Build a manifest that refers to another; the same content has the same digest everywhere.

    Args:
        subject: what it refers to.
        artifact_type: what it is.
        layers: media type and bytes of each layer; none for a manifest that says all by itself.
        annotations: text by key.
    """
    empty = describe(EMPTY_BODY, EMPTY_TYPE)
    rows = [(describe(data, media_type), data) for media_type, data in layers] or [(empty, EMPTY_BODY)]
    manifest = OciManifest(
        artifact_type=artifact_type,
        config=empty,
        layers=tuple(row for row, _ in rows),
        # no annotations and no type of the subject: a subject is named by what it is
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        annotations=annotations,
    )
    body = encode_manifest(manifest)
    blobs = {row.digest: (row, data) for row, data in [(empty, EMPTY_BODY), *rows]}
    return Attached(body=body, digest=digest_of(body), blobs=tuple(blobs.values()))

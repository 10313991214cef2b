"""Publish what refers to an expert, and read its signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from obm_format.progress import silent
from obm_registry.client.store import FoundManifest, ReadFrom, Store
from obm_registry.client.transfer import push_blobs, read_whole
from obm_registry.manifest.attached import attach
from obm_registry.manifest.oci import IMAGE_MANIFEST, Descriptor, parse_manifest
from obm_registry.manifest.signature import MAX_NBYTES, MAX_SIGNATURES, SIGNATURE_LAYER, SIGNATURE_TYPE


def publish_attached(
    store: Store,
    repository: str,
    found: FoundManifest,
    artifact_type: str,
    layers: Sequence[tuple[str, bytes]],
    annotations: Mapping[str, str],
) -> str:
    """Publish a small manifest that refers to `found`; the same again changes nothing.

    Args:
        store: where to.
        repository: the repository of both.
        found: what it refers to.
        artifact_type: what it is.
        layers: media type and bytes of each layer.
        annotations: text by key.

    Returns:
        Its digest.
    """
    media_type = parse_manifest(found.body, media_type=found.media_type).media_type
    subject = Descriptor(media_type=media_type, digest=found.digest, size=len(found.body))
    package = attach(subject, artifact_type, layers, annotations)
    push_blobs(store, repository, [(row, _reader(data)) for row, data in package.blobs], silent)
    store.put_manifest(repository, package.body, IMAGE_MANIFEST)
    return package.digest


def _reader(data: bytes) -> ReadFrom:
    return lambda start: iter([data[start:]])


def read_signatures(store: Store, repository: str, digest: str) -> list[bytes]:
    """The signatures that refer to a manifest, whether they hold or not.

    Raises:
        RegistryError: `bad_manifest`, `limit_exceeded`, and what the store raises.
    """
    found = []
    for row in store.referrers(repository, digest, SIGNATURE_TYPE)[:MAX_SIGNATURES]:
        one = store.manifest(repository, row.digest)
        for layer in parse_manifest(one.body, media_type=one.media_type).layers[:1]:
            if layer.media_type == SIGNATURE_LAYER:
                found.append(read_whole(store, repository, layer, MAX_NBYTES))
    return sorted(found)

"""Publish small generic manifests through the service layer."""

from __future__ import annotations

from collections.abc import Sequence

from obm_registry.manifest.oci import Descriptor, OciManifest, describe, digest_of, encode_manifest
from obm_registry.service.blobs import put_blob
from obm_registry.service.publish import Published, put_manifest
from obm_registry.service.registry import Registry
from obm_registry.service.tags import TagChange

REPO = "acme/things"
BY_TESTER = TagChange(actor="tester")


def push_blob(registry: Registry, data: bytes, repository: str = REPO) -> Descriptor:
    put_blob(registry, repository, [data], digest_of(data))
    return describe(data, "application/x")


def manifest_body(*blobs: Descriptor, note: str = "", subject: Descriptor | None = None) -> bytes:
    config, *layers = blobs
    annotations = {"note": note} if note else {}
    return encode_manifest(
        OciManifest(
            artifact_type="application/x.thing",
            config=config,
            layers=tuple(layers),
            subject=subject,
            annotations=annotations,
        )
    )


def push_thing(
    registry: Registry,
    data: bytes,
    *,
    tags: Sequence[str] = (),
    repository: str = REPO,
    change: TagChange = BY_TESTER,
    subject: Descriptor | None = None,
) -> Published:
    """A manifest with one blob, which is its config and its layer."""
    blob = push_blob(registry, data, repository)
    body = manifest_body(blob, blob, subject=subject)
    return put_manifest(registry, repository, body, change=change, tags=tags)

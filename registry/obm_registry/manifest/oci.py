"""OCI manifests and descriptors: the messages that both sides of the registry speak.

Never looks into blobs, and never writes a manifest anew that somebody else made: it is kept as the bytes that
came.
Source: OCI image spec v1.1 (manifest, index, descriptor).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from obm_format.errors import RegistryError
from obm_registry.manifest.strictjson import encode_json, parse_json
from obm_registry.refs import is_digest, printable

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
_NONDISTRIBUTABLE = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY_BODY = b"{}"
TITLE = "org.opencontainers.image.title"

MAX_MANIFEST_NBYTES = 4 << 20
MAX_DESCRIPTORS = 10_000
_MAX_SIZE = 1 << 53


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a manifest says of one blob or manifest.

    Args:
        media_type: what the bytes are.
        digest: `algorithm:hex` of the bytes.
        size: number of bytes.
        artifact_type: type of the manifest that is described, "" where it is none.
        annotations: text by key.
    """

    media_type: str
    digest: str
    size: int
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_nondistributable(self) -> bool:
        """Whether the bytes are a layer that its owner hands out elsewhere."""
        return self.media_type.startswith(_NONDISTRIBUTABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OciManifest:
    """An image manifest or an image index.

    Args:
        media_type: one of the four manifest types.
        artifact_type: the manifest's own, else the media type of its config; "" for an index without one.
        config: the config blob; None for an index.
        layers: the layer blobs in order; none for an index.
        children: the manifests of an index in order.
        subject: the manifest that this one refers to, or None.
        annotations: text by key.
    """

    media_type: str = IMAGE_MANIFEST
    artifact_type: str = ""
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def required_blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers without those that the image spec lets a registry lack."""
        return tuple(blob for blob in self.blobs if not blob.is_nondistributable)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers."""
        return ((self.config,) if self.config else ()) + self.layers


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of `data` as text, `algorithm:hex`."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def describe(data: bytes, media_type: str) -> Descriptor:
    """The descriptor of a blob whose bytes are `data`."""
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))


def encode_manifest(manifest: OciManifest) -> bytes:
    """The one byte image of a manifest that obm makes: the same content has the same digest everywhere."""
    document: dict[str, object] = {"schemaVersion": 2, "mediaType": manifest.media_type}
    if manifest.artifact_type:
        document["artifactType"] = manifest.artifact_type
    if manifest.config is not None:
        document["config"] = descriptor_object(manifest.config)
        document["layers"] = [descriptor_object(layer) for layer in manifest.layers]
    else:
        document["manifests"] = [descriptor_object(child) for child in manifest.children]
    if manifest.subject is not None:
        document["subject"] = descriptor_object(manifest.subject)
    if manifest.annotations:
        document["annotations"] = dict(manifest.annotations)
    return encode_json(document)


def descriptor_object(descriptor: Descriptor) -> dict[str, object]:
    """The JSON object of a descriptor."""
    document: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.artifact_type:
        document["artifactType"] = descriptor.artifact_type
    if descriptor.annotations:
        document["annotations"] = dict(descriptor.annotations)
    return document


def parse_manifest(body: bytes, *, media_type: str | None = None) -> OciManifest:
    """Parse an image manifest or an image index.

    Args:
        body: the manifest, at most 4 MiB.
        media_type: the type it was sent under, or None when only its own field tells.

    Returns:
        What the registry needs of it; fields that it does not know are left aside.

    Raises:
        RegistryError: `bad_manifest`, `bad_digest` or `limit_exceeded`, with the field concerned.
    """
    document = parse_json(body, max_nbytes=MAX_MANIFEST_NBYTES, where="manifest")
    if not isinstance(document, dict):
        raise bad_manifest("manifest", "an object", document)
    if document.get("schemaVersion") != 2:
        raise bad_manifest("manifest.schemaVersion", "2", document.get("schemaVersion"))
    own_type = _manifest_type(document, media_type)
    annotations = _annotations(document, "manifest")
    subject = _optional(document, "subject")
    artifact_type = _text(document, "artifactType", "manifest")
    if own_type in (IMAGE_INDEX, DOCKER_INDEX):
        children = _descriptors(document, "manifests")
        return OciManifest(
            media_type=own_type,
            artifact_type=artifact_type,
            children=children,
            subject=subject,
            annotations=annotations,
        )
    config = _descriptor(document.get("config"), "manifest.config")
    return OciManifest(
        media_type=own_type,
        artifact_type=artifact_type or config.media_type,
        config=config,
        layers=_descriptors(document, "layers"),
        subject=subject,
        annotations=annotations,
    )


def bad_manifest(where: str, expected: str, got: object) -> RegistryError:
    """The refusal of one field."""
    shown = printable(str(got)) if got is not None else "nothing"
    return RegistryError("bad_manifest", "malformed manifest", where=where, expected=expected, got=shown)


def _manifest_type(document: Mapping[str, object], sent: str | None) -> str:
    own = document.get("mediaType", sent)
    known = (IMAGE_MANIFEST, IMAGE_INDEX, DOCKER_MANIFEST, DOCKER_INDEX)
    if own is None:
        own = IMAGE_INDEX if "manifests" in document else IMAGE_MANIFEST
    if own not in known:
        raise bad_manifest("manifest.mediaType", "an OCI or Docker manifest type", own)
    if sent is not None and sent != own:
        raise bad_manifest("manifest.mediaType", sent, own)
    return str(own)


def _optional(document: Mapping[str, object], key: str) -> Descriptor | None:
    return _descriptor(document[key], f"manifest.{key}") if key in document else None


def _descriptors(document: Mapping[str, object], key: str) -> tuple[Descriptor, ...]:
    rows = document.get(key, [])
    if not isinstance(rows, list):
        raise bad_manifest(f"manifest.{key}", "an array", rows)
    if len(rows) > MAX_DESCRIPTORS:
        raise RegistryError(
            "limit_exceeded",
            "too many descriptors",
            where=f"manifest.{key}",
            expected=MAX_DESCRIPTORS,
            got=len(rows),
        )
    return tuple(_descriptor(row, f"manifest.{key}[{i}]") for i, row in enumerate(rows))


def _descriptor(row: object, where: str) -> Descriptor:
    if not isinstance(row, dict):
        raise bad_manifest(where, "a descriptor", row)
    digest, size, media_type = row.get("digest"), row.get("size"), row.get("mediaType")
    if not isinstance(digest, str) or not is_digest(digest):
        raise RegistryError("bad_digest", "malformed digest", where=where, got=printable(str(digest)))
    if type(size) is not int or not 0 <= size < _MAX_SIZE:
        raise bad_manifest(f"{where}.size", "a number of bytes", size)
    if not isinstance(media_type, str) or not media_type:
        raise bad_manifest(f"{where}.mediaType", "a media type", media_type)
    return Descriptor(
        media_type=media_type,
        digest=digest,
        size=size,
        artifact_type=_text(row, "artifactType", where),
        annotations=_annotations(row, where),
    )


def _text(row: Mapping[str, object], key: str, where: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        raise bad_manifest(f"{where}.{key}", "text", value)
    return value


def _annotations(row: Mapping[str, object], where: str) -> dict[str, str]:
    found = row.get("annotations") or {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise bad_manifest(f"{where}.annotations", "an object of text", found)
    return dict(found)

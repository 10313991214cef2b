"""OCI manifests: what is understood, and what is refused."""

from __future__ import annotations

import json

import pytest

from obm_format.errors import RegistryError
from obm_registry.manifest.oci import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    MAX_MANIFEST_NBYTES,
    Descriptor,
    OciManifest,
    encode_manifest,
    parse_manifest,
)

SHA = "sha256:" + "0a" * 32


def descriptor(**changes: object) -> dict[str, object]:
    return {"mediaType": "application/x", "digest": SHA, "size": 2, **changes}


def image(**changes: object) -> bytes:
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": descriptor(),
        "layers": [descriptor()],
    }
    document.update(changes)
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def test_parse_gives_back_what_was_encoded() -> None:
    layer = Descriptor(media_type="a/b", digest=SHA, size=3, annotations={"k": "v"})
    subject = Descriptor(media_type=IMAGE_MANIFEST, digest=SHA, size=9, artifact_type="x/y")
    manifest = OciManifest(
        artifact_type="x/z", config=layer, layers=(layer, layer), subject=subject, annotations={"a": "b"}
    )
    assert parse_manifest(encode_manifest(manifest)) == manifest
    index = OciManifest(media_type=IMAGE_INDEX, artifact_type="x/i", children=(subject,))
    assert parse_manifest(encode_manifest(index)) == index


def test_parse_takes_the_type_of_the_config_without_an_own_one() -> None:
    assert parse_manifest(image()).artifact_type == "application/x"


def test_parse_leaves_unknown_fields_aside() -> None:
    assert parse_manifest(image(custom={"x": [1.5]})).blobs


def test_parse_without_media_type_goes_by_what_was_sent_or_by_form() -> None:
    assert parse_manifest(image(mediaType=None)).media_type == IMAGE_MANIFEST
    assert parse_manifest(b'{"schemaVersion":2,"manifests":[]}').media_type == IMAGE_INDEX
    assert parse_manifest(b'{"schemaVersion":2}', media_type=IMAGE_INDEX).media_type == IMAGE_INDEX


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"[]", "manifest"),
        (image(schemaVersion=1), "manifest.schemaVersion"),
        (image(mediaType="text/html"), "manifest.mediaType"),
        (image(config=None), "manifest.config"),
        (image(config=[]), "manifest.config"),
        (image(layers={}), "manifest.layers"),
        (image(layers=[descriptor(size=-1)]), "manifest.layers[0].size"),
        (image(layers=[descriptor(size=True)]), "manifest.layers[0].size"),
        (image(layers=[descriptor(size=1 << 60)]), "manifest.layers[0].size"),
        (image(layers=[descriptor(mediaType="")]), "manifest.layers[0].mediaType"),
        (image(layers=[descriptor(digest="sha256:../../x")]), "manifest.layers[0]"),
        (image(subject=descriptor(digest=7)), "manifest.subject"),
        (image(annotations={"a": 1}), "manifest.annotations"),
        (image(artifactType=1), "manifest.artifactType"),
    ],
)
def test_parse_malformed_field_is_refused_by_name(body: bytes, where: str) -> None:
    with pytest.raises(RegistryError) as caught:
        parse_manifest(body)
    assert caught.value.reason in ("bad_manifest", "bad_digest")
    assert caught.value.where == where


def test_parse_other_type_than_sent_is_refused() -> None:
    with pytest.raises(RegistryError):
        parse_manifest(image(), media_type=IMAGE_INDEX)


@pytest.mark.parametrize("body", [image(layers=[descriptor()] * 10_001), image(x="y" * MAX_MANIFEST_NBYTES)])
def test_parse_too_much_is_refused(body: bytes) -> None:
    with pytest.raises(RegistryError) as caught:
        parse_manifest(body)
    assert caught.value.reason == "limit_exceeded"

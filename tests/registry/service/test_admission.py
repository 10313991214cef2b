"""Experts and backbones at the door: what the server itself reads, whatever the sender says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkpoints import shifted, tiny_llama, write_checkpoint
from registry_files import REPOSITORY, registry_with_backbone, write_backbone, write_expert

from obm_format.checkpoint import open_checkpoint
from obm_format.compress import compress_rtvq
from obm_format.container.reader import Container
from obm_format.container.sources import PathSource
from obm_format.errors import ObmError
from obm_registry.blobs.local import LocalBlobs
from obm_registry.catalog.store import open_catalog
from obm_registry.embedded import open_embedded
from obm_registry.manifest import segments
from obm_registry.manifest.backbone import backbone_descriptor, package_checkpoint
from obm_registry.manifest.expert import (
    EXPERT_CONFIG,
    SHARED_ID,
    SHARED_TYPE,
    ExpertPackage,
    package_expert,
    require_base_vector,
    segment_chunks,
)
from obm_registry.manifest.oci import Descriptor, OciManifest, describe, encode_manifest, parse_manifest
from obm_registry.manifest.weights import package_weights
from obm_registry.service.blobs import put_blob
from obm_registry.service.lookup import list_backbones, list_experts
from obm_registry.service.namespaces import set_namespace_rules
from obm_registry.service.publish import Published, put_manifest
from obm_registry.service.registry import Registry
from obm_registry.service.tags import TagChange

CHANGE = TagChange(actor="tester")


@dataclass
class Door:
    """A registry that holds a backbone and all blobs of one expert, but no manifest of it."""

    registry: Registry
    package: ExpertPackage
    subject: Descriptor

    @property
    def manifest(self) -> OciManifest:
        return parse_manifest(self.package.body)

    def put(self, manifest: OciManifest) -> Published:
        return put_manifest(self.registry, REPOSITORY, encode_manifest(manifest), change=CHANGE, tags=["chat"])

    def refusal(self, manifest: OciManifest) -> str:
        with pytest.raises(ObmError) as caught:
            self.put(manifest)
        assert list_experts(self.registry) == []
        return caught.value.reason


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    monkeypatch.setattr(segments, "SEGMENT_NBYTES", 1024)
    registry_with_backbone(tmp_path).close()
    file = write_expert(tmp_path / "x.obm", tmp_path / "base", added_nbytes=3000)
    catalog = open_catalog(tmp_path / "home" / "registry.sqlite3")
    registry = Registry(catalog=catalog, blobs=LocalBlobs(tmp_path / "home" / "data"))
    (row,) = list_backbones(registry)
    subject = backbone_descriptor(row.manifest_digest, row.manifest_nbytes)
    source = PathSource(file)
    with Container.open(source) as container:
        package = package_expert(container, source, subject)
        for layer in package.layers:
            put_blob(registry, REPOSITORY, layer.chunks(), layer.descriptor.digest)
    put_config(registry, package.config)
    yield Door(registry, package, subject)
    catalog.close()


def put_config(registry: Registry, config: bytes) -> Descriptor:
    found = describe(config, EXPERT_CONFIG)
    put_blob(registry, REPOSITORY, [config], found.digest)
    return found


def with_layers(manifest: OciManifest, layers: Sequence[Descriptor]) -> OciManifest:
    return dataclasses.replace(manifest, layers=tuple(layers))


def test_sound_expert_is_admitted_as_what_it_is(door: Door) -> None:
    published = door.put(door.manifest)
    assert (published.digest, published.warnings) == (door.package.digest, ())
    (row,) = list_experts(door.registry)
    assert row.facts == door.package.facts
    assert row.backbone_digest == door.subject.digest


def test_what_the_config_says_is_not_believed(door: Door) -> None:
    lie = put_config(door.registry, json.dumps({"task": "lie", "nbytes": 1}).encode())
    door.put(dataclasses.replace(door.manifest, config=lie, annotations={"io.obm.task": "lie"}))
    assert list_experts(door.registry)[0].facts.task == "math"


def test_layers_that_are_not_the_file_are_refused(door: Door) -> None:
    index, first, *rest = door.manifest.layers
    assert rest
    for layers, reasons in (
        ([index, *rest, first], {"part_digest"}),
        ([index, first], {"truncated"}),
        ([index, first, *rest, first], {"trailing_data"}),
        ([first, index, *rest], {"bad_manifest"}),
        ([index, index, first, *rest], {"bad_manifest"}),
        ([], {"bad_manifest"}),
    ):
        assert door.refusal(with_layers(door.manifest, layers)) in reasons


def test_index_that_is_longer_than_the_header_is_refused(door: Door, tmp_path: Path) -> None:
    data = (tmp_path / "x.obm").read_bytes()
    cut = door.manifest.layers[0].size + 64
    layers = []
    for piece, like in ((data[:cut], door.manifest.layers[0]), (data[cut:], door.manifest.layers[1])):
        layer = describe(piece, like.media_type)
        put_blob(door.registry, REPOSITORY, [piece], layer.digest)
        layers.append(layer)
    assert door.refusal(with_layers(door.manifest, layers)) == "artifact_id"


def test_subject_that_is_no_backbone_here_is_refused(door: Door) -> None:
    foreign = dataclasses.replace(door.subject, digest="sha256:" + "0" * 64)
    for subject in (None, foreign):
        assert door.refusal(dataclasses.replace(door.manifest, subject=subject)) == "backbone_unknown"


def test_backbone_of_another_repository_does_not_count(door: Door, tmp_path: Path) -> None:
    with open_embedded(tmp_path / "home") as embedded:
        embedded.add_backbone(tmp_path / "base", "other/tiny")
    package = door.package
    for layer in package.layers:
        chunks = segment_chunks(PathSource(tmp_path / "x.obm"), layer.segment)
        put_blob(door.registry, "third/tiny", chunks, layer.descriptor.digest)
    put_blob(door.registry, "third/tiny", [package.config], describe(package.config, "x").digest)
    with pytest.raises(ObmError) as caught:
        put_manifest(door.registry, "third/tiny", package.body, change=CHANGE)
    assert caught.value.reason == "backbone_unknown"


def test_expert_of_another_backbone_is_refused(door: Door, tmp_path: Path) -> None:
    file = write_expert(tmp_path / "y.obm", write_backbone(tmp_path / "other", seed=3))
    source = PathSource(file)
    with Container.open(source) as container:
        package = package_expert(container, source, door.subject)
        for layer in package.layers:
            put_blob(door.registry, REPOSITORY, layer.chunks(), layer.descriptor.digest)
    put_config(door.registry, package.config)
    assert door.refusal(parse_manifest(package.body)) == "backbone_mismatch"


@pytest.mark.parametrize(("policy", "warns"), [("warn", True), ("accept", False)])
def test_namespace_may_take_experts_without_their_backbone(door: Door, policy: str, warns: bool) -> None:
    set_namespace_rules(
        door.registry, "acme", quota_nbytes=None, subject_policy=policy, immutable_tags=("*-v[0-9]*",), actor="tester"
    )
    published = door.put(dataclasses.replace(door.manifest, subject=None))
    assert bool(published.warnings) == warns
    (row,) = list_experts(door.registry)
    assert (row.backbone_digest, row.facts.fingerprint) == (None, door.package.facts.fingerprint)


def test_push_into_a_namespace_that_takes_all_needs_no_backbone(door: Door, tmp_path: Path) -> None:
    set_namespace_rules(
        door.registry, "free", quota_nbytes=None, subject_policy="warn", immutable_tags=(), actor="tester"
    )
    with door.registry.catalog.write() as session:
        session.names.ensure_repository("free/tiny", "free", 1)
    with open_embedded(tmp_path / "home") as embedded:
        (warning,) = embedded.push(tmp_path / "x.obm", "free/tiny:chat").warnings
    assert "backbone" in warning


# --- experts that refer to a base vector --------------------------------------------------------------------


@dataclass
class RtvqDoor:
    """A registry that holds a backbone and all blobs of an expert and of its base vector."""

    registry: Registry
    package: ExpertPackage

    def refusal(self, layers: Sequence[Descriptor]) -> str:
        body = encode_manifest(with_layers(parse_manifest(self.package.body), layers))
        with pytest.raises(ObmError) as caught:
            put_manifest(self.registry, REPOSITORY, body, change=CHANGE)
        return caught.value.reason


@pytest.fixture
def rtvq(tmp_path: Path) -> Iterator[RtvqDoor]:
    pre = tiny_llama(0)
    write_checkpoint(tmp_path / "pre", pre)
    compress_rtvq(tmp_path / "pre", [write_checkpoint(tmp_path / "tuned", shifted(pre, 1))], tmp_path / "out")
    with open_embedded(tmp_path / "home", actor="tester") as embedded:
        embedded.add_backbone(tmp_path / "pre", REPOSITORY)
    catalog = open_catalog(tmp_path / "home" / "registry.sqlite3")
    registry = Registry(catalog=catalog, blobs=LocalBlobs(tmp_path / "home" / "data"))
    (row,) = list_backbones(registry)
    source, base_source = (PathSource(tmp_path / "out" / f"{name}.obm") for name in ("tuned", "base"))
    with Container.open(source) as container, Container.open(base_source) as base:
        subject = backbone_descriptor(row.manifest_digest, row.manifest_nbytes)
        package = package_expert(container, source, subject, bases=[(base, base_source)])
        for layer in package.layers:
            put_blob(registry, REPOSITORY, layer.chunks(), layer.descriptor.digest)
    put_config(registry, package.config)
    yield RtvqDoor(registry, package)
    catalog.close()


def test_expert_with_its_base_vector_is_admitted(rtvq: RtvqDoor) -> None:
    put_manifest(rtvq.registry, REPOSITORY, rtvq.package.body, change=CHANGE)
    (row,) = list_experts(rtvq.registry)
    assert row.facts == rtvq.package.facts


def test_expert_without_its_base_vector_or_with_another_is_refused(rtvq: RtvqDoor) -> None:
    layers = [layer.descriptor for layer in rtvq.package.layers]
    own = [layer for layer in layers if layer.media_type != SHARED_TYPE]
    shared = [layer for layer in layers if layer.media_type == SHARED_TYPE]
    assert rtvq.refusal(own) == "bad_reference"
    assert rtvq.refusal([*own, *shared[:-1]]) == "truncated"
    assert rtvq.refusal([*own, *reversed(shared)]) == "bad_manifest"
    wrong = [dataclasses.replace(layer, annotations={SHARED_ID: f"obm1-{own[0].digest}"}) for layer in own]
    as_base = [dataclasses.replace(layer, media_type=SHARED_TYPE) for layer in wrong]
    assert rtvq.refusal([*own, *shared, *as_base]) == "bad_reference"
    assert rtvq.refusal([*own, *as_base]) == "bad_reference"
    bare = [dataclasses.replace(layer, annotations={}) for layer in shared]
    assert rtvq.refusal([*own, *bare]) == "bad_manifest"


def test_another_artifact_under_the_name_of_a_base_vector_is_refused(rtvq: RtvqDoor, tmp_path: Path) -> None:
    with Container.open(str(tmp_path / "out" / "tuned.obm")) as container, pytest.raises(ObmError) as caught:
        require_base_vector(container, container)
    assert caught.value.reason == "bad_reference"


def test_weights_are_admitted_where_their_backbone_is_and_in_its_shape(door: Door, tmp_path: Path) -> None:
    with open_checkpoint(tmp_path / "base") as checkpoint:
        _, table = package_checkpoint(checkpoint)
        package = package_weights(checkpoint, table, door.subject)
        for layer in package.blobs:
            put_blob(door.registry, REPOSITORY, layer.chunks(), layer.descriptor.digest)
    manifest = parse_manifest(package.body)
    assert door.refusal(dataclasses.replace(manifest, subject=None)) == "backbone_unknown"
    assert door.refusal(with_layers(manifest, manifest.layers[1:])) == "bad_manifest"
    assert door.put(manifest).warnings == ()
    for policy, warned in (("warn", 1), ("accept", 0)):
        set_namespace_rules(
            door.registry, "acme", quota_nbytes=None, subject_policy=policy, immutable_tags=(), actor="tester"
        )
        alone = dataclasses.replace(manifest, subject=None, annotations={"policy": policy})
        published = put_manifest(door.registry, REPOSITORY, encode_manifest(alone), change=CHANGE)
        assert len(published.warnings) == warned

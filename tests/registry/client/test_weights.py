"""Weights of a backbone on their way: what is sent, what a broken pull keeps, what is believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from client_parts import open_there
from registry_files import write_backbone

from obm_format.checkpoint import open_checkpoint
from obm_format.errors import BackboneMismatch, CheckpointError, RegistryError
from obm_registry.client.registry import ClientRegistry
from obm_registry.client.store import ReadFrom, Store, TagRule
from obm_registry.manifest import folder, segments
from obm_registry.manifest.backbone import backbone_descriptor, package_backbone, package_checkpoint
from obm_registry.manifest.oci import (
    IMAGE_MANIFEST,
    TITLE,
    Descriptor,
    parse_manifest,
)
from obm_registry.manifest.weights import WEIGHTS_TAG, package_weights, parse_weights

REPOSITORY = "acme/tiny"


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_NBYTES", 500)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[ClientRegistry]:
    with open_there(f"file://{tmp_path / 'layout'}", tmp_path) as there:
        yield there


def store_of(registry: ClientRegistry) -> Store:
    return registry._store


def test_only_segments_that_are_missing_are_sent(
    registry: ClientRegistry, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sent = store_of(registry), []
    put = store.put_blob

    def counted(repository: str, blob: Descriptor, read: ReadFrom) -> int:
        sent.append(blob.size)
        if len(sent) == 4:
            raise RegistryError("network", "gone")
        return put(repository, blob, read)

    registry.add_backbone(base, REPOSITORY)
    monkeypatch.setattr(store, "put_blob", counted)
    with pytest.raises(RegistryError):
        registry.add_backbone(base, REPOSITORY, with_weights=True)
    with pytest.raises(RegistryError, match="--with-weights"):
        registry.pull_backbone(REPOSITORY, base.parent / "out")
    stored = len(list((base.parent / "layout" / "blobs" / "sha256").iterdir()))
    sent[:] = [0] * 4
    registry.add_backbone(base, REPOSITORY, with_weights=True)
    # a header, three tensors of 768 bytes in two pieces each, config.json; the empty config is there
    whole = len(list((base.parent / "layout" / "blobs" / "sha256").iterdir()))
    assert len(sent) - 4 == whole - stored - 1  # and the manifest, which is no blob that was counted
    assert max(sent) <= 500


def test_a_pull_that_broke_off_goes_on_where_it_stopped(
    registry: ClientRegistry, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_backbone(base, REPOSITORY, with_weights=True)
    store = store_of(registry)
    read, asked = store.read_blob, []

    def broken(repository: str, blob: Descriptor, start: int = 0) -> Iterator[bytes]:
        asked.append(blob.digest)
        if len(asked) > 8:
            raise RegistryError("denied", "no more")
        return read(repository, blob, start)

    monkeypatch.setattr(store, "read_blob", broken)
    with pytest.raises(RegistryError) as caught:
        registry.pull_backbone(REPOSITORY, tmp_path / "out")
    assert caught.value.reason == "denied"
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(store, "read_blob", read)
    pulled = registry.pull_backbone(REPOSITORY, tmp_path / "out")
    size = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert pulled.received_bytes + pulled.reused_bytes == size
    assert pulled.reused_bytes > 1000
    with open_checkpoint(tmp_path / "out") as again, open_checkpoint(base) as first:
        assert again.table() == first.table()


def test_a_pull_killed_between_its_renames_goes_on(
    registry: ClientRegistry, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_backbone(base, REPOSITORY, with_weights=True)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder, "sync_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.pull_backbone(REPOSITORY, tmp_path / "out")
    assert registry.pull_backbone(REPOSITORY, tmp_path / "out").received_bytes < 100  # config.json alone


def test_two_pulls_into_one_folder_do_not_mix(
    registry: ClientRegistry, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_backbone(base, REPOSITORY, with_weights=True)
    store = store_of(registry)
    read, inner = store.read_blob, []

    def again(repository: str, blob: Descriptor, start: int = 0) -> Iterator[bytes]:
        if blob.media_type.endswith("header.v1") and not inner:
            inner.append(True)
            with pytest.raises(CheckpointError) as caught:
                registry.pull_backbone(REPOSITORY, tmp_path / "out")
            inner.append(caught.value.reason)
        return read(repository, blob, start)

    monkeypatch.setattr(store, "read_blob", again)
    registry.pull_backbone(REPOSITORY, tmp_path / "out")
    assert inner == [True, "busy"]


def test_weights_of_another_backbone_are_refused_by_tensor(
    registry: ClientRegistry, base: Path, tmp_path: Path
) -> None:
    added = registry.add_backbone(base, REPOSITORY)
    with open_checkpoint(base) as right, open_checkpoint(write_backbone(tmp_path / "other", seed=9)) as wrong:
        backbone, table = package_checkpoint(right)
        assert backbone.digest == added.manifest_digest
        package = package_weights(wrong, table, backbone.descriptor)
        store = store_of(registry)
        for layer in package.blobs:
            store.put_blob(REPOSITORY, layer.descriptor, layer.chunks)
    store.put_manifest(REPOSITORY, package.body, IMAGE_MANIFEST, TagRule(name=WEIGHTS_TAG, now=None))
    with pytest.raises(BackboneMismatch) as caught:
        registry.pull_backbone(REPOSITORY, tmp_path / "out")
    assert (caught.value.reason, caught.value.where) == ("backbone_mismatch", "w0")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_what_a_manifest_of_weights_may_not_say(base: Path) -> None:
    with open_checkpoint(base) as checkpoint:
        _, table = package_checkpoint(checkpoint)
        subject = backbone_descriptor("sha256:" + "0" * 64, 2)
        manifest = parse_manifest(package_weights(checkpoint, table, subject).body)
    parse_weights(manifest, table)
    header, *rest, side = manifest.layers

    def named(name: str, **changes: object) -> Descriptor:
        return replace(side, annotations={TITLE: name}, **changes)  # type: ignore[arg-type]

    for layers in (
        (header, *rest[:-1], side),
        (header, *rest, rest[-1], side),
        (replace(header, digest="sha256:" + "1" * 64), *rest, side),
        (*rest, header, side),
        (header, *rest, named("../config.json")),
        (header, *rest, named("model.safetensors")),
        (header, *rest, named("modeling.py")),
        (header, *rest, side, side),
        (header, *rest, named("config.json", size=1 << 40)),
    ):
        with pytest.raises(RegistryError) as caught:
            parse_weights(replace(manifest, layers=layers), table)
        assert caught.value.reason == "bad_manifest"


def test_where_tensors_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of 768 bytes: two share a segment of 1600, one alone is cut every 500."""
    for most, sizes in ((1600, [1536, 768]), (500, [500, 268] * 3), (768, [768] * 3), (10**6, [2304])):
        monkeypatch.setattr(segments, "SEGMENT_NBYTES", most)
        with open_checkpoint(write_backbone(tmp_path / str(most))) as checkpoint:
            _, table = package_checkpoint(checkpoint)
            package = package_weights(checkpoint, table, package_backbone(table).descriptor)
            header, *rest, _ = package.layers
            assert [layer.descriptor.size for layer in rest] == sizes
            body = b"".join(b"".join(layer.chunks()) for layer in (header, *rest))
            whole = (tmp_path / str(most) / "model.safetensors").read_bytes()
            assert body[-2304:] == whole[-2304:]
            for layer in rest:
                assert b"".join(layer.chunks(7)) == b"".join(layer.chunks())[7:]

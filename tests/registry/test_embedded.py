"""The embedded registry, end to end: what a user of `obm push` and `obm pull` sees."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_files import REPOSITORY, registry_with_backbone, write_backbone, write_expert

from obm_format.checkpoint import open_checkpoint
from obm_format.container.reader import Container
from obm_format.errors import BackboneMismatch, FormatError, ObmError, RegistryError, UsageError
from obm_registry.embedded import EmbeddedRegistry, open_embedded
from obm_registry.manifest import segments

CHAT = f"{REPOSITORY}:chat"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[EmbeddedRegistry]:
    with registry_with_backbone(tmp_path) as found:
        yield found


@pytest.fixture
def expert(tmp_path: Path, registry: EmbeddedRegistry) -> Path:
    return write_expert(tmp_path / "x.obm", tmp_path / "base")


def objects(folder: Path) -> list[Path]:
    return [path for path in (folder / "home" / "data").rglob("*") if path.is_file()]


def refused(registry: EmbeddedRegistry, file: Path, ref: str, *, move: bool = False) -> ObmError:
    with pytest.raises(ObmError) as caught:
        registry.push(file, ref, move=move)
    return caught.value


# --- backbones ----------------------------------------------------------------------------------------------


def test_add_backbone_tells_its_fingerprint(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    with open_checkpoint(tmp_path / "base") as base:
        fingerprint = base.fingerprint()
    (found,) = registry.backbones()
    assert (found.ref, found.fingerprint, found.n_tensors) == (REPOSITORY, fingerprint, 3)
    assert (found.architecture, found.n_params) == ("TinyModel", 3 * 12 * 16)
    shown = registry.backbone(REPOSITORY)
    assert [(t.name, t.dtype, t.shape) for t in shown.tensors] == [(f"w{i}", "F32", [12, 16]) for i in range(3)]
    assert json.dumps(dataclasses.asdict(shown))


def test_add_backbone_again_is_the_same(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    before = registry.backbones()
    assert registry.add_backbone(tmp_path / "base", REPOSITORY) == before[0]
    assert registry.backbones() == before


def test_add_backbone_has_the_same_digest_everywhere(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    first = registry.backbone(REPOSITORY).manifest_digest
    assert registry.add_backbone(tmp_path / "base", "other/name").manifest_digest == first


def test_add_another_backbone_under_the_same_name_is_refused(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    other = write_backbone(tmp_path / "other", seed=1)
    with pytest.raises(RegistryError) as caught:
        registry.add_backbone(other, REPOSITORY)
    assert (caught.value.reason, caught.value.exit_code) == ("tag_exists", 7)


def test_add_backbone_without_weights_in_the_folder_is_refused(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    with pytest.raises(ObmError):
        registry.add_backbone(tmp_path / "home", "acme/empty")
    assert len(registry.backbones()) == 1


def test_remove_backbone_that_has_experts_is_refused(registry: EmbeddedRegistry, expert: Path) -> None:
    digest = registry.backbone(REPOSITORY).manifest_digest
    registry.push(expert, CHAT)
    with pytest.raises(RegistryError) as caught:
        registry.remove(f"{REPOSITORY}@{digest}")
    assert caught.value.reason == "in_use"
    registry.remove(f"{REPOSITORY}@{registry.resolve(CHAT).manifest_digest}")
    registry.remove(f"{REPOSITORY}@{digest}")
    assert registry.backbones() == []


# --- push and pull ------------------------------------------------------------------------------------------


def test_pull_gives_the_bytes_that_were_pushed(
    registry: EmbeddedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_NBYTES", 4096)
    file = write_expert(tmp_path / "big.obm", tmp_path / "base", added_nbytes=50_000)
    pushed = registry.push(file, CHAT)
    pulled = registry.pull(CHAT, tmp_path / "out.obm")
    assert (tmp_path / "out.obm").read_bytes() == file.read_bytes()
    assert pulled.received_bytes == file.stat().st_size
    with Container.open(file) as container:
        assert pushed.id == pulled.id == container.id == registry.resolve(CHAT).id
    assert pushed.manifest_digest == pulled.manifest_digest == registry.resolve(CHAT).manifest_digest
    by_digest = registry.pull(f"{REPOSITORY}@{pushed.manifest_digest}", tmp_path / "out2.obm")
    assert by_digest.id == pushed.id


def test_pulled_file_honours_the_umask_and_leaves_no_draft(
    registry: EmbeddedRegistry, expert: Path, tmp_path: Path
) -> None:
    registry.push(expert, CHAT)
    out = tmp_path / "out"
    out.mkdir()
    registry.pull(CHAT, out / "x.obm")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((out / "x.obm").stat().st_mode) == 0o666 & ~umask
    assert [path.name for path in out.iterdir()] == ["x.obm"]


def test_push_again_sends_nothing(registry: EmbeddedRegistry, expert: Path) -> None:
    first = registry.push(expert, CHAT)
    second = registry.push(expert, CHAT)
    assert second.sent_bytes == 0
    assert second.reused_bytes == first.sent_bytes >= expert.stat().st_size
    assert second.manifest_digest == first.manifest_digest


def test_push_into_another_repository_reuses_the_bytes(
    registry: EmbeddedRegistry, expert: Path, tmp_path: Path
) -> None:
    registry.push(expert, CHAT)
    registry.add_backbone(tmp_path / "base", "other/tiny")
    before = len(objects(tmp_path))
    assert registry.push(expert, "other/tiny:chat").sent_bytes == 0
    assert len(objects(tmp_path)) == before


def test_push_over_another_expert_needs_move(registry: EmbeddedRegistry, expert: Path, tmp_path: Path) -> None:
    other = write_expert(tmp_path / "y.obm", tmp_path / "base", seed=2)
    first = registry.push(expert, CHAT)
    before = len(objects(tmp_path))
    assert refused(registry, other, CHAT).reason == "tag_exists"
    assert len(objects(tmp_path)) == before
    assert registry.resolve(CHAT).id == first.id
    assert registry.push(other, CHAT, move=True).id == registry.resolve(CHAT).id != first.id


def test_push_version_tag_never_moves(registry: EmbeddedRegistry, expert: Path, tmp_path: Path) -> None:
    other = write_expert(tmp_path / "y.obm", tmp_path / "base", seed=2)
    registry.push(expert, f"{CHAT}-v1")
    assert refused(registry, other, f"{CHAT}-v1").reason == "tag_exists"
    assert refused(registry, other, f"{CHAT}-v1", move=True).reason == "tag_immutable"


def test_push_without_backbone_says_what_to_run(registry: EmbeddedRegistry, expert: Path) -> None:
    error = refused(registry, expert, "acme/unknown:chat")
    assert (error.reason, error.exit_code) == ("backbone_unknown", 5)
    assert "obm backbone add BASE acme/unknown" in str(error)
    assert REPOSITORY in str(error)
    assert [listed.ref for listed in registry.experts()] == []


def test_push_against_another_backbone_names_the_first_differences(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    other = write_backbone(tmp_path / "other", seed=1, n_tensors=4)
    before = len(objects(tmp_path))
    error = refused(registry, write_expert(tmp_path / "y.obm", other), CHAT)
    assert isinstance(error, BackboneMismatch)
    assert (error.reason, error.exit_code) == ("backbone_mismatch", 5)
    assert "w0: the expert expects SHA-256" in error.message
    assert "1 more" in error.message
    assert len(objects(tmp_path)) == before


def test_push_of_an_expert_that_leaves_a_tensor_out_is_refused(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    file = write_expert(tmp_path / "y.obm", tmp_path / "base", leave_out="w1")
    error = refused(registry, file, CHAT)
    assert error.reason == "backbone_mismatch"
    assert "w1: the expert expects no such tensor" in error.message


def test_push_damaged_file_is_refused_before_anything_is_sent(
    registry: EmbeddedRegistry, expert: Path, tmp_path: Path
) -> None:
    before = len(objects(tmp_path))
    whole = expert.read_bytes()
    with Container.open(expert) as container:
        at = list(container.header.parts.values())[-1].offset
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for data, reason in ((whole[:-64], "truncated"), (flipped, "part_digest")):
        expert.write_bytes(data)
        error = refused(registry, expert, CHAT)
        assert isinstance(error, FormatError)
        assert error.reason == reason
    assert len(objects(tmp_path)) == before


@pytest.mark.parametrize(
    "ref", [REPOSITORY, f"{REPOSITORY}:chat@sha256:" + "0" * 64, "Not/Valid:x", f"hub.example/{CHAT}"]
)
def test_push_to_what_is_no_tag_is_refused(registry: EmbeddedRegistry, expert: Path, ref: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.push(expert, ref)
    assert (caught.value.reason, caught.value.exit_code) == ("bad_ref", 2)


def test_pull_damaged_segment_leaves_the_old_file(registry: EmbeddedRegistry, expert: Path, tmp_path: Path) -> None:
    registry.push(expert, CHAT)
    largest = max(objects(tmp_path), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[-100] ^= 1
    largest.write_bytes(data)
    out = tmp_path / "out"
    out.mkdir()
    (out / "x.obm").write_bytes(b"old")
    with pytest.raises(RegistryError) as caught:
        registry.pull(CHAT, out / "x.obm")
    assert (caught.value.reason, caught.value.exit_code) == ("blob_damaged", 4)
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("x.obm", b"old")]
    assert any(problem.startswith("blob_damaged") for problem in registry.fsck().problems)


def test_pull_on_a_full_disk_leaves_nothing(
    registry: EmbeddedRegistry, expert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push(expert, CHAT)
    out = tmp_path / "out"
    out.mkdir()

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ObmError) as caught:
        registry.pull(CHAT, out / "x.obm")
    assert caught.value.reason == "disk_full"
    assert list(out.iterdir()) == []


def test_interrupted_push_leaves_nothing_that_is_listed(registry: EmbeddedRegistry, expert: Path) -> None:
    def stop(phase: str, _done: int, _total: int) -> None:
        if phase == "push":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.push(expert, CHAT, progress=stop)
    assert registry.experts() == []
    assert registry.fsck().problems == ()
    registry.push(expert, CHAT)


def test_pull_of_what_is_not_there_or_no_expert_is_refused(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    for ref, reason in (
        (CHAT, "not_found"),
        ("no/where:x", "not_found"),
        (f"{REPOSITORY}:backbone", "bad_manifest"),
        (REPOSITORY, "bad_ref"),
    ):
        with pytest.raises(ObmError) as caught:
            registry.pull(ref, tmp_path / "out.obm")
        assert caught.value.reason == reason
    assert not (tmp_path / "out.obm").exists()


# --- listing and upkeep -------------------------------------------------------------------------------------


def test_experts_are_told_from_their_own_header(registry: EmbeddedRegistry, expert: Path) -> None:
    pushed = registry.push(expert, CHAT)
    registry.tag(CHAT, "also")
    rows = registry.experts()
    assert [row.ref for row in rows] == [f"{REPOSITORY}:also", CHAT]
    row = registry.experts(CHAT)[0]
    assert (row.id, row.manifest_digest) == (pushed.id, pushed.manifest_digest)
    assert (row.task, row.position, row.nbytes) == ("math", "linear", expert.stat().st_size)
    assert (row.kind, row.encodings, row.n_tensors) == ("task-vector", {"sign1": 3}, 3)
    assert row.alpha_min is not None
    assert row.alpha_mean is not None
    assert row.alpha_max is not None
    assert 0.0009 < row.alpha_min < row.alpha_mean < row.alpha_max < 0.011
    assert json.dumps(dataclasses.asdict(row))
    assert registry.experts(REPOSITORY) == rows


def test_experts_without_a_tag_are_listed_by_digest(registry: EmbeddedRegistry, expert: Path) -> None:
    pushed = registry.push(expert, CHAT)
    registry.remove(CHAT)
    (row,) = registry.experts()
    assert row.ref == f"{REPOSITORY}@{pushed.manifest_digest}"
    assert registry.experts(row.ref) == [row]


def test_log_tells_the_moves_of_a_tag(registry: EmbeddedRegistry, expert: Path, tmp_path: Path) -> None:
    first = registry.push(expert, CHAT)
    second = registry.push(write_expert(tmp_path / "y.obm", tmp_path / "base", seed=2), CHAT, move=True)
    events = registry.log(CHAT)
    assert [(e.old_digest, e.new_digest) for e in events] == [
        (first.manifest_digest, second.manifest_digest),
        (None, first.manifest_digest),
    ]
    assert {event.actor for event in events} == {"tester"}
    assert {event.tag for event in registry.log(REPOSITORY)} == {"chat", "backbone"}


def test_yanked_expert_is_pulled_with_a_warning(registry: EmbeddedRegistry, expert: Path, tmp_path: Path) -> None:
    registry.push(expert, CHAT)
    registry.yank(CHAT, reason="wrong split")
    assert registry.experts()[0].yanked == "wrong split"
    (warning,) = registry.pull(CHAT, tmp_path / "out.obm").warnings
    assert "wrong split" in warning
    registry.yank(CHAT, undo=True)
    assert registry.pull(CHAT, tmp_path / "out.obm").warnings == ()


def test_gc_after_removal_frees_the_segments(registry: EmbeddedRegistry, expert: Path) -> None:
    pushed = registry.push(expert, CHAT)
    registry.remove(f"{REPOSITORY}@{pushed.manifest_digest}")
    assert registry.gc().deleted == 0
    assert registry.gc(dry_run=True, grace_s=-1).deleted_bytes == pushed.sent_bytes
    assert registry.gc(grace_s=-1).deleted_bytes == pushed.sent_bytes
    assert registry.fsck().problems == ()
    assert registry.push(expert, CHAT).sent_bytes == pushed.sent_bytes


def test_registry_is_the_same_when_opened_again(registry: EmbeddedRegistry, expert: Path, tmp_path: Path) -> None:
    registry.push(expert, CHAT)
    rows = registry.experts()
    registry.close()
    with open_embedded(tmp_path / "home") as again:
        assert again.experts() == rows
    assert {path.name for path in (tmp_path / "home").iterdir()} >= {"registry.sqlite3", "data"}
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700

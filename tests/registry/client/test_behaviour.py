"""One suite for every kind of registry: what `obm` does by a reference means the same everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import shifted, tiny_llama, write_checkpoint
from client_parts import log_in, open_there
from registry_files import write_backbone, write_expert

from obm_format.checkpoint import open_checkpoint
from obm_format.compress import compress_rtvq
from obm_format.container.reader import Container
from obm_format.errors import BackboneMismatch, CheckpointError, FormatError, RegistryError, UsageError
from obm_format.verify import verify_expert
from obm_registry.embedded import open_embedded
from obm_registry.interface import ExpertRegistry
from obm_registry.manifest import segments

KINDS = ("embedded", "stock", "own", "own_s3", "file", "s3")
_numbers = itertools.count()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def repository() -> str:
    """A name that no other test uses: a stock registry is shared."""
    return f"acme/tiny{next(_numbers)}"


@pytest.fixture
def registry(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ExpertRegistry]:
    if kind == "embedded":
        with open_embedded(tmp_path / "home", actor="tester") as embedded:
            yield embedded
        return
    if kind in ("own", "own_s3"):
        url, token = request.getfixturevalue(kind)
        log_in(url, token, tmp_path)
    elif kind == "s3":
        request.getfixturevalue("s3")
        url = f"s3://shelf/{tmp_path.name}"
    else:
        url = f"file://{tmp_path / 'layout'}" if kind == "file" else request.getfixturevalue("stock")
    with open_there(url, tmp_path) as remote:
        yield remote


@pytest.fixture
def there(registry: ExpertRegistry, base: Path, repository: str) -> ExpertRegistry:
    """The registry, with the backbone in it."""
    registry.add_backbone(base, repository)
    return registry


def reason(error: pytest.ExceptionInfo[RegistryError]) -> str:
    return error.value.reason


def test_backbone_is_told_as_it_was_added(there: ExpertRegistry, base: Path, repository: str) -> None:
    found = there.backbone(repository)
    assert (found.ref, found.n_tensors, found.architecture, found.n_experts) == (repository, 3, "TinyModel", 0)
    assert [t.name for t in found.tensors] == ["w0", "w1", "w2"]
    again = there.add_backbone(base, repository)
    assert (again.manifest_digest, again.fingerprint) == (found.manifest_digest, found.fingerprint)
    assert repository in [row.ref for row in there.backbones()]


def test_another_backbone_under_the_name_is_refused(there: ExpertRegistry, tmp_path: Path, repository: str) -> None:
    other = write_backbone(tmp_path / "other", seed=1)
    with pytest.raises(RegistryError) as caught:
        there.add_backbone(other, repository)
    assert reason(caught) == "tag_exists"


def test_pull_gives_the_bytes_that_were_pushed(
    there: ExpertRegistry, expert: Path, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_NBYTES", 8192)
    pushed = there.push(expert, f"{repository}:chat")
    size = expert.stat().st_size
    assert size < pushed.sent_bytes < size + 1000  # the file and its config
    pulled = there.pull(f"{repository}:chat", tmp_path / "out.obm")
    assert (tmp_path / "out.obm").read_bytes() == expert.read_bytes()
    with Container.open(str(expert)) as container:
        assert pushed.id == pulled.id == container.id == there.resolve(f"{repository}:chat").id
    assert pulled.received_bytes == size
    by_digest = there.pull(f"{repository}@{pushed.manifest_digest}", tmp_path / "out2.obm")
    assert by_digest.manifest_digest == pushed.manifest_digest


def test_push_sends_only_what_is_missing(there: ExpertRegistry, expert: Path, repository: str) -> None:
    first = there.push(expert, f"{repository}:a")
    again = there.push(expert, f"{repository}:b")
    assert (again.sent_bytes, again.reused_bytes) == (0, first.sent_bytes)
    assert again.manifest_digest == first.manifest_digest


def test_the_manifest_is_the_same_everywhere(
    there: ExpertRegistry, base: Path, expert: Path, repository: str, tmp_path: Path
) -> None:
    with open_embedded(tmp_path / "reference") as reference:
        reference.add_backbone(base, "other/name")
        expected = reference.push(expert, "other/name:x")
    assert there.push(expert, f"{repository}:chat").manifest_digest == expected.manifest_digest


def test_ls_tells_what_was_pushed(there: ExpertRegistry, base: Path, tmp_path: Path, repository: str) -> None:
    for i, task in enumerate(("chat", "math")):
        there.push(write_expert(tmp_path / f"{task}.obm", base, task=task, seed=i), f"{repository}:{task}-v1")
    rows = there.experts(repository)
    assert [(row.ref, row.task, row.position) for row in rows] == [
        (f"{shown(there, repository)}:chat-v1", "chat", "linear"),
        (f"{shown(there, repository)}:math-v1", "math", "linear"),
    ]
    assert {row.encodings["sign1"] for row in rows} == {3}
    assert [row.nbytes for row in rows] == [(tmp_path / f"{t}.obm").stat().st_size for t in ("chat", "math")]
    assert [row.ref for row in there.experts(f"{repository}:math-v1")] == [rows[1].ref]
    assert there.backbone(repository, tensors=False).n_experts == 2
    assert rows[0].ref in [row.ref for row in there.experts()]


def shown(there: ExpertRegistry, repository: str) -> str:
    host = getattr(there, "_host", None)
    return f"{host}/{repository}" if host else repository


def test_tag_moves_only_when_asked(there: ExpertRegistry, base: Path, tmp_path: Path, repository: str) -> None:
    one, two = (write_expert(tmp_path / f"{i}.obm", base, seed=i) for i in (1, 2))
    first = there.push(one, f"{repository}:latest")
    with pytest.raises(RegistryError) as caught:
        there.push(two, f"{repository}:latest")
    assert reason(caught) == "tag_exists"
    assert there.resolve(f"{repository}:latest").manifest_digest == first.manifest_digest
    second = there.push(two, f"{repository}:latest", move=True)
    assert there.resolve(f"{repository}:latest").manifest_digest == second.manifest_digest
    there.pull(f"{repository}@{first.manifest_digest}", tmp_path / "old.obm")
    assert (tmp_path / "old.obm").read_bytes() == one.read_bytes()
    named = there.tag(f"{repository}@{first.manifest_digest}", "old")
    assert there.resolve(named.ref).manifest_digest == first.manifest_digest
    with pytest.raises(RegistryError) as caught:
        there.tag(f"{repository}:latest", "old")
    assert reason(caught) == "tag_exists"
    there.tag(f"{repository}:latest", "old", move=True)
    assert there.resolve(f"{repository}:old").manifest_digest == second.manifest_digest


@pytest.mark.parametrize("name", ["backbone", "backbone-weights"])
def test_the_backbones_own_names_are_for_no_expert(
    there: ExpertRegistry, expert: Path, repository: str, name: str
) -> None:
    there.push(expert, f"{repository}:chat")
    for refused in (
        lambda: there.push(expert, f"{repository}:{name}", move=True),
        lambda: there.tag(f"{repository}:chat", name, move=True),
    ):
        with pytest.raises(UsageError) as caught:
            refused()
        assert caught.value.reason == "bad_ref"
    assert there.backbone(repository).n_experts == 1


def test_an_expert_of_another_backbone_is_refused(there: ExpertRegistry, tmp_path: Path, repository: str) -> None:
    stranger = write_expert(tmp_path / "s.obm", write_backbone(tmp_path / "other", seed=5))
    with pytest.raises(BackboneMismatch) as caught:
        there.push(stranger, f"{repository}:x")
    assert (caught.value.reason, caught.value.exit_code) == ("backbone_mismatch", 5)
    assert "w0" in caught.value.message
    with pytest.raises(RegistryError) as missing:
        there.push(stranger, "acme/nowhere:x")
    assert (reason(missing), missing.value.exit_code) == ("backbone_unknown", 5)


def test_a_damaged_file_is_refused(there: ExpertRegistry, expert: Path, repository: str) -> None:
    data = bytearray(expert.read_bytes())
    data[-1] ^= 1
    expert.write_bytes(data)
    with pytest.raises(FormatError):
        there.push(expert, f"{repository}:x")
    with pytest.raises(RegistryError):
        there.resolve(f"{repository}:x")


def test_what_is_not_there_is_not_found(there: ExpertRegistry, repository: str, tmp_path: Path) -> None:
    for ref in (f"{repository}:nothing", f"{repository}@sha256:{'0' * 64}", "acme/nowhere:x"):
        with pytest.raises(RegistryError) as caught:
            there.pull(ref, tmp_path / "out.obm")
        assert (reason(caught), caught.value.exit_code) == ("not_found", 3)
    assert not (tmp_path / "out.obm").exists()
    with pytest.raises(RegistryError) as caught:
        there.pull(f"{repository}:backbone", tmp_path / "out.obm")
    assert reason(caught) == "bad_manifest"
    with pytest.raises(UsageError):
        there.pull(repository, tmp_path / "out.obm")


def test_yank_warns_whoever_pulls_and_can_be_undone(
    there: ExpertRegistry, expert: Path, repository: str, tmp_path: Path
) -> None:
    ref = f"{repository}:chat"
    there.push(expert, ref)
    there.yank(ref, reason="wrong \x1b[31msplit")
    pulled = there.pull(ref, tmp_path / "out.obm")
    assert any("wrong" in warning for warning in pulled.warnings)
    (row,) = there.experts(repository)
    assert row.yanked is not None
    assert "split" in row.yanked
    there.yank(ref, undo=True)
    assert there.pull(ref, tmp_path / "out.obm").warnings == ()
    assert there.experts(repository)[0].yanked is None


def test_remove_by_digest_takes_the_expert_away(
    there: ExpertRegistry, expert: Path, repository: str, tmp_path: Path
) -> None:
    digest = there.push(expert, f"{repository}:chat").manifest_digest
    backbone = there.backbone(repository).manifest_digest
    with pytest.raises(RegistryError) as caught:
        there.remove(f"{repository}@{backbone}")
    assert reason(caught) == "in_use"
    there.remove(f"{repository}@{digest}")
    with pytest.raises(RegistryError):
        there.pull(f"{repository}:chat", tmp_path / "out.obm")
    assert there.experts(repository) == []
    assert there.backbone(repository).n_experts == 0


def test_remove_a_tag(kind: str, there: ExpertRegistry, expert: Path, repository: str) -> None:
    there.push(expert, f"{repository}:a")
    there.push(expert, f"{repository}:b")
    if kind == "stock":
        with pytest.raises(RegistryError) as caught:
            there.remove(f"{repository}:a")
        assert reason(caught) == "unsupported"
        return
    there.remove(f"{repository}:a")
    assert [row.ref.rpartition(":")[2] for row in there.experts(repository)] == ["b"]
    there.remove(f"{repository}:b")
    (row,) = there.experts(repository)
    assert "@sha256:" in row.ref


def test_log(kind: str, there: ExpertRegistry, expert: Path, repository: str) -> None:
    there.push(expert, f"{repository}:a")
    if kind in ("stock", "file", "s3"):
        with pytest.raises(RegistryError) as caught:
            there.log(f"{repository}:a")
        assert reason(caught) == "unsupported"
        return
    there.push(expert, f"{repository}:b")
    (event,) = there.log(f"{repository}:a")
    assert (event.tag, event.old_digest, event.new_digest) == (
        "a",
        None,
        there.resolve(f"{repository}:a").manifest_digest,
    )
    assert {"a", "b"} <= {event.tag for event in there.log(repository)}
    with pytest.raises(RegistryError) as caught:
        there.log(f"{repository}:never")
    assert reason(caught) == "not_found"


# --- experts that refer to a base vector ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone `pre`, and in `out` two experts of it and the base vector that they share."""
    folder = tmp_path_factory.mktemp("family")
    pre = tiny_llama(0)
    write_checkpoint(folder / "pre", pre)
    common = shifted(pre, 100, by=0.05)
    tuned = [write_checkpoint(folder / f"task{i}", shifted(common, i)) for i in range(2)]
    compress_rtvq(folder / "pre", tuned, folder / "out")
    return folder


def test_a_base_vector_goes_along_once_and_comes_along(
    registry: ExpertRegistry, family: Path, repository: str, tmp_path: Path
) -> None:
    registry.add_backbone(family / "pre", repository)
    base = (family / "out" / "base.obm").read_bytes()
    first = registry.push(family / "out" / "task0.obm", f"{repository}:t0")
    second = registry.push(family / "out" / "task1.obm", f"{repository}:t1")
    assert first.sent_bytes > len(base) > second.sent_bytes - (family / "out" / "task1.obm").stat().st_size
    assert second.reused_bytes >= len(base)
    (tmp_path / "pulled").mkdir()
    registry.pull(f"{repository}:t0", tmp_path / "pulled" / "t0.obm")
    files = {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()}
    assert files.pop("t0.obm") == (family / "out" / "task0.obm").read_bytes()
    assert list(files.values()) == [base]
    assert verify_expert(tmp_path / "pulled" / "t0.obm", base=family / "pre", deep=True).ok
    other = registry.pull(f"{repository}:t1", tmp_path / "pulled" / "t1.obm")
    assert other.received_bytes == (family / "out" / "task1.obm").stat().st_size


def test_a_base_vector_that_is_not_at_hand_is_asked_for(
    registry: ExpertRegistry, family: Path, repository: str, tmp_path: Path
) -> None:
    registry.add_backbone(family / "pre", repository)
    alone = tmp_path / "alone" / "task0.obm"
    alone.parent.mkdir()
    alone.write_bytes((family / "out" / "task0.obm").read_bytes())
    with pytest.raises(FormatError) as caught:
        registry.push(alone, f"{repository}:t0")
    assert (caught.value.reason, caught.value.exit_code) == ("bad_reference", 4)
    assert "--ref" in str(caught.value)
    registry.push(alone, f"{repository}:t0", bases=[family / "out" / "base.obm"])


def test_a_damaged_base_vector_is_refused(
    registry: ExpertRegistry, family: Path, repository: str, tmp_path: Path
) -> None:
    registry.add_backbone(family / "pre", repository)
    for name in ("task0.obm", "base.obm"):
        (tmp_path / name).write_bytes((family / "out" / name).read_bytes())
    with (tmp_path / "base.obm").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(FormatError):
        registry.push(tmp_path / "task0.obm", f"{repository}:t0")


# --- the weights of a backbone ------------------------------------------------------------------------------------


def test_weights_travel_beside_the_backbone_whose_digest_stays(
    there: ExpertRegistry, base: Path, expert: Path, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_NBYTES", 500)
    (base / "tokenizer.json").write_text("{}")
    (base / "modeling.py").write_text("raise SystemExit")
    before = there.backbone(repository)
    assert before.weights_digest is None
    with pytest.raises(RegistryError) as caught:
        there.pull_backbone(repository, tmp_path / "early")
    assert (reason(caught), "--with-weights" in str(caught.value)) == ("not_found", True)
    there.push(expert, f"{repository}:chat")

    added = there.add_backbone(base, repository, with_weights=True)
    assert (added.manifest_digest, added.fingerprint, added.n_experts) == (
        before.manifest_digest,
        before.fingerprint,
        1,
    )
    assert added.weights_digest is not None
    assert there.add_backbone(base, repository, with_weights=True) == added
    assert there.backbone(repository, tensors=False).weights_digest == added.weights_digest
    assert [row.ref.rpartition(":")[2] for row in there.experts(repository)] == ["chat"]

    pulled = there.pull_backbone(repository, tmp_path / "out")
    assert (pulled.fingerprint, pulled.weights_digest, pulled.n_tensors) == (
        added.fingerprint,
        added.weights_digest,
        3,
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    with open_checkpoint(tmp_path / "out") as again:
        assert again.fingerprint() == added.fingerprint
    assert not list(tmp_path.glob(".*.pull"))


def test_weights_are_never_replaced_and_hold_their_backbone(
    registry: ExpertRegistry, base: Path, repository: str
) -> None:
    added = registry.add_backbone(base, repository, with_weights=True)
    (base / "tokenizer.json").write_text("[]")
    with pytest.raises(RegistryError) as caught:
        registry.add_backbone(base, repository, with_weights=True)
    assert reason(caught) == "tag_exists"
    with pytest.raises(RegistryError) as caught:
        registry.remove(f"{repository}@{added.manifest_digest}")
    assert reason(caught) == "in_use"
    registry.remove(f"{repository}@{added.weights_digest}")
    assert registry.backbone(repository).weights_digest is None
    registry.add_backbone(base, repository, with_weights=True)


def test_weights_are_written_into_no_folder_that_holds_something(
    registry: ExpertRegistry, base: Path, repository: str
) -> None:
    registry.add_backbone(base, repository, with_weights=True)
    with pytest.raises(CheckpointError) as caught:
        registry.pull_backbone(repository, base)
    assert (caught.value.reason, caught.value.exit_code) == ("exists", 7)

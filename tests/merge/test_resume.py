"""A materialize that was killed: nothing that loads is left, and the next run continues with what is whole."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from signals import runs_with_signal
from tiny_experts import fine_tune, save, tiny_backbone, tiny_expert

from obm_format.checkpoint import open_checkpoint
from obm_format.checkpoint_journal import JOURNAL, Journal, PageSums
from obm_format.checkpoint_writer import CheckpointWriter
from obm_format.errors import ObmError
from obm_format.merge import MergeReport, materialize, parse_recipe
from obm_format.model import DType

RECIPE = parse_recipe({"route": "a", "lam": 0.5})


class Killed(BaseException):
    """What stands for a SIGKILL: nothing is tidied up after it."""


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A folder with a backbone, two experts, and what they make."""
    base = tiny_backbone(DType.BF16)
    for seed, task in enumerate("ab", 1):
        tiny_expert(tmp_path / f"{task}.obm", base, fine_tune(base, seed), compressed=["l.mlp.weight"], task=task)
    save(tmp_path / "base", base)
    run(tmp_path, "wanted")
    return tmp_path


def run(family: Path, out: str = "out", recipe: object = RECIPE) -> MergeReport:
    return materialize(family / "base", [family / "a.obm", family / "b.obm"], recipe, family / out, threads=1)


def killed_after(family: Path, tensors: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run until some tensors are finished, then die; the partial folder."""
    finish, count = CheckpointWriter.finish, iter(range(1000))

    def dies(self: CheckpointWriter, *arguments: object) -> None:
        if next(count) == tensors:
            raise Killed
        finish(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointWriter, "finish", dies)
        patched.setattr(CheckpointWriter, "abort", CheckpointWriter._close)
        with pytest.raises(Killed):
            run(family)
    (partial,) = family.glob(".out.*.partial")
    return partial


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_made(family: Path) -> None:
    assert contents(family / "out") == contents(family / "wanted")
    assert not list(family.glob(".*.partial"))


def assert_unloadable_or_whole(partial: Path, wanted: Path) -> None:
    """A partial folder loads only between the last name and the rename, when all is in it and on disk."""
    try:
        open_checkpoint(partial).close()
    except ObmError:
        return
    assert {name: data for name, data in contents(partial).items() if name != JOURNAL} == contents(wanted)


@pytest.mark.parametrize("tensors", [0, 1, 3, 4])
def test_next_run_continues_with_the_same_bytes(family: Path, tensors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = killed_after(family, tensors, monkeypatch)
    with pytest.raises(ObmError) as caught:
        open_checkpoint(partial)
    assert caught.value.reason == "no_weights"
    names = [json.loads(line)["name"] for line in (partial / JOURNAL).read_bytes().splitlines()[1:]]
    assert len(names) == tensors
    with open_checkpoint(family / "wanted") as made:
        kept = sum(made.tensors[name].nbytes for name in names)
    report, whole = run(family), run(family, "again")
    assert report.resumed_bytes == kept
    assert (report.moved_fraction, report.experts) == (whole.moved_fraction, whole.experts)
    assert report.layers == whole.layers
    assert_made(family)


def test_tensor_that_is_not_what_the_journal_says_is_made_again(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = killed_after(family, 3, monkeypatch)
    shard = partial / "model.safetensors.part"
    data = bytearray(shard.read_bytes())
    at = 8 + int.from_bytes(data[:8], "little")
    data[at:] = bytes(len(data) - at)
    shard.write_bytes(data)
    assert run(family).resumed_bytes == 0
    assert_made(family)


def test_another_recipe_starts_anew(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_after(family, 3, monkeypatch)
    other = parse_recipe({"route": "b", "lam": 0.5})
    run(family, "wanted-b", other)
    assert run(family, recipe=other).resumed_bytes == 0
    assert contents(family / "out") == contents(family / "wanted-b")


def test_another_backbone_file_starts_anew(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_after(family, 3, monkeypatch)
    shutil.copytree(family / "base", family / "copy")
    shutil.rmtree(family / "base")
    (family / "copy").rename(family / "base")
    assert run(family).resumed_bytes == 0
    assert_made(family)


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"\xff\n", b"[" * 100_000 + b"\n"])
def test_journal_that_is_damaged_is_not_believed(family: Path, damage: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = killed_after(family, 3, monkeypatch) / JOURNAL
    journal.write_bytes(damage + journal.read_bytes()[1:])
    assert run(family).resumed_bytes == 0
    assert_made(family)


def test_entries_that_are_torn_or_strange_are_skipped(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = killed_after(family, 3, monkeypatch) / JOURNAL
    head, *entries = journal.read_bytes().splitlines(keepends=True)
    strange = b'{"name":1}\n[]\nnull\n' + b"[" * 100_000 + b'\n{"name":"no","sums":"","note":{}}\n'
    journal.write_bytes(head + strange + entries[0] + entries[1] + entries[2][:-2])
    assert run(family).resumed_bytes > 0
    assert_made(family)


def test_kill_while_committing_is_continued(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise Killed
        return rename(self, target)

    for moment in ("rename", "remove"):
        with monkeypatch.context() as patched:
            patched.setattr(CheckpointWriter, "abort", CheckpointWriter._close)
            if moment == "rename":
                patched.setattr(Path, "rename", dies)
            else:
                patched.setattr(Journal, "remove", lambda self: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                run(family)
        (partial,) = family.glob(".out.*.partial")
        assert (partial / "model.safetensors").exists()
        assert_unloadable_or_whole(partial, family / "wanted")
    (partial / "vocab.txt").write_text("of another backbone")
    assert run(family).resumed_bytes > 0
    assert_made(family)


def test_folder_that_another_process_writes_is_refused(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = killed_after(family, 1, monkeypatch)
    before = contents(partial)
    with Journal(partial, "x"), pytest.raises(ObmError) as caught:
        run(family)
    assert caught.value.reason == "busy"
    assert contents(partial) == before


def test_page_sums_do_not_depend_on_pieces_and_find_lost_pages() -> None:
    import numpy as np

    data = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8)

    def digest(data: np.ndarray, piece: int) -> str:
        sums = PageSums()
        for start in range(0, data.size, piece):
            sums.update(data[start : start + piece])
        return sums.hexdigest()

    assert len({digest(data, piece) for piece in (1, 7, 4096, 5000, 20_000)}) == 1
    lost, swapped, cut = data.copy(), data.copy(), data[:-1]
    lost[4096:8192] = 0
    swapped[:8192] = np.roll(data[:8192], 4096)
    assert len({digest(one, 5000) for one in (data, lost, swapped, cut)}) == 4


def killed_while_renaming(family: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run until the files have their names, then die; the partial folder."""
    with monkeypatch.context() as patched:
        patched.setattr(CheckpointWriter, "abort", CheckpointWriter._close)
        patched.setattr(Journal, "remove", lambda self: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(family)
    (partial,) = family.glob(".out.*.partial")
    return partial


@pytest.mark.parametrize("before", ["nothing", "three tensors", "names"])
def test_killed_at_any_step_there_is_no_folder_or_a_right_one(
    family: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Also where the run that is killed goes on after another one that was killed."""
    (family / "start").mkdir()
    if before != "nothing":
        partial = (
            killed_while_renaming(family, monkeypatch) if before == "names" else killed_after(family, 3, monkeypatch)
        )
        partial.rename(family / "start" / partial.name)
    make = "materialize --base ../base --expert ../a.obm --expert ../b.obm --route a --lam 0.5 --threads 1 -o out"
    *killed, last = runs_with_signal("SIGKILL", family, make.split())
    assert last.is_over
    assert {one.status for one in killed} == {-signal.SIGKILL}
    resumed = [end_of(one.folder, family) for one in killed]
    assert any(resumed)
    assert before == "nothing" or resumed[0]


def end_of(killed: Path, family: Path) -> int:
    """A killed run left nothing wrong in its folder, and the next one ends well; the bytes that it took over."""
    for partial in killed.glob(".out.*.partial"):
        assert_unloadable_or_whole(partial, family / "wanted")
    resumed, out = 0, killed / "out"
    if not out.exists():
        experts = [family / "a.obm", family / "b.obm"]
        resumed = materialize(family / "base", experts, RECIPE, out, threads=1).resumed_bytes
    assert contents(out) == contents(family / "wanted")
    assert [path.name for path in killed.iterdir()] == ["out"]
    return resumed

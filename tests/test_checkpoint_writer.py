"""Writing checkpoints: whole or not at all, deterministic, and loadable by other libraries."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from obm_format.checkpoint import open_checkpoint
from obm_format.checkpoint_writer import CheckpointWriter
from obm_format.errors import ObmError
from obm_format.kernels.words import Words
from obm_format.model import DType, TensorSpec

SPECS = [
    TensorSpec("b", DType.F16, (3,)),
    TensorSpec("a", DType.F32, (4, 2)),
    TensorSpec("c", DType.BOOL, (5,)),
    TensorSpec("d", DType.F32, ()),
]
WORDS: dict[str, Words] = {
    "a": np.arange(8, dtype=np.uint32).reshape(4, 2),
    "b": np.arange(3, dtype=np.uint16),
    "c": np.array([1, 0, 1, 1, 0], dtype=np.uint8),
    "d": np.array(0x3F800000, dtype=np.uint32),
}


def write_all(target: Path, *, shard_nbytes: int = 1000, order: str = "abcd") -> None:
    with CheckpointWriter(target, SPECS, shard_nbytes=shard_nbytes) as writer:
        for name in order:
            writer.write(name, WORDS[name])
        writer.write_side_file("config.json", b"{}")
        writer.commit()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shard_nbytes", [1000, 8, 1])
def test_written_folder_reads_back(tmp_path: Path, shard_nbytes: int) -> None:
    write_all(tmp_path / "out", shard_nbytes=shard_nbytes)
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert sorted(checkpoint.tensors.values(), key=lambda spec: spec.name) == sorted(
            SPECS, key=lambda spec: spec.name
        )
        for name, words in WORDS.items():
            np.testing.assert_array_equal(checkpoint.words(name), words)
        assert checkpoint.config() == {}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_safetensors_library_reads_the_file_and_its_metadata(tmp_path: Path) -> None:
    write_all(tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("a").view(np.uint32), WORDS["a"])


def test_order_of_writes_does_not_show(tmp_path: Path) -> None:
    write_all(tmp_path / "one", order="abcd", shard_nbytes=10)
    write_all(tmp_path / "two", order="dcba", shard_nbytes=10)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(("shard_nbytes", "count"), [(1000, 1), (1, 4)])
def test_files_of_another_stem_read_back(tmp_path: Path, shard_nbytes: int, count: int) -> None:
    with CheckpointWriter(tmp_path / "out", SPECS, stem="delta", shard_nbytes=shard_nbytes) as writer:
        for name, words in WORDS.items():
            writer.write(name, words)
        writer.commit()
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert all(name.startswith("delta") for name in names)
    assert len(names) == count + (count > 1)
    with open_checkpoint(tmp_path / "out") as checkpoint:
        for name, words in WORDS.items():
            np.testing.assert_array_equal(checkpoint.words(name), words)


def test_index_names_every_tensor_and_the_total(tmp_path: Path) -> None:
    write_all(tmp_path / "out", shard_nbytes=10)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == ["a", "b", "c", "d"]
    assert index["metadata"]["total_size"] == sum(spec.nbytes for spec in SPECS)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_rows_may_come_in_pieces(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", SPECS[1:2]) as writer:
        writer.write("a", WORDS["a"][2:], first_row=2)
        writer.write("a", WORDS["a"][:2])
        writer.commit()
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "out").words("a"), WORDS["a"])


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_all(tmp_path / "out")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "out" / "model.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_failure_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    def work() -> None:
        with CheckpointWriter(tmp_path / "out", SPECS) as writer:
            writer.write("a", WORDS["a"])
            raise error

    with pytest.raises(error):
        work()
    assert list(tmp_path.iterdir()) == []


def test_unfinished_tensor_refused_and_nothing_appears(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", SPECS) as writer:
        writer.write("a", WORDS["a"][:3])
        with pytest.raises(ObmError, match="not written whole"):
            writer.commit()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("occupied", ["file", "folder", "link"])
def test_occupied_target_refused(tmp_path: Path, occupied: str) -> None:
    target = tmp_path / "out"
    if occupied == "file":
        target.write_text("mine")
    elif occupied == "folder":
        target.mkdir()
        (target / "mine").write_text("mine")
    else:
        target.symlink_to(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ObmError) as caught:
        CheckpointWriter(target, SPECS)
    assert caught.value.reason == "exists"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("target", [".", "..", "sub/.."])
def test_target_without_a_name_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "sub")
    with pytest.raises(ObmError) as caught:
        CheckpointWriter(Path(target), SPECS)
    assert caught.value.reason == "exists"


@pytest.mark.parametrize("letter", ["x", "\N{CJK UNIFIED IDEOGRAPH-65E5}"])
def test_name_as_long_as_the_system_allows(tmp_path: Path, letter: str) -> None:
    target = tmp_path / (letter * (255 // len(letter.encode())))
    write_all(target)
    assert list(tmp_path.iterdir()) == [target]


def test_empty_target_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_all(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_target_that_fills_during_the_work_is_kept(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", SPECS[1:2]) as writer:
        writer.write("a", WORDS["a"])
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
        with pytest.raises(ObmError) as caught:
            writer.commit()
    assert caught.value.reason == "exists"
    assert contents(tmp_path / "out") == {"mine": b"mine"}


def test_missing_parent_refused(tmp_path: Path) -> None:
    with pytest.raises(ObmError) as caught:
        CheckpointWriter(tmp_path / "no" / "out", SPECS)
    assert caught.value.reason == "not_found"


@pytest.mark.parametrize(
    ("name", "words", "first_row", "reason"),
    [
        ("x", WORDS["a"], 0, "not_found"),
        ("a", WORDS["a"], 1, "bad_shape"),
        ("a", WORDS["a"].astype(np.uint16), 0, "bad_shape"),
        ("a", WORDS["a"].T, 0, "bad_shape"),
        ("a", WORDS["a"][:, ::-1], 0, "bad_shape"),
        ("d", np.zeros(1, np.uint32), 0, "bad_shape"),
    ],
)
def test_words_that_do_not_fit_refused(tmp_path: Path, name: str, words: Words, first_row: int, reason: str) -> None:
    with CheckpointWriter(tmp_path / "out", SPECS) as writer, pytest.raises(ObmError) as caught:
        writer.write(name, words, first_row=first_row)
    assert caught.value.reason == reason


def test_two_tensors_of_one_name_refused(tmp_path: Path) -> None:
    with pytest.raises(ObmError) as caught:
        CheckpointWriter(tmp_path / "out", [SPECS[0], SPECS[0]])
    assert caught.value.reason == "duplicate_name"


@pytest.mark.parametrize("name", ["modeling.py", "../config.json", "model.safetensors"])
def test_side_file_outside_the_allowlist_refused(tmp_path: Path, name: str) -> None:
    with CheckpointWriter(tmp_path / "out", SPECS) as writer, pytest.raises(ObmError) as caught:
        writer.write_side_file(name, b"")
    assert caught.value.reason == "bad_name"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_full_disk_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(ObmError) as caught:
        write_all(tmp_path / "out")
    assert caught.value.reason == "disk_full"
    assert list(tmp_path.iterdir()) == []


def test_system_without_preallocation_writes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    write_all(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_partial_system_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:3], offset))
    write_all(tmp_path / "out")
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "out").words("a"), WORDS["a"])


@pytest.mark.parametrize("shard_nbytes", [1 << 30, 10_000])
def test_transformers_loads_the_folder(tmp_path: Path, shard_nbytes: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=64,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "from")
    with (
        open_checkpoint(tmp_path / "from") as source,
        CheckpointWriter(tmp_path / "to", source.tensors.values(), shard_nbytes=shard_nbytes) as writer,
    ):
        for name in source.tensors:
            writer.write(name, source.words(name))
        for file in source.side_files():
            writer.copy_side_file(file)
        writer.commit()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "to")
    assert loaded.dtype is torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name

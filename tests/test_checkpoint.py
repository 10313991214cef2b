"""Reading checkpoints: what is found where, what is refused, and that reading is lazy."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from obm_format.checkpoint import is_side_file, open_checkpoint
from obm_format.errors import ObmError
from obm_format.model import DType

A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.arange(5, dtype=np.float16)


def refused(path: Path) -> ObmError:
    with pytest.raises(ObmError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    return caught.value


def write_index(folder: Path, placed: dict[str, str], name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def raw_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int, stop: int, shape: list[int], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_open_single_file_reads_words_specs_and_metadata(tmp_path: Path) -> None:
    save_file({"b": B, "a": A}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
        assert checkpoint.tensors["a"].dtype is DType.F32
        assert checkpoint.tensors["a"].shape == (3, 4)
        assert checkpoint.metadata == {"format": "pt"}
        words = checkpoint.words("a")
        assert words.dtype == np.uint32
        assert not words.flags.writeable
        np.testing.assert_array_equal(words, A.view(np.uint32))
        np.testing.assert_array_equal(checkpoint.words("a", slice(1, 3)), A.view(np.uint32)[1:3])
        assert checkpoint.config() is None
        assert checkpoint.side_files() == []


def test_words_are_views_of_the_map(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "x.safetensors")
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert np.shares_memory(checkpoint.words("a"), checkpoint.words("a"))


def test_words_of_misaligned_file_are_aligned(tmp_path: Path) -> None:
    data = raw_file(b'{"a":{"dtype":"F32","shape":[3,4],"data_offsets":[0,48]}}' + b" " * 2, A.tobytes())
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert (len(data) - A.nbytes) % 4
    words = open_checkpoint(path).words("a")
    assert words.flags.aligned
    np.testing.assert_array_equal(words, A.view(np.uint32))


def test_words_outlive_the_checkpoint(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "x.safetensors")
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        words = checkpoint.words("a")
    np.testing.assert_array_equal(words, A.view(np.uint32))


def test_release_keeps_a_tensor_readable(tmp_path: Path) -> None:
    big = np.arange(100_000, dtype=np.float32)
    save_file({"a": big}, tmp_path / "x.safetensors")
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        before = checkpoint.words("a").copy()
        checkpoint.release("a")
        np.testing.assert_array_equal(checkpoint.words("a"), before)


def test_folder_with_shards_reads_all(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": B}, tmp_path / "model-00002-of-00002.safetensors")
    placed = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    write_index(tmp_path, placed)
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
        sharded = checkpoint.fingerprint()
    save_file({"b": B, "a": A}, tmp_path / "one.safetensors", metadata={"other": "text"})
    with open_checkpoint(tmp_path / "one.safetensors") as checkpoint:
        assert checkpoint.fingerprint() == sharded


def test_folder_with_shards_and_no_index_reads_a_complete_set(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "x-00001-of-00002.safetensors")
    save_file({"b": B}, tmp_path / "x-00002-of-00002.safetensors")
    assert list(open_checkpoint(tmp_path).tensors) == ["a", "b"]
    (tmp_path / "x-00002-of-00002.safetensors").rename(tmp_path / "x-00003-of-00003.safetensors")
    assert refused(tmp_path).reason == "bad_checkpoint"


def test_model_safetensors_goes_before_consolidated_and_index(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    save_file({"c": A}, tmp_path / "consolidated.safetensors")
    write_index(tmp_path, {"c": "consolidated.safetensors"})
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]
    (tmp_path / "model.safetensors").unlink()
    assert list(open_checkpoint(tmp_path).tensors) == ["c"]


def test_several_models_in_one_folder_refused(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "one.safetensors")
    save_file({"a": A}, tmp_path / "two.safetensors")
    error = refused(tmp_path)
    assert error.reason == "bad_checkpoint"
    assert "one.safetensors, two.safetensors" in str(error)


def test_index_naming_missing_shards_refused(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "m1.safetensors")
    write_index(tmp_path, {"a": "m1.safetensors", "b": "m2.safetensors"})
    error = refused(tmp_path)
    assert error.reason == "bad_checkpoint"
    assert "m2.safetensors" in str(error)


def test_tensor_in_two_shards_refused(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "m1.safetensors")
    save_file({"a": A, "b": B}, tmp_path / "m2.safetensors")
    write_index(tmp_path, {"a": "m1.safetensors", "b": "m2.safetensors"})
    error = refused(tmp_path)
    assert error.reason == "bad_checkpoint"
    assert "'a'" in str(error)


@pytest.mark.parametrize(
    "placed", [{"a": "m1.safetensors"}, {"a": "m1.safetensors", "b": "m1.safetensors", "c": "m1.safetensors"}]
)
def test_index_that_disagrees_with_its_shards_refused(tmp_path: Path, placed: dict[str, str]) -> None:
    save_file({"a": A, "b": B}, tmp_path / "m1.safetensors")
    write_index(tmp_path, placed)
    assert refused(tmp_path).reason == "bad_checkpoint"


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/../x.safetensors", "..", "", "x.bin"])
def test_index_path_outside_the_folder_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"a": A}, tmp_path / "x.safetensors")
    write_index(folder, {"a": name})
    assert refused(folder).reason == "bad_checkpoint"


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{", "\xff"]
)
def test_malformed_index_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    assert refused(tmp_path).reason == "bad_checkpoint"


def test_folder_of_links_reads(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "blob")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert list(open_checkpoint(folder).tensors) == ["a"]


def test_nothing_there_not_found(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent").reason == "not_found"


def test_folder_without_weights_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert refused(tmp_path).reason == "no_weights"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pth", "last.ckpt"])
def test_pickles_refused_in_folder_and_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    for path in (tmp_path, tmp_path / name):
        error = refused(path)
        assert error.reason == "pickle_refused"
        assert error.hint is not None


def test_pickle_beside_safetensors_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    save_file({"a": A}, tmp_path / "model.safetensors")
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]


def test_adapter_folder_refused_with_advice(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "adapter_model.safetensors")
    error = refused(tmp_path)
    assert error.reason == "no_weights"
    assert "merge" in str(error)


def test_special_file_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    assert refused(tmp_path / "x.safetensors").reason == "bad_checkpoint"


def test_every_truncation_refused(tmp_path: Path) -> None:
    whole = save({"a": A, "b": B})
    path = tmp_path / "x.safetensors"
    for length in [*range(40), len(whole) - 60, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert refused(path).reason == "bad_checkpoint", length


MALFORMED: dict[str, bytes] = {
    "trailing bytes": save({"a": A}) + b"\0",
    "hole": raw_file({"a": entry(0, 2, [2]), "b": entry(3, 4, [1])}, bytes(4)),
    "overlap": raw_file({"a": entry(0, 2, [2]), "b": entry(1, 3, [2])}, bytes(3)),
    "starts late": raw_file({"a": entry(1, 3, [2])}, bytes(3)),
    "size is not the shape's": raw_file({"a": entry(0, 2, [3])}, bytes(2)),
    "range runs backwards": raw_file({"a": entry(2, 0, [2])}, bytes(2)),
    "negative dimension": raw_file({"a": entry(0, 2, [-2])}, bytes(2)),
    "boolean dimension": raw_file({"a": entry(0, 1, [True])}, bytes(1)),
    "fraction": raw_file({"a": entry(0, 1, [1.0])}, bytes(1)),  # type: ignore[list-item]
    "many dimensions": raw_file({"a": entry(0, 1, [1] * 65)}, bytes(1)),
    "extra field": raw_file({"a": {**entry(0, 1, [1]), "x": 1}}, bytes(1)),
    "entry is a list": raw_file({"a": []}),
    "metadata is a list": raw_file({"__metadata__": []}),
    "metadata of numbers": raw_file({"__metadata__": {"x": 1}}),
    "duplicate name": raw_file(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' * 1 + b'"a":{}}'),
    "duplicate name behind many": raw_file(
        b"{"
        + b"".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' % i for i in range(50_000))
        + b'"49999":0}'
    ),
    "half a character": raw_file({"\ud800": entry(0, 1, [1])}, bytes(1)),
    "dimensions that print as too many digits": raw_file({"a": entry(0, 1, [10**4000, 10**4000])}, bytes(1)),
    "not an object": raw_file([]),
    "not UTF-8": raw_file(b'{"\xff":1}'),
    "deep nesting": raw_file(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "huge number": raw_file(b'{"a":' + b"9" * 6_000 + b"}"),
    "header length of 2^63": (1 << 63).to_bytes(8, "little") + b"{}",
    "an expert": raw_file({"__metadata__": {"format": "obm"}, "a": entry(0, 1, [1])}, bytes(1)),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_file_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert refused(path).reason == "bad_checkpoint"


@pytest.mark.parametrize("dtype", ["F4", [], {}, None])
def test_unknown_dtype_refused(tmp_path: Path, dtype: object) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file({"a": {**entry(0, 1, [2]), "dtype": dtype}}, bytes(1)))
    error = refused(path)
    assert error.reason == "unsupported_dtype"
    assert error.got in (None, str(dtype))


def test_file_without_tensors_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file({}))
    assert refused(path).reason == "no_weights"


def test_empty_and_zero_dimensional_tensors_read(tmp_path: Path) -> None:
    save_file({"none": np.zeros((0, 3), np.float32), "one": np.array(7, np.float32)}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.words("none").shape == (0, 3)
    assert checkpoint.words("one").view(np.float32) == 7
    assert checkpoint.fingerprint()


def test_fingerprint_is_the_one_of_the_spec(tmp_path: Path) -> None:
    save_file({"b": B, "a": A}, tmp_path / "x.safetensors")
    lines = b"".join(
        name.encode()
        + b"\0"
        + dtype
        + b"\0"
        + shape
        + b"\0"
        + hashlib.sha256(array.tobytes()).hexdigest().encode()
        + b"\n"
        for name, dtype, shape, array in [("a", b"F32", b"3,4", A), ("b", b"F16", b"5", B)]
    )
    assert open_checkpoint(tmp_path / "x.safetensors").fingerprint() == hashlib.sha256(lines).hexdigest()


def test_progress_counts_to_the_total_and_may_stop(tmp_path: Path) -> None:
    save_file({"b": B, "a": A}, tmp_path / "x.safetensors")
    seen: list[tuple[str, int, int]] = []
    open_checkpoint(tmp_path / "x.safetensors").fingerprint(lambda *step: seen.append(step))
    assert seen[-1] == ("hash", A.nbytes + B.nbytes, A.nbytes + B.nbytes)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_checkpoint(tmp_path / "x.safetensors").fingerprint(stop)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": ["no such name!"]}, ""),
        ({"architectures": []}, ""),
        ({"architectures": "x"}, ""),
        ({}, ""),
    ],
)
def test_architecture_comes_from_the_configuration(tmp_path: Path, config: dict[str, object], name: str) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(tmp_path).architecture == name


def test_side_files_follow_the_allowlist(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    allowed = [
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "spiece.model",
        "tokenizer.json",
        "vocab.txt",
    ]
    for name in [
        *allowed,
        "modeling_x.py",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "README.md",
        "x.json",
    ]:
        (tmp_path / name).write_text("{}")
    (tmp_path / "generation_config.json").mkdir()
    assert [path.name for path in open_checkpoint(tmp_path).side_files()] == allowed


@pytest.mark.parametrize("name", ["../config.json", "a/b.model", ".model", "x.py", "pytorch_model.bin", "x.model\n"])
def test_names_outside_the_allowlist(name: str) -> None:
    assert not is_side_file(name)


def test_reading_needs_no_torch() -> None:
    code = "import sys, obm_format.checkpoint, obm_format.positions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("damage", [lambda p: p.write_text("{"), lambda p: p.write_text("[]")])
def test_damaged_configuration_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    damage(tmp_path / "config.json")
    with pytest.raises(ObmError) as caught:
        open_checkpoint(tmp_path).config()
    assert caught.value.reason == "bad_checkpoint"


def test_lfs_pointer_is_named_as_such(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 90868376\n"
    (tmp_path / "model.safetensors").write_bytes(pointer)
    with pytest.raises(ObmError, match="Git LFS pointer") as error:
        open_checkpoint(tmp_path)
    assert error.value.reason == "bad_checkpoint"

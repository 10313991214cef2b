"""What vectors would be too large for: sums, and the limits of counts and sizes. Made here, shown to both readers."""

import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from spec_readers import Refusal, read_minimal, read_package
from vector_tensors import added, set_frames
from vector_writer import Defect, Dense, Draft, Tensor, artifact_id, file_bytes, sha
from vectors_spoilt import lean
from vectors_valid import BACKBONES

READERS = pytest.mark.parametrize("read", [read_minimal, read_package], ids=["minimal", "package"])
LARGE = 2**23 + 2**20 + 5


def with_sums(nbytes: int = LARGE) -> Draft:
    draft = lean()
    draft.tensors = [added("large", Dense(dtype="U8", shape=[nbytes], data=bytes(nbytes)))]
    return draft


def refusal(read: object, file: bytes, folder: Path) -> tuple[str, str]:
    path = folder / "x.obm"
    path.write_bytes(file)
    with pytest.raises(Refusal) as error:
        read(path, None, [])  # type: ignore[operator]
    return error.value.args  # type: ignore[return-value]


@READERS
@pytest.mark.parametrize(("nbytes", "sums"), [(2**23, 0), (2**23 + 1, 9), (LARGE, 10)])
def test_large_part_has_sums(read: object, nbytes: int, sums: int, tmp_path: Path) -> None:
    draft, path = with_sums(nbytes), tmp_path / "x.obm"
    assert len(draft.pools().get("sums", b"")) == 32 * sums
    path.write_bytes(file_bytes(draft))
    report = read(path, None, [])  # type: ignore[operator]
    assert report["id"] == artifact_id(path.read_bytes())
    assert report["tensors"]["large"]["out_sha256"] == sha(bytes(nbytes)).hex()


@READERS
@pytest.mark.parametrize("wrong", [False, True])
def test_large_attachment_has_sums(read: object, wrong: bool, tmp_path: Path) -> None:
    draft, path = lean(), tmp_path / "x.obm"
    draft.attach = {"notes.txt": bytes(LARGE)}
    assert len(draft.pools()["sums"]) == 32 * 10
    if wrong:
        spoilt = Defect(pools=lambda pools: pools | {"sums": pools["sums"][:-32] + bytes(32)})
        assert refusal(read, file_bytes(draft, spoilt), tmp_path)[0] == "part_digest"
    else:
        path.write_bytes(file_bytes(draft))
        assert read(path, None, [])["id"] == artifact_id(path.read_bytes())  # type: ignore[operator]


@READERS
def test_wrong_sum_refused(read: object, tmp_path: Path) -> None:
    file = file_bytes(with_sums(), Defect(pools=lambda pools: pools | {"sums": pools["sums"][:-32] + bytes(32)}))
    reason, stage = refusal(read, file, tmp_path)
    assert reason == "part_digest"
    assert stage in ("decode", "any")


@READERS
@pytest.mark.parametrize(("nbytes", "sound"), [(2**16 + 63, True), (2**16 + 66, False)])
def test_frame_of_too_many_empty_blocks_refused(read: object, nbytes: int, sound: bool, tmp_path: Path) -> None:
    start, end = b"\x28\xb5\x2f\xfd\x20\x40", struct.pack("<I", 64 << 3 | 1)[:3] + bytes(64)
    frame = start + bytes(nbytes - len(start) - len(end)) + end  # three zero bytes are an empty raw block
    draft = lean()
    draft.tensors = [set_frames(added("new", Dense(dtype="U8", shape=[64], data=bytes(64))), [frame])]
    if sound:
        (tmp_path / "x.obm").write_bytes(file_bytes(draft))
        assert "new" in read(tmp_path / "x.obm", None, [])["tensors"]  # type: ignore[operator]
    else:
        assert refusal(read, file_bytes(draft), tmp_path)[0] == "bad_frame"


def hollow(names: list[str]) -> list[Tensor]:
    return [added(name, Dense(dtype="F32", shape=[0], data=b"")) for name in names]


def many_names() -> Draft:
    return Draft(backbone=BACKBONES["one"], fields={"removed": [f"{i:05}" for i in range(65_537)]})


def many_in_all_lists() -> Draft:
    draft = Draft(backbone=BACKBONES["one"], tensors=hollow(["a"]))
    draft.fields = {"removed": [f"{i:05}" for i in range(65_535)], "alias": [["b", "a"]]}
    return draft


def many_parts() -> Draft:
    parts = {f"bits{plane}": b"\1" for plane in range(4)}
    record = {"base": {}, "dtype": "F32", "encoding": "sign1", "params": {"planes": 4}, "shape": [1]}
    tensors = []
    for i in range(52_429):  # of 5 parts each
        own = record | {"name": f"{i:05}", "base": {"shape": [1]}, "shape": [2]}
        tensors.append(Tensor(record=own, parts=parts | {"tail": bytes(4)}, alphas=bytes(8), base=bytes(4)))
    return Draft(backbone=BACKBONES["one"], tensors=tensors)


def large_ext() -> Draft:
    return lean(ext={"a.b": "x" * (65_536 - len('{"a.b":""}') + 1)})


def many_values() -> Draft:
    return lean(ext={"a.b": [0] * 2**21})


@lru_cache(maxsize=1)
def file_of(make: Callable[[], Draft]) -> bytes:
    """The file of a draft, for one reader after the other: some take long to write."""
    return file_bytes(make())


@READERS
@pytest.mark.parametrize(
    "make",
    [many_names, many_in_all_lists, pytest.param(many_parts, marks=pytest.mark.slow), large_ext, many_values],
)
def test_above_a_limit_refused(read: object, make: Callable[[], Draft], tmp_path: Path) -> None:
    assert refusal(read, file_of(make), tmp_path)[0] == "limit_exceeded"


@READERS
def test_just_below_the_limits_taken(read: object, tmp_path: Path) -> None:
    draft = Draft(backbone=BACKBONES["one"], fields={"removed": [f"{i:05}" for i in range(65_536)]})
    draft.fields["ext"] = {"a.b": "x" * (65_536 - len('{"a.b":""}'))}
    path = tmp_path / "x.obm"
    path.write_bytes(file_bytes(draft))
    assert read(path, None, [])["tensors"] == {}  # type: ignore[operator]


def test_zero_tensor_of_2_to_52_elements_verified_at_no_cost(tmp_path: Path) -> None:
    from obm_format.expert import open_expert

    record = {"dtype": "F32", "encoding": "zero", "name": "w", "shape": [2**26, 2**26]}
    draft = Draft(backbone=BACKBONES["one"], tensors=[Tensor(record=record, base=b"")])
    with open_expert(file_bytes(draft)) as expert:
        assert expert.verify("deep") == []
        assert expert.values("w", rows=slice(5, 6)).shape == (1, 2**26)

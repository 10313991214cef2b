"""Reading: never a byte that its digest does not cover."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
from container_files import add_all, fill, manifest_of, record, records, sample

from obm_format.container import Container, ContainerWriter, PathSource, RangeSource
from obm_format.digest import sha256
from obm_format.errors import FormatError, ObmError, UsageError
from obm_format.layout import PartData, alpha_nbytes, part_layouts
from obm_format.limits import Limits
from obm_format.model import Attachment, DType, Mode, RawParams, TensorRecord

BY_NAME = {tensor.name: tensor for tensor in records()}
MIB = 1 << 20


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(ObmError) as caught:
        call()
    return caught.value.reason


def damaged(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


def test_open_gives_identity_and_manifest() -> None:
    with Container.open(sample()) as container:
        assert container.id == "obm1-sha256:" + sha256(sample()[: container.header.nbytes]).hex()
        assert container.nbytes == len(sample())
        assert container.manifest.tensors == records()


def test_every_part_digest_and_alpha_is_what_was_added() -> None:
    with Container.open(sample()) as container:
        for tensor in records():
            digests = container.digests(tensor)
            assert digests.base == (sha256(b"base") if tensor.base else None)
            assert digests.out == (sha256(b"out") if tensor.is_exact else None)
            assert container.alphas(tensor) == fill(tensor.name, alpha_nbytes(tensor))
            assert len(digests.parts) == len(part_layouts(tensor))
            for layout, digest in zip(part_layouts(tensor), digests.parts, strict=True):
                content = fill(f"{tensor.name}#{layout.suffix}", layout.nbytes)
                assert container.part(tensor, layout.suffix) == content
                assert digest == sha256(content)


def test_attachments_are_read_back() -> None:
    with Container.open(sample()) as container:
        assert container.attachment("config.json") == b"{}"
        assert container.attachment("empty.txt") == b""
        assert reason(lambda: container.attachment("none.json")) == "not_found"


def test_part_range_equals_slice() -> None:
    with Container.open(sample()) as container:
        whole = container.part(BY_NAME["i.sparse"], "values")
        for start, stop in [(0, 20), (3, 9), (7, 7), (20, 20)]:
            assert container.part_range(BY_NAME["i.sparse"], "values", start, stop) == whole[start:stop]


@pytest.mark.parametrize(
    ("suffix", "start", "stop"), [("values", 0, 21), ("values", 5, 4), ("values", -1, 3), ("x", 0, 1)]
)
def test_part_range_outside_the_part_refused(suffix: str, start: int, stop: int) -> None:
    with Container.open(sample()) as container, pytest.raises(UsageError):
        container.part_range(BY_NAME["i.sparse"], suffix, start, stop)


def test_part_range_of_framed_part_refused() -> None:
    with Container.open(sample()) as container, pytest.raises(UsageError):
        container.part_range(BY_NAME["l.exact"], "data", 0, 4)


def test_frames_are_read_back() -> None:
    with Container.open(sample()) as container:
        (frame,) = container.frames(BY_NAME["l.exact"], "data")
        assert (frame.nbytes, frame.raw_nbytes, frame.offset) == (17, 4 * 70 * 2, 0)
        assert container.frame(BY_NAME["l.exact"], "data", 0) == fill("l.exact#data", 17)
        with pytest.raises(UsageError):
            container.frames(BY_NAME["i.sparse"], "values")


def test_damaged_part_refused_and_others_still_read() -> None:
    with Container.open(sample()) as container:
        part = container.header.parts["i.sparse#values"]
    with Container.open(damaged(sample(), part.offset)) as container:
        assert reason(lambda: container.part(BY_NAME["i.sparse"], "values")) == "part_digest"
        assert reason(lambda: container.part_range(BY_NAME["i.sparse"], "values", 8, 9)) == "part_digest"
        assert len(container.part(BY_NAME["i.sparse"], "index")) == 10


def test_damaged_padding_refused() -> None:
    with Container.open(sample()) as container:
        part = container.header.parts["i.sparse#values"]
    with Container.open(damaged(sample(), part.offset + part.nbytes)) as container:
        assert reason(lambda: container.part(BY_NAME["i.sparse"], "values")) == "pad_not_zero"


@pytest.mark.parametrize("pool", ["digests", "alphas", "frames"])
def test_damaged_pool_refused(pool: str) -> None:
    with Container.open(sample()) as container:
        part = container.header.parts[f"#{pool}"]
    tensor = BY_NAME["l.exact"] if pool == "frames" else BY_NAME["h.planes"]
    with Container.open(damaged(sample(), part.offset + part.nbytes - 1)) as container:
        call = {
            "digests": lambda: container.digests(tensor),
            "alphas": lambda: container.alphas(tensor),
            "frames": lambda: container.frames(tensor, "data"),
        }[pool]
        assert reason(call) == "part_digest"


def test_damaged_frame_refused() -> None:
    with Container.open(sample()) as container:
        part = container.header.parts["l.exact#data"]
    with Container.open(damaged(sample(), part.offset + 3)) as container:
        assert reason(lambda: container.frame(BY_NAME["l.exact"], "data", 0)) == "frame_digest"


def test_open_other_artifact_refused() -> None:
    with Container.open(sample()) as container:
        right = container.id
    Container.open(sample(), expected_id=right).close()
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    assert reason(lambda: Container.open(sample(), expected_id=wrong)) == "artifact_id"


def test_open_names_the_file_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "bad.obm"
    path.write_bytes(b"PK\3\4" + bytes(200))
    with pytest.raises(FormatError, match=r"bad\.obm"):
        Container.open(path)


def test_open_applies_limits() -> None:
    assert reason(lambda: Container.open(sample(), limits=Limits(parts=3))) == "limit_exceeded"


def test_open_of_bad_file_closes_the_source(tmp_path: Path) -> None:
    class Closing(RangeSource):
        closed = False

        def close(self) -> None:
            self.closed = True

    source = Closing(100, lambda offset, nbytes: bytes(nbytes), "zeros")
    assert reason(lambda: Container.open(source)) == "bad_header_length"
    assert source.closed


# --- parts with sums and several frames ---------------------------------------------------------------------


def large_record() -> TensorRecord:
    params = RawParams(value_dtype=DType.U8)
    return record("big", params, shape=(9 * MIB + 5,), dtype=DType.U8, mode=Mode.ADDED)


def framed_record() -> TensorRecord:
    params = RawParams(value_dtype=DType.U8, zstd_nbytes=30)
    return record("framed", params, shape=(5 * MIB,), dtype=DType.U8, mode=Mode.ADDED)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.obm"
    content = bytes(range(256)) * (9 * MIB // 256) + b"tail!"
    out = sha256(b"out")
    with ContainerWriter(path) as writer:
        chunks = [content[:100], content[100 : 3 * MIB], content[3 * MIB :]]
        writer.add(large_record(), [PartData("data", chunks)], alphas=b"", base_sha256=None, out_sha256=out)
        frames = [b"a" * 5, b"b" * 10, b"c" * 15]
        writer.add(
            framed_record(),
            [PartData("data", frames, framed=True)],
            alphas=b"",
            base_sha256=None,
            out_sha256=out,
        )
        writer.attach("big.model", bytes(8 * MIB + 1))
        attachments = (Attachment(name="big.model", nbytes=8 * MIB + 1),)
        writer.commit(manifest_of((large_record(), framed_record()), attachments=attachments))
    return path


def test_sums_pool_has_one_sum_per_mib(large: Path) -> None:
    with Container.open(large) as container:
        sums = container.pool("sums")
        whole = container.part(large_record(), "data")
        assert len(sums) == 32 * (10 + 9)
        assert sums[:32] == sha256(whole[:MIB])
        assert sums[9 * 32 : 10 * 32] == sha256(whole[9 * MIB :])
        assert sums[10 * 32 : 11 * 32] == sha256(bytes(MIB))


def test_part_range_of_summed_part_equals_slice_and_reads_little(large: Path) -> None:
    data = large.read_bytes()
    read: list[int] = []

    def fetch(offset: int, nbytes: int) -> bytes:
        read.append(nbytes)
        return data[offset : offset + nbytes]

    with Container.open(RangeSource(len(data), fetch, "range")) as container:
        container.pool("sums")
        whole = container.part(large_record(), "data")
        for start, stop in [(0, 1), (MIB - 1, MIB + 1), (5 * MIB, 6 * MIB), (9 * MIB, 9 * MIB + 5), (7, 7)]:
            read.clear()
            assert container.part_range(large_record(), "data", start, stop) == whole[start:stop]
            assert sum(read) <= 2 * MIB


def test_part_range_of_damaged_run_refused_and_others_read(large: Path) -> None:
    with Container.open(large) as container:
        offset = container.header.parts["big#data"].offset
    with Container.open(damaged(large.read_bytes(), offset + 2 * MIB)) as container:
        assert reason(lambda: container.part_range(large_record(), "data", 3 * MIB - 1, 3 * MIB)) == "part_digest"
        assert container.part_range(large_record(), "data", 3 * MIB, 3 * MIB + 1) == b"\0"


def test_frames_of_several_cuts(large: Path) -> None:
    with Container.open(large, mapped=True) as container:
        frames = container.frames(framed_record(), "data")
        assert [(frame.nbytes, frame.raw_nbytes, frame.offset) for frame in frames] == [
            (5, 2 * MIB, 0),
            (10, 2 * MIB, 5),
            (15, MIB, 15),
        ]
        assert container.frame(framed_record(), "data", 2) == b"c" * 15


def frame_pool(lengths: list[int]) -> bytes:
    return b"".join(n.to_bytes(4, "little") + bytes(32) for n in lengths)


@pytest.mark.parametrize("lengths", [[5, 10, 14], [0, 15, 15], [3 * MIB, 10, 15], [30, 0, 0]])
def test_frame_table_that_is_not_the_part_refused(
    large: Path, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Container.open(large) as container:
        monkeypatch.setattr(container, "_pools", {"frames": frame_pool(lengths)})
        assert reason(lambda: container.frames(framed_record(), "data")) == "bad_frame"


# --- verification -------------------------------------------------------------------------------------------


def test_verify_sound_files_have_no_defects(large: Path) -> None:
    for source in (sample(), large):
        with Container.open(source) as container:
            assert container.verify(collect=True, deep=True) == []


def test_verify_finds_every_damaged_byte_of_the_parts() -> None:
    with Container.open(sample()) as container:
        start = container.header.nbytes
    for offset in range(start, len(sample()), 5):
        with Container.open(damaged(sample(), offset)) as container:
            assert [d.reason for d in container.verify()] in (["part_digest"], ["pad_not_zero"])


def test_verify_collects_all_defects_in_file_order(large: Path) -> None:
    with Container.open(large) as container:
        places = [container.header.parts[name].offset + 70 for name in ("big#data", "#attach/big.model")]
    data = bytearray(large.read_bytes())
    for place in places:
        data[place] ^= 1
    with Container.open(bytes(data)) as container:
        assert [d.where for d in container.verify(collect=True)] == ["big#data", "#attach/big.model"]
        assert [d.where for d in container.verify()] == ["big#data"]


def test_verify_tells_the_first_of_several_defects_that_lie_together() -> None:
    with Container.open(sample()) as container:
        parts = [part for name, part in container.header.parts.items() if "#bits" in name][:2]
    data = bytearray(sample())
    for part in parts:
        data[part.offset] ^= 1
    with Container.open(bytes(data)) as container:
        assert [d.where for d in container.verify(collect=True)] == [part.name for part in parts]
        assert [d.where for d in container.verify()] == [parts[0].name]


def test_verify_damaged_digest_pool_is_the_one_defect() -> None:
    with Container.open(sample()) as container:
        offset = container.header.parts["#digests"].offset
    with Container.open(damaged(sample(), offset)) as container:
        assert [d.where for d in container.verify(collect=True)] == ["#digests"]


def test_verify_deep_finds_sums_and_frames_that_lie(large: Path, tmp_path: Path) -> None:
    with Container.open(large) as container:
        pools = {name: bytearray(container.pool(name)) for name in ("frames", "sums")}
        container.pool("digests")
        pools["frames"][5] ^= 1
        pools["sums"][3 * 32] ^= 1
        container._pools.update({name: bytes(data) for name, data in pools.items()})
        assert container.verify(collect=True) == []
        defects = container.verify(collect=True, deep=True)
        assert [(d.reason, d.where.split(",")[0]) for d in defects] == [
            ("part_digest", "big#data"),
            ("frame_digest", "framed#data"),
        ]


def test_verify_deep_hashes_no_run_again_that_was_read_by_its_sum(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    monkeypatch.setattr("obm_format.container.reader.sha256", lambda data: hashed.append(len(data)) or sha256(data))
    with Container.open(large) as container:
        container.part_range(large_record(), "data", 2 * MIB, 5 * MIB)
        hashed.clear()
        assert container.sum_defects() == []
    runs = [nbytes for nbytes in hashed if nbytes == MIB]
    assert len(runs) == 9 - 3 + 8  # of the tensor, of what was read of it, of the attachment


def test_verify_begins_with_the_longest_part_and_tells_defects_in_file_order(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obm_format.container.verify.THREADS", 1)
    monkeypatch.setattr("obm_format.container.verify._RUN_NBYTES", MIB)
    data, reads = bytearray(large.read_bytes()), list[int]()
    with Container.open(bytes(data)) as container:
        names = ("framed#data", "big#data", "#attach/big.model")
        framed, big, attached = (container.header.parts[name].offset for name in names)
    data[framed] ^= 1
    data[big] ^= 1

    def fetch(offset: int, nbytes: int) -> bytes:
        reads.append(offset)
        return bytes(data[offset : offset + nbytes])

    with Container.open(RangeSource(len(data), fetch, "range")) as container:
        assert [d.where for d in container.verify(collect=True)] == ["big#data", "framed#data"]
    assert [offset for offset in reads if offset in (framed, big, attached)] == [big, attached, framed]


def test_verify_reads_into_whole_pages(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []

    def read_into(source: PathSource, offset: int, buffer: memoryview) -> None:
        places.append(ctypes.addressof(ctypes.c_char.from_buffer(buffer)))
        buffer[:] = source.read(offset, buffer.nbytes)

    monkeypatch.setattr(PathSource, "read_into", read_into)
    with Container.open(large) as container:
        assert container.verify() == []
    assert {place % mmap.PAGESIZE for place in places} == {0}


def test_verify_reads_in_large_pieces_and_holds_no_part(large: Path) -> None:
    data = large.read_bytes()
    reads: list[tuple[int, int]] = []

    def fetch(offset: int, nbytes: int) -> bytes:
        reads.append((offset, nbytes))
        return data[offset : offset + nbytes]

    with Container.open(RangeSource(len(data), fetch, "range")) as container:
        reads.clear()
        assert container.verify() == []
        assert max(nbytes for _, nbytes in reads) <= 2 * MIB
        assert len(reads) < 2 * len(data) / MIB
        covered = set[int]()
        for offset, nbytes in reads:
            covered.update(range(offset // 64, (offset + nbytes) // 64))
        assert covered == set(range(container.header.nbytes // 64, len(data) // 64))


def test_verify_tells_progress_and_can_be_stopped(large: Path) -> None:
    told: list[tuple[str, int, int]] = []
    with Container.open(large) as container:
        container.verify(progress=lambda *fact: told.append(fact))
        assert told[-1][1] == told[-1][2] > 17 * MIB

        def stop(phase: str, done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            container.verify(progress=stop)


def test_verify_file_that_shrinks_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x.obm"
    with ContainerWriter(path) as writer:
        add_all(writer, records()[:1])
        writer.commit(manifest_of(records()[:1]))
    with Container.open(path) as container:
        container.digests(records()[0])
        with path.open("r+b") as file:
            file.truncate(container.nbytes - 64)
        assert [d.reason for d in container.verify()] == ["truncated"]

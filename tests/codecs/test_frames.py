"""zstd frames: cuts, and hostile frames, which fail before they allocate (obm-1 clause 8.2)."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard

from obm_format.codecs.frames import cut_numel, decompress, encode_framed
from obm_format.errors import FormatError
from obm_format.kernels import ReferenceSteps
from obm_format.model import CHUNK_NBYTES, DType

STEPS = ReferenceSteps()
RAW = bytes(range(256)) * 8
MAGIC = b"\x28\xb5\x2f\xfd"


def compress(data: bytes = RAW, **options: bool) -> bytes:
    options = {"write_checksum": False, "write_content_size": True, "write_dict_id": False} | options
    return zstandard.ZstdCompressor(level=1, **options).compress(data)


def single_segment(content_size: int, *blocks: tuple[int, int, bytes]) -> bytes:
    """A frame with a content size of 4 bytes and the given (kind, size, payload) blocks."""
    frame = MAGIC + bytes([0b10100000]) + content_size.to_bytes(4, "little")
    for index, (kind, size, payload) in enumerate(blocks):
        header = size << 3 | kind << 1 | (index == len(blocks) - 1)
        frame += header.to_bytes(3, "little") + payload
    return frame


def streamed() -> bytes:
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    return compressor.compress(RAW) + compressor.flush()


def large_window() -> bytes:
    """One plain block behind a window descriptor of 16 MiB."""
    frame = MAGIC + bytes([0b10000000, (24 - 10) << 3]) + len(RAW).to_bytes(4, "little")
    return frame + (len(RAW) << 3 | 1).to_bytes(3, "little") + RAW


def with_dictionary() -> bytes:
    dictionary = zstandard.ZstdCompressionDict(RAW, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    frame = zstandard.ZstdCompressor(dict_data=dictionary, write_checksum=False).compress(RAW)
    # a raw-content dictionary has id 0; name one in the frame header
    return frame[:4] + bytes([frame[4] | 1]) + b"\x07" + frame[5:]


HOSTILE = {
    "empty": b"",
    "short": MAGIC,
    "not zstd": b"PK\x03\x04" + RAW,
    "zlib": b"\x78\x9c" + RAW,
    "skippable": b"\x50\x2a\x4d\x18" + len(RAW).to_bytes(4, "little") + RAW,
    "no content size": streamed(),
    "smaller": compress(RAW[:-1]),
    "larger": compress(RAW + b"\0"),
    "checksum": compress(write_checksum=True),
    "window": large_window(),
    "dictionary": with_dictionary(),
    "second frame": compress() + compress(),
    "empty second frame": compress() + compress(b""),
    "skippable behind": compress() + b"\x50\x2a\x4d\x18\0\0\0\0",
    "junk behind": compress() + b"\0",
    "truncated": compress()[:-1],
    "half": compress()[:20],
    "huge size": single_segment(0xFFFFFFFF, (1, 100, b"a")),
    "less than declared": single_segment(len(RAW), (1, 100, b"a")),
    "more than declared": single_segment(len(RAW), (1, 100_000, b"a"), (1, 100_000, b"a")),
    "reserved block": single_segment(len(RAW), (3, 10, b"a")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_frame_is_refused_as_bad_frame(name: str) -> None:
    with pytest.raises(FormatError) as error:
        decompress(HOSTILE[name], len(RAW), "w#data frame 0")
    assert error.value.reason == "bad_frame"
    assert error.value.where == "w#data frame 0"


def test_frame_of_plain_blocks_is_read() -> None:
    frame = single_segment(1100, (0, 100, RAW[:100]), (1, 1000, b"z"))
    assert decompress(frame, 1100, "w") == RAW[:100] + b"z" * 1000


def test_declared_size_allocates_nothing() -> None:
    frame = MAGIC + bytes([0b11100000]) + (1 << 40).to_bytes(8, "little") + b"\x01\0\0"
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            decompress(frame, len(RAW), "w")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_every_changed_byte_is_refused_or_has_the_right_size() -> None:
    frame = compress(np.random.default_rng(0).integers(0, 9, 3000).astype(np.uint8).tobytes())
    for index in range(len(frame)):
        damaged = bytearray(frame)
        damaged[index] ^= 0x41
        try:
            raw = decompress(bytes(damaged), 3000, "w")
        except FormatError:
            continue
        assert len(raw) == 3000


@pytest.mark.parametrize(("extra", "frames"), [(-1, 1), (0, 1), (1, 2)])
def test_cuts_are_two_mebibytes(extra: int, frames: int) -> None:
    numel = CHUNK_NBYTES // 8 + extra
    words = np.arange(numel, dtype=np.uint64)
    part = encode_framed(numel, DType.I64, lambda span: STEPS.shuffle(words[span.start : span.stop]))
    assert cut_numel(DType.I64) * 8 == CHUNK_NBYTES
    assert len(part.chunks) == frames
    parameters = zstandard.get_frame_parameters(bytes(part.chunks[0]))
    assert parameters.content_size == min(numel * 8, CHUNK_NBYTES)
    assert (parameters.dict_id, parameters.has_checksum) == (0, False)
    raw = b"".join(zstandard.ZstdDecompressor().decompress(bytes(chunk)) for chunk in part.chunks)
    assert raw[:8] == bytes(i % 256 for i in range(8))

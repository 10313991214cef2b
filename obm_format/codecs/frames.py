"""zstd frames: compress a stream of elements cut by cut, and take hostile frames apart safely.

The only module that knows zstandard. Frames are made and taken apart on a few threads (zstandard releases
the GIL), with results in order, so the bytes do not depend on their number. Source: obm-1 clause 8.2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import zstandard

from obm_format.codecs.base import Bytes, PartReader, Span
from obm_format.codecs.frame_form import check_form
from obm_format.errors import FormatError
from obm_format.kernels.words import Words
from obm_format.layout import PartData
from obm_format.model import CHUNK_NBYTES, DType

LEVEL = 1  # higher levels are slower and no smaller on shuffled differences
WINDOW_NBYTES = 8 << 20
_T = TypeVar("_T")
_R = TypeVar("_R")
_MAGIC = b"\x28\xb5\x2f\xfd"
_THREADS = min(8, os.cpu_count() or 1)


def cut_numel(dtype: DType) -> int:
    """Elements of one full cut: 2 MiB of them."""
    return CHUNK_NBYTES // dtype.itemsize


def pays(framed_nbytes: int, plain_nbytes: int) -> bool:
    """Whether one form saves at least 3 % of another (obm-1 clause 11.7)."""
    return framed_nbytes * 100 <= plain_nbytes * 97


def encode_framed(numel: int, dtype: DType, stream: Callable[[Span], Bytes]) -> PartData:
    """The part `data`: every cut compressed into one frame.

    Args:
        numel: elements in all, at least 1.
        dtype: width of the elements.
        stream: gives the shuffled bytes of a span; called from several threads.
    """

    def frame(span: Span) -> bytes:
        return compress(stream(span))

    spans = list(Span(0, numel).pieces(cut_numel(dtype)))
    return PartData("data", tuple(_ordered(frame, spans)), framed=True)


def decode_framed(
    parts: PartReader, numel: int, dtype: DType, span: Span, place: Callable[[Span, bytes], None], where: str
) -> None:
    """Decompress the cuts of the part `data` that touch `span`.

    Args:
        parts: the record's parts.
        numel: elements of the whole part.
        dtype: width of the elements.
        span: elements wanted; not empty.
        place: called with the span of each whole cut and its shuffled bytes; from several threads.
        where: the part, for errors.

    Raises:
        FormatError: `bad_frame`.
    """
    size = cut_numel(dtype)

    def cut(index: int) -> None:
        covered = Span(index * size, min(numel, (index + 1) * size))
        place(covered, decompress(parts.frame("data", index), covered.size * dtype.itemsize, f"{where} frame {index}"))

    for _ in _ordered(cut, range(span.start // size, -(-span.stop // size))):
        pass


def fill(out: Words, span: Span, cut: Span, write: Callable[[Words], None]) -> None:
    """Let `write` fill the words of `cut`, and have what belongs to `span` in `out`.

    Args:
        out: the words of `span`.
        span: elements wanted.
        cut: elements of one frame; some of them are in `span`.
        write: fills an array of the words of `cut`.
    """
    start, stop = max(span.start, cut.start), min(span.stop, cut.stop)
    wanted = out[start - span.start : stop - span.start]
    if stop - start == cut.size:
        write(wanted)
        return
    words = np.empty(cut.size, out.dtype)
    write(words)
    wanted[:] = words[start - cut.start : stop - cut.start]


def decompress(frame: bytes, raw_nbytes: int, where: str) -> bytes:
    """Decompress one frame that must yield exactly `raw_nbytes` bytes and end where the data ends.

    What the frame says about itself is read before anything is allocated: zstandard's own `max_output_size`
    does not bound a frame that declares its size.

    Args:
        frame: one whole compressed frame.
        raw_nbytes: bytes it must hold, at least 1.
        where: the frame, for errors.

    Returns:
        `raw_nbytes` bytes.

    Raises:
        FormatError: `bad_frame`.
    Source: obm-1 clause 8.2.
    """
    if frame[:4] != _MAGIC:  # skippable frames too have parameters, of another meaning
        raise _bad_frame("the data is no zstd frame", where)
    try:
        parameters = zstandard.get_frame_parameters(frame)
        _check_parameters(parameters, raw_nbytes, where)
        check_form(frame, zstandard.frame_header_size(frame), parameters.window_size, where)
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_NBYTES)
        raw = decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _bad_frame(f"the frame cannot be decompressed: {error}", where) from error
    if len(raw) != raw_nbytes:
        raise _bad_frame("the frame holds another number of bytes", where, raw_nbytes, len(raw))
    return raw


def _check_parameters(parameters: zstandard.FrameParameters, raw_nbytes: int, where: str) -> None:
    # obm-1 clause 8.2
    if parameters.content_size != raw_nbytes:
        raise _bad_frame("the content size is another", where, raw_nbytes, parameters.content_size)
    if parameters.window_size > WINDOW_NBYTES:
        raise _bad_frame("the window is too large", where, f"<= {WINDOW_NBYTES}", parameters.window_size)
    if parameters.dict_id or parameters.has_checksum:
        raise _bad_frame("the frame has a dictionary or a checksum", where)


def compress(raw: Bytes) -> bytes:
    """One frame of the form that clause 8.2 asks for."""
    compressor = zstandard.ZstdCompressor(
        level=LEVEL, write_checksum=False, write_content_size=True, write_dict_id=False
    )
    return compressor.compress(raw.data)


def _ordered(call: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
    if len(items) == 1 or _THREADS == 1:
        yield from map(call, items)
        return
    with ThreadPoolExecutor(min(_THREADS, len(items)), thread_name_prefix="obm-frames") as pool:
        yield from pool.map(call, items)


def _bad_frame(message: str, where: str, expected: object = None, got: object = None) -> FormatError:
    return FormatError("bad_frame", message, where=where, expected=expected, got=got)

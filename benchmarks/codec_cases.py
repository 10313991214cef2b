"""Codecs: `xdelta` against zstd's own decoding of the same frames, `sign1` against a plain copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import zstandard
from harness import Case
from kernel_cases import COLS, ROWS, weights

from obm_format.codecs import sign1, xdelta
from obm_format.codecs.alphas import AlphaChoice
from obm_format.codecs.base import Encoded, Span
from obm_format.kernels import ReferenceKernels, select_kernels, select_steps
from obm_format.kernels.words import Float32, from_float32, to_float32
from obm_format.model import AlphaRule, DType, Granularity, Mode, TensorRecord, TensorSpec

SIGMA = 3e-4  # of the fine-tune's shift; the backbone has 0.02
CHECK_ROWS = 64
PROJ_PER_ROW = AlphaChoice(granularity=Granularity.ROW, rule=AlphaRule.PROJ)


class Parts:
    """The parts of one encoded tensor, in memory."""

    def __init__(self, encoded: Encoded) -> None:
        self._chunks = {part.suffix: [bytes(chunk) for chunk in part.chunks] for part in encoded.parts}
        self._alphas = encoded.alphas

    def part(self, suffix: str) -> memoryview:
        """See `PartReader.part`."""
        return memoryview(b"".join(self._chunks[suffix]))

    def part_range(self, suffix: str, start: int, stop: int) -> bytes:
        """See `PartReader.part_range`."""
        (chunk,) = self._chunks[suffix]
        return chunk if (start, stop) == (0, len(chunk)) else chunk[start:stop]

    def frames(self, suffix: str) -> Sequence[memoryview]:
        """See `PartReader.frames`."""
        return [memoryview(chunk) for chunk in self._chunks[suffix]]

    def frame(self, suffix: str, index: int) -> bytes:
        """See `PartReader.frame`."""
        return self._chunks[suffix][index]

    def alphas(self) -> bytes:
        """See `PartReader.alphas`."""
        return self._alphas


def record_of(encoded: Encoded, dtype: DType, rows: int = ROWS) -> TensorRecord:
    """The record of a matrix of `rows` rows."""
    spec = TensorSpec("w", dtype, (rows, COLS))
    return TensorRecord(spec=spec, base=spec, mode=Mode.DELTA, params=encoded.params)


def xdelta_case(threads: int, bucket: bool) -> Case:
    """Decode a whole BF16 matrix; the limit is zstd alone, over the same frames with as many threads."""
    base = weights(1, ROWS, COLS)
    noise = to_float32(weights(2, ROWS, COLS, SIGMA), DType.BF16)
    tuned = from_float32(to_float32(base, DType.BF16) + noise, DType.BF16).reshape(-1)
    flat, span = base.reshape(-1), Span(0, base.size)
    encoded = xdelta.encode(tuned, flat, DType.BF16, bucket=bucket)
    record, parts = record_of(encoded, DType.BF16), Parts(encoded)
    frames = [bytes(chunk) for chunk in encoded.parts[0].chunks]
    pool = ThreadPoolExecutor(threads)

    def zstd_alone() -> None:
        for _ in pool.map(lambda frame: zstandard.ZstdDecompressor().decompress(frame), frames):
            pass

    return Case(
        dtype="BF16",
        kernel=select_steps().name,
        nbytes=encoded.parts[0].nbytes + 2 * base.nbytes,
        check=lambda: np.array_equal(xdelta.decode(record, parts, span, flat), tuned),
        run=lambda _: xdelta.decode(record, parts, span, flat),
        limit=zstd_alone,
        limit_name="zstd",
        output="fresh",
    )


def shift() -> Float32:
    """A float32 task vector."""
    return to_float32(weights(3, ROWS, COLS, SIGMA), DType.BF16)


def sign1_encode_case(threads: int) -> Case:
    """A float32 task vector to bits and alphas, rule proj, one alpha per row."""
    kernels, d = select_kernels(threads), shift()

    def encoded(who: object, rows: int) -> Encoded:
        return sign1.encode(d[:rows], PROJ_PER_ROW, rows=rows, kernels=who)  # type: ignore[arg-type]

    def same() -> bool:
        fast, slow = (encoded(who, CHECK_ROWS) for who in (kernels, ReferenceKernels()))
        return fast.alphas == slow.alphas and bytes(fast.parts[0].chunks[0]) == bytes(slow.parts[0].chunks[0])

    return Case(
        dtype="F32",
        kernel=kernels.name,
        nbytes=d.nbytes + d.size // 8 + 2 * ROWS,
        check=same,
        run=lambda _: encoded(kernels, ROWS),
        output="fresh",
    )


def sign1_decode_case(threads: int, *, output: str) -> Case:
    """Bits and alphas to float32 values, in a `warm` array or a `fresh` one."""
    kernels, d = select_kernels(threads), shift()
    encoded = sign1.encode(d, PROJ_PER_ROW, rows=ROWS, kernels=kernels)
    record, parts = record_of(encoded, DType.F32), Parts(encoded)
    out = np.zeros(d.size, np.float32) if output == "warm" else None

    def decode(who: object, numel: int = d.size) -> Float32:
        return sign1.decode(record, parts, Span(0, numel), who, None if out is None else out[:numel])  # type: ignore[arg-type]

    def same() -> bool:
        part = CHECK_ROWS * COLS
        return np.array_equal(decode(kernels, part).copy(), decode(ReferenceKernels(), part))

    return Case(
        dtype="F32",
        kernel=kernels.name,
        nbytes=d.nbytes + d.size // 8 + 2 * ROWS,
        check=same,
        run=lambda _: decode(kernels),
        output=output,
    )


CASES: dict[str, Callable[[int], Case]] = {
    "codec-xdelta": lambda threads: xdelta_case(threads, bucket=False),
    "codec-xdelta-bucket": lambda threads: xdelta_case(threads, bucket=True),
    "sign1-encode": sign1_encode_case,
    "sign1-decode": lambda threads: sign1_decode_case(threads, output="warm"),
    "sign1-decode-fresh": lambda threads: sign1_decode_case(threads, output="fresh"),
}

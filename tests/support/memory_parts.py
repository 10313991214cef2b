"""Parts in memory, and records without a file: what codec tests need of a container."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from obm_format.codecs.base import Encoded
from obm_format.layout import PartData, alpha_nbytes, part_layouts
from obm_format.model import DType, Mode, TensorRecord, TensorSpec


@dataclass(frozen=True)
class MemoryFrame:
    nbytes: int


class MemoryParts:
    """A `PartReader` over what a codec made; `data` may be changed to damage it."""

    def __init__(self, encoded: Encoded) -> None:
        self.chunks = {part.suffix: [bytes(chunk) for chunk in part.chunks] for part in encoded.parts}
        self.data = {suffix: bytearray(b"".join(chunks)) for suffix, chunks in self.chunks.items()}
        self.pool = encoded.alphas
        self.asked: list[tuple[str, int, int]] = []

    def part(self, suffix: str) -> memoryview:
        return memoryview(bytes(self.data[suffix]))

    def part_range(self, suffix: str, start: int, stop: int) -> bytes:
        assert 0 <= start <= stop <= len(self.data[suffix])
        self.asked.append((suffix, start, stop))
        return bytes(self.data[suffix][start:stop])

    def frames(self, suffix: str) -> Sequence[MemoryFrame]:
        return [MemoryFrame(len(chunk)) for chunk in self.chunks[suffix]]

    def frame(self, suffix: str, index: int) -> bytes:
        self.asked.append((suffix, index, index + 1))
        return self.chunks[suffix][index]

    def alphas(self) -> bytes:
        return self.pool


def record_of(
    encoded: Encoded,
    shape: tuple[int, ...],
    *,
    dtype: DType = DType.F32,
    mode: Mode = Mode.DELTA,
    base_shape: tuple[int, ...] | None = None,
) -> TensorRecord:
    """The record that a manifest would hold; its parts must be those that the layout implies."""
    base = None if mode is Mode.ADDED else TensorSpec("w", dtype, base_shape or shape)
    record = TensorRecord(spec=TensorSpec("w", dtype, shape), base=base, mode=mode, params=encoded.params)
    expected = [(layout.suffix, layout.nbytes, layout.raw_nbytes is not None) for layout in part_layouts(record)]
    assert expected == [(part.suffix, part.nbytes, part.framed) for part in encoded.parts]
    assert alpha_nbytes(record) == len(encoded.alphas)
    return record


def part_bytes(encoded: Encoded, suffix: str) -> bytes:
    """The bytes of one part."""
    (found,) = [part for part in encoded.parts if part.suffix == suffix]
    return _joined(found)


def _joined(part: PartData) -> bytes:
    return b"".join(bytes(chunk) for chunk in part.chunks)


def random_words(seed: int, shape: tuple[int, ...], dtype: DType, scale: float = 0.02) -> np.ndarray:
    """Finite words of a float dtype, normally distributed."""
    from obm_format.kernels.words import from_float32

    values = np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)
    return from_float32(values, dtype)

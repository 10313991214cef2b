"""Kernels by name, and small operands made from a seed."""

from __future__ import annotations

import numpy as np
import pytest

from obm_format.kernels import Kernels, ReferenceKernels, SignOperand
from obm_format.kernels.words import Float32, Words, from_float32
from obm_format.model import DType

IMPLEMENTATIONS = ("reference", "numba", "numba-3-threads", "triton")


def make_kernels(name: str) -> Kernels:
    """The implementation of that name; skips the test where what it needs is not installed."""
    if name == "reference":
        return ReferenceKernels()
    if name == "triton":
        pytest.importorskip("triton", reason="the GPU kernels need triton")
        from device_kernels import device_kernels

        return device_kernels()
    pytest.importorskip("numba", reason="the fast kernels need numba")
    from obm_format.kernels import cpu

    return cpu.NumbaKernels(3 if name.endswith("threads") else 1)


def odd(words: Words) -> Words:
    """A copy of words at an odd address."""
    inside = np.full(words.nbytes + 1, 0xA5, np.uint8)[1:].view(words.dtype).reshape(words.shape)
    inside[...] = words
    return inside


class Maker:
    """Operands and words from one seeded generator."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def values(self, shape: tuple[int, ...], scale: float = 1.0) -> Float32:
        """Normal float32 numbers, with some +0, -0 and ties among them."""
        values = (self.rng.normal(size=shape) * scale).astype(np.float32)
        special = np.array([0.0, -0.0, scale, -scale], np.float32)
        mask = self.rng.random(shape) < 0.2
        return np.where(mask, special[self.rng.integers(0, 4, shape)], values)

    def words(self, shape: tuple[int, ...], dtype: DType, scale: float = 1.0) -> Words:
        """The same as words."""
        return from_float32(self.values(shape, scale), dtype)

    def sign(self, shape: tuple[int, int], *, planes: int = 1, group: int = 0, zeros: bool = False) -> SignOperand:
        """Random sign bits; `group` 0 is one alpha per row, -1 one for all."""
        rows, cols = shape
        size = max(1, cols) if group <= 0 else group
        groups = -(-cols // size)
        alphas = []
        for _ in range(planes):
            alpha = np.abs(self.rng.normal(size=(1 if group < 0 else rows, groups))).astype(np.float32)
            if zeros:
                alpha[self.rng.random(alpha.shape) < 0.3] = 0
            alphas.append(np.broadcast_to(alpha, (rows, groups)))
        bits = tuple(np.packbits(self.rng.random(shape) < 0.5, axis=1, bitorder="little") for _ in range(planes))
        return SignOperand(bits=bits, alphas=tuple(alphas), group=size, cols=cols)

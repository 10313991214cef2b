"""Counting and finding differences, and merging what is trimmed, without making the values: against making them."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_operands import make_kernels

from obm_format.errors import UsageError
from obm_format.kernels import Combine, ExactOperand, Kernels, ReferenceKernels, ValueOperand
from obm_format.kernels.contract import Combined, TrimmedOperand
from obm_format.kernels.words import Words, from_float32, words_dtype
from obm_format.model import DType

REFERENCE = ReferenceKernels()
FLOATS = (DType.F16, DType.BF16, DType.F32)
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 6e-8, 0.5, -0.5, 1.0, 1.0000001, 65504.0, -65504.0]
SIZES = [0, 1, 15, 16, 1023, 1024, 1025, 5000]


def pair(size: int, dtypes: tuple[DType, DType], seed: int = 0) -> tuple[Words, Words]:
    """A fine-tune and a backbone with many equal differences, zeros of both signs and subnormals among them."""
    rng = np.random.default_rng(seed)
    base = np.where(rng.random(size) < 0.5, rng.choice(SPECIAL, size), rng.normal(size=size)).astype(np.float32)
    shift = np.where(rng.random(size) < 0.5, rng.choice([0.0, 0.25, -0.25], size), rng.normal(0, 0.1, size))
    return from_float32((base + shift).astype(np.float32), dtypes[0]), from_float32(base, dtypes[1])


@pytest.fixture(params=["reference", "numba", "numba-3-threads"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    if request.param == "reference":
        return REFERENCE
    from obm_format.kernels import cpu

    monkeypatch.setattr(cpu, "_INLINE", 64)
    return make_kernels(request.param)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("base", FLOATS)
@pytest.mark.parametrize("tuned", FLOATS)
def test_differences_are_counted_like_values(kernels: Kernels, tuned: DType, base: DType, size: int) -> None:
    words = pair(size, (tuned, base))
    d = REFERENCE.subtract(words[0], tuned, words[1], base)
    for high in (None, 0, 0x3E80):  # all, subnormals and zeros, around 0.25
        found, wanted = (np.ones(1 << 15 if high is None else 1 << 16, np.int64) for _ in range(2))
        REFERENCE.count_magnitudes(d, high, wanted)
        kernels.count_differences(words[0], tuned, words[1], base, high, found)
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("threshold", [0.0, 1e-45, 0.25, 7.0])
@pytest.mark.parametrize("size", SIZES)
def test_a_difference_is_found_by_its_number(kernels: Kernels, size: int, threshold: float) -> None:
    tuned, base = pair(size, (DType.F32, DType.F32), 1)
    equal = np.flatnonzero(np.abs(tuned.view(np.float32) - base.view(np.float32)) == np.float32(threshold))
    for number in {1, 2, max(1, equal.size), equal.size + 1}:
        place, seen = kernels.nth_difference(tuned, DType.F32, base, DType.F32, threshold, number)
        wanted = (int(equal[number - 1]), number) if number <= equal.size else (-1, equal.size)
        assert (place, seen) == wanted


@pytest.mark.parametrize("combine", list(Combine))
@pytest.mark.parametrize("last", [-7, -1, 0, 700, 1200, 2**63 - 1])
@pytest.mark.parametrize("threshold", [0.0, 0.25, np.inf])
@pytest.mark.parametrize("shape", [(1, 2051), (3, 700), (2100, 1)])
def test_merging_what_is_trimmed_is_merging_what_is_kept(
    kernels: Kernels, shape: tuple[int, int], threshold: float, last: int, combine: Combine
) -> None:
    size = shape[0] * shape[1]
    kinds = [(DType.F32, 1), (DType.BF16, 2), (DType.F16, 3)]
    base = pair(size, (DType.F32, DType.F32))[1].reshape(shape)
    tuned = [(pair(size, (dtype, DType.F32), seed)[0].reshape(shape), dtype) for dtype, seed in kinds]
    trimmed = [TrimmedOperand(words=words, dtype=dtype, threshold=threshold, last=last) for words, dtype in tuned[:2]]
    kept = [
        ValueOperand(values=REFERENCE.keep_largest(REFERENCE.subtract(words, dtype, base, DType.F32), threshold, last))
        for words, dtype in tuned[:2]
    ]
    exact = ExactOperand(words=tuned[2][0], dtype=tuned[2][1])
    outs = [np.empty(shape, words_dtype(DType.F32)) for _ in range(2)]
    operands: list[list[Combined]] = [[*trimmed, exact], [*kept, exact]]
    for who, others, out in zip((kernels, REFERENCE), operands, outs, strict=True):
        who.merge(
            base, DType.F32, None, others, combine=combine, weights=[1.0, -0.5, 2.0], lam=0.7, out=out,
            out_dtype=DType.F32,
        )  # fmt: skip
    assert np.array_equal(outs[0], outs[1])


@pytest.mark.parametrize("size", [0, 1, 1023, 1025, 3000])
@pytest.mark.parametrize("dtype", [*FLOATS, DType.F64])
def test_words_that_differ_and_words_that_are_not_finite(kernels: Kernels, dtype: DType, size: int) -> None:
    rng = np.random.default_rng(2)
    a = rng.integers(0, 3, size).astype(words_dtype(dtype))
    b = rng.integers(0, 3, size).astype(words_dtype(dtype))
    assert kernels.moved(a, b) == np.count_nonzero(a != b)
    assert kernels.first_not_finite(a, dtype) is None
    full = {DType.F16: 0xFC01, DType.BF16: 0x7F80, DType.F32: 0xFF80_0001, DType.F64: 0x7FF0 << 48}[dtype]
    for place in (size - 1, size // 2) if size else ():  # the last one first
        a[place:] = full
        assert kernels.first_not_finite(a, dtype) == place


def test_tensors_of_other_shapes_are_refused(kernels: Kernels) -> None:
    a, b, counts = np.zeros(4, np.uint16), np.zeros(5, np.uint16), np.zeros(1 << 15, np.int64)
    with pytest.raises(UsageError):
        kernels.count_differences(a, DType.F16, b, DType.F16, None, counts)
    with pytest.raises(UsageError):
        kernels.count_differences(a, DType.F16, a, DType.F16, 1, counts)
    with pytest.raises(UsageError):
        kernels.nth_difference(a, DType.F16, b, DType.F16, 1.0, 1)

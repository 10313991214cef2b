"""Merges of exact operands alone, where one pass does it: any number of elements and operands, trims, what is seen."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_operands import Maker, odd

pytest.importorskip("numba", reason="the fast kernels need numba")

from obm_format.kernels import Combine, ExactOperand, Kernels, Operand, ReferenceKernels, cpu_flat
from obm_format.kernels.contract import Combined, Sight, TrimmedOperand
from obm_format.kernels.words import EXPONENT, Words, from_float32, is_finite, to_float32, words_dtype
from obm_format.model import DType

REFERENCE = ReferenceKernels()
KINDS = (DType.F32, DType.BF16)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The loops of one pass that are called."""
    seen: list[str] = []
    for name in ("merge_reals", "merge_brains"):
        loop = getattr(cpu_flat, name)
        monkeypatch.setattr(cpu_flat, name, lambda *args, loop=loop, name=name: (seen.append(name), loop(*args))[1])
    return seen


def exact(words: Words, dtype: DType) -> ExactOperand:
    return ExactOperand(words=odd(words), dtype=dtype)


def assert_equal(
    fast: Kernels,
    base: Words,
    dtype: DType,
    others: list[Combined],
    *,
    routed: Operand | None = None,
    combine: Combine = Combine.TIES,
    lam: float = 0.7,
    weights: list[float] | None = None,
) -> Words:
    outs = []
    for kernels in (REFERENCE, fast):
        memory = np.full(base.nbytes + 129, 0xA5, np.uint8)
        out = memory[65 : 65 + base.nbytes].view(base.dtype).reshape(base.shape)
        seen = kernels.merge(
            odd(base), dtype, routed, others,
            combine=combine, weights=[1.0] * len(others) if weights is None else weights, lam=lam,
            out=out, out_dtype=dtype,
        )  # fmt: skip
        assert (memory[:65] == 0xA5).all()
        assert (memory[65 + base.nbytes :] == 0xA5).all()
        outs.append(out)
        if seen is not None:
            assert seen.moved == REFERENCE.moved(base, out)
            assert not seen.is_finite or is_finite(out, dtype)
    assert np.array_equal(outs[0], outs[1]), np.flatnonzero(outs[0] != outs[1])[:8]
    return outs[0]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16])
def test_any_number_of_elements_and_operands_equals_the_reference(
    fast: Kernels, calls: list[str], dtype: DType, count: int
) -> None:
    for cols in (*range(1, 71), 1023, 1024, 1025, 2100):
        maker, shape = Maker(cols + count), (1 + cols % 3, cols)
        others: list[Combined] = [exact(maker.words(shape, dtype), dtype) for _ in range(count)]
        for combine in Combine:
            assert_equal(fast, maker.words(shape, dtype), dtype, others, combine=combine)
    assert set(calls) == {"merge_reals" if dtype is DType.F32 else "merge_brains"}


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_values_with_draws_and_zeros_of_both_signs_equal_the_reference(
    fast: Kernels, dtype: DType, count: int
) -> None:
    rng, shape = np.random.default_rng(count), (3, 1111)
    values = np.array([-2, -1, -0.0, 0.0, 1, 2, 1e-39, -1e-39, 1e-45], np.float32)
    base = from_float32(rng.choice(values, shape), dtype)
    others: list[Combined] = [exact(from_float32(rng.choice(values, shape), dtype), dtype) for _ in range(count)]
    for combine in Combine:
        assert_equal(fast, base, dtype, others, combine=combine, lam=1.0)
        assert_equal(fast, base, dtype, others, combine=combine, lam=-1.0, weights=[0.1, -1.7, 3.3, 1e-20][:count])
        assert_equal(fast, base, dtype, others, combine=combine, routed=exact(base[::-1], dtype))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_differences_that_overflow_give_the_same_infinities(fast: Kernels, count: int) -> None:
    rng, shape = np.random.default_rng(count), (2, 700)
    values = np.array([3e38, -3e38, 1e38, -1e38, 0.0, 1.0], np.float32)
    base = from_float32(rng.choice(values, shape), DType.F32)
    others: list[Combined] = [
        exact(from_float32(rng.choice(values, shape), DType.F32), DType.F32) for _ in range(count)
    ]
    for combine in Combine:
        got = assert_equal(fast, base, DType.F32, others, combine=combine, lam=1.0)
        assert (count == 1) or not np.isfinite(to_float32(got, DType.F32)).all()


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_trims_that_end_anywhere_equal_the_reference(fast: Kernels, dtype: DType, count: int) -> None:
    rng, shape = np.random.default_rng(count), (3, 345)
    values = np.array([-2, -1, -0.0, 0.0, 1, 2], np.float32)
    base = from_float32(rng.choice(values, shape), dtype)
    words = [odd(from_float32(rng.choice(values, shape), dtype)) for _ in range(count)]
    for last in (-5, -1, 0, 1, 14, 15, 16, 17, 30, 31, 32, 33, 300, 1023, 1024, 1033, 1034, 1 << 40):
        for threshold in (0.0, 1.0, 3.0):
            others: list[Combined] = [
                TrimmedOperand(words=one, dtype=dtype, threshold=threshold, last=last + place)
                for place, one in enumerate(words)
            ]
            assert_equal(fast, base, dtype, others, lam=1.0)
            assert_equal(fast, base, dtype, [*others[1:], exact(words[0], dtype)], combine=Combine.SUM, lam=-1.0)


def test_quotients_by_three_are_exactly_rounded(fast: Kernels) -> None:
    maker, shape = Maker(2), (1, 20_000)
    for scale in (1.0, 1e-38, 3e-39):
        others: list[Combined] = [
            exact(from_float32(np.abs(maker.values(shape, scale)), DType.F32), DType.F32) for _ in range(3)
        ]
        assert_equal(fast, np.zeros(shape, np.uint32), DType.F32, others, lam=1.0)


@pytest.mark.parametrize("kinds", [(DType.BF16, DType.F32, DType.F32), (DType.F16,) * 3, (DType.F32, DType.BF16) * 2])
def test_other_kinds_and_more_operands_go_the_other_way(
    fast: Kernels, calls: list[str], kinds: tuple[DType, ...]
) -> None:
    maker, shape = Maker(1), (2, 300)
    many = [DType.F32] * (cpu_flat.FLAT_OPERANDS + 1)
    for base_dtype, *others in (kinds, [DType.F32, *many]):
        operands: list[Combined] = [exact(maker.words(shape, dtype), dtype) for dtype in others]
        assert_equal(fast, maker.words(shape, base_dtype), base_dtype, operands)
    assert not calls


@pytest.mark.parametrize("dtype", KINDS)
def test_a_merge_in_place_reads_each_element_before_it_is_written(fast: Kernels, dtype: DType) -> None:
    maker, shape = Maker(3), (3, 1500)
    base = maker.words(shape, dtype)
    others: list[Combined] = [exact(maker.words(shape, dtype), dtype) for _ in range(3)]
    expected = assert_equal(fast, base, dtype, others)
    assert base.dtype == words_dtype(dtype)
    moved = REFERENCE.moved(base, expected)
    seen = fast.merge(
        base, dtype, None, others, combine=Combine.TIES, weights=[1.0] * 3, lam=0.7, out=base, out_dtype=dtype
    )
    assert np.array_equal(base, expected)
    assert seen == Sight(is_finite=True, moved=moved)


def sight(fast: Kernels, dtype: DType, words: list[Words], combine: Combine, threshold: float | None) -> Sight | None:
    """What is seen of a merge of all words but the first, the backbone's, and the last, the routed operand's."""
    base, *others, routed = (odd(one) for one in words)
    operands: list[Combined] = [ExactOperand(words=one, dtype=dtype) for one in others]
    if threshold is not None:
        operands[0] = TrimmedOperand(words=others[0], dtype=dtype, threshold=threshold, last=-1)
    return fast.merge(
        base, dtype, ExactOperand(words=routed, dtype=dtype), operands,
        combine=combine, weights=[0.0, *[1.0] * (len(others) - 1)], lam=0.5, out=np.empty_like(base), out_dtype=dtype,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("threshold", [None, 1.0, np.inf])
def test_one_word_that_is_not_finite_is_seen_wherever_it_is(
    fast: Kernels, dtype: DType, count: int, threshold: float | None
) -> None:
    maker, shape = Maker(count), (1, 173)
    words = [maker.words(shape, dtype) for _ in range(count + 2)]
    sign = words[0].dtype.type(1 << (8 * words[0].itemsize - 1))
    bad = [words[0].dtype.type(EXPONENT[dtype] + more) for more in (0, 1)]
    for combine in Combine:
        clean = sight(fast, dtype, words, combine, threshold)
        assert clean is not None
        assert clean.is_finite
        for spoilt in range(len(words)):
            for place in (0, 31, 64, 159, 160, 172):
                for value in (*bad, *(one | sign for one in bad)):
                    some = [one.copy() for one in words]
                    some[spoilt][0, place] = value
                    seen = sight(fast, dtype, some, combine, threshold)
                    assert seen is not None
                    assert not seen.is_finite, (combine, spoilt, place, value)


def test_a_result_that_is_rounded_to_infinity_is_seen(fast: Kernels) -> None:
    largest = np.full((1, 40), 0x7F7F, np.uint16)
    for added, stays in ((0x7B00, False), (0x7AFF, True)):  # half of its last step, and a little less
        tuned = np.zeros_like(largest)
        tuned[0, 33] = added
        seen = fast.merge(
            np.zeros_like(largest), DType.BF16,
            ExactOperand(words=largest, dtype=DType.BF16), [ExactOperand(words=tuned, dtype=DType.BF16)],
            combine=Combine.SUM, weights=[1.0], lam=1.0, out=np.empty_like(largest), out_dtype=DType.BF16,
        )  # fmt: skip
        assert seen is not None
        assert seen.is_finite is stays


def test_what_goes_another_way_is_not_seen(fast: Kernels) -> None:
    maker, shape = Maker(1), (2, 300)
    base, half = maker.words(shape, DType.BF16), exact(maker.words(shape, DType.F16), DType.F16)
    for kernels, others in ((fast, [half]), (REFERENCE, [exact(base, DType.BF16)])):
        seen = kernels.merge(
            base, DType.BF16, None, others,
            combine=Combine.SUM, weights=[1.0], lam=1.0, out=np.empty_like(base), out_dtype=DType.BF16,
        )  # fmt: skip
        assert seen is None

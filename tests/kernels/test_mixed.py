"""TIES of one exact and one sign operand in BF16, with and without a routed sign operand, where one loop does it."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_operands import Maker, odd

pytest.importorskip("numba", reason="the fast kernels need numba")

from obm_format.kernels import Combine, ExactOperand, Kernels, Operand, ReferenceKernels, SignOperand, cpu_mixed
from obm_format.kernels.words import Words
from obm_format.model import DType

REFERENCE = ReferenceKernels()
BF16 = DType.BF16


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each call of the loop."""
    seen: list[str] = []
    loop = cpu_mixed.merge_mixed_tiles
    monkeypatch.setattr(cpu_mixed, "merge_mixed_tiles", lambda *args: (seen.append("mixed"), loop(*args))[1])
    return seen


def assert_equal(
    fast: Kernels,
    base: Words,
    routed: Operand | None,
    others: list[Operand],
    *,
    lam: float = 0.3,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Words:
    outs = []
    for kernels in (REFERENCE, fast):
        memory = np.full(base.nbytes + 129, 0xA5, np.uint8)
        out = memory[65 : 65 + base.nbytes].view(np.uint16).reshape(base.shape)
        kernels.merge(
            odd(base), BF16, routed, others,
            combine=Combine.TIES, weights=weights, lam=lam, out=out, out_dtype=BF16,
        )  # fmt: skip
        assert (memory[:65] == 0xA5).all()
        assert (memory[65 + base.nbytes :] == 0xA5).all()
        outs.append(out)
    assert np.array_equal(outs[0], outs[1]), np.flatnonzero(outs[0] != outs[1])[:8]
    return outs[0]


def test_rows_of_every_width_equal_the_reference(fast: Kernels, calls: list[str]) -> None:
    for cols in (*range(1, 71), 1023, 1024, 1025, 1300):
        maker, shape = Maker(cols), (3, cols)
        base, exact = maker.words(shape, BF16), ExactOperand(words=odd(maker.words(shape, BF16)), dtype=BF16)
        sign, other = maker.sign(shape, zeros=True), maker.sign(shape, group=-1)
        for routed in (None, other, ExactOperand(words=maker.words(shape, BF16), dtype=BF16)):
            assert_equal(fast, base, routed, [exact, sign])
            assert_equal(fast, base, routed, [sign, exact], lam=-1.0, weights=(0.7, -1.3))
    assert calls


def test_every_finite_element_of_bf16_equals_the_reference(fast: Kernels) -> None:
    rng, shape = np.random.default_rng(0), (255, 256)
    words = np.arange(1 << 16, dtype=np.uint16)
    words = words[(words & 0x7F80) != 0x7F80]
    maker = Maker(1)
    edges = np.array([3e38, 1e-45, 2.0**-7, 0, 2.0**-9, 1.5 * 2.0**-7, 1e-38, 1.0], np.float32)
    for turn in range(4):
        base, tuned = (rng.permutation(words).reshape(shape) for _ in range(2))
        tuned = np.where(rng.random(shape) < 0.3, base, tuned)  # no shift, and +0
        bits = maker.sign(shape).bits
        alphas = np.roll(edges, turn)[np.arange(shape[0]) % 8].reshape(-1, 1)
        sign = SignOperand(bits=bits, alphas=(alphas,), group=shape[1], cols=shape[1])
        exact = ExactOperand(words=tuned, dtype=BF16)
        assert_equal(fast, base, maker.sign(shape), [exact, sign], lam=1.0)
        assert_equal(fast, base, None, [sign, exact], lam=1.0, weights=(1.0, 0.5))


def test_draws_between_the_two_equal_the_reference(fast: Kernels) -> None:
    # shifts of 1 and -1 against alphas of 1 and 2: sums of 0 among them
    shape = (2, 300)
    rng, maker = np.random.default_rng(5), Maker(5)
    base = np.zeros(shape, np.uint16)
    tuned = rng.choice(np.array([0x3F80, 0xBF80, 0x0000, 0x8000, 0x4000], np.uint16), shape)
    for alpha in (0.0, 1.0, 2.0):
        alphas = np.full((2, 1), alpha, np.float32)
        sign = SignOperand(bits=maker.sign(shape).bits, alphas=(alphas,), group=300, cols=300)
        for routed in (None, sign):
            assert_equal(fast, base, routed, [ExactOperand(words=tuned, dtype=BF16), sign], lam=1.0)


def test_a_merge_in_place_reads_each_element_before_it_is_written(fast: Kernels, calls: list[str]) -> None:
    maker, shape = Maker(3), (3, 1511)
    base = maker.words(shape, BF16)
    others: list[Operand] = [ExactOperand(words=maker.words(shape, BF16), dtype=BF16), maker.sign(shape)]
    expected = assert_equal(fast, base, maker.sign(shape), others)
    again, calls[:] = Maker(3), []
    base = again.words(shape, BF16)
    again.words(shape, BF16), again.sign(shape)
    fast.merge(
        base, BF16, again.sign(shape), others,
        combine=Combine.TIES, weights=[1, 1], lam=0.3, out=base, out_dtype=BF16,
    )  # fmt: skip
    assert np.array_equal(base, expected)
    assert calls

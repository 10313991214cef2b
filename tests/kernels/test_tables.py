"""Merges of sign operands alone, by tables: both ways to look up, at every width, on numbers that round badly."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_operands import Maker

pytest.importorskip("numba", reason="the fast kernels need numba")

from obm_format.kernels import Combine, Kernels, Operand, ReferenceKernels, SignOperand, cpu, cpu_tables
from obm_format.kernels.words import Float32, Words
from obm_format.model import DType

REFERENCE = ReferenceKernels()
HUGE, TINY, TWO_ULPS = 3e38, 1e-45, 2.0**-7  # of 1, in BF16


@pytest.fixture(params=["shuffles", "words", "shuffles in 3 threads"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    if not cpu.HAS_SHUFFLES and request.param != "words":
        pytest.skip("this processor has no byte shuffles that the kernels know")
    monkeypatch.setattr(cpu, "HAS_SHUFFLES", request.param != "words")
    monkeypatch.setattr(cpu, "_INLINE", 64)  # so that small tensors are shared among threads too
    return cpu.NumbaKernels(3 if "threads" in request.param else 1)


def guarded(words: Words) -> tuple[Words, Words]:
    """A copy of words at an odd address, and all of the memory around it."""
    memory = np.full(words.nbytes + 2 * 64 + 1, 0xA5, np.uint8)
    inside = memory[65 : 65 + words.nbytes].view(words.dtype).reshape(words.shape)
    inside[...] = words
    return inside, memory


def assert_equal(
    fast: Kernels,
    base: Words,
    routed: Operand | None,
    others: list[Operand],
    *,
    combine: Combine = Combine.TIES,
    lam: float = 0.3,
    weights: list[float] | None = None,
) -> Words:
    weights = [1.0] * len(others) if weights is None else weights
    outs, memory = [], np.empty(0, np.uint8)
    for kernels in (REFERENCE, fast):
        source, _ = guarded(base)
        out, memory = guarded(np.full(base.shape, 0x5A5A, np.uint16))
        kernels.merge(
            source, DType.BF16, routed, others,
            combine=combine, weights=weights, lam=lam, out=out, out_dtype=DType.BF16,
        )  # fmt: skip
        outs.append(out)
    assert np.array_equal(outs[0], outs[1]), np.flatnonzero(outs[0] != outs[1])[:8]
    assert (memory[:65] == 0xA5).all()
    assert (memory[65 + base.nbytes :] == 0xA5).all()
    return outs[0]


def moved(operand: SignOperand) -> SignOperand:
    """The same operand with its bits at odd addresses, rows apart from each other."""
    planes = []
    for bits in operand.bits:
        wide = np.full((bits.shape[0], bits.shape[1] + 5), 0xFF, np.uint8)
        wide[:, 3 : 3 + bits.shape[1]] = bits
        planes.append(wide[:, 3 : 3 + bits.shape[1]])
    return SignOperand(bits=tuple(planes), alphas=operand.alphas, group=operand.group, cols=operand.cols)


def patterns(planes: int, alphas: Float32) -> list[Operand]:
    """Operands of one row each, a plane and an alpha each, that show every pattern of sign bits one after the other."""
    cols = 1 << planes
    return [
        SignOperand(
            bits=(np.packbits((np.arange(cols)[None] >> plane) & 1, axis=1, bitorder="little"),),
            alphas=(np.full((1, 1), alphas[plane], np.float32),),
            group=cols,
            cols=cols,
        )
        for plane in range(planes)
    ]


@pytest.mark.parametrize("planes", range(1, 9))
def test_rows_of_every_width_equal_the_reference(fast: Kernels, planes: int) -> None:
    for cols in (*range(1, 71), 248, 255, 256, 257, 300, 511, 520, 1024, 1025, 1300):
        maker, shape = Maker(100 * planes + cols), (3, cols)
        experts: list[Operand] = [moved(maker.sign(shape, group=-1, zeros=True)) for _ in range(planes)]
        assert_equal(fast, maker.words(shape, DType.BF16), experts[0], experts[1:])


@pytest.mark.parametrize("planes", range(1, 9))
@pytest.mark.parametrize("combine", list(Combine))
def test_every_element_of_bf16_equals_the_reference(fast: Kernels, planes: int, combine: Combine) -> None:
    # all words, Inf and NaN among them, under alphas that overflow, underflow and fall in the middle between two words
    base = np.random.default_rng(planes).permutation(1 << 16).astype(np.uint16).reshape(64, 1024)
    edges = np.array([HUGE, TINY, TWO_ULPS, 0, TWO_ULPS / 4, 1.5 * TWO_ULPS, 1e-38, 1.0], np.float32)
    maker = Maker(planes)
    experts: list[Operand] = []
    for plane in range(planes):
        operand = maker.sign(base.shape)
        alphas = np.roll(edges, plane)[np.arange(64) // (plane + 1) % 8].reshape(64, 1)
        experts.append(SignOperand(bits=operand.bits, alphas=(alphas,), group=1024, cols=1024))
    assert_equal(fast, base, experts[-1], experts[:-1], combine=combine, lam=1.0)
    assert_equal(fast, base, None, experts, combine=combine, lam=-0.75, weights=[0.5, -3.0, *[1.0] * 6][:planes])


def test_halves_are_rounded_to_even_and_zeros_keep_their_sign(fast: Kernels) -> None:
    words = np.array([0x3F80, 0x3F81, 0xBF80, 0xBF81, 0x0000, 0x8000, 0x0001, 0x7F7F], np.uint16)
    base = np.tile(words, 64).reshape(1, 512)
    bits = (np.packbits(np.arange(512)[None] % 16 < 8, axis=1, bitorder="little"),)
    for alpha in (0.0, TINY, 2.0**-9, 2.0**-8, 2.0**-8 * (1 + 2.0**-20), 2.0**120):
        operand = SignOperand(bits=bits, alphas=(np.full((1, 1), alpha, np.float32),), group=512, cols=512)
        assert_equal(fast, base, operand, [])
        assert_equal(fast, base, None, [operand], lam=1.0)


@pytest.mark.parametrize("planes", [1, 2, 5])
def test_a_sum_of_zeros_below_zero_stays_below(fast: Kernels, planes: int) -> None:
    base = np.full((1, 300), 0x8000, np.uint16)
    bits = (np.zeros((1, 38), np.uint8),)
    nothing = SignOperand(bits=bits, alphas=(np.zeros((1, 1), np.float32),), group=300, cols=300)
    for combine in (Combine.SUM, Combine.MEAN):
        got = assert_equal(fast, base, None, [nothing] * planes, combine=combine, lam=1.0, weights=[-1.0] * planes)
        assert (got == 0x8000).all()


@pytest.mark.parametrize("planes", range(1, 9))
def test_draws_between_alphas_equal_the_reference(fast: Kernels, planes: int) -> None:
    # 1 and 1, 1 and 2 against 3, and so on: the sum is 0 for many patterns, and the elected sign is plus
    alphas = np.array([1, 1, 2, 3, 0, 5, 1, 8], np.float32)
    for combine in Combine:
        for routed in (False, True):
            experts = patterns(planes, alphas)
            base = np.zeros((1, 1 << planes), np.uint16)
            assert_equal(fast, base, experts.pop() if routed else None, experts, combine=combine, lam=1.0)


@pytest.mark.parametrize("group", [8, 64, 136, 256, 264, 1032])
@pytest.mark.parametrize("planes", [1, 2, 4, 5])
def test_runs_under_one_table_may_begin_anywhere(
    fast: Kernels, monkeypatch: pytest.MonkeyPatch, group: int, planes: int
) -> None:
    monkeypatch.setattr(cpu, "_TABLE_WORTH", 0)
    maker, shape = Maker(group), (3, 2100)
    experts: list[Operand] = [maker.sign(shape, group=group, zeros=True) for _ in range(planes)]
    assert_equal(fast, maker.words(shape, DType.BF16), experts[0], experts[1:])


@pytest.mark.parametrize("several", [(2, 1), (1, 2), (3,), (2, 2, 2), (1, 4, 2, 1)])
def test_operands_of_several_planes_equal_the_reference(fast: Kernels, several: tuple[int, ...]) -> None:
    maker, shape = Maker(len(several)), (4, 700)
    experts: list[Operand] = [maker.sign(shape, planes=planes, zeros=True) for planes in several]
    for combine in Combine:
        weights = [0.3, -1.1, 2.0, 1.0][: len(several)]
        assert_equal(fast, maker.words(shape, DType.BF16), None, experts, combine=combine, weights=weights)
        assert_equal(fast, maker.words(shape, DType.BF16), experts[0], experts[1:], combine=combine)


def test_a_merge_in_place_reads_each_element_before_it_is_written(fast: Kernels) -> None:
    maker, shape = Maker(9), (5, 1311)
    experts: list[Operand] = [maker.sign(shape) for _ in range(3)]
    base = maker.words(shape, DType.BF16)
    expected = assert_equal(fast, base, experts[0], experts[1:])
    fast.merge(
        base, DType.BF16, experts[0], experts[1:],
        combine=Combine.TIES, weights=[1, 1], lam=0.3, out=base, out_dtype=DType.BF16,
    )  # fmt: skip
    assert np.array_equal(base, expected)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two loops is called."""
    seen: list[str] = []
    for name in ("merge_tiles_by_table", "add_tiles_by_table"):
        loop = getattr(cpu_tables, name)
        monkeypatch.setattr(cpu_tables, name, lambda *args, loop=loop, name=name: (seen.append(name), loop(*args))[1])
    return seen


def test_shuffles_are_used_where_there_are_any(fast: Kernels, calls: list[str]) -> None:
    maker, shape = Maker(0), (2, 640)
    assert_equal(fast, maker.words(shape, DType.BF16), maker.sign(shape), [])
    assert set(calls) == {"add_tiles_by_table" if cpu.HAS_SHUFFLES else "merge_tiles_by_table"}

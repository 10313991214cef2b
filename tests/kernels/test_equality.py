"""The fast kernels give the bits of the normative ones, whatever the shape, dtype, mix and number of threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from kernel_operands import Maker, make_kernels

from obm_format.kernels import (
    Combine,
    ExactOperand,
    Kernels,
    Operand,
    ReferenceKernels,
    SignOperand,
    ValueOperand,
    ZeroOperand,
)
from obm_format.kernels.words import Words, from_float32, to_float32, words_dtype
from obm_format.model import DType

REFERENCE = ReferenceKernels()
FLOATS = (DType.F16, DType.BF16, DType.F32)
SHAPES = [(1, 1), (3, 7), (5, 64), (2, 1023), (2, 1025), (3, 4100), (40, 33)]


@pytest.fixture(params=["numba", "numba-3-threads", "triton"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    kernels = make_kernels(request.param)
    if request.param != "triton":
        from obm_format.kernels import cpu

        monkeypatch.setattr(cpu, "_INLINE", 64)  # so that small tensors are shared among threads too
    return kernels


def both(
    fast: Kernels,
    base: Words,
    base_dtype: DType,
    routed: Operand | None,
    others: list[Operand],
    *,
    combine: Combine = Combine.TIES,
    weights: list[float] | None = None,
    lam: float = 0.3,
    out_dtype: DType = DType.BF16,
) -> tuple[Words, Words]:
    outs = []
    for kernels in (REFERENCE, fast):
        out = np.full(base.shape, 0x5A, words_dtype(out_dtype))
        kernels.merge(
            base,
            base_dtype,
            routed,
            others,
            combine=combine,
            weights=[1.0] * len(others) if weights is None else weights,
            lam=lam,
            out=out,
            out_dtype=out_dtype,
        )
        outs.append(out)
    return outs[0], outs[1]


def mix(maker: Maker, shape: tuple[int, int], kinds: str) -> list[Operand]:
    """Operands by letter: s sign, p two planes, g sign in groups, m one alpha, e exact, v values, z zero."""
    make: dict[str, Callable[[], Operand]] = {
        "s": lambda: maker.sign(shape, zeros=True),
        "p": lambda: maker.sign(shape, planes=2),
        "g": lambda: maker.sign(shape, group=64, zeros=True),
        "m": lambda: maker.sign(shape, group=-1),
        "e": lambda: ExactOperand(words=maker.words(shape, DType.BF16), dtype=DType.BF16),
        "v": lambda: ValueOperand(values=maker.values(shape)),
        "z": lambda: ZeroOperand(),
    }
    return [make[kind]() for kind in kinds]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kinds", ["s", "ss", "sss", "es", "se", "ee", "vzs", "gs", "pg", "essm", "mmmm", "mmmmmmm"])
@pytest.mark.parametrize("routed", ["", "s", "m", "e", "z"])
def test_merge_of_any_mix_equals_the_reference(fast: Kernels, shape: tuple[int, int], kinds: str, routed: str) -> None:
    maker = Maker(len(kinds) * 7 + shape[1])
    base = maker.words(shape, DType.BF16)
    chosen = mix(maker, shape, routed)[0] if routed else None
    for combine in Combine:
        expected, got = both(fast, base, DType.BF16, chosen, mix(maker, shape, kinds), combine=combine)
        assert np.array_equal(expected, got), combine


@pytest.mark.parametrize("base_dtype", FLOATS)
@pytest.mark.parametrize("out_dtype", FLOATS)
@pytest.mark.parametrize("exact_dtype", FLOATS)
def test_merge_equals_the_reference_in_all_dtypes(
    fast: Kernels, base_dtype: DType, out_dtype: DType, exact_dtype: DType
) -> None:
    maker, shape = Maker(3), (3, 1100)
    base = maker.words(shape, base_dtype, 1e-3)
    exact = ExactOperand(words=maker.words(shape, exact_dtype, 1e-3), dtype=exact_dtype)
    for routed in (None, exact, maker.sign(shape), ValueOperand(values=maker.values(shape, 1e-6))):
        mixes: list[list[Operand]] = [[], [maker.sign(shape)], [maker.sign(shape), exact]]
        for others in mixes:
            expected, got = both(fast, base, base_dtype, routed, others, out_dtype=out_dtype)
            assert np.array_equal(expected, got)


@pytest.mark.parametrize("planes", range(1, 9))
def test_tables_of_up_to_eight_planes_equal_the_reference(fast: Kernels, planes: int) -> None:
    maker, shape = Maker(planes), (3, (64 << planes) + 5)
    others: list[Operand] = [maker.sign(shape, zeros=True) for _ in range(planes - 1)]
    base = maker.words(shape, DType.BF16)
    for combine in Combine:
        expected, got = both(fast, base, DType.BF16, maker.sign(shape), others, combine=combine)
        assert np.array_equal(expected, got)


@pytest.mark.parametrize("count", [8, 11, 16])
def test_more_experts_than_a_table_holds_equal_the_reference(fast: Kernels, count: int) -> None:
    maker, shape = Maker(count), (2, 1500)
    others: list[Operand] = [maker.sign(shape) for _ in range(count)]
    expected, got = both(fast, maker.words(shape, DType.F16), DType.F16, maker.sign(shape), others)
    assert np.array_equal(expected, got)


@pytest.mark.parametrize("groups", [(64, 128), (128, 0), (512, 512), (8, 64), (24, 64)])
def test_alpha_groups_that_differ_among_experts_equal_the_reference(fast: Kernels, groups: tuple[int, int]) -> None:
    maker, shape = Maker(5), (3, 2050)
    routed, other = (maker.sign(shape, group=group) for group in groups)
    expected, got = both(fast, maker.words(shape, DType.BF16), DType.BF16, routed, [other])
    assert np.array_equal(expected, got)


@pytest.mark.parametrize("combine", list(Combine))
@pytest.mark.parametrize("kinds", ["v", "vv", "sv", "vvv", "ssss"])
def test_weights_and_negative_lambda_equal_the_reference(fast: Kernels, combine: Combine, kinds: str) -> None:
    maker, shape = Maker(11), (3, 700)
    weights = [0.1, -1.7, 3.3, 1.0][: len(kinds)]
    others = mix(maker, shape, kinds)
    expected, got = both(
        fast, maker.words(shape, DType.F32), DType.F32, None, others,
        combine=combine, weights=weights, lam=-0.7, out_dtype=DType.F32,
    )  # fmt: skip
    assert np.array_equal(expected, got)


@pytest.mark.parametrize("kinds", ["es", "se", "em"])
@pytest.mark.parametrize("routed", ["", "s", "e"])
def test_the_mixed_short_cut_equals_the_reference_with_weights_and_ragged_rows(
    fast: Kernels, kinds: str, routed: str
) -> None:
    for shape in ((3, 31), (2, 1024), (3, 1061)):
        maker = Maker(shape[1])
        others, chosen = mix(maker, shape, kinds), mix(maker, shape, routed)[0] if routed else None
        base = maker.words(shape, DType.BF16)
        expected, got = both(fast, base, DType.BF16, chosen, others, weights=[-1.3, 0.7], lam=-0.4)
        assert np.array_equal(expected, got)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_draws_and_zeros_among_few_values_equal_the_reference(fast: Kernels, count: int) -> None:
    rng, shape = np.random.default_rng(count), (2, 3000)
    others: list[Operand] = [
        ValueOperand(values=rng.choice(np.array([-2, -1, -0.0, 0, 1, 2], np.float32), shape)) for _ in range(count)
    ]
    for combine in Combine:
        expected, got = both(
            fast, from_float32(rng.choice(np.array([-0.0, 1], np.float32), shape), DType.F32), DType.F32, None, others,
            combine=combine, lam=-1.0, out_dtype=DType.F32,
        )  # fmt: skip
        assert np.array_equal(expected, got), combine


def test_products_are_rounded_before_they_are_added(fast: Kernels) -> None:
    # each product has more digits than float32: a fused multiply-add would give other bits in about half of the places
    maker, shape = Maker(1), (1, 4096)
    base, routed, other = (np.float32(1) + np.abs(maker.values(shape, 0.3)) for _ in range(3))
    lam, weight = np.float32(1.0000001), np.float32(0.7000001)
    exact_sum = (routed.astype(np.float64) + np.float64(lam) * other.astype(np.float64)).astype(np.float32)
    assert (exact_sum != routed + lam * other).mean() > 0.02, "the numbers would not show a fused operation"
    for combine in Combine:
        expected, got = both(
            fast, from_float32(base, DType.F32), DType.F32, ValueOperand(values=routed),
            [ValueOperand(values=other), ValueOperand(values=routed)],
            combine=combine, weights=[float(weight), 1.0], lam=float(lam), out_dtype=DType.F32,
        )  # fmt: skip
        assert np.array_equal(expected, got)


def test_quotients_by_the_number_of_agreeing_are_exactly_rounded(fast: Kernels) -> None:
    maker, shape = Maker(2), (1, 5000)
    for count in range(1, 8):
        others: list[Operand] = [ValueOperand(values=np.abs(maker.values(shape, 1e-38))) for _ in range(count)]
        expected, got = both(fast, np.zeros(shape, np.uint32), DType.F32, None, others, lam=1.0, out_dtype=DType.F32)
        assert np.array_equal(expected, got)


def test_every_half_is_read_and_every_rounding_to_half_is_right(fast: Kernels) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[(halves & 0x7C00) != 0x7C00].reshape(1, -1)
    nothing = ValueOperand(values=np.zeros(halves.shape, np.float32))
    expected, got = both(fast, halves, DType.F16, nothing, [], out_dtype=DType.F32)
    assert np.array_equal(expected, got)
    exact = to_float32(halves, DType.F16).view(np.uint32)
    middles = [exact + np.uint32(offset) for offset in (0, 0xFFF, 0x1000, 0x1001, 0x1FFF)]
    tiny = np.arange(0, 0x3400_0000, 0x3FFF7, dtype=np.uint32).reshape(1, -1)
    large = np.arange(0x477F_0000, 0x4780_0000, 0xFF, dtype=np.uint32).reshape(1, -1)
    words = np.concatenate([*middles, tiny, tiny | 0x8000_0000, large, large | 0x8000_0000], axis=1)
    nothing = ValueOperand(values=np.zeros(words.shape, np.float32))
    for dtype in (DType.F16, DType.BF16):
        expected, got = both(fast, words, DType.F32, nothing, [], out_dtype=dtype)
        assert np.array_equal(expected, got)


def test_overflow_gives_the_same_infinities(fast: Kernels) -> None:
    base = from_float32(np.full((1, 70), 3e38, np.float32), DType.BF16)
    huge = SignOperand(
        bits=(np.full((1, 9), 0x0F, np.uint8),), alphas=(np.full((1, 1), 3e38, np.float32),), group=70, cols=70
    )
    expected, got = both(fast, base, DType.BF16, huge, [huge, huge], lam=1.0)
    assert np.array_equal(expected, got)
    assert (got == 0x7F80).any()


def test_merge_in_place_and_from_unaligned_memory_equals_the_reference(fast: Kernels) -> None:
    maker, shape = Maker(4), (3, 1200)
    raw = np.zeros(2 * 3600 + 1, np.uint8)
    base = raw[1:].view(np.uint16).reshape(shape)
    base[...] = maker.words(shape, DType.BF16)
    routed, others = maker.sign(shape), mix(maker, shape, "es")
    expected, got = both(fast, base, DType.BF16, routed, others)
    assert np.array_equal(expected, got)
    fast.merge(
        base, DType.BF16, routed, others,
        combine=Combine.TIES, weights=[1, 1], lam=0.3, out=base, out_dtype=DType.BF16,
    )  # fmt: skip
    assert np.array_equal(base, expected)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices_are_left_alone(fast: Kernels, shape: tuple[int, int]) -> None:
    base, value = np.zeros(shape, np.uint16), ValueOperand(values=np.zeros(shape, np.float32))
    expected, got = both(fast, base, DType.BF16, value, [value])
    assert np.array_equal(expected, got)


@pytest.mark.parametrize("shape", [*SHAPES, (0, 4), (4, 0)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_subtract_and_pack_and_decode_equal_the_reference(fast: Kernels, shape: tuple[int, int], dtype: DType) -> None:
    maker = Maker(shape[1])
    tuned, base = maker.words(shape, dtype), maker.words(shape, DType.BF16)
    d = fast.subtract(tuned, dtype, base, DType.BF16)
    expected = REFERENCE.subtract(tuned, dtype, base, DType.BF16)
    assert np.array_equal(d.view(np.uint32), expected.view(np.uint32))
    assert np.array_equal(fast.pack_signs(d), REFERENCE.pack_signs(d))
    for planes, group in ((1, 0), (3, -1), (2, 8)):
        operand = maker.sign(shape, planes=planes, group=group, zeros=True)
        expected = REFERENCE.sign_values(operand)
        for out in (None, np.full(shape, np.nan, np.float32)):
            decoded = fast.sign_values(operand, out)
            assert out is None or decoded is out
            assert np.array_equal(decoded.view(np.uint32), expected.view(np.uint32))


def test_subtract_takes_tensors_of_any_rank(fast: Kernels) -> None:
    for shape in ((), (7,), (2, 3, 4)):
        words = Maker(6).words(shape, DType.F16)
        assert fast.subtract(words, DType.F16, words, DType.F16).shape == shape


@pytest.mark.parametrize("sizes", [[1], [15, 16, 17, 0, 1], [65_536], [65_537, 3], [200_001], [64] * 300])
def test_sums_are_added_in_the_pinned_order(fast: Kernels, sizes: list[int]) -> None:
    d = np.random.default_rng(len(sizes)).normal(size=sum(sizes)).astype(np.float32)
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    expected, got = REFERENCE.group_sums(d, bounds), fast.group_sums(d, bounds)
    assert np.array_equal(expected[0], got[0])
    assert np.array_equal(expected[1], got[1])


def pair_with_extremes(maker: Maker, shape: tuple[int, int], dtypes: tuple[DType, DType]) -> list[Words]:
    """Two matrices with equal elements, zeros of both signs, subnormals, and some numbers far larger than the rest."""
    pair = []
    for dtype in dtypes:
        words = maker.words(shape, dtype, 1e-3)
        top = {DType.F16: 0x7BFF, DType.BF16: 0x477F, DType.F32: 0x477F_E001}[dtype]
        sign = 1 << (8 * words.itemsize - 1)
        special = np.array([0, sign, 1, sign + 1, 0x60, top, sign + top], words.dtype)
        mask = maker.rng.random(shape) < 0.3
        pair.append(np.where(mask, special[maker.rng.integers(0, len(special), shape)], words))
    return pair


def assert_packs_alike(fast: Kernels, pair: list[Words], dtypes: tuple[DType, DType], bounds: np.ndarray) -> None:
    tuned, base = pair
    expected = REFERENCE.pack(tuned, dtypes[0], base, dtypes[1], bounds)
    got = fast.pack(tuned, dtypes[0], base, dtypes[1], bounds)
    assert np.array_equal(expected[0], got[0])
    for one, other in zip(expected[1:], got[1:], strict=True):
        assert np.isfinite(one).all()
        assert np.array_equal(one.view(np.uint64), other.view(np.uint64))


def group_bounds(shape: tuple[int, int], kind: str) -> np.ndarray:
    """Bounds of one group per matrix, per row, per two rows, per 64 columns, or of ragged sizes with empty ones."""
    rows, cols = shape
    size = rows * cols
    if kind == "matrix":
        inner = np.empty(0, np.int64)
    elif kind == "ragged":
        inner = np.sort(np.random.default_rng(cols).integers(0, size + 1, 5).repeat(2))
    elif kind == "columns":
        inner = (np.arange(rows)[:, None] * cols + np.arange(0, cols, 64)).reshape(-1)[1:]
    else:
        inner = np.arange(1, rows)[:: 2 if kind == "two rows" else 1] * cols
    return np.concatenate([[0], inner, [size]]).astype(np.int64)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 32), (2, 1024), (5, 8200), (0, 4), (4, 0)])
@pytest.mark.parametrize("kind", ["matrix", "rows", "two rows", "columns", "ragged"])
@pytest.mark.parametrize("tuned_dtype", FLOATS)
@pytest.mark.parametrize("base_dtype", FLOATS)
def test_packing_a_pair_equals_the_reference(
    fast: Kernels, shape: tuple[int, int], kind: str, tuned_dtype: DType, base_dtype: DType
) -> None:
    dtypes = tuned_dtype, base_dtype
    bounds = group_bounds(shape, kind) if shape[0] * shape[1] else np.zeros(3, np.int64)
    assert_packs_alike(fast, pair_with_extremes(Maker(shape[1]), shape, dtypes), dtypes, bounds)


@pytest.mark.parametrize("shape", [(2, 65_536), (3, 65_544), (2, 131_109), (41, 4096), (37, 5000), (70, 3001)])
@pytest.mark.parametrize("kind", ["matrix", "rows", "two rows"])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_packing_groups_of_several_blocks_equals_the_reference(
    threads: int, shape: tuple[int, int], kind: str, dtype: DType
) -> None:
    pytest.importorskip("numba", reason="the fast kernels need numba")
    from obm_format.kernels import cpu

    dtypes = dtype, dtype
    pair = pair_with_extremes(Maker(threads), shape, dtypes)
    assert_packs_alike(cpu.NumbaKernels(threads), pair, dtypes, group_bounds(shape, kind))


@pytest.mark.parametrize(("shape", "kind"), [((40, 33), "rows"), ((7, 1096), "matrix"), ((3, 4100), "columns")])
def test_packing_groups_on_bytes_keeps_no_difference(
    fast: Kernels, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], kind: str
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the difference was taken on its own")

    for kernels in (fast, getattr(fast, "_kernels", fast)):
        monkeypatch.setattr(type(kernels), "subtract", refuse)
    dtypes = DType.BF16, DType.BF16
    assert_packs_alike(fast, pair_with_extremes(Maker(2), shape, dtypes), dtypes, group_bounds(shape, kind))


def test_packing_a_difference_beyond_float32_gives_the_same_infinities(fast: Kernels) -> None:
    tuned, base = (np.full((2, 40), word, np.uint32) for word in (0x7F7F_FFFF, 0xFF7F_FFFF))
    bounds = group_bounds(tuned.shape, "rows")
    for pair in ((tuned, base), (base, tuned)):
        expected = REFERENCE.pack(pair[0], DType.F32, pair[1], DType.F32, bounds)
        got = fast.pack(pair[0], DType.F32, pair[1], DType.F32, bounds)
        assert np.isinf(expected[1]).all()
        assert all(np.array_equal(one, other) for one, other in zip(expected, got, strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
def test_packing_from_unaligned_memory_equals_the_reference(fast: Kernels, dtype: DType) -> None:
    shape, pair = (3, 1100), []
    for words in pair_with_extremes(Maker(4), shape, (dtype, dtype)):
        moved = np.zeros(words.nbytes + 1, np.uint8)[1:].view(words.dtype).reshape(shape)
        moved[:] = words
        pair.append(moved)
    assert_packs_alike(fast, pair, (dtype, dtype), group_bounds(shape, "rows"))


def test_the_reference_adds_lanes_blocks_and_tree_as_clause_11_3_says() -> None:
    d = np.random.default_rng(9).normal(size=65_536 + 35).astype(np.float32)
    total = [0.0, 0.0]
    for block in (d[:65_536], d[65_536:]):
        lanes = [[0.0] * 16, [0.0] * 16]
        for place, value in enumerate(block.tolist()):
            lanes[0][place % 16] += abs(value)
            lanes[1][place % 16] += value * value
        for which, lane in enumerate(lanes):
            for half in (8, 4, 2, 1):
                lane[:half] = [lane[i] + lane[i + half] for i in range(half)]
            total[which] += lane[0]
    s1, s2 = REFERENCE.group_sums(d, np.array([0, d.size]))
    assert [s1[0], s2[0]] == total


@pytest.mark.parametrize("kind", "spgevz")
@pytest.mark.parametrize("out_dtype", FLOATS)
def test_absorbed_equals_the_reference(fast: Kernels, kind: str, out_dtype: DType) -> None:
    maker, shape = Maker(8), (7, 1300)
    base = maker.words(shape, DType.BF16, 300.0)
    operand = mix(maker, shape, kind)[0]
    expected = REFERENCE.absorbed(base, DType.BF16, operand, out_dtype)
    assert fast.absorbed(base, DType.BF16, operand, out_dtype) == expected

"""`sign1`: hand-checked cases, planes, row ranges, refusals (obm-1 clauses 6.2-6.6, 11.2-11.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_parts import MemoryParts, part_bytes, record_of

from obm_format.codecs import sign1
from obm_format.codecs.alphas import AlphaChoice
from obm_format.codecs.base import Encoded, Span, whole
from obm_format.errors import CheckpointError, FormatError, UsageError
from obm_format.kernels import ReferenceKernels
from obm_format.kernels.words import Float32
from obm_format.model import AlphaRule, DType, Granularity, SignParams

KERNELS = ReferenceKernels()
MATRIX = AlphaChoice()
ROW = AlphaChoice(granularity=Granularity.ROW)


def encode(d: npt.ArrayLike, choice: AlphaChoice = MATRIX, planes: int = 1, rows: int | None = None) -> Encoded:
    d = np.asarray(d, dtype=np.float32)
    return sign1.encode(d, choice, rows=rows or (d.shape[0] if d.ndim > 1 else 1), planes=planes, kernels=KERNELS)


def decode(encoded: Encoded, shape: tuple[int, ...], span: Span | None = None) -> Float32:
    record = record_of(encoded, shape)
    return sign1.decode(record, MemoryParts(encoded), span or whole(record), KERNELS)


def stored_alphas(encoded: Encoded) -> npt.NDArray[Any]:
    dtype = "<f2" if encoded.params.alpha.dtype is DType.F16 else "<f4"
    return np.frombuffer(encoded.alphas, dtype=dtype)


def test_two_by_two_has_the_bits_and_alpha_of_n1() -> None:
    encoded = encode([[0.5, -0.25], [0, -1.25]])
    assert part_bytes(encoded, "bits0") == bytes([0b01, 0b01])
    assert stored_alphas(encoded).tolist() == [0.5]
    assert decode(encoded, (2, 2)).tolist() == [0.5, -0.5, 0.5, -0.5]


def test_both_zeros_are_set_bits_n3() -> None:
    encoded = encode([-0.0, 0.0, -1, 1])
    assert part_bytes(encoded, "bits0") == b"\x0b"
    assert stored_alphas(encoded).tolist() == [0.5]


def test_pad_bits_are_clear_and_refused_when_set_n4() -> None:
    encoded = encode(np.ones((3, 9)))
    parts, record = MemoryParts(encoded), record_of(encoded, (3, 9))
    assert part_bytes(encoded, "bits0") == bytes([0xFF, 1] * 3)
    parts.data["bits0"][3] |= 0x80
    with pytest.raises(FormatError) as error:
        sign1.decode(record, parts, whole(record), KERNELS)
    assert error.value.reason == "pad_bits_set"


@pytest.mark.parametrize(("mean", "word"), [(0.1, 0x2E66), (1e-3, 0x1419)])
def test_alpha_is_rounded_to_nearest_half_n5_n6(mean: float, word: int) -> None:
    encoded = encode(np.full((1, 64), mean))
    assert encoded.alphas == word.to_bytes(2, "little")


@pytest.mark.parametrize("mean", [1e-6, 2.98e-8, 3e-8, 1e-40])
def test_coarse_half_alpha_becomes_float_n7_n8_n9(mean: float) -> None:
    encoded = encode(np.full((1, 8), mean))
    assert encoded.params.alpha.dtype is DType.F32
    assert stored_alphas(encoded)[0] == np.float32(mean)


@pytest.mark.parametrize(("steps", "dtype"), [(500.4, DType.F32), (600.2, DType.F16)])
def test_half_may_be_off_by_one_part_in_2048(steps: float, dtype: DType) -> None:
    mean = steps * 2.0**-24  # a subnormal half
    assert 2**-12 < abs(round(steps) - steps) / steps < 2**-10
    assert encode(np.full((1, 8), mean)).params.alpha.dtype is dtype


def test_wide_sums_do_not_overflow_n10() -> None:
    assert stored_alphas(encode(np.full(70000, -2.0))).tolist() == [2.0]


def test_one_alpha_per_row_is_exact_n15() -> None:
    d = np.array([[1, -1], [3, -3]], dtype=np.float32)
    assert stored_alphas(encode(d)).tolist() == [2]
    encoded = encode(d, ROW)
    assert stored_alphas(encoded).tolist() == [1, 3]
    assert np.array_equal(decode(encoded, (2, 2)), d.reshape(-1))


def test_rules_give_mean_rms_and_projection() -> None:
    d = np.array([[3, -1, 0, 0]])
    found = [stored_alphas(encode(d, AlphaChoice(rule=rule)))[0] for rule in AlphaRule]
    assert found == [1, np.float16(np.sqrt(2.5)), 2.5]


def test_gain_multiplies_before_rounding() -> None:
    encoded = encode(np.full((1, 8), 0.1), AlphaChoice(gain="1.5"))
    assert stored_alphas(encoded)[0] == np.float16(float(np.float32(0.1)) * 1.5)
    assert encoded.params.alpha.gain == "1.5"


def test_zero_row_has_alpha_zero_and_set_bits() -> None:
    d = np.array([[0.0, -0.0, 0.0], [1, -1, 1]])
    encoded = encode(d, ROW)
    values = decode(encoded, (2, 3))
    assert part_bytes(encoded, "bits0")[0] == 0b111
    assert encoded.params.alpha.dtype is DType.F16
    assert values[:3].view(np.uint32).tolist() == [0, 0, 0]


def test_gain_zero_still_gives_the_least_positive_alpha() -> None:
    encoded = encode(np.ones((1, 8)), AlphaChoice(gain="0"))
    assert encoded.alphas == b"\x01\x00"


def test_infinite_alpha_by_gain_is_refused() -> None:
    with pytest.raises(UsageError):
        encode(np.full((1, 8), 3e38), AlphaChoice(gain="9999"))


def test_group_alphas_cover_the_short_last_group() -> None:
    d = np.repeat(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 64, axis=1)[:, :150]
    encoded = encode(d, AlphaChoice(granularity=Granularity.GROUP, group=64))
    assert stored_alphas(encoded).tolist() == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(decode(encoded, (2, 150)), d.reshape(-1).astype(np.float32))


def test_block_alphas_follow_runs_of_rows_and_neighbours_merge() -> None:
    d = np.repeat(np.array([1.0, 2.0, 3.0]), [2, 2, 1])[:, None] * np.ones((5, 4))
    choice = AlphaChoice(granularity=Granularity.BLOCK, blocks=((1, 2), (1, 2), (1, 1)))
    encoded = encode(d, choice)
    assert encoded.params.alpha.blocks == ((2, 2), (1, 1))
    assert stored_alphas(encoded).tolist() == [1, 2, 3]
    assert np.array_equal(decode(encoded, (5, 4)), d.reshape(-1).astype(np.float32))


@pytest.mark.parametrize(
    "choice",
    [
        AlphaChoice(granularity=Granularity.GROUP, group=32),
        AlphaChoice(granularity=Granularity.BLOCK, blocks=((1, 3),)),
        AlphaChoice(gain="1e3"),
        AlphaChoice(gain="-1"),
    ],
)
def test_unfitting_choice_is_refused(choice: AlphaChoice) -> None:
    with pytest.raises(UsageError) as error:
        encode(np.ones((2, 64)), choice)
    assert error.value.reason == "usage"


def test_infinite_task_vector_is_refused() -> None:
    with pytest.raises(CheckpointError) as error:
        encode([[1, np.inf]])
    assert error.value.reason == "not_finite_input"


def test_planes_encode_what_earlier_planes_leave() -> None:
    d = np.random.default_rng(1).normal(size=(8, 200)).astype(np.float32)
    choice = AlphaChoice(granularity=Granularity.ROW, rule=AlphaRule.RMS)
    encoded = encode(d, choice, planes=2)
    alpha = stored_alphas(encoded).astype(np.float32).reshape(2, 8, 1)
    assert np.array_equal(alpha[0, :, 0], np.float16(np.abs(d).mean(1, dtype=np.float64)))
    first = np.where(d >= 0, alpha[0], -alpha[0])
    left = d - first
    assert np.allclose(alpha[1, :, 0], np.sqrt((left * left).mean(1)), rtol=1e-3)
    second = np.where(left >= 0, alpha[1], -alpha[1])
    assert np.array_equal(decode(encoded, d.shape), (first + second).reshape(-1))
    assert encoded.params.planes == 2


def test_float_alphas_of_a_later_plane_widen_all_planes() -> None:
    d = np.array([[1.0, 1.0, 1.0, 1.0 + 2**-23]])
    encoded = encode(d, planes=2)
    assert encoded.params.alpha.dtype is DType.F32
    assert len(encoded.alphas) == 8


def test_planes_lower_the_error() -> None:
    d = np.random.default_rng(2).normal(size=(4, 512)).astype(np.float32)
    errors = [np.square(decode(encode(d, ROW, planes), d.shape) - d.reshape(-1)).mean() for planes in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < errors[0] / 4


CHOICES = [
    MATRIX,
    ROW,
    AlphaChoice(granularity=Granularity.GROUP, group=64),
    AlphaChoice(granularity=Granularity.BLOCK, blocks=((1, 1), (1, 2))),
]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_span_is_the_slice_of_the_whole(data: st.DataObject) -> None:
    choice = data.draw(st.sampled_from(CHOICES))
    rows = 3
    cols = data.draw(st.integers(1, 200))
    planes = data.draw(st.integers(1, 3))
    d = np.random.default_rng(cols).normal(size=(rows, cols)).astype(np.float32)
    encoded = encode(d, choice, planes)
    start = data.draw(st.integers(0, d.size - 1))
    span = Span(start, data.draw(st.integers(start + 1, d.size)))
    all_values = decode(encoded, d.shape)
    assert np.array_equal(decode(encoded, d.shape, span), all_values[span.start : span.stop])
    assert np.array_equal(np.sign(decode(encode(d, choice), d.shape)), np.sign(d.reshape(-1)))


def test_span_inside_one_row_reads_little() -> None:
    encoded = encode(np.random.default_rng(0).normal(size=(1, 80_000)))
    parts, record = MemoryParts(encoded), record_of(encoded, (80_000,))
    sign1.decode(record, parts, Span(40_001, 40_010), KERNELS)
    assert parts.asked == [("bits0", 5000, 5002)]


def test_operand_is_the_packed_tensor() -> None:
    d = np.random.default_rng(3).normal(size=(4, 20)).astype(np.float32)
    encoded = encode(d, ROW, 2)
    operand = sign1.operand(record_of(encoded, (4, 20)), MemoryParts(encoded))
    assert operand.shape == (4, 20)
    assert np.array_equal(KERNELS.sign_values(operand).reshape(-1), decode(encoded, (4, 20)))


def test_other_number_of_rows_changes_only_the_view() -> None:
    d = np.random.default_rng(4).normal(size=(2, 3, 16)).astype(np.float32)
    encoded = encode(d, ROW, rows=6)
    assert isinstance(encoded.params, SignParams)
    assert encoded.params.rows == 6
    assert stored_alphas(encoded).size == 6
    assert np.array_equal(np.sign(decode(encoded, d.shape)), np.sign(d.reshape(-1)))


@pytest.mark.parametrize("alpha", [-0.0, -1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mean", [0.5, 1e-7])
def test_bad_alpha_is_refused(alpha: float, mean: float) -> None:
    encoded = encode(np.full((2, 8), mean), ROW)
    parts, record = MemoryParts(encoded), record_of(encoded, (2, 8))
    dtype = "<f2" if encoded.params.alpha.dtype is DType.F16 else "<f4"
    parts.pool = np.array([mean, alpha], dtype=dtype).tobytes()
    with pytest.raises(FormatError) as error:
        sign1.decode(record, parts, whole(record), KERNELS)
    assert error.value.reason == "bad_alpha"


@pytest.mark.parametrize("cols", [5, 64, 100, 130])
@pytest.mark.parametrize("choice", [MATRIX, ROW, AlphaChoice(granularity=Granularity.GROUP, group=64)])
def test_clear_bit_under_alpha_zero_is_refused(cols: int, choice: AlphaChoice) -> None:
    encoded = encode(np.ones((3, cols)), choice)
    parts, record = MemoryParts(encoded), record_of(encoded, (3, cols))
    parts.pool = bytes(len(parts.pool))
    assert not sign1.decode(record, parts, whole(record), KERNELS).any()
    parts.data["bits0"][-1] &= 0xFE
    with pytest.raises(FormatError) as error:
        sign1.decode(record, parts, whole(record), KERNELS)
    assert error.value.reason == "bad_plane"

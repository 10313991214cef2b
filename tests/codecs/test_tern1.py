"""`tern1`: what is kept, its alphas, row ranges, refusals (obm-1 clauses 6.6 and 11.5)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_parts import MemoryParts, part_bytes, record_of

from obm_format.codecs import tern1
from obm_format.codecs.alphas import AlphaChoice
from obm_format.codecs.base import Encoded, Span, whole
from obm_format.errors import FormatError
from obm_format.kernels import ReferenceKernels
from obm_format.kernels.words import Float32
from obm_format.model import AlphaRule, DType, Granularity

KERNELS = ReferenceKernels()
MATRIX = AlphaChoice()
ROW = AlphaChoice(granularity=Granularity.ROW)
GROUP = AlphaChoice(granularity=Granularity.GROUP, group=64)


def encode(d: npt.ArrayLike, choice: AlphaChoice = MATRIX) -> Encoded:
    d = np.asarray(d, dtype=np.float32)
    return tern1.encode(d, choice, rows=d.shape[0], kernels=KERNELS)


def decode(encoded: Encoded, shape: tuple[int, ...], span: Span | None = None) -> Float32:
    record = record_of(encoded, shape)
    return tern1.decode(record, MemoryParts(encoded), span or whole(record), KERNELS)


def test_elements_above_seven_tenths_of_the_mean_are_kept() -> None:
    encoded = encode([[4, -4, 1, 0], [-1, 0, 0, 2]])  # mean 1.5, threshold 1.05
    assert part_bytes(encoded, "mask") == bytes([0b0011, 0b1000])
    assert part_bytes(encoded, "bits0") == bytes([0b0001, 0b1000])
    assert np.frombuffer(encoded.alphas, "<f2")[0] == np.float16(10 / 3)
    alpha = np.float32(np.float16(10 / 3))
    assert decode(encoded, (2, 4)).tolist() == [alpha, -alpha, 0, 0, 0, 0, 0, alpha]


@pytest.mark.parametrize(("small", "mask"), [(0.72, 0b1111), (0.6, 0b0111)])
def test_threshold_is_seven_tenths_of_the_mean(small: float, mask: int) -> None:
    assert part_bytes(encode([[1, 1, 1, small]]), "mask") == bytes([mask])


def test_equal_magnitudes_are_kept_and_zeros_are_not() -> None:
    d = np.array([[1.0, 1.0, 1.0]], dtype=np.float32)
    assert part_bytes(encode(d), "mask") == b"\x07"
    tiny = np.array([[0.0, 10.0]], dtype=np.float32)
    assert part_bytes(encode(tiny), "mask") == b"\x02"


def test_rules_count_kept_elements_alone() -> None:
    d = [[3.0, -5.0, 0.25, 0.0]]
    found = [np.frombuffer(encode(d, AlphaChoice(rule=rule)).alphas, "<f2")[0] for rule in AlphaRule]
    assert found == [4, np.float16(np.sqrt(17)), 4.25]


def test_zero_row_has_an_empty_mask_and_alpha_zero() -> None:
    encoded = encode([[0.0, -0.0], [1, 1]], ROW)
    assert part_bytes(encoded, "mask") == bytes([0, 3])
    assert part_bytes(encoded, "bits0") == bytes([0, 3])
    assert np.frombuffer(encoded.alphas, "<f2").tolist() == [0, 1]
    assert decode(encoded, (2, 2)).tolist() == [0, 0, 1, 1]


def test_coarse_alpha_becomes_float() -> None:
    assert encode(np.full((1, 8), 1e-6)).params.alpha.dtype is DType.F32


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_span_is_the_slice_of_the_whole(data: st.DataObject) -> None:
    choice = data.draw(st.sampled_from([AlphaChoice(), ROW, GROUP]))
    cols = data.draw(st.integers(1, 200))
    d = np.random.default_rng(cols).normal(size=(3, cols)).astype(np.float32)
    encoded = encode(d, choice)
    start = data.draw(st.integers(0, d.size - 1))
    span = Span(start, data.draw(st.integers(start + 1, d.size)))
    found = decode(encoded, d.shape)
    assert np.array_equal(decode(encoded, d.shape, span), found[span.start : span.stop])
    kept = found != 0
    assert np.array_equal(np.sign(found[kept]), np.sign(d.reshape(-1)[kept]))


@pytest.mark.parametrize(
    ("suffix", "value", "reason"),
    [("bits0", 0x10, "bad_plane"), ("bits0", 0x80, "pad_bits_set"), ("mask", 0x80, "pad_bits_set")],
)
def test_contradicting_planes_are_refused(suffix: str, value: int, reason: str) -> None:
    encoded = encode([[4, -4, 1, 0, 0, 0]])
    parts, record = MemoryParts(encoded), record_of(encoded, (1, 6))
    parts.data[suffix][0] |= value
    with pytest.raises(FormatError) as error:
        tern1.decode(record, parts, whole(record), KERNELS)
    assert error.value.reason == reason


def test_mask_under_alpha_zero_is_refused() -> None:
    encoded = encode([[4, -4, 1, 0]])
    parts, record = MemoryParts(encoded), record_of(encoded, (1, 4))
    parts.pool = b"\0\0"
    with pytest.raises(FormatError) as error:
        tern1.decode(record, parts, whole(record), KERNELS)
    assert error.value.reason == "bad_plane"

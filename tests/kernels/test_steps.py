"""Element streams: by hand, and the compiled ones byte for byte like the normative ones (obm-1 clauses 6.9 and 8.2)."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import obm_format.kernels as package
from obm_format.errors import UsageError
from obm_format.kernels import ReferenceSteps, Steps, select_steps
from obm_format.kernels.steps import ordinal, pattern, unzigzag, zigzag
from obm_format.kernels.words import Words
from obm_format.model import DType

FLOATS = [DType.F16, DType.BF16, DType.F32]
SIZES = [1, 2, 3, 31, 32, 33, 255, 1023, 1025, 5000, 9001]  # from 2112 elements on, exponents are sorted in runs
REFERENCE = ReferenceSteps()


@pytest.fixture
def fast() -> Steps:
    pytest.importorskip("numba", reason="the fast kernels need numba")
    return select_steps("numba")


def any_words(seed: int, numel: int, dtype: DType) -> Words:
    """Any bits, and the ends of all ranges among them."""
    width = 8 * dtype.itemsize
    words = np.random.default_rng(seed).integers(0, 1 << width, numel, dtype=np.uint64)
    edges = [0, 1, (1 << width) - 1, 1 << (width - 1), (1 << (width - 1)) - 1, (1 << (width - 1)) + 1]
    words[: len(edges)] = np.roll(edges, seed)[:numel]
    return words.astype(f"<u{dtype.itemsize}")


def both_ways(steps: Steps, tuned: Words, base: Words, dtype: DType, bucket: bool) -> bytes:
    data = steps.subtract(tuned, base, dtype, bucket).tobytes()
    out = np.zeros_like(tuned)
    steps.add(data, base, dtype, bucket, out)
    assert np.array_equal(out, tuned)
    return data


@pytest.mark.parametrize("bucket", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_compiled_steps_equal_the_reference(fast: Steps, dtype: DType, bucket: bool) -> None:
    for seed, numel in enumerate(SIZES):
        tuned, base = any_words(seed, numel, dtype), any_words(seed + 1, numel, dtype)
        expected = both_ways(REFERENCE, tuned, base, dtype, bucket)
        assert both_ways(fast, tuned, base, dtype, bucket) == expected
        nothing = both_ways(fast, base, base, dtype, bucket)
        assert not any(nothing)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FLOATS), st.booleans(), st.integers(1, 200), st.integers(0, 1 << 32))
def test_compiled_steps_equal_the_reference_on_anything(dtype: DType, bucket: bool, numel: int, seed: int) -> None:
    pytest.importorskip("numba", reason="the fast kernels need numba")
    tuned, base = any_words(seed, numel, dtype), any_words(seed + 1, numel, dtype)
    expected = both_ways(REFERENCE, tuned, base, dtype, bucket)
    assert both_ways(select_steps("numba"), tuned, base, dtype, bucket) == expected


def test_one_exponent_everywhere_and_every_exponent_once(fast: Steps) -> None:
    for base in (np.full(4099, 0x3F80, np.uint16), np.arange(1 << 16, dtype=np.uint16)):
        tuned = base[::-1].copy()
        assert both_ways(fast, tuned, base, DType.BF16, True) == both_ways(REFERENCE, tuned, base, DType.BF16, True)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_compiled_shuffle_equals_the_reference(fast: Steps, width: int) -> None:
    for numel in (0, *SIZES):
        words = np.random.default_rng(numel).integers(0, 256, numel * width).astype(np.uint8).view(f"<u{width}")
        data = fast.shuffle(words).tobytes()
        assert data == REFERENCE.shuffle(words).tobytes()
        out = np.zeros_like(words)
        fast.unshuffle(data, out)
        assert np.array_equal(out, words)


def test_shuffle_groups_bytes_by_place_and_inverts() -> None:
    words = np.array([0x0102, 0x0304, 0x0506], np.uint16)
    assert REFERENCE.shuffle(words).tolist() == [2, 4, 6, 1, 3, 5]
    out = np.empty_like(words)
    REFERENCE.unshuffle(REFERENCE.shuffle(words).tobytes(), out)
    assert np.array_equal(out, words)


def test_ordinals_ascend_with_the_value_and_invert() -> None:
    words = np.arange(1 << 16, dtype=np.uint16)
    finite = words[(words & 0x7C00) != 0x7C00]
    values = finite.view(np.float16).astype(np.float32)
    by_value = finite[np.argsort(values, kind="stable")]
    ordinals = ordinal(by_value).astype(np.int64)
    differ = np.diff(by_value.view(np.float16).astype(np.float32)) > 0
    assert (np.diff(ordinals)[differ] > 0).all()
    assert np.array_equal(pattern(ordinal(words)), words)


def test_zigzag_counts_outwards_and_inverts() -> None:
    steps = np.array([0, -1, 1, -2, 2, -32768, 32767], np.int16).view(np.uint16)
    assert zigzag(steps).tolist() == [0, 1, 2, 3, 4, 65535, 65534]
    everything = np.arange(1 << 16, dtype=np.uint16)
    assert np.array_equal(unzigzag(zigzag(everything)), everything)


@pytest.mark.parametrize("steps", ["reference", "numba"])
def test_what_does_not_fit_is_refused_before_a_byte_is_touched(steps: str) -> None:
    if steps == "numba":
        pytest.importorskip("numba", reason="the fast kernels need numba")
    chosen, words = select_steps(steps), np.zeros(8, np.uint16)
    data = bytes(16)
    wrong = [
        lambda: chosen.unshuffle(data[:-1], words),
        lambda: chosen.add(data[:-1], words, DType.BF16, False, words),
        lambda: chosen.add(data, words[:-1], DType.BF16, False, words),
        lambda: chosen.add(data, words.astype(np.uint32), DType.BF16, True, words),
        lambda: chosen.add(data, words, DType.I16, True, words),
        lambda: chosen.subtract(words, words[:-1], DType.BF16, False),
        lambda: chosen.subtract(words[::2], words[::2], DType.BF16, False),
    ]
    for call in wrong:
        with pytest.raises(UsageError) as error:
            call()
        assert error.value.reason == "bad_shape"


def test_without_numba_the_reference_does(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refusing(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith(("obm_format.kernels.cpu", "numba")):
            raise ImportError("no numba here")
        return real(name, *args, **kwargs)  # type: ignore[arg-type] # passed through as they came

    monkeypatch.setattr(builtins, "__import__", refusing)
    monkeypatch.setattr(package, "_told", set())
    monkeypatch.delenv("OBM_KERNELS", raising=False)
    assert select_steps().name == "reference"
    with pytest.raises(UsageError) as caught:
        select_steps("numba")
    assert caught.value.reason == "missing_dependency"
    with pytest.raises(UsageError):
        select_steps("cuda")

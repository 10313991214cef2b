# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types of compiled functions
# mypy: allow-untyped-defs, allow-untyped-calls
"""`Steps` compiled by numba: each call one pass over a cut, without the GIL and without threads of its own.

Words of 2 bytes are worked on as 32-bit integers, like those of 4; with buckets the order is that of a counting sort.
Source: obm-1 clauses 6.9 and 8.2; `steps` is the norm.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from obm_format.kernels.cpu_compile import kernel, step
from obm_format.kernels.cpu_elements import longs_at, shorts_at, u32
from obm_format.kernels.cpu_names import carray, pointer
from obm_format.kernels.steps import EXPONENT, Bytes, ReferenceSteps, check_pair, check_stream
from obm_format.kernels.words import Words
from obm_format.model import DType

u64 = np.uint64  # indices of this type do not wrap around
_FIELDS = 256  # exponent fields have 8 bits at most
_RUNS = 4  # runs of a cut that are counted side by side


class NumbaSteps:
    """`Steps` compiled for this processor."""

    name = "numba"

    def __init__(self) -> None:
        self._reference = ReferenceSteps()
        self._of_thread = threading.local()

    def shuffle(self, words: Words) -> Bytes:
        """See `Steps.shuffle`."""
        if words.itemsize not in (2, 4):
            return self._reference.shuffle(words)
        words = np.ascontiguousarray(words)
        data = np.empty(words.nbytes, np.uint8)
        loop = part_shorts if words.itemsize == 2 else part_longs
        loop(words.ctypes.data, data.ctypes.data, words.size)
        return data

    def unshuffle(self, data: bytes, out: Words) -> None:
        """See `Steps.unshuffle`."""
        if out.itemsize not in (2, 4):
            self._reference.unshuffle(data, out)
            return
        check_stream(data, out)
        loop = join_shorts if out.itemsize == 2 else join_longs
        loop(_address(data), out.ctypes.data, out.size)

    def subtract(self, tuned: Words, base: Words, dtype: DType, bucket: bool) -> Bytes:
        """See `Steps.subtract`."""
        check_pair(tuned, base, dtype)
        is_short, n = tuned.itemsize == 2, tuned.size
        data = np.empty(tuned.nbytes, np.uint8)
        new, old, to = tuned.ctypes.data, base.ctypes.data, data.ctypes.data
        if bucket:
            numbers = np.empty_like(tuned)
            (step_shorts if is_short else step_longs)(new, old, numbers.ctypes.data, n)
            (sort_shorts if is_short else sort_longs)(numbers.ctypes.data, old, to, n, *EXPONENT[dtype])
        else:
            (subtract_shorts if is_short else subtract_longs)(new, old, to, n)
        return data

    def add(self, data: bytes, base: Words, dtype: DType, bucket: bool, out: Words) -> None:
        """See `Steps.add`."""
        check_stream(data, out)
        check_pair(out, base, dtype)
        is_short, n = out.itemsize == 2, out.size
        stream, old, to = _address(data), base.ctypes.data, out.ctypes.data
        if bucket:
            if is_short:
                unsort_shorts(stream, old, to, n, *EXPONENT[dtype], self._scratch(n).ctypes.data)
            else:
                unsort_longs(stream, old, to, n, *EXPONENT[dtype])
            (move_shorts if is_short else move_longs)(old, to, n)
        else:
            (add_shorts if is_short else add_longs)(stream, old, to, n)

    def _scratch(self, n: int) -> npt.NDArray[np.uint16]:
        """At least n words of this thread's own, kept from cut to cut: new memory is a page fault every 4 KiB."""
        held: npt.NDArray[np.uint16] | None = getattr(self._of_thread, "scratch", None)
        if held is None or held.size < n:
            held = self._of_thread.scratch = np.empty(n, np.uint16)
        return held


def _address(data: bytes) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data


@step
def _bytes_at(address, n):
    return carray(pointer(address), (n,), np.uint8)


@step
def _step(new, old, bits):
    """The zigzag number of the step from one pattern of `bits` bits to another."""
    ones, top = u32(u32(0xFFFFFFFF) >> u32(32 - bits)), u32(u32(1) << u32(bits - 1))
    high = u32(new ^ (ones if new >= top else top))
    low = u32(old ^ (ones if old >= top else top))
    e = u32(u32(high - low) & ones)
    return u32(u32(u32(e << u32(1)) & ones) ^ (ones if e >= top else u32(0)))


@step
def _moved(old, number, bits):
    """The pattern that is a zigzag number of steps away; the inverse of `_step`."""
    ones, top = u32(u32(0xFFFFFFFF) >> u32(32 - bits)), u32(u32(1) << u32(bits - 1))
    low = u32(old ^ (ones if old >= top else top))
    e = u32(u32(number >> u32(1)) ^ u32(u32(0) - u32(number & u32(1))))
    high = u32(u32(low + e) & ones)
    return u32(high ^ (top if high >= top else ones))


# --- words and their bytes by place -------------------------------------------------------------------------


@kernel
def part_shorts(words, data, n):
    """Shuffle n words of 2 bytes."""
    values, low, high = shorts_at(words, n), _bytes_at(data, n), _bytes_at(data + n, n)
    for i in range(n):
        low[i] = np.uint8(values[i])
        high[i] = np.uint8(values[i] >> 8)


@kernel
def part_longs(words, data, n):
    """Shuffle n words of 4 bytes."""
    values = longs_at(words, n)
    for place in range(4):
        plane, shift = _bytes_at(data + place * n, n), u32(8 * place)
        for i in range(n):
            plane[i] = np.uint8(values[i] >> shift)


@kernel
def join_shorts(data, words, n):
    """Unshuffle n words of 2 bytes."""
    values, low, high = shorts_at(words, n), _bytes_at(data, n), _bytes_at(data + n, n)
    for i in range(n):
        values[i] = np.uint16(u32(low[i]) | u32(u32(high[i]) << u32(8)))


@kernel
def join_longs(data, words, n):
    """Unshuffle n words of 4 bytes."""
    values = longs_at(words, n)
    a, b, c, d = _bytes_at(data, n), _bytes_at(data + n, n), _bytes_at(data + 2 * n, n), _bytes_at(data + 3 * n, n)
    for i in range(n):
        values[i] = _joined(a[i], b[i], c[i], d[i])


@step
def _joined(a, b, c, d):
    low, high = u32(u32(a) | u32(u32(b) << u32(8))), u32(u32(c) | u32(u32(d) << u32(8)))
    return u32(low | u32(high << u32(16)))


# --- steps --------------------------------------------------------------------------------------------------


@kernel
def subtract_shorts(tuned, base, data, n):
    """Shuffled steps of n words of 2 bytes."""
    new, old, low, high = shorts_at(tuned, n), shorts_at(base, n), _bytes_at(data, n), _bytes_at(data + n, n)
    for i in range(n):
        number = _step(u32(new[i]), u32(old[i]), 16)
        low[i] = np.uint8(number)
        high[i] = np.uint8(number >> u32(8))


@kernel
def subtract_longs(tuned, base, data, n):
    """Shuffled steps of n words of 4 bytes."""
    new, old = longs_at(tuned, n), longs_at(base, n)
    a, b, c, d = _bytes_at(data, n), _bytes_at(data + n, n), _bytes_at(data + 2 * n, n), _bytes_at(data + 3 * n, n)
    for i in range(n):
        number = _step(new[i], old[i], 32)
        a[i], b[i] = np.uint8(number), np.uint8(number >> u32(8))
        c[i], d[i] = np.uint8(number >> u32(16)), np.uint8(number >> u32(24))


@kernel
def add_shorts(data, base, out, n):
    """Words of 2 bytes from their shuffled steps; n of them."""
    new, old, low, high = shorts_at(out, n), shorts_at(base, n), _bytes_at(data, n), _bytes_at(data + n, n)
    for i in range(n):
        number = u32(u32(low[i]) | u32(u32(high[i]) << u32(8)))
        new[i] = np.uint16(_moved(u32(old[i]), number, 16))


@kernel
def add_longs(data, base, out, n):
    """Words of 4 bytes from their shuffled steps; n of them."""
    new, old = longs_at(out, n), longs_at(base, n)
    a, b, c, d = _bytes_at(data, n), _bytes_at(data + n, n), _bytes_at(data + 2 * n, n), _bytes_at(data + 3 * n, n)
    for i in range(n):
        new[i] = _moved(old[i], _joined(a[i], b[i], c[i], d[i]), 32)


# --- steps, sorted by exponent ------------------------------------------------------------------------------


@kernel
def step_shorts(tuned, base, numbers, n):
    """Steps of n words of 2 bytes, not shuffled."""
    new, old, into = shorts_at(tuned, n), shorts_at(base, n), shorts_at(numbers, n)
    for i in range(n):
        into[i] = np.uint16(_step(u32(new[i]), u32(old[i]), 16))


@kernel
def step_longs(tuned, base, numbers, n):
    """Steps of n words of 4 bytes, not shuffled."""
    new, old, into = longs_at(tuned, n), longs_at(base, n), longs_at(numbers, n)
    for i in range(n):
        into[i] = _step(new[i], old[i], 32)


@kernel
def move_shorts(base, out, n):
    """Steps of n words of 2 bytes, not shuffled, become the words."""
    old, new = shorts_at(base, n), shorts_at(out, n)
    for i in range(n):
        new[i] = np.uint16(_moved(u32(old[i]), u32(new[i]), 16))


@kernel
def move_longs(base, out, n):
    """Steps of n words of 4 bytes, not shuffled, become the words."""
    old, new = longs_at(base, n), longs_at(out, n)
    for i in range(n):
        new[i] = _moved(old[i], new[i], 32)


@step
def _field(old, i, shift, mask):
    return u64(u32(u32(old[i]) >> u32(shift)) & u32(mask))


@step
def _run_size(n):
    """Elements of every run but the last; runs a power of two apart would collide in the cache."""
    return u64(max(0, n // _RUNS - 528))


@step
def _starts(old, shift, mask, n):
    """Where the elements of each run and exponent field begin in sorted order: uint64[_RUNS, _FIELDS].

    The first row is where each field begins. Work in runs, because equal fields that follow one another wait.
    """
    starts, size = np.zeros((_RUNS, _FIELDS), np.uint64), _run_size(n)
    for j in range(size):
        for run in range(u64(_RUNS)):
            starts[run, _field(old, u64(run * size + j), shift, mask)] += u64(1)
    for i in range(u64(u64(_RUNS) * size), u64(n)):
        starts[_RUNS - 1, _field(old, i, shift, mask)] += u64(1)
    place = u64(0)
    for field in range(_FIELDS):
        for run in range(_RUNS):
            count = starts[run, field]
            starts[run, field] = place
            place += count
    return starts


@step
def _next(starts, field):
    """The place of the next element of a field."""
    place = starts[field]
    starts[field] = place + u64(1)
    return place


@kernel
def sort_shorts(numbers, base, data, n, shift, mask):
    """Shuffle n words of 2 bytes in the order of the exponents of the backbone."""
    values, old, low, high = shorts_at(numbers, n), shorts_at(base, n), _bytes_at(data, n), _bytes_at(data + n, n)
    starts = _starts(old, shift, mask, n)[0]
    for i in range(u64(n)):
        place = _next(starts, _field(old, i, shift, mask))
        low[place] = np.uint8(values[i])
        high[place] = np.uint8(values[i] >> 8)


@kernel
def sort_longs(numbers, base, data, n, shift, mask):
    """Shuffle n words of 4 bytes in the order of the exponents of the backbone."""
    values, old = longs_at(numbers, n), longs_at(base, n)
    a, b, c, d = _bytes_at(data, n), _bytes_at(data + n, n), _bytes_at(data + 2 * n, n), _bytes_at(data + 3 * n, n)
    starts = _starts(old, shift, mask, n)[0]
    for i in range(u64(n)):
        place, value = _next(starts, _field(old, i, shift, mask)), values[i]
        a[place], b[place] = np.uint8(value), np.uint8(value >> u32(8))
        c[place], d[place] = np.uint8(value >> u32(16)), np.uint8(value >> u32(24))


@kernel
def unsort_shorts(data, base, numbers, n, shift, mask, scratch):
    """The inverse of `sort_shorts`; four runs side by side. `scratch` has room for n words."""
    values, old, ordered = shorts_at(numbers, n), shorts_at(base, n), shorts_at(scratch, n)
    join_shorts(data, scratch, n)
    starts, size = _starts(old, shift, mask, n), _run_size(n)
    first, second, third, fourth = starts[0], starts[1], starts[2], starts[3]
    for i in range(size):
        j, k, m = u64(i + size), u64(i + size + size), u64(i + size + size + size)
        values[i] = ordered[_next(first, _field(old, i, shift, mask))]
        values[j] = ordered[_next(second, _field(old, j, shift, mask))]
        values[k] = ordered[_next(third, _field(old, k, shift, mask))]
        values[m] = ordered[_next(fourth, _field(old, m, shift, mask))]
    for i in range(u64(u64(_RUNS) * size), u64(n)):
        values[i] = ordered[_next(fourth, _field(old, i, shift, mask))]


@kernel
def unsort_longs(data, base, numbers, n, shift, mask):
    """The inverse of `sort_longs`."""
    values, old = longs_at(numbers, n), longs_at(base, n)
    a, b, c, d = _bytes_at(data, n), _bytes_at(data + n, n), _bytes_at(data + 2 * n, n), _bytes_at(data + 3 * n, n)
    starts = _starts(old, shift, mask, n)[0]
    for i in range(u64(n)):
        place = _next(starts, _field(old, i, shift, mask))
        values[i] = _joined(a[place], b[place], c[place], d[place])

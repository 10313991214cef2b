"""The fast kernels: compiled loops of `cpu_loops`, shared among threads of the call.

Every call starts and ends its own threads and hands them contiguous runs of tiles, so it may itself be called from many
threads, in forked children, and beside other thread pools (numba's own pool allows none of this everywhere). The
division into tiles does not depend on the number of threads, and no result does. Source: `contract.Kernels`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from obm_format.kernels import cpu_flat as flat
from obm_format.kernels import cpu_loops as loops
from obm_format.kernels import cpu_mixed as mixed
from obm_format.kernels import cpu_select as select
from obm_format.kernels import cpu_sums as sums
from obm_format.kernels import cpu_tables as tables
from obm_format.kernels.contract import (
    Bits,
    Bounds,
    Combine,
    Combined,
    Counts,
    ExactOperand,
    Float64,
    Operand,
    Sight,
    SignOperand,
    TrimmedOperand,
    ValueOperand,
    ZeroOperand,
    check_counts,
    check_groups,
    check_magnitudes,
    check_operand,
    check_operands,
    check_output,
    check_pack,
    check_pair,
    check_same_words,
    check_values_output,
    check_weights,
    combined_is_absent,
)
from obm_format.kernels.cpu_elements import BF16, F16, F32
from obm_format.kernels.cpu_processor import HAS_SHUFFLES
from obm_format.kernels.reference import ReferenceKernels
from obm_format.kernels.runs import Int64, add_in_order, are_on_bytes, split_groups
from obm_format.kernels.words import EXPONENT, Float32, Words, cast
from obm_format.model import DType

_KINDS = {DType.F16: F16, DType.BF16: BF16, DType.F32: F32}
_TOO_LARGE = {DType.BF16: 0x7F7F_8000, DType.F32: 0x7F80_0000}  # magnitudes from here on are rounded to infinity
_COMBINES = {Combine.SUM: loops.SUM, Combine.MEAN: loops.MEAN, Combine.TIES: loops.TIES}
_INLINE = 1 << 16  # elements below which threads cost more than they bring
_SHARES = 4  # runs per thread, so that a slow core does not hold up the others
_TABLE_WORTH = 128  # columns under one table from which on it pays
_ALL_COLUMNS = 1 << 60  # a group that no row of columns exceeds
_NO_WEIGHTS = np.empty(0, np.float32)
_Result = TypeVar("_Result")


class NumbaKernels:
    """`Kernels` compiled by numba for this processor.

    Args:
        threads: most threads per call; None for as many as this process may use processors.
    """

    name = "numba"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = max(1, threads if threads is not None else len(os.sched_getaffinity(0)))
        self._reference = ReferenceKernels()

    def subtract(self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType) -> Float32:
        """See `Kernels.subtract`."""
        check_pair(tuned, tuned_dtype, base, base_dtype)
        d = np.empty(base.shape, np.float32)
        operand = ExactOperand(words=tuned.reshape(1, -1), dtype=tuned_dtype)
        self._values(operand, base.reshape(1, -1), base_dtype, d)
        return d

    def group_sums(self, d: Float32, bounds: Bounds) -> tuple[Float64, Float64]:
        """See `Kernels.group_sums`."""
        check_groups(d, bounds)
        groups, runs = split_groups(bounds)
        address = d.ctypes.data

        def work(start: int, stop: int) -> None:
            sums.sum_runs(address, runs, start, stop)

        self._share(len(groups), d.size, work)
        return add_in_order(runs, groups, len(bounds) - 1)

    def pack_signs(self, d: Float32) -> Bits:
        """See `Kernels.pack_signs`."""
        check_operand(ValueOperand(values=d), d.shape, "d")
        d = np.ascontiguousarray(d)
        rows, cols = d.shape
        bits = np.empty((rows, -(-cols // 8)), np.uint8)

        def work(start: int, stop: int) -> None:
            loops.pack_tiles(d.ctypes.data, bits.ctypes.data, cols, start, stop)

        self._share(_tiles(rows, cols), d.size, work)
        return bits

    def pack(
        self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, bounds: Bounds
    ) -> tuple[Bits, Float64, Float64]:
        """See `Kernels.pack`."""
        check_pack(tuned, tuned_dtype, base, base_dtype, bounds)
        groups, runs = split_groups(bounds)
        rows, cols = base.shape
        if not base.size or not are_on_bytes(runs, cols):  # groups that begin within a byte are rare
            d = self.subtract(tuned, tuned_dtype, base, base_dtype)
            return self.pack_signs(d), *self.group_sums(d.reshape(-1), bounds)
        bits = np.empty((rows, -(-cols // 8)), np.uint8)
        kinds = _KINDS[tuned_dtype], _KINDS[base_dtype]
        pair = sums.Pair(tuned.ctypes.data, kinds[0], base.ctypes.data, kinds[1], bits.ctypes.data, cols)

        def work(start: int, stop: int) -> None:
            sums.pack_runs(pair, runs, start, stop)

        self._share(len(groups), base.size, work)
        return bits, *add_in_order(runs, groups, len(bounds) - 1)

    def sign_values(self, operand: SignOperand, out: Float32 | None = None) -> Float32:
        """See `Kernels.sign_values`."""
        check_operand(operand, operand.shape, "operand")
        values = np.empty(operand.shape, np.float32) if out is None else out
        check_values_output(values, operand.shape)
        self._values(operand, None, DType.F32, values)
        return values

    def merge(  # noqa: PLR0913 - a merge has this many parts
        self,
        base: Words,
        base_dtype: DType,
        routed: Operand | None,
        others: Sequence[Combined],
        *,
        combine: Combine,
        weights: Sequence[float],
        lam: float,
        out: Words,
        out_dtype: DType,
    ) -> Sight | None:
        """See `Kernels.merge`; exact operands alone are seen."""
        check_operands(base, base_dtype, [*others] if routed is None else [*others, routed])
        check_output(out, out_dtype, base.shape)
        check_weights(others, weights)
        if combined_is_absent(others, lam):
            others, weights = (), ()
        source, source_dtype = base, base_dtype
        if isinstance(routed, ExactOperand):
            source, source_dtype = routed.words, routed.dtype
        shifting = [*others, routed] if isinstance(routed, SignOperand | ValueOperand) else [*others]
        if not shifting:
            self._copy(source, source_dtype, out, out_dtype)
            return None
        addresses = _Addresses(shifting)
        job = _plain_job(addresses, base, base_dtype, base.shape[1])._replace(
            source=source.ctypes.data,
            source_kind=_KINDS[source_dtype],
            out=out.ctypes.data,
            out_kind=_KINDS[out_dtype],
            others=len(others),
            shifts=len(shifting) - len(others),
            combine=_COMBINES[combine],
            lam=np.float32(lam),
        )
        operands = loops.Operands(addresses.ops, addresses.planes, np.array(weights, np.float32))
        if _is_flat(job, addresses.ops):
            seen = self._share(-(-base.size // loops.TILE), base.size, _flat_work(job, operands, base.size))
            return _sight(seen, out_dtype)
        job = job._replace(table=_table_columns(shifting, addresses.planes, job.cols))
        self._share(_tiles(*base.shape), base.size, _tiled_work(job, operands, shifting))
        return None

    def count_magnitudes(self, values: Float32, high: int | None, counts: Counts) -> None:
        """See `Kernels.count_magnitudes`."""
        check_magnitudes(values)
        check_counts(high, counts)
        address = values.ctypes.data

        def work(start: int, stop: int) -> Counts:
            own = np.zeros_like(counts)
            if high is None:
                select.count_high(address + 4 * start, stop - start, own)
            else:
                select.count_low(address + 4 * start, stop - start, high, own)
            return own

        for found in self._share(values.size, values.size, work):
            counts += found

    def count_differences(
        self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, high: int | None, counts: Counts
    ) -> None:
        """See `Kernels.count_differences`."""
        check_pair(tuned, tuned_dtype, base, base_dtype)
        check_counts(high, counts)
        pair = select.Difference(tuned.ctypes.data, _KINDS[tuned_dtype], base.ctypes.data, _KINDS[base_dtype])

        def work(start: int, stop: int) -> Counts:
            own = np.zeros_like(counts)
            if high is None:
                select.count_differences_high(pair, start, stop, own)
            else:
                select.count_differences_low(pair, start, stop, high, own)
            return own

        for found in self._share(base.size, base.size, work):
            counts += found

    def nth_difference(
        self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, threshold: float, number: int
    ) -> tuple[int, int]:
        """See `Kernels.nth_difference`; on the calling thread."""
        check_pair(tuned, tuned_dtype, base, base_dtype)
        pair = select.Difference(tuned.ctypes.data, _KINDS[tuned_dtype], base.ctypes.data, _KINDS[base_dtype])
        place, seen = select.nth_difference(pair, base.size, np.float32(threshold).view(np.uint32), number)
        return int(place), int(seen)

    def keep_largest(self, values: Float32, threshold: float, last: int) -> Float32:
        """See `Kernels.keep_largest`."""
        check_magnitudes(values)
        out = np.empty_like(values)
        bits = int(np.float32(threshold).view(np.uint32))
        head = max(0, min(values.size, last + 1))  # from there on equal magnitudes go
        places = values.ctypes.data, out.ctypes.data

        def work(start: int, stop: int) -> None:
            for begin, end, least in ((start, min(stop, head), bits), (max(start, head), stop, bits + 1)):
                if begin < end:
                    select.keep_from(places[0] + 4 * begin, end - begin, np.uint32(least), places[1] + 4 * begin)

        self._share(values.size, values.size, work)
        return out

    def keep_drawn(self, values: Float32, key: int, start: int, limit: int) -> Float32:
        """See `Kernels.keep_drawn`."""
        check_magnitudes(values)
        out = np.empty_like(values)
        places = values.ctypes.data, out.ctypes.data

        def work(begin: int, end: int) -> None:
            first = np.uint64(start + begin + 1)
            drawn = np.uint64(key), first, np.uint64(limit)
            select.keep_drawn(places[0] + 4 * begin, end - begin, drawn, places[1] + 4 * begin)

        self._share(values.size, values.size, work)
        return out

    def absorbed(self, base: Words, base_dtype: DType, operand: Operand, out_dtype: DType) -> tuple[int, int]:
        """See `Kernels.absorbed`."""
        check_operands(base, base_dtype, [operand])
        addresses = _Addresses([operand])
        job = _plain_job(addresses, base, base_dtype, base.shape[1])._replace(out_kind=_KINDS[out_dtype])
        operands = loops.Operands(addresses.ops, addresses.planes, _NO_WEIGHTS)

        def work(start: int, stop: int) -> tuple[int, int]:
            counts: tuple[int, int] = loops.absorbed_tiles(job, operands, _scratch(operands), start, stop)
            return counts

        counts = self._share(_tiles(*base.shape), base.size, work)
        return sum(count[0] for count in counts), sum(count[1] for count in counts)

    def moved(self, a: Words, b: Words) -> int:
        """See `Kernels.moved`."""
        check_same_words(a, b)
        flat_a, flat_b = a.reshape(-1), b.reshape(-1)
        loop = {2: select.unequal_shorts, 4: select.unequal_longs}.get(a.itemsize)

        def work(start: int, stop: int) -> int:
            if loop is None:
                return self._reference.moved(flat_a[start:stop], flat_b[start:stop])
            return int(loop(a.ctypes.data, b.ctypes.data, start, stop))

        return sum(self._share(a.size, a.size, work))

    def first_not_finite(self, words: Words, dtype: DType) -> int | None:
        """See `Kernels.first_not_finite`."""
        if not dtype.is_float or not words.flags.c_contiguous:
            return self._reference.first_not_finite(words, dtype)
        loop = select.first_full_short if words.itemsize == 2 else select.first_full_long
        place = loop(words.ctypes.data, words.size, words.dtype.type(EXPONENT[dtype]))
        return None if place < 0 else int(place)

    def _values(self, operand: Operand, base: Words | None, base_dtype: DType, out: Float32) -> None:
        rows, cols = (1, out.size) if base is not None else out.shape
        addresses = _Addresses([operand])
        job = _plain_job(addresses, base, base_dtype, cols)._replace(out=out.ctypes.data)
        operands = loops.Operands(addresses.ops, addresses.planes, _NO_WEIGHTS)

        def work(start: int, stop: int) -> None:
            loops.value_tiles(job, operands, _scratch(operands), start, stop)

        self._share(_tiles(rows, cols), out.size, work)

    def _copy(self, source: Words, dtype: DType, out: Words, out_dtype: DType) -> None:
        flat, flat_out = source.reshape(-1), out.reshape(-1)

        def work(start: int, stop: int) -> None:
            for at in range(start, stop, _INLINE):
                end = min(stop, at + _INLINE)
                flat_out[at:end] = cast(flat[at:end], dtype, out_dtype)

        self._share(flat.size, flat.size, work)

    def _share(self, items: int, elements: int, work: Callable[[int, int], _Result]) -> list[_Result]:
        """Call `work(start, stop)` for runs that cover `items`, on this call's threads; the results in order."""
        if not items:
            return []
        runs = min(items, self.threads * _SHARES, max(1, elements // _INLINE))
        if runs == 1 or self.threads == 1:
            return [work(0, items)]
        results: list[_Result] = [None] * runs  # type: ignore[list-item] # each run puts its own
        next_runs = iter(range(runs))  # shared: whoever is free takes the next run, the calling thread too

        def serve() -> None:
            for run in next_runs:
                results[run] = work(items * run // runs, items * (run + 1) // runs)

        with ThreadPoolExecutor(self.threads - 1) as pool:
            others = [pool.submit(serve) for _ in range(min(self.threads, runs) - 1)]
            serve()
        for other in others:
            other.result()
        return results


class _Addresses:
    """Operands as tables of addresses for `cpu_loops`; keeps the arrays alive while it lives."""

    def __init__(self, operands: Sequence[Combined]) -> None:
        self._alive: list[npt.NDArray[np.generic]] = []
        planes: list[tuple[int, ...]] = []
        ops = []
        for operand in operands:
            row = self._row(operand, len(planes))
            ops.append((*row, *[0] * (5 - len(row))))
            if isinstance(operand, SignOperand):
                planes.extend(self._planes(operand))
        self.ops: Int64 = np.array(ops, np.int64).reshape(-1, 5)
        self.planes: Int64 = np.array(planes, np.int64).reshape(-1, 6)
        self.needs_base = int(any(isinstance(operand, ExactOperand | TrimmedOperand) for operand in operands))

    def _row(self, operand: Combined, first_plane: int) -> tuple[int, ...]:
        match operand:
            case SignOperand(bits=bits):
                return loops.SIGN, first_plane, len(bits)
            case ExactOperand(words=words, dtype=dtype):
                self._alive.append(words)
                return loops.EXACT, words.ctypes.data, _KINDS[dtype]
            case TrimmedOperand(words=words, dtype=dtype, threshold=threshold, last=last):
                self._alive.append(words)
                head = max(0, min(words.size, last + 1))
                return loops.TRIMMED, words.ctypes.data, _KINDS[dtype], int(np.float32(threshold).view(np.uint32)), head
            case ValueOperand(values=values):
                values = np.ascontiguousarray(values)
                self._alive.append(values)
                return loops.VALUE, values.ctypes.data, F32
            case ZeroOperand():
                return loops.ZERO, 0, 0

    def _planes(self, operand: SignOperand) -> list[tuple[int, ...]]:
        rows = []
        for bits, alphas in zip(operand.bits, operand.alphas, strict=True):
            packed = bits if bits.strides[1] == 1 else np.ascontiguousarray(bits)
            self._alive += [packed, alphas]
            group = operand.group if operand.group < operand.cols else _ALL_COLUMNS
            rows.append((packed.ctypes.data, packed.strides[0], alphas.ctypes.data, *alphas.strides, group))
        return rows


def _plain_job(addresses: _Addresses, base: Words | None, base_dtype: DType, cols: int) -> loops.Job:
    """A job for loops that look only at one operand, the base, the columns and the output."""
    address, kind = 0 if base is None else base.ctypes.data, _KINDS[base_dtype]
    return loops.Job(
        base=address,
        base_kind=kind,
        source=address,
        source_kind=kind,
        out=0,
        out_kind=F32,
        cols=cols,
        others=0,
        shifts=1,
        combine=loops.SUM,
        lam=np.float32(0),
        table=0,
        needs_base=addresses.needs_base,
    )


def _scratch(operands: loops.Operands) -> Float32:
    return np.empty((loops.FIRST + len(operands.ops), loops.ROW), np.float32)


def _tile_work(job: loops.Job, operands: loops.Operands) -> Callable[[int, int], None]:
    def work(start: int, stop: int) -> None:
        loops.merge_tiles(job, operands, _scratch(operands), start, stop)

    return work


def _tiled_work(job: loops.Job, operands: loops.Operands, shifting: Sequence[Combined]) -> Callable[[int, int], None]:
    """Whatever fits the operands best: a table, one pass over exact and sign bits, or step after step over a tile."""
    if job.table:
        return _table_work(job, operands)
    if _is_mixed(job, shifting, operands.planes):
        return _mixed_work(job, operands)
    return _tile_work(job, operands)


def _table_work(job: loops.Job, operands: loops.Operands) -> Callable[[int, int], None]:
    is_brain = job.source_kind == job.out_kind == BF16

    def work(start: int, stop: int) -> None:
        scratch = np.zeros(tables.SCRATCH, np.uint8)
        if is_brain and HAS_SHUFFLES:
            tables.add_tiles_by_table(job, operands, scratch, start, stop)
        else:
            tables.merge_tiles_by_table(job, operands, scratch, _scratch(operands), start, stop)

    return work


def _mixed_work(job: loops.Job, operands: loops.Operands) -> Callable[[int, int], None]:
    def work(start: int, stop: int) -> None:
        mixed.merge_mixed_tiles(job, operands, np.zeros(mixed.SCRATCH, np.uint8), start, stop)

    return work


def _is_flat(job: loops.Job, ops: Int64) -> bool:
    """Whether exact operands alone are merged, and all elements are BF16 or all are F32."""
    kinds = {job.base_kind, job.source_kind, job.out_kind, *ops[:, 2].tolist()}
    is_exact = not job.shifts and set(ops[:, 0].tolist()) <= {loops.EXACT, loops.TRIMMED}
    return is_exact and kinds in ({BF16}, {F32}) and len(ops) <= flat.FLAT_OPERANDS


def _flat_work(job: loops.Job, operands: loops.Operands, size: int) -> Callable[[int, int], tuple[int, int]]:
    merge = flat.merge_reals if job.base_kind == F32 else flat.merge_brains

    def work(start: int, stop: int) -> tuple[int, int]:
        scratch = np.zeros(flat.SCRATCH, np.uint8)
        seen: tuple[int, int] = merge(job, operands, scratch, start * loops.TILE, min(size, stop * loops.TILE))
        return seen

    return work


def _sight(seen: Sequence[tuple[int, int]], dtype: DType) -> Sight:
    """What the runs of `_flat_work` saw together."""
    most = max((most for most, _ in seen), default=0)
    return Sight(is_finite=most < _TOO_LARGE[dtype], moved=sum(moved for _, moved in seen))


def _tiles(rows: int, cols: int) -> int:
    return rows * -(-cols // loops.TILE)


def _table_columns(shifting: Sequence[Combined], planes: Int64, cols: int) -> int:
    """Columns that share one table of shifts, or 0 where none is possible or worth its making."""
    if len(planes) > tables.TABLE_PLANES or not all(isinstance(o, SignOperand) for o in shifting):
        return 0
    groups = planes[:, loops.GROUP]
    columns = int(groups.min())
    if not ((groups % columns == 0) | (groups == _ALL_COLUMNS)).all():
        return 0
    is_constant = not planes[:, [loops.ALPHA_ROW, loops.ALPHA_GROUP]].any()
    if is_constant:
        return _ALL_COLUMNS
    return columns if min(columns, cols) >= _TABLE_WORTH else 0


def _is_mixed(job: loops.Job, shifting: Sequence[Combined], planes: Int64) -> bool:
    """Whether all is BF16, and TIES of one exact and one sign operand, with one plane and no column groups each."""
    is_brain = job.base_kind == job.source_kind == job.out_kind == BF16
    exact = [o for o in shifting[: job.others] if isinstance(o, ExactOperand) and o.dtype is DType.BF16]
    signs = [o for o in shifting if isinstance(o, SignOperand)]
    one_each = job.others == 2 and len(exact) == 1 and len(signs) == len(shifting) - 1
    is_plain = len(planes) == len(signs) and bool((planes[:, loops.GROUP] == _ALL_COLUMNS).all())
    return is_brain and job.combine == loops.TIES and one_each and is_plain

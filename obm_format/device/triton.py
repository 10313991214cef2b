# mypy: allow-untyped-calls
"""The Triton kernels: `contract.Kernels` over torch tensors, each call a launch or two into storage that exists.

Shown to give the bits of `kernels.reference` by Triton's interpreter; not yet shown on hardware. Nothing may be fused:
every launch switches floating-point fusion off. Launches go to the current stream and are not waited for.
Source: `contract.Kernels`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton

from obm_format.device import triton_elements as elements
from obm_format.device import triton_merge as merging
from obm_format.device import triton_pack as packing
from obm_format.device.operands import (
    Placed,
    PlacedExact,
    PlacedSign,
    PlacedValue,
    check_float,
    check_placed,
)
from obm_format.errors import UsageError
from obm_format.kernels.contract import Bounds, Combine, Float64, ZeroOperand
from obm_format.kernels.runs import Runs, add_in_order, are_on_bytes, split_groups

_KINDS = {
    torch.float16: elements.F16.value,
    torch.bfloat16: elements.BF16.value,
    torch.float32: elements.F32.value,
}
_COMBINES = {
    Combine.SUM: elements.SUM.value,
    Combine.MEAN: elements.MEAN.value,
    Combine.TIES: elements.TIES.value,
}
TABLE_PLANES = 8  # most sign planes under one table
_TABLE_WORTH = 32  # columns per entry from which on a table of shifts pays
_STEPS = 16  # elements that a run takes at a time
_EXACTLY = {"enable_fp_fusion": False}  # a fused multiply-add rounds once where obm rounds twice


class _Shape(NamedTuple):
    """What a compiled kernel knows of its operands; see `triton_merge`."""

    KINDS: tuple[int, ...]
    DETAILS: tuple[int, ...]
    BY_ROW: tuple[int, ...]
    GROUPS: tuple[int, ...]


class _Tiles(NamedTuple):
    """How a matrix is cut: number of programs, rows and bytes of sign bits of a tile."""

    programs: int
    rows: int
    nbytes: int


class TritonKernels:
    """The arithmetic of obm on torch tensors.

    Methods are those of `Kernels`; matrices are contiguous tensors [rows, cols] of one device, and bring their dtype.

    Args:
        tile: elements per program of the merge kernels, a power of two from 8.
        runs: runs per program of the sums, a power of two.
    """

    name = "triton"

    def __init__(self, tile: int = 1024, runs: int = 2) -> None:
        self._tile = tile
        self._runs = runs

    def subtract(self, tuned: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """f32(f32(tuned) - f32(base)), float32 in their shape. See `Kernels.subtract`."""
        check_float(tuned, tuned.shape, "tuned", tuned.device)
        check_float(base, tuned.shape, "base", tuned.device)
        rows = base.shape[0] if base.ndim > 1 and base.numel() else 1
        view = rows, base.numel() // rows
        return self._values(PlacedExact(values=tuned.reshape(view)), base.reshape(view)).reshape(base.shape)

    def sign_values(self, operand: PlacedSign) -> torch.Tensor:
        """The decoded values, float32[rows, cols]. See `Kernels.sign_values`."""
        check_placed(operand, operand.shape, "operand", operand.bits.device)
        # a value of sign bits does not look at the backbone: any memory of that size stands in for it
        return self._values(operand, torch.empty(operand.shape, dtype=torch.float32, device=operand.bits.device))

    def group_sums(self, d: torch.Tensor, bounds: Bounds) -> tuple[Float64, Float64]:
        """S1 and S2 of contiguous groups of flat float32, on the host. See `Kernels.group_sums`."""
        check_float(d, (d.numel(),), "d", d.device)
        groups, runs = split_groups(bounds)
        runs = self._summed(d, None, None, runs, _STEPS)
        return add_in_order(runs, groups, len(bounds) - 1)

    def pack_signs(self, d: torch.Tensor) -> torch.Tensor:
        """Sign bits of float32[rows, cols], uint8[rows, ceil(cols / 8)]. See `Kernels.pack_signs`."""
        check_placed(PlacedValue(values=d), _matrix(d, "d"), "d", d.device)
        rows, cols = d.shape
        bits = torch.empty((rows, -(-cols // 8)), dtype=torch.uint8, device=d.device)
        tiles = self._tiles(rows, cols)
        with _on(d):
            if tiles.programs:
                packing.pack_tiles[(tiles.programs,)](
                    d, bits, rows, cols, ROWS=tiles.rows, BYTES=tiles.nbytes, **_EXACTLY
                )
        return bits

    def pack(self, tuned: torch.Tensor, base: torch.Tensor, bounds: Bounds) -> tuple[torch.Tensor, Float64, Float64]:
        """(bits, S1, S2): bits on the device, sums on the host. See `Kernels.pack`."""
        shape = _matrix(base, "base")
        check_float(base, shape, "base", base.device)
        check_float(tuned, shape, "tuned", base.device)
        groups, runs = split_groups(bounds)
        if not base.numel() or not are_on_bytes(runs, shape[1]):
            d = self.subtract(tuned, base)
            return self.pack_signs(d), *self.group_sums(d.reshape(-1), bounds)
        bits = torch.empty((shape[0], -(-shape[1] // 8)), dtype=torch.uint8, device=base.device)
        runs = self._summed(tuned, base, bits, runs, shape[1])
        return bits, *add_in_order(runs, groups, len(bounds) - 1)

    def merge(
        self,
        base: torch.Tensor,
        routed: Placed | None,
        others: Sequence[Placed],
        *,
        combine: Combine,
        weights: Sequence[float],
        lam: float,
        out: torch.Tensor,
    ) -> None:
        """Merge one matrix into the storage of `out`. See `Kernels.merge`."""
        shape = _matrix(base, "base")
        check_float(base, shape, "base", base.device)
        check_float(out, shape, "out", base.device)
        for place, operand in enumerate([*others] if routed is None else [*others, routed]):
            check_placed(operand, shape, f"operand {place}", base.device)
        if len(weights) != len(others):
            raise UsageError("usage", "each of the other experts needs one weight", got=len(weights))
        if np.float32(lam) == 0 or all(isinstance(other, ZeroOperand) for other in others):
            others, weights = (), ()
        source = routed.values if isinstance(routed, PlacedExact) else base
        shifting = [*others, routed] if isinstance(routed, PlacedSign | PlacedValue) else [*others]
        scales = torch.from_numpy(np.array([lam, *weights], np.float32)).to(base.device)
        with _on(base):
            if not base.numel():
                return
            if not shifting and source.dtype is out.dtype:
                out.copy_(source)
            elif (group := _table_group(shifting, len(others), shape)) is not None:
                self._merge_by_table(source, shifting, len(others), combine, scales, group, out)
            else:
                self._merge(base, source, shifting, len(others), combine, scales, out)

    def absorbed(self, base: torch.Tensor, operand: Placed, out_dtype: torch.dtype) -> tuple[int, int]:
        """(elements that rounding swallows, elements with d != 0). See `Kernels.absorbed`."""
        shape = _matrix(base, "base")
        check_float(base, shape, "base", base.device)
        check_placed(operand, shape, "operand", base.device)
        tiles = self._tiles(*shape)
        if not tiles.programs:
            return 0, 0
        counts = torch.empty((tiles.programs, 2), dtype=torch.int32, device=base.device)
        described = _described([operand])
        with _on(base):
            merging.absorbed_tiles[(tiles.programs,)](
                _words(base), counts, *_addresses(operand, base), *shape,
                BASE=_KINDS[base.dtype], OUT=_KINDS[out_dtype], KIND=described.KINDS[0], DETAIL=described.DETAILS[0],
                BY_ROW=described.BY_ROW[0], GROUP=described.GROUPS[0], ROWS=tiles.rows, BYTES=tiles.nbytes, **_EXACTLY,
            )  # fmt: skip
        swallowed, nonzero = counts.sum(dim=0, dtype=torch.int64).tolist()
        return swallowed, nonzero

    def moved(self, a: torch.Tensor, b: torch.Tensor) -> int:
        """Elements whose bits differ between two tensors of one shape and dtype. See `Kernels.moved`."""
        if a.shape != b.shape or a.dtype is not b.dtype:
            raise UsageError("bad_shape", "tensors of different shape or type", expected=a.shape, got=b.shape)
        integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        return int((a.view(integers) != b.view(integers)).sum().item())

    def _merge(
        self,
        base: torch.Tensor,
        source: torch.Tensor,
        shifting: Sequence[Placed],
        others: int,
        combine: Combine,
        scales: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        tiles = self._tiles(*base.shape)
        addresses = [_addresses(operand, base) for operand in shifting]
        merging.merge_tiles[(tiles.programs,)](
            _words(base), _words(source), _words(out), tuple(one[0] for one in addresses),
            tuple(one[1] for one in addresses), scales, *base.shape,
            BASE=_KINDS[base.dtype], SOURCE=_KINDS[source.dtype], OUT=_KINDS[out.dtype],
            **_described(shifting)._asdict(), OTHERS=others, COMBINE=_COMBINES[combine],
            ROWS=tiles.rows, BYTES=tiles.nbytes, **_EXACTLY,
        )  # fmt: skip

    def _merge_by_table(
        self,
        source: torch.Tensor,
        shifting: Sequence[Any],
        others: int,
        combine: Combine,
        scales: torch.Tensor,
        group: int,
        out: torch.Tensor,
    ) -> None:
        rows, cols = source.shape
        described, tiles = _described(shifting), self._tiles(rows, cols)
        by_row, entries = int(any(described.BY_ROW)), 1 << sum(described.DETAILS)
        count = (rows if by_row else 1) * (-(-cols // group) if group else 1)
        tables = torch.empty((count, entries), dtype=torch.float32, device=source.device)
        per_program = max(1, self._tile // entries)
        merging.make_tables[(triton.cdiv(count, per_program),)](
            tables, tuple(operand.alphas for operand in shifting), scales, count, rows, cols,
            PLANES=described.DETAILS, BY_ROW=described.BY_ROW, GROUPS=described.GROUPS, GROUP=group,
            OTHERS=others, COMBINE=_COMBINES[combine], TABLES=per_program, ENTRIES=entries, **_EXACTLY,
        )  # fmt: skip
        merging.merge_tiles_by_table[(tiles.programs,)](
            _words(source), _words(out), tables, tuple(operand.bits for operand in shifting), rows, cols,
            SOURCE=_KINDS[source.dtype], OUT=_KINDS[out.dtype], PLANES=described.DETAILS, BY_ROW=by_row, GROUP=group,
            ENTRIES=entries, ROWS=tiles.rows, BYTES=tiles.nbytes, **_EXACTLY,
        )  # fmt: skip

    def _values(self, operand: PlacedSign | PlacedExact, base: torch.Tensor) -> torch.Tensor:
        out = torch.empty(base.shape, dtype=torch.float32, device=base.device)
        tiles, described = self._tiles(*base.shape), _described([operand])
        with _on(base):
            if tiles.programs:
                merging.value_tiles[(tiles.programs,)](
                    _words(base), out, *_addresses(operand, base), *base.shape,
                    BASE=_KINDS[base.dtype], KIND=described.KINDS[0], DETAIL=described.DETAILS[0],
                    BY_ROW=described.BY_ROW[0], GROUP=described.GROUPS[0], ROWS=tiles.rows, BYTES=tiles.nbytes,
                    **_EXACTLY,
                )  # fmt: skip
        return out

    def _summed(
        self, tuned: torch.Tensor, base: torch.Tensor | None, bits: torch.Tensor | None, runs: Runs, cols: int
    ) -> Runs:
        """`runs` with their sums, and the sign bits written where `bits` is given."""
        count = len(runs.begins)
        if not count:
            return runs
        begins, ends = (torch.from_numpy(one).to(tuned.device) for one in (runs.begins, runs.ends))
        sums = torch.empty((2, count), dtype=torch.float64, device=tuned.device)
        steps = -(-int((runs.ends - runs.begins).max()) // _STEPS)
        words = _words(tuned)
        other = tuned if base is None else base
        with _on(tuned):
            packing.pack_runs[(triton.cdiv(count, self._runs),)](
                words, _words(other), words if bits is None else bits, begins, ends, sums[0], sums[1], cols, count,
                steps, TUNED=_KINDS[tuned.dtype], BASE=_KINDS[other.dtype], IS_PAIR=int(base is not None),
                HAS_BITS=int(bits is not None), RUNS=self._runs, **_EXACTLY,
            )  # fmt: skip
        s1, s2 = sums.cpu().numpy()
        return runs._replace(s1=s1, s2=s2)

    def _tiles(self, rows: int, cols: int) -> _Tiles:
        nbytes = min(max(1, self._tile // 8), triton.next_power_of_2(max(1, -(-cols // 8))))
        height = min(max(1, self._tile // (8 * nbytes)), triton.next_power_of_2(max(1, rows)))
        return _Tiles(triton.cdiv(rows, height) * triton.cdiv(cols, 8 * nbytes), height, nbytes)


def _matrix(tensor: torch.Tensor, where: str) -> tuple[int, int]:
    if tensor.ndim != 2:
        raise UsageError(
            "bad_shape", "a tensor has the wrong shape", where=where, expected="[rows, cols]", got=tuple(tensor.shape)
        )
    return tensor.shape[0], tensor.shape[1]


def _on(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Launches go to the current device of CUDA, which need not be that of the tensor."""
    if tensor.device.type != "cuda":
        return np.errstate(all="ignore")  # the interpreter computes by NumPy, which warns of infinities
    device: contextlib.AbstractContextManager[object] = torch.cuda.device(tensor.device)
    return device


def _words(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint16 if tensor.element_size() == 2 else torch.uint32)


def _addresses(operand: Placed, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(data, alphas) of an operand; what it does not have is never loaded."""
    match operand:
        case PlacedSign(bits=bits, alphas=alphas):
            return bits, alphas
        case PlacedExact(values=values) | PlacedValue(values=values):
            return _words(values), _words(values)
        case ZeroOperand():
            return _words(base), _words(base)


def _described(operands: Sequence[Placed]) -> _Shape:
    rows = []
    for operand in operands:
        match operand:
            case PlacedSign(bits=bits, alphas=alphas, group=group):
                rows.append((elements.SIGN.value, bits.shape[0], int(alphas.shape[1] > 1), group))
            case PlacedExact(values=values):
                rows.append((elements.EXACT.value, _KINDS[values.dtype], 0, 0))
            case PlacedValue():
                rows.append((elements.VALUE.value, elements.F32.value, 0, 0))
            case ZeroOperand():
                rows.append((elements.ZERO.value, 0, 0, 0))
    return _Shape(*zip(*rows, strict=True)) if rows else _Shape((), (), (), ())


def _table_group(shifting: Sequence[Placed], others: int, shape: tuple[int, int]) -> int | None:
    """Columns that share one table of shifts, 0 for whole rows; None where a table is impossible or not worth it."""
    signs = [operand for operand in shifting if isinstance(operand, PlacedSign)]
    planes = sum(operand.bits.shape[0] for operand in signs)
    if not others or len(signs) < len(shifting) or planes > TABLE_PLANES:
        return None
    grouped = [operand.group for operand in signs if operand.group]
    group = min(grouped, default=0)
    if any(other % group for other in grouped):
        return None
    is_one = not group and all(operand.alphas.shape[1] == 1 for operand in signs)
    return group if is_one or (group or shape[1]) >= _TABLE_WORTH << planes else None

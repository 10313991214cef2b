"""Operands as torch tensors: the twins of `contract`'s operands, for kernels that work where torch has its memory.

A tensor brings its dtype along, so there are no words here. Matrices are [rows, cols], C-contiguous, all on one device.
Never computes. Source: obm-1 clauses 6.6 and 9.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from obm_format.errors import UsageError
from obm_format.kernels.contract import ExactOperand, Operand, SignOperand, ValueOperand, ZeroOperand
from obm_format.model import DType

FLOATS = {DType.F16: torch.float16, DType.BF16: torch.bfloat16, DType.F32: torch.float32}
Upload = Callable[[npt.NDArray[Any]], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacedSign:
    """A `SignOperand` on a device.

    Args:
        bits: uint8[planes, rows, ceil(cols / 8)].
        alphas: float32[planes, rows or 1, groups]; 1 where all rows have the same alphas.
        group: columns per alpha, a multiple of 8; 0 where a row is one group.
        cols: elements of a row.
    """

    bits: torch.Tensor
    alphas: torch.Tensor
    group: int
    cols: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.bits.shape[1], self.cols


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacedExact:
    """The fine-tune's own elements, F16, BF16 or F32 [rows, cols], on a device."""

    values: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols)."""
        return tuple(self.values.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacedValue:
    """A task vector as float32 [rows, cols] on a device."""

    values: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols)."""
        return tuple(self.values.shape)


Placed = PlacedSign | PlacedExact | PlacedValue | ZeroOperand


def place_operand(operand: Operand, upload: Upload) -> Placed:
    """The operand on the device that `upload` copies arrays to; arrays of any layout."""
    match operand:
        case SignOperand():
            return place_sign(operand, upload)
        case ExactOperand(words=words, dtype=dtype):
            return PlacedExact(values=upload(words).view(FLOATS[dtype]))
        case ValueOperand(values=values):
            return PlacedValue(values=upload(values))
        case ZeroOperand():
            return operand


def place_sign(operand: SignOperand, upload: Upload) -> PlacedSign:
    """See `place_operand`."""
    return PlacedSign(
        bits=upload(np.stack(operand.bits)),
        alphas=upload(np.stack(_distinct_rows(operand.alphas))),
        group=0 if operand.group >= operand.cols else operand.group,
        cols=operand.cols,
    )


def check_float(tensor: torch.Tensor, shape: Sequence[int], where: str, device: torch.device) -> None:
    """Refuse a tensor that is not a contiguous F16, BF16 or F32 one of `shape` on `device`.

    Raises:
        UsageError: `unsupported_dtype` or `bad_shape`.
    """
    if tensor.dtype not in FLOATS.values():
        raise UsageError(
            "unsupported_dtype", "obm computes with F16, BF16 and F32 only", where=where, got=str(tensor.dtype)
        )
    _check(tensor, shape, where, device)


def check_placed(operand: Placed, shape: tuple[int, int], where: str, device: torch.device) -> None:
    """Refuse an operand that is not one of a [rows, cols] matrix of `shape` on `device`.

    Raises:
        UsageError: `bad_shape`, `usage` or `unsupported_dtype`.
    """
    match operand:
        case PlacedSign():
            _check_sign(operand, shape, where, device)
        case PlacedExact(values=values):
            check_float(values, shape, where, device)
        case PlacedValue(values=values):
            if values.dtype is not torch.float32:
                raise _unfit(where, "float32", values.dtype)
            _check(values, shape, where, device)
        case ZeroOperand():
            pass


def _check_sign(operand: PlacedSign, shape: tuple[int, int], where: str, device: torch.device) -> None:
    if operand.group % 8 or operand.group < 0:
        raise UsageError(
            "usage", "alpha groups do not end on bytes", where=where, expected="a multiple of 8", got=operand.group
        )
    if operand.shape != shape:
        raise _unfit(where, shape, operand.shape)
    rows, cols = shape
    planes, groups = operand.bits.shape[0], -(-cols // (operand.group or cols or 1))
    for tensor, dtype, wanted in (
        (operand.bits, torch.uint8, (planes, rows, -(-cols // 8))),
        (operand.alphas, torch.float32, (planes, 1 if operand.alphas.shape[1] == 1 else rows, groups)),
    ):
        if tensor.dtype is not dtype:
            raise _unfit(where, dtype, tensor.dtype)
        _check(tensor, wanted, where, device)


def _check(tensor: torch.Tensor, shape: Sequence[int], where: str, device: torch.device) -> None:
    if tuple(tensor.shape) != tuple(shape) or not tensor.is_contiguous() or tensor.device != device:
        got = f"{tuple(tensor.shape)} on {tensor.device}"
        raise _unfit(where, f"contiguous {tuple(shape)} on {device}", got)


def _distinct_rows(alphas: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    """Alphas of one row where no plane has different ones by row, as broadcast views show."""
    is_same = all(one.strides[0] == 0 or one.shape[0] == 1 for one in alphas)
    return [one[:1] if is_same else one for one in alphas]


def _unfit(where: str, expected: object, got: object) -> UsageError:
    return UsageError(
        "bad_shape", "a tensor has the wrong shape, type or place", where=where, expected=str(expected), got=str(got)
    )

"""`contract.Kernels` over arrays by kernels over tensors: every call uploads, computes on the device, and downloads.

What a merge writes may stay on the device: its output may be a tensor of words there instead of an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from obm_format.device.operands import FLOATS, Upload, place_operand, place_sign
from obm_format.device.triton import TritonKernels
from obm_format.kernels.contract import (
    Bits,
    Bounds,
    Combine,
    Float64,
    Operand,
    SignOperand,
    ValueOperand,
    check_groups,
    check_operand,
    check_operands,
    check_output,
    check_pack,
    check_pair,
    check_same_words,
    check_weights,
)
from obm_format.kernels.words import Float32, Words
from obm_format.model import DType


class DeviceKernels:
    """`Kernels` on a device.

    Args:
        kernels: who computes there.
        upload: copies an array there.
    """

    name = "triton"
    threads = 1

    def __init__(self, kernels: TritonKernels, upload: Upload) -> None:
        self._kernels = kernels
        self._upload = upload

    def subtract(self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType) -> Float32:
        """See `Kernels.subtract`."""
        check_pair(tuned, tuned_dtype, base, base_dtype)
        return _array(self._kernels.subtract(self._placed(tuned, tuned_dtype), self._placed(base, base_dtype)))

    def group_sums(self, d: Float32, bounds: Bounds) -> tuple[Float64, Float64]:
        """See `Kernels.group_sums`."""
        check_groups(d, bounds)
        return self._kernels.group_sums(self._upload(d), bounds)

    def pack_signs(self, d: Float32) -> Bits:
        """See `Kernels.pack_signs`."""
        check_operand(ValueOperand(values=d), d.shape, "d")
        return _array(self._kernels.pack_signs(self._upload(d)))

    def pack(
        self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, bounds: Bounds
    ) -> tuple[Bits, Float64, Float64]:
        """See `Kernels.pack`."""
        check_pack(tuned, tuned_dtype, base, base_dtype, bounds)
        tensors = self._placed(tuned, tuned_dtype), self._placed(base, base_dtype)
        bits, s1, s2 = self._kernels.pack(*tensors, bounds)
        return _array(bits), s1, s2

    def sign_values(self, operand: SignOperand) -> Float32:
        """See `Kernels.sign_values`."""
        check_operand(operand, operand.shape, "operand")
        return _array(self._kernels.sign_values(place_sign(operand, self._upload)))

    def merge(  # noqa: PLR0913 - a merge has this many parts
        self,
        base: Words,
        base_dtype: DType,
        routed: Operand | None,
        others: Sequence[Operand],
        *,
        combine: Combine,
        weights: Sequence[float],
        lam: float,
        out: Words,
        out_dtype: DType,
    ) -> None:
        """See `Kernels.merge`."""
        check_operands(base, base_dtype, [*others] if routed is None else [*others, routed])
        check_output(out, out_dtype, base.shape)
        check_weights(others, weights)
        placed = self._placed(base, base_dtype)
        result = torch.empty(base.shape, dtype=FLOATS[out_dtype], device=placed.device)
        self._kernels.merge(
            placed,
            None if routed is None else place_operand(routed, self._upload),
            [place_operand(other, self._upload) for other in others],
            combine=combine,
            weights=weights,
            lam=lam,
            out=result,
        )
        out[...] = _array(result.view(torch.uint16 if result.element_size() == 2 else torch.uint32))

    def absorbed(self, base: Words, base_dtype: DType, operand: Operand, out_dtype: DType) -> tuple[int, int]:
        """See `Kernels.absorbed`."""
        check_operands(base, base_dtype, [operand])
        placed = self._placed(base, base_dtype)
        return self._kernels.absorbed(placed, place_operand(operand, self._upload), FLOATS[out_dtype])

    def moved(self, a: Words, b: Words) -> int:
        """See `Kernels.moved`."""
        check_same_words(a, b)
        return self._kernels.moved(self._upload(a), self._upload(b))

    def _placed(self, words: Words, dtype: DType) -> torch.Tensor:
        return self._upload(words).view(FLOATS[dtype])


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.cpu().numpy()
    return array

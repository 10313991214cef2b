"""`contract.Kernels` over arrays by kernels over tensors: every call uploads, computes on the device, and downloads.

What a merge writes may stay on the device: there its output may be a tensor of words, in the guise of an array. May be
called from several threads, as far as `upload` may.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from obm_format.device.operands import FLOATS, Upload, place_operand, place_sign
from obm_format.device.triton import TritonKernels
from obm_format.kernels import select_kernels
from obm_format.kernels.contract import (
    Bits,
    Bounds,
    Combine,
    Combined,
    Counts,
    Float64,
    Operand,
    SignOperand,
    TrimmedOperand,
    ValueOperand,
    check_groups,
    check_operand,
    check_operands,
    check_output,
    check_pack,
    check_pair,
    check_same_words,
    check_values_output,
    check_weights,
)
from obm_format.kernels.words import Float32, Words, first_not_finite
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
        self._host = select_kernels(1)
        self._launching = threading.Lock()  # neither the interpreter nor a first compilation is for several threads

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

    def sign_values(self, operand: SignOperand, out: Float32 | None = None) -> Float32:
        """See `Kernels.sign_values`."""
        check_operand(operand, operand.shape, "operand")
        values = _array(self._kernels.sign_values(place_sign(operand, self._upload)))
        if out is None:
            return values
        check_values_output(out, operand.shape)
        out[...] = values
        return out

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
    ) -> None:
        """See `Kernels.merge`."""
        check_operands(base, base_dtype, [*others] if routed is None else [*others, routed])
        check_weights(others, weights)
        target: Any = out
        stays = isinstance(target, torch.Tensor)
        if not stays:
            check_output(out, out_dtype, base.shape)
        placed = self._placed(base, base_dtype)
        whole = [self._made(one, base, base_dtype) for one in others]
        operands = [None if one is None else place_operand(one, self._upload) for one in (routed, *whole)]
        result = target if stays else torch.empty(base.shape, dtype=FLOATS[out_dtype], device=placed.device)
        with self._launching:
            self._kernels.merge(
                placed,
                operands[0],
                [one for one in operands[1:] if one is not None],
                combine=combine,
                weights=weights,
                lam=lam,
                out=result.view(FLOATS[out_dtype]),
            )
        if not stays:
            out[...] = _array(result.view(torch.uint16 if result.element_size() == 2 else torch.uint32))

    def count_magnitudes(self, values: Float32, high: int | None, counts: Counts) -> None:
        """See `Kernels.count_magnitudes`; trims are chosen on the host, for which nothing is uploaded."""
        self._host.count_magnitudes(values, high, counts)

    def count_differences(
        self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, high: int | None, counts: Counts
    ) -> None:
        """See `Kernels.count_differences`, on the host."""
        self._host.count_differences(tuned, tuned_dtype, base, base_dtype, high, counts)

    def nth_difference(
        self, tuned: Words, tuned_dtype: DType, base: Words, base_dtype: DType, threshold: float, number: int
    ) -> tuple[int, int]:
        """See `Kernels.nth_difference`, on the host."""
        return self._host.nth_difference(tuned, tuned_dtype, base, base_dtype, threshold, number)

    def keep_largest(self, values: Float32, threshold: float, last: int) -> Float32:
        """See `Kernels.keep_largest`, on the host."""
        return self._host.keep_largest(values, threshold, last)

    def keep_drawn(self, values: Float32, key: int, start: int, limit: int) -> Float32:
        """See `Kernels.keep_drawn`, on the host."""
        return self._host.keep_drawn(values, key, start, limit)

    def absorbed(self, base: Words, base_dtype: DType, operand: Operand, out_dtype: DType) -> tuple[int, int]:
        """See `Kernels.absorbed`."""
        check_operands(base, base_dtype, [operand])
        placed = self._placed(base, base_dtype)
        return self._kernels.absorbed(placed, place_operand(operand, self._upload), FLOATS[out_dtype])

    def moved(self, a: Words, b: Words) -> int:
        """See `Kernels.moved`."""
        check_same_words(a, b)
        return self._kernels.moved(self._upload(a), self._upload(b))

    def first_not_finite(self, words: Words, dtype: DType) -> int | None:
        """See `Kernels.first_not_finite`; `words` may be a tensor on the device."""
        if not isinstance(words, torch.Tensor):
            return first_not_finite(words, dtype)
        finite = torch.isfinite(words.view(FLOATS[dtype])).reshape(-1)
        return None if bool(finite.all()) else int((~finite).nonzero()[0])

    def _made(self, operand: Combined, base: Words, base_dtype: DType) -> Operand:
        """The operand as the device takes it: what is trimmed is made on the host."""
        if not isinstance(operand, TrimmedOperand):
            return operand
        d = self._host.subtract(operand.words, operand.dtype, base, base_dtype)
        return ValueOperand(values=self._host.keep_largest(d, operand.threshold, operand.last))

    def _placed(self, words: Words, dtype: DType) -> torch.Tensor:
        return self._upload(words).view(FLOATS[dtype])


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.cpu().numpy()
    return array

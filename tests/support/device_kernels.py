"""The kernels over tensors, on the device under test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from obm_format.device.uploads import Uploads

if TYPE_CHECKING:
    from obm_format.device.arrays import DeviceKernels
    from obm_format.device.triton import TritonKernels

DEVICE = torch.device(os.environ.get("OBM_TEST_DEVICE", "cpu"))


def triton_kernels() -> TritonKernels:
    """In the interpreter with large tiles: it takes its time per program, not per element."""
    from obm_format.device.triton import TritonKernels

    return TritonKernels() if DEVICE.type == "cuda" else TritonKernels(tile=1 << 14, runs=64)


def device_kernels() -> DeviceKernels:
    """The same behind the contract over arrays, with buffers that most arrays need several of."""
    from obm_format.device.arrays import DeviceKernels

    return DeviceKernels(triton_kernels(), Uploads(DEVICE, buffer_nbytes=1000))

"""Copies to a device come out whole, whatever their size beside the buffers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_kernels import DEVICE

from obm_format.device.uploads import Uploads


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "f4"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (16,), (17,), (5, 33), (2, 3, 4)])
def test_an_array_arrives_as_it_is(dtype: str, shape: tuple[int, ...]) -> None:
    upload = Uploads(DEVICE, buffer_nbytes=16, buffers=2)
    array = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
    for _ in range(2):  # the second time through buffers that were used
        tensor = upload(array)
        assert tensor.device.type == DEVICE.type
        assert tensor.is_contiguous()
        got = tensor.cpu().numpy()
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert np.array_equal(got, array)


def test_a_strided_array_arrives_in_its_order() -> None:
    array = np.arange(60, dtype=np.uint16).reshape(6, 10)[::2, ::3]
    assert np.array_equal(Uploads(DEVICE, buffer_nbytes=8)(array).cpu().numpy(), array)


def test_a_tensor_has_memory_of_its_own() -> None:
    upload, array = Uploads(DEVICE, buffer_nbytes=8, buffers=1), np.arange(8, dtype=np.uint8)
    first = upload(array)
    array[:] = 255
    second = upload(array)
    assert first.tolist() == list(range(8))
    assert torch.equal(second, torch.full_like(second, 255))

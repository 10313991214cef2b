"""Copies from arrays to a device, through a ring of pinned buffers on a stream of their own.

A pageable array, and a mapped file above all, is copied to a GPU at a fraction of the bus; through pinned memory it
is copied in the background while the next piece is read. Where the device is the CPU the same pieces go through plain
buffers, and no stream. Not yet shown on hardware.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

BUFFER_NBYTES = 8 << 20
BUFFERS = 3
_VIEWS = {"u1": torch.uint8, "u2": torch.uint16, "u4": torch.uint32, "u8": torch.uint64, "f4": torch.float32}


@dataclass(slots=True)
class _Buffer:
    """Pinned memory, and the event after which it may be filled again."""

    memory: torch.Tensor
    is_free: Any = field(default=None)


class Uploads:
    """What copies arrays to one device; each thread that calls it has buffers of its own.

    Args:
        device: where to.
        buffer_nbytes: bytes of a buffer, at least 1.
        buffers: how many there are, at least 1.
    """

    def __init__(self, device: torch.device, buffer_nbytes: int = BUFFER_NBYTES, buffers: int = BUFFERS) -> None:
        self.device = device
        self._sizes = buffer_nbytes, buffers
        self._of_thread = threading.local()

    def __call__(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """A tensor of its own on the device with the elements of `array`: words, sign bits or float32.

        What the current stream launches afterwards sees it whole.
        """
        if not hasattr(self._of_thread, "ring"):
            self._of_thread.ring = _Ring(self.device, *self._sizes)
        ring: _Ring = self._of_thread.ring
        flat = np.ascontiguousarray(array).reshape(-1)
        out = ring.copied(flat.view(np.uint8))
        return out.view(_VIEWS[array.dtype.str[1:]]).reshape(array.shape)


class _Ring:
    """The buffers and the stream of one thread."""

    def __init__(self, device: torch.device, buffer_nbytes: int, buffers: int) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(device) if self._is_cuda else None
        self._ring = [
            _Buffer(torch.empty(buffer_nbytes, dtype=torch.uint8, pin_memory=self._is_cuda)) for _ in range(buffers)
        ]
        self._next = 0

    def copied(self, data: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Some bytes on the device."""
        with torch.cuda.stream(self._stream) if self._is_cuda else contextlib.nullcontext():
            out = torch.empty(data.size, dtype=torch.uint8, device=self._device)
            self._copy(data, out)
        if self._is_cuda:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            out.record_stream(current)  # its memory may not be given to the next upload before the kernel ends
        return out

    def _copy(self, data: npt.NDArray[np.uint8], out: torch.Tensor) -> None:
        size = self._ring[0].memory.numel()
        for start in range(0, data.size, size):
            stop = min(data.size, start + size)
            buffer = self._ring[self._next]
            self._next = (self._next + 1) % len(self._ring)
            if buffer.is_free is not None:
                buffer.is_free.synchronize()
            buffer.memory.numpy()[: stop - start] = data[start:stop]
            out[start:stop].copy_(buffer.memory[: stop - start], non_blocking=True)
            if self._is_cuda:
                buffer.is_free = torch.cuda.Event()
                buffer.is_free.record(self._stream)

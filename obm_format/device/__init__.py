"""The arithmetic on a GPU: fused Triton kernels over torch tensors, and copies to where they work.

Importing this imports neither torch nor triton; `device_kernels` does. Shown to give the bits of `kernels.reference` in
Triton's interpreter, and to compile for GPUs; not yet shown on hardware.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from obm_format.device.triton import TritonKernels

__all__ = ["device_kernels"]

OLDEST_TRITON = (3, 6)  # earlier ones flush quotients below the least normal number to zero
logger = logging.getLogger(__name__)


def device_kernels(device: torch.device) -> TritonKernels | None:
    """The fused kernels for tensors on a device, or None and one log line that says why there are none."""
    reason = _missing(device)
    if reason:
        logger.info("merging on the CPU for %s: %s", device, reason)
        return None
    from obm_format.device.triton import TritonKernels

    return TritonKernels()


def _missing(device: torch.device) -> str | None:
    """Why there are no fused kernels for a device."""
    import torch

    if device.type != "cuda" or torch.version.hip is not None:
        return "the fused kernels are for CUDA"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set"
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be used ({error}); pip install 'obm-format[triton]'"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {triton.__version__} does not divide exactly; {'.'.join(map(str, OLDEST_TRITON))} does"
    return None

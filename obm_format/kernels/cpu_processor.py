"""What the processor has that compiled loops are written for; known without numba.

What is asked here is what numba compiles for, unless somebody tells it to compile for another processor: then nothing
is taken for granted.
"""

from __future__ import annotations

import os

from llvmlite import binding  # type: ignore[import-untyped] # it carries no types

_CHOICES = "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX"


def has(feature: str) -> bool:
    """Whether loops may use a feature, by LLVM's name for it."""
    return not any(map(os.environ.get, _CHOICES)) and bool(binding.get_host_cpu_features().get(feature, False))


HAS_SHUFFLES = has("avx2")  # each of 32 bytes from a table of 16
HAS_MASKS = has("avx512bw")  # registers that hold one bit per lane

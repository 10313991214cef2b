"""The processor that loops are compiled for, as numba sees it, asked without loading numba.

numba looks at the same variables of the environment and has the same exceptions; a test holds this equal to it.
"""

from __future__ import annotations

import functools
import os
from typing import Any

_WITHOUT_AVX = {"corei7-avx", "core-avx-i", "sandybridge", "ivybridge", "nocona"}  # numba makes no use of it on these


@functools.cache
def llvm() -> Any:  # noqa: ANN401 - llvmlite is untyped
    """LLVM, ready to link and to run for this processor.

    Raises:
        ImportError: llvmlite is not installed.
    """
    from llvmlite import binding  # type: ignore[import-untyped] # it carries no types

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


def processor_name() -> str:
    """LLVM's name for it."""
    return os.environ.get("NUMBA_CPU_NAME") or str(llvm().get_host_cpu_name())


@functools.cache
def processor_features() -> str:
    """What it has, as LLVM writes it: `+avx2,-avx512f`."""
    chosen = os.environ.get("NUMBA_CPU_FEATURES")
    if chosen is not None:
        return chosen
    found = llvm().get_host_cpu_features()
    wanted = os.environ.get("NUMBA_ENABLE_AVX", str(int(processor_name() not in _WITHOUT_AVX)))
    if wanted == "0" or not found.get("avx"):
        found.update({feature: False for feature in found if feature.startswith("avx")})
    return str(found.flatten())


def has(feature: str) -> bool:
    """Whether it has a feature, by LLVM's name for it."""
    return f"+{feature}" in processor_features().split(",")


HAS_SHUFFLES = has("avx2")  # each of 32 bytes from a table of 16
HAS_MASKS = has("avx512bw")  # registers that hold one bit per lane

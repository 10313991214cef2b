"""Arithmetic on arrays: pack, subtract, sum, apply and merge; NumPy (normative) and numba (fast), bit for bit equal.

Knows arrays and dtypes, never files. `select_kernels` picks an implementation.
"""

from __future__ import annotations

import logging
import os

from obm_format.errors import UsageError
from obm_format.kernels.contract import (
    Combine,
    ExactOperand,
    Kernels,
    Operand,
    SignOperand,
    ValueOperand,
    ZeroOperand,
)
from obm_format.kernels.reference import ReferenceKernels
from obm_format.kernels.steps import ReferenceSteps, Steps

__all__ = [
    "Combine",
    "ExactOperand",
    "Kernels",
    "Operand",
    "ReferenceKernels",
    "ReferenceSteps",
    "SignOperand",
    "Steps",
    "ValueOperand",
    "ZeroOperand",
    "select_kernels",
    "select_steps",
]

logger = logging.getLogger(__name__)
_told: set[str] = set()
_INSTALL = "pip install 'obm-format[fast]'"


def select_kernels(threads: int | None = None, prefer: str | None = None) -> Kernels:
    """The fastest kernels that this machine has, or those that were asked for.

    Args:
        threads: most threads per call, at least 1; None for as many as this process may use processors.
        prefer: "numba" or "reference"; None for the environment variable `OBM_KERNELS`, else the fastest.

    Raises:
        UsageError: unknown name or number of threads (reason `usage`), or numba was asked for and is not installed
            (`missing_dependency`).
    """
    if threads is not None and threads < 1:
        raise UsageError("usage", "the number of threads must be positive", got=threads)
    if _wants_reference(prefer):
        return ReferenceKernels()
    try:
        from obm_format.kernels.cpu import NumbaKernels
    except (ImportError, RuntimeError) as error:
        _fall_back(error, prefer)
        return ReferenceKernels()
    return NumbaKernels(threads)


def select_steps(prefer: str | None = None) -> Steps:
    """The fastest `Steps` that this machine has, or those that were asked for.

    Args:
        prefer: as in `select_kernels`.

    Raises:
        UsageError: as `select_kernels`.
    """
    if _wants_reference(prefer):
        return ReferenceSteps()
    try:
        from obm_format.kernels.cpu_steps import NumbaSteps
    except (ImportError, RuntimeError) as error:
        _fall_back(error, prefer)
        return ReferenceSteps()
    return NumbaSteps()


def _wanted(prefer: str | None) -> str | None:
    return prefer or os.environ.get("OBM_KERNELS") or None


def _wants_reference(prefer: str | None) -> bool:
    wanted = _wanted(prefer)
    if wanted not in (None, "numba", "reference"):
        raise UsageError("usage", "unknown kernels", expected="numba or reference", got=wanted)
    return wanted == "reference"


def _fall_back(error: Exception, prefer: str | None) -> None:
    """Say once why NumPy has to do; numba refuses to load where it finds no place for its cache (RuntimeError).

    Raises:
        UsageError: numba was asked for (`missing_dependency`).
    """
    is_missing = isinstance(error, ModuleNotFoundError)
    reason = "numba is not installed" if is_missing else f"numba cannot be used: {error}"
    if _wanted(prefer):
        raise UsageError("missing_dependency", reason, hint=_INSTALL) from error
    if reason not in _told:
        _told.add(reason)
        advice = f": {_INSTALL}" if is_missing else ""
        logger.warning("%s; NumPy does its work, many times slower%s", reason, advice)

"""How the loops of the fast kernels are compiled, and when a compiled one on disk may be used again.

numba keeps what it compiled beside the source and looks only at the file that defines a loop. A loop also holds the
code of the helper modules that it calls, so here the sources of all of them are part of what a loop is known by: after
an edit or an upgrade of any of them it is compiled anew. No fastmath, no thread of numba's.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import numba

_OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False, "fastmath": False}
_njit: Any = numba.njit
step = _njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)  # for functions that kernels alone call


def sources_digest(folder: Path) -> str:
    """SHA-256 over names and bytes of the Python files of a folder."""
    digest = sha256()
    for file in sorted(folder.glob("*.py")):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


_SOURCES = sources_digest(Path(__file__).parent)


def kernel(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - numba objects are untyped
    """Compile a loop when it is first called with arguments of some types, or take it from the cache on disk."""
    return _njit(cache=True, **_OPTIONS)(bound_to(function, _SOURCES))


def bound_to(function: Callable[..., Any], sources: str) -> FunctionType:
    """The same function with `sources` in a closure cell that it never reads; numba's cache keys cover the cells."""
    assert isinstance(function, FunctionType)  # noqa: S101 - `def` makes nothing else
    code = function.__code__.replace(co_freevars=(*function.__code__.co_freevars, "_sources"))
    cells = (*(function.__closure__ or ()), CellType(sources))
    bound = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, cells)
    bound.__qualname__, bound.__module__, bound.__doc__ = function.__qualname__, function.__module__, function.__doc__
    return bound

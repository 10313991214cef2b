"""How the loops of the fast kernels become machine code: taken from disk where it lies, else compiled by numba.

numba alone takes most of a second to load and to get ready, so nothing here loads it before a loop is called whose
machine code is not on disk (`cpu_images`). Until then the names that only compiled code uses stand for themselves
(`StandIn`); before numba looks at a loop they are replaced by what they stand for. What is on disk, numba's files and
ours, is known by the sources of all modules of this package: after an edit or an upgrade of any of them it is compiled
anew. No fastmath, no thread of numba's. Source: ADR 0017 and ADR 0043.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

from obm_format.kernels.cpu_images import Code, Images, Signature, signature_of

_OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False, "fastmath": False}
_LOOPS = f"{__package__}.cpu_"  # how the modules begin that hold what is compiled
_LOCK = threading.RLock()


class StandIn:
    """A name in the source of compiled code, which numba sees as what it stands for.

    Args:
        make: gives that; called once, when numba is wanted.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._real: Any = None

    def real(self) -> Any:  # noqa: ANN401 - numba objects are untyped
        """What it stands for."""
        if self._real is None:
            self._real = self._make()
        return self._real


class Kernel:
    """A compiled loop that Python calls, with numbers, arrays, and tuples of them.

    Args:
        function: what is compiled.
        images: its machine code on disk.
    """

    def __init__(self, function: Callable[..., Any], images: Images) -> None:
        self.function, self._images = function, images
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self._codes: dict[Signature, Code | None] = {}  # None: only numba can run it

    def __call__(self, *args: Any) -> Any:  # noqa: ANN401 - whatever the loop returns
        """Run the loop, without the GIL."""
        signature, flat = signature_of(args)
        if signature not in self._codes:
            self._find(signature, args)
        code = self._codes[signature]
        return self.dispatcher(*args) if code is None else code(flat)

    @functools.cached_property
    def dispatcher(self) -> Any:  # noqa: ANN401 - numba objects are untyped
        """Numba's own function."""
        return _njit(cache=True)(bound_to(self.function, self._images.sources))

    @property
    def _numba_type_(self) -> Any:  # noqa: ANN401 - numba objects are untyped
        """What numba takes it for in other loops: its own function."""
        return self.dispatcher._numba_type_

    def _find(self, signature: Signature, args: tuple[Any, ...]) -> None:
        with _LOCK:
            if signature not in self._codes:
                self._codes[signature] = self._images.load(self.function, signature) or self._compile(signature, args)

    def _compile(self, signature: Signature, args: tuple[Any, ...]) -> Code | None:
        _put_real_names()
        compiled = self.dispatcher
        types = tuple(map(importlib.import_module("numba").typeof, args))
        compiled.compile(types)
        return self._images.keep(self.function, signature, compiled.overloads[types])


def sources_digest(folder: Path) -> str:
    """SHA-256 over names and bytes of the Python files of a folder."""
    digest = sha256()
    for file in sorted(folder.glob("*.py")):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def step(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - numba objects are untyped
    """A function that compiled loops alone call."""
    return StandIn(lambda: _njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function))


def kernel(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - what its loop takes and returns is untyped
    """A loop, compiled when it is first called with arguments of some types, or taken from disk."""
    return Kernel(function, _IMAGES)


def bound_to(function: Callable[..., Any], sources: str) -> FunctionType:
    """The same function with `sources` in a closure cell that it never reads; numba's cache keys cover the cells."""
    assert isinstance(function, FunctionType)  # noqa: S101 - `def` makes nothing else
    code = function.__code__.replace(co_freevars=(*function.__code__.co_freevars, "_sources"))
    cells = (*(function.__closure__ or ()), CellType(sources))
    bound = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, cells)
    bound.__qualname__, bound.__module__, bound.__doc__ = function.__qualname__, function.__module__, function.__doc__
    return bound


def _njit(**options: bool) -> Any:  # noqa: ANN401 - numba objects are untyped
    return importlib.import_module("numba").njit(**options, **_OPTIONS)


def _put_real_names() -> None:
    """Replace all stand-ins in the modules that are loaded by now."""
    for name, module in list(sys.modules.items()):
        if name.startswith(_LOOPS):
            for key, value in list(vars(module).items()):
                if isinstance(value, StandIn):
                    setattr(module, key, value.real())


_IMAGES = Images.for_package(Path(__file__).parent, sources_digest(Path(__file__).parent))
if not _IMAGES.are_there:
    # what keeps numba from working shows now, and not when a loop is called
    _njit(cache=True)(bound_to(sources_digest, _IMAGES.sources))

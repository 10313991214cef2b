"""Names that the sources of compiled loops use and Python does not: of numba, and of what writes LLVM's code.

They stand for themselves, so that importing a module of loops loads neither numba nor LLVM's assembler. What Python
needs too, as `WORD`, is here itself.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from obm_format.kernels.cpu_compile import StandIn

WORD = 32  # sign bits taken at a time, one per lane

# where a name is looked for once numba is wanted, in this order
_HOMES = (f"{__package__}.cpu_lanes", "numba.np.numpy_support")


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a stand-in, or what it stands for
    if name.startswith("__"):
        raise AttributeError(name)
    found = globals()[name] = StandIn(partial(_real, name))
    return found


def _real(name: str) -> object:
    homes = map(importlib.import_module, _HOMES)
    return getattr(next(home for home in homes if hasattr(home, name)), name)

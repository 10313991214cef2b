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
BLOCK = 256  # elements taken at a time under a table, where bytes are shuffled; their sign bits fill one register
FEW, MANY = 4, 8  # planes under a table of 16 entries, and of 256
PATTERNS = 8  # of sign bits, taken at a time
SUM_ROWS = 5  # for each pattern: sums of all values, of those above 0, of those below 0, and how many those are
SUM_ROW = (1 << MANY) + PATTERNS  # floats from row to row: the most patterns, and what is written beyond them
STEP = 32  # elements taken at a time from exact operands
MOST = 16  # exact operands

# where a name is looked for once numba is wanted, in this order
_HOMES = (
    *(f"{__package__}.{home}" for home in ("cpu_lanes", "cpu_blocks", "cpu_shifts", "cpu_exact")),
    "numba.np.numpy_support",
)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a stand-in, or what it stands for
    if name.startswith("__"):
        raise AttributeError(name)
    found = globals()[name] = StandIn(partial(_real, name))
    return found


def _real(name: str) -> object:
    homes = map(importlib.import_module, _HOMES)
    return getattr(next(home for home in homes if hasattr(home, name)), name)

"""How large a file may become, and how that reads in words.

Never looks at a checkpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from obm_format.errors import UsageError

_UNITS: Final = {
    "": 1,
    "B": 1,
    **{unit: 1000**power for power, unit in enumerate(("KB", "MB", "GB", "TB"), 1)},
    **{unit: 1024**power for power, unit in enumerate(("KIB", "MIB", "GIB", "TIB"), 1)},
}
_TEXT: Final = re.compile(r"(?P<whole>[0-9]{1,15})(?P<part>\.[0-9]{1,9})?\s?(?P<unit>[A-Za-z]{0,3}|%)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A ceiling for a file; one of the two is given.

    Args:
        nbytes: bytes.
        ratio: share of the bytes of the dense fine-tune's tensors.
    """

    nbytes: int | None = None
    ratio: Fraction | None = None

    def limit(self, dense_nbytes: int) -> int:
        """The ceiling in bytes, for a fine-tune of `dense_nbytes` bytes."""
        if self.nbytes is not None:
            return self.nbytes
        return int((self.ratio or Fraction()) * dense_nbytes)


def parse_budget(text: str) -> Budget:
    """A budget from words: bytes with a unit or without, or a share of the dense fine-tune.

    Args:
        text: `12000000`, `12MB` (powers of 1000), `11.5MiB` (of 1024); `0.05` or `5%`. What has a decimal point and
            no unit is a share.

    Raises:
        UsageError: `usage`.
    """
    found = _TEXT.fullmatch(text)
    unit = found["unit"].upper() if found else ""
    if found is None or unit not in (*_UNITS, "%"):
        raise _no_budget(text)
    number = Fraction(found["whole"] + (found["part"] or ""))
    if unit == "%" or (not unit and found["part"]):
        ratio = number / 100 if unit else number
        if not 0 < ratio <= 1:
            raise _no_budget(text)
        return Budget(ratio=ratio)
    if number * _UNITS[unit] < 1:
        raise _no_budget(text)
    return Budget(nbytes=int(number * _UNITS[unit]))


def _no_budget(text: str) -> UsageError:
    return UsageError(
        "usage",
        "this is no budget",
        expected="bytes, as 12MB, or a share of the dense fine-tune above 0 and at most 1, as 0.05",
        got=ascii(text[:40]),
    )

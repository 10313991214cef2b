"""Find the base vectors that `rtvq` experts refer to: among what was given, and beside the expert's file.

An artifact is known by the id in its header alone, never by its file's name. Source: obm-1 clause 6.7.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from obm_format.errors import FormatError, ObmError
from obm_format.expert.opening import open_expert
from obm_format.expert.reader import Expert

MOST_NEIGHBOURS = 256  # headers read in the folder of an expert


class References:
    """Base vectors, found when an expert needs them and open until `close`.

    Args:
        given: where to look first: open artifacts, which stay the caller's, or paths of `.obm` files.
    """

    def __init__(self, given: Sequence[Expert | str | os.PathLike[str]] = ()) -> None:
        self._known = {one.id: one for one in given if isinstance(one, Expert)}
        self._paths = [Path(one) for one in given if not isinstance(one, Expert)]
        self._opened: list[Expert] = []
        # who was given what; whoever is closed and forgotten by its owner is not kept for this
        self._lent: weakref.WeakKeyDictionary[Expert, list[Expert]] = weakref.WeakKeyDictionary()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened here, once nobody refers to it any more."""
        for expert, others in self._lent.items():
            for other in others:
                expert.forget(other)
        self._lent.clear()
        while self._opened:
            self._opened.pop().close()
        self._known.clear()

    def attach(self, expert: Expert, path: str | os.PathLike[str] | None = None) -> None:
        """Give an expert, until `close`, the base vectors that its records refer to, if it needs any.

        Args:
            expert: an open expert.
            path: its file, beside which others are looked for; None: nowhere else.

        Raises:
            FormatError: `bad_reference`, one is not found; it names the id.
            ObmError: a given path cannot be opened.
        """
        for wanted in expert.missing_refs:
            found = self._known.get(wanted) or self._search(wanted, path)
            if found is None:
                raise FormatError(
                    "bad_reference",
                    "the expert's base vector is not at hand",
                    where=str(path) if path is not None else expert.id,
                    expected=wanted,
                    hint="lay its file beside the expert's, or name it (--ref FILE)",
                )
            expert.refer_to(found)
            self._lent.setdefault(expert, []).append(found)

    def _search(self, wanted: str, path: str | os.PathLike[str] | None) -> Expert | None:
        beside = neighbours(wanted, Path(path)) if path is not None else ()
        for candidate in (*self._paths, *beside):
            try:
                found = open_expert(candidate, expected_id=wanted)
            except ObmError as error:
                # what only lies beside the expert may be anything; what was named is to be an artifact
                if error.reason == "artifact_id" or candidate not in self._paths:
                    continue
                raise
            self._opened.append(found)
            self._known[wanted] = found
            return found
        return None


def neighbours(wanted: str, path: Path) -> Iterator[Path]:
    """The artifacts in a file's folder, the likely ones first, a bounded number of them."""
    likely = (f"{wanted.rpartition(':')[2]}.obm", "base.obm")
    try:
        names = sorted(entry.name for entry in os.scandir(path.parent) if entry.name.endswith(".obm"))
    except OSError:
        return
    names.sort(key=lambda name: likely.index(name) if name in likely else len(likely))
    for name in names[:MOST_NEIGHBOURS]:
        candidate = path.parent / name
        if candidate != path and candidate.is_file():
            yield candidate

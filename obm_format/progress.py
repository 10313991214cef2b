"""How long work tells somebody how far it is: one callable type, and the one that says nothing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (phase, bytes done so far in the phase, bytes of the phase in all); may raise to stop the work."""


def silent(phase: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""

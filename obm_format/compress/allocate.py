"""Spend a budget of bytes on tensors that can each be stored in several ways. Pure arithmetic, no arrays.

Every tensor has a ladder: the cheapest way to store it, then ways that cost more and are worth it. The steps of all
ladders are taken in one order, the best first, each where it still fits. Two aims, one before the other: keep the
whole shift along d (phase 1), then lose little beside it (phase 2). See docs/adr/0014.

Why more bytes are never worse: take two budgets, and the first step that the larger one affords and the smaller one
does not. All that the smaller one can still buy costs less than that step and is worth less per byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from obm_format.compress.measure import Fidelity

WHOLE: Final = 0.998  # who keeps this share of the shift, and no more than its inverse, counts as keeping all
ACROSS: Final = 0.1  # what is lost across d weighs this much of what is lost along it, see docs/adr/0014


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to store a tensor.

    Args:
        nbytes: bytes of the file that it takes, all told; at least 0.
        fidelity: what it keeps.
    """

    nbytes: int
    fidelity: Fidelity

    @property
    def kept(self) -> float:
        """What phase 1 counts: the energy along d that is kept; what is too much counts against it."""
        share = self.fidelity.kept
        near = max(0.0, 1 - abs(1 - share))
        return self.fidelity.shift * (1.0 if near >= WHOLE else near)

    @property
    def lost(self) -> float:
        """What phase 2 counts: energy lost along d row by row, and a share of that across it."""
        across = max(0.0, self.fidelity.lost - self.fidelity.skew)
        return self.fidelity.skew + ACROSS * across


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From one rung of a tensor's ladder to the next.

    Args:
        tensor: whose ladder.
        rung: index of the rung that it leads to, in the ladder.
        phase: 1 or 2.
        nbytes: what it costs; positive.
        worth: what it gains for each byte; positive.
    """

    tensor: str
    rung: int
    phase: int
    nbytes: int
    worth: float


def ladder(options: Sequence[Option]) -> list[int]:
    """The options worth taking, cheapest first, as places in `options`.

    Returns:
        each step keeps more than the one before, or as much and loses less; gains per byte fall within a phase.
    """
    order = sorted(range(len(options)), key=lambda i: (options[i].nbytes, -options[i].kept, options[i].lost, i))
    rungs = _hull(order, [(option.nbytes, option.kept) for option in options])
    top = rungs[-1]
    as_good = [i for i in order if options[i].kept >= options[top].kept and options[i].nbytes >= options[top].nbytes]
    return rungs[:-1] + _hull(as_good, [(option.nbytes, -option.lost) for option in options])


def steps(tensor: str, options: Sequence[Option], rungs: Sequence[int]) -> list[Step]:
    """The steps of one ladder.

    Args:
        tensor: its name.
        options: all ways to store it.
        rungs: what `ladder` gave.
    """
    found = []
    for place, (low, high) in enumerate(pairwise(rungs), 1):
        old, new = options[low], options[high]
        phase = 1 if new.kept > old.kept else 2
        gain = new.kept - old.kept if phase == 1 else old.lost - new.lost
        nbytes = new.nbytes - old.nbytes
        found.append(Step(tensor=tensor, rung=place, phase=phase, nbytes=nbytes, worth=gain / nbytes))
    return found


def allocate(ladders: Mapping[str, Sequence[Step]], spare: int) -> tuple[dict[str, int], Step | None]:
    """Take steps, the best first, each that still fits.

    Args:
        ladders: the steps of each tensor, in their order.
        spare: bytes that may be spent beyond everybody's first rung.

    Returns:
        the rung of each tensor, and the best step that did not fit, or None where all were taken.
    """
    reached = dict.fromkeys(ladders, 0)
    refused: Step | None = None
    order = sorted(
        (step for one in ladders.values() for step in one),
        key=lambda step: (step.phase, -step.worth, step.tensor, step.rung),
    )
    for step in order:
        if step.rung != reached[step.tensor] + 1:
            continue  # a step below it did not fit
        if step.nbytes <= spare:
            spare -= step.nbytes
            reached[step.tensor] = step.rung
        elif refused is None:
            refused = step
    return reached, refused


def _hull(order: Sequence[int], points: Sequence[tuple[int, float]]) -> list[int]:
    """The upper concave hull from the cheapest point to the best one; `order` goes by cost, then from the best down."""
    rungs: list[int] = []
    for i in order:
        if rungs and points[i][1] <= points[rungs[-1]][1]:
            continue
        while len(rungs) > 1 and _slope(points, rungs[-2], rungs[-1]) <= _slope(points, rungs[-1], i):
            rungs.pop()
        rungs.append(i)
    return rungs


def _slope(points: Sequence[tuple[int, float]], low: int, high: int) -> float:
    return (points[high][1] - points[low][1]) / (points[high][0] - points[low][0])

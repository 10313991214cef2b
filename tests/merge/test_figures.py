"""What a merge did is counted on a sample, and neither pieces nor how many are counted together show in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tiny_experts import KERNELS

from obm_format.codecs.base import Span
from obm_format.kernels.contract import ExactOperand, Operand, SignOperand, ValueOperand, ZeroOperand
from obm_format.merge import figures
from obm_format.merge.figures import Figures, Piece, Sample
from obm_format.model import DType

ROWS, COLS = 12, 40
RNG = np.random.default_rng(0)
BASE = RNG.normal(0, 1, (ROWS, COLS)).astype(np.float32)
SHIFTS = RNG.choice(np.float32([-0.5, 0, 1e-12, 0.25]), (3, ROWS, COLS))
SIGNS = RNG.random((ROWS, COLS)) < 0.5
ALPHAS = RNG.choice(np.float32([0.25, 1e-12]), (ROWS, 1))


def operands(rows: slice, names: str) -> list[tuple[str, bool, Operand]]:
    """Experts by a letter each, in some rows: values, exact, sign bits, zeros."""
    known: dict[str, tuple[str, bool, Operand]] = {
        "v": ("v", True, ValueOperand(values=SHIFTS[0, rows].copy())),
        "e": ("e", False, ExactOperand(words=(BASE + SHIFTS[1])[rows].view(np.uint32), dtype=DType.F32)),
        "s": (
            "s",
            True,
            SignOperand(
                bits=(np.packbits(SIGNS[rows], axis=1, bitorder="little"),),
                alphas=(ALPHAS[rows],),
                group=COLS,
                cols=COLS,
            ),
        ),
        "z": ("z", True, ZeroOperand()),
    }
    return [known[name] for name in names]


def by_definition(names: str, chosen: np.ndarray) -> Figures:
    """The counts over the chosen elements."""
    values = {
        "v": SHIFTS[0],
        "e": (BASE + SHIFTS[1]) - BASE,
        "s": np.where(SIGNS, ALPHAS, -ALPHAS),
    }
    found, brought = Figures(), [name for name in names if name != "z"]
    for name in brought:
        if name != "e":
            moved = values[name][chosen] != 0
            swallowed = moved & (BASE[chosen] + values[name][chosen] == BASE[chosen])
            found.count_absorbed(name, int(swallowed.sum()), int(moved.sum()))
    up = sum((values[name][chosen] > 0).astype(int) for name in brought)
    down = sum((values[name][chosen] < 0).astype(int) for name in brought)
    if len(brought) > 1:
        found.contested = int((up + down > 1).sum())
        found.agreed = int(((up + down > 1) & ((up == 0) | (down == 0))).sum())
    return found


def counted(names: str, cuts: Sequence[int], by_rows: bool) -> Figures:
    """What a sample counts of pieces that end at these rows."""
    return counted_apart([names] * len(cuts), cuts, by_rows)


def counted_apart(names_of: Sequence[str], cuts: Sequence[int], by_rows: bool) -> Figures:
    """As `counted`, where each piece has experts of its own."""
    found = Figures()
    sample, start = Sample(found, KERNELS), 0
    for names, stop in zip(names_of, cuts, strict=True):
        rows = slice(start, stop)
        shape = (stop - start, COLS) if by_rows else (1, (stop - start) * COLS)
        brought = operands(rows, names)
        if not by_rows:
            brought = [(name, lossy, flat(operand, shape)) for name, lossy, operand in brought]
        sample.add(
            Piece(
                numel=ROWS * COLS,
                span=Span(start * COLS, stop * COLS),
                shape=shape,
                base=BASE[rows].reshape(-1).view(np.uint32),
                base_dtype=DType.F32,
                out_dtype=DType.F32,
                operands=brought,
            )
        )
        start = stop
    sample.count()
    return found


def flat(operand: Operand, shape: tuple[int, int]) -> Operand:
    match operand:
        case ExactOperand(words=words, dtype=dtype):
            return ExactOperand(words=words.reshape(shape), dtype=dtype)
        case ValueOperand(values=values):
            return ValueOperand(values=values.reshape(shape))
        case _:
            return operand


@pytest.mark.parametrize("cuts", [[12], [5, 12], [2, 4, 6, 8, 10, 12], [1, 2, 12]])
@pytest.mark.parametrize("together", [1, 100, 10_000])
@pytest.mark.parametrize(("numel", "stride"), [(ROWS * COLS, 1), (160, 3)])
@pytest.mark.parametrize("names", ["v", "e", "ve", "vez", "z", "s", "se", "svze"])
def test_counts_are_those_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, names: str, numel: int, stride: int, together: int, cuts: list[int]
) -> None:
    monkeypatch.setattr(figures, "SAMPLE_NUMEL", numel)
    monkeypatch.setattr(figures, "_COUNTED_NUMEL", together)
    by_rows = np.zeros((ROWS, COLS), bool)
    by_rows[::stride] = True
    if all(stop - start > 1 for start, stop in zip([0, *cuts], cuts, strict=False)) or "s" in names:
        assert counted(names, cuts, by_rows=True) == by_definition(names, by_rows)
    if "s" not in names:
        by_elements = np.arange(ROWS * COLS) // 16 % stride == 0
        assert counted(names, cuts, by_rows=False) == by_definition(names, by_elements.reshape(ROWS, COLS))


def test_pieces_of_other_experts_are_not_counted_together() -> None:
    top = np.zeros((ROWS, COLS), bool)
    top[:6] = True
    expected = by_definition("ve", top)
    expected.add(by_definition("se", ~top))
    assert counted_apart(["ve", "se"], [6, 12], by_rows=True) == expected

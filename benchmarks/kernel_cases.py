"""Kernels against a plain copy: apply, merge and pack over whole matrices of Mistral's shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from harness import Case

from obm_format.kernels import select_kernels
from obm_format.kernels.contract import Combine, ExactOperand, Operand, SignOperand
from obm_format.kernels.reference import ReferenceKernels
from obm_format.kernels.words import Words, from_float32, to_float32
from obm_format.model import DType

ROWS, COLS = 4096, 14336
SETS = 3  # sets of buffers to rotate, so that no cache holds them all
CHECK_ROWS = 64
MATRICES = {
    "q": (4096, 4096),
    "k": (1024, 4096),
    "v": (1024, 4096),
    "o": (4096, 4096),
    "gate": (14336, 4096),
    "up": (14336, 4096),
    "down": (4096, 14336),
}


def weights(seed: int, rows: int, cols: int, sigma: float = 0.02) -> Words:
    """BF16 words, normally distributed."""
    draw = np.random.default_rng(seed).standard_normal((rows, cols), dtype=np.float32)
    return from_float32(draw * np.float32(sigma), DType.BF16)


def signs(seed: int, rows: int, cols: int) -> SignOperand:
    """One plane of random signs with an alpha per row."""
    draw = np.random.default_rng(seed)
    bits = draw.integers(0, 256, (rows, cols // 8), dtype=np.uint8)
    alphas = draw.uniform(1e-4, 1e-3, (rows, 1)).astype(np.float16).astype(np.float32)
    return SignOperand(bits=(bits,), alphas=(alphas,), group=cols, cols=cols)


def operand_nbytes(operand: Operand) -> int:
    """Bytes of an operand."""
    if isinstance(operand, SignOperand):
        return sum(bits.nbytes for bits in operand.bits) + sum(alphas.nbytes for alphas in operand.alphas)
    return operand.words.nbytes if isinstance(operand, ExactOperand) else 0


def first_rows(operand: Operand, rows: int) -> Operand:
    """The first rows of an operand."""
    if isinstance(operand, SignOperand):
        bits, alphas = tuple(b[:rows] for b in operand.bits), tuple(a[:rows] for a in operand.alphas)
        return SignOperand(bits=bits, alphas=alphas, group=operand.group, cols=operand.cols)
    if isinstance(operand, ExactOperand):
        return ExactOperand(words=operand.words[:rows], dtype=operand.dtype)
    return operand


@dataclass(frozen=True)
class Matrix:
    """One matrix to merge: backbone, routed operand, the others, output."""

    base: Words
    routed: Operand
    others: tuple[Operand, ...]
    out: Words

    @property
    def nbytes(self) -> int:
        """Bytes in and out."""
        return self.base.nbytes + self.out.nbytes + sum(operand_nbytes(one) for one in (self.routed, *self.others))


def merging(sets: list[list[Matrix]], threads: int) -> Case:
    """A case that merges all matrices of one set by 1bit-merging with lam 0.1."""
    kernels, reference = select_kernels(threads), ReferenceKernels()

    def merge(matrix: Matrix, who: ReferenceKernels | None = None, rows: int | None = None) -> Words:
        base, out = (matrix.base, matrix.out) if rows is None else (matrix.base[:rows], matrix.out[:rows].copy())
        routed = matrix.routed if rows is None else first_rows(matrix.routed, rows)
        others = matrix.others if rows is None else tuple(first_rows(one, rows) for one in matrix.others)
        (who or kernels).merge(
            base, DType.BF16, routed, others,
            combine=Combine.TIES, weights=[1.0] * len(others), lam=0.1, out=out, out_dtype=DType.BF16,
        )  # fmt: skip
        return out

    def check() -> bool:
        return all(
            np.array_equal(merge(matrix)[:CHECK_ROWS], merge(matrix, reference, CHECK_ROWS)) for matrix in sets[0]
        )

    def run(repeat: int) -> None:
        for matrix in sets[repeat % len(sets)]:
            merge(matrix)

    nbytes = sum(matrix.nbytes for matrix in sets[0])
    return Case(dtype="BF16", kernel=kernels.name, nbytes=nbytes, check=check, run=run)


def apply_case(threads: int) -> Case:
    """Backbone plus one 1-bit expert, one matrix."""
    sets = [
        [Matrix(weights(i, ROWS, COLS), signs(10 + i, ROWS, COLS), (), np.zeros((ROWS, COLS), np.uint16))]
        for i in range(SETS)
    ]
    return merging(sets, threads)


def merge_linear_case(threads: int, experts: int) -> Case:
    """All linear matrices of two layers of Mistral's shapes, every expert with 1 bit everywhere."""
    matrices = [
        Matrix(
            weights(place, *shape),
            signs(100 + place, *shape),
            tuple(signs(1000 * one + place, *shape) for one in range(1, experts)),
            np.zeros(shape, np.uint16),
        )
        for place, shape in enumerate([*MATRICES.values()] * 2)
    ]
    return merging([matrices], threads)


def merge_paper_math_case(threads: int) -> Case:
    """The same matrices by the paper's positions with the math expert routed: chat has 1 bit in the MLP, the others in
    attention; exact tensors are decoded already.
    """  # noqa: D205
    matrices = []
    for place, (name, shape) in enumerate([*MATRICES.items()] * 2):
        base = weights(place, *shape)
        attention = name in "qkvo"

        def exact(seed: int, base: Words = base, shape: tuple[int, int] = shape) -> ExactOperand:
            shift = to_float32(weights(seed, *shape, sigma=5e-4), DType.BF16)
            return ExactOperand(words=from_float32(to_float32(base, DType.BF16) + shift, DType.BF16), dtype=DType.BF16)

        chat = exact(200 + place) if attention else signs(200 + place, *shape)
        math, code = (
            (signs(300 + place, *shape), signs(400 + place, *shape))
            if attention
            else (exact(300 + place), exact(400 + place))
        )
        matrices.append(Matrix(base, math, (chat, code), np.zeros(shape, np.uint16)))
    return merging([matrices], threads)


def pack_case(threads: int) -> Case:
    """A BF16 pair to sign bits and an alpha per row, one matrix."""
    kernels, reference = select_kernels(threads), ReferenceKernels()
    pairs = [(weights(i, ROWS, COLS), weights(50 + i, ROWS, COLS)) for i in range(SETS)]
    bounds = np.arange(ROWS + 1, dtype=np.int64) * COLS

    def pack(base: Words, tuned: Words, who: ReferenceKernels | None = None) -> list[np.ndarray]:
        return [*(who or kernels).pack(tuned, DType.BF16, base, DType.BF16, bounds[: len(base) + 1])]

    def check() -> bool:
        base, tuned = (words[:CHECK_ROWS] for words in pairs[0])
        pairwise = zip(pack(base, tuned), pack(base, tuned, reference), strict=True)
        return all(np.array_equal(one, other) for one, other in pairwise)

    nbytes = 2 * pairs[0][0].nbytes + ROWS * COLS // 8 + 2 * ROWS
    return Case(
        dtype="BF16", kernel=kernels.name, nbytes=nbytes, check=check, run=lambda repeat: pack(*pairs[repeat % SETS])
    )


CASES: dict[str, Callable[[int], Case]] = {
    "apply-4096x14336": apply_case,
    "merge3-linear": lambda threads: merge_linear_case(threads, 3),
    "merge3-paper-math": merge_paper_math_case,
    "merge8-linear": lambda threads: merge_linear_case(threads, 8),
    "pack-4096x14336": pack_case,
}

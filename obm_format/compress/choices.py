"""How one tensor can be stored: the encodings that a budget chooses among, and their names for people.

Pure data; encoding is the work of `compression`, measuring that of `measure`. Source: design page, "Format" point 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from obm_format.codecs.alphas import AlphaChoice
from obm_format.compress.measure import Fidelity, total
from obm_format.layout import default_rows
from obm_format.model import AlphaRule, Granularity

QUANTISED: Final = ("affine2", "affine3", "affine4", "affine8")
_GROUP: Final = 64  # columns: the smallest group that the format has
_PROJ: Final = tuple(
    AlphaChoice(granularity=granularity, group=group, rule=AlphaRule.PROJ)
    for granularity, group in ((Granularity.MATRIX, 0), (Granularity.ROW, 0), (Granularity.GROUP, _GROUP))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to store one tensor.

    Args:
        encoding: `zero`, `sign1`, `tern1`, `sparse`, `affine2` .. `affine8`, or `exact`.
        planes: planes of `sign1`.
        alpha: the alphas of `sign1` and `tern1`; None for the others.
    """

    encoding: str
    planes: int = 1
    alpha: AlphaChoice | None = None

    @property
    def is_signs(self) -> bool:
        """Whether elements are -alpha, +alpha, or 0."""
        return self.alpha is not None

    def __str__(self) -> str:
        """As it is written on the command line: `sign1 proj/row`, `sign1 2 planes mean/row`, `affine4`."""
        if self.alpha is None:
            return self.encoding
        granularity = self.alpha.granularity
        grain = f"group:{self.alpha.group}" if granularity is Granularity.GROUP else granularity.value
        planes = f" {self.planes} planes" if self.planes > 1 else ""
        gain = f" gain {self.alpha.gain}" if self.alpha.gain != "1" else ""
        return f"{self.encoding}{planes} {self.alpha.rule.value}/{grain}{gain}"


def candidates(shape: tuple[int, ...], alpha: AlphaChoice | None, *, signs: bool) -> Iterator[Choice]:
    """The ways to store a float tensor that differs from the backbone's, in a fixed order.

    The rules `mean` and `rms` take as many bytes as `proj` and keep less of the shift: they are tried only where
    they are asked for.

    Args:
        shape: the shape that is encoded.
        alpha: the alphas that the caller asks for; None: `proj` at every granularity that the shape has.
        signs: whether it may be left out or stored as signs: it lies in the position.
    """
    if signs:
        alphas = _PROJ if alpha is None else (alpha,)
        rows = default_rows(shape)
        columns = shape[-1] if shape else 1
        yield Choice(encoding="zero")
        for one in alphas:
            if _fits(one, rows, columns):
                yield Choice(encoding="sign1", alpha=one)
        fine = _PROJ[1] if alpha is None else alpha
        for planes in (2, 3, 4):
            yield Choice(encoding="sign1", planes=planes, alpha=fine)
        yield Choice(encoding="tern1", alpha=fine)
    for encoding in (*QUANTISED, "sparse", "exact"):
        yield Choice(encoding=encoding)


def with_gain(choice: Choice, kept: float) -> Choice | None:
    """`choice` with the gain that makes up for the share of the shift that it keeps; None where there is none.

    `tern1` leaves small values out, so that even `proj` keeps a little less than all; its gain scales every value.

    Args:
        choice: of gain 1.
        kept: what it keeps of the shift, 0 to 1.
    """
    if choice.alpha is None or choice.alpha.rule is not AlphaRule.PROJ or choice.encoding != "tern1":
        return None
    gain = f"{1 / kept:.4f}".rstrip("0").rstrip(".") if 0.5 <= kept < 1 else "1"
    return None if gain == "1" else replace(choice, alpha=replace(choice.alpha, gain=gain))


def _fits(alpha: AlphaChoice, rows: int, columns: int) -> bool:
    """Whether this granularity says more than the coarser one does."""
    match alpha.granularity:
        case Granularity.ROW:
            return rows > 1
        case Granularity.GROUP:
            return columns > alpha.group
        case _:
            return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a budget chose for one tensor.

    Args:
        name: the tensor.
        role: what it does in a transformer block: `attention`, `mlp` or `other`.
        choice: how it is stored.
        nbytes: bytes of its parts and alphas.
        numel: elements that the encoding covers.
        fidelity: what that keeps of its task vector.
    """

    name: str
    role: str
    choice: Choice
    nbytes: int
    numel: int
    fidelity: Fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class Unaffordable:
    """The step that would have been worth most, had it fitted.

    Args:
        name: the tensor.
        choice: how it would be stored.
        nbytes: bytes more than it takes now.
    """

    name: str
    choice: Choice
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """How to store the tensors so that a file fits into a budget, and why so.

    Args:
        limit: the budget in bytes.
        smallest: bytes of the smallest file there is within the same options.
        largest: bytes of the file in which every tensor is stored as well as it can be.
        chosen: the tensors that the budget chose for, sorted by name; the others are stored as the options say.
        refused: what more bytes would go to first; None where everything is stored as well as it can be.
    """

    limit: int
    smallest: int
    largest: int
    chosen: tuple[Chosen, ...]
    refused: Unaffordable | None

    @property
    def choices(self) -> Mapping[str, Choice]:
        """How each of these tensors is stored, by name."""
        return {one.name: one.choice for one in self.chosen}

    @property
    def approximate(self) -> frozenset[str]:
        """Names of those that do not come back bit for bit."""
        return frozenset(one.name for one in self.chosen if one.choice.encoding != "exact")

    @property
    def fidelity(self) -> Fidelity:
        """What is kept of all of them."""
        return total(one.fidelity for one in self.chosen)

    def as_json(self) -> dict[str, object]:
        """What `obm compress --budget --json` adds."""
        shift = self.fidelity.shift
        refused = self.refused
        return {
            "budget": {
                "nbytes": self.limit,
                "smallest_nbytes": self.smallest,
                "largest_nbytes": self.largest,
                "next": refused and {"name": refused.name, "choice": str(refused.choice), "nbytes": refused.nbytes},
            },
            "choices": [
                {
                    "name": one.name,
                    "role": one.role,
                    "encoding": one.choice.encoding,
                    "choice": str(one.choice),
                    "nbytes": one.nbytes,
                    "numel": one.numel,
                    "kept": one.fidelity.kept,
                    "rel_error": one.fidelity.rel_error,
                    "shift_share": one.fidelity.shift / shift if shift else 0.0,
                }
                for one in self.chosen
            ],
        }

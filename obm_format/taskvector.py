"""Which tensor of a fine-tune belongs to which of its backbone, and the difference of the two.

Works on names, dtypes, shapes and digests first (`pair`), then hands out one tensor at a time (`difference`).
Never encodes. Source: design page, "Format" point 5; obm-1 clauses 5.2 to 5.8, 11.1 and 11.2.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from obm_format.checkpoint import Checkpoint
from obm_format.container.names import check_tensor_name
from obm_format.errors import BackboneMismatch, CheckpointError, FormatError
from obm_format.kernels.contract import Kernels
from obm_format.kernels.words import Float32, Words, first_not_finite
from obm_format.limits import DEFAULT_LIMITS
from obm_format.model import DType, Prefix, TensorSpec

FindNotFinite = Callable[[Words, DType], int | None]
"""As `words.first_not_finite`."""

_ALLOW_REMOVED = "finish the fine-tune's checkpoint, or allow removed tensors (--allow-removed)"


class Relation(enum.Enum):
    """How a tensor of the fine-tune relates to the backbone.

    SAME: equal shapes. GROWN: more rows, else equal shapes. RESHAPED: another shape, of integers or booleans.
    ADDED: no counterpart.
    """

    SAME = "same"
    GROWN = "grown"
    RESHAPED = "reshaped"
    ADDED = "added"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One tensor of the fine-tune and its counterpart.

    Args:
        spec: dtype and shape of the fine-tune's tensor, under the backbone's name for it.
        source: the fine-tune's own name.
        base: the backbone's tensor; None for ADDED.
        relation: how the two relate.
    """

    spec: TensorSpec
    source: str
    base: TensorSpec | None
    relation: Relation

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.spec.name

    @property
    def is_float(self) -> bool:
        """Whether obm computes with both tensors, so that there is a difference."""
        return self.base is not None and self.base.dtype.is_float and self.spec.dtype.is_float

    @property
    def encoded_shape(self) -> tuple[int, ...]:
        """The shape that a difference covers: the backbone's rows of a grown tensor."""
        return self.base.shape if self.base is not None else self.spec.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskVectorPlan:
    """Everything that names and shapes say about a fine-tune and its backbone.

    Args:
        pairs: sorted by name.
        removed: names of backbone tensors that the fine-tune lacks, sorted.
        prefix: by which the names differ, or None.
    """

    pairs: tuple[Pair, ...]
    removed: tuple[str, ...]
    prefix: Prefix | None


def pair(base: Checkpoint, tuned: Checkpoint, *, allow_removed: bool = False) -> TaskVectorPlan:
    """Match the tensors of a fine-tune with those of its backbone.

    A tensor that only the backbone has is `removed` if it holds integers or booleans, or if it is a tied
    matrix: its bytes are those of another backbone tensor, which the fine-tune has.

    Args:
        base: the backbone.
        tuned: the fine-tune.
        allow_removed: whether other float tensors may be missing from the fine-tune.

    Raises:
        BackboneMismatch: no float tensor in common (`nothing_in_common`); a float tensor has another shape
            and not just more rows (`shape_differs`); a float tensor is missing from the fine-tune
            (`tensor_missing`).
        CheckpointError: a name that the format cannot carry (`bad_name`), or one that is used twice once the
            prefix is taken off (`duplicate_name`).
    """
    prefix = find_prefix(base.tensors, tuned.tensors)
    pairs = [_pair(spec, base.tensors, prefix) for spec in tuned.tensors.values()]
    pairs.sort(key=lambda found: found.name)
    if not any(found.is_float for found in pairs):
        raise BackboneMismatch(
            "nothing_in_common",
            "backbone and fine-tune share no float tensor",
            where=str(tuned.path),
            expected=next(iter(base.tensors)),
            got=next(iter(tuned.tensors)),
        )
    _check_names(pairs, base.tensors)
    for found in pairs:
        _check_shape(found)
    present = {found.base.name for found in pairs if found.base is not None}
    removed = tuple(name for name in base.tensors if name not in present)
    if not allow_removed:
        _check_removed(base, removed, present, tuned)
    return TaskVectorPlan(pairs=tuple(pairs), removed=removed, prefix=prefix)


def find_prefix(base: Iterable[str], tuned: Iterable[str]) -> Prefix | None:
    """The one prefix that makes most names match; None where they match best as they are (clause 5.7).

    Args:
        base: the backbone's names.
        tuned: the fine-tune's names.
    """
    old, new = set(base), set(tuned)
    matches: Counter[tuple[str, str]] = Counter()
    for side, longer, shorter in (("tuned", new, old), ("backbone", old, new)):
        for name in longer:
            for stop in (place + 1 for place, letter in enumerate(name) if letter == "."):
                if name[stop:] in shorter:
                    matches[side, name[:stop]] += 1
    if not matches:
        return None
    # the most matches; among equals the shortest prefix, and a fixed order
    (side, text), count = min(matches.items(), key=lambda item: (-item[1], len(item[0][1]), item[0]))
    return Prefix(side=side, text=text) if count > len(old & new) else None


def difference(found: Pair, base: Checkpoint, tuned: Checkpoint, kernels: Kernels) -> Float32:
    """f32(f32(fine-tune) - f32(backbone)) of a pair, over the backbone's rows (clause 11.2).

    Args:
        found: a pair with `is_float`, of relation SAME or GROWN.
        base: the backbone.
        tuned: the fine-tune.
        kernels: subtracts.

    Returns:
        float32 array of `encoded_shape`, finite.

    Raises:
        CheckpointError: two finite elements differ by more than float32 holds (`not_finite_input`).
    """
    assert found.base is not None  # noqa: S101 - is_float says so
    new = tuned.words(found.source)
    if found.relation is Relation.GROWN:
        new = new[: found.base.shape[0]]
    d = kernels.subtract(new, found.spec.dtype, base.words(found.base.name), found.base.dtype)
    if d.size and not (np.isfinite(d.max()) and np.isfinite(d.min())):
        raise CheckpointError(
            "not_finite_input", "fine-tune and backbone differ by more than float32 holds", where=found.name
        )
    return d


def check_difference(found: Pair, base: Checkpoint, tuned: Checkpoint, kernels: Kernels) -> None:
    """Refuse a pair that is stored exactly and whose difference float32 cannot hold (clauses 9.2 and 11.1).

    Args:
        found: any pair.
        base: the backbone.
        tuned: the fine-tune.
        kernels: subtracts, where an element is so large that it matters.

    Raises:
        CheckpointError: `not_finite_input`.
    """
    if found.base is None or not found.is_float or found.relation is Relation.RESHAPED:
        return
    if _is_vast(base.words(found.base.name), found.base.dtype) or _is_vast(tuned.words(found.source), found.spec.dtype):
        difference(found, base, tuned, kernels)


def _is_vast(words: Words, dtype: DType) -> bool:
    """Whether a magnitude is 2^127 or more: the difference of two smaller ones is finite in float32."""
    limit = {DType.F32: 0xFE << 23, DType.BF16: 0xFE << 7}.get(dtype)
    if limit is None or not words.size:
        return False
    sign = 1 << (8 * words.itemsize - 1)
    # as signed numbers the positive ones stay in order, as unsigned ones the negative ones come last
    return int(words.view(f"i{words.itemsize}").max()) >= limit or int(words.max()) >= sign | limit


def check_finite(checkpoint: Checkpoint, name: str, role: str) -> None:
    """Refuse NaN and Inf in one tensor (clause 11.1).

    Args:
        checkpoint: where it lies.
        name: the tensor.
        role: "backbone" or "fine-tune", for the message.

    Raises:
        CheckpointError: `not_finite_input`, with the flat index of the first such element.
    """
    check_finite_words(checkpoint.words(name), checkpoint.tensors[name], role)


def check_finite_words(
    words: Words, spec: TensorSpec, role: str, first: int = 0, find: FindNotFinite = first_not_finite
) -> None:
    """Refuse NaN and Inf in some elements of a tensor, from flat index `first` on; else as `check_finite`."""
    index = find(words, spec.dtype)
    if index is not None:
        index += first
        place = "" if len(spec.shape) < 2 else f" {tuple(map(int, np.unravel_index(index, spec.shape)))}"
        raise CheckpointError(
            "not_finite_input",
            f"the {role} holds NaN or Inf at flat index {index}{place}",
            where=spec.name,
            hint="repair the checkpoint; NaN cannot be part of a task vector",
        )


def _pair(spec: TensorSpec, base: Mapping[str, TensorSpec], prefix: Prefix | None) -> Pair:
    name = spec.name
    if prefix is not None and prefix.side == "backbone":
        name = prefix.text + name
    elif prefix is not None:
        # a name without the prefix has no counterpart: one prefix for all (clause 5.7)
        name = name.removeprefix(prefix.text) if name.startswith(prefix.text) else ""
    old = base.get(name)
    if old is None:
        return Pair(spec=spec, source=spec.name, base=None, relation=Relation.ADDED)
    return Pair(spec=replace(spec, name=name), source=spec.name, base=old, relation=_relation(spec, old))


def _relation(spec: TensorSpec, old: TensorSpec) -> Relation:
    if spec.shape == old.shape:
        return Relation.SAME
    same_rows = len(spec.shape) == len(old.shape) and spec.shape[1:] == old.shape[1:]
    if same_rows and spec.shape[0] > old.shape[0]:
        return Relation.GROWN
    return Relation.RESHAPED


def _check_names(pairs: list[Pair], base: Mapping[str, TensorSpec]) -> None:
    for found in pairs:
        try:
            check_tensor_name(found.name, DEFAULT_LIMITS, "")
        except FormatError as error:
            raise CheckpointError(
                "bad_name", "the format cannot carry this tensor name", expected=error.expected, got=error.got
            ) from error
        # an added tensor must not take the name of one of the backbone's (clause 5.3)
        if found.relation is Relation.ADDED and found.name in base:
            raise CheckpointError(
                "duplicate_name",
                "without the prefix of the others, this tensor takes the name of another tensor",
                where=found.name,
                hint="rename it in the fine-tune",
            )


def _check_shape(found: Pair) -> None:
    if found.relation is Relation.RESHAPED and found.base is not None:
        reals = found.spec.dtype.holds_reals or found.base.dtype.holds_reals
        if reals:
            raise BackboneMismatch(
                "shape_differs",
                "the fine-tune's tensor has another shape than the backbone's, and not just more rows",
                where=found.name,
                expected=list(found.base.shape),
                got=list(found.spec.shape),
            )


def _check_removed(base: Checkpoint, removed: tuple[str, ...], present: set[str], tuned: Checkpoint) -> None:
    lost = [base.tensors[name] for name in removed if base.tensors[name].dtype.holds_reals]
    lost = [spec for spec in lost if not _is_tied(base, spec, present)]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise BackboneMismatch(
            "tensor_missing",
            f"{tuned.path} lacks this float tensor of the backbone{more}",
            where=lost[0].name,
            hint=_ALLOW_REMOVED,
        )


def _is_tied(base: Checkpoint, spec: TensorSpec, present: set[str]) -> bool:
    """Whether the fine-tune has a matrix of the same bytes; vectors are often equal by chance (all ones)."""
    if len(spec.shape) < 2:
        return False
    twins = (base.tensors[name] for name in sorted(present))
    return any(
        (twin.dtype, twin.shape) == (spec.dtype, spec.shape) and base.sha256(twin.name) == base.sha256(spec.name)
        for twin in twins
    )

"""What a merge would read, write, need and refuse, from headers alone: `--dry-run`.

Never reads a weight and never writes. Memory follows what `tensor` does: a piece of one tensor per thread.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from obm_format.checkpoint_writer import refuse_occupied
from obm_format.errors import CheckpointError, ObmError
from obm_format.layout import part_layouts
from obm_format.merge.arithmetic import kernel_combine
from obm_format.merge.methods import Cut, Rescale
from obm_format.merge.plan import Header, MergePlan, Participant, Step, check_backbone, plan_merge
from obm_format.merge.recipe import Recipe
from obm_format.merge.survey import is_needed, looks
from obm_format.merge.windows import WINDOW
from obm_format.model import SignParams, TensorRecord, TensorSpec

FRAME_NBYTES = 4 << 20  # what a framed part holds beside the piece that is taken from it
SURVEY_NBYTES = (1 << 16) * 8  # counts of magnitudes, per expert
_DECODING_COPIES = 2  # of float32 values, while all of a tensor is decoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a merge would take.

    Args:
        tensors: tensors of the output.
        bytes_read: of backbone and experts, looks at whole experts before the merge among them.
        bytes_written: of all tensors.
        peak_private_bytes: estimate of the memory for tensors, beside the program itself; mapped files are not in
            it.
        looks: how often everything that is combined is read before the merge.
        left_out: (artifact id, tensor) of task vectors that could not be combined.
    """

    tensors: int
    bytes_read: int
    bytes_written: int
    peak_private_bytes: int
    looks: int
    left_out: tuple[tuple[str, str], ...]


def needs(plan: MergePlan, *, threads: int, piece_nbytes: int) -> Needs:
    """What a plan would take.

    Args:
        plan: of the merge.
        threads: tensors that are worked on at a time.
        piece_nbytes: bytes of output that a thread makes at a time.
    """
    times = looks(plan)
    steps = sorted((_step_nbytes(step, plan, piece_nbytes) for step in plan.steps), reverse=True)
    survey = max((_survey_nbytes(step) for step in plan.steps), default=0) if is_needed(plan) else 0
    counts = SURVEY_NBYTES * len(plan.participants) * is_needed(plan)
    return Needs(
        tensors=len(plan.specs),
        bytes_read=plan.bytes_read + times * sum(step.bytes_combined for step in plan.steps),
        bytes_written=plan.bytes_written,
        peak_private_bytes=max(sum(steps[:threads]), survey) + counts,
        looks=times,
        left_out=plan.left_out,
    )


def refusals(
    base: Mapping[str, TensorSpec], experts: Sequence[Header], recipe: Recipe, out: Path | None
) -> list[ObmError]:
    """Everything that headers say would be refused, not just the first.

    Args:
        base: the backbone's tensors by name.
        experts: in any order.
        recipe: how.
        out: the folder to make, if it is known.
    """
    found: list[ObmError] = []
    for place, one in enumerate(experts, 1):
        try:
            check_backbone(base, Participant(id=one.id, manifest=one.manifest, given=place))
        except ObmError as error:
            found.append(error)
    try:
        plan = plan_merge(base, experts, recipe)
    except ObmError as error:
        known = {(one.reason, one.where) for one in found}
        return found if (error.reason, error.where) in known else [*found, error]
    if out is not None:
        found += _output_refusals(out, plan.bytes_written)
    return found


def _output_refusals(out: Path, nbytes: int) -> list[ObmError]:
    try:
        refuse_occupied(out)
    except ObmError as error:
        return [error]
    free = shutil.disk_usage(out.parent).free
    if free >= nbytes:
        return []
    return [
        CheckpointError("disk_full", "the disk has no room for the output", where=str(out), expected=nbytes, got=free)
    ]


def _step_nbytes(step: Step, plan: MergePlan, piece_nbytes: int) -> int:
    """Private memory while one tensor is made: a piece of its output and operands, and windows."""
    dense = {place for place, one in enumerate(plan.participants) if not one.vouches}
    thinned = any(plan.participants[one.participant].density < 1 for one in step.others)
    numel = min(step.spec.numel, max(1, piece_nbytes // step.spec.dtype.itemsize))
    records = [one.record for one in step.others if one.participant not in dense]
    if step.routed is not None and plan.routed not in dense:
        records.append(step.routed)
    operands = sum(_operand_nbytes(record, numel) for record in records)
    windows = 4 * (3 * len(step.others) + 4) * min(numel, 2 * WINDOW) if _makes_values(step, plan) else 0
    drawn = 24 * min(numel, WINDOW) * (plan.recipe.arithmetic.cut is Cut.RANDOM and thinned)
    return numel * step.spec.dtype.itemsize + operands + windows + drawn + 2 * SURVEY_NBYTES * thinned


def _makes_values(step: Step, plan: MergePlan) -> bool:
    """Whether task vectors are made in windows, because the kernels cannot thin or combine them as they are."""
    arithmetic = plan.recipe.arithmetic
    weights = [plan.participants[one.participant].weight for one in step.others]
    if kernel_combine(arithmetic, weights, zero_is_positive=arithmetic.zero_is_positive) is None:
        return True
    ranks = arithmetic.cut is not Cut.RANDOM and arithmetic.rescale is Rescale.NONE
    return any(
        plan.participants[one.participant].density < 1 and not (ranks and one.record.is_exact) for one in step.others
    )


def _operand_nbytes(record: TensorRecord, numel: int) -> int:
    parts = sum(layout.nbytes for layout in part_layouts(record))
    if isinstance(record.params, SignParams):
        return parts
    if record.is_exact:
        return 2 * numel * record.spec.dtype.itemsize + min(parts, FRAME_NBYTES)
    return parts + 4 * numel


def _survey_nbytes(step: Step) -> int:
    """Private memory of a look at a whole tensor: values are decoded at once, through copies of them."""
    decoded = [one.record for one in step.others if not isinstance(one.record.params, SignParams)]
    copies = _DECODING_COPIES * 4 * step.spec.numel * any(not record.is_exact for record in decoded)
    return sum(_operand_nbytes(one.record, step.spec.numel) for one in step.others) + copies + 16 * WINDOW

"""The report of a merge: what it was, what it did to the weights, what it took, and what the caller should know."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from obm_format.merge.execute import WeightStream
from obm_format.merge.figures import Figures
from obm_format.merge.methods import Method
from obm_format.merge.recipe import Recipe

logger = logging.getLogger(__name__)

LAM_WARNING = 0.2  # above it, combining others cost routed 1-bit experts 6 to 8 points (design, "Defaults")
ABSORBED_WARNING = 0.5
_LAYER = re.compile(r".*?\.[0-9]+(?=\.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertReport:
    """One expert of a merge.

    Args:
        id: artifact id.
        task: task name, or "".
        absorbed: share of its approximate non-zero values that rounding to the output dtype swallows, 0 to 1;
            of tensors above a quarter of a million elements a sample is looked at.
    """

    id: str
    task: str
    absorbed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One layer of a merge, where several experts meet.

    Args:
        layer: what the names of its tensors begin with, up to the layer's number; for a tensor outside the
            layers its name.
        moved: share of its elements whose bits changed.
        agreement: share of the elements that several experts move and that all of them move the same way; in
            large tensors, of a sample.
        conflict: the rest: 1 - agreement.
    """

    layer: str
    moved: float
    agreement: float
    conflict: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What a merge was and did; `dataclasses.asdict` is the JSON of `obm materialize`.

    Args:
        method: name of the method.
        route: task name or artifact id of the routed expert, or None.
        lam: factor of the combined experts.
        kernel: which kernels computed.
        threads: tensors that were worked on at a time.
        experts: by ascending artifact id.
        layers: where several experts meet, by name.
        moved_fraction: share of the elements with a counterpart in the backbone whose bits changed.
        bytes_read: bytes of backbone and experts that went in.
        bytes_written: bytes of tensors that came out.
        resumed_bytes: those among them that an earlier, killed run had finished.
        seconds: working time of each phase, over all threads; `read` has the hashing of the backbone in it.
        wall_seconds: on the clock, from open files to the finished folder.
        peak_private_bytes: most private memory that was seen during the merge.
        recipe: digest of the recipe, with the fingerprint of the backbone and the artifact ids in it.
        left_out: (artifact id, tensor) of task vectors that could not be combined.
        warnings: what the caller should know.
    """

    method: str
    route: str | None
    lam: float
    kernel: str
    threads: int
    experts: tuple[ExpertReport, ...]
    layers: tuple[LayerReport, ...]
    moved_fraction: float
    bytes_read: int
    bytes_written: int
    resumed_bytes: int
    seconds: dict[str, float]
    wall_seconds: float
    peak_private_bytes: int
    recipe: str
    left_out: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def report(stream: WeightStream, *, seconds: float, resumed_bytes: int = 0) -> MergeReport:
    """What the last pass of a stream was and did.

    Args:
        stream: it.
        seconds: on the clock.
        resumed_bytes: bytes of the output that were there before.
    """
    plan, meter = stream.plan, stream.meter
    total = meter.total
    experts = tuple(
        ExpertReport(id=one.id, task=one.manifest.task, absorbed=total.absorbed_fraction(one.id))
        for one in plan.participants
    )
    notes = tuple(warnings(plan.recipe, experts, len(plan.left_out)))
    for note in notes:
        logger.warning("%s", note)
    return MergeReport(
        method=plan.recipe.method.value,
        route=plan.route,
        lam=plan.recipe.lam,
        kernel=stream.kernels.name,
        threads=stream.threads,
        experts=experts,
        layers=tuple(layers(meter.figures)),
        moved_fraction=total.moved_fraction,
        bytes_read=meter.bytes_read,
        bytes_written=plan.bytes_written,
        resumed_bytes=resumed_bytes,
        seconds={name: round(value, 6) for name, value in meter.seconds.items()},
        wall_seconds=round(seconds, 6),
        peak_private_bytes=meter.peak_private_bytes,
        recipe=plan.digest,
        left_out=plan.left_out,
        warnings=notes,
    )


def layers(figures: dict[str, Figures]) -> list[LayerReport]:
    """The figures of tensors by layer, in order of names; layers where no two experts meet are left out."""
    found: dict[str, Figures] = {}
    for name in sorted(figures):
        layer = _LAYER.match(name)
        found.setdefault(layer.group() if layer else name, Figures()).add(figures[name])
    return [
        LayerReport(layer=layer, moved=one.moved_fraction, agreement=one.agreement, conflict=1 - one.agreement)
        for layer, one in found.items()
        if one.agreement is not None
    ]


def warnings(recipe: Recipe, experts: Sequence[ExpertReport], left_out: int) -> list[str]:
    """What somebody who merges like this should know."""
    notes = []
    if recipe.method is Method.ONE_BIT_MERGING and abs(recipe.lam) > LAM_WARNING and len(experts) > 1:
        notes.append(f"lam {recipe.lam:g} is large: above {LAM_WARNING:g} the others cost the routed one many points")
    for one in experts:
        if one.absorbed > ABSORBED_WARNING:
            notes.append(
                f"{one.absorbed:.0%} of the compressed values of {one.task or one.id} vanish when weights are"
                " rounded; write F32 (--dtype F32) or compress with another encoding"
            )
    if left_out:
        notes.append(f"{left_out} task vectors could not be combined: another shape, or no floating dtype")
    return notes

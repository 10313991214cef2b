"""Materialize: write merged weights as a checkpoint folder that transformers loads, and report what happened.

The folder appears whole or not at all. Beside the weights go the backbone's configuration and tokenizer
files, and the routed expert's where they differ; never code. Source: design, "Loader"; interfaces,
`materialize`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obm_format.checkpoint import Checkpoint, is_side_file, open_checkpoint
from obm_format.checkpoint_writer import CheckpointWriter
from obm_format.expert import Expert, References, open_expert
from obm_format.kernels.contract import Kernels
from obm_format.merge.dense import DenseFineTune, Source, is_dense, open_dense
from obm_format.merge.execute import WeightStream
from obm_format.merge.methods import Method
from obm_format.merge.recipe import Recipe
from obm_format.model import DType, Kind
from obm_format.progress import Progress, silent

logger = logging.getLogger(__name__)

ExpertSource = Source | str | os.PathLike[str]
BaseSource = Checkpoint | str | os.PathLike[str]

LAM_WARNING = 0.2  # above it, combining others cost routed 1-bit experts 6 to 8 points (design, "Defaults")
ABSORBED_WARNING = 0.5
TORCH_NAMES = {DType.F32: "float32", DType.F16: "float16", DType.BF16: "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertReport:
    """One expert of a merge.

    Args:
        id: artifact id.
        task: task name, or "".
        absorbed: share of its approximate non-zero values that rounding to the output dtype swallows, 0 to 1.
    """

    id: str
    task: str
    absorbed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What a merge was and did; `dataclasses.asdict` is the JSON of `obm materialize`.

    Args:
        method: name of the method.
        route: task name or artifact id of the routed expert, or None.
        lam: factor of the combined experts.
        kernel: which kernels computed.
        threads: most threads that they used.
        experts: by ascending artifact id.
        moved_fraction: share of the elements with a counterpart in the backbone whose bits changed.
        bytes_read: bytes of backbone and experts that went in.
        bytes_written: bytes of tensors that came out.
        seconds: working time of each phase, over all threads.
        peak_private_bytes: most private memory that was seen at the end of a phase.
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
    moved_fraction: float
    bytes_read: int
    bytes_written: int
    seconds: dict[str, float]
    peak_private_bytes: int
    recipe: str
    left_out: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def materialize(
    base: BaseSource,
    experts: Sequence[ExpertSource],
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    refs: Sequence[ExpertSource] = (),
    threads: int | None = None,
    kernels: Kernels | None = None,
    progress: Progress = silent,
) -> MergeReport:
    """Merge experts into a backbone and write the result as a checkpoint folder.

    Args:
        base: the backbone: open, or a checkpoint folder or safetensors file.
        experts: experts: open, or paths of `.obm` files, or of dense fine-tunes (checkpoint folders, safetensors
            files). A base vector among them (kind rtvq-base) takes no part but by the experts that refer to it.
        recipe: how; its fields `backbone` and `experts` are for those who find the files.
        out: the folder to make; it must not exist, or be empty.
        refs: base vectors of `rtvq` experts, likewise; those beside an expert's file are found without.
        threads: most threads; by default all processors.
        kernels: who computes; by default the fastest at hand.
        progress: told the bytes written.

    Returns:
        what happened.

    Raises:
        ObmError: nothing appears at `out` then.
    """
    with contextlib.ExitStack() as stack:
        backbone, opened = open_sources(base, experts, stack, refs)
        stream = WeightStream(backbone, opened, recipe, kernels=kernels, threads=threads, measure=True)
        write_folder(stream, backbone, Path(out), routed_expert(stream, opened), progress)
        return report(stream)


def open_sources(
    base: BaseSource,
    experts: Sequence[ExpertSource],
    stack: contextlib.ExitStack,
    refs: Sequence[ExpertSource] = (),
) -> tuple[Checkpoint, list[Source]]:
    """Open what is not open yet; `stack` closes that again.

    Args:
        base: the backbone.
        experts: experts, and base vectors that they refer to.
        stack: owns what is opened here.
        refs: further base vectors.

    Returns:
        the backbone, and the experts that take part, each with its base vector.

    Raises:
        FormatError: `bad_reference`, a base vector is not found.
        ObmError: a file cannot be opened.
    """
    backbone = base if isinstance(base, Checkpoint) else stack.enter_context(open_checkpoint(base))
    opened = _open_all(backbone, experts, stack)
    given = [one for one in (*opened, *refs) if not isinstance(one, DenseFineTune)]
    references = stack.enter_context(References(given))
    for source, one in zip(experts, opened, strict=True):
        if isinstance(one, Expert):
            references.attach(one, source if isinstance(source, str | os.PathLike) else None)
    return backbone, [one for one in opened if one.manifest.kind is not Kind.RTVQ_BASE]


def _open_all(backbone: Checkpoint, experts: Sequence[ExpertSource], stack: contextlib.ExitStack) -> list[Source]:
    """Open what is not open yet; dense fine-tunes are numbered as they come."""
    opened: list[Source] = []
    for one in experts:
        if isinstance(one, Expert | DenseFineTune):
            opened.append(one)
        elif is_dense(one):
            place = 1 + sum(isinstance(other, DenseFineTune) for other in opened)
            opened.append(stack.enter_context(open_dense(one, backbone, place)))
        else:
            opened.append(stack.enter_context(open_expert(one)))
    return opened


def routed_expert(stream: WeightStream, experts: Sequence[Source]) -> Source | None:
    """The expert that a stream applies whole, if there is one."""
    if stream.plan.routed is None:
        return None
    wanted = stream.plan.participants[stream.plan.routed].id
    return next(expert for expert in experts if expert.id == wanted)


def write_folder(
    stream: WeightStream, base: Checkpoint, out: Path, routed: Source | None, progress: Progress = silent
) -> None:
    """Write a stream and the side files that belong to it as a checkpoint folder, whole or not at all."""
    total, done = stream.plan.bytes_written, 0
    with CheckpointWriter(out, stream.metadata()) as writer:
        with contextlib.closing(iter(stream)) as tensors:
            for spec, words in tensors:
                with stream.meter.phase("write"):
                    writer.write(spec.name, words)
                done += spec.nbytes
                progress("merge", done, total)
        for name, data in side_files(base, routed, stream.plan.recipe.dtype).items():
            writer.write_side_file(name, data)
        with stream.meter.phase("write"):
            writer.commit()


def side_files(base: Checkpoint, routed: Source | None, dtype: DType | None = None) -> dict[str, bytes]:
    """Configuration and tokenizer files of the backbone, replaced by the routed expert's attachments.

    Args:
        base: the backbone.
        routed: the routed expert, or None.
        dtype: the dtype that config.json is to name; None leaves it.
    """
    files = {path.name: path.read_bytes() for path in base.side_files()}
    if routed is not None:
        for attachment in routed.manifest.attachments:
            if is_side_file(attachment.name):
                files[attachment.name] = bytes(routed.attachment(attachment.name))
    if dtype is not None and "config.json" in files:
        files["config.json"] = _config_with_dtype(files["config.json"], dtype)
    return files


def _config_with_dtype(data: bytes, dtype: DType) -> bytes:
    """config.json with its dtype fields set, so that loading does not cast the weights back."""
    try:
        config: Any = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(config, dict):
        return data
    fields = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
    config.update(dict.fromkeys(fields, TORCH_NAMES[dtype]))
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def report(stream: WeightStream) -> MergeReport:
    """What the last pass of a stream was and did."""
    plan, meter = stream.plan, stream.meter
    experts = tuple(
        ExpertReport(id=one.id, task=one.manifest.task, absorbed=meter.absorbed_fraction(one.id))
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
        threads=stream.kernels.threads,
        experts=experts,
        moved_fraction=meter.moved_fraction,
        bytes_read=meter.bytes_read,
        bytes_written=plan.bytes_written,
        seconds={name: round(value, 6) for name, value in meter.seconds.items()},
        peak_private_bytes=meter.peak_private_bytes,
        recipe=plan.digest,
        left_out=plan.left_out,
        warnings=notes,
    )


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

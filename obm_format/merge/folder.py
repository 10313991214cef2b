"""Materialize: write merged weights as a checkpoint folder that transformers loads.

The folder appears whole or not at all; a run that was killed is continued. Beside the weights go the backbone's
configuration and tokenizer files, and the routed expert's where they differ; never code. Source: design, "Loader";
interfaces, `materialize`; ADR 0024.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from obm_format.checkpoint import Checkpoint, is_side_file, open_checkpoint
from obm_format.checkpoint_journal import PageSums
from obm_format.checkpoint_writer import CheckpointWriter
from obm_format.codecs.base import Span
from obm_format.expert import Expert, References, open_expert
from obm_format.kernels.contract import Kernels
from obm_format.kernels.words import Words, words_dtype
from obm_format.merge.dense import DenseFineTune, Source, is_dense, open_dense
from obm_format.merge.execute import WeightStream
from obm_format.merge.figures import Figures, parse_figures
from obm_format.merge.plan import Step
from obm_format.merge.recipe import Recipe
from obm_format.merge.report import MergeReport, report
from obm_format.merge.tensor import Target
from obm_format.model import DType, Kind
from obm_format.progress import Progress, silent

ExpertSource = Source | str | os.PathLike[str]
BaseSource = Checkpoint | str | os.PathLike[str]

TORCH_NAMES = {DType.F32: "float32", DType.F16: "float16", DType.BF16: "bfloat16"}


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
        started = time.perf_counter()
        kept = write_folder(stream, backbone, opened, Path(out), progress)
        return report(stream, seconds=time.perf_counter() - started, resumed_bytes=kept)


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
    stream: WeightStream, base: Checkpoint, experts: Sequence[Source], out: Path, progress: Progress = silent
) -> int:
    """Write a stream and the side files that belong to it as a checkpoint folder, whole or not at all.

    What a killed run for the same folder, of the same recipe and inputs, has finished is taken over.

    Returns:
        bytes of tensors that were taken over.
    """
    total = _Counter(stream.plan.bytes_written, progress)
    buffers = threading.local()
    with CheckpointWriter(out, stream.metadata(), binding=_binding(stream, base, experts)) as writer:
        kept = {step.spec.name for step in stream.plan.steps if all(one.name in writer.finished for one in step.specs)}

        def place(step: Step) -> Target:
            return _InFile(step, writer, buffers, total)

        def done(step: Step, target: Target, figures: Figures) -> None:
            assert isinstance(target, _InFile)  # noqa: S101 - `place` made it
            for spec in step.specs:
                writer.finish(spec.name, target.sums.hexdigest(), asdict(figures))

        kept_nbytes = sum(spec.nbytes for step in stream.plan.steps if step.spec.name in kept for spec in step.specs)
        total.add(kept_nbytes)
        stream.run(place, skip=kept, done=done)
        for name in kept:
            stream.meter.add_figures(name, parse_figures(writer.finished[name]))
        for name, data in side_files(base, routed_expert(stream, experts), stream.plan.recipe.dtype).items():
            writer.write_side_file(name, data)
        with stream.meter.phase("write"):
            writer.commit()
    return kept_nbytes


def _binding(stream: WeightStream, base: Checkpoint, experts: Sequence[Source]) -> str:
    """Digest of all that decides the tensors of the output: recipe, experts, and the backbone."""
    dense = [one.checkpoint for one in sorted(experts, key=lambda one: one.id) if isinstance(one, DenseFineTune)]
    identities = [line for checkpoint in (base, *dense) for line in checkpoint.identity()]
    return hashlib.sha256("\n".join((stream.plan.digest, *identities)).encode()).hexdigest()


class _Counter:
    """Bytes done by several threads, told to one `Progress` at a time."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._progress = total, progress
        self._done = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            if nbytes:
                self._progress("merge", self._done, self._total)


class _InFile:
    """A `Target` that is a tensor of a checkpoint being written, under one or several names."""

    def __init__(self, step: Step, writer: CheckpointWriter, buffers: threading.local, total: _Counter) -> None:
        self.sums = PageSums()
        self._step, self._writer, self._buffers, self._total = step, writer, buffers, total

    def room(self, span: Span) -> Words:
        """See `Target.room`: the thread's own buffer, which stays warm from piece to piece."""
        nbytes = span.size * self._step.spec.dtype.itemsize
        buffer: npt.NDArray[np.uint8] | None = getattr(self._buffers, "bytes", None)
        if buffer is None or buffer.size < nbytes:
            self._buffers.bytes = buffer = np.empty(nbytes, np.uint8)
        return buffer[:nbytes].view(words_dtype(self._step.spec.dtype))

    def put(self, span: Span, words: Words) -> None:
        """See `Target.put`."""
        self.sums.update(words.view(np.uint8))
        for spec in self._step.specs:
            self._writer.write_flat(spec.name, words, span.start)
            self._total.add(words.nbytes)


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

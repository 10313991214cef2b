"""The two directions of `obm convert` by the names of formats: opens what is read, closes it, calls the format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from obm_format.checkpoint import open_checkpoint
from obm_format.convert import peft_lora
from obm_format.convert.assemble import ConvertReport, write_expert
from obm_format.convert.bitdelta import BitDeltaFile
from obm_format.convert.delta import DenseDelta
from obm_format.convert.export import ExportReport, export_bitdelta, export_delta
from obm_format.errors import UsageError
from obm_format.expert import References, open_expert
from obm_format.progress import Progress, silent
from obm_format.remote import is_url

SOURCES = ("delta", "peft-lora", "bitdelta")
TARGETS = ("delta", "bitdelta")


def convert_from(
    kind: str,
    source: str | os.PathLike[str],
    base_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    task: str = "",
    encoding: str | None = None,
    progress: Progress = silent,
) -> ConvertReport:
    """Make an expert from a fine-tune of another format; on any error nothing is left behind.

    Args:
        kind: one of SOURCES. Only `bitdelta` reads a torch file, and runs nothing that is in it.
        source: the file or folder.
        base_path: the backbone: a checkpoint folder, or one safetensors file.
        out: the file to write; an existing one is replaced when all is done.
        task: task name, or "".
        encoding: of a LoRA's matrices: `sign1` or `raw`; None for `sign1`.
        progress: told of phase `convert` in bytes of the backbone; may raise to stop.

    Raises:
        UsageError: a format that is not known, an option that does not fit, `missing_dependency`.
        CheckpointError: a file that cannot be read, or holds NaN or Inf.
        BackboneMismatch: source and backbone do not belong together.
        ObmError: `disk_full`, `io`, `not_found`.
    """
    _check_kind(kind, SOURCES)
    if encoding is not None and (kind != "peft-lora" or encoding not in peft_lora.ENCODINGS):
        raise UsageError("usage", "an encoding is only for peft-lora", expected="sign1 or raw", got=encoding)
    with open_checkpoint(base_path) as base:
        if kind == "bitdelta":
            return write_expert(BitDeltaFile(Path(source)), base, out, source=kind, task=task, progress=progress)
        if kind == "peft-lora":
            adapter, weights = peft_lora.open_lora(Path(source), encoding or "sign1")
            with weights:
                return write_expert(adapter, base, out, source=kind, task=task, progress=progress)
        with open_checkpoint(source) as deltas:
            return write_expert(DenseDelta(deltas), base, out, source=kind, task=task, progress=progress)


def convert_to(
    kind: str,
    expert_path: str | os.PathLike[str],
    base_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    refs: Sequence[str | os.PathLike[str]] = (),
    progress: Progress = silent,
) -> ExportReport:
    """Give an expert back in another format; on any error nothing is left behind.

    Args:
        kind: one of TARGETS: `delta` makes a folder, `bitdelta` a file.
        expert_path: the expert.
        base_path: its backbone.
        out: the folder or file to write.
        refs: base vectors that an `rtvq` expert refers to; those beside its file are found without.
        progress: told of phase `convert`; may raise to stop.

    Raises:
        UsageError: a format that is not known, or that cannot hold this expert.
        BackboneMismatch: expert and backbone do not belong together.
        FormatError: the expert is damaged.
        ObmError: `exists`, `disk_full`, `io`, `not_found`.
    """
    _check_kind(kind, TARGETS)
    export = export_delta if kind == "delta" else export_bitdelta
    with open_expert(expert_path) as expert, open_checkpoint(base_path) as base, References(refs) as references:
        references.attach(expert, None if is_url(expert_path) else expert_path)
        return export(expert, base, Path(out), progress)


def _check_kind(kind: str, known: tuple[str, ...]) -> None:
    if kind not in known:
        raise UsageError("usage", "no such format", expected=", ".join(known), got=kind)

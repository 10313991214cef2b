"""Write an expert from a fine-tune of another format: what it changes, and `zero` for the rest of the backbone.

One tensor is in memory at a time. Never knows a foreign layout. Source: obm-1 clause 11.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from obm_format import digest
from obm_format.checkpoint import Checkpoint
from obm_format.codecs import catalogue
from obm_format.codecs.base import Encoded
from obm_format.compress import backbone_id
from obm_format.container.names import TASK
from obm_format.errors import BackboneMismatch, CheckpointError, UsageError
from obm_format.expert import ExpertWriter
from obm_format.kernels.words import Float32, Words, first_not_finite, from_float32, is_finite, to_float32
from obm_format.model import BackboneId, Mode, TensorSpec, ZeroParams
from obm_format.progress import Progress
from obm_format.taskvector import check_finite

ZERO = Encoded(params=ZeroParams(), parts=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of one tensor of the backbone.

    Args:
        spec: the tensor that is rebuilt.
        mode: delta or replace.
        encoded: as a codec left it.
        out_sha256: digest of the rebuilt bytes; None exactly where the record is not exact.
    """

    spec: TensorSpec
    mode: Mode
    encoded: Encoded
    out_sha256: bytes | None = None


class Foreign(Protocol):
    """A fine-tune of another format, opened."""

    @property
    def names(self) -> frozenset[str]:
        """The tensors that it changes, by the backbone's names."""
        ...

    @property
    def position(self) -> str:
        """What chose its 1-bit tensors; printable ASCII, `none` where it has none."""
        ...

    def change(self, base: Checkpoint, name: str) -> Change:
        """One of `names`, which the backbone has.

        Raises:
            ObmError: the tensor does not fit the backbone's, or cannot be stored.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertReport:
    """What `convert_from` made.

    Args:
        file: the expert's path, as it was given.
        source: the format that it came from.
        id: artifact id.
        nbytes: bytes of the file.
        task: task name.
        position: what chose the 1-bit tensors.
        backbone: the backbone it belongs to.
        encodings: number of tensors by encoding.
        n_changed: tensors that the source names.
    """

    file: str
    source: str
    id: str
    nbytes: int
    task: str
    position: str
    backbone: BackboneId
    encodings: Mapping[str, int]
    n_changed: int

    def as_json(self) -> dict[str, object]:
        """What `obm convert --from --json` prints, without the schema."""
        return dataclasses.asdict(self)


def write_expert(
    foreign: Foreign, base: Checkpoint, out: str | os.PathLike[str], *, source: str, task: str, progress: Progress
) -> ConvertReport:
    """Write the expert; on any error nothing is left behind.

    Args:
        foreign: the fine-tune.
        base: the backbone; every tensor of it is hashed and checked for NaN.
        out: the file to write; an existing one is replaced when all is done.
        source: the format, for the report.
        task: task name, or "".
        progress: told of phase `convert` in bytes of the backbone; may raise to stop.

    Raises:
        BackboneMismatch: the backbone lacks a tensor, or has it in another shape.
        CheckpointError: NaN or Inf in the backbone or in the source.
        UsageError: the task name or the file name is none.
        ObmError: the disk is full or fails.
    """
    _check_words(out, task)
    _check_names(foreign, base)
    with ExpertWriter(out) as writer:
        _write_tensors(writer, foreign, base, progress)
        header = writer.commit(task=task, position=foreign.position, backbone=backbone_id(base))
        encodings = Counter(record.encoding for record in writer.records)
    return ConvertReport(
        file=os.fspath(out),
        source=source,
        id=header.id,
        nbytes=header.file_nbytes,
        task=task,
        position=header.manifest.position,
        backbone=header.manifest.backbone,
        encodings=dict(sorted(encodings.items())),
        n_changed=len(foreign.names),
    )


def delta_target(base: Checkpoint, name: str, shape: tuple[int, ...]) -> TensorSpec:
    """The backbone's tensor that a delta of `shape` is added to.

    Raises:
        BackboneMismatch: it has another shape (`shape_differs`).
        CheckpointError: obm does not compute with its dtype (`unsupported_dtype`).
    """
    spec = base.tensors[name]
    if spec.shape != shape:
        raise BackboneMismatch(
            "shape_differs",
            "the delta has another shape than the backbone's tensor",
            where=name,
            expected=list(spec.shape),
            got=list(shape),
        )
    if not spec.dtype.is_float:
        raise CheckpointError(
            "unsupported_dtype",
            "nothing can be added to a backbone tensor of this dtype",
            where=name,
            expected="F16, BF16, F32",
            got=spec.dtype.name,
        )
    return spec


def replaced(base: Checkpoint, spec: TensorSpec, words: Words) -> Change:
    """A parameter that stands whole in the place of the backbone's, bit for bit, with its old shape or more rows.

    Args:
        base: the backbone, which has a tensor of this name.
        spec: the new tensor.
        words: its words, C-contiguous.

    Raises:
        BackboneMismatch: `shape_differs`.
        CheckpointError: `not_finite_input`.
    """
    old = base.tensors[spec.name]
    if spec.shape != old.shape and not is_grown(spec.shape, old.shape):
        raise BackboneMismatch(
            "shape_differs",
            "this does not fit the backbone's tensor",
            where=spec.name,
            expected=list(old.shape),
            got=list(spec.shape),
        )
    # obm-1 clause 11.1
    if first_not_finite(words, spec.dtype) is not None:
        raise CheckpointError("not_finite_input", "the parameter holds NaN or Inf", where=spec.name)
    mode, encoded = catalogue.encode_exact(words, base.words(spec.name), spec.dtype, old.dtype)
    sha256 = None if encoded.params == ZERO.params else digest.sha256(words.reshape(-1).view(np.uint8).data)
    return Change(spec=spec, mode=mode, encoded=encoded, out_sha256=sha256)


def is_grown(shape: tuple[int, ...], old: tuple[int, ...]) -> bool:
    """Whether a shape is another one with more rows."""
    return len(shape) == len(old) > 0 and shape[1:] == old[1:] and shape[0] > old[0]


def check_sum(base: Checkpoint, name: str, d: Float32) -> None:
    """Refuse a delta that makes the backbone's tensor infinite in its own dtype.

    Raises:
        CheckpointError: `not_finite_input`.
    """
    dtype = base.tensors[name].dtype
    with np.errstate(over="ignore"):
        total = from_float32(to_float32(base.words(name), dtype) + d, dtype)
    if not is_finite(total, dtype):
        raise CheckpointError(
            "not_finite_input", f"backbone and delta add up to more than {dtype.name} holds", where=name
        )


def _write_tensors(writer: ExpertWriter, foreign: Foreign, base: Checkpoint, progress: Progress) -> None:
    done, total = 0, base.nbytes
    for name, spec in base.tensors.items():
        # obm-1 clause 11.1
        check_finite(base, name, "backbone")
        sha256 = base.sha256(name)
        if name in foreign.names:
            change = foreign.change(base, name)
        else:
            change = Change(spec=spec, mode=Mode.DELTA, encoded=ZERO)
        writer.add(change.spec, spec, change.mode, change.encoded, base_sha256=sha256, out_sha256=change.out_sha256)
        base.release(name)
        done += spec.nbytes
        progress("convert", done, total)


def _check_words(out: str | os.PathLike[str], task: str) -> None:
    # obm-1 clause 13.1
    if Path(out).suffix == ".safetensors":
        raise UsageError("usage", "an expert is no dense checkpoint", where=str(out), hint="name it *.obm")
    if TASK.fullmatch(task) is None:
        raise UsageError("usage", "this is no task name", expected="letters, digits, . _ -", got=ascii(task[:80]))


def _check_names(foreign: Foreign, base: Checkpoint) -> None:
    strangers = sorted(foreign.names - base.tensors.keys())
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise BackboneMismatch(
            "base_tensor",
            f"the backbone has no such tensor{more}",
            where=ascii(strangers[0][:200])[1:-1],
            hint="name the backbone that this was made for",
        )

"""Give an expert back in other formats: dense float32 deltas as safetensors, or a BitDelta file.

Only what the other format can say is written; everything else is refused. Source: obm-1 clause 9.2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from obm_format.checkpoint import Checkpoint
from obm_format.checkpoint_writer import CheckpointWriter
from obm_format.convert.bitdelta import COEFF, MASK, WEIGHT, WORD, import_torch
from obm_format.errors import BackboneMismatch, ObmError, UsageError, from_os_error
from obm_format.expert import Expert
from obm_format.kernels.contract import SignOperand
from obm_format.kernels.words import Words
from obm_format.model import DType, Granularity, Kind, SignParams, TensorRecord, TensorSpec
from obm_format.progress import Progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What `convert_to` made.

    Args:
        out: the file or folder, as it was given.
        target: the format.
        id: artifact id of the expert.
        n_tensors: tensors written; those that the expert does not change are left out.
    """

    out: str
    target: str
    id: str
    n_tensors: int

    def as_json(self) -> dict[str, object]:
        """What `obm convert --to --json` prints, without the schema."""
        return dataclasses.asdict(self)


def export_delta(expert: Expert, base: Checkpoint, out: Path, progress: Progress) -> ExportReport:
    """Write the task vector as float32 deltas, `delta*.safetensors` in a new folder, one tensor at a time.

    Args:
        expert: of kind task-vector.
        base: its backbone.
        out: the folder to make; it must not exist, or be empty.
        progress: told of phase `convert` in bytes of deltas; may raise to stop.

    Raises:
        UsageError: a tensor has no delta: it was added, removed, grown, built on another one or is of integers; or
            nothing changes (`usage`).
        BackboneMismatch: `base_tensor`, `base_digest`.
        FormatError: the expert is damaged.
        ObmError: `exists`, `disk_full`, `io`.
    """
    records = list(_changed(expert, base))
    for record in records:
        dtypes = (record.spec.dtype, record.base.dtype) if record.base is not None else ()
        same = record.base is not None and record.base.shape == record.spec.shape
        if not same or not all(dtype.is_float for dtype in dtypes):
            raise _refused(record.name, "has no delta of the backbone's shape", "materialize it instead")
    if not records:
        raise UsageError("usage", "the expert changes no tensor, so there is no delta", where=expert.id)
    specs = [TensorSpec(record.name, DType.F32, record.spec.shape) for record in records]
    done, total = 0, sum(spec.nbytes for spec in specs)
    with CheckpointWriter(out, specs, stem="delta", metadata={"format": "pt"}) as writer:
        for spec in specs:
            values = expert.values(spec.name, base.words(spec.name))
            writer.write(spec.name, np.asarray(values, order="C").view(np.uint32))
            base.release(spec.name)
            done += spec.nbytes
            progress("convert", done, total)
        writer.commit()
    return ExportReport(out=os.fspath(out), target="delta", id=expert.id, n_tensors=len(specs))


def export_bitdelta(expert: Expert, base: Checkpoint, out: Path, progress: Progress) -> ExportReport:
    """Write a BitDelta file: signs and coefficients bit for bit, exact tensors whole.

    Args:
        expert: of kind task-vector, with one plane and one alpha per matrix.
        base: its backbone.
        out: the file to write; an existing one is replaced when all is done.
        progress: told of phase `convert` in tensors; may raise to stop.

    Raises:
        UsageError: BitDelta cannot say this (`usage`), or torch is missing (`missing_dependency`).
        BackboneMismatch: `base_tensor`, `base_digest`.
        FormatError: the expert is damaged.
        ObmError: `not_found`, `disk_full`, `io`.
    """
    save = import_torch().save
    records = list(_changed(expert, base))
    for record in records:
        _check_bitdelta(record)
    if not any(isinstance(record.params, SignParams) for record in records):
        raise UsageError("usage", "the expert has no 1-bit matrix, so there is no BitDelta", where=expert.id)
    tensors: dict[str, torch.Tensor] = {}
    for done, record in enumerate(records, start=1):
        if isinstance(record.params, SignParams):
            module = record.name.removesuffix(WEIGHT)
            operand = expert.operand(record.name)
            assert isinstance(operand, SignOperand)  # noqa: S101 - that is what sign1 gives
            words = np.frombuffer(operand.bits[0].tobytes(), "<i4").reshape(operand.bits[0].shape[0], -1)
            alpha = np.asarray(operand.alphas[0][0, 0], np.float32)
            tensors[module + MASK] = _as_torch(words.T.astype(np.int32, order="C").view(np.uint32), DType.I32)
            tensors[module + COEFF] = _as_torch(alpha.view(np.uint32), DType.F32)
        else:
            tensors[record.name] = _as_torch(expert.exact(record.name, base.words(record.name)), record.spec.dtype)
        progress("convert", done, len(records))
    with _new_file(out) as file:
        save(tensors, file)
    return ExportReport(out=os.fspath(out), target="bitdelta", id=expert.id, n_tensors=len(records))


def _changed(expert: Expert, base: Checkpoint) -> Iterator[TensorRecord]:
    """The records that change something, their backbone tensors checked."""
    manifest = expert.manifest
    if manifest.kind is not Kind.TASK_VECTOR:
        raise UsageError("usage", "only task vectors can be converted", got=manifest.kind.value)
    if manifest.aliases or manifest.removed:
        name = manifest.aliases[0][0] if manifest.aliases else manifest.removed[0]
        raise _refused(name, "is tied to another tensor or removed", "materialize it instead")
    for record in manifest.tensors:
        if record.base is None:
            raise _refused(record.name, "was added to the backbone", "materialize it instead")
        if record.base.name != record.name:
            raise _refused(record.name, "is built on another tensor of the backbone", "materialize it instead")
        if record.name not in base.tensors:
            raise BackboneMismatch("base_tensor", "the backbone has no such tensor", where=record.name)
        expert.check_base(record.name, base.tensors[record.name], base.sha256(record.name))
        if not record.is_unchanged:
            yield record


def _check_bitdelta(record: TensorRecord) -> None:
    params, shape = record.params, record.spec.shape
    if isinstance(params, SignParams):
        if params.planes != 1 or params.alpha.granularity is not Granularity.MATRIX:
            hint = "compress with --alpha mean/matrix and one plane"
            raise _refused(record.name, "has more than one plane or alpha", hint)
        if len(shape) != 2 or shape[1] % WORD or record.grown_rows or not record.name.endswith(WEIGHT):
            raise _refused(record.name, f"is no `.weight` with columns in multiples of {WORD}", None)
    elif not record.is_exact:
        raise _refused(record.name, f"is stored approximately, as {record.encoding}", "compress with --rest exact")
    elif record.name.endswith((MASK, COEFF)):
        raise _refused(record.name, "has a name that BitDelta reads as something else", None)


def _refused(name: str, why: str, hint: str | None) -> UsageError:
    return UsageError("usage", f"the other format cannot hold this tensor: it {why}", where=name, hint=hint)


def _as_torch(words: Words, dtype: DType) -> torch.Tensor:
    import torch

    names = {DType.BF16: "bfloat16", DType.F16: "float16", DType.F32: "float32", DType.F64: "float64"}
    names |= {DType.I32: "int32", DType.I64: "int64", DType.U8: "uint8", DType.BOOL: "bool"}
    if dtype not in names:
        raise UsageError("unsupported_dtype", "BitDelta files do not carry this dtype", got=dtype.name)
    flat = torch.from_numpy(np.array(words).reshape(-1).view(np.uint8))
    return flat.view(getattr(torch, names[dtype])).reshape(words.shape)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when all of it is written."""
    if not path.parent.is_dir():
        raise ObmError("not_found", "no such folder", where=str(path.parent))
    partial = path.parent / f".{path.name[:40]}.{secrets.token_hex(8)}.partial"
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise from_os_error(error, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)

"""A dense fine-tune as an operand: a checkpoint folder or file that takes part in a merge as it is.

It looks like an expert whose tensors are all exact (`raw`, mode replace), so plans and streams need not know
the difference. Its words are views of its map and nothing of it is hashed: what it was made against, nobody can
say. Source: obm-1 clauses 5.5 and 9.2.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import TracebackType
from typing import Self

from obm_format.checkpoint import Checkpoint, open_checkpoint
from obm_format.errors import UsageError
from obm_format.expert import Expert
from obm_format.kernels.contract import ExactOperand, Operand
from obm_format.kernels.words import Words
from obm_format.layout import default_rows
from obm_format.model import Attachment, BackboneId, Kind, Manifest, Mode, RawParams, TensorRecord, TensorSpec
from obm_format.taskvector import Pair, check_finite, pair

DENSE_PREFIX = "dense:"
_MOST = 9999
_PLAIN = re.compile(r"[^A-Za-z0-9_.-]+")


class DenseFineTune:
    """An open dense fine-tune; `open_dense` makes one. All methods may be called from several threads.

    The methods are those of `Expert` that a merge calls, with the same arguments; no digest is checked.

    Args:
        checkpoint: the fine-tune; closed with this.
        base: the backbone, open; names, dtypes and shapes are matched with its own.
        place: its place among the dense operands of a merge, from 1: it decides the order of sums.

    Raises:
        BackboneMismatch: `nothing_in_common`, `shape_differs`, `tensor_missing`.
        CheckpointError: `bad_name`, `duplicate_name`.
    """

    def __init__(self, checkpoint: Checkpoint, base: Checkpoint, place: int = 1) -> None:
        if not 1 <= place <= _MOST:
            raise UsageError("usage", f"a merge takes at most {_MOST} dense fine-tunes", got=place)
        plan = pair(base, checkpoint)
        self.id = f"{DENSE_PREFIX}{place:04d}"
        self.checkpoint = checkpoint
        self._pairs = {found.name: found for found in plan.pairs}
        self.manifest = Manifest(
            kind=Kind.TASK_VECTOR,
            task=_task(checkpoint.path),
            position="none",
            backbone=BackboneId(
                fingerprint="",
                n_tensors=len(base.tensors),
                n_params=sum(spec.numel for spec in base.tensors.values()),
            ),
            tensors=tuple(_record(found) for found in plan.pairs),
            removed=plan.removed,
            prefix=plan.prefix,
            attachments=tuple(
                Attachment(name=file.name, nbytes=file.stat().st_size) for file in checkpoint.side_files()
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the checkpoint."""
        self.checkpoint.close()

    def operand(
        self, name: str, base: Words | None = None, *, rows: int | None = None, base_checked: bool = False
    ) -> Operand:
        """See `Expert.operand`: always exact, a view of the map."""
        words = self.exact(name, base, base_checked=base_checked)
        count = default_rows(words.shape) if rows is None else rows
        view = (count, words.size // count if count else 0)
        return ExactOperand(words=words.reshape(view), dtype=self._pairs[name].spec.dtype)

    def exact(self, name: str, base: Words | None = None, *, base_checked: bool = False) -> Words:
        """See `Expert.exact`: a read-only view of the map.

        Raises:
            CheckpointError: `not_finite_input`.
        """
        source = self._pairs[name].source
        check_finite(self.checkpoint, source, "fine-tune")
        return self.checkpoint.words(source)

    def words(self, name: str) -> tuple[TensorSpec, Words]:
        """The tensor as it lies in the fine-tune, by a name in backbone coordinates; not looked at yet."""
        source = self._pairs[name].source
        return self.checkpoint.tensors[source], self.checkpoint.words(source)

    def tail(self, name: str) -> Words | None:
        """See `Expert.tail`: grown rows come with the tensor."""
        return None

    def attachment(self, name: str) -> bytes:
        """See `Expert.attachment`."""
        return next(file for file in self.checkpoint.side_files() if file.name == name).read_bytes()

    def release(self, name: str) -> None:
        """Tell the system that the pages of a tensor are not needed any more."""
        self.checkpoint.release(self._pairs[name].source)


Source = Expert | DenseFineTune
"""Who can take part in a merge."""


def is_dense(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a dense checkpoint rather than an `.obm`: a folder, or a safetensors file."""
    return Path(path).is_dir() or Path(path).suffix == ".safetensors"


def open_dense(path: str | os.PathLike[str], base: Checkpoint, place: int = 1) -> DenseFineTune:
    """Open a checkpoint folder or safetensors file as an operand of a merge; reads headers only.

    Args:
        path: the fine-tune.
        base: the backbone.
        place: as in `DenseFineTune`.

    Raises:
        ObmError: as `open_checkpoint` and `DenseFineTune`.
    """
    checkpoint = open_checkpoint(path)
    try:
        return DenseFineTune(checkpoint, base, place)
    except BaseException:
        checkpoint.close()
        raise


def _record(found: Pair) -> TensorRecord:
    mode = Mode.ADDED if found.base is None else Mode.REPLACE
    return TensorRecord(spec=found.spec, base=found.base, mode=mode, params=RawParams(value_dtype=found.spec.dtype))


def _task(path: Path) -> str:
    """The name that recipes know it by: that of its folder or file."""
    resolved = path.resolve()
    return _PLAIN.sub("-", resolved.name if path.is_dir() else resolved.stem)

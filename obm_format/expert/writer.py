"""Write an expert tensor by tensor: encoded tensors in, one `.obm` file out.

Never encodes and never chooses an encoding. Source: obm-1 clauses 5 and 11.7.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from obm_format.codecs.base import Encoded
from obm_format.container.header import Header
from obm_format.container.writer import ContainerWriter
from obm_format.errors import UsageError
from obm_format.limits import DEFAULT_LIMITS, Limits
from obm_format.model import (
    Attachment,
    BackboneId,
    Kind,
    Manifest,
    Mode,
    Prefix,
    RouterInfo,
    TensorRecord,
    TensorSpec,
)


class ExpertWriter:
    """One expert in the making. Leaving its `with` block without `commit` leaves nothing behind.

    Args:
        path: the target; its folder must exist. An existing file stays as it is until `commit`.
        limits: the limits that the file must keep.

    Raises:
        ObmError: the folder does not exist (`not_found`) or cannot be written (`io`, `disk_full`).
    """

    def __init__(self, path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> None:
        self._container = ContainerWriter(path, limits)
        self._records: list[TensorRecord] = []
        self._attachments: list[Attachment] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def abort(self) -> None:
        """Give up what was added; nothing is left on disk. Does nothing after `commit`."""
        self._container.abort()

    @property
    def records(self) -> tuple[TensorRecord, ...]:
        """The records added so far, in order."""
        return tuple(self._records)

    def add(
        self,
        spec: TensorSpec,
        base: TensorSpec | None,
        mode: Mode,
        encoded: Encoded,
        *,
        base_sha256: bytes | None = None,
        out_sha256: bytes | None = None,
    ) -> TensorRecord:
        """Add a tensor, in ascending order of names; its parts may be forgotten afterwards.

        Args:
            spec: the fine-tune's tensor, by the backbone's name for it.
            base: its counterpart in the backbone; None exactly in mode added.
            mode: delta, replace or added.
            encoded: what a codec made of it; with the part `tail` where the tensor grew.
            base_sha256: digest of the counterpart's bytes; None exactly in mode added.
            out_sha256: digest of the fine-tune's bytes; None exactly where the record is not exact.

        Raises:
            UsageError: `usage`, the name is not behind that of the tensor before it.
            FormatError: `part_table`, parts and digests are not those that the record implies.
            ObmError: the disk is full or fails (`disk_full`, `io`).
        """
        if self._records and spec.name <= self._records[-1].name:
            last = self._records[-1].name
            raise UsageError("usage", "tensors are added in order of names", where=spec.name, got=f"after {last}")
        record = TensorRecord(spec=spec, base=base, mode=mode, params=encoded.params)
        self._container.add(
            record, encoded.parts, alphas=encoded.alphas, base_sha256=base_sha256, out_sha256=out_sha256
        )
        self._records.append(record)
        return record

    def attach(self, name: str, data: bytes) -> None:
        """Add an attachment, in any order.

        Args:
            name: its name, obm-1 clause 5.9.
            data: its bytes.

        Raises:
            FormatError: `bad_name`, `duplicate_name`, `limit_exceeded`.
        """
        self._container.attach(name, data)
        self._attachments.append(Attachment(name=name, nbytes=len(data)))

    def commit(  # noqa: PLR0913 - one argument per field of the manifest, all by keyword
        self,
        *,
        kind: Kind = Kind.TASK_VECTOR,
        task: str = "",
        position: str = "none",
        backbone: BackboneId,
        aliases: Sequence[tuple[str, str]] = (),
        removed: Sequence[str] = (),
        prefix: Prefix | None = None,
        refs: Sequence[str] = (),
        router: RouterInfo | None = None,
        ext: Mapping[str, object] | None = None,
    ) -> Header:
        """Write the file and put it in place.

        Args:
            kind: what the file holds.
            task: task name, "" for none.
            position: what chose the 1-bit tensors.
            backbone: the backbone it belongs to.
            aliases: pairs (name, target), in any order.
            removed: names of backbone tensors that the fine-tune lacks, in any order.
            prefix: the prefix by which names differ.
            refs: artifact ids that `rtvq` records refer to by place.
            router: exactly for kind router.
            ext: ignorable data by `vendor.name`.

        Returns:
            the header as a reader parses it, with the artifact id.

        Raises:
            FormatError: the manifest is not one that a reader accepts.
            ObmError: the disk is full or fails (`disk_full`, `io`).
        """
        manifest = Manifest(
            kind=kind,
            task=task,
            position=position,
            backbone=backbone,
            tensors=tuple(self._records),
            aliases=tuple(sorted(aliases)),
            removed=tuple(sorted(removed)),
            prefix=prefix,
            attachments=tuple(sorted(self._attachments, key=lambda attachment: attachment.name)),
            refs=tuple(refs),
            router=router,
            ext=dict(ext or {}),
        )
        return self._container.commit(manifest)

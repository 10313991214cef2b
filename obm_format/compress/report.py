"""What a compression made: bytes by class of tensor, and how much of the shift 1 bit kept.

Source: interfaces page, "JSON"; 1bit-Merging table 7 for the accounting.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from obm_format.codecs import catalogue
from obm_format.codecs.base import Encoded, Span
from obm_format.container.header import Header
from obm_format.kernels.contract import Kernels
from obm_format.kernels.words import Float32
from obm_format.model import BackboneId, Mode, TensorRecord

_PIECE = 1 << 20  # elements decoded together to measure the error


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressReport:
    """What `compress_checkpoint` made.

    Args:
        file: the expert's path, as it was given.
        id: artifact id.
        nbytes: bytes of the file.
        task: task name.
        position: position word or pattern.
        backbone: the backbone it belongs to.
        bytes: bytes by class; they sum to `nbytes`. `header` (with its length), `digests` (with frame tables
            and sums), `sign` (bits, masks and codes of the position), `alpha`, `rest`, `attach`, `pad`.
        encodings: number of tensors by encoding.
        dense_nbytes: bytes of the fine-tune's tensors.
        rel_error: sqrt(sum (d - decoded)^2 / sum d^2) over the tensors in the position; 0 if d is 0.
        kept: sum d * decoded / sum d^2 over the same: the share of the shift along d that is applied; 1 if d
            is 0.
        n_added: tensors that only the fine-tune has.
        n_removed: tensors that only the backbone has.
        n_aliases: tensors that are copies of others.
    """

    file: str
    id: str
    nbytes: int
    task: str
    position: str
    backbone: BackboneId
    bytes: Mapping[str, int]
    encodings: Mapping[str, int]
    dense_nbytes: int
    rel_error: float
    kept: float
    n_added: int
    n_removed: int
    n_aliases: int

    @property
    def ratio(self) -> float:
        """Bytes of the file over bytes of the dense fine-tune."""
        return self.nbytes / self.dense_nbytes

    def as_json(self) -> dict[str, object]:
        """What `obm compress --json` prints, without the schema."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}


def make_report(
    file: str, header: Header, *, inside: frozenset[str], dense_nbytes: int, error: ErrorSums
) -> CompressReport:
    """The report on a file that was written.

    Args:
        file: its path, as it was given.
        header: its header.
        inside: names of the tensors in the position.
        dense_nbytes: bytes of the fine-tune's tensors.
        error: what was measured inside the position.
    """
    manifest = header.manifest
    return CompressReport(
        file=file,
        id=header.id,
        nbytes=header.file_nbytes,
        task=manifest.task,
        position=manifest.position,
        backbone=manifest.backbone,
        bytes=_bytes_by_class(header, inside),
        encodings=dict(sorted(Counter(record.encoding for record in manifest.tensors).items())),
        dense_nbytes=dense_nbytes,
        rel_error=error.rel_error,
        kept=error.kept,
        n_added=sum(record.mode is Mode.ADDED for record in manifest.tensors),
        n_removed=len(manifest.removed),
        n_aliases=len(manifest.aliases),
    )


class ErrorSums:
    """Sums over the tensors in the position, in float64: d*d, d*decoded, (d - decoded)^2."""

    def __init__(self) -> None:
        self._shift = self._along = self._lost = 0.0

    def add(
        self,
        d: Float32,
        record: TensorRecord,
        encoded: Encoded,
        kernels: Kernels,
        reference: Float32 | None = None,
    ) -> None:
        """Count one tensor, decoding it piece by piece from what will be written.

        Args:
            d: float32 task vector of any shape.
            record: what is written of it.
            encoded: likewise, without tail.
            kernels: unpack signs.
            reference: what an `rtvq` offset is taken from, of the shape of `d`.
        """
        parts, flat = _EncodedParts(encoded), d.reshape(-1)
        shared = None if reference is None else reference.reshape(-1)
        for span in Span(0, d.size).pieces(_PIECE):
            wanted = flat[span.start : span.stop].astype(np.float64)
            piece = None if shared is None else shared[span.start : span.stop]
            values = catalogue.decode_values(record, parts, span, kernels=kernels, reference=piece)
            decoded = values.astype(np.float64)
            self._shift += float(wanted @ wanted)
            self._along += float(wanted @ decoded)
            wanted -= decoded
            self._lost += float(wanted @ wanted)

    @property
    def rel_error(self) -> float:
        """Length of what is lost over length of the shift."""
        return math.sqrt(self._lost / self._shift) if self._shift else 0.0

    @property
    def kept(self) -> float:
        """Share of the shift along d that is kept."""
        return self._along / self._shift if self._shift else 1.0


class _EncodedParts:
    """The parts of a tensor that is not written yet, as a `PartReader`."""

    def __init__(self, encoded: Encoded) -> None:
        self._frames = {part.suffix: part.chunks for part in encoded.parts}
        self._parts = {part.suffix: memoryview(b"".join(part.chunks)) for part in encoded.parts}
        self._alphas = encoded.alphas

    def part(self, suffix: str) -> memoryview:
        return self._parts[suffix]

    def part_range(self, suffix: str, start: int, stop: int) -> bytes:
        return bytes(self.part(suffix)[start:stop])

    def frames(self, suffix: str) -> Sequence[memoryview]:
        return [memoryview(chunk) for chunk in self._frames[suffix]]

    def frame(self, suffix: str, index: int) -> bytes:
        return bytes(self.frames(suffix)[index])

    def alphas(self) -> bytes:
        return self._alphas


def _bytes_by_class(header: Header, inside: frozenset[str]) -> dict[str, int]:
    sums = dict.fromkeys(("header", "digests", "sign", "alpha", "rest", "attach", "pad"), 0)
    sums["header"] = header.nbytes
    for part in header.parts.values():
        tensor, _, suffix = part.name.partition("#")
        if not tensor:
            kind = "alpha" if suffix == "alphas" else "attach" if suffix.startswith("attach/") else "digests"
        else:
            kind = "sign" if tensor in inside and suffix != "tail" else "rest"
        sums[kind] += part.nbytes
        sums["pad"] += part.padded_nbytes - part.nbytes
    return sums

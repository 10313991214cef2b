"""What a compression made: bytes by class of tensor, and how much of the shift 1 bit kept.

Source: interfaces page, "JSON"; 1bit-Merging table 7 for the accounting.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from obm_format.compress.choices import Fitted
from obm_format.compress.measure import Fidelity
from obm_format.container.header import Header
from obm_format.model import BackboneId, Mode


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
        fitted: what a budget chose, None without one. Then `sign` counts all approximate tensors, and `rel_error`
            and `kept` are those over all tensors that it chose for.
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
    fitted: Fitted | None = None

    @property
    def ratio(self) -> float:
        """Bytes of the file over bytes of the dense fine-tune."""
        return self.nbytes / self.dense_nbytes

    def as_json(self) -> dict[str, object]:
        """What `obm compress --json` prints, without the schema."""
        facts = dataclasses.asdict(dataclasses.replace(self, fitted=None))
        del facts["fitted"]
        return facts | {"ratio": self.ratio} | ({} if self.fitted is None else self.fitted.as_json())


def make_report(
    file: str,
    header: Header,
    *,
    inside: frozenset[str],
    dense_nbytes: int,
    fidelity: Fidelity,
    fitted: Fitted | None = None,
) -> CompressReport:
    """The report on a file that was written.

    Args:
        file: its path, as it was given.
        header: its header.
        inside: names of the tensors whose parts are of class `sign`.
        dense_nbytes: bytes of the fine-tune's tensors.
        fidelity: what was measured of them.
        fitted: what a budget chose, if there was one.
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
        rel_error=fidelity.rel_error,
        kept=fidelity.kept,
        n_added=sum(record.mode is Mode.ADDED for record in manifest.tensors),
        n_removed=len(manifest.removed),
        n_aliases=len(manifest.aliases),
        fitted=fitted,
    )


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

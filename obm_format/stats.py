"""What an expert holds and does, tensor by tensor: bytes, alphas, signs, and with a backbone the shift of its weights.

Decodes piece by piece, so that memory does not grow with the size of a tensor. Never merges, never draws.
Source: design page, "Report what happened"; obm-1 clauses 6 and 9.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from obm_format.checkpoint import Checkpoint, open_checkpoint
from obm_format.codecs import alphas, catalogue
from obm_format.codecs.base import Span, whole
from obm_format.container.header import Header
from obm_format.container.reader import Container
from obm_format.errors import BackboneMismatch, FormatError
from obm_format.expert import Expert, References
from obm_format.expert.parts import RecordParts
from obm_format.kernels import select_kernels
from obm_format.kernels.contract import Kernels, ValueOperand
from obm_format.kernels.words import Float32, Words, to_float32
from obm_format.layout import alpha_nbytes, columns, packed_row_nbytes, part_layouts
from obm_format.model import (
    Manifest,
    RtvqParams,
    SignParams,
    SparseParams,
    TensorRecord,
    TernParams,
    ZeroParams,
)
from obm_format.positions import Role, role_of
from obm_format.progress import Progress, silent
from obm_format.remote import is_url, reachable

_PIECE = 1 << 20  # elements decoded together; whole blocks of obm-1 clause 11.3
_BITS_PIECE = 1 << 20  # bytes of sign bits counted together

_CLASSES = {"sign1": "sign", "tern1": "sign", "affine": "codes", "rtvq": "codes"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaRange:
    """The alphas of a tensor, of all its planes, or of several tensors: their number, least, mean and greatest."""

    count: int
    min: float
    mean: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """What the task vector d does to the backbone's weights w: counts and sums, which add up over tensors.

    Args:
        count: weights that were looked at.
        nonzero: those with d != 0.
        rounded: non-zero d of approximate tensors, which are added to w and rounded.
        absorbed: those of them that rounding to the output dtype swallows.
        sum_abs: sum of |d|, float64.
        sum_square: sum of d*d.
        base_square: sum of w*w.
    """

    count: int
    nonzero: int
    rounded: int
    absorbed: int
    sum_abs: float
    sum_square: float
    base_square: float

    def __add__(self, other: Shift) -> Shift:
        return Shift(
            count=self.count + other.count,
            nonzero=self.nonzero + other.nonzero,
            rounded=self.rounded + other.rounded,
            absorbed=self.absorbed + other.absorbed,
            sum_abs=self.sum_abs + other.sum_abs,
            sum_square=self.sum_square + other.sum_square,
            base_square=self.base_square + other.base_square,
        )

    @property
    def absorbed_fraction(self) -> float:
        """Share of the non-zero approximate values that rounding swallows; 0 where there are none."""
        return self.absorbed / self.rounded if self.rounded else 0.0

    @property
    def moved_fraction(self) -> float:
        """Share of the weights whose value in the output dtype is another one afterwards."""
        return (self.nonzero - self.absorbed) / self.count if self.count else 0.0

    @property
    def norm_ratio(self) -> float | None:
        """Length of d over length of w; None where w is 0 or not finite."""
        ratio = math.sqrt(self.sum_square / self.base_square) if self.base_square > 0 else math.nan
        return ratio if math.isfinite(ratio) else None

    @property
    def sign1_error(self) -> float | None:
        """Relative error of `sign1` with one mean alpha: sqrt(1 - mean|d|^2 / mean d^2); None where d is 0."""
        if not self.sum_square > 0:
            return None
        kept = self.sum_abs / self.count * (self.sum_abs / self.sum_square)
        return math.sqrt(max(0.0, 1.0 - kept)) if math.isfinite(kept) else None


_NO_SHIFT = Shift(count=0, nonzero=0, rounded=0, absorbed=0, sum_abs=0.0, sum_square=0.0, base_square=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStats:
    """One tensor of an expert.

    Args:
        record: what the manifest says of it.
        role: what it does in a transformer block.
        nbytes: bytes of its parts and alphas.
        alpha: its alphas; None where its encoding has none.
        sign_set: share of set sign bits, of the first plane, or of what the mask of `tern1` keeps; 0 to 1.
        nnz: non-zero values of the task vector in what the encoding covers; None where that is not known.
        shift: None without a backbone, and where there is no task vector value (obm-1 clause 9.2) or it
            needs another artifact (`rtvq`) that does not lie beside the file.
    """

    record: TensorRecord
    role: Role
    nbytes: int
    alpha: AlphaRange | None
    sign_set: float | None
    nnz: int | None
    shift: Shift | None

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of parts and alphas per element of the rebuilt tensor."""
        return _share(8 * self.nbytes, self.record.spec.numel)

    @property
    def zero_fraction(self) -> float | None:
        """Share of the values that are 0; None where that is not known."""
        return None if self.nnz is None else _share(self.record.encoded_numel - self.nnz, self.record.encoded_numel)

    def as_json(self) -> dict[str, object]:
        """One entry of `tensors` of `obm stats --json`."""
        record = self.record
        return {
            "name": record.name,
            "role": self.role.value,
            "dtype": record.spec.dtype.name,
            "shape": list(record.spec.shape),
            "mode": record.mode.value,
            "encoding": record.encoding,
            "nbytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "alpha": _alpha_json(self.alpha),
            "sign_set": self.sign_set,
            "nnz": self.nnz,
            "zero_fraction": self.zero_fraction,
            **_shift_json(self.shift),
            "sign1_error": self.shift.sign1_error if self.shift and record.is_exact else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over tensors of one role, or over all.

    Args:
        tensors: their number.
        numel: their elements.
        nbytes: bytes of their parts and alphas.
        alpha: over all their alphas, or None.
        shift: over all that have one, or None.
    """

    tensors: int
    numel: int
    nbytes: int
    alpha: AlphaRange | None
    shift: Shift | None

    def as_json(self) -> dict[str, object]:
        """One entry of `roles` of `obm stats --json`."""
        zero = None if self.shift is None else _share(self.shift.count - self.shift.nonzero, self.shift.count)
        return {
            "tensors": self.tensors,
            "numel": self.numel,
            "nbytes": self.nbytes,
            "bits_per_weight": _share(8 * self.nbytes, self.numel),
            "alpha": _alpha_json(self.alpha),
            "zero_fraction": zero,
            **_shift_json(self.shift),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertStats:
    """What `expert_stats` found.

    Args:
        id: artifact id.
        nbytes: bytes of the file.
        manifest: the file's manifest.
        bytes: bytes by class, which sum to `nbytes`: `header` (with its length), `digests` (with frame tables
            and sums), `sign` (bits and masks), `codes` (of affine and rtvq), `alpha`, `rest`, `attach`, `pad`.
        tensors: in the order of names.
        with_base: whether a backbone was looked at.
    """

    id: str
    nbytes: int
    manifest: Manifest
    bytes: Mapping[str, int]
    tensors: tuple[TensorStats, ...]
    with_base: bool

    @property
    def roles(self) -> dict[Role, Totals]:
        """Sums by role, of the roles that occur."""
        by_role = {role: [one for one in self.tensors if one.role is role] for role in Role}
        return {role: _totals(found) for role, found in by_role.items() if found}

    @property
    def total(self) -> Totals:
        """Sums over all tensors."""
        return _totals(self.tensors)

    def as_json(self) -> dict[str, object]:
        """What `obm stats --json` prints, without the schema."""
        backbone = self.manifest.backbone
        return {
            "id": self.id,
            "nbytes": self.nbytes,
            "kind": self.manifest.kind.value,
            "task": self.manifest.task,
            "position": self.manifest.position,
            "backbone": {"fingerprint": backbone.fingerprint, "architecture": backbone.architecture},
            "with_base": self.with_base,
            "bytes": dict(self.bytes),
            "roles": {role.value: totals.as_json() for role, totals in self.roles.items()},
            "total": self.total.as_json(),
            "tensors": [one.as_json() for one in self.tensors],
        }


def expert_stats(
    path: str | Path,
    *,
    base: str | Path | None = None,
    kernels: Kernels | None = None,
    progress: Progress = silent,
) -> ExpertStats:
    """Look at every tensor of an expert.

    Args:
        path: an `.obm` file, or its http(s) address.
        base: its backbone, a checkpoint folder or safetensors file; with it exact tensors are decoded too.
        kernels: the arithmetic; None: the fastest there is.
        progress: told how many bytes of dense tensors are done.

    Raises:
        FormatError: what digests and codecs find.
        BackboneMismatch: `base_tensor`, `base_digest`, a backbone tensor is not the one that the expert names.
        ObmError: a file cannot be read.
    """
    with ExitStack() as stack:
        container = stack.enter_context(Container.open(reachable(path)))
        backbone = None if base is None else stack.enter_context(open_checkpoint(base))
        kernels = kernels or select_kernels()
        expert = Expert(container, kernels=kernels)
        with suppress(FormatError):  # tensors whose base vector is not at hand have no shift
            stack.enter_context(References()).attach(expert, None if is_url(path) else path)
        gauge = _Gauge(container, backbone, expert, kernels)
        return ExpertStats(
            id=container.id,
            nbytes=container.nbytes,
            manifest=container.manifest,
            bytes=_bytes_by_class(container.header),
            tensors=tuple(_told(gauge, container.manifest.tensors, progress)),
            with_base=base is not None,
        )


def _told(gauge: _Gauge, records: Iterable[TensorRecord], progress: Progress) -> Iterator[TensorStats]:
    done, total = 0, sum(record.spec.nbytes for record in records)
    for record in records:
        yield gauge.tensor(record)
        done += record.spec.nbytes
        progress("measure", done, total)


class _Gauge:
    """Measures one tensor after the other."""

    def __init__(self, container: Container, backbone: Checkpoint | None, expert: Expert, kernels: Kernels) -> None:
        self._container = container
        self._expert = expert
        self._missing = expert.missing_refs
        self._backbone = backbone
        self._kernels = kernels

    def tensor(self, record: TensorRecord) -> TensorStats:
        parts = RecordParts(self._container, record)
        shift = None if self._backbone is None else self._shift(record, parts, self._backbone)
        return TensorStats(
            record=record,
            role=role_of(record.name, record.spec.shape),
            nbytes=sum(layout.nbytes for layout in part_layouts(record)) + alpha_nbytes(record),
            alpha=_alpha_range(record, parts),
            sign_set=_sign_set(record, parts),
            nnz=self._nnz(record, parts) if shift is None else shift.nonzero,
            shift=shift,
        )

    def _nnz(self, record: TensorRecord, parts: RecordParts) -> int | None:
        """Non-zero values, as far as the expert alone tells."""
        if isinstance(record.params, ZeroParams):
            return 0
        if isinstance(record.params, SparseParams):
            return record.params.nnz  # in mode replace: what is listed is what differs
        if record.is_exact or isinstance(record.params, RtvqParams):
            return None
        pieces = whole(record).pieces(_PIECE)
        return sum(
            int(np.count_nonzero(catalogue.decode_values(record, parts, piece, kernels=self._kernels)))
            for piece in pieces
        )

    def _shift(self, record: TensorRecord, parts: RecordParts, backbone: Checkpoint) -> Shift | None:
        base = record.base
        if base is None:
            return None
        found = backbone.tensors.get(base.name)
        if found is None:
            raise BackboneMismatch("base_tensor", "the backbone has no such tensor", where=base.name)
        self._expert.check_base(record.name, found, backbone.sha256(base.name))  # obm-1 clause 10.3
        floats = record.spec.dtype.is_float and base.dtype.is_float
        if not floats or record.encoded_shape != base.shape or self._lacks_reference(record):
            return None
        words = backbone.words(base.name).reshape(-1)
        total = _NO_SHIFT
        for piece in whole(record).pieces(_PIECE):
            total += self._piece(record, parts, piece, words)
        backbone.release(base.name)
        return total

    def _lacks_reference(self, record: TensorRecord) -> bool:
        params = record.params
        return isinstance(params, RtvqParams) and self._container.manifest.refs[params.ref] in self._missing

    def _piece(self, record: TensorRecord, parts: RecordParts, piece: Span, base: Words) -> Shift:
        assert record.base is not None  # noqa: S101 - the caller asked
        old, dtype = base[piece.start : piece.stop], record.base.dtype
        if record.is_exact:
            new = catalogue.decode_words(record, parts, piece, base)
            d = self._kernels.subtract(new, record.spec.dtype, old, dtype)
            rounded = absorbed = 0  # its bits are copied
        else:
            d = np.ascontiguousarray(self._expert.decode(record, piece, parts))
            operand = ValueOperand(values=d.reshape(1, -1))
            absorbed, rounded = self._kernels.absorbed(old.reshape(1, -1), dtype, operand, record.spec.dtype)
        sum_abs, sum_square = self._sums(d)
        return Shift(
            count=piece.size,
            nonzero=int(np.count_nonzero(d)),
            rounded=rounded,
            absorbed=absorbed,
            sum_abs=sum_abs,
            sum_square=sum_square,
            base_square=self._sums(to_float32(old, dtype))[1],
        )

    def _sums(self, values: Float32) -> tuple[float, float]:
        first, second = self._kernels.group_sums(values, np.array([0, values.size], dtype=np.int64))
        return float(first[0]), float(second[0])


def _alpha_range(record: TensorRecord, parts: RecordParts) -> AlphaRange | None:
    params = record.params
    if not isinstance(params, SignParams | TernParams):
        return None
    planes = params.planes if isinstance(params, SignParams) else 1
    shape = (params.rows, columns(record, params.rows))
    values = np.concatenate(alphas.load(parts.alphas(), params.alpha, shape, planes, record.name))
    return AlphaRange(
        count=values.size,
        min=float(values.min()),
        mean=float(values.mean(dtype=np.float64)),
        max=float(values.max()),
    )


def _sign_set(record: TensorRecord, parts: RecordParts) -> float | None:
    params = record.params
    if isinstance(params, SignParams):
        return _share(_set_bits(record, params.rows, parts, "bits0"), record.encoded_numel)
    if isinstance(params, TernParams):
        kept = _set_bits(record, params.rows, parts, "mask")
        return _share(_set_bits(record, params.rows, parts, "bits0"), kept)
    return None


def _set_bits(record: TensorRecord, rows: int, parts: RecordParts, suffix: str) -> int:
    """Set bits of a part of packed rows, whose unused bits are 0 (obm-1 clause 6.2)."""
    nbytes = rows * packed_row_nbytes(columns(record, rows), 1)
    count = 0
    for piece in Span(0, nbytes).pieces(_BITS_PIECE):
        count += int.from_bytes(parts.part_range(suffix, piece.start, piece.stop)).bit_count()
    return count


def _bytes_by_class(header: Header) -> dict[str, int]:
    encodings = {record.name: record.encoding for record in header.manifest.tensors}
    sums = dict.fromkeys(("header", "digests", "sign", "codes", "alpha", "rest", "attach", "pad"), 0)
    sums["header"] = header.nbytes
    for part in header.parts.values():
        tensor, _, suffix = part.name.partition("#")
        if tensor:
            kind = "rest" if suffix == "tail" else _CLASSES.get(encodings[tensor], "rest")
        else:
            kind = "alpha" if suffix == "alphas" else "attach" if suffix.startswith("attach/") else "digests"
        sums[kind] += part.nbytes
        sums["pad"] += part.padded_nbytes - part.nbytes
    return sums


def _totals(tensors: Iterable[TensorStats]) -> Totals:
    found = list(tensors)
    ranges = [one.alpha for one in found if one.alpha is not None]
    count = sum(one.count for one in ranges)
    alpha = shift = None
    if count:
        alpha = AlphaRange(
            count=count,
            min=min(one.min for one in ranges),
            mean=sum(one.mean * one.count for one in ranges) / count,
            max=max(one.max for one in ranges),
        )
    shifts = [one.shift for one in found if one.shift is not None]
    if shifts:
        shift = sum(shifts, _NO_SHIFT)
    return Totals(
        tensors=len(found),
        numel=sum(one.record.spec.numel for one in found),
        nbytes=sum(one.nbytes for one in found),
        alpha=alpha,
        shift=shift,
    )


def _alpha_json(alpha: AlphaRange | None) -> dict[str, object] | None:
    return None if alpha is None else {"count": alpha.count, "min": alpha.min, "mean": alpha.mean, "max": alpha.max}


def _shift_json(shift: Shift | None) -> dict[str, object]:
    return {
        "absorbed_fraction": None if shift is None else shift.absorbed_fraction,
        "moved_fraction": None if shift is None else shift.moved_fraction,
        "norm_ratio": None if shift is None else shift.norm_ratio,
    }


def _share(part: int, of: int) -> float | None:
    return part / of if of else None

"""An open expert: decode its tensors.

Everything it returns has been checked: parts against their digests, backbone tensors before they are used,
exact tensors after they are rebuilt. Never merges experts. Source: obm-1 clauses 5, 9 and 10.3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Literal, Self

import numpy as np

from obm_format.codecs import catalogue, sign1
from obm_format.codecs.base import Span, check_finite, empty, read_words, whole
from obm_format.container.header import Header
from obm_format.container.reader import Container, Defect, RecordDigests
from obm_format.errors import FormatError, ObmError, UsageError
from obm_format.expert.deep import tensor_defects
from obm_format.expert.parts import (
    RecordParts,
    RowCut,
    cut_rows,
    first_planes,
    is_base_vector,
    matrix_shape,
    other_bytes,
    other_tensor,
)
from obm_format.kernels import select_kernels
from obm_format.kernels.contract import (
    Combine,
    ExactOperand,
    Kernels,
    Operand,
    ValueOperand,
    ZeroOperand,
    check_values_output,
)
from obm_format.kernels.words import Float32, Words, to_float32, words_dtype
from obm_format.model import (
    Attachment,
    DType,
    Kind,
    Manifest,
    RtvqParams,
    SignParams,
    TensorRecord,
    TensorSpec,
    ZeroParams,
)
from obm_format.progress import Progress

Level = Literal["parts", "deep"]


class Expert:
    """An open expert. Use `open_expert`. All methods may be called from several threads.

    Wherever a method takes `base`, that is the words of the whole backbone tensor `records[name].base`, in
    its shape. Its digest is checked before it is used; `base_checked` says that the caller has done so, or
    has proven the backbone's fingerprint. A name that is no tensor raises ObmError `not_found`.

    Args:
        container: the file; closed with the expert.
        refs: open artifacts that `rtvq` records refer to, by artifact id.
        kernels: the arithmetic; None: the fastest there is.
    """

    def __init__(
        self, container: Container, refs: Mapping[str, Expert] | None = None, kernels: Kernels | None = None
    ) -> None:
        self.records: Mapping[str, TensorRecord] = MappingProxyType(
            {record.name: record for record in container.manifest.tensors}
        )
        self.container = container
        self._refs = dict(refs or {})
        self._chosen = kernels

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    # --- what the header says -------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Artifact id."""
        return self.container.id

    @property
    def manifest(self) -> Manifest:
        """The manifest."""
        return self.container.manifest

    @property
    def header(self) -> Header:
        """The header: manifest, pools and part table."""
        return self.container.header

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""
        return self.container.nbytes

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """The files that travel along, sorted by name."""
        return self.manifest.attachments

    @property
    def missing_refs(self) -> tuple[str, ...]:
        """The artifact ids that `rtvq` records refer to and that are not at hand."""
        used = {record.params.ref for record in self.manifest.tensors if isinstance(record.params, RtvqParams)}
        ids = (self.manifest.refs[place] for place in sorted(used))
        return tuple(wanted for wanted in ids if wanted not in self._refs)

    def refer_to(self, other: Expert) -> None:
        """Let `rtvq` records take their base vector from an open artifact, which stays the caller's."""
        self._refs[other.id] = other

    def forget(self, other: Expert) -> None:
        """Take `refer_to` back."""
        self._refs.pop(other.id, None)

    def attachment(self, name: str) -> bytes:
        """The bytes of an attachment.

        Raises:
            FormatError: `part_digest`, `pad_not_zero`, `truncated`.
            ObmError: `not_found`.
        """
        return self.container.attachment(name)

    def digests(self, name: str) -> RecordDigests:
        """The digests of a tensor's record: backbone tensor, rebuilt tensor, parts.

        Raises:
            FormatError: the digests are damaged (`part_digest`, `pad_not_zero`, `truncated`).
        """
        return self.container.digests(self._record(name))

    # --- tensors --------------------------------------------------------------------------------------------

    def values(
        self,
        name: str,
        base: Words | None = None,
        rows: slice | None = None,
        *,
        planes: int | None = None,
        base_checked: bool = False,
        out: Float32 | None = None,
    ) -> Float32:
        """The task vector of a tensor, or of some of its rows.

        Args:
            name: tensor name in backbone coordinates.
            base: the backbone tensor; only exact tensors with a counterpart need it.
            rows: rows along the first dimension; None: all.
            planes: read the bits of these first planes of `sign1` alone; other encodings have none. None: all.
            base_checked: see the class.
            out: C-contiguous float32[rows, *shape[1:]], which is written and returned: memory that is used again costs
                less than new. None: a new array.

        Returns:
            float32[rows, *shape[1:]]; without `out` read-only where a tensor did not change.

        Raises:
            FormatError: what the parts' digests and the codecs find; `not_finite`.
            BackboneMismatch: `base_tensor`, `base_digest`.
            UsageError: `usage`, a backbone tensor is needed, or less than one plane asked for; `bad_shape`, the
                tensor was replaced by one of another shape, or `out` does not fit; `unsupported_dtype`.
        Source: obm-1 clauses 6.6 and 9.2.
        """
        record = first_planes(self._record(name), planes)
        cut = cut_rows(record, rows)
        if out is not None:
            check_values_output(out, cut.shape)
        if not record.is_exact:
            return self._approximate(record, cut, out)
        found = self._difference(record, cut, base, base_checked).reshape(cut.shape)
        if out is None:
            return found
        np.copyto(out, found)
        return out

    def operand(
        self,
        name: str,
        base: Words | None = None,
        *,
        rows: int | None = None,
        planes: int | None = None,
        base_checked: bool = False,
    ) -> Operand:
        """The task vector of a tensor as the kernels take it, in a matrix view; without grown rows.

        Args:
            name: tensor name in backbone coordinates.
            base: the backbone tensor; only `xdelta` and `sparse` in mode replace need it.
            rows: rows of the matrix view; None: the record's.
            planes: as in `values`.
            base_checked: the digest of `base` has been checked.

        Returns:
            sign bits stay packed if `rows` is the record's.

        Raises:
            FormatError: what the parts' digests and the codecs find.
            BackboneMismatch: `base_tensor`, `base_digest`.
            UsageError: `usage`, a backbone tensor is needed, or less than one plane asked for.
        """
        record = first_planes(self._record(name), planes)
        if isinstance(record.params, ZeroParams):
            return ZeroOperand()
        if isinstance(record.params, SignParams) and rows in (None, record.params.rows):
            return sign1.operand(record, RecordParts(self.container, record))
        view = matrix_shape(record, rows)
        if record.is_exact:
            words = self._exact(record, base, base_checked).reshape(-1)[: record.encoded_numel]
            return ExactOperand(words=words.reshape(view), dtype=record.spec.dtype)
        return ValueOperand(values=self.decode(record, whole(record)).reshape(view))

    def exact(self, name: str, base: Words | None = None, *, base_checked: bool = False) -> Words:
        """The fine-tune's tensor, bit for bit, its digest checked.

        Args:
            name: tensor name in backbone coordinates.
            base: the backbone tensor; `xdelta`, `sparse` and `zero` need it.
            base_checked: the digest of `base` has been checked.

        Returns:
            words of the record's dtype and shape; read-only views for `raw` and `zero`.

        Raises:
            FormatError: what the parts' digests and the codecs find; `output_digest`, `not_finite`.
            BackboneMismatch: `base_tensor`, `base_digest`.
            UsageError: `usage`, the tensor is approximate, or a backbone tensor is needed.
        Source: obm-1 clauses 5.5 and 9.4.
        """
        record = self._record(name)
        if record.is_unchanged:
            return self._base(record, base, base_checked).reshape(record.spec.shape)
        if not record.is_exact:
            raise UsageError("usage", "the tensor is stored approximately", where=name, got=record.encoding)
        return self._exact(record, base, base_checked)

    def tail(self, name: str) -> Words | None:
        """The grown rows of a tensor, whole (obm-1 clause 5.6).

        Returns:
            words [grown rows, *shape[1:]], or None where the tensor did not grow.

        Raises:
            FormatError: what the part's digest finds; `not_finite`.
        """
        record = self._record(name)
        if not record.grown_rows:
            return None
        cut = cut_rows(record, slice(record.spec.shape[0] - record.grown_rows, None))
        return self._tail(record, cut).reshape(cut.shape)

    def rebuild(
        self,
        name: str,
        base: Words | None = None,
        kernels: Kernels | None = None,
        *,
        base_checked: bool = False,
    ) -> Words:
        """The tensor that the expert alone makes of the backbone's.

        Args:
            name: tensor name in backbone coordinates.
            base: the backbone tensor; not needed for added tensors and `raw` in mode replace.
            kernels: the arithmetic; None: that of the expert.
            base_checked: the digest of `base` has been checked.

        Returns:
            words of the record's dtype and shape; may be a read-only view of `base` or of the file.

        Raises:
            FormatError: what the parts' digests and the codecs find; `output_digest`, `not_finite`.
            BackboneMismatch: `base_tensor`, `base_digest`.
            UsageError: `usage`, a backbone tensor is needed.
        Source: obm-1 clause 9.3.
        """
        record = self._record(name)
        if record.is_exact or record.is_unchanged:
            return self.exact(name, base, base_checked=base_checked)
        old = self._base(record, base, base_checked)
        assert record.base is not None  # noqa: S101 - only added tensors have none, and they are exact
        out: Words = empty(record.spec.numel, words_dtype(record.spec.dtype))
        covered = record.encoded_numel
        if covered:
            view = matrix_shape(record, record.params.rows if isinstance(record.params, SignParams) else None)
            (kernels or self.kernels).merge(
                old.reshape(view),
                record.base.dtype,
                self._addend(record),
                [],
                combine=Combine.SUM,
                weights=[],
                lam=0.0,
                out=out[:covered].reshape(view),
                out_dtype=record.spec.dtype,
            )
        if record.grown_rows:
            out[covered:] = self._tail(record, cut_rows(record, None))
        check_finite(out, record.spec.dtype, name)
        return out.reshape(record.spec.shape)

    def check_base(self, name: str, spec: TensorSpec, sha256: bytes) -> None:
        """Refuse a backbone tensor that is not the one the record was made against.

        Args:
            name: tensor name in backbone coordinates; its record has a counterpart.
            spec: the backbone tensor's dtype and shape.
            sha256: digest of its bytes.

        Raises:
            BackboneMismatch: `base_tensor`, `base_digest`.
        Source: obm-1 clause 10.3.
        """
        record = self._record(name)
        if record.base is None or (record.base.dtype, record.base.shape) != (spec.dtype, spec.shape):
            raise other_tensor(record, f"{spec.dtype.name}{list(spec.shape)}")
        expected = self.container.digests(record).base
        if expected != sha256:
            raise other_bytes(name, expected, sha256)

    def verify(
        self,
        level: Level = "parts",
        base: Callable[[str], Words] | None = None,
        progress: Progress | None = None,
    ) -> list[Defect]:
        """Look for everything that is wrong with the file.

        Args:
            level: `parts`: every digest and all padding; `deep`: also every frame, sum and tensor.
            base: gives the words of a backbone tensor by the backbone's name; with it `deep` rebuilds all
                tensors, without it tensors are decoded as far as they go.
            progress: told how many bytes are hashed.

        Returns:
            all defects; empty for a sound file.

        Raises:
            ObmError: the file cannot be read at all (`io`, `network`).
        Source: obm-1 clause 14.2.
        """
        defects = self.container.verify(True, progress)
        return defects or (self.verify_tensors(base) if level == "deep" else [])

    def verify_tensors(self, base: Callable[[str], Words] | None = None, *, base_checked: bool = False) -> list[Defect]:
        """The deep half of `verify`, for a file whose parts were verified: every sum, and every tensor with its frames.

        Args:
            base: as in `verify`.
            base_checked: the digests of all that `base` gives have been checked.
        """
        # Tensors first: what they read by its sums is not hashed once more. A wrong sum is found on both ways.
        return list(dict.fromkeys([*tensor_defects(self, base, base_checked), *self.container.sum_defects()]))

    # --- inside ---------------------------------------------------------------------------------------------

    @property
    def kernels(self) -> Kernels:
        """The arithmetic."""
        if self._chosen is None:
            self._chosen = select_kernels()
        return self._chosen

    def _record(self, name: str) -> TensorRecord:
        record = self.records.get(name)
        if record is None:
            raise ObmError("not_found", "the expert has no such tensor", where=name)
        return record

    def _base(self, record: TensorRecord, base: Words | None, checked: bool) -> Words:
        """The backbone's words, flat and checked (obm-1 clause 10.3)."""
        if base is None or record.base is None:
            raise UsageError("usage", f"{record.encoding} needs the backbone's tensor", where=record.name)
        if base.dtype != words_dtype(record.base.dtype) or base.shape != record.base.shape:
            raise other_tensor(record, f"{base.dtype}{list(base.shape)}")
        flat = np.ascontiguousarray(base).reshape(-1)
        if not checked:
            self.check_base(record.name, record.base, _sha256(flat))
        return flat

    def decode(
        self, record: TensorRecord, span: Span, parts: RecordParts | None = None, *, out: Float32 | None = None
    ) -> Float32:
        """The float32 values of flat elements of an approximate record, read through `parts`, in `out` if given."""
        parts = parts or RecordParts(self.container, record)
        reference = self._reference(record, record.params, span) if isinstance(record.params, RtvqParams) else None
        return catalogue.decode_values(record, parts, span, kernels=self.kernels, reference=reference, out=out)

    def _approximate(self, record: TensorRecord, cut: RowCut, out: Float32 | None) -> Float32:
        if out is None and not cut.tail.size:
            return self.decode(record, cut.covered).reshape(cut.shape)
        if out is None:
            out = empty(math.prod(cut.shape), np.float32).reshape(cut.shape)
        flat, covered = out.reshape(-1), cut.covered.size
        self.decode(record, cut.covered, out=flat[:covered])
        if cut.tail.size:
            flat[covered:] = to_float32(self._tail(record, cut), record.spec.dtype)
        return out

    def _difference(self, record: TensorRecord, cut: RowCut, base: Words | None, checked: bool) -> Float32:
        """The flat task vector of some rows of an exact record (obm-1 clause 9.2)."""
        if record.base is None:
            return to_float32(self._words(record, cut, None), record.spec.dtype)
        flat = self._base(record, base, checked)
        if record.encoded_shape != record.base.shape:
            raise UsageError("bad_shape", "the tensor has another shape than the backbone's", where=record.name)
        words = self._words(record, cut, flat)
        old, head = flat[cut.covered.start : cut.covered.stop], words[: cut.covered.size]
        delta = self.kernels.subtract(head, record.spec.dtype, old, record.base.dtype)
        check_finite(delta.view(np.uint32), DType.F32, record.name)  # obm-1 clause 9.2
        if cut.tail.size:
            delta = np.concatenate((delta, to_float32(words[cut.covered.size :], record.spec.dtype)))
        return delta

    def _words(self, record: TensorRecord, cut: RowCut, base: Words | None) -> Words:
        """The flat words of some rows of an exact record; the digest of all of them when they are all."""
        parts = RecordParts(self.container, record)
        words = catalogue.decode_words(record, parts, cut.covered, base)
        if cut.tail.size:
            words = np.concatenate((words, self._tail(record, cut)))
        # obm-1 clause 9.4
        expected = self.container.digests(record).out
        if words.size == record.spec.numel and _sha256(words) != expected:
            raise FormatError(
                "output_digest",
                "the rebuilt tensor does not hash to its digest",
                where=record.name,
                expected=expected.hex() if expected else None,
            )
        check_finite(words, record.spec.dtype, record.name)  # obm-1 clause 9.3
        return words

    def _exact(self, record: TensorRecord, base: Words | None, checked: bool) -> Words:
        needs_base = record.encoding != "raw"
        flat = self._base(record, base, checked) if needs_base else None
        return self._words(record, cut_rows(record, None), flat).reshape(record.spec.shape)

    def _tail(self, record: TensorRecord, cut: RowCut) -> Words:
        words = read_words(RecordParts(self.container, record), "tail", record.spec.dtype, cut.tail)
        check_finite(words, record.spec.dtype, f"{record.name}#tail")
        return words

    def _addend(self, record: TensorRecord) -> Operand:
        if isinstance(record.params, ZeroParams):
            # obm-1 clause 9.3: f32(backbone) + 0, which is not the backbone's bits where those are -0
            return ValueOperand(values=np.zeros(matrix_shape(record, None), dtype=np.float32))
        return self.operand(record.name)

    def _reference(self, record: TensorRecord, params: RtvqParams, span: Span) -> Float32:
        """The values of the base vector that an `rtvq` record refers to (obm-1 clause 6.7)."""
        wanted = self.manifest.refs[params.ref]
        other = self._refs.get(wanted)
        if other is None:
            raise ObmError(
                "not_found",
                "the base vector is not at hand",
                where=record.name,
                expected=wanted,
                hint="pull it too",
            )
        found = other.records.get(record.name)
        is_base = other.id == wanted and other.manifest.kind is Kind.RTVQ_BASE
        is_ours = other.manifest.backbone.fingerprint == self.manifest.backbone.fingerprint
        if found is None or not (is_base and is_ours and is_base_vector(found, record)):
            raise FormatError(
                "bad_reference",
                "the artifact is no base vector for this tensor",
                where=record.name,
                got=other.id,
            )
        return other.decode(found, span)


def _sha256(flat: Words) -> bytes:
    return hashlib.sha256(flat.view(np.uint8).data).digest()

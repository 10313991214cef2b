"""The nouns: dtypes, tensor specs, encoding parameters, tensor records, the manifest, the parts.

Plain frozen data. Constructors do not validate: `container.header.parse_header` is the one way in from bytes.
Words are those of spec/obm-1.md. Arrays never appear here.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

CHUNK_NBYTES = 2 << 20  # obm-1 clause 8.2: raw bytes of one zstd frame
SUM_NBYTES = 1 << 20  # obm-1 clause 8.3: bytes under one sum
SUMS_FROM_NBYTES = 8 << 20  # obm-1 clause 8.3: unframed parts larger than this carry sums
ALIGNMENT = 64  # obm-1 clause 2.3


class DType(enum.Enum):
    """Element types, by their safetensors names; the value is the size of one element in bytes and its kind."""

    BOOL = ("BOOL", 1, False)
    U8 = ("U8", 1, False)
    I8 = ("I8", 1, False)
    F8_E4M3 = ("F8_E4M3", 1, False)
    F8_E5M2 = ("F8_E5M2", 1, False)
    U16 = ("U16", 2, False)
    I16 = ("I16", 2, False)
    F16 = ("F16", 2, True)
    BF16 = ("BF16", 2, True)
    U32 = ("U32", 4, False)
    I32 = ("I32", 4, False)
    F32 = ("F32", 4, True)
    U64 = ("U64", 8, False)
    I64 = ("I64", 8, False)
    F64 = ("F64", 8, False)

    def __init__(self, _: str, itemsize: int, is_float: bool) -> None:
        self.itemsize = itemsize
        """Bytes of one element."""
        self.is_float = is_float
        """Whether obm computes with this dtype (F16, BF16, F32); the others are only carried, bit for bit."""

    @property
    def holds_reals(self) -> bool:
        """Whether the elements stand for real numbers (F8 and F64 too)."""
        return self.name.startswith(("F", "BF"))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one tensor of a checkpoint."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.numel * self.dtype.itemsize


# --- encoding parameters (obm-1 clause 6) -------------------------------------------------------------------


class Granularity(enum.Enum):
    """Which elements of a matrix share one alpha (obm-1 clause 6.3)."""

    MATRIX = "matrix"
    ROW = "row"
    GROUP = "group"
    BLOCK = "block"


class AlphaRule(enum.Enum):
    """How alpha was computed; readers only multiply (obm-1 clause 6.4)."""

    MEAN = "mean"
    RMS = "rms"
    PROJ = "proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaLayout:
    """Which alphas a tensor has.

    Args:
        granularity: what shares one alpha.
        group: columns per alpha; only for `GROUP`.
        blocks: run-length pairs (count, rows); only for `BLOCK`.
        rule: how they were computed.
        gain: decimal string the alphas were multiplied by; "1" when they were not.
        dtype: F16 or F32.
    """

    granularity: Granularity = Granularity.MATRIX
    group: int = 0
    blocks: tuple[tuple[int, int], ...] = ()
    rule: AlphaRule = AlphaRule.MEAN
    gain: str = "1"
    dtype: DType = DType.F16


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroParams:
    """`zero`: the delta is 0 everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawParams:
    """`raw`: the elements themselves.

    Args:
        value_dtype: dtype of the stored elements.
        zstd_nbytes: length of the framed part when the elements are shuffled and framed, else None.
    """

    value_dtype: DType
    zstd_nbytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignParams:
    """`sign1`: 1 to 4 planes of sign bits with alphas; `rows` of the matrix view."""

    alpha: AlphaLayout
    rows: int
    planes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TernParams:
    """`tern1`: a mask plane, a sign plane and alphas; `rows` of the matrix view."""

    alpha: AlphaLayout
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineParams:
    """`affine`: codes of `bits` bits; `rows` of the matrix view."""

    bits: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RtvqParams:
    """`rtvq`: an affine offset on tensor `name` of the artifact `refs[ref]`."""

    bits: int
    rows: int
    ref: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseParams:
    """`sparse`: `nnz` positions and values of `value_dtype`."""

    nnz: int
    value_dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class XdeltaParams:
    """`xdelta`: ordered-bit differences in zstd frames of `zstd_nbytes` bytes in all."""

    zstd_nbytes: int
    bucket: bool = False


Params = ZeroParams | RawParams | SignParams | TernParams | AffineParams | RtvqParams | SparseParams | XdeltaParams

ENCODING_OF_PARAMS: dict[type, str] = {
    ZeroParams: "zero",
    RawParams: "raw",
    SignParams: "sign1",
    TernParams: "tern1",
    AffineParams: "affine",
    RtvqParams: "rtvq",
    SparseParams: "sparse",
    XdeltaParams: "xdelta",
}


class Mode(enum.Enum):
    """How the decoded content relates to the backbone tensor (obm-1 clause 5.4).

    DELTA adds to it (or, for `xdelta`, transforms its bits); REPLACE stands in its stead; ADDED has no counterpart.
    """

    DELTA = "delta"
    REPLACE = "replace"
    ADDED = "added"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """One tensor of an expert.

    Args:
        spec: name (in backbone coordinates), dtype and shape of the tensor that is rebuilt.
        base: the backbone tensor it is taken against; None exactly when `mode` is ADDED.
        mode: delta, replace or added.
        params: what the encoding needs; its type names the encoding.
    """

    spec: TensorSpec
    base: TensorSpec | None
    mode: Mode
    params: Params

    @property
    def name(self) -> str:
        """The tensor's name in backbone coordinates."""
        return self.spec.name

    @property
    def encoding(self) -> str:
        """The encoding's id in the spec."""
        return ENCODING_OF_PARAMS[type(self.params)]

    @property
    def encoded_shape(self) -> tuple[int, ...]:
        """The shape that the encoding covers: less than `spec.shape` where a vocabulary grew (clause 5.6)."""
        return self.base.shape if self.base is not None and self.mode is Mode.DELTA else self.spec.shape

    @property
    def encoded_numel(self) -> int:
        """Elements that the encoding covers."""
        return math.prod(self.encoded_shape)

    @property
    def grown_rows(self) -> int:
        """Rows beyond the backbone's, which the part `tail` carries whole (clause 5.6)."""
        if self.mode is not Mode.DELTA or self.base is None or self.base.shape == self.spec.shape:
            return 0
        return self.spec.shape[0] - self.base.shape[0]

    @property
    def is_exact(self) -> bool:
        """Whether the rebuilt tensor is the fine-tune's, bit for bit, with a digest that proves it (clause 5.5)."""
        return self.mode is not Mode.DELTA or isinstance(self.params, XdeltaParams)

    @property
    def has_difference(self) -> bool:
        """Whether it is exact and less its counterpart is a task vector value (clause 9.2)."""
        base = self.base
        kin = base is not None and base.dtype.is_float and base.shape == self.encoded_shape
        return kin and self.is_exact and self.spec.dtype.is_float

    @property
    def is_unchanged(self) -> bool:
        """Whether the rebuilt tensor is the backbone's, bit for bit."""
        return (
            isinstance(self.params, ZeroParams)
            and self.base is not None
            and (self.base.dtype, self.base.shape) == (self.spec.dtype, self.spec.shape)
        )


# --- the manifest (obm-1 clause 5) --------------------------------------------------------------------------


class Kind(enum.Enum):
    """What an `.obm` holds."""

    TASK_VECTOR = "task-vector"
    RTVQ_BASE = "rtvq-base"
    ROUTER = "router"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneId:
    """The backbone that an artifact belongs to.

    Args:
        fingerprint: content fingerprint, 64 hexadecimal digits.
        n_tensors: number of tensors of the backbone.
        n_params: number of elements of all of them.
        architecture: model class name of the backbone's config.json, or "" when there is none.
    """

    fingerprint: str
    n_tensors: int
    n_params: int
    architecture: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The one name prefix by which fine-tune and backbone differ (clause 5.7).

    Args:
        side: "tuned" when the fine-tune's names have the prefix, "backbone" when the backbone's have it.
        text: the prefix, with its final dot.
    """

    side: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file of the fine-tune that travels along: configuration, tokenizer, chat template."""

    name: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterInfo:
    """What a `router` artifact needs besides its weights: route names in output order, input limit, head kind."""

    routes: tuple[str, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything the header says, but for the pools' sizes and digests and the part table.

    Args:
        kind: what the file holds.
        task: task name, "" for none.
        position: `attention`, `mlp`, `linear`, `none` or the pattern that chose the 1-bit tensors.
        backbone: the backbone it belongs to.
        tensors: records, sorted by name bytewise.
        aliases: (name, target) pairs sorted by name: `name` is rebuilt as a copy of `target`.
        removed: backbone tensors that the fine-tune lacks, sorted.
        prefix: the name prefix by which fine-tune and backbone differ, or None.
        attachments: sorted by name.
        refs: artifact ids that `rtvq` records refer to.
        router: only for kind ROUTER.
        requires: feature ids that a reader must know.
        ext: ignorable vendor data (canonical JSON object, keys `vendor.name`).
    """

    kind: Kind
    task: str
    position: str
    backbone: BackboneId
    tensors: tuple[TensorRecord, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    removed: tuple[str, ...] = ()
    prefix: Prefix | None = None
    attachments: tuple[Attachment, ...] = ()
    refs: tuple[str, ...] = ()
    router: RouterInfo | None = None
    requires: tuple[str, ...] = ()
    ext: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Size and digest of one pool part (clause 7.3)."""

    nbytes: int
    sha256: bytes


POOL_NAMES = ("digests", "alphas", "frames", "sums")  # their order in the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the file.

    Args:
        name: key in the part table.
        offset: bytes from the start of the file, a multiple of 64.
        nbytes: bytes without padding.
        raw_nbytes: size before compression when the part is in zstd frames, else None.
    """

    name: str
    offset: int
    nbytes: int
    raw_nbytes: int | None = None

    @property
    def padded_nbytes(self) -> int:
        """Bytes with padding, as the part table states them."""
        return padded(self.nbytes)


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment of parts (clause 2.3)."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT

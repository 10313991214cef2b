"""Encoding parameters: one parser and one writer per encoding.

The table of obm-1 clause 6.5, with the ranges of clauses 6.1 to 6.9. What depends on other parts of the
manifest (`refs`) is checked by the manifest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import accumulate, pairwise
from operator import mul
from typing import Final, NamedTuple

from obm_format.container.fields import Fields, typed
from obm_format.errors import FormatError
from obm_format.layout import default_rows
from obm_format.model import (
    AffineParams,
    AlphaLayout,
    AlphaRule,
    DType,
    Granularity,
    Mode,
    Params,
    RawParams,
    RtvqParams,
    SignParams,
    SparseParams,
    TensorRecord,
    TensorSpec,
    TernParams,
    XdeltaParams,
    ZeroParams,
)

_GAIN = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,9})?")
_ALPHA_KEYS: Final = frozenset({"alpha", "alpha_dtype", "blocks", "gain", "group", "rows", "rule"})
_GRANULARITIES: Final = {item.value: item for item in Granularity}
_RULES: Final = {item.value: item for item in AlphaRule}
_VALUE_DTYPES: Final = {item.name: item for item in (DType.F16, DType.BF16, DType.F32)}
_ALPHA_DTYPES: Final = {item.name: item for item in (DType.F16, DType.F32)}
DTYPES: Final = dict(DType.__members__)
"""The dtypes by their names."""


class Setting(NamedTuple):
    """What the parameters of a record are read against.

    Args:
        spec: the tensor that is rebuilt.
        mode: delta, replace or added.
        shape: what the encoding covers (clause 5.6).
    """

    spec: TensorSpec
    mode: Mode
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements that the encoding covers."""
        return math.prod(self.shape)


def parse_params(encoding: str, value: object, setting: Setting, where: str) -> Params:
    """The parameters of one record.

    Args:
        encoding: a key of `ENCODINGS`.
        value: the JSON object `params`, empty where it is left out; defaults are taken out of it.
        setting: the record.
        where: what messages call the parameters.

    Raises:
        FormatError: `manifest_field` for missing, unknown or mistyped fields, `bad_params` for values.
    """
    keys, parse = ENCODINGS[encoding]
    return parse(Fields(value, where, keys), setting)


def _zero(_fields: Fields, _setting: Setting) -> Params:
    return ZeroParams()


def _raw(fields: Fields, setting: Setting) -> Params:
    zstd_nbytes = _zstd_nbytes(fields, setting) if "zstd_nbytes" in fields else None
    return RawParams(value_dtype=_value_dtype(fields, setting, setting.spec.dtype), zstd_nbytes=zstd_nbytes)


def _sign1(fields: Fields, setting: Setting) -> Params:
    planes = fields.get("planes", int, 1)
    if not 1 <= planes <= 4:
        raise fields.refuse("planes", "too few or too many planes", expected="1 to 4", got=planes)
    rows = _rows(fields, setting)
    return SignParams(alpha=_alpha(fields, setting, rows), rows=rows, planes=planes)


def _tern1(fields: Fields, setting: Setting) -> Params:
    rows = _rows(fields, setting)
    return TernParams(alpha=_alpha(fields, setting, rows), rows=rows)


def _affine(fields: Fields, setting: Setting) -> Params:
    return AffineParams(bits=_bits(fields, setting), rows=_rows(fields, setting))


def _rtvq(fields: Fields, setting: Setting) -> Params:
    return RtvqParams(bits=_bits(fields, setting), rows=_rows(fields, setting), ref=fields.get("ref", int, 0))


def _sparse(fields: Fields, setting: Setting) -> Params:
    nnz = fields.get("nnz", int)
    # obm-1 clause 6.8
    if nnz > setting.numel:
        raise fields.refuse("nnz", "more elements than there are", expected=f"at most {setting.numel}", got=nnz)
    default = DType.F32 if setting.mode is Mode.DELTA else setting.spec.dtype
    return SparseParams(nnz=nnz, value_dtype=_value_dtype(fields, setting, default))


def _xdelta(fields: Fields, setting: Setting) -> Params:
    return XdeltaParams(zstd_nbytes=_zstd_nbytes(fields, setting), bucket=fields.get("bucket", bool, False))


def _zstd_nbytes(fields: Fields, setting: Setting) -> int:
    nbytes = fields.get("zstd_nbytes", int)
    # obm-1 clause 2.3: a part of zero bytes does not exist, so it cannot be framed
    if nbytes == 0 or setting.numel == 0:
        raise fields.refuse("zstd_nbytes", "an empty part is not framed", expected="at least 1", got=nbytes)
    return nbytes


def _value_dtype(fields: Fields, setting: Setting, default: DType) -> DType:
    """Dtype of stored values: free only in mode delta (clause 6.5)."""
    if "value_dtype" in fields and setting.mode is not Mode.DELTA:
        raise FormatError("manifest_field", "only mode delta has this field", where=fields.path("value_dtype"))
    return fields.choice("value_dtype", _VALUE_DTYPES, "bad_params", default)


def _bits(fields: Fields, setting: Setting) -> int:
    bits = fields.get("bits", int)
    if bits not in {2, 3, 4, 8}:
        raise fields.refuse("bits", "no such width of codes", expected="2 | 3 | 4 | 8", got=bits)
    return bits


def _rows(fields: Fields, setting: Setting) -> int:
    """Rows of the matrix view: a product of leading dimensions (clause 6.1)."""
    default = default_rows(setting.shape)
    rows = fields.get("rows", int, default)
    if rows != default and rows not in accumulate(setting.shape, mul, initial=1):
        products = list(accumulate(setting.shape, mul, initial=1))
        raise fields.refuse("rows", "not a product of leading dimensions", expected=products, got=rows)
    return rows


def _alpha(fields: Fields, setting: Setting, rows: int) -> AlphaLayout:
    """The alpha parameters (clauses 6.3 and 6.4)."""
    granularity = fields.choice("alpha", _GRANULARITIES, "bad_params", Granularity.MATRIX)
    gain = fields.get("gain", str, "1")
    if _GAIN.fullmatch(gain) is None:
        raise fields.refuse("gain", "not a decimal", expected=_GAIN.pattern, got=ascii(gain[:80]))
    return AlphaLayout(
        granularity=granularity,
        group=_group(fields, setting, granularity),
        blocks=_blocks(fields, setting, granularity, rows),
        rule=fields.choice("rule", _RULES, "bad_params", AlphaRule.MEAN),
        gain=gain,
        dtype=fields.choice("alpha_dtype", _ALPHA_DTYPES, "bad_params", DType.F16),
    )


def _group(fields: Fields, setting: Setting, granularity: Granularity) -> int:
    group = fields.get("group", int, 0)
    if granularity is Granularity.GROUP:
        if group == 0 or group % 64:
            raise fields.refuse("group", "no such group", expected="a positive multiple of 64", got=group)
    elif group:
        raise fields.refuse("group", "only alpha `group` has groups", expected="no group", got=group)
    return group


def _blocks(fields: Fields, setting: Setting, granularity: Granularity, rows: int) -> tuple[tuple[int, int], ...]:
    blocks = tuple([_block(item, fields.path("blocks")) for item in fields.get("blocks", list, [])])
    if granularity is not Granularity.BLOCK:
        if blocks:
            raise fields.refuse("blocks", "only alpha `block` has blocks", expected="no blocks", got=len(blocks))
        return ()
    total = sum(count * height for count, height in blocks)
    if total != rows or any(not count or not height for count, height in blocks):
        raise fields.refuse("blocks", "the blocks do not cover the rows", expected=f"{rows} rows", got=total)
    if any(before[1] == after[1] for before, after in pairwise(blocks)):
        raise fields.refuse("blocks", "neighbours of equal height are one run", expected="runs", got="a cut run")
    return blocks


def _block(value: object, where: str) -> tuple[int, int]:
    pair = typed(value, list, where)
    if len(pair) != 2:
        raise FormatError("manifest_field", "a block is a pair", where=where, expected="[count, rows]", got=len(pair))
    return typed(pair[0], int, where), typed(pair[1], int, where)


_Parser = Callable[[Fields, Setting], Params]

ENCODINGS: Final[dict[str, tuple[frozenset[str], _Parser]]] = {
    "zero": (frozenset(), _zero),
    "raw": (frozenset({"value_dtype", "zstd_nbytes"}), _raw),
    "sign1": (_ALPHA_KEYS | {"planes"}, _sign1),
    "tern1": (_ALPHA_KEYS, _tern1),
    "affine": (frozenset({"bits", "rows"}), _affine),
    "rtvq": (frozenset({"bits", "ref", "rows"}), _rtvq),
    "sparse": (frozenset({"nnz", "value_dtype"}), _sparse),
    "xdelta": (frozenset({"bucket", "zstd_nbytes"}), _xdelta),
}
"""The parameter names of each encoding (clause 6.5), and what reads them."""


def params_object(record: TensorRecord) -> dict[str, object]:
    """The JSON object `params` of a record, without the fields that have their defaults (clause 4.2)."""
    match record.params:
        case ZeroParams():
            return {}
        case RawParams(value_dtype=dtype, zstd_nbytes=nbytes):
            framed: dict[str, object] = {} if nbytes is None else {"zstd_nbytes": nbytes}
            return _unless("value_dtype", dtype.name, record.spec.dtype.name) | framed
        case SignParams(alpha=alpha, rows=rows, planes=planes):
            return _alpha_object(alpha) | _rows_object(record, rows) | _unless("planes", planes, 1)
        case TernParams(alpha=alpha, rows=rows):
            return _alpha_object(alpha) | _rows_object(record, rows)
        case AffineParams(bits=bits, rows=rows):
            return {"bits": bits} | _rows_object(record, rows)
        case RtvqParams(bits=bits, rows=rows, ref=ref):
            return {"bits": bits} | _rows_object(record, rows) | _unless("ref", ref, 0)
        case SparseParams(nnz=nnz, value_dtype=dtype):
            default = DType.F32 if record.mode is Mode.DELTA else record.spec.dtype
            return {"nnz": nnz} | _unless("value_dtype", dtype.name, default.name)
        case XdeltaParams(zstd_nbytes=size, bucket=bucket):
            return {"zstd_nbytes": size} | _unless("bucket", bucket, default=False)


def _unless(key: str, value: object, default: object) -> dict[str, object]:
    return {} if value == default else {key: value}


def _rows_object(record: TensorRecord, rows: int) -> dict[str, object]:
    return _unless("rows", rows, default_rows(record.encoded_shape))


def _alpha_object(alpha: AlphaLayout) -> dict[str, object]:
    fields: dict[str, tuple[object, object]] = {
        "alpha": (alpha.granularity.value, "matrix"),
        "alpha_dtype": (alpha.dtype.name, "F16"),
        "blocks": ([list(block) for block in alpha.blocks], []),
        "gain": (alpha.gain, "1"),
        "group": (alpha.group, 0),
        "rule": (alpha.rule.value, "mean"),
    }
    return {key: value for key, (value, default) in fields.items() if value != default}

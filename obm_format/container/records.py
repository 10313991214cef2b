"""Tensor records: one JSON object of the manifest to a checked `TensorRecord`, and back.

Source: obm-1 clauses 5.2 to 5.6 and 6.1.
"""

from __future__ import annotations

import math
from typing import Final

from obm_format.container.fields import Fields
from obm_format.container.names import check_tensor_name
from obm_format.container.params import DTYPES, ENCODINGS, Setting, params_object, parse_params
from obm_format.errors import FormatError
from obm_format.limits import Limits
from obm_format.model import (
    Mode,
    Params,
    SparseParams,
    TensorRecord,
    TensorSpec,
    XdeltaParams,
    ZeroParams,
)

_KEYS: Final = frozenset({"base", "dtype", "encoding", "mode", "name", "params", "shape"})
_BASE_KEYS: Final = frozenset({"dtype", "name", "shape"})
_ENCODINGS: Final = {encoding: encoding for encoding in ENCODINGS}
_MODES: Final = {mode.value: mode for mode in Mode}
_MOST_FORMS: Final = 1024  # as many are kept, of as many characters each
_FORM_LENGTH: Final = 1024
_WITHOUT_ELEMENTS: Final = frozenset({"zero", "raw", "sparse"})
# obm-1 clause 5.4, the table; every encoding has mode delta
_OTHER_MODES: Final[dict[str, frozenset[Mode]]] = {
    "raw": frozenset({Mode.REPLACE, Mode.ADDED}),
    "sparse": frozenset({Mode.REPLACE}),
}


class RecordParser:
    """Parses the records of one manifest: of those that differ in their names alone, the first is checked whole.

    A model has thousands of tensors, but few forms of them. What else a form says wrongly, or with a default written
    out, shows in its first record.

    Args:
        limits: as of `parse_record`.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._forms: dict[str, TensorRecord] = {}

    def parse(self, value: object, where: str) -> TensorRecord:
        """As `parse_record`."""
        form = _form_of(value)
        known = self._forms.get(form)
        if known is not None and isinstance(value, dict) and type(value.get("name")) is str:
            name = check_tensor_name(value["name"], self._limits, f"{where}.name")
            spec = TensorSpec(name, known.spec.dtype, known.spec.shape)
            return TensorRecord(spec=spec, base=spec, mode=known.mode, params=known.params)
        record = parse_record(value, where, self._limits)
        if form and record.base is record.spec and len(self._forms) < _MOST_FORMS:
            self._forms[form] = record
        return record


def _form_of(value: object) -> str:
    """A text that only records have in common that say the same but for their names; "" where that takes too long."""
    if not isinstance(value, dict):
        return ""
    text = str({key: item for key, item in value.items() if key != "name"})
    return text if len(text) <= _FORM_LENGTH else ""


def parse_record(value: object, where: str, limits: Limits) -> TensorRecord:
    """Parse and check one tensor record.

    Args:
        value: the JSON value; fields that have their defaults are taken out of it.
        where: what messages call it until its name is known.
        limits: `rank`, `numel` and `name_nbytes` apply.

    Raises:
        FormatError: `manifest_field`, `bad_name`, `limit_exceeded`, `bad_shape`, `unknown_encoding`,
            `bad_params`.
    """
    fields = Fields(value, where, _KEYS)
    name = check_tensor_name(fields.get("name", str), limits, fields.path("name"))
    fields.where = name
    dtype = fields.choice("dtype", DTYPES, "manifest_field")
    spec = TensorSpec(name, dtype, _shape(fields, limits))
    encoding = fields.choice("encoding", _ENCODINGS, "unknown_encoding")
    mode = fields.choice("mode", _MODES, "unknown_encoding", Mode.DELTA)
    if mode is not Mode.DELTA and mode not in _OTHER_MODES.get(encoding, frozenset()):
        raise FormatError(
            "unknown_encoding", "the encoding has no such mode", where=name, got=f"{encoding}, {mode.value}"
        )
    base = _base(fields, spec, mode, limits)
    shape = _encoded_shape(spec, base, mode, encoding)
    params = parse_params(encoding, fields.value("params"), Setting(spec, mode, shape), fields.path("params"))
    fields.settle("params")
    _check_dtypes(spec, base, mode, params)
    return TensorRecord(spec=spec, base=base, mode=mode, params=params)


def _shape(fields: Fields, limits: Limits, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
    shape = fields.numbers("shape", default)
    # obm-1 clause 3.1
    if len(shape) > limits.rank:
        raise FormatError(
            "limit_exceeded",
            "too many dimensions",
            where=fields.path("shape"),
            expected=f"at most {limits.rank}",
            got=len(shape),
        )
    if math.prod(filter(None, shape)) >= limits.numel:
        raise FormatError(
            "bad_shape",
            "too many elements",
            where=fields.path("shape"),
            expected=f"fewer than {limits.numel}",
            got=list(shape),
        )
    return shape


def _base(fields: Fields, spec: TensorSpec, mode: Mode, limits: Limits) -> TensorSpec | None:
    """The counterpart in the backbone (obm-1 clause 5.4)."""
    if mode is Mode.ADDED:
        if "base" in fields:
            raise FormatError("manifest_field", "an added tensor has no counterpart", where=fields.path("base"))
        return None
    if "base" not in fields:
        return spec
    own = Fields(fields.value("base"), fields.path("base"), _BASE_KEYS)
    dtype = own.choice("dtype", DTYPES, "manifest_field", spec.dtype)
    shape = _shape(own, limits, spec.shape)
    name = check_tensor_name(own.get("name", str, spec.name), limits, own.path("name"))
    fields.settle("base")
    return TensorSpec(name, dtype, shape)


def _encoded_shape(spec: TensorSpec, base: TensorSpec | None, mode: Mode, encoding: str) -> tuple[int, ...]:
    """What the encoding covers, once the shapes are found to fit it (obm-1 clauses 5.6 and 6.1)."""
    shape = spec.shape
    if base is not None and base.shape != shape and (mode is Mode.DELTA or encoding == "sparse"):
        # obm-1 clause 5.6: only more rows, and only in mode delta
        grown = len(shape) == len(base.shape) > 0 and shape[1:] == base.shape[1:] and shape[0] > base.shape[0]
        if mode is not Mode.DELTA or not grown:
            raise FormatError(
                "bad_shape",
                "the shape does not fit that of the backbone tensor",
                where=spec.name,
                expected=list(base.shape),
                got=list(shape),
            )
        shape = base.shape
    # obm-1 clause 6.1
    if 0 in shape and encoding not in _WITHOUT_ELEMENTS:
        raise FormatError(
            "bad_shape", f"a tensor without elements cannot be {encoding}", where=spec.name, got=list(shape)
        )
    return shape


def _check_dtypes(spec: TensorSpec, base: TensorSpec | None, mode: Mode, params: Params) -> None:
    """Refuse dtypes that the encoding does not handle (obm-1 clauses 5.5, 5.6, 6.9)."""
    if base is None:
        return
    if isinstance(params, XdeltaParams) or (mode is Mode.REPLACE and isinstance(params, SparseParams)):
        good = spec.dtype is base.dtype and (mode is Mode.REPLACE or spec.dtype.is_float)
    elif mode is Mode.REPLACE or (
        isinstance(params, ZeroParams) and spec.shape == base.shape and spec.dtype is base.dtype
    ):
        return
    else:
        good = spec.dtype.is_float and base.dtype.is_float
    if not good:
        raise FormatError(
            "bad_params",
            "the encoding does not handle these dtypes",
            where=spec.name,
            got=f"{spec.dtype.name} on {base.dtype.name}",
        )


def record_object(record: TensorRecord) -> dict[str, object]:
    """The JSON object of a record, without the fields that have their defaults (clause 4.2)."""
    made: dict[str, object] = {
        "dtype": record.spec.dtype.name,
        "encoding": record.encoding,
        "name": record.name,
        "shape": list(record.spec.shape),
    }
    if record.mode is not Mode.DELTA:
        made["mode"] = record.mode.value
    if record.base is not None and record.base != record.spec:
        made["base"] = _base_object(record.base, record.spec)
    params = params_object(record)
    if params:
        made["params"] = params
    return made


def _base_object(base: TensorSpec, spec: TensorSpec) -> dict[str, object]:
    made: dict[str, object] = {}
    if base.dtype is not spec.dtype:
        made["dtype"] = base.dtype.name
    if base.name != spec.name:
        made["name"] = base.name
    if base.shape != spec.shape:
        made["shape"] = list(base.shape)
    return made

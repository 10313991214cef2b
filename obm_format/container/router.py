"""Whether the tensors of a `router` are a standardiser and one or two layers that fit its routes.

Source: obm-1 clause 5.10.
"""

from __future__ import annotations

from collections.abc import Mapping

from obm_format.errors import FormatError
from obm_format.model import DType, Kind, Manifest, Mode, RawParams, TensorRecord


def check_router(manifest: Manifest) -> None:
    """Refuse a manifest of kind router whose tensors are not those of a router.

    Raises:
        FormatError: other tensors, dtypes, modes or encodings, or shapes that do not fit together
            (`manifest_field`).
    """
    if manifest.kind is not Kind.ROUTER or manifest.router is None:
        return
    if manifest.aliases or manifest.removed or manifest.refs or manifest.prefix is not None:
        raise FormatError(
            "manifest_field",
            "a router is of no fine-tune",
            where="manifest",
            expected="no alias, prefix, refs, removed",
        )
    records = {record.name: record for record in manifest.tensors}
    layers = 2 if "1.weight" in records else 1
    expected = {"mean", "scale", *(f"{i}.{kind}" for i in range(layers) for kind in ("weight", "bias"))}
    if records.keys() != expected or not all(map(_is_plain, manifest.tensors)):
        raise FormatError(
            "manifest_field",
            "these are not the tensors of a router",
            where="tensors",
            expected=f"{', '.join(sorted(expected))}, all F32, raw and added, no dimension 0",
            got=", ".join(sorted(records))[:200],
        )
    _check_shapes(records, layers, len(manifest.router.routes))


def _is_plain(record: TensorRecord) -> bool:
    stored = record.mode is Mode.ADDED and isinstance(record.params, RawParams)
    return stored and record.spec.dtype is DType.F32 and 0 not in record.spec.shape


def _check_shapes(records: Mapping[str, TensorRecord], layers: int, routes: int) -> None:
    shapes = {name: record.spec.shape for name, record in records.items()}
    width = shapes["mean"][:1]
    good = len(width) == 1 and shapes["mean"] == shapes["scale"] == width
    for i in range(layers):
        weight, bias = shapes[f"{i}.weight"], shapes[f"{i}.bias"]
        good = good and len(weight) == 2 and weight[1:] == width and bias == weight[:1]
        width = bias
    if not good or width != (routes,):
        raise FormatError(
            "manifest_field",
            "the layers do not fit each other or the routes",
            where="tensors",
            expected=routes,
            got=shapes,
        )

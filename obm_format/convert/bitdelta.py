"""BitDelta files: sign words and one coefficient per matrix, all other parameters whole, in a torch file.

A torch file is a pickle; it is read only here, only with `weights_only=True`, and only by a torch whose reader
of such files has no known hole. Source: FasterDecoding/BitDelta, bitdelta/diff.py.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from obm_format.checkpoint import Checkpoint
from obm_format.codecs import alphas
from obm_format.codecs.base import Bytes, Encoded, part_of
from obm_format.convert.assemble import ZERO, Change, is_grown, replaced
from obm_format.errors import BackboneMismatch, CheckpointError, UsageError
from obm_format.kernels.words import Words, words_dtype
from obm_format.model import AlphaLayout, DType, Granularity, Mode, SignParams, TensorSpec

if TYPE_CHECKING:
    import torch

MASK, COEFF, WEIGHT = ".mask", ".coeff", ".weight"
WORD = 32  # signs in a word

_TORCH = (2, 10)  # older ones run code from some files in spite of weights_only: CVE-2025-32434, CVE-2026-24747
_DTYPES = {
    "torch.float16": DType.F16,
    "torch.bfloat16": DType.BF16,
    "torch.float32": DType.F32,
    "torch.float64": DType.F64,
    "torch.int64": DType.I64,
    "torch.int32": DType.I32,
    "torch.uint8": DType.U8,
    "torch.bool": DType.BOOL,
}


class BitDeltaFile:
    """A BitDelta file, read.

    Args:
        path: the file.

    Raises:
        UsageError: torch is missing or too old (`missing_dependency`).
        CheckpointError: `not_found`, `pickle_refused`, `bad_checkpoint`, `unsupported_dtype`.
    """

    position = "linear"

    def __init__(self, path: Path) -> None:
        tensors = load_torch_file(path)
        masks = {key.removesuffix(MASK): key for key in tensors if key.endswith(MASK)}
        coeffs = {key.removesuffix(COEFF) for key in tensors if key.endswith(COEFF)}
        self._signs = {module + WEIGHT: (tensors[key], tensors.get(module + COEFF)) for module, key in masks.items()}
        self._whole = {key: value for key, value in tensors.items() if not key.endswith((MASK, COEFF))}
        odd = sorted((coeffs - masks.keys()) | (masks.keys() - coeffs) | (self._signs.keys() & self._whole.keys()))
        if odd or not masks:
            raise CheckpointError(
                "bad_checkpoint",
                "is no BitDelta file: a matrix has one mask and one coeff",
                where=str(path),
                got=ascii(odd[0][:200]) if odd else "no mask",
            )
        self.names = frozenset(self._signs) | frozenset(self._whole)

    def change(self, base: Checkpoint, name: str) -> Change:
        """The record of one tensor: its signs bit for bit, or a parameter bit for bit.

        Raises:
            BackboneMismatch: `shape_differs`.
            CheckpointError: `not_finite_input`, `unsupported_dtype`, `bad_checkpoint`.
        """
        if name not in self._signs:
            return self._replace(base, name)
        mask, coeff = self._signs[name]
        assert coeff is not None  # noqa: S101 - checked when the file was read
        spec = base.tensors[name]
        if len(spec.shape) != 2 or spec.shape[1] % WORD or not spec.dtype.is_float:
            raise _other_shape(name, f"a float matrix with columns in multiples of {WORD}", spec.shape)
        rows, cols = spec.shape
        if str(mask.dtype) != "torch.int32" or tuple(mask.shape) != (cols // WORD, rows):
            raise _other_shape(name, f"an int32 mask {[cols // WORD, rows]}", tuple(mask.shape))
        return Change(spec=spec, mode=Mode.DELTA, encoded=_encode_signs(name, mask, _scalar(name, coeff)))

    def _replace(self, base: Checkpoint, name: str) -> Change:
        tensor, old = self._whole[name], base.tensors[name]
        shape = tuple(tensor.shape)
        # before anything is copied: a small file can hold a view of any size
        if shape != old.shape and not is_grown(shape, old.shape):
            raise _other_shape(name, list(old.shape), shape)
        return replaced(base, TensorSpec(name, _dtype(name, tensor), shape), _words(name, tensor))


def load_torch_file(path: Path) -> Mapping[str, torch.Tensor]:
    """Plain dense tensors by name from a torch file; nothing in it is run.

    Raises:
        UsageError: torch is missing or too old (`missing_dependency`).
        CheckpointError: `not_found`; the file holds more than tensors (`pickle_refused`) or is damaged
            (`bad_checkpoint`).
    """
    if not path.is_file():
        kind = "is no plain file" if path.exists() else "no such file"
        raise CheckpointError("not_found", kind, where=str(path), hint="name the .pt file")
    torch = import_torch()
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "pickle_refused", "holds more than tensors, which could run code", where=str(path)
        ) from error
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise CheckpointError("bad_checkpoint", "is no torch file, or is damaged", where=str(path)) from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise CheckpointError("bad_checkpoint", "holds no tensors by name", where=str(path))
    for key, value in found.items():
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout is not torch.strided:
            raise CheckpointError("bad_checkpoint", "holds something that is no dense tensor", where=f"{path}: {key!a}")
    return {key: value.detach() for key, value in found.items()}


def import_torch() -> Any:  # noqa: ANN401 - torch's own types are not checked here
    """The torch module, of a version that reads torch files safely.

    Raises:
        UsageError: `missing_dependency`.
    """
    hint = "pip install 'obm-format[torch]' 'torch>=2.10'"
    try:
        import torch
    except ImportError as error:
        raise UsageError("missing_dependency", "torch is not installed", hint=hint) from error
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _TORCH:
        raise UsageError(
            "missing_dependency", "this torch does not read torch files safely", got=torch.__version__, hint=hint
        )
    return torch


def _encode_signs(name: str, mask: torch.Tensor, coeff: float) -> Encoded:
    if not np.isfinite(coeff):
        raise CheckpointError("not_finite_input", "the coeff is NaN or infinite", where=name)
    if coeff == 0:
        return ZERO
    words = mask.numpy().T.astype("<i4", order="C")
    bits: Bytes = words.view(np.uint8)
    if coeff < 0:
        # obm-1 clause 6.3: alphas are not negative; the values are the same
        bits, coeff = ~bits, -coeff
    with np.errstate(over="ignore"):
        short = float(np.float16(coeff)) == coeff
    dtype = DType.F16 if short else DType.F32
    return Encoded(
        params=SignParams(alpha=AlphaLayout(granularity=Granularity.MATRIX, dtype=dtype), rows=bits.shape[0]),
        parts=(part_of("bits0", bits),),
        alphas=alphas.store([np.array([coeff], np.float32)], dtype),
    )


def _scalar(name: str, coeff: torch.Tensor) -> float:
    if str(coeff.dtype) != "torch.float32" or coeff.numel() != 1:
        raise CheckpointError(
            "bad_checkpoint", "the coeff is no float32 scalar", where=name, got=f"{coeff.dtype}{list(coeff.shape)}"
        )
    return float(coeff)


def _dtype(name: str, tensor: torch.Tensor) -> DType:
    dtype = _DTYPES.get(str(tensor.dtype))
    if dtype is None:
        raise CheckpointError("unsupported_dtype", "obm does not know this dtype", where=name, got=tensor.dtype)
    return dtype


def _words(name: str, tensor: torch.Tensor) -> Words:
    import torch

    flat: Bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat.view(words_dtype(_dtype(name, tensor))).reshape(tuple(tensor.shape))


def _other_shape(name: str, expected: object, got: tuple[int, ...]) -> BackboneMismatch:
    return BackboneMismatch(
        "shape_differs", "this does not fit the backbone's tensor", where=name, expected=expected, got=list(got)
    )

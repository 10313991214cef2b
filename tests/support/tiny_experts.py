"""Tiny backbones and experts for tests of the read side: arrays in, files out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from obm_format.checkpoint import open_checkpoint
from obm_format.codecs import sign1
from obm_format.codecs.alphas import AlphaChoice
from obm_format.codecs.base import Encoded, with_tail
from obm_format.codecs.catalogue import encode_exact
from obm_format.digest import fingerprint
from obm_format.expert import Expert, ExpertWriter, open_expert
from obm_format.kernels.reference import ReferenceKernels
from obm_format.kernels.words import Words, from_float32, to_float32, words_dtype
from obm_format.layout import default_rows
from obm_format.model import AlphaRule, BackboneId, DType, Granularity, Mode, Prefix, TensorSpec, XdeltaParams

KERNELS = ReferenceKernels()
ROW = AlphaChoice(granularity=Granularity.ROW, rule=AlphaRule.PROJ)
MATRIX = AlphaChoice(granularity=Granularity.MATRIX, rule=AlphaRule.MEAN)
_TORCH = {
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.I64: torch.int64,
    DType.F64: torch.float64,
}


@dataclass(frozen=True)
class Tensor:
    """Words with their dtype."""

    words: Words
    dtype: DType

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec(name, self.dtype, self.words.shape)

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.words.tobytes()).digest()


Tensors = Mapping[str, Tensor]


def tensor(values: object, dtype: DType = DType.F32) -> Tensor:
    """Numbers rounded to a floating dtype."""
    return Tensor(np.ascontiguousarray(from_float32(np.asarray(values, np.float32), dtype)), dtype)


def integers(values: object) -> Tensor:
    return Tensor(np.asarray(values, np.int64).view(np.uint64), DType.I64)


def tiny_backbone(dtype: DType = DType.F32, seed: int = 0) -> dict[str, Tensor]:
    """Two matrices, an embedding, a norm with -0 in it, and an integer buffer."""
    rng = np.random.default_rng(seed)
    norm = rng.normal(size=12)
    norm[3] = -0.0
    return {
        "emb.weight": tensor(rng.normal(size=(7, 12)), dtype),
        "ids": integers(np.arange(4)),
        "l.attn.weight": tensor(0.1 * rng.normal(size=(12, 12)), dtype),
        "l.mlp.weight": tensor(0.1 * rng.normal(size=(20, 12)), dtype),
        "norm.weight": tensor(norm, dtype),
    }


def fine_tune(base: Tensors, seed: int, scale: float = 0.02) -> dict[str, Tensor]:
    """Every floating tensor moved a little; a few elements stay as they are, -0 too."""
    rng = np.random.default_rng(seed)
    tuned = dict(base)
    for name, old in base.items():
        if old.dtype.is_float:
            values = to_float32(old.words, old.dtype) + scale * rng.normal(size=old.words.shape).astype(np.float32)
            words = from_float32(values.astype(np.float32), old.dtype)
            keep = rng.random(old.words.shape) < 0.2
            keep.reshape(-1)[:4] = True
            tuned[name] = Tensor(np.where(keep, old.words, words).astype(words_dtype(old.dtype)), old.dtype)
    return tuned


def save(path: Path, tensors: Tensors) -> Path:
    """Write a folder with `model.safetensors`, by the safetensors library."""
    path.mkdir(parents=True, exist_ok=True)
    table = {name: torch.from_numpy(t.words.copy()).view(_TORCH[t.dtype]) for name, t in tensors.items()}
    save_file(table, path / "model.safetensors", {"format": "pt"})
    return path


def load(path: Path) -> dict[str, Tensor]:
    with open_checkpoint(path) as checkpoint:
        return {name: Tensor(checkpoint.words(name).copy(), spec.dtype) for name, spec in checkpoint.tensors.items()}


def backbone_id(base: Tensors) -> BackboneId:
    @dataclass(frozen=True)
    class Row:
        name: str
        dtype_name: str
        shape: tuple[int, ...]
        sha256: bytes

    rows = [Row(name, t.dtype.name, t.words.shape, t.sha256) for name, t in base.items()]
    return BackboneId(
        fingerprint=fingerprint(rows), n_tensors=len(base), n_params=sum(t.words.size for t in base.values())
    )


def write_expert(
    path: Path,
    base: Tensors,
    tuned: Tensors,
    *,
    compressed: Collection[str] = (),
    task: str = "",
    alpha: AlphaChoice = ROW,
    aliases: Sequence[tuple[str, str]] = (),
    prefix: Prefix | None = None,
    attachments: Mapping[str, bytes] | None = None,
    counterparts: Mapping[str, str] | None = None,
    rows: int | None = None,
) -> Path:
    """Compress `tuned` (by the backbone's names) against `base`: 1 bit where asked for, exact elsewhere.

    `counterparts` has backbone names of tensors that have another name there; `rows` is the number of rows of
    the matrix view of compressed tensors.
    """
    with ExpertWriter(path) as writer:
        copies = {name for name, _ in aliases}
        for name in sorted(tuned.keys() - copies):
            new, old_name = tuned[name], (counterparts or {}).get(name, name)
            old = base.get(old_name)
            if old is not None and name in compressed:
                covered = old.words.shape[0] if old.words.ndim else None
                d = KERNELS.subtract(new.words[:covered], new.dtype, old.words, old.dtype)
                view = rows or default_rows(old.words.shape)
                encoded = sign1.encode(d, alpha, rows=view, kernels=KERNELS)
                mode, encoded = Mode.DELTA, with_tail(encoded, np.ascontiguousarray(new.words[covered:]))
            else:
                mode, encoded = encode_exact(
                    new.words,
                    None if old is None else old.words,
                    new.dtype,
                    None if old is None else old.dtype,
                )
            writer.add(
                new.spec(name),
                None if old is None else old.spec(old_name),
                mode,
                encoded,
                base_sha256=None if old is None else old.sha256,
                out_sha256=new.sha256 if is_exact(mode, encoded) else None,
            )
        for name, data in (attachments or {}).items():
            writer.attach(name, data)
        known = {(counterparts or {}).get(name, name) for name in tuned}
        removed = sorted(base.keys() - known)
        writer.commit(task=task, backbone=backbone_id(base), aliases=sorted(aliases), removed=removed, prefix=prefix)
    return path


def is_exact(mode: Mode, encoded: Encoded) -> bool:
    return mode is not Mode.DELTA or isinstance(encoded.params, XdeltaParams)


def tiny_expert(path: Path, base: Tensors, tuned: Tensors, **options: object) -> Expert:
    """`write_expert`, and open what it wrote."""
    return open_expert(write_expert(path, base, tuned, **options))  # type: ignore[arg-type]  # passed through

"""Make small checkpoints for tests, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from obm_format.checkpoint_writer import CheckpointWriter
from obm_format.kernels.words import Words, from_float32, words_dtype
from obm_format.model import DType, TensorSpec

Tensors = Mapping[str, tuple[DType, npt.ArrayLike]]


def words_of(dtype: DType, values: npt.ArrayLike) -> Words:
    """Words of `dtype`: floats are rounded to it, anything else is cast to its width."""
    if dtype.is_float:
        return from_float32(np.ascontiguousarray(values, np.float32).reshape(np.shape(values)), dtype)
    return np.ascontiguousarray(values).astype(words_dtype(dtype)).reshape(np.shape(values))


def write_checkpoint(
    folder: Path, tensors: Tensors, *, config: Mapping[str, Any] | None = None, shard_nbytes: int = 1 << 30
) -> Path:
    """A checkpoint folder of dtype and values (or words, for integers) by name."""
    words = {name: words_of(dtype, values) for name, (dtype, values) in tensors.items()}
    specs = [TensorSpec(name, dtype, words[name].shape) for name, (dtype, _) in tensors.items()]
    with CheckpointWriter(folder, specs, shard_nbytes=shard_nbytes) as writer:
        for name, array in words.items():
            writer.write(name, array)
        if config is not None:
            writer.write_side_file("config.json", json.dumps(config).encode())
        writer.commit()
    return folder


def tiny_llama(seed: int, dtype: DType = DType.F16, *, layers: int = 2, scale: float = 1.0) -> Tensors:
    """Random tensors under the names of a Llama: hidden 16, MLP 24, vocabulary 10, untied."""
    draw = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (10, 16), "model.norm.weight": (16,), "lm_head.weight": (10, 16)}
    for layer in range(layers):
        for letter, rows in zip("qkvo", (16, 8, 8, 16), strict=True):
            shapes[f"model.layers.{layer}.self_attn.{letter}_proj.weight"] = (rows, 16)
        for kind, shape in {"gate": (24, 16), "up": (24, 16), "down": (16, 24)}.items():
            shapes[f"model.layers.{layer}.mlp.{kind}_proj.weight"] = shape
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (16,)
    return {name: (dtype, draw.normal(0, scale, shape)) for name, shape in shapes.items()}


def shifted(tensors: Tensors, seed: int, *, by: float = 0.02) -> dict[str, tuple[DType, npt.ArrayLike]]:
    """A fine-tune of `tensors`: every float moved a little."""
    draw = np.random.default_rng(seed)
    return {
        name: (dtype, np.asarray(values) + draw.normal(0, by, np.shape(values))) if dtype.is_float else (dtype, values)
        for name, (dtype, values) in tensors.items()
    }

"""Synthetic checkpoints with the tensor shapes of a Mistral model, made tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from obm_format.checkpoint_writer import CheckpointWriter
from obm_format.kernels.words import Words, from_float32, to_float32
from obm_format.model import DType, TensorSpec

HIDDEN, MLP, KEYS = 4096, 14336, 1024
_DRAWN = 1 << 24  # normal numbers drawn at all; every tensor takes them from another place


def shapes(layers: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor."""
    yield "model.embed_tokens.weight", (vocabulary, HIDDEN)
    for layer in range(layers):
        stem = f"model.layers.{layer}."
        yield stem + "self_attn.q_proj.weight", (HIDDEN, HIDDEN)
        yield stem + "self_attn.k_proj.weight", (KEYS, HIDDEN)
        yield stem + "self_attn.v_proj.weight", (KEYS, HIDDEN)
        yield stem + "self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield stem + "mlp.gate_proj.weight", (MLP, HIDDEN)
        yield stem + "mlp.up_proj.weight", (MLP, HIDDEN)
        yield stem + "mlp.down_proj.weight", (HIDDEN, MLP)
        yield stem + "input_layernorm.weight", (HIDDEN,)
        yield stem + "post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (vocabulary, HIDDEN)


def specs(layers: int, vocabulary: int, dtype: DType) -> list[TensorSpec]:
    """All tensors of a model in one dtype."""
    return [TensorSpec(name, dtype, shape) for name, shape in shapes(layers, vocabulary)]


class Noise:
    """Normally distributed numbers, cheaply: slices of one draw, in an order that the seed decides."""

    def __init__(self) -> None:
        self._drawn = np.random.default_rng(0).standard_normal(_DRAWN, dtype=np.float32)

    def take(self, seed: int, numel: int, sigma: float) -> np.ndarray:
        """`numel` numbers of standard deviation `sigma`."""
        rng = np.random.default_rng(seed)
        out = np.empty(numel, np.float32)
        for start in range(0, numel, _DRAWN // 8):
            size = min(_DRAWN // 8, numel - start)
            at = int(rng.integers(0, _DRAWN - size))
            np.multiply(self._drawn[at : at + size], np.float32(sigma), out=out[start : start + size])
        return out


def write_base(folder: Path, wanted: list[TensorSpec], noise: Noise, *, layers: int, vocabulary: int) -> None:
    """A backbone: N(0, 0.02)."""
    config = {**_CONFIG, "num_hidden_layers": layers, "vocab_size": vocabulary}
    with CheckpointWriter(folder, wanted) as writer:
        for place, spec in enumerate(wanted):
            writer.write_flat(spec.name, from_float32(noise.take(place, spec.numel, 0.02), spec.dtype))
        writer.write_side_file("config.json", json.dumps(config).encode())
        writer.commit()


def tuned(base: Words, spec: TensorSpec, seed: int, noise: Noise) -> Words:
    """A fine-tune of one tensor: every element moved by N(0, 5e-4)."""
    shift = noise.take(seed, spec.numel, 5e-4)
    shift += to_float32(base.reshape(-1), spec.dtype)
    return from_float32(shift, spec.dtype)


_CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}

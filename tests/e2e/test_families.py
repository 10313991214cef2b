"""Tiny models of many families, the whole way: compress, verify, push, pull, materialize, load into transformers.

Which tensors are 1-bit, their signs and alphas, and the merged weights are computed here a second time with NumPy, and
have to be equal to the bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers as hf
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from obm_cli.main import main
from obm_format.expert import open_expert

logging.disable_progress_bar()
logging.set_verbosity_error()

Tensors = dict[str, torch.Tensor]
Floats = npt.NDArray[np.float32]

DECODER = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GQA = DECODER | {"num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}

ATTENTION = r"self_attn\.[qkvo]_proj\.weight"
MLP = r"mlp\.(gate|up|down)_proj\.weight"
BERT = r"(query|key|value|(attention|intermediate|output)(\.output)?\.dense)\.weight"


def clip() -> hf.PreTrainedModel:
    text = TOWER | {"vocab_size": 96, "max_position_embeddings": 16}
    vision = TOWER | {"image_size": 16, "patch_size": 8}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


# model, dtype, and what the names of the 1-bit matrices end with
FAMILIES: dict[str, tuple[Callable[[], hf.PreTrainedModel], torch.dtype, str]] = {
    "llama, tied": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER, tie_word_embeddings=True)),
        torch.float32,
        rf"({ATTENTION}|{MLP})",
    ),
    "llama, untied, sharded, grouped queries": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GQA, tie_word_embeddings=False)),
        torch.bfloat16,
        rf"({ATTENTION}|{MLP})",
    ),
    "qwen2": (lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GQA)), torch.bfloat16, rf"({ATTENTION}|{MLP})"),
    "qwen3-moe": (
        lambda: hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**GQA, **EXPERTS, num_experts=4, head_dim=8)),
        torch.bfloat16,
        rf"({ATTENTION}|mlp\.experts\.[0-9]+\.(gate|up|down)_proj\.weight|mlp\.experts\.(gate_up|down)_proj)",
    ),
    "gemma2": (
        lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GQA, head_dim=8)),
        torch.bfloat16,
        rf"({ATTENTION}|{MLP})",
    ),
    "mistral": (lambda: hf.MistralForCausalLM(hf.MistralConfig(**GQA)), torch.float16, rf"({ATTENTION}|{MLP})"),
    "mixtral": (
        lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GQA, num_local_experts=4)),
        torch.bfloat16,
        rf"({ATTENTION}|experts\.[0-9]+\.w[123]\.weight|experts\.(gate_up|down)_proj)",
    ),
    "phi3": (
        lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GQA)),
        torch.bfloat16,
        r"(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)\.weight",
    ),
    "gpt2": (
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4)),
        torch.float32,
        r"(attn|mlp)\.c_(attn|proj|fc)\.weight",
    ),
    "gpt-neox": (
        lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**DECODER)),
        torch.float16,
        r"(attention\.(query_key_value|dense)|mlp\.dense_(h_to_4h|4h_to_h))\.weight",
    ),
    "bert": (lambda: hf.BertModel(hf.BertConfig(**DECODER)), torch.float32, rf"encoder\..*{BERT}"),
    "vit": (
        lambda: hf.ViTModel(hf.ViTConfig(**TOWER, image_size=16, patch_size=8)),
        torch.float32,
        rf"encoder\..*{BERT}|layers\..*({ATTENTION}|(q|k|v|o|fc1|fc2|up|down)(_proj)?\.weight)",
    ),
    "t5": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        ),
        torch.float32,
        r"(SelfAttention|EncDecAttention|DenseReluDense)\.(q|k|v|o|wi|wo)\.weight",
    ),
    "clip": (clip, torch.float32, r"(self_attn\.([qkv]|out)_proj|mlp\.fc[12])\.weight"),
}


def tensors_of(folder: Path) -> Tensors:
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return found


def one_bit(d: Floats) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Signs and values of a matrix: one FP16 alpha a row, mean d^2 / mean |d|."""
    rows = d.reshape(int(np.prod(d.shape[:-1])), -1)
    square, length = (rows.astype(np.float64) ** 2).sum(axis=1), np.abs(rows).astype(np.float64).sum(axis=1)
    alphas = np.divide(square, length, out=np.zeros_like(square), where=length > 0).astype(np.float16)
    signs = rows >= 0
    values = np.where(signs, alphas[:, None], -alphas[:, None]).astype(np.float32)
    return signs.reshape(d.shape), values.reshape(d.shape)


def expected(base: Tensors, tuned: Tensors, is_one_bit: Callable[[str], bool]) -> tuple[Tensors, dict[str, Floats]]:
    """The merged weights, and the values of the 1-bit tensors."""
    merged, values = dict(tuned), dict[str, Floats]()
    for name in filter(is_one_bit, tuned):
        old = base[name].float().numpy()
        _, values[name] = one_bit(tuned[name].float().numpy() - old)
        merged[name] = torch.from_numpy(old + values[name]).to(base[name].dtype)
    return merged, values


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        assert tensor.dtype is other[name].dtype, name
        assert torch.equal(tensor.contiguous().view(words), other[name].contiguous().view(words)), name


def obm(*args: str) -> None:
    assert main(list(args)) == 0, args


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OBM_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_way(place: Path, family: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, dtype, pattern = FAMILIES[family]
    torch.manual_seed(7)
    model = make().to(dtype).eval()
    shards: dict[str, Any] = {"max_shard_size": "20KB"} if "sharded" in family else {}
    model.save_pretrained(place / "base", **shards)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.02 * torch.randn(parameter.shape)).to(dtype)
    model.save_pretrained(place / "tuned", **shards)
    assert len(list((place / "base").glob("*.safetensors"))) > 1 or not shards

    obm("compress", "base", "tuned", "-o", "x.obm", "--task", "t")
    obm("verify", "x.obm", "--base", "base", "--deep")
    obm("backbone", "add", "base", "acme/tiny")
    obm("push", "x.obm", "acme/tiny:t")
    obm("pull", "acme/tiny:t", "-o", "y.obm")
    assert (place / "x.obm").read_bytes() == (place / "y.obm").read_bytes()
    capfd.readouterr()
    obm("materialize", "--base", "base", "--expert", "y.obm", "--method", "routing", "-o", "merged", "--json")
    assert json.loads(capfd.readouterr().out)["route"] == "t"

    base, tuned = tensors_of(place / "base"), tensors_of(place / "tuned")
    ends = re.compile(rf"(^|\.)({pattern})\Z")
    merged, values = expected(base, tuned, lambda name: base[name].dim() >= 2 and ends.search(name) is not None)
    with open_expert(place / "x.obm") as expert:
        assert {name for name, one in expert.records.items() if one.encoding == "sign1"} == values.keys() != set()
        for name, value in values.items():
            np.testing.assert_array_equal(expert.values(name).view(np.uint32), value.view(np.uint32), err_msg=name)
    equal(tensors_of(place / "merged"), merged)

    (place / "reference").mkdir()
    save_file(merged, place / "reference" / "model.safetensors", metadata={"format": "pt"})
    (place / "reference" / "config.json").write_bytes((place / "base" / "config.json").read_bytes())
    loaded, told = type(model).from_pretrained(place / "merged", dtype=dtype, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    equal(loaded.state_dict(), type(model).from_pretrained(place / "reference", dtype=dtype).state_dict())

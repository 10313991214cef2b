"""Adapters that PEFT itself trains, saves and merges: converted, they are what PEFT makes of the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import save_model, tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from obm_format.checkpoint import open_checkpoint
from obm_format.compress import compress_checkpoint, parse_compress_options
from obm_format.convert import convert_from
from obm_format.errors import ObmError
from obm_format.expert import open_expert
from obm_format.kernels.words import Float32, to_float32
from obm_format.model import DType, SignParams
from obm_format.verify import verify_expert

ATTENTION = ["q_proj", "v_proj"]


def tiny_gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)).eval()


def adapted(model: PreTrainedModel, folder: Path, **words: Any) -> Path:  # noqa: ANN401 - PEFT's own options
    """The backbone in `base`, an adapter with random weights in `lora`, and what PEFT merges of both in `merged`."""
    save_model(model, folder / "base")
    peft = get_peft_model(model, LoraConfig(**words))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
                assert "lora" in name or "modules_to_save" in name
    peft.save_pretrained(folder / "lora")
    save_model(peft.merge_and_unload(), folder / "merged")
    return folder


def floats(folder: Path) -> dict[str, Float32]:
    with open_checkpoint(folder) as checkpoint:
        return {n: to_float32(checkpoint.words(n), s.dtype).copy() for n, s in checkpoint.tensors.items()}


def rebuilt(expert_path: Path, base: Path) -> dict[str, Float32]:
    with open_expert(expert_path) as expert, open_checkpoint(base) as backbone:
        return {
            name: to_float32(expert.rebuild(name, backbone.words(name)), record.spec.dtype).copy()
            for name, record in expert.records.items()
        }


def signs(path: Path, name: str) -> npt.NDArray[np.bool_]:
    with open_expert(path) as expert:
        return np.asarray(expert.values(name) >= 0)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (tiny_llama, {"r": 4, "lora_alpha": 8, "target_modules": [*ATTENTION, "up_proj", "down_proj"]}),
    "rslora": (tiny_llama, {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ATTENTION}),
    "patterns": (
        tiny_llama,
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": [*ATTENTION, "up_proj"],
            "rank_pattern": {"v_proj": 2, "model.layers.1.mlp.up_proj": 6},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3, "up_proj": 16},
        },
    ),
    "whole parameters": (
        tiny_llama,
        {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]},
    ),
    "gpt2": (
        tiny_gpt2,
        {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj", "c_fc"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_converted_adapter_is_what_peft_merges(tmp_path: Path, case: str) -> None:
    make, words = CASES[case]
    adapted(make(), tmp_path, **words)
    base, merged = floats(tmp_path / "base"), floats(tmp_path / "merged")
    report = convert_from("peft-lora", tmp_path / "lora", tmp_path / "base", tmp_path / "x.obm", encoding="raw")
    assert verify_expert(tmp_path / "x.obm", base=tmp_path / "base", deep=True).ok
    found = rebuilt(tmp_path / "x.obm", tmp_path / "base")
    assert found.keys() == base.keys()
    changed = [name for name in base if not np.array_equal(merged[name], base[name])]
    assert len(changed) == report.n_changed
    for name in base:
        # PEFT multiplies in another order and rounds the sum as we do
        np.testing.assert_allclose(found[name], merged[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", ["llama", "rslora", "patterns"])
def test_one_bit_of_the_adapter_is_one_bit_of_the_merged_weights(tmp_path: Path, case: str) -> None:
    make, words = CASES[case]
    adapted(make(), tmp_path, **words)
    base, merged = floats(tmp_path / "base"), floats(tmp_path / "merged")
    convert_from("peft-lora", tmp_path / "lora", tmp_path / "base", tmp_path / "x.obm")
    with open_expert(tmp_path / "x.obm") as expert:
        names = [name for name, record in expert.records.items() if isinstance(record.params, SignParams)]
        options = parse_compress_options(position=expert.manifest.position)
    compress_checkpoint(tmp_path / "base", tmp_path / "merged", tmp_path / "y.obm", options)
    with open_expert(tmp_path / "x.obm") as one, open_expert(tmp_path / "y.obm") as other:
        assert len(names) >= 4
        for name in names:
            d = merged[name] - base[name]
            clear = np.abs(d) > 1e-6  # the merged weights hold d only as well as their own rounding lets them
            assert clear.mean() > 0.99
            assert one.records[name].params == other.records[name].params
            np.testing.assert_array_equal(
                signs(tmp_path / "x.obm", name)[clear], signs(tmp_path / "y.obm", name)[clear]
            )
            np.testing.assert_allclose(np.abs(one.values(name)), np.abs(other.values(name)), rtol=2e-3)


def test_dora_is_refused(tmp_path: Path) -> None:
    adapted(tiny_llama(), tmp_path, r=4, target_modules=ATTENTION, use_dora=True)
    with pytest.raises(ObmError) as caught:
        convert_from("peft-lora", tmp_path / "lora", tmp_path / "base", tmp_path / "x.obm")
    assert caught.value.reason == "usage"
    assert "use_dora" in str(caught.value)
    assert not (tmp_path / "x.obm").exists()


def test_adapter_of_a_bfloat16_model(tmp_path: Path) -> None:
    adapted(tiny_llama(dtype=torch.bfloat16), tmp_path, r=2, lora_alpha=4, target_modules=ATTENTION)
    convert_from("peft-lora", tmp_path / "lora", tmp_path / "base", tmp_path / "x.obm", encoding="raw")
    with open_checkpoint(tmp_path / "base") as base:
        assert {spec.dtype for spec in base.tensors.values()} == {DType.BF16}
    merged, found = floats(tmp_path / "merged"), rebuilt(tmp_path / "x.obm", tmp_path / "base")
    for name, values in merged.items():
        np.testing.assert_allclose(found[name], values, rtol=2**-7, atol=1e-5, err_msg=name)

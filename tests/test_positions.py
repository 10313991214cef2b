"""Roles of tensors, against real model classes of transformers; positions; fused matrices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from obm_format.checkpoint import open_checkpoint
from obm_format.errors import ObmError
from obm_format.model import DType, TensorSpec
from obm_format.positions import Role, blocks_of, matrix_rows, role_of, select

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 64,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
QKVO = "self_attn.{q,k,v,o}_proj.weight"
QKV_OUT = "self_attn.{q,k,v,out}_proj.weight"
GATED = "mlp.{gate,up,down}_proj.weight"
BERT = (
    "encoder.layer.0.attention.{self.query,self.key,self.value,output.dense}.weight",
    "encoder.layer.0.{intermediate,output}.dense.weight",
)

# model type, class, sizes, attention matrices, MLP matrices: all others must be OTHER
FAMILIES: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("llama", "causal", GROUPED, f"model.layers.0.{QKVO}", f"model.layers.0.{GATED}"),
    ("qwen2", "causal", GROUPED, f"model.layers.0.{QKVO}", f"model.layers.0.{GATED}"),
    ("gemma2", "causal", GROUPED, f"model.layers.0.{QKVO}", f"model.layers.0.{GATED}"),
    (
        "phi3",
        "causal",
        GROUPED,
        "model.layers.0.self_attn.{qkv,o}_proj.weight",
        "model.layers.0.mlp.{gate_up,down}_proj.weight",
    ),
    (
        "gpt2",
        "causal",
        {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64},
        "transformer.h.0.attn.c_{attn,proj}.weight",
        "transformer.h.0.mlp.c_{fc,proj}.weight",
    ),
    (
        "gpt_neox",
        "causal",
        SIZES,
        "gpt_neox.layers.0.attention.{query_key_value,dense}.weight",
        "gpt_neox.layers.0.mlp.dense_{h_to_4h,4h_to_h}.weight",
    ),
    (
        "bloom",
        "causal",
        {"hidden_size": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64},
        "transformer.h.0.self_attention.{query_key_value,dense}.weight",
        "transformer.h.0.mlp.dense_{h_to_4h,4h_to_h}.weight",
    ),
    (
        "falcon",
        "causal",
        SIZES,
        "transformer.h.0.self_attention.{query_key_value,dense}.weight",
        "transformer.h.0.mlp.dense_{h_to_4h,4h_to_h}.weight",
    ),
    (
        "opt",
        "causal",
        {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
        f"model.decoder.layers.0.{QKV_OUT}",
        "model.decoder.layers.0.{fc1,fc2}.weight",
    ),
    (
        "mpt",
        "causal",
        {"d_model": 32, "n_layers": 1, "n_heads": 4, "vocab_size": 64},
        "transformer.blocks.0.attn.{Wqkv,out_proj}.weight",
        "transformer.blocks.0.ffn.{up,down}_proj.weight",
    ),
    ("bert", "base", SIZES, *BERT),
    ("roberta", "base", SIZES, *BERT),
    ("vit", "base", SIZES, BERT[0].replace("self", "attention"), BERT[1]),
    (
        "modernbert",
        "base",
        {**SIZES, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        "layers.0.attn.{Wqkv,Wo}.weight",
        "layers.0.mlp.{Wi,Wo}.weight",
    ),
    (
        "t5",
        "base",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 64},
        "{encoder.block.0.layer.0.Self,decoder.block.0.layer.0.Self,decoder.block.0.layer.1.EncDec}Attention.{q,k,v,o}.weight",
        "{encoder.block.0.layer.1,decoder.block.0.layer.2}.DenseReluDense.{wi,wo}.weight",
    ),
    (
        "clip",
        "base",
        {"text_config": SIZES, "vision_config": {**SIZES, "image_size": 32, "patch_size": 16}},
        f"{{text,vision}}_model.encoder.layers.0.{QKV_OUT}",
        "{text,vision}_model.encoder.layers.0.mlp.{fc1,fc2}.weight",
    ),
    (
        "mixtral",
        "causal",
        {**GROUPED, "num_local_experts": 2},
        f"model.layers.0.{QKVO}",
        "model.layers.0.block_sparse_moe.experts.{0,1}.{w1,w2,w3}.weight",
    ),
    (
        "qwen2_moe",
        "causal",
        {**GROUPED, "num_experts": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24},
        f"model.layers.0.{QKVO}",
        "model.layers.0.mlp.{experts.0,experts.1,shared_expert}.{gate,up,down}_proj.weight",
    ),
    (
        "deepseek_v3",
        "causal",
        {
            **SIZES,
            "num_key_value_heads": 4,
            "n_routed_experts": 2,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 0,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
        "model.layers.0.self_attn.{q_a_proj,q_b_proj,kv_a_proj_with_mqa,kv_b_proj,o_proj}.weight",
        "model.layers.0.mlp.{experts.0,experts.1,shared_experts}.{gate,up,down}_proj.weight",
    ),
    (
        "gpt_oss",
        "causal",
        {**GROUPED, "num_local_experts": 2, "head_dim": 8},
        f"model.layers.0.{QKVO}",
        "model.layers.0.mlp.experts.{gate_up,down}_proj",
    ),
    (
        "granitemoe",
        "causal",
        {**GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1},
        f"model.layers.0.{QKVO}",
        "model.layers.0.block_sparse_moe.{input,output}_linear.weight",
    ),
    (
        "jetmoe",
        "causal",
        {**GROUPED, "num_local_experts": 2, "kv_channels": 8},
        "model.layers.0.self_attention.{kv_proj,experts.input_linear,experts.output_linear}.weight",
        "model.layers.0.mlp.{input,output}_linear.weight",
    ),
    (
        "dbrx",
        "causal",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 1,
            "vocab_size": 64,
            "max_seq_len": 32,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 2, "moe_top_k": 1},
        },
        "transformer.blocks.0.norm_attn_norm.attn.{Wqkv,out_proj}.weight",
        "transformer.blocks.0.ffn.experts.mlp.{w1,v1,w2}",
    ),
    (
        "hunyuan_v1_moe",
        "causal",
        {**GROUPED, "num_experts": 2, "moe_topk": 1, "head_dim": 8},
        f"model.layers.0.{QKVO}",
        "model.layers.0.mlp.{experts.0,experts.1,shared_mlp}.{gate,up,down}_proj.weight",
    ),
    (
        "qwen3_next",
        "causal",
        {
            **GROUPED,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "head_dim": 8,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "model.layers.{0.linear_attn.in_proj_qkvz,0.linear_attn.in_proj_ba,0.linear_attn.out_proj,"
        "1.self_attn.q_proj,1.self_attn.k_proj,1.self_attn.v_proj,1.self_attn.o_proj}.weight",
        "model.layers.{0,1}.mlp.{experts.0,experts.1,shared_expert}.{gate,up,down}_proj.weight",
    ),
    (
        "codegen",
        "causal",
        {"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "n_positions": 32, "vocab_size": 64},
        "transformer.h.0.attn.{qkv,out}_proj.weight",
        "transformer.h.0.mlp.fc_{in,out}.weight",
    ),
    (
        "persimmon",
        "causal",
        SIZES,
        "model.layers.0.self_attn.{query_key_value,dense}.weight",
        "model.layers.0.mlp.dense_{h_to_4h,4h_to_h}.weight",
    ),
    (
        "deberta-v2",
        "base",
        {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        "encoder.layer.0.attention.{self.query_proj,self.key_proj,self.value_proj,self.pos_key_proj,"
        "self.pos_query_proj,output.dense}.weight",
        BERT[1],
    ),
    (
        "rwkv",
        "causal",
        {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 64, "context_length": 32},
        "rwkv.blocks.{0,1}.attention.{key,value,receptance,output}.weight",
        "rwkv.blocks.{0,1}.feed_forward.{key,value,receptance}.weight",
    ),
]


def expand(text: str) -> set[str]:
    """Shell braces: all texts that `text` stands for."""
    head, brace, rest = text.partition("{")
    if not brace:
        return {text}
    choices, _, tail = rest.partition("}")
    return {head + choice + end for choice in choices.split(",") for end in expand(tail)}


@pytest.mark.parametrize(
    ("kind", "head", "sizes", "attention", "mlp"), FAMILIES, ids=[family[0] for family in FAMILIES]
)
def test_roles_of_real_model_class(
    tmp_path: Path, kind: str, head: str, sizes: dict[str, Any], attention: str, mlp: str
) -> None:
    transformers = pytest.importorskip("transformers")
    maker: Callable[..., Any] = {"causal": transformers.AutoModelForCausalLM, "base": transformers.AutoModel}[
        head
    ].from_config
    maker(transformers.AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        roles = {spec.name: role_of(spec.name, spec.shape) for spec in checkpoint.tensors.values()}
    assert {name for name, role in roles.items() if role is Role.ATTENTION} == expand(attention)
    assert {name for name, role in roles.items() if role is Role.MLP} == expand(mlp)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("bert.encoder.layer.3.attention.output.dense.weight", Role.ATTENTION),
        ("bert.encoder.layer.3.output.dense.weight", Role.MLP),
        ("bert.encoder.layer.3.crossattention.output.dense.weight", Role.ATTENTION),
        ("pooler.dense.weight", Role.OTHER),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", Role.ATTENTION),
        ("model.layers.0.block_sparse_moe.gate.weight", Role.OTHER),
        ("model.layers.0.mlp.shared_expert_gate.weight", Role.OTHER),
        ("my_self_attn.q_proj.weight", Role.OTHER),
        ("model.layers.0.self_attn.q_proj.weight_scale", Role.OTHER),
        ("lm_head.weight", Role.OTHER),
    ],
)
def test_role_of_name(name: str, role: Role) -> None:
    assert role_of(name, (4, 4)) is role


@pytest.mark.parametrize("shape", [(), (4,), (2, 4, 4), (1, 2, 3, 4)])
def test_role_of_other_than_matrices_is_other(shape: tuple[int, ...]) -> None:
    assert role_of("model.layers.0.self_attn.q_proj.weight", shape) is Role.OTHER


def spec(name: str, dtype: DType = DType.F16) -> TensorSpec:
    return TensorSpec(name, dtype, (4, 4))


Q, UP, EMBED, INDEX = (
    "layers.0.self_attn.q_proj.weight",
    "layers.0.mlp.up_proj.weight",
    "embed.weight",
    "index",
)
SPECS = [spec(Q), spec(UP, DType.BF16), spec(EMBED, DType.F32), spec(INDEX, DType.I64)]


@pytest.mark.parametrize(
    ("position", "names"),
    [
        ("attention", {Q}),
        ("mlp", {UP}),
        ("linear", {Q, UP}),
        ("none", set()),
        ("*.q_proj.*", {Q}),
        ("*q_proj*,embed.*", {Q, EMBED}),
        ("*", {Q, UP, EMBED}),
        ("re:proj", {Q, UP}),
        ("re:^(embed|index)", {EMBED}),
        ("layers.0.mlp.u?_proj.weight", {UP}),
    ],
)
def test_select(position: str, names: set[str]) -> None:
    assert select(SPECS, position) == names


@pytest.mark.parametrize(
    "position",
    ["atention", "q_proj", "re:xyz", "re:(", "index", "", ",", "x" * 513, "linear,mlp", "a\nb", "ü*"],
)
def test_select_nothing_refused(position: str) -> None:
    with pytest.raises(ObmError) as caught:
        select(SPECS, position)
    assert caught.value.reason == "bad_position"


def test_select_one_role_that_the_model_lacks_refused() -> None:
    with pytest.raises(ObmError) as caught:
        select([spec(Q)], "mlp")
    assert caught.value.reason == "bad_position"


@pytest.mark.parametrize("position", ["attention", "mlp", "linear"])
def test_select_in_unknown_architecture_refused(position: str) -> None:
    with pytest.raises(ObmError) as caught:
        select([spec("conv.weight"), spec("fc.weight")], position, "MyNet")
    assert caught.value.reason == "unknown_architecture"
    assert "MyNet" in str(caught.value)


PHI3 = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("name", "shape", "config", "blocks"),
    [
        ("self_attn.qkv_proj.weight", (64, 32), PHI3, ((1, 32), (2, 16))),
        ("self_attn.qkv_proj.weight", (96, 32), {"num_attention_heads": 4}, ((3, 32),)),
        ("self_attn.qkv_proj.weight", (64, 32), {"text_config": PHI3}, ((1, 32), (2, 16))),
        ("self_attn.qkv_proj.weight", (65, 32), PHI3, None),
        ("self_attn.qkv_proj.weight", (96, 32), {**PHI3, "head_dim": 8}, None),
        ("self_attn.qkv_proj.weight", (96, 32), {**PHI3, "head_dim": 12}, ((1, 48), (2, 24))),
        ("self_attn.qkv_proj.weight", (64, 32), None, None),
        ("mlp.gate_up_proj.weight", (96, 32), None, ((2, 48),)),
        ("mlp.gate_up_proj.weight", (97, 32), None, None),
        ("mlp.Wi.weight", (96, 32), None, ((2, 48),)),
        ("attn.Wqkv.weight", (96, 32), None, ((3, 32),)),
        ("attn.Wqkv.weight", (64, 32), None, None),
        ("attn.in_proj_weight", (96, 32), None, ((3, 32),)),
        ("attn.c_attn.weight", (32, 96), None, None),
        ("attention.query_key_value.weight", (96, 32), {"num_attention_heads": 4}, None),
        (
            "self_attention.query_key_value.weight",
            (48, 32),
            {"num_attention_heads": 4, "multi_query": True},
            ((1, 32), (2, 8)),
        ),
        (
            "self_attention.query_key_value.weight",
            (64, 32),
            {"num_attention_heads": 4, "multi_query": True, "new_decoder_architecture": True},
            None,
        ),
        ("mlp.experts.gate_up_proj", (8, 64, 32), None, ((8, 64),)),
        ("mlp.experts.gate_up_proj", (1, 64, 32), None, None),
        ("self_attn.q_proj.weight", (32, 32), PHI3, None),
    ],
)
def test_blocks_of_fused_matrices(
    name: str,
    shape: tuple[int, ...],
    config: dict[str, Any] | None,
    blocks: tuple[tuple[int, int], ...] | None,
) -> None:
    name = f"model.layers.0.{name}"
    assert blocks_of(name, shape, config) == blocks
    if blocks:
        assert sum(count * rows for count, rows in blocks) == matrix_rows(name, shape)


@pytest.mark.parametrize(
    ("name", "shape", "rows"),
    [
        ("w", (3, 4), 3),
        ("w", (5,), 1),
        ("w", (), 1),
        ("conv.weight", (6, 3, 2, 2), 6),
        ("experts.down_proj", (2, 3, 4), 6),
        ("block_sparse_moe.input_linear.weight", (2, 3, 4), 6),
    ],
)
def test_matrix_rows(name: str, shape: tuple[int, ...], rows: int) -> None:
    assert matrix_rows(name, shape) == rows

"""From two checkpoints to one expert: what is stored how, what is refused, that nothing is left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import Tensors, shifted, tiny_llama, write_checkpoint
from safetensors import safe_open

from obm_format.checkpoint import open_checkpoint
from obm_format.compress import CompressOptions, CompressReport, compress_checkpoint, parse_compress_options
from obm_format.errors import ObmError
from obm_format.expert import Expert, open_expert
from obm_format.kernels.words import Words
from obm_format.model import AlphaRule, DType, Granularity, Mode, Prefix, SignParams

F16, BF16, F32, I64, F64 = DType.F16, DType.BF16, DType.F32, DType.I64, DType.F64
EXACT = CompressOptions(position="none")
Array = npt.NDArray[Any]


def make(tmp_path: Path, base: Tensors, tuned: Tensors, options: CompressOptions | None = None) -> CompressReport:
    """Compress two sets of tensors to `tmp_path`/x.obm."""
    shutil.rmtree(tmp_path / "base", ignore_errors=True)
    shutil.rmtree(tmp_path / "tuned", ignore_errors=True)
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", tuned)
    return compress_checkpoint(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.obm", options)


def opened(tmp_path: Path) -> Expert:
    return open_expert(tmp_path / "x.obm")


def refused(tmp_path: Path, base: Tensors, tuned: Tensors, options: CompressOptions | None = None) -> ObmError:
    with pytest.raises(ObmError) as caught:
        make(tmp_path, base, tuned, options)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]
    return caught.value


def rebuilt(tmp_path: Path) -> dict[str, Words]:
    """Every tensor that the expert alone makes of the backbone, by the fine-tune's names."""
    expert = opened(tmp_path)
    with open_checkpoint(tmp_path / "base") as base:
        words = {
            name: expert.rebuild(name, base.words(record.base.name).copy() if record.base else None)
            for name, record in expert.records.items()
        }
    words |= {name: words[target] for name, target in expert.manifest.aliases}
    prefix = expert.manifest.prefix
    if prefix is None:
        return words
    added = {name for name, record in expert.records.items() if record.mode is Mode.ADDED}
    rename: Callable[[str], str] = (
        prefix.text.__add__ if prefix.side == "tuned" else lambda name: name.removeprefix(prefix.text)
    )
    return {name if name in added else rename(name): array for name, array in words.items()}


def assert_is_the_fine_tune(tmp_path: Path) -> None:
    with open_checkpoint(tmp_path / "tuned") as tuned:
        words = rebuilt(tmp_path)
        assert words.keys() == tuned.tensors.keys()
        for name, array in words.items():
            np.testing.assert_array_equal(array, tuned.words(name), err_msg=name)


# --- exact experts ---


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
def test_position_none_gives_the_fine_tune_back_bit_for_bit(tmp_path: Path, dtype: DType) -> None:
    base = tiny_llama(1, dtype)
    tuned = shifted(base, 2)
    embed = np.array(tuned["model.embed_tokens.weight"][1])
    embed[0, :4] = [-0.0, 0.0, 1e-40, -1e-7]
    tuned["model.embed_tokens.weight"] = (dtype, embed)
    report = make(tmp_path, base, tuned, EXACT)
    assert_is_the_fine_tune(tmp_path)
    assert report.rel_error == 0
    assert report.kept == 1
    assert opened(tmp_path).verify("deep") == []


ODD_CASES: Mapping[str, tuple[Tensors, Tensors]] = {
    "added": ({}, {"classifier.weight": (F32, np.ones((2, 16)))}),
    "negative zero": ({"z": (F32, np.zeros(5))}, {"z": (F32, -np.zeros(5))}),
    "other dtype": ({"z": (F32, np.arange(40.0))}, {"z": (BF16, np.arange(40.0) + 0.5)}),
    "grown": ({"z": (F16, np.arange(8.0).reshape(4, 2))}, {"z": (F16, np.arange(14.0).reshape(7, 2))}),
    "grown, old rows equal": (
        {"z": (F16, -np.zeros((400, 2)))},
        {"z": (F16, np.concatenate((-np.zeros((400, 2)), np.ones((1, 2)))))},
    ),
    "grown in another dtype": ({"z": (F16, np.ones((4, 2)))}, {"z": (F32, np.ones((7, 2)))}),
    "grown bias": ({"z": (F32, np.zeros(2))}, {"z": (F32, np.ones(3))}),
    "integers differ": ({"z": (I64, [1, 2])}, {"z": (I64, [1, 3])}),
    "integers of another shape": ({"z": (I64, [1, 2, 3])}, {"z": (I64, [1, 2])}),
    "integer that gains a dimension": ({"z": (I64, 1)}, {"z": (I64, [1])}),
    "booleans differ": ({"z": (DType.BOOL, [1, 0])}, {"z": (DType.BOOL, [0, 0])}),
    "float64 differs": ({"z": (F64, [1, 2])}, {"z": (F64, [1, 3])}),
    "integers become floats": ({"z": (I64, [1, 2])}, {"z": (F32, [1, 2])}),
    "no elements": ({"z": (F32, np.zeros((0, 3)))}, {"z": (F32, np.zeros((0, 3)))}),
    "grows from nothing": ({"z": (F32, np.zeros((0, 3)))}, {"z": (F32, np.ones((2, 3)))}),
    "no dimension": ({"z": (F32, 1.0)}, {"z": (F32, 2.0)}),
    "one element of many": ({"z": (F32, np.ones(10_000))}, {"z": (F32, np.r_[2.0, np.ones(9_999)])}),
}


@pytest.mark.parametrize("rest", ["exact", "raw"])
@pytest.mark.parametrize(("old", "new"), ODD_CASES.values(), ids=ODD_CASES.keys())
def test_rest_of_every_kind_comes_back_bit_for_bit(tmp_path: Path, old: Tensors, new: Tensors, rest: str) -> None:
    base = tiny_llama(1, layers=1)
    make(tmp_path, {**base, **old}, {**shifted(base, 2), **new}, CompressOptions(position="none", rest=rest))
    assert_is_the_fine_tune(tmp_path)
    assert opened(tmp_path).verify("deep") == []


def test_unchanged_fine_tune_costs_no_payload(tmp_path: Path) -> None:
    base = tiny_llama(1)
    report = make(tmp_path, base, base)
    assert report.encodings == {"zero": len(base)}
    assert report.bytes["sign"] + report.bytes["alpha"] + report.bytes["rest"] == 0
    assert_is_the_fine_tune(tmp_path)


def test_position_with_equal_values_and_other_bits_is_zero(tmp_path: Path) -> None:
    base: Tensors = {"a.mlp.up_proj.weight": (F32, np.zeros((2, 8))), "b": (F32, np.zeros(4))}
    make(tmp_path, base, {name: (dtype, -np.asarray(values)) for name, (dtype, values) in base.items()})
    records = opened(tmp_path).records
    assert records["a.mlp.up_proj.weight"].encoding == "zero"
    assert records["b"].encoding != "zero"


# --- 1-bit ---


def sign_bits(d: Array) -> bytes:
    return np.packbits(d >= 0, axis=1, bitorder="little").tobytes()


def test_default_is_linear_proj_per_row_and_exact_rest(tmp_path: Path) -> None:
    base = tiny_llama(1)
    tuned = shifted(base, 2)
    report = make(tmp_path, base, tuned)
    expert = opened(tmp_path)
    name = "model.layers.1.self_attn.k_proj.weight"
    params = expert.records[name].params
    assert isinstance(params, SignParams)
    assert (params.alpha.granularity, params.alpha.rule) == (Granularity.ROW, AlphaRule.PROJ)
    assert report.position == "linear"
    assert report.encodings["sign1"] == 14
    with open_checkpoint(tmp_path / "base") as old, open_checkpoint(tmp_path / "tuned") as new:
        d = (new.words(name).view(np.float16).astype(np.float32)) - old.words(name).view(np.float16).astype(np.float32)
    wide = d.astype(np.float64)
    alphas = ((wide**2).mean(axis=1) / np.abs(wide).mean(axis=1)).astype(np.float16)
    values = np.where(d >= 0, 1, -1) * alphas.astype(np.float32)[:, None]
    np.testing.assert_array_equal(expert.values(name), values)
    assert report.kept == pytest.approx(1, abs=1e-3)
    for other, record in expert.records.items():
        assert record.is_exact != (record.encoding == "sign1"), other


@pytest.mark.parametrize(
    ("preset", "position", "count"), [("chat", "mlp", 6), ("math", "attention", 8), ("code", "attention", 8)]
)
def test_presets_are_the_papers(tmp_path: Path, preset: str, position: str, count: int) -> None:
    base = tiny_llama(1)
    report = make(tmp_path, base, shifted(base, 2), parse_compress_options(preset=preset))
    assert (report.position, report.encodings["sign1"]) == (position, count)
    assert report.bytes["alpha"] == 2 * count


def test_report_measures_what_the_file_decodes_to(tmp_path: Path) -> None:
    base = tiny_llama(1, F32)
    tuned = shifted(base, 2)
    report = make(tmp_path, base, tuned, parse_compress_options(preset="math"))
    expert = opened(tmp_path)
    shift = lost = along = 0.0
    for name, record in expert.records.items():
        if record.encoding == "sign1":
            d = np.float32(tuned[name][1]) - np.float32(base[name][1])
            decoded = expert.values(name).astype(np.float64)
            shift += float((d.astype(np.float64) ** 2).sum())
            lost += float(((d - decoded) ** 2).sum())
            along += float((d * decoded).sum())
    assert report.rel_error == pytest.approx(np.sqrt(lost / shift), rel=1e-9)
    assert report.kept == pytest.approx(along / shift, rel=1e-9)
    # mean |d| keeps 2/pi of a normal shift, and 1 - kept is the squared error
    assert report.kept == pytest.approx(1 - report.rel_error**2, abs=1e-3)


def test_bytes_by_class_sum_to_the_file(tmp_path: Path) -> None:
    base = tiny_llama(1)
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", shifted(base, 2), config={"architectures": ["LlamaForCausalLM"]})
    report = compress_checkpoint(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.obm")
    assert sum(report.bytes.values()) == report.nbytes == (tmp_path / "x.obm").stat().st_size
    assert report.bytes["attach"] == len(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert report.dense_nbytes == sum(2 * np.size(values) for _, values in base.values())
    assert report.ratio == report.nbytes / report.dense_nbytes
    assert json.loads(json.dumps(report.as_json()))["ratio"] == report.ratio


TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "tie_word_embeddings": False,
}


# algorithms page, section 2: the payload of the tiny target
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_tiny_target_has_the_payload_of_the_formula(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).to(getattr(torch, kind))
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.02
    model.save_pretrained(tmp_path / "tuned")
    for position, payload, bits in [
        ("attention", 134_800, 24_576),
        ("mlp", 88_716, 49_152),
        ("linear", 42_652, 73_728),
    ]:
        options = parse_compress_options(position=position, alpha="mean/matrix", rest="raw")
        report = compress_checkpoint(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.obm", options)
        assert report.dense_nbytes == 180_864
        assert report.bytes["sign"] == bits // 8
        assert report.bytes["alpha"] == 2 * report.encodings["sign1"]
        assert report.bytes["sign"] + report.bytes["alpha"] + report.bytes["rest"] == payload
        assert report.backbone.architecture == "LlamaForCausalLM"
        assert report.backbone.n_params == 90_432


@pytest.mark.parametrize(
    ("words", "encoding"),
    [
        ({"encoding": "tern1"}, "tern1"),
        ({"encoding": "sparse"}, "sparse"),
        ({"encoding": "affine4"}, "affine"),
        ({"planes": 3}, "sign1"),
        ({"alpha": "rms/group:64"}, "sign1"),
        ({"alpha": "mean/matrix", "gain": "1.5"}, "sign1"),
    ],
)
def test_encodings_of_the_position(tmp_path: Path, words: dict[str, Any], encoding: str) -> None:
    base = tiny_llama(1, F32)
    report = make(tmp_path, base, shifted(base, 2), parse_compress_options(position="mlp", **words))
    assert report.encodings[encoding] == 6
    assert 0 <= report.rel_error < 1
    assert opened(tmp_path).verify("deep") == []


def test_more_planes_lose_less(tmp_path: Path) -> None:
    base = tiny_llama(1, F32)
    tuned = shifted(base, 2)
    errors = [
        make(tmp_path, base, tuned, parse_compress_options(alpha="mean/row", planes=planes)).rel_error
        for planes in (1, 2, 3, 4)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.3 < errors[0]


def test_gain_scales_alphas_and_its_spelling_does_not_show(tmp_path: Path) -> None:
    base = tiny_llama(1, F32)
    tuned = shifted(base, 2)
    one = make(tmp_path, base, tuned, parse_compress_options(preset="math"))
    half = make(tmp_path, base, tuned, parse_compress_options(preset="math", gain="0.50"))
    assert half.kept == pytest.approx(one.kept / 2, rel=1e-3)
    assert half.id == make(tmp_path, base, tuned, parse_compress_options(preset="math", gain="00.5")).id
    assert one.id == make(tmp_path, base, tuned, parse_compress_options(preset="math", gain="1.0")).id


FUSED = {
    "self_attn.qkv_proj.weight": (64, 32),
    "mlp.gate_up_proj.weight": (96, 32),
    "mlp.experts.down_proj": (3, 8, 32),
}


def test_fused_matrices_get_an_alpha_for_each_logical_one(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    base = {f"layers.0.{name}": (F32, draw.normal(size=shape)) for name, shape in FUSED.items()}
    config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    write_checkpoint(tmp_path / "base", base, config=config)
    write_checkpoint(tmp_path / "tuned", shifted(base, 1), config=config)
    options = parse_compress_options(alpha="mean/matrix")
    compress_checkpoint(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.obm", options)
    blocks = {
        name.removeprefix("layers.0."): record.params.alpha.blocks
        for name, record in opened(tmp_path).records.items()
        if isinstance(record.params, SignParams)
    }
    assert blocks == {
        "self_attn.qkv_proj.weight": ((1, 32), (2, 16)),
        "mlp.gate_up_proj.weight": ((2, 48),),
        "mlp.experts.down_proj": ((3, 8),),
    }


def test_fused_and_separate_matrices_decode_alike(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    gate, up, dgate, dup = (draw.normal(size=(8, 16)).astype(np.float32) for _ in range(4))
    options = parse_compress_options(alpha="mean/matrix")
    fused = "mlp.gate_up_proj.weight"
    make(
        tmp_path,
        {fused: (F32, np.concatenate((gate, up)))},
        {fused: (F32, np.concatenate((gate + dgate, up + dup * 3)))},
        options,
    )
    together = opened(tmp_path).values(fused)
    names = "mlp.gate_proj.weight", "mlp.up_proj.weight"
    make(
        tmp_path,
        dict(zip(names, ((F32, gate), (F32, up)), strict=True)),
        dict(zip(names, ((F32, gate + dgate), (F32, up + dup * 3)), strict=True)),
        options,
    )
    np.testing.assert_array_equal(together, np.concatenate([opened(tmp_path).values(name) for name in names]))


def test_grown_tensor_in_the_position_keeps_new_rows_whole(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    old = draw.normal(size=(6, 8))
    new = np.concatenate((old + draw.normal(size=(6, 8)) * 0.1, draw.normal(size=(3, 8))))
    make(tmp_path, {"embed": (F16, old)}, {"embed": (F16, new)}, CompressOptions(position="embed"))
    with open_checkpoint(tmp_path / "tuned") as tuned:
        np.testing.assert_array_equal(rebuilt(tmp_path)["embed"][6:], tuned.words("embed")[6:])
    assert opened(tmp_path).records["embed"].grown_rows == 3


def test_position_of_another_dtype_is_taken_in_float32(tmp_path: Path) -> None:
    name = "mlp.up_proj.weight"
    make(tmp_path, {name: (F32, np.zeros((2, 8)))}, {name: (BF16, np.full((2, 8), 0.5))})
    record = opened(tmp_path).records[name]
    assert (record.encoding, record.spec.dtype) == ("sign1", BF16)
    assert rebuilt(tmp_path)[name].tolist() == [[0x3F00] * 8] * 2


# --- lossy rest ---


def test_rest_affine_quantises_floats_and_keeps_integers(tmp_path: Path) -> None:
    base = {**tiny_llama(1, F32), "ids": (I64, [1, 2])}
    tuned = {**shifted(base, 2), "ids": (I64, [1, 3]), "new": (F32, np.ones(3))}
    report = make(tmp_path, base, tuned, CompressOptions(rest="affine8"))
    records = opened(tmp_path).records
    assert records["model.norm.weight"].encoding == "affine"
    assert records["ids"].is_exact
    assert records["new"].mode is Mode.ADDED
    assert report.encodings["affine"] == 5
    d = np.float32(tuned["lm_head.weight"][1]) - np.float32(base["lm_head.weight"][1])
    np.testing.assert_allclose(opened(tmp_path).values("lm_head.weight"), d, atol=np.ptp(d) / 255)


def test_rest_affine_leaves_unchanged_tensors_zero(tmp_path: Path) -> None:
    base = tiny_llama(1, F32)
    tuned = {**shifted(base, 2), "lm_head.weight": base["lm_head.weight"]}
    make(tmp_path, base, tuned, CompressOptions(rest="affine4"))
    assert opened(tmp_path).records["lm_head.weight"].encoding == "zero"


def test_rest_drop_leaves_the_backbones_tensors(tmp_path: Path) -> None:
    base = {**tiny_llama(1, F32), "ids": (I64, [1, 2])}
    tuned = {**shifted(base, 2), "ids": (I64, [1, 3])}
    report = make(tmp_path, base, tuned, CompressOptions(rest="drop"))
    words = rebuilt(tmp_path)
    with open_checkpoint(tmp_path / "base") as old:
        np.testing.assert_array_equal(words["lm_head.weight"], old.words("lm_head.weight"))
    assert words["ids"].tolist() == [1, 3]
    assert 0 < report.bytes["rest"] <= 16


def test_rest_drop_of_added_tensor_refused(tmp_path: Path) -> None:
    base = tiny_llama(1)
    error = refused(tmp_path, base, {**base, "new": (F32, np.ones(3))}, CompressOptions(rest="drop"))
    assert (error.reason, error.where) == ("usage", "new")


def test_rest_has_buckets_where_they_save_bytes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    weights, shift = draw.normal(0, 0.02, (500, 400)), draw.normal(0, 1e-4, (500, 400))
    one_exponent = 1 + np.abs(weights)
    base: Tensors = {"many": (BF16, weights), "one": (BF16, one_exponent)}
    tuned: Tensors = {"many": (BF16, weights + shift), "one": (BF16, one_exponent + 100 * shift)}
    make(tmp_path, base, tuned, CompressOptions(position="none"))
    assert_is_the_fine_tune(tmp_path)
    params = {name: record.params for name, record in opened(tmp_path).records.items()}
    assert {name: getattr(one, "bucket", None) for name, one in params.items()} == {"many": True, "one": False}


def test_rest_raw_is_not_compressed(tmp_path: Path) -> None:
    base: Tensors = {**tiny_llama(1), "flat": (F16, np.zeros(5000))}
    report = make(tmp_path, base, {**shifted(base, 2), "flat": (F16, np.zeros(5000))}, CompressOptions(rest="raw"))
    assert report.bytes["rest"] == 2 * (10 * 16 * 2 + 16 * 3 + 5000)


# --- names ---


def test_prefix_is_recorded_and_undone(tmp_path: Path) -> None:
    base = tiny_llama(1)
    tuned = {f"wrapped.{name}": tensor for name, tensor in shifted(base, 2).items()}
    make(tmp_path, base, {**tuned, "score.weight": (F16, np.ones((2, 16)))}, EXACT)
    assert opened(tmp_path).manifest.prefix == Prefix(side="tuned", text="wrapped.")
    assert_is_the_fine_tune(tmp_path)


def test_prefix_of_the_backbone_is_recorded_and_undone(tmp_path: Path) -> None:
    base = {name: tensor for name, tensor in tiny_llama(1).items() if name.startswith("model.")}
    tuned = {name.removeprefix("model."): tensor for name, tensor in shifted(base, 2).items()}
    report = make(tmp_path, base, tuned)
    assert opened(tmp_path).manifest.prefix == Prefix(side="backbone", text="model.")
    assert report.encodings["sign1"] == 14
    assert rebuilt(tmp_path).keys() == tuned.keys()


@pytest.mark.parametrize("options", [EXACT, CompressOptions(position="*embed*,lm_head.weight")])
def test_tied_tensors_become_record_and_alias(tmp_path: Path, options: CompressOptions) -> None:
    base = dict(tiny_llama(1))
    base["lm_head.weight"] = base["model.embed_tokens.weight"]
    tuned = shifted(base, 2)
    tuned["lm_head.weight"] = tuned["model.embed_tokens.weight"]
    report = make(tmp_path, base, tuned, options)
    assert opened(tmp_path).manifest.aliases == (("model.embed_tokens.weight", "lm_head.weight"),)
    assert report.n_aliases == 1
    if options is EXACT:
        assert_is_the_fine_tune(tmp_path)


def test_untied_head_over_tied_backbone_is_no_alias(tmp_path: Path) -> None:
    base = dict(tiny_llama(1))
    base["lm_head.weight"] = base["model.embed_tokens.weight"]
    make(tmp_path, base, shifted(base, 2), EXACT)
    assert opened(tmp_path).manifest.aliases == ()
    assert_is_the_fine_tune(tmp_path)


def test_equal_tensors_over_different_backbone_tensors_are_no_alias(tmp_path: Path) -> None:
    base = dict(tiny_llama(1))
    tuned = shifted(base, 2)
    tuned["lm_head.weight"] = tuned["model.embed_tokens.weight"]
    make(tmp_path, base, tuned, EXACT)
    assert opened(tmp_path).manifest.aliases == ()
    assert_is_the_fine_tune(tmp_path)


def test_added_twins_become_record_and_alias(tmp_path: Path) -> None:
    base = tiny_llama(1)
    twin = (F16, np.arange(20.0).reshape(4, 5))
    make(tmp_path, base, {**shifted(base, 2), "x.weight": twin, "y.weight": twin}, EXACT)
    assert opened(tmp_path).manifest.aliases == (("y.weight", "x.weight"),)
    assert_is_the_fine_tune(tmp_path)


def test_removed_tensors_are_recorded(tmp_path: Path) -> None:
    base = {**tiny_llama(1), "ids": (I64, [1])}
    tuned = shifted(base, 2)
    del tuned["ids"], tuned["lm_head.weight"]
    report = make(tmp_path, base, tuned, CompressOptions(position="none", allow_removed=True))
    assert opened(tmp_path).manifest.removed == ("ids", "lm_head.weight")
    assert report.n_removed == 2
    assert_is_the_fine_tune(tmp_path)


# --- what the file says ---


def test_digests_are_those_of_both_checkpoints(tmp_path: Path) -> None:
    base = tiny_llama(1)
    report = make(tmp_path, base, shifted(base, 2), CompressOptions(position="mlp", task="math"))
    expert = opened(tmp_path)
    with open_checkpoint(tmp_path / "base") as old, open_checkpoint(tmp_path / "tuned") as new:
        assert report.backbone.fingerprint == expert.manifest.backbone.fingerprint == old.fingerprint()
        assert report.backbone.n_tensors == len(old.tensors)
        for name, record in expert.records.items():
            digests = expert.digests(name)
            assert digests.base == hashlib.sha256(old.words(name).tobytes()).digest()
            expected = hashlib.sha256(new.words(name).tobytes()).digest() if record.is_exact else None
            assert digests.out == expected
    assert (expert.id, expert.manifest.task) == (report.id, "math")


def test_file_opens_with_the_safetensors_library(tmp_path: Path) -> None:
    base = tiny_llama(1)
    make(tmp_path, base, shifted(base, 2))
    with safe_open(tmp_path / "x.obm", "np") as file:
        assert "lm_head.weight#data" in set(file.keys())
        assert file.metadata()["format"] == "obm"


def test_side_files_that_differ_travel_along(tmp_path: Path) -> None:
    base = tiny_llama(1)
    for folder, tensors, config in (("base", base, {"a": 1}), ("tuned", shifted(base, 2), {"a": 2})):
        write_checkpoint(tmp_path / folder, tensors, config=config)
        (tmp_path / folder / "tokenizer.json").write_text("same")
    (tmp_path / "tuned" / "chat_template.jinja").write_text("{{ x }}")
    (tmp_path / "tuned" / "modeling_evil.py").write_text("raise SystemExit")
    compress_checkpoint(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.obm")
    expert = opened(tmp_path)
    assert [item.name for item in expert.attachments] == ["chat_template.jinja", "config.json"]
    assert expert.attachment("config.json") == b'{"a": 2}'


def test_same_input_gives_the_same_bytes_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from obm_format.kernels import select_kernels

    base = tiny_llama(1, BF16)
    tuned = shifted(base, 2)
    make(tmp_path, base, tuned)
    first = (tmp_path / "x.obm").read_bytes()
    folder = tmp_path / "an other folder"
    folder.mkdir()
    write_checkpoint(folder / "b", dict(reversed(base.items())), shard_nbytes=700)
    write_checkpoint(folder / "t", dict(reversed(tuned.items())), shard_nbytes=500)
    for kernels in (select_kernels(threads=1), select_kernels(prefer="reference")):
        compress_checkpoint(folder / "b", folder / "t", folder / "y.obm", kernels=kernels)
        assert (folder / "y.obm").read_bytes() == first


def test_single_files_compress_too(tmp_path: Path) -> None:
    base = tiny_llama(1)
    make(tmp_path, base, shifted(base, 2), EXACT)
    id_of_folders = opened(tmp_path).id
    paths = [tmp_path / name / "model.safetensors" for name in ("base", "tuned")]
    assert compress_checkpoint(*paths, tmp_path / "y.obm", EXACT).id == id_of_folders


# --- refusals ---


@pytest.mark.parametrize("side", ["backbone", "fine-tune"])
@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.mlp.up_proj.weight"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_not_finite_input_refused(tmp_path: Path, side: str, name: str, value: float) -> None:
    base = tiny_llama(1)
    tensors = {"backbone": dict(base), "fine-tune": shifted(base, 2)}
    values = np.array(tensors[side][name][1])
    values[1, 2] = value
    tensors[side][name] = (F16, values)
    error = refused(tmp_path, tensors["backbone"], tensors["fine-tune"])
    assert (error.reason, error.where) == ("not_finite_input", name)
    assert f"the {side} holds NaN or Inf at flat index 18" in str(error)


@pytest.mark.parametrize("options", [EXACT, CompressOptions(position="none", rest="raw"), CompressOptions()])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("sign", [1, -1])
def test_difference_beyond_float32_refused(tmp_path: Path, options: CompressOptions, dtype: DType, sign: int) -> None:
    base, huge = tiny_llama(1), np.array([[1, sign * 2.0**127], [0, 0]])
    for name in ("model.layers.0.mlp.up_proj.weight", "other"):
        error = refused(tmp_path, {**base, name: (dtype, huge)}, {**shifted(base, 2), name: (dtype, -huge)}, options)
        assert (error.reason, error.where) == ("not_finite_input", name)


def test_vast_values_of_one_sign_are_kept(tmp_path: Path) -> None:
    base = {**tiny_llama(1), "other": (F32, np.array([2.0**127, -(2.0**127)]))}
    make(tmp_path, base, {**shifted(base, 2), "other": (F32, np.array([2.0**126, -1.5 * 2.0**127]))}, EXACT)
    assert_is_the_fine_tune(tmp_path)


def test_not_finite_removed_tensor_refused(tmp_path: Path) -> None:
    base = tiny_llama(1)
    options = CompressOptions(allow_removed=True)
    error = refused(tmp_path, {**base, "gone": (F32, [np.inf])}, shifted(base, 2), options)
    assert error.where == "gone"


def test_missing_float_tensor_refused(tmp_path: Path) -> None:
    base = tiny_llama(1)
    tuned = shifted(base, 2)
    del tuned["model.norm.weight"]
    error = refused(tmp_path, base, tuned)
    assert (error.reason, error.where) == ("tensor_missing", "model.norm.weight")


@pytest.mark.parametrize(
    ("position", "reason"),
    [("*nothing*", "bad_position"), ("re:(", "bad_position"), ("linear", "unknown_architecture")],
)
def test_position_that_matches_nothing_refused(tmp_path: Path, position: str, reason: str) -> None:
    base: Tensors = {"conv.weight": (F32, np.ones((2, 2)))}
    assert refused(tmp_path, base, base, CompressOptions(position=position)).reason == reason


@pytest.mark.parametrize("phase", ["first", "last"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interruption_leaves_nothing_behind(tmp_path: Path, phase: str, error: type[BaseException]) -> None:
    base = tiny_llama(1)
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", shifted(base, 2))

    def stop(_: str, done: int, total: int) -> None:
        if phase == "first" or done == total:
            raise error

    with pytest.raises(error):
        compress_checkpoint(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.obm", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def test_failure_keeps_the_old_file(tmp_path: Path) -> None:
    base = tiny_llama(1)
    make(tmp_path, base, shifted(base, 2))
    before = (tmp_path / "x.obm").read_bytes()
    with pytest.raises(ObmError):
        make(tmp_path, base, {"x": (F32, [1])})
    assert (tmp_path / "x.obm").read_bytes() == before


def test_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(1)
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", shifted(base, 2))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ObmError) as caught:
        compress_checkpoint(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.obm")
    assert caught.value.reason == "disk_full"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def test_output_named_like_a_dense_checkpoint_refused(tmp_path: Path) -> None:
    with pytest.raises(ObmError) as caught:
        compress_checkpoint(tmp_path, tmp_path, tmp_path / "model.safetensors")
    assert caught.value.reason == "usage"


def test_expert_as_input_refused(tmp_path: Path) -> None:
    base = tiny_llama(1)
    make(tmp_path, base, shifted(base, 2))
    with pytest.raises(ObmError) as caught:
        compress_checkpoint(tmp_path / "base", tmp_path / "x.obm", tmp_path / "y.obm")
    assert caught.value.reason == "bad_checkpoint"


def test_oversized_side_file_refused(tmp_path: Path) -> None:
    base = tiny_llama(1)
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", shifted(base, 2))
    with (tmp_path / "tuned" / "tokenizer.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ObmError) as caught:
        compress_checkpoint(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.obm")
    assert caught.value.reason == "limit_exceeded"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


# --- words of the command line ---


def test_parse_defaults() -> None:
    assert parse_compress_options() == CompressOptions()


@pytest.mark.parametrize(
    ("words", "rule", "granularity", "group"),
    [
        ({"alpha": "mean"}, "mean", "row", 0),
        ({"alpha": "rms/matrix"}, "rms", "matrix", 0),
        ({"alpha": "proj/row"}, "proj", "row", 0),
        ({"alpha": "mean/group:128"}, "mean", "group", 128),
        ({"preset": "math"}, "mean", "matrix", 0),
        ({"preset": "math", "alpha": "proj"}, "proj", "matrix", 0),
        ({"preset": "math", "alpha": "proj/row"}, "proj", "row", 0),
    ],
)
def test_parse_alpha(words: dict[str, Any], rule: str, granularity: str, group: int) -> None:
    alpha = parse_compress_options(**words).alpha
    assert (alpha.rule.value, alpha.granularity.value, alpha.group) == (rule, granularity, group)


@pytest.mark.parametrize(
    "words",
    [
        {"preset": "chat", "position": "mlp"},
        {"preset": "poetry"},
        {"encoding": "zero"},
        {"rest": "zero"},
        {"planes": 0},
        {"planes": 5},
        {"planes": 2, "encoding": "tern1"},
        {"alpha": "median"},
        {"alpha": "mean/"},
        {"alpha": "mean/group:0"},
        {"alpha": "mean/group:65"},
        {"gain": "0"},
        {"gain": "-1"},
        {"gain": "1e3"},
        {"gain": "inf"},
        {"task": "a b"},
        {"task": ".x"},
    ],
)
def test_parse_refuses(words: dict[str, Any]) -> None:
    with pytest.raises(ObmError) as caught:
        parse_compress_options(**words)
    assert caught.value.reason == "usage"

"""Fine-tunes of other formats become experts with the values that those formats mean, and go back."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoints import shifted, tiny_llama, words_of, write_checkpoint
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from obm_format.checkpoint import open_checkpoint
from obm_format.compress import compress_checkpoint, compress_rtvq, parse_compress_options
from obm_format.convert import convert_from, convert_to
from obm_format.errors import ObmError
from obm_format.expert import open_expert
from obm_format.model import AlphaLayout, AlphaRule, DType, Granularity, Mode, RawParams, SignParams
from obm_format.verify import verify_expert

Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
LORA = "base_model.model."
VECTORS = Path(__file__).resolve().parents[1] / "spec" / "vectors"


def refused(reason: str, *args: str | Path, **options: str) -> ObmError:
    """The refusal of `convert_from`, which left no file behind."""
    out = Path(args[3])
    with pytest.raises(ObmError) as caught:
        convert_from(*args, **options)  # type: ignore[arg-type]
    assert caught.value.reason == reason, str(caught.value)
    assert not out.exists()
    assert not list(out.parent.glob(".*partial*"))
    return caught.value


def plain(folder: Path, dtype: DType = DType.F16) -> Path:
    """A backbone of 32 columns, so that BitDelta can hold it, with its negative zeros."""
    draw = np.random.default_rng(7)
    tensors = {Q: (5, 96), UP: (3, 32), NORM: (16,), "lm_head.weight": (8, 32)}
    return write_checkpoint(folder, {name: (dtype, draw.normal(size=shape)) for name, shape in tensors.items()})


def decoded(path: Path, base: Path) -> dict[str, npt.NDArray[np.float32]]:
    with open_expert(path) as expert, open_checkpoint(base) as backbone:
        return {name: expert.values(name, backbone.words(name)).copy() for name in expert.records}


def sound(path: Path, base: Path) -> None:
    assert not verify_expert(path, base=base, deep=True).defects


# --- delta --------------------------------------------------------------------------------------------------


def test_delta_is_stored_bit_for_bit_in_its_own_dtype(tmp_path: Path) -> None:
    base = plain(tmp_path / "base")
    draw = np.random.default_rng(1)
    q, up = draw.normal(size=(5, 96)).astype(np.float32), draw.normal(size=(3, 32)).astype(np.float16)
    q[0, :2] = 0.0, -0.0
    save_file({Q: q, UP: up, NORM: np.zeros(16, np.float32)}, tmp_path / "d.safetensors")
    report = convert_from("delta", tmp_path / "d.safetensors", base, tmp_path / "x.obm", task="sum")
    assert report.encodings == {"raw": 2, "zero": 2}
    assert (report.task, report.position, report.n_changed) == ("sum", "none", 3)
    found = decoded(tmp_path / "x.obm", base)
    assert found[Q].tobytes() == q.tobytes()
    assert found[UP].tobytes() == up.astype(np.float32).tobytes()
    assert not found[NORM].any()
    assert not found["lm_head.weight"].any()
    with open_expert(tmp_path / "x.obm") as expert, open_checkpoint(base) as backbone:
        assert expert.records[Q].mode is Mode.DELTA
        assert [expert.records[n].params for n in (Q, UP)] == [
            RawParams(value_dtype=DType.F32),
            RawParams(value_dtype=DType.F16),
        ]
        assert expert.manifest.backbone.fingerprint == backbone.fingerprint()
        for name in backbone.tensors:
            assert expert.digests(name).base == hashlib.sha256(backbone.words(name).tobytes()).digest()
        old = backbone.words(Q)
        assert np.array_equal(
            expert.rebuild(Q, old).view(np.float16), (old.view(np.float16).astype(np.float32) + q).astype(np.float16)
        )
    sound(tmp_path / "x.obm", base)


def test_delta_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    base, d, out = plain(tmp_path / "base"), tmp_path / "d.safetensors", tmp_path / "x.obm"
    q = np.ones((5, 96), np.float32)
    for tensors, reason in (
        ({"model.other.weight": q}, "base_tensor"),
        ({Q: q[:4]}, "shape_differs"),
        ({Q: q.reshape(96, 5)}, "shape_differs"),
        ({Q: q.astype(np.float64)}, "unsupported_dtype"),
        ({Q: q.astype(np.int32)}, "unsupported_dtype"),
        ({Q: q * np.float32(np.nan)}, "not_finite_input"),
        ({Q: q * np.float32(np.inf)}, "not_finite_input"),
        ({Q: q * np.float32(7e4)}, "not_finite_input"),  # the backbone is F16
    ):
        save_file(tensors, d)
        refused(reason, "delta", d, base, out)
    save_file({Q: q}, d)
    refused("usage", "delta", d, base, out, encoding="sign1")
    refused("usage", "delta", d, base, out, task="not a task")
    refused("usage", "delta", d, base, tmp_path / "x.safetensors")
    refused("usage", "gguf", d, base, out)


def test_backbone_with_nan_is_refused_even_where_nothing_changes(tmp_path: Path) -> None:
    values = np.ones(16)
    base = write_checkpoint(tmp_path / "base", {Q: (DType.F16, np.ones((2, 2))), NORM: (DType.F16, values * np.nan)})
    save_file({Q: np.ones((2, 2), np.float32)}, tmp_path / "d.safetensors")
    assert refused("not_finite_input", "delta", tmp_path / "d.safetensors", base, tmp_path / "x.obm").where == NORM


def test_tensors_without_delta_are_zero_whatever_they_hold(tmp_path: Path) -> None:
    tensors = {Q: (DType.F32, np.ones((2, 2))), "ids": (DType.I64, np.arange(4)), "none": (DType.F16, np.ones((0, 3)))}
    base = write_checkpoint(tmp_path / "base", {**tensors, "scalar": (DType.BF16, np.float32(2))})
    save_file({Q: np.ones((2, 2), np.float32), "none": np.ones((0, 3), np.float32)}, tmp_path / "d.safetensors")
    report = convert_from("delta", tmp_path / "d.safetensors", base, tmp_path / "x.obm")
    assert report.encodings == {"raw": 1, "zero": 3}
    sound(tmp_path / "x.obm", base)
    save_file({"ids": np.ones(4, np.float32)}, tmp_path / "d.safetensors")
    refused("unsupported_dtype", "delta", tmp_path / "d.safetensors", base, tmp_path / "y.obm")


# --- peft-lora ----------------------------------------------------------------------------------------------


def adapter(
    folder: Path, *, rank: int = 4, drop: str = "", extra: dict[str, Any] | None = None, **config: object
) -> Path:
    """A LoRA adapter folder on q_proj and up_proj of `plain`, in BF16, as PEFT writes it."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    tensors: dict[str, torch.Tensor] = {}
    for name, (rows, cols) in {Q: (5, 96), UP: (3, 32)}.items():
        module = LORA + name.removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"] = torch.randn(4, cols).to(torch.bfloat16)
        tensors[f"{module}.lora_B.weight"] = torch.randn(rows, 4).to(torch.bfloat16)
    tensors |= extra or {}
    tensors = {name: tensor for name, tensor in tensors.items() if not drop or drop not in name}
    save_torch(tensors, folder / "adapter_model.safetensors")
    written = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "use_dora": False, "fan_in_fan_out": False,
        "init_lora_weights": True, "lora_dropout": 0.1, "target_modules": ["q_proj", "up_proj"], "rank_pattern": {},
        "alpha_pattern": {}, "modules_to_save": None, "task_type": "CAUSAL_LM", "inference_mode": True,
        "megatron_core": "megatron.core", "qalora_group_size": 16, **config,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder


def both(module: str, down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{LORA}{module}.lora_A.weight": down, f"{LORA}{module}.lora_B.weight": up}


def lora_delta(folder: Path, name: str, scale: float) -> npt.NDArray[np.float64]:
    from safetensors.torch import load_file as load_torch

    tensors = load_torch(folder / "adapter_model.safetensors")
    module = LORA + name.removesuffix(".weight")
    product = tensors[f"{module}.lora_B.weight"].double() @ tensors[f"{module}.lora_A.weight"].double()
    return np.asarray((product * scale).numpy())


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / 4), (True, 6 / 2)])
def test_lora_raw_is_the_product(tmp_path: Path, rslora: bool, scale: float) -> None:
    base, lora = plain(tmp_path / "base"), adapter(tmp_path / "lora", use_rslora=rslora)
    report = convert_from("peft-lora", lora, base, tmp_path / "x.obm", encoding="raw")
    assert report.encodings == {"raw": 2, "zero": 2}
    assert report.position == "none"
    found = decoded(tmp_path / "x.obm", base)
    for name in (Q, UP):
        np.testing.assert_allclose(found[name], lora_delta(lora, name, scale), rtol=2e-6, atol=2e-6)
    sound(tmp_path / "x.obm", base)


def test_lora_is_one_bit_with_proj_per_row_by_default(tmp_path: Path) -> None:
    base, lora = plain(tmp_path / "base"), adapter(tmp_path / "lora")
    report = convert_from("peft-lora", lora, base, tmp_path / "x.obm")
    assert report.encodings == {"sign1": 2, "zero": 2}
    assert report.position == "*.q_proj.weight,*.up_proj.weight"
    d = lora_delta(lora, Q, 1.5)
    alpha = (d * d).sum(axis=1) / np.abs(d).sum(axis=1)
    found = decoded(tmp_path / "x.obm", base)[Q]
    np.testing.assert_allclose(found, np.where(d >= 0, 1, -1) * alpha[:, None], rtol=6e-4)
    with open_expert(tmp_path / "x.obm") as expert:
        layout = AlphaLayout(granularity=Granularity.ROW, rule=AlphaRule.PROJ)
        assert expert.records[Q].params == SignParams(alpha=layout, rows=5)
    sound(tmp_path / "x.obm", base)


def test_lora_that_was_not_trained_is_zero(tmp_path: Path) -> None:
    base = plain(tmp_path / "base")
    module = LORA + Q.removesuffix(".weight")
    lora = adapter(tmp_path / "lora", extra={f"{module}.lora_B.weight": torch.zeros(5, 4)})
    assert convert_from("peft-lora", lora, base, tmp_path / "x.obm").encodings == {"sign1": 1, "zero": 3}


@pytest.mark.parametrize(
    "config",
    [
        {"bias": "all"}, {"use_dora": True}, {"rank_pattern": {"(a+)+q_proj": 4}}, {"alpha_pattern": {".*": 8}},
        {"lora_bias": True}, {"peft_type": "IA3"}, {"trainable_token_indices": [1]}, {"target_parameters": ["w"]},
        {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"init_lora_weights": 1},
        {"layer_replication": [[0, 2]]}, {"an_option_of_tomorrow": 1},
    ],
    ids=lambda config: next(iter(config)),
)  # fmt: skip
def test_lora_options_that_change_the_meaning_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    lora = adapter(tmp_path / "lora", **config)
    error = refused("usage", "peft-lora", lora, plain(tmp_path / "base"), tmp_path / "x.obm")
    assert next(iter(config)) in error.message


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("bad_checkpoint", {"r": 0}),
        ("bad_checkpoint", {"r": True}),
        ("bad_checkpoint", {"r": 8}),
        ("bad_checkpoint", {"rank_pattern": {"q_proj": 8}}),
        ("bad_checkpoint", {"rank_pattern": {"q_proj": "4"}}),
        ("bad_checkpoint", {"alpha_pattern": [1]}),
        ("bad_checkpoint", {"extra": {LORA + UP: torch.ones(3, 32)}}),
        ("shape_differs", {"extra": {LORA + NORM: torch.ones(15)}}),
        ("not_finite_input", {"extra": {LORA + NORM: torch.full((16,), torch.inf)}}),
        ("base_tensor", {"extra": {LORA + "score.weight": torch.ones(3)}}),
        ("usage", {"extra": {LORA + "lm_head.base_layer.weight": torch.ones(8, 32)}}),
        ("bad_checkpoint", {"lora_alpha": math.nan}),
        ("bad_checkpoint", {"lora_alpha": "6"}),
        ("bad_checkpoint", {"drop": "up_proj.lora_B"}),
        ("bad_checkpoint", {"lora_alpha": 10**400}),
        ("bad_checkpoint", {"r": 10**400}),
        ("not_finite_input", {"lora_alpha": 1e38}),
        ("usage", {"extra": {LORA + "lm_head.lora_embedding_A": torch.ones(4, 8)}}),
        ("usage", {"extra": both("lm_head", torch.ones(4, 32, 1), torch.ones(8, 4))}),
        ("base_tensor", {"extra": both("no", torch.ones(4, 2), torch.ones(2, 4))}),
        ("shape_differs", {"extra": both("lm_head", torch.ones(4, 8), torch.ones(32, 4))}),
        ("not_finite_input", {"extra": both("lm_head", torch.full((4, 32), torch.nan), torch.ones(8, 4))}),
    ],
)  # fmt: skip
def test_malformed_adapter_is_refused(tmp_path: Path, reason: str, options: dict[str, Any]) -> None:
    lora = adapter(tmp_path / "lora", **options)
    refused(reason, "peft-lora", lora, plain(tmp_path / "base"), tmp_path / "x.obm")


def test_adapter_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    base, out = plain(tmp_path / "base"), tmp_path / "x.obm"
    lora = adapter(tmp_path / "lora")
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    refused("pickle_refused", "peft-lora", lora, base, out)
    (lora / "adapter_model.bin").unlink()
    refused("no_weights", "peft-lora", lora, base, out)
    (lora / "adapter_config.json").write_text("[" * 10)
    refused("bad_checkpoint", "peft-lora", lora, base, out)
    refused("not_found", "peft-lora", tmp_path / "base", base, out)


# --- bitdelta -----------------------------------------------------------------------------------------------


def bitdelta_words(d: torch.Tensor) -> torch.Tensor:
    """What BitDelta stores of a difference: bit i of word k in column o is the sign of d[o, 32 k + i]."""
    signs = torch.ones_like(d)
    signs[d < 0] = 0
    rows, cols = d.shape
    bits = signs.T.reshape(cols // 32, 32, rows).to(torch.int64)
    words = (bits << torch.arange(32)[None, :, None]).sum(dim=1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def bitdelta_values(mask: torch.Tensor, coeff: float) -> npt.NDArray[np.float32]:
    """The values coeff * (2 * bit - 1) in the layout of the weight, by BitDelta's rule."""
    bits = (mask.to(torch.int64)[:, None, :] >> torch.arange(32)[None, :, None]) & 1
    return np.asarray(((2 * bits - 1).reshape(-1, mask.shape[1]).T.float() * coeff).numpy())


def bitdelta(path: Path, q: torch.Tensor, coeff: float = 0.0123, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    module = Q.removesuffix(".weight")
    tensors: dict[str, torch.Tensor] = {
        f"{module}.mask": bitdelta_words(q),
        f"{module}.coeff": torch.nn.Parameter(torch.tensor(coeff, dtype=torch.float32)),
        **more,
    }
    torch.save(tensors, path)
    return tensors


def random_difference() -> torch.Tensor:
    torch.manual_seed(5)
    d = torch.randn(5, 96)
    d[0, :4] = torch.tensor([0.0, -0.0, 1e-30, -1e-30])
    return d


def test_bitdelta_is_repacked_bit_for_bit_and_back(tmp_path: Path) -> None:
    base, out = plain(tmp_path / "base"), tmp_path / "x.obm"
    d = random_difference()
    norm, head = torch.arange(16).half(), torch.nn.Parameter(torch.randn(10, 32).half())  # the vocabulary grew
    made = bitdelta(tmp_path / "b.pt", d, **{NORM: norm, "lm_head.weight": head})
    report = convert_from("bitdelta", tmp_path / "b.pt", base, out)
    assert report.encodings["sign1"] == report.encodings["zero"] == 1
    with open_expert(out) as expert, open_checkpoint(base) as backbone:
        record = expert.records[Q]
        layout = AlphaLayout(granularity=Granularity.MATRIX, dtype=DType.F32)
        assert record.params == SignParams(alpha=layout, rows=5)
        packed = np.packbits(d.numpy() >= 0, axis=1, bitorder="little")
        assert expert.operand(Q).bits[0].tobytes() == packed.tobytes()  # type: ignore[union-attr]
        assert np.array_equal(expert.values(Q), bitdelta_values(made[Q.replace(".weight", ".mask")], 0.0123))
        assert expert.exact(NORM, backbone.words(NORM)).tobytes() == norm.numpy().tobytes()
        grown = expert.exact("lm_head.weight", backbone.words("lm_head.weight"))
        assert grown.tobytes() == head.detach().numpy().tobytes()
        assert expert.records[UP].is_unchanged
    sound(out, base)
    convert_to("bitdelta", out, base, tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == made.keys()
    for name, tensor in made.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert back[name].numpy().tobytes() == tensor.detach().numpy().tobytes()


@pytest.mark.parametrize("bits", [(0, 5), (31,)])
def test_bitdelta_word(tmp_path: Path, bits: tuple[int, ...]) -> None:
    base = write_checkpoint(tmp_path / "base", {"a.weight": (DType.F32, np.zeros((1, 32)))})
    word = 33 if bits == (0, 5) else -(2**31)
    torch.save({"a.mask": torch.tensor([[word]], dtype=torch.int32), "a.coeff": torch.tensor(0.5)}, tmp_path / "b.pt")
    convert_from("bitdelta", tmp_path / "b.pt", base, tmp_path / "x.obm")
    with open_expert(tmp_path / "x.obm") as expert:
        data = expert.operand("a.weight").bits[0].tobytes()  # type: ignore[union-attr]
        assert data == (b"\x21\0\0\0" if bits == (0, 5) else b"\0\0\0\x80")
        assert expert.records["a.weight"].params.alpha.dtype is DType.F16  # type: ignore[union-attr]


def test_bitdelta_coeffs_of_any_sign_keep_their_values(tmp_path: Path) -> None:
    base, d = plain(tmp_path / "base"), random_difference()
    made = bitdelta(tmp_path / "b.pt", d, -0.25)
    convert_from("bitdelta", tmp_path / "b.pt", base, tmp_path / "x.obm")
    expected = bitdelta_values(made[Q.replace(".weight", ".mask")], -0.25)
    assert np.array_equal(decoded(tmp_path / "x.obm", base)[Q], expected)
    bitdelta(tmp_path / "b.pt", d, -0.0)
    assert convert_from("bitdelta", tmp_path / "b.pt", base, tmp_path / "x.obm").encodings == {"zero": 4}


def test_bitdelta_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    base, path, out = plain(tmp_path / "base"), tmp_path / "b.pt", tmp_path / "x.obm"
    d, ones, mask = random_difference(), torch.ones, "model.other.mask"
    one, module = torch.tensor(1.0), Q.removesuffix(".weight")
    for more, reason in (
        ({mask: ones(3, 5).int(), "model.other.coeff": one}, "base_tensor"),
        ({mask: ones(3, 5).int()}, "bad_checkpoint"),
        ({"model.other.coeff": one}, "bad_checkpoint"),
        ({Q: d}, "bad_checkpoint"),
        ({f"{module}.mask": ones(5, 3).int()}, "shape_differs"),
        ({f"{module}.mask": ones(3, 5).long()}, "shape_differs"),
        ({f"{module}.coeff": ones(5)}, "bad_checkpoint"),
        ({f"{module}.coeff": one.double()}, "bad_checkpoint"),
        ({f"{module}.coeff": one * torch.nan}, "not_finite_input"),
        ({NORM: ones(16) * torch.inf}, "not_finite_input"),
        ({NORM: ones(15)}, "shape_differs"),
        ({NORM: ones(1).expand(2**40, 2)}, "shape_differs"),
        ({NORM: ones(16, dtype=torch.complex64)}, "unsupported_dtype"),
        ({NORM: ones(16).to_sparse()}, "bad_checkpoint"),
        ({NORM: "text"}, "bad_checkpoint"),
    ):
        bitdelta(path, d, **more)  # type: ignore[arg-type]
        refused(reason, "bitdelta", path, base, out)
    torch.save({NORM: ones(16)}, path)
    refused("bad_checkpoint", "bitdelta", path, base, out)
    torch.save([d], path)
    refused("bad_checkpoint", "bitdelta", path, base, out)
    path.write_bytes(path.read_bytes()[:300])
    refused("bad_checkpoint", "bitdelta", path, base, out)
    refused("not_found", "bitdelta", tmp_path / "none.pt", base, out)


def test_bitdelta_parameters_of_odd_kinds_come_back(tmp_path: Path) -> None:
    shapes = {"a.weight": (1, 32), "scalar": (), "none": (0, 3), "ids": (4,)}
    kinds = {name: DType.I64 if name == "ids" else DType.BF16 for name in shapes}
    base = write_checkpoint(tmp_path / "base", {name: (kinds[name], np.zeros(shapes[name])) for name in shapes})
    made = {
        "a.mask": torch.full((1, 1), 7).int(), "a.coeff": torch.ones(1), "scalar": torch.tensor(2.5).bfloat16(),
        "none": torch.zeros(0, 3), "ids": torch.arange(8)[::2],
    }  # fmt: skip
    torch.save(made, tmp_path / "b.pt")
    convert_from("bitdelta", tmp_path / "b.pt", base, tmp_path / "x.obm")
    sound(tmp_path / "x.obm", base)
    with open_expert(tmp_path / "x.obm") as expert, open_checkpoint(base) as backbone:
        assert expert.exact("ids", backbone.words("ids")).tolist() == [0, 2, 4, 6]
        assert expert.exact("scalar", backbone.words("scalar")).tolist() == 0x4020
        assert expert.records["none"].spec.dtype is DType.F32


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    base = plain(tmp_path / "base")
    made = {"a.mask": Bomb(tmp_path / "ran")}
    torch.save(made, tmp_path / "b.pt", _use_new_zipfile_serialization=zipped)
    refused("pickle_refused", "bitdelta", tmp_path / "b.pt", base, tmp_path / "x.obm")
    for kind in ("delta", "peft-lora"):
        with pytest.raises(ObmError):
            convert_from(kind, tmp_path / "b.pt", base, tmp_path / "x.obm")
    assert not (tmp_path / "ran").exists()


# --- back ---------------------------------------------------------------------------------------------------


def compressed(tmp_path: Path, base: dict[str, Any], **options: object) -> tuple[Path, Path]:
    folder = write_checkpoint(tmp_path / "base", base)
    tuned = write_checkpoint(tmp_path / "tuned", shifted(base, 1))
    compress_checkpoint(folder, tuned, tmp_path / "x.obm", parse_compress_options(**options))  # type: ignore[arg-type]
    return folder, tmp_path / "x.obm"


def test_expert_to_deltas_and_back(tmp_path: Path) -> None:
    base, expert = compressed(tmp_path, dict(tiny_llama(0)))
    report = convert_to("delta", expert, base, tmp_path / "deltas")
    found, expected = load_file(tmp_path / "deltas" / "delta.safetensors"), decoded(expert, base)
    assert report.n_tensors == len(found) == len(expected)
    assert not list((tmp_path / "deltas").glob("model*"))  # a name for dense checkpoints alone
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], values)
    convert_from("delta", tmp_path / "deltas", base, tmp_path / "again.obm")
    again = decoded(tmp_path / "again.obm", base)
    assert all(np.array_equal(again[name], values) for name, values in expected.items())
    with pytest.raises(ObmError, match="exists already") as caught:
        convert_to("delta", expert, base, tmp_path / "deltas")
    assert caught.value.reason == "exists"


def test_scalars_and_empty_tensors_have_deltas_too(tmp_path: Path) -> None:
    tensors = {"scale": np.full((), 0.1), "none": np.zeros((0, 4)), "one.weight": np.ones((1, 1))}
    base, expert = compressed(
        tmp_path, {name: (DType.BF16, values) for name, values in tensors.items()}, position="none"
    )
    convert_to("delta", expert, base, tmp_path / "deltas")
    found, expected = load_file(tmp_path / "deltas" / "delta.safetensors"), decoded(expert, base)
    assert found.keys() == {"scale", "one.weight"}
    assert {name: values.shape for name, values in found.items()} == {"scale": (), "one.weight": (1, 1)}
    assert all(found[name] == expected[name] for name in found)


def test_base_vector_of_an_rtvq_expert_is_found_beside_it_or_where_it_is_named(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", wide())
    tuned = [write_checkpoint(tmp_path / name, shifted(wide(), seed)) for seed, name in enumerate("ab", 1)]
    compress_rtvq(base, tuned, tmp_path / "rtvq")
    expert = tmp_path / "rtvq" / "a.obm"
    assert convert_to("delta", expert, base, tmp_path / "beside").n_tensors == 2
    alone = expert.rename(tmp_path / "alone.obm")
    with pytest.raises(ObmError, match="--ref FILE") as caught:
        convert_to("delta", alone, base, tmp_path / "none")
    assert caught.value.reason == "bad_reference"
    assert not (tmp_path / "none").exists()
    assert convert_to("delta", alone, base, tmp_path / "named", refs=[tmp_path / "rtvq" / "base.obm"]).n_tensors == 2
    same = [(tmp_path / name / "delta.safetensors").read_bytes() for name in ("beside", "named")]
    assert same[0] == same[1]


def wide(rows: int = 5, cols: int = 64) -> dict[str, Any]:
    draw = np.random.default_rng(2)
    return {Q: (DType.BF16, draw.normal(size=(rows, cols))), NORM: (DType.BF16, draw.normal(size=16))}


def test_expert_to_bitdelta_has_what_bitdelta_makes_of_it(tmp_path: Path) -> None:
    base, expert = compressed(tmp_path, wide(), alpha="mean/matrix")
    convert_to("bitdelta", expert, base, tmp_path / "b.pt")
    found, module = torch.load(tmp_path / "b.pt", weights_only=True), Q.removesuffix(".weight")
    old, new = (words_of(DType.BF16, tensors[Q][1]) for tensors in (wide(), shifted(wide(), 1)))
    d = torch.from_numpy(
        (new.astype(np.uint32) << 16).view(np.float32) - (old.astype(np.uint32) << 16).view(np.float32)
    )
    assert torch.equal(found[f"{module}.mask"], bitdelta_words(d))
    assert found[f"{module}.coeff"].shape == ()
    assert abs(float(found[f"{module}.coeff"]) - float(d.abs().mean())) <= float(d.abs().mean()) * 2**-11
    assert torch.equal(
        found[NORM].view(torch.uint16), torch.from_numpy(words_of(DType.BF16, shifted(wide(), 1)[NORM][1]))
    )


@pytest.mark.parametrize(
    ("cols", "options"),
    [
        (48, {"alpha": "mean/matrix"}),
        (64, {"alpha": "proj/row"}),
        (64, {"alpha": "mean/matrix", "planes": 2}),
        (64, {"encoding": "tern1"}),
        (64, {"alpha": "mean/matrix", "rest": "affine8"}),
    ],
)
def test_what_bitdelta_cannot_say_is_refused(tmp_path: Path, cols: int, options: dict[str, Any]) -> None:
    base, expert = compressed(tmp_path, wide(cols=cols), **options)
    with pytest.raises(ObmError) as caught:
        convert_to("bitdelta", expert, base, tmp_path / "b.pt")
    assert caught.value.reason == "usage"
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("name", ["counterpart-swapped", "counterpart-shared", "other-name"])
def test_tensor_on_another_one_of_the_backbone_has_no_delta_by_its_name(name: str, tmp_path: Path) -> None:
    vector = VECTORS / "valid" / f"{name}.obm"
    base = VECTORS / json.loads(vector.with_suffix(".json").read_text())["base"]
    for kind in ("delta", "bitdelta"):
        with pytest.raises(ObmError, match="is built on another tensor") as caught:
            convert_to(kind, vector, base, tmp_path / "out")
        assert caught.value.reason == "usage"
        assert not (tmp_path / "out").exists()


def test_expert_that_changes_nothing_is_nothing_elsewhere(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", wide())
    compress_checkpoint(base, base, tmp_path / "x.obm")
    for kind in ("delta", "bitdelta"):
        with pytest.raises(ObmError, match="so there is no") as caught:
            convert_to(kind, tmp_path / "x.obm", base, tmp_path / "out")
        assert caught.value.reason == "usage"
        assert not (tmp_path / "out").exists()


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    _, expert = compressed(tmp_path, wide(), alpha="mean/matrix")
    other = write_checkpoint(tmp_path / "other", shifted(wide(), 9))
    for kind in ("delta", "bitdelta"):
        with pytest.raises(ObmError) as caught:
            convert_to(kind, expert, other, tmp_path / "out")
        assert caught.value.reason == "base_digest"
        assert not (tmp_path / "out").exists()


def test_added_and_grown_tensors_have_no_delta(tmp_path: Path) -> None:
    for more in ({"new.weight": (DType.BF16, np.ones(3))}, {NORM: (DType.BF16, np.ones(20))}):
        folder = tmp_path / next(iter(more))
        folder.mkdir()
        base = write_checkpoint(folder / "base", wide())
        tuned = write_checkpoint(folder / "tuned", {**shifted(wide(), 1), **more})
        compress_checkpoint(base, tuned, folder / "x.obm")
        with pytest.raises(ObmError) as caught:
            convert_to("delta", folder / "x.obm", base, folder / "out")
        assert caught.value.reason == "usage"

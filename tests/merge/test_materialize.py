"""Materialize: bit-exact routing, the pinned arithmetic, names and shapes; refusals leave nothing behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from thinning import drop, trim
from tiny_experts import (
    KERNELS,
    MATRIX,
    ROW,
    Tensor,
    Tensors,
    backbone_id,
    fine_tune,
    integers,
    load,
    save,
    tensor,
    tiny_backbone,
    tiny_expert,
    write_expert,
)

from obm_format.checkpoint import open_checkpoint
from obm_format.codecs.base import Encoded
from obm_format.container.sources import BytesSource
from obm_format.errors import ObmError
from obm_format.expert import Expert, ExpertWriter, open_expert
from obm_format.kernels import select_kernels
from obm_format.kernels.words import from_float32, to_float32
from obm_format.merge import Recipe, WeightStream, materialize, parse_recipe, plan_merge
from obm_format.merge.methods import Cut
from obm_format.merge.plan import Participant
from obm_format.model import DType, Mode, Prefix, TensorSpec, ZeroParams

LINEAR = ("l.attn.weight", "l.mlp.weight")
FLOATS = ("emb.weight", "l.attn.weight", "l.mlp.weight", "norm.weight")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same(got: Tensors, wanted: Tensors) -> None:
    assert sorted(got) == sorted(wanted)
    for name, one in wanted.items():
        assert got[name].dtype is one.dtype, name
        assert got[name].words.shape == one.words.shape, name
        assert np.array_equal(got[name].words, one.words), name


def three_experts(folder: Path, base: Tensors, compressed: Sequence[str] = LINEAR) -> list[Expert]:
    """Experts a, b, c, by ascending artifact id."""
    experts = [
        tiny_expert(folder / f"{task}.obm", base, fine_tune(base, seed), compressed=compressed, task=task)
        for seed, task in enumerate("abc", 1)
    ]
    return sorted(experts, key=lambda expert: expert.id)


def vectors(experts: Sequence[Expert], name: str, base: Tensor) -> list[np.ndarray]:
    return [expert.values(name, base.words) for expert in experts]


def f32(one: Tensor) -> np.ndarray:
    return to_float32(one.words, one.dtype)


def elected_mean(stack: Sequence[np.ndarray]) -> np.ndarray:
    """TIES without trimming, element by element, in float32."""
    out = np.zeros(stack[0].shape, np.float32)
    for place in np.ndindex(out.shape):
        values = [v[place] for v in stack]
        total = values[0]
        for value in values[1:]:
            total = np.float32(total + value)
        agreeing = [v for v in values if (v > 0 if total >= 0 else v < 0)]
        if agreeing:
            summed = agreeing[0]
            for value in agreeing[1:]:
                summed = np.float32(summed + value)
            out[place] = np.float32(summed / np.float32(len(agreeing)))
    return out


# --- routing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
def test_routing_exact_expert_returns_the_fine_tune_bit_for_bit(tmp_path: Path, dtype: DType) -> None:
    base = tiny_backbone(dtype)
    tuned = fine_tune(base, 1)
    assert (tuned["norm.weight"].words == base["norm.weight"].words[3]).any(), "the -0 must be there"
    expert = tiny_expert(tmp_path / "a.obm", base, tuned)
    other = tiny_expert(tmp_path / "b.obm", base, fine_tune(base, 2), task="b")
    save(tmp_path / "base", base)
    recipe = parse_recipe({"method": "routing", "route": expert.id})
    materialize(tmp_path / "base", [expert, other], recipe, tmp_path / "out")
    assert_same(load(tmp_path / "out"), tuned)


def test_1bit_merging_lam_zero_equals_routing(tmp_path: Path) -> None:
    base = tiny_backbone(DType.BF16)
    experts = three_experts(tmp_path, base)
    save(tmp_path / "base", base)
    materialize(tmp_path / "base", experts, parse_recipe({"method": "routing", "route": "b"}), tmp_path / "r")
    zero = parse_recipe({"lam": 0, "scope": "all", "route": "b"})
    materialize(tmp_path / "base", experts, zero, tmp_path / "z")
    assert_same(load(tmp_path / "r"), load(tmp_path / "z"))


def test_routing_one_bit_expert_is_what_the_expert_rebuilds(tmp_path: Path) -> None:
    base = tiny_backbone(DType.F16)
    expert = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1), compressed=LINEAR, task="a")
    save(tmp_path / "base", base)
    materialize(tmp_path / "base", [expert], Recipe(), tmp_path / "out")  # one expert implies its route
    got = load(tmp_path / "out")
    for name in base:
        assert np.array_equal(got[name].words, expert.rebuild(name, base[name].words)), name


# --- the arithmetic -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize("scope", ["compressed", "all"])
def test_1bit_merging_is_the_pinned_formula(tmp_path: Path, dtype: DType, scope: str) -> None:
    base = tiny_backbone(dtype)
    experts = three_experts(tmp_path, base)
    save(tmp_path / "base", base)
    recipe = parse_recipe({"route": "b", "lam": 0.3, "scope": scope})
    report = materialize(tmp_path / "base", experts, recipe, tmp_path / "out")
    got = load(tmp_path / "out")
    routed = next(expert for expert in experts if expert.manifest.task == "b")
    others = [expert for expert in experts if expert is not routed]
    for name in FLOATS:
        d = routed.values(name, base[name].words)
        if scope == "compressed" and name not in LINEAR:
            wanted = routed.exact(name, base[name].words)
        else:
            t = np.float32(0.3) * elected_mean(vectors(others, name, base[name]))
            if name in LINEAR:
                wanted = from_float32(f32(base[name]) + (d + t), dtype)
            else:
                tuned = to_float32(routed.exact(name, base[name].words), dtype)
                wanted = from_float32(tuned + t, dtype)
        assert np.array_equal(got[name].words, wanted), name
    assert (report.method, report.route, report.lam) == ("1bit-merging", "b", 0.3)
    assert [one.id for one in report.experts] == [one.id for one in experts]
    assert report.warnings, "lam above 0.2 warns"


@pytest.mark.parametrize(
    ("content", "combined"),
    [
        ({"method": "ties"}, lambda v: elected_mean(v)),
        ({"method": "task-arithmetic", "lam": 0.5}, lambda v: np.float32(0.5) * ((v[0] + v[1]) + v[2])),
        ({"method": "average"}, lambda v: ((v[0] + v[1]) + v[2]) / np.float32(3)),
        ({"method": "1bit-merging", "route": "none", "lam": 1, "scope": "all"}, lambda v: elected_mean(v)),
    ],
)
def test_methods_without_route(tmp_path: Path, content: dict[str, object], combined: object) -> None:
    base = tiny_backbone(DType.BF16)
    experts = three_experts(tmp_path, base)
    save(tmp_path / "base", base)
    report = materialize(tmp_path / "base", experts, parse_recipe(content), tmp_path / "out")
    got = load(tmp_path / "out")
    for name in FLOATS:
        t = combined(vectors(experts, name, base[name]))  # type: ignore[operator]
        wanted = from_float32((f32(base[name]) + t).astype(np.float32), DType.BF16)
        untouched = ~np.any([v != 0 for v in vectors(experts, name, base[name])], axis=0)
        same = (got[name].words == wanted) | (untouched & (f32(got[name]) == f32(base[name])))
        assert same.all(), name
    assert np.array_equal(got["ids"].words, base["ids"].words)
    assert report.route is None


def test_average_counts_an_expert_that_changed_nothing(tmp_path: Path) -> None:
    base = tiny_backbone()
    tuned = {**base, "norm.weight": tensor(f32(base["norm.weight"]) + 1)}
    experts = [
        tiny_expert(tmp_path / "a.obm", base, tuned, task="a"),
        tiny_expert(tmp_path / "b.obm", base, base, task="b"),
    ]
    save(tmp_path / "base", base)
    materialize(tmp_path / "base", experts, parse_recipe({"method": "average"}), tmp_path / "out")
    d = f32(tuned["norm.weight"]) - f32(base["norm.weight"])
    wanted = f32(base["norm.weight"]) + d / np.float32(2)
    assert np.array_equal(f32(load(tmp_path / "out")["norm.weight"]), wanted)


def test_weights_may_be_negative_and_go_by_task_or_id(tmp_path: Path) -> None:
    base = tiny_backbone()
    experts = three_experts(tmp_path, base)
    save(tmp_path / "base", base)
    weight = {experts[0].id: -0.5, experts[2].manifest.task: 2}
    recipe = parse_recipe({"method": "task-arithmetic", "lam": 1, "weight": weight})
    materialize(tmp_path / "base", experts, recipe, tmp_path / "out")
    got = load(tmp_path / "out")
    for name in LINEAR:
        v = vectors(experts, name, base[name])
        total = (np.float32(-0.5) * v[0] + v[1]) + np.float32(2) * v[2]
        assert np.array_equal(f32(got[name]), f32(base[name]) + total)


@pytest.mark.parametrize("cut", ["inclusive", "exact"])
def test_ties_density_trims_each_tensor(tmp_path: Path, cut: str) -> None:
    base = tiny_backbone()
    experts = three_experts(tmp_path, base)
    save(tmp_path / "base", base)
    recipe = parse_recipe({"method": "ties", "density": 0.3, "cut": cut})
    materialize(tmp_path / "base", experts, recipe, tmp_path / "out")
    got = load(tmp_path / "out")
    for name in FLOATS:
        kept = [trim(v, 0.3, Cut(cut)) for v in vectors(experts, name, base[name])]
        wanted = f32(base[name]) + elected_mean(kept)
        assert np.array_equal(f32(got[name]), wanted), name


def test_dare_is_seeded(tmp_path: Path) -> None:
    base = tiny_backbone()
    experts = three_experts(tmp_path, base)
    save(tmp_path / "base", base)
    for name, seed in (("x", 5), ("y", 5), ("z", 6)):
        recipe = parse_recipe({"method": "dare", "density": 0.5, "seed": seed, "lam": 1})
        materialize(tmp_path / "base", experts, recipe, tmp_path / name)
    x, y, z = (load(tmp_path / name) for name in "xyz")
    assert_same(x, y)
    assert not np.array_equal(x["l.mlp.weight"].words, z["l.mlp.weight"].words)
    v = [
        drop(values, 0.5, seed=5, expert=expert.id, tensor="l.mlp.weight")
        for expert, values in zip(experts, vectors(experts, "l.mlp.weight", base["l.mlp.weight"]), strict=True)
    ]
    assert np.array_equal(f32(x["l.mlp.weight"]), f32(base["l.mlp.weight"]) + ((v[0] + v[1]) + v[2]))


def test_experts_with_other_matrix_views_merge(tmp_path: Path) -> None:
    base = tiny_backbone()
    experts = [
        tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1), compressed=["l.mlp.weight"], task="a"),
        tiny_expert(
            tmp_path / "b.obm",
            base,
            fine_tune(base, 2),
            compressed=["l.mlp.weight"],
            task="b",
            alpha=MATRIX,
            rows=1,
        ),
    ]
    experts.sort(key=lambda expert: expert.id)
    save(tmp_path / "base", base)
    materialize(tmp_path / "base", experts, parse_recipe({"method": "ties"}), tmp_path / "out")
    t = elected_mean(vectors(experts, "l.mlp.weight", base["l.mlp.weight"]))
    wanted = f32(base["l.mlp.weight"]) + t
    assert np.array_equal(f32(load(tmp_path / "out")["l.mlp.weight"]), wanted)


@pytest.mark.parametrize("content", [{"route": "a", "lam": 0.4, "scope": "all"}, {"method": "ties", "density": 0.4}])
def test_result_does_not_depend_on_kernels_threads_and_order(tmp_path: Path, content: dict[str, object]) -> None:
    base = tiny_backbone(DType.BF16)
    experts = three_experts(tmp_path, base)
    save(tmp_path / "base", base)
    recipe = parse_recipe(content)
    materialize(tmp_path / "base", experts, recipe, tmp_path / "one", kernels=KERNELS)
    materialize(tmp_path / "base", experts[::-1], recipe, tmp_path / "two", kernels=select_kernels(1))
    materialize(tmp_path / "base", experts, recipe, tmp_path / "three", threads=2)
    one, *others = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three"))
    assert others == [one, one]


# --- dtypes, names, shapes ----------------------------------------------------------------------------------


def test_dtype_casts_floats_only_and_names_itself_in_the_config(tmp_path: Path) -> None:
    base = tiny_backbone(DType.F32)
    tuned = fine_tune(base, 1)
    expert = tiny_expert(tmp_path / "a.obm", base, tuned)
    folder = save(tmp_path / "base", base)
    (folder / "config.json").write_text('{"model_type": "x", "torch_dtype": "float32"}')
    materialize(folder, [expert], parse_recipe({"method": "routing", "dtype": "BF16"}), tmp_path / "out")
    got = load(tmp_path / "out")
    assert got["ids"].dtype is DType.I64
    for name in FLOATS:
        assert got[name].dtype is DType.BF16
        assert np.array_equal(got[name].words, from_float32(f32(tuned[name]), DType.BF16))
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_fine_tune_of_another_dtype_comes_back_in_it(tmp_path: Path) -> None:
    base = tiny_backbone(DType.F32)
    tuned = {
        name: tensor(f32(one), DType.BF16) if one.dtype.is_float else one for name, one in fine_tune(base, 1).items()
    }
    exact = tiny_expert(tmp_path / "a.obm", base, tuned)
    one_bit = tiny_expert(tmp_path / "b.obm", base, tuned, compressed=LINEAR)
    save(tmp_path / "base", base)
    materialize(tmp_path / "base", [exact], Recipe(), tmp_path / "a")
    assert_same(load(tmp_path / "a"), tuned)
    materialize(tmp_path / "base", [one_bit], Recipe(), tmp_path / "b")
    got = load(tmp_path / "b")
    for name in LINEAR:
        wanted = from_float32(f32(base[name]) + one_bit.values(name), DType.BF16)
        assert np.array_equal(got[name].words, wanted)


def test_zero_record_of_another_dtype_adds_plus_zero(tmp_path: Path) -> None:
    base = {"w": tensor([[-0.0, 1.5]], DType.BF16)}
    spec = TensorSpec("w", DType.F32, (1, 2))
    with ExpertWriter(tmp_path / "a.obm") as writer:
        zero = Encoded(params=ZeroParams(), parts=())
        writer.add(spec, base["w"].spec("w"), Mode.DELTA, zero, base_sha256=base["w"].sha256)
        writer.commit(task="a", backbone=backbone_id(base))
    save(tmp_path / "base", base)
    with open_expert(tmp_path / "a.obm") as expert:
        materialize(tmp_path / "base", [expert], Recipe(), tmp_path / "out")
        got = load(tmp_path / "out")["w"].words
        assert np.array_equal(got, expert.rebuild("w", base["w"].words))
    assert got.tolist() == [[0, 0x3FC0_0000]]  # f32(-0) + 0 is +0, obm-1 clause 9.3


def test_route_of_a_method_that_does_not_route_refused(tmp_path: Path) -> None:
    base = tiny_backbone()
    expert = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1), task="a")
    save(tmp_path / "base", base)
    recipe = dataclasses.replace(parse_recipe({"method": "ties"}), route="a")  # as a router would
    assert refused(tmp_path, tmp_path / "base", [expert], recipe).reason == "bad_recipe"


def test_grown_vocabulary_merges_old_rows_and_keeps_new_ones(tmp_path: Path) -> None:
    base = tiny_backbone(DType.BF16)
    for compressed in ([], ["emb.weight"]):
        folder = tmp_path / str(len(compressed))
        folder.mkdir()
        save(folder / "base", base)
        tuned = fine_tune(base, 1)
        rows = np.random.default_rng(9).normal(size=(3, 12))
        tuned["emb.weight"] = tensor(np.concatenate([f32(tuned["emb.weight"]), rows]), DType.BF16)
        grown = tiny_expert(folder / "a.obm", base, tuned, compressed=compressed, task="a")
        other = tiny_expert(folder / "b.obm", base, fine_tune(base, 2), compressed=["emb.weight"], task="b")
        materialize(folder / "base", [grown, other], parse_recipe({"route": "a", "lam": 1}), folder / "out")
        got = load(folder / "out")["emb.weight"]
        t = other.values("emb.weight", base["emb.weight"].words)
        if compressed:
            head = f32(base["emb.weight"]) + (grown.values("emb.weight")[:7] + t)
        else:
            head = f32(tuned["emb.weight"])[:7] + t
        assert np.array_equal(got.words[:7], from_float32(head, DType.BF16))
        assert np.array_equal(got.words[7:], tuned["emb.weight"].words[7:])
        # and as one of the others it brings its old rows
        recipe = parse_recipe({"method": "task-arithmetic", "lam": 1})
        report = materialize(folder / "base", [grown], recipe, folder / "ta")
        old = load(folder / "ta")["emb.weight"]
        tuned_values = grown.values("emb.weight", base["emb.weight"].words) if compressed else None
        d = tuned_values[:7] if tuned_values is not None else f32(tuned["emb.weight"])[:7] - f32(base["emb.weight"])
        assert np.array_equal(old.words, from_float32(f32(base["emb.weight"]) + d, DType.BF16))
        assert report.left_out == ()


def test_grown_tensor_stored_whole_merges_too(tmp_path: Path) -> None:
    base = {"w": tensor(np.zeros((1, 4)))}
    tuned = {"w": tensor(np.random.default_rng(0).normal(size=(30, 4)))}
    expert = tiny_expert(tmp_path / "a.obm", base, tuned)
    assert expert.records["w"].encoding == "raw"
    save(tmp_path / "base", base)
    materialize(tmp_path / "base", [expert], parse_recipe({"method": "task-arithmetic", "lam": 1}), tmp_path / "t")
    assert np.array_equal(load(tmp_path / "t")["w"].words, tuned["w"].words[:1])
    materialize(tmp_path / "base", [expert], Recipe(), tmp_path / "r")
    assert_same(load(tmp_path / "r"), tuned)


def test_added_removed_and_replaced_tensors_follow_the_routed_expert(tmp_path: Path) -> None:
    base = tiny_backbone()
    tuned = fine_tune(base, 1)
    del tuned["ids"]
    tuned["head.weight"] = tensor(np.ones((2, 12)))
    tuned["norm.weight"] = tensor(np.arange(5))
    a = tiny_expert(tmp_path / "a.obm", base, tuned, task="a")
    b = tiny_expert(tmp_path / "b.obm", base, fine_tune(base, 2), task="b")
    save(tmp_path / "base", base)
    recipe = parse_recipe({"route": "a", "scope": "all"})
    report = materialize(tmp_path / "base", [a, b], recipe, tmp_path / "out")
    got = load(tmp_path / "out")
    assert sorted(got) == sorted(tuned)
    for name in ("head.weight", "norm.weight"):
        assert np.array_equal(got[name].words, tuned[name].words)
    assert report.left_out == ((b.id, "norm.weight"),)
    assert any("could not be combined" in note for note in report.warnings)
    # by another route none of that shows
    materialize(tmp_path / "base", [a, b], parse_recipe({"method": "routing", "route": "b"}), tmp_path / "b")
    assert sorted(load(tmp_path / "b")) == sorted(base)


@pytest.mark.parametrize("side", ["tuned", "backbone"])
def test_output_has_the_fine_tunes_names(tmp_path: Path, side: str) -> None:
    base = tiny_backbone()
    if side == "backbone":
        base = {f"model.{name}": one for name, one in base.items()}
    tuned = fine_tune(base, 1)
    tuned["head"] = tensor([1.0])
    expert = tiny_expert(tmp_path / "a.obm", base, tuned, prefix=Prefix(side=side, text="model."))
    save(tmp_path / "base", base)
    materialize(tmp_path / "base", [expert], Recipe(), tmp_path / "out")
    names = {name.removeprefix("model.") if side == "backbone" else f"model.{name}" for name in base}
    assert set(load(tmp_path / "out")) == names | {"head"}


def test_alias_is_merged_by_its_own_name(tmp_path: Path) -> None:
    base = tiny_backbone()
    base["lm_head.weight"] = base["emb.weight"]
    tuned = fine_tune(base, 1)
    tuned["lm_head.weight"] = tuned["emb.weight"]
    tied = [("lm_head.weight", "emb.weight")]
    a = tiny_expert(tmp_path / "a.obm", base, tuned, aliases=tied, task="a")
    b = tiny_expert(tmp_path / "b.obm", base, fine_tune(base, 2), compressed=["emb.weight"], task="b")
    save(tmp_path / "base", base)
    materialize(tmp_path / "base", [a, b], parse_recipe({"route": "a", "lam": 1}), tmp_path / "out")
    got = load(tmp_path / "out")
    assert np.array_equal(f32(got["emb.weight"]), f32(tuned["emb.weight"]) + b.values("emb.weight"))
    # the other expert is untied, and compressed nothing of the head
    assert np.array_equal(f32(got["lm_head.weight"]), f32(tuned["lm_head.weight"]))
    # the other way round the alias brings its target's task vector to both names
    materialize(tmp_path / "base", [a], parse_recipe({"method": "task-arithmetic", "lam": 1}), tmp_path / "t")
    assert np.array_equal(f32(load(tmp_path / "t")["lm_head.weight"]), f32(tuned["emb.weight"]))


def test_untied_head_is_taken_against_the_embedding(tmp_path: Path) -> None:
    base = tiny_backbone()
    tuned = fine_tune(base, 1)
    tuned["lm_head.weight"] = tensor(f32(tuned["emb.weight"]) * 1.5)
    expert = tiny_expert(tmp_path / "a.obm", base, tuned, counterparts={"lm_head.weight": "emb.weight"})
    save(tmp_path / "base", base)
    materialize(tmp_path / "base", [expert], Recipe(), tmp_path / "out")
    assert_same(load(tmp_path / "out"), tuned)


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    base = {"e": tensor(np.zeros((0, 3))), "s": tensor(2.0), "n": integers(5)}
    tuned = {"e": tensor(np.zeros((0, 3))), "s": tensor(3.0), "n": integers(6)}
    expert = tiny_expert(tmp_path / "a.obm", base, tuned)
    save(tmp_path / "base", base)
    materialize(tmp_path / "base", [expert], Recipe(), tmp_path / "out")
    assert_same(load(tmp_path / "out"), tuned)
    materialize(tmp_path / "base", [expert], parse_recipe({"method": "ties"}), tmp_path / "t")
    got = load(tmp_path / "t")
    assert f32(got["s"]) == 3
    assert np.array_equal(got["n"].words, base["n"].words), "integers are not merged"


# --- side files ---------------------------------------------------------------------------------------------


def test_side_files_backbones_then_the_routed_experts_never_code(tmp_path: Path) -> None:
    base = tiny_backbone()
    attachments = {
        "config.json": b'{"of": "a"}',
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "notes.md": b"hello",
    }
    a = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1), task="a", attachments=attachments)
    b = tiny_expert(tmp_path / "b.obm", base, fine_tune(base, 2), task="b")
    folder = save(tmp_path / "base", base)
    for name in ("config.json", "tokenizer.json", "modeling_x.py", "pytorch_model.bin"):
        (folder / name).write_text('{"of": "base"}')
    for route, config in (("a", "a"), ("b", "base")):
        out = tmp_path / f"out-{route}"
        materialize(folder, [a, b], parse_recipe({"method": "routing", "route": route}), out)
        assert names_in(out) == ["config.json", "model.safetensors", "tokenizer.json"]
        assert json.loads((out / "config.json").read_text()) == {"of": config}


# --- the report ---------------------------------------------------------------------------------------------


def test_report_counts_moved_and_absorbed(tmp_path: Path) -> None:
    base = {"big": tensor(np.full((4, 8), 100.0)), "small": tensor(np.full((4, 8), 0.001))}
    tuned = {name: tensor(f32(one) + np.float32(0.001)) for name, one in base.items()}
    expert = tiny_expert(tmp_path / "a.obm", base, tuned, compressed=["big", "small"], alpha=MATRIX, task="a")
    save(tmp_path / "base", base)
    recipe = parse_recipe({"method": "routing", "dtype": "BF16"})
    report = materialize(tmp_path / "base", [expert], recipe, tmp_path / "out")
    assert report.experts[0].absorbed == 0.5
    assert report.moved_fraction == 0.5
    assert report.bytes_written == 128
    assert report.bytes_read >= 256 + 8
    assert set(report.seconds) >= {"read", "decode", "merge", "write"}
    assert report.peak_private_bytes > 1 << 20
    assert (report.kernel, report.threads >= 1) == (select_kernels().name, True)


def test_report_warns_of_absorbed_experts(tmp_path: Path) -> None:
    base = {"big": tensor(np.full((4, 8), 100.0), DType.BF16)}
    tuned = {"big": tensor(np.full((4, 8), 101.0), DType.BF16)}
    base["big"].words[0, 0] = tuned["big"].words[0, 0]  # alpha below the half step elsewhere
    expert = tiny_expert(tmp_path / "a.obm", base, tuned, compressed=["big"], alpha=MATRIX)
    faint = {**tuned}
    faint["big"] = Tensor(base["big"].words.copy(), DType.BF16)
    faint["big"].words[0, 0] += 1
    quiet = tiny_expert(tmp_path / "b.obm", base, faint, compressed=["big"], alpha=MATRIX)
    save(tmp_path / "base", base)
    assert not materialize(tmp_path / "base", [expert], Recipe(), tmp_path / "o1").warnings
    report = materialize(tmp_path / "base", [quiet], Recipe(), tmp_path / "o2")
    assert any("vanish" in note for note in report.warnings)


def test_recipe_digest_in_report_says_what_decided(tmp_path: Path) -> None:
    base = tiny_backbone()
    experts = three_experts(tmp_path, base)
    save(tmp_path / "base", base)
    with open_checkpoint(tmp_path / "base") as backbone:
        one = plan_merge(backbone.tensors, experts, parse_recipe({"route": "a"})).digest
        same = plan_merge(backbone.tensors, experts[::-1], parse_recipe({"route": "a"})).digest
        other = plan_merge(backbone.tensors, experts, parse_recipe({"route": "b"})).digest
        fewer = plan_merge(backbone.tensors, experts[:1], Recipe()).digest
    assert one == same
    assert len({one, other, fewer}) == 3


# --- the stream ---------------------------------------------------------------------------------------------


def test_stream_may_be_run_twice_and_metadata_is_in_its_order(tmp_path: Path) -> None:
    base = tiny_backbone()
    experts = three_experts(tmp_path, base)
    save(tmp_path / "base", base)
    with open_checkpoint(tmp_path / "base") as backbone:
        stream = WeightStream(backbone, experts, parse_recipe({"route": "c"}))
        first = [(spec, words.copy()) for spec, words in stream]
        second = list(stream)
        assert [spec for spec, _ in first] == stream.metadata() == [spec for spec, _ in second]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True))
        tensors = iter(stream)
        next(tensors)
        tensors.close()  # an abandoned pass hangs nothing


def test_plan_counts_bytes_from_headers(tmp_path: Path) -> None:
    base = tiny_backbone()
    experts = three_experts(tmp_path, base)
    save(tmp_path / "base", base)
    recipe = parse_recipe({"route": "a"})
    with open_checkpoint(tmp_path / "base") as backbone:
        plan = plan_merge(backbone.tensors, experts, recipe)
    report = materialize(tmp_path / "base", experts, recipe, tmp_path / "out")
    assert plan.bytes_read == report.bytes_read
    assert plan.bytes_written == report.bytes_written == sum(t.words.nbytes for t in base.values())


# --- refusals -----------------------------------------------------------------------------------------------


def refused(tmp_path: Path, base: Path, experts: Sequence[Expert | Path], recipe: Recipe) -> ObmError:
    """The error of a merge that must leave nothing behind."""
    before = names_in(tmp_path)
    with pytest.raises(ObmError) as caught:
        materialize(base, experts, recipe, tmp_path / "out")
    assert names_in(tmp_path) == before
    return caught.value


def test_backbone_with_other_bytes_refused(tmp_path: Path) -> None:
    base = tiny_backbone()
    expert = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1), task="a")
    base["norm.weight"].words[-1] ^= 1
    save(tmp_path / "base", base)
    error = refused(tmp_path, tmp_path / "base", [expert], Recipe())
    assert (error.reason, error.exit_code) == ("base_digest", 5)
    assert "norm.weight" in str(error)


def test_backbone_with_other_bytes_in_a_tensor_of_an_other_expert_alone_refused(tmp_path: Path) -> None:
    base = tiny_backbone()
    a = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1), task="a")
    lie = {**base, "ids": integers([9, 9, 9, 9])}
    path = write_expert(tmp_path / "b.obm", lie, fine_tune(lie, 2), task="b")
    save(tmp_path / "base", base)
    error = refused(tmp_path, tmp_path / "base", [a, open_expert(path)], parse_recipe({"route": "a"}))
    assert error.reason == "backbone_mismatch"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda base: base.pop("norm.weight"), "base_tensor"),
        (lambda base: base.update(extra=tensor([1.0])), "backbone_mismatch"),
        (lambda base: base.update({"norm.weight": tensor(np.zeros(13))}), "base_tensor"),
        (lambda base: base.update({"norm.weight": tensor(np.zeros(12), DType.BF16)}), "base_tensor"),
    ],
)
def test_backbone_with_other_tensors_refused_before_anything_is_read(
    tmp_path: Path, change: object, reason: str
) -> None:
    base = tiny_backbone()
    expert = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1), task="a")
    change(base)  # type: ignore[operator]
    save(tmp_path / "base", base)
    error = refused(tmp_path, tmp_path / "base", [expert], Recipe())
    assert (error.reason, error.exit_code) == (reason, 5)
    with open_checkpoint(tmp_path / "base") as backbone, pytest.raises(ObmError):
        plan_merge(backbone.tensors, [expert], Recipe())


def test_backbone_tensor_that_no_expert_has_is_checked_by_the_fingerprint(tmp_path: Path) -> None:
    base = tiny_backbone()
    tuned = fine_tune(base, 1)
    del tuned["ids"]
    expert = tiny_expert(tmp_path / "a.obm", base, tuned)
    ties = parse_recipe({"method": "ties"})
    materialize(save(tmp_path / "good", base), [expert], ties, tmp_path / "fine")
    base["ids"] = integers([9, 9, 9, 9])
    save(tmp_path / "base", base)
    assert refused(tmp_path, tmp_path / "base", [expert], ties).reason == "backbone_mismatch"


def test_experts_of_two_backbones_refused(tmp_path: Path) -> None:
    base, other = tiny_backbone(seed=0), tiny_backbone(seed=1)
    a = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1), task="a")
    b = tiny_expert(tmp_path / "b.obm", other, fine_tune(other, 1), task="b")
    save(tmp_path / "base", base)
    assert refused(tmp_path, tmp_path / "base", [a, b], parse_recipe({"route": "a"})).reason == "backbone_mismatch"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "route_needed"),
        ({"route": "d"}, "bad_recipe"),
        ({"route": "a", "weight": {"d": 1}}, "bad_recipe"),
    ],
)
def test_unclear_route_refused(tmp_path: Path, content: dict[str, object], reason: str) -> None:
    base = tiny_backbone()
    experts = three_experts(tmp_path, base)
    save(tmp_path / "base", base)
    error = refused(tmp_path, tmp_path / "base", experts, parse_recipe(content))
    assert (error.reason, error.exit_code) == (reason, 2)
    assert error.hint is not None
    assert "a" in error.hint


def test_ambiguous_task_and_repeated_expert_refused(tmp_path: Path) -> None:
    base = tiny_backbone()
    experts = [tiny_expert(tmp_path / f"{seed}.obm", base, fine_tune(base, seed), task="a") for seed in (1, 2)]
    save(tmp_path / "base", base)
    assert refused(tmp_path, tmp_path / "base", experts, parse_recipe({"route": "a"})).reason == "bad_recipe"
    assert refused(tmp_path, tmp_path / "base", [experts[0]] * 2, Recipe()).reason == "usage"
    assert refused(tmp_path, tmp_path / "base", [], Recipe()).reason == "usage"


def test_result_that_is_not_finite_refused(tmp_path: Path) -> None:
    base = tiny_backbone(DType.F16)
    expert = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1), compressed=LINEAR, task="a")
    save(tmp_path / "base", base)
    error = refused(tmp_path, tmp_path / "base", [expert], parse_recipe({"method": "ties", "lam": 1e8}))
    assert error.reason == "not_finite"


def test_damaged_expert_refused(tmp_path: Path) -> None:
    base = tiny_backbone()
    path = write_expert(tmp_path / "a.obm", base, fine_tune(base, 1), compressed=LINEAR, task="a", alpha=ROW)
    damaged = bytearray(path.read_bytes())
    damaged[-64] ^= 1
    save(tmp_path / "base", base)
    expert = open_expert(BytesSource(bytes(damaged)))
    assert refused(tmp_path, tmp_path / "base", [expert], Recipe()).exit_code == 4


def test_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    base = tiny_backbone()
    expert = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1))
    save(tmp_path / "base", base)
    before = names_in(tmp_path)

    def stop(phase: str, done: int, total: int) -> None:
        if done * 2 > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        materialize(tmp_path / "base", [expert], Recipe(), tmp_path / "out", progress=stop)
    assert names_in(tmp_path) == before


def test_existing_output_refused(tmp_path: Path) -> None:
    base = tiny_backbone()
    expert = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1))
    save(tmp_path / "base", base)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    assert refused(tmp_path, tmp_path / "base", [expert], Recipe()).reason == "exists"


def test_backbone_with_other_counts_than_the_manifest_says_refused(tmp_path: Path) -> None:
    base = tiny_backbone()
    expert = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1))
    save(tmp_path / "base", base)
    backbone = dataclasses.replace(expert.manifest.backbone, n_params=1)
    lying = Participant(id=expert.id, manifest=dataclasses.replace(expert.manifest, backbone=backbone))
    with open_checkpoint(tmp_path / "base") as checkpoint, pytest.raises(ObmError) as caught:
        plan_merge(checkpoint.tensors, [lying], Recipe())
    assert caught.value.reason == "backbone_mismatch"

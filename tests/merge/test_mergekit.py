"""mergekit's YAML: what it means in our words, what is refused by name, and one run from file to folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_experts import fine_tune, load, save, tiny_backbone

from obm_format.errors import UsageError
from obm_format.merge import Compat, Method, Rescale, materialize, parse_recipe
from obm_format.merge.mergekit import translate
from obm_format.merge.recipe import read_recipe
from obm_format.model import DType

TIES = """
models:
  - model: ./base
  - model: ./a
    parameters: {density: 0.5, weight: 0.5}
  - model: ./b
    parameters: {weight: 0.3}
merge_method: ties
base_model: ./base
parameters:
  normalize: false
  int8_mask: true
  density: 0.8
  lambda: 1e-1
dtype: float16
"""


def content(text: str) -> dict[str, object]:
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def test_ties_yaml_in_our_words() -> None:
    recipe = parse_recipe(translate(content(TIES)))
    assert (recipe.method, recipe.compat, recipe.lam, recipe.normalize) == (Method.TIES, Compat.MERGEKIT, 0.1, False)
    assert (recipe.backbone, recipe.experts, recipe.dtype) == ("./base", ("./a", "./b"), DType.F16)
    assert recipe.weight == {"#1": 0.5, "#2": 0.3}
    assert recipe.densities == {"#1": 0.5, "#2": 0.8}, "a model's own before the shared one"


@pytest.mark.parametrize(
    ("method", "ours", "rescale"),
    [
        ("task_arithmetic", Method.TASK_ARITHMETIC, Rescale.NONE),
        ("dare_linear", Method.DARE, Rescale.L1),
        ("dare_ties", Method.DARE_TIES, Rescale.L1),
        ("ties", Method.TIES, Rescale.NONE),
    ],
)
def test_methods_have_mergekits_defaults(method: str, ours: Method, rescale: Rescale) -> None:
    models = [{"model": "a", "parameters": {"weight": 1}}]
    recipe = parse_recipe(translate({"merge_method": method, "base_model": "base", "models": models}))
    assert (recipe.method, recipe.lam, recipe.rescale, recipe.density) == (ours, 1.0, rescale, recipe.rules.density)
    assert all(density == 1.0 for density in recipe.densities.values())


def test_linear_without_a_base_takes_the_first_model_for_one() -> None:
    models = [{"model": "a"}, {"model": "b"}]
    recipe = parse_recipe(translate({"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}}))
    assert (recipe.backbone, recipe.experts, recipe.method) == ("a", ("a", "b"), Method.AVERAGE)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"merge_method": "slerp"}, "merge_method"),
        ({"merge_method": ["ties"]}, "merge_method"),
        ({"slices": []}, "slices"),
        ({"modules": {}}, "modules"),
        ({"tokenizer": {}}, "tokenizer"),
        ({"tokenizer_source": "union"}, "tokenizer_source"),
        ({"chat_template": "auto"}, "chat_template"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"base_model": None}, "base_model"),
        ({"base_model": {"model": "x"}}, "base_model"),
        ({"base_model": "./base+./lora"}, "base_model"),
        ({"models": []}, "models"),
        ({"models": "a"}, "models"),
        ({"models": ["a"]}, "models, entry 1"),
        ({"models": [{"model": "a", "layer_range": [0, 3]}]}, "models, entry 1"),
        ({"models": [{"model": "./base"}]}, "models"),
        ({"models": [{"model": "a"}]}, "models, a"),
        ({"models": [{"model": "a", "parameters": {"weight": [0, 1]}}]}, "models, entry 1, parameters, weight"),
        (
            {"models": [{"model": "a", "parameters": {"weight": [{"filter": "mlp", "value": 1}]}}]},
            "models, entry 1, parameters, weight",
        ),
        (
            {"models": [{"model": "a", "parameters": {"weight": 1, "normalize": True}}]},
            "models, entry 1, parameters, normalize",
        ),
        ({"parameters": {"gamma": 0.1}}, "parameters, gamma"),
        ({"parameters": {"t": 0.1}}, "parameters, t"),
        ({"parameters": {"rescale": 1}}, "parameters, rescale"),
        ({"parameters": 3}, "parameters"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(change: dict[str, object], where: str) -> None:
    with pytest.raises(UsageError) as caught:
        translate({**content(TIES), **change})
    assert caught.value.reason == "bad_recipe"
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("parameters", "where"),
    [({"weight": "much"}, "weight of #1"), ({"weight": 1, "density": 2}, "density of #1")],
)
def test_numbers_are_checked_as_in_any_recipe(parameters: dict[str, object], where: str) -> None:
    models = [{"model": "a", "parameters": parameters}]
    fields = translate({"merge_method": "ties", "base_model": "base", "models": models})
    with pytest.raises(UsageError) as caught:
        parse_recipe(fields)
    assert caught.value.where == where


def test_from_file_to_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_backbone()
    save(tmp_path / "base", base)
    for seed, name in enumerate("ab", 1):
        save(tmp_path / name, fine_tune(base, seed))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yml").write_text(TIES.replace("float16", "float32").replace("density: 0.8", "density: 1.0"))
    recipe = read_recipe(Path("recipe.yml"))
    assert recipe.backbone is not None
    report = materialize(recipe.backbone, recipe.experts, recipe, "out")
    assert [one.task for one in report.experts] == ["a", "b"]
    got, old = load(tmp_path / "out"), base["norm.weight"].words.view(np.float32)
    b = np.float32(0.3) * (fine_tune(base, 2)["norm.weight"].words.view(np.float32) - old)
    # where a, trimmed to half, brings nothing, all that is left is b
    a = fine_tune(base, 1)["norm.weight"].words.view(np.float32) - old
    small = np.abs(a) < np.sort(np.abs(a))[-6]
    assert np.array_equal(got["norm.weight"].words.view(np.float32)[small], (old + np.float32(0.1) * b)[small])
    assert 0 < small.sum() < small.size

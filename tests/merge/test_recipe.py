"""Recipes: defaults per method, strictness, digest, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from obm_format.errors import UsageError
from obm_format.kernels.contract import Combine
from obm_format.merge.methods import Cut, Method, Scope
from obm_format.merge.recipe import Recipe, decimal_text, parse_recipe, read_recipe
from obm_format.model import DType


@pytest.mark.parametrize(
    ("method", "lam", "scope", "density"),
    [
        ("1bit-merging", 0.1, Scope.COMPRESSED, 1.0),
        ("routing", 0.0, Scope.ALL, 1.0),
        ("ties", 1.0, Scope.ALL, 1.0),
        ("task-arithmetic", 0.4, Scope.ALL, 1.0),
        ("dare", 0.4, Scope.ALL, 0.8),
        ("dare-linear", 0.4, Scope.ALL, 0.8),
        ("dare-ties", 1.0, Scope.ALL, 0.8),
        ("average", 1.0, Scope.ALL, 1.0),
    ],
)
def test_parse_method_alone_gets_its_defaults(method: str, lam: float, scope: Scope, density: float) -> None:
    recipe = parse_recipe({"method": method})
    assert (recipe.lam, recipe.scope, recipe.density) == (lam, scope, density)


def test_parse_empty_recipe_is_1bit_merging_and_equals_the_class_defaults() -> None:
    assert parse_recipe({}) == Recipe()
    assert Recipe().method is Method.ONE_BIT_MERGING


def test_parse_all_fields_are_taken() -> None:
    recipe = parse_recipe(
        {
            "method": "1bit-merging",
            "route": "math",
            "lambda": "0.25",
            "scope": "all",
            "density": 0.5,
            "weight": {"code": -1, "chat": "0.5"},
            "cut": "exact",
            "dtype": "bfloat16",
            "trim_scope": "tensor",
            "weights": "before",
        }
    )
    assert (recipe.route, recipe.lam, recipe.scope, recipe.density) == ("math", 0.25, Scope.ALL, 0.5)
    assert (recipe.weight, recipe.cut, recipe.dtype) == ({"code": -1.0, "chat": 0.5}, Cut.EXACT, DType.BF16)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"methode": "ties"}, "methode"),
        ({"method": "slerp"}, "method"),
        ({"lam": 1, "lambda": 1}, "lambda"),
        ({"lam": "much"}, "lambda"),
        ({"lam": "1_0"}, "lambda"),
        ({"lam": " 0.1 "}, "lambda"),
        ({"lam": "\N{ARABIC-INDIC DIGIT ONE}"}, "lambda"),
        ({"lam": float("nan")}, "lambda"),
        ({"lam": float("inf")}, "lambda"),
        ({"lam": True}, "lambda"),
        ({"method": "ties", "density": -0.1}, "density"),
        ({"method": "ties", "density": 1.01}, "density"),
        ({"method": "ties", "densities": {"a": 2}}, "density of a"),
        ({"method": "ties", "densities": 2}, "densities"),
        ({"method": "ties", "cut": "sharp"}, "cut"),
        ({"method": "ties", "cut": "matrix"}, "cut"),
        ({"method": "ties", "trim_scope": "layer"}, "trim_scope"),
        ({"method": "ties", "weights": "never"}, "weights"),
        ({"method": "ties", "compat": "numpy"}, "compat"),
        ({"method": "ties", "compat": "peft", "cut": "inclusive"}, "cut"),
        ({"method": "ties", "compat": "official", "trim_scope": "tensor"}, "trim_scope"),
        ({"method": "ties", "compat": "mergekit", "weights": "after"}, "weights"),
        ({"method": "ties", "compat": "peft", "rescale": "l1"}, "rescale"),
        ({"method": "ties", "compat": "official", "weight": {"a": 2}}, "weight"),
        ({"method": "average", "compat": "peft"}, "compat"),
        ({"method": "dare-ties", "compat": "official"}, "compat"),
        ({"method": "ties", "normalize": True}, "normalize"),
        ({"method": "ties", "compat": "peft", "normalize": True}, "normalize"),
        ({"method": "ties", "compat": "mergekit", "normalize": "yes"}, "normalize"),
        ({"method": "ties", "rescale": "density"}, "rescale"),
        ({"method": "task-arithmetic", "cut": "exact"}, "cut"),
        ({"method": "1bit-merging", "route": "soft"}, "route"),
        ({"route": "soft", "lam": 0.5}, "lambda"),
        ({"method": "ties", "route": "math"}, "route"),
        ({"method": "ties", "seed": 3}, "seed"),
        ({"method": "dare", "seed": -1}, "seed"),
        ({"method": "dare", "cut": "exact"}, "cut"),
        ({"method": "routing", "lam": 0.1}, "lambda"),
        ({"method": "routing", "scope": "all"}, "scope"),
        ({"method": "task-arithmetic", "density": 0.5}, "density"),
        ({"weight": ["a"]}, "weight"),
        ({"weight": {"a": "x"}}, "weight of a"),
        ({"dtype": "I64"}, "dtype"),
        ({"route": 3}, "route"),
        ({"experts": "a.obm"}, "experts"),
    ],
)
def test_parse_bad_recipe_refused(content: dict[str, object], where: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe(content)
    assert (caught.value.reason, caught.value.where) == ("bad_recipe", where)


def test_parse_soft_route_is_routing_by_weights() -> None:
    recipe = parse_recipe({"route": "soft", "weight": {"a": 0.25, "b": 0.75}})
    assert (recipe.method, recipe.own_weight) == (Method.ROUTING, 0.0)
    assert recipe.arithmetic.combine is Combine.SUM


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({}, ("inclusive", "tensor", "up", "before", "count", "none")),
        ({"cut": "exact"}, ("exact", "tensor", "down", "before", "count", "none")),
        ({"cut": "random"}, ("random", "tensor", "up", "before", "count", "density")),
        ({"cut": "matrix", "trim_scope": "global"}, ("matrix", "global", "up", "before", "count", "none")),
        ({"weights": "after", "rescale": "l1"}, ("inclusive", "tensor", "up", "after", "count", "l1")),
        ({"compat": "official"}, ("inclusive", "global", "one-more", "before", "count", "none")),
        ({"compat": "mergekit"}, ("exact", "tensor", "at-least-one", "before", "weights", "none")),
        ({"compat": "mergekit", "normalize": False}, ("exact", "tensor", "at-least-one", "before", "none", "none")),
        ({"compat": "mergekit", "rescale": "l1"}, ("exact", "tensor", "at-least-one", "before", "weights", "l1")),
        ({"compat": "peft"}, ("exact", "tensor", "float-down", "after", "count", "none")),
        ({"method": "dare-ties"}, ("random", "tensor", "up", "before", "count", "density")),
        ({"method": "dare-ties", "compat": "mergekit"}, ("random", "tensor", "up", "before", "none", "l1")),
        ({"method": "dare-ties", "compat": "peft"}, ("random", "tensor", "up", "after", "count", "density")),
        ({"method": "average"}, ("inclusive", "tensor", "up", "before", "weights", "none")),
    ],
)
def test_arithmetic_of_ties_like_methods(content: dict[str, object], wanted: tuple[str, ...]) -> None:
    found = parse_recipe({"method": "ties", **content}).arithmetic
    parts = (found.cut, found.trim_scope, found.count, found.when, found.divisor, found.rescale)
    assert tuple(part.value for part in parts) == wanted


def test_options_that_are_not_the_least_choice_are_in_the_digest() -> None:
    plain = parse_recipe({"method": "ties"})
    for option in (
        {"trim_scope": "global"},
        {"weights": "after"},
        {"compat": "mergekit"},
        {"rescale": "l1"},
        {"densities": {"a": 0.5}},
        {"cut": "random"},
    ):
        assert parse_recipe({"method": "ties", **option}).digest != plain.digest, option


def test_parse_routing_with_lam_zero_is_routing() -> None:
    assert parse_recipe({"method": "routing", "lam": 0}) == parse_recipe({"method": "routing"})


@pytest.mark.parametrize(
    ("value", "text"), [(0.1, "0.1"), (1.0, "1"), (1e-7, "0.0000001"), (-2.50, "-2.5"), (10, "10")]
)
def test_decimal_text_is_short_and_plain(value: float, text: str) -> None:
    assert decimal_text(value) == text


def test_digest_depends_on_content_not_on_spelling() -> None:
    one = parse_recipe({"method": "ties", "lam": 0.5, "weight": {"a": 1, "b": 2}})
    same = parse_recipe({"weight": {"b": "2.0", "a": 1.0}, "lambda": "0.50", "method": "ties"})
    other = parse_recipe({"method": "ties", "lam": 0.5, "weight": {"a": 1, "b": 3}})
    assert one.digest == same.digest != other.digest
    assert one.content()["lambda"] == "0.5"


def test_content_has_numbers_as_decimal_strings() -> None:
    assert parse_recipe({}).content() == {
        "cut": "inclusive",
        "density": "1",
        "lambda": "0.1",
        "method": "1bit-merging",
        "scope": "compressed",
        "seed": "0",
    }


@pytest.mark.parametrize("name", ["recipe.yaml", "recipe.json"])
def test_read_yaml_and_json_give_the_same_recipe(tmp_path: Path, name: str) -> None:
    texts = {
        "recipe.yaml": "backbone: base\nexperts: [a.obm, b.obm]\nmethod: ties\nlambda: 1e-1\nweight: {a: 0.5}\n",
        "recipe.json": '{"backbone": "base", "experts": ["a.obm", "b.obm"], "method": "ties", '
        '"lambda": "0.1", "weight": {"a": 0.5}}',
    }
    (tmp_path / name).write_text(texts[name])
    recipe = read_recipe(tmp_path / name)
    assert (recipe.backbone, recipe.experts, recipe.lam) == ("base", ("a.obm", "b.obm"), 0.1)


@pytest.mark.parametrize(
    "text",
    [
        "method: ties\nmethod: dare\n",
        "[1, 2]",
        "method: [",
        "a: &a [*a]\n",
        "method: &x ties\n",
        "<<: {method: ties}\n",
        "weight: " + "[" * 20 + "]" * 20,
        "!!python/object:os.system x",
        "",
        "1: 2",
        "? [method, ties]\n: dare\n",
        "method: dare\nseed: 010\n",
        "method: dare\nseed: 0x10\n",
        "method: dare\nlam: 1:30\n",
        "method: dare\nlam: 1_0.5\n",
        "\x00",
    ],
)
def test_read_bad_file_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_recipe(path)
    assert caught.value.reason == "bad_recipe"
    assert "\n" not in str(caught.value)


def test_read_missing_file_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe(tmp_path / "none.yaml")
    assert caught.value.reason == "not_found"

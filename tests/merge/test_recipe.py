"""Recipes: defaults per method, strictness, digest, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from obm_format.errors import UsageError
from obm_format.merge.recipe import Cut, Method, Recipe, Scope, decimal_text, parse_recipe, read_recipe
from obm_format.model import DType


@pytest.mark.parametrize(
    ("method", "lam", "scope", "density"),
    [
        ("1bit-merging", 0.1, Scope.COMPRESSED, 1.0),
        ("routing", 0.0, Scope.ALL, 1.0),
        ("ties", 1.0, Scope.ALL, 1.0),
        ("task-arithmetic", 0.4, Scope.ALL, 1.0),
        ("dare", 0.4, Scope.ALL, 0.8),
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
        ({"lam": float("nan")}, "lambda"),
        ({"lam": float("inf")}, "lambda"),
        ({"lam": True}, "lambda"),
        ({"method": "ties", "density": 0}, "density"),
        ({"method": "ties", "density": 1.01}, "density"),
        ({"method": "ties", "cut": "random"}, "cut"),
        ({"method": "ties", "cut": "sharp"}, "cut"),
        ({"method": "ties", "trim_scope": "global"}, "trim_scope"),
        ({"method": "ties", "trim_scope": "layer"}, "trim_scope"),
        ({"method": "ties", "weights": "after"}, "weights"),
        ({"method": "ties", "compat": "mergekit"}, "compat"),
        ({"method": "ties", "route": "math"}, "route"),
        ({"method": "ties", "seed": 3}, "seed"),
        ({"method": "dare", "seed": -1}, "seed"),
        ({"method": "dare", "cut": "exact"}, "cut"),
        ({"method": "average", "weight": {"a": 1}}, "weight"),
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
        "!!python/object:os.system x",
        "",
        "1: 2",
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

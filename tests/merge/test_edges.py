"""The edges: nothing kept, nobody left, sums of 0, numbers too large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_experts import Tensors, load, save, tensor

from obm_format.errors import ObmError
from obm_format.merge import materialize, parse_recipe

BASE = [1.0, -0.0, 0.5, 2.0]


def merged(folder: Path, vectors: dict[str, list[float]], base: list[float] | None = None, **recipe: object) -> Tensors:
    old = np.array(BASE if base is None else base, np.float32)
    save(folder / "base", {"w": tensor(old)})
    for name, vector in vectors.items():
        save(folder / name, {"w": tensor(old + np.array(vector, np.float32))})
    materialize(folder / "base", [folder / name for name in vectors], parse_recipe(recipe), folder / "out")
    return load(folder / "out")


@pytest.mark.parametrize("method", ["ties", "dare", "dare-ties"])
@pytest.mark.parametrize("compat", [None, "mergekit", "peft"])
def test_density_zero_gives_the_backbone_bit_for_bit(tmp_path: Path, method: str, compat: str | None) -> None:
    got = merged(tmp_path, {"a": [1, 2, 3, 4], "b": [5, 6, 7, 8]}, method=method, density=0, compat=compat)
    assert np.array_equal(got["w"].words, np.array(BASE, np.float32).view(np.uint32)), "-0 too"


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_a_density_that_keeps_nothing_by_count_gives_the_backbone(tmp_path: Path, scope: str) -> None:
    got = merged(tmp_path, {"a": [1, 2, 3, 4]}, method="ties", density=0.2, cut="exact", trim_scope=scope)
    assert np.array_equal(got["w"].words, np.array(BASE, np.float32).view(np.uint32))


def test_one_expert_is_its_own_elected_mean(tmp_path: Path) -> None:
    got = merged(tmp_path, {"a": [1, -2, 0.25, 0]}, method="ties")
    assert got["w"].words.view(np.float32).tolist() == [2, -2, 0.75, 2]


def test_the_routed_expert_alone_has_no_others(tmp_path: Path) -> None:
    got = merged(tmp_path, {"a": [1, -2, 0.25, 0]}, lam=1, scope="all")
    assert got["w"].words.view(np.float32).tolist() == [2, -2, 0.75, 2]


def test_weight_zero_brings_nothing_and_does_not_count(tmp_path: Path) -> None:
    vectors = {"a": [1, 1, 1, 1], "b": [-5.0, 5, 5, 5]}
    got = merged(tmp_path, vectors, method="ties", weight={"b": 0})
    assert got["w"].words.view(np.float32).tolist() == [2, 1, 1.5, 3]


@pytest.mark.parametrize(
    ("vectors", "recipe"),
    [
        ({"a": [3e38, 0, 0, 0], "b": [3e38, 0, 0, 0]}, {"method": "task-arithmetic", "lam": 1}),
        ({"a": [1, 0, 0, 0]}, {"method": "task-arithmetic", "lam": 1e30, "weight": {"a": 1e30}}),
        ({"a": [1e5, 0, 0, 0]}, {"method": "ties", "dtype": "F16"}),
    ],
)
def test_overflow_is_refused_and_leaves_nothing(
    tmp_path: Path, vectors: dict[str, list[float]], recipe: dict[str, object]
) -> None:
    with pytest.raises(ObmError) as caught:
        merged(tmp_path, vectors, **recipe)
    assert (caught.value.reason, caught.value.where) == ("not_finite", "w")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "where"),
    [
        ({"method": "average", "weight": {"a": 1, "b": -1}}, "weight"),
        ({"method": "ties", "densities": {"c": 0.5}}, "densities"),
        ({"method": "ties", "weight": {"#3": 0.5}}, "weight"),
        ({"method": "ties", "weight": {"#1": 0.5, "a": 2}}, "weight"),
        ({"method": "ties", "densities": {"a": 0.5, "#1": 0.5}}, "densities"),
        ({"method": "average", "compat": "mergekit", "weight": {"#1": 1, "#2": -1}}, "weight"),
    ],
)
def test_weights_and_names_that_make_no_sense_are_refused(
    tmp_path: Path, recipe: dict[str, object], where: str
) -> None:
    with pytest.raises(ObmError) as caught:
        merged(tmp_path, {"a": [1, 1, 1, 1], "b": [1, 1, 1, 1]}, **recipe)
    assert (caught.value.reason, caught.value.where) == ("bad_recipe", where)


def test_compat_sums_in_the_order_that_is_given(tmp_path: Path) -> None:
    # (1e8 + 1) - 1e8 is 0 in float32, (1e8 - 1e8) + 1 is 1
    vectors = {"a": [1e8, 0, 0, 0], "b": [1, 0, 0, 0], "c": [-1e8, 0, 0, 0]}
    got = merged(tmp_path, vectors, [0, 0, 0, 0], method="task-arithmetic", lam=1, compat="mergekit")
    assert got["w"].words.view(np.float32)[0] == 0
    recipe = parse_recipe({"method": "task-arithmetic", "lam": 1, "compat": "mergekit"})
    materialize(tmp_path / "base", [tmp_path / name for name in "acb"], recipe, tmp_path / "other")
    assert load(tmp_path / "other")["w"].words.view(np.float32)[0] == 1

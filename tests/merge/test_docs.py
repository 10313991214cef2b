"""docs/merging.md: every worked example gives what it says, and every recipe in it is one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_experts import MATRIX, Tensor, load, save, tensor, tiny_expert

from obm_format.merge import materialize, parse_recipe
from obm_format.merge.recipe import read_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "merging.md").read_text()
EXAMPLES = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)]
RECIPES = re.findall(r"^```yaml recipe\n(.*?)^```", PAGE, re.M | re.S)


Values = list[float] | dict[str, list[float]]


def by_name(values: Values) -> dict[str, list[float]]:
    """A list of numbers is the tensor w; it is a matrix of one row, so that experts may store it in 1 bit."""
    return values if isinstance(values, dict) else {"w": values}


def tensors(values: Values, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of a backbone, or those of a fine-tune whose task vector against `base` this is."""
    rows = {name: np.array([row], np.float32) for name, row in by_name(values).items()}
    if base is not None:
        rows = {name: row + base[name].words.view(np.float32) for name, row in rows.items()}
    return {name: tensor(row) for name, row in rows.items()}


def merged(example: Mapping[str, Any], folder: Path) -> dict[str, list[float]]:
    base = tensors(example["backbone"])
    save(folder / "base", base)
    sources: list[Any] = []
    for name, values in example.get("vectors", {}).items():
        sources.append(save(folder / name, tensors(values, base)))
    for name, values in example.get("bits", {}).items():
        tuned = tensors(values, base)
        path = folder / f"{name}.obm"
        sources.append(tiny_expert(path, base, tuned, compressed=list(base), task=name, alpha=MATRIX))
    materialize(folder / "base", sources, parse_recipe(example["recipe"]), folder / "out")
    return {name: one.words.view(np.float32).reshape(-1).tolist() for name, one in load(folder / "out").items()}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example["recipe"]))
def test_worked_example(example: dict[str, Any], tmp_path: Path) -> None:
    rounded = {name: np.float32(values).tolist() for name, values in by_name(example["merged"]).items()}
    assert merged(example, tmp_path) == rounded


def test_every_method_has_an_example() -> None:
    shown = {example["recipe"]["method"] for example in EXAMPLES}
    assert shown >= {"1bit-merging", "routing", "ties", "task-arithmetic", "dare", "average"}
    assert len(EXAMPLES) >= 15


@pytest.mark.parametrize("text", RECIPES, ids=["ours", "mergekit's"])
def test_recipe_is_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert read_recipe(tmp_path / "recipe.yaml").backbone == "./minilm"


def test_a_wrong_example_is_seen(tmp_path: Path) -> None:
    example = {**EXAMPLES[0], "merged": [1.125, 1.25, 0.75]}
    assert merged(example, tmp_path) != by_name(example["merged"])

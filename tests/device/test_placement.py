"""Merged weights made where they are to lie: the bits of the stream over arrays, in existing storage, all or none."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton", reason="the GPU kernels need triton")

import torch
from device_kernels import DEVICE, triton_kernels
from tiny_experts import KERNELS, ROW, fine_tune, save, tensor, tiny_backbone, write_expert

from obm_format.checkpoint import open_checkpoint
from obm_format.device.placement import Placement
from obm_format.device.uploads import Uploads
from obm_format.errors import ObmError
from obm_format.expert import Expert, open_expert
from obm_format.loader import Loader, as_torch
from obm_format.merge import WeightStream, parse_recipe
from obm_format.model import DType

MATRICES = ["l.attn.weight", "l.mlp.weight"]
RECIPES: dict[str, dict[str, object]] = {
    "routed 1-bit": {"route": "b", "lam": 0.3},
    "routed exact": {"route": "a", "lam": 0.3, "scope": "all"},
    "routing alone": {"method": "routing", "route": "c"},
    "sum": {"method": "task-arithmetic", "lam": 0.4, "weight": {"a": 1.0, "b": -0.5, "c": 2.0}},
    "ties": {"method": "ties", "lam": 1.0},
    "cast": {"route": "b", "lam": 0.3, "dtype": "F32"},
}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BF16 backbone, an exact expert, two of 1 bit, and one of a vocabulary that has grown."""
    folder = tmp_path_factory.mktemp("family")
    base = tiny_backbone(DType.BF16)
    save(folder / "base", base)
    write_expert(folder / "a.obm", base, fine_tune(base, 1), task="a")
    write_expert(folder / "b.obm", base, fine_tune(base, 2), task="b", compressed=MATRICES)
    write_expert(folder / "c.obm", base, fine_tune(base, 3), task="c", compressed=MATRICES[:1], alpha=ROW)
    grown = fine_tune(base, 4)
    more = np.random.default_rng(5).normal(size=(10, 12))
    grown["emb.weight"] = tensor(more, DType.BF16)
    write_expert(folder / "grown.obm", base, grown, task="grown", compressed=["emb.weight"])
    return folder


def placement() -> Placement:
    return Placement(DEVICE, triton_kernels(), Uploads(DEVICE, buffer_nbytes=100))


def opened(family: Path, names: str) -> list[Expert]:
    return [open_expert(family / f"{name}.obm") for name in names.split()]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("names", ["a b c", "a b c grown"])
def test_staged_tensors_have_the_bits_of_the_stream(family: Path, name: str, names: str) -> None:
    recipe = parse_recipe(RECIPES[name] | ({"route": "grown"} if "grown" in names and "route" in RECIPES[name] else {}))
    experts = opened(family, names)
    with open_checkpoint(family / "base") as base:
        stream = WeightStream(base, experts, recipe, kernels=KERNELS)
        wanted = {spec.name: as_torch(words, spec.dtype) for spec, words in stream}
        assert placement().can_make(stream.plan)
        staged = placement().stage(base, experts, recipe, wanted)
    assert staged.keys() == wanted.keys()
    for key, one in wanted.items():
        assert staged[key].device.type == DEVICE.type
        assert (staged[key].dtype, staged[key].shape) == (one.dtype, one.shape)
        assert torch.equal(staged[key].cpu().view(torch.uint8), one.view(torch.uint8)), key


@pytest.mark.parametrize(
    "content",
    [
        {"method": "ties", "density": 0.5},
        {"method": "dare", "density": 0.5},
        {"method": "ties", "compat": "official"},
    ],
)
def test_what_numpy_does_in_between_is_not_for_the_device(family: Path, content: dict[str, object]) -> None:
    with open_checkpoint(family / "base") as base:
        stream = WeightStream(base, opened(family, "a b"), parse_recipe(content))
    assert not placement().can_make(stream.plan)


def loader_on_device(family: Path, names: str) -> Loader:
    """The interpreter's device is the CPU, where the loader would otherwise merge over arrays."""
    loader = Loader(family / "base", [family / f"{name}.obm" for name in names.split()], device=str(DEVICE))
    loader._placement = placement()
    return loader


def target_for(family: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(family / "base") as base:
        return {
            name: torch.zeros_like(as_torch(base.words(name), spec.dtype), device=DEVICE)
            for name, spec in base.tensors.items()
        }


def test_the_loader_merges_on_the_device_into_the_same_storage(family: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = target_for(family)
    places = {name: one.data_ptr() for name, one in target.items()}
    for content in (RECIPES["routed 1-bit"], RECIPES["ties"], {"method": "ties", "density": 0.5}):
        recipe = parse_recipe(content)
        with open_checkpoint(family / "base") as base:
            stream = WeightStream(base, opened(family, "a b c"), recipe, kernels=KERNELS)
            wanted = {spec.name: as_torch(words, spec.dtype) for spec, words in stream}
        with caplog.at_level(logging.INFO, "obm_format.loader"), loader_on_device(family, "a b c") as loader:
            loader.activate(target, recipe)
        assert all(torch.equal(target[name].cpu(), one) for name, one in wanted.items())
    assert {name: one.data_ptr() for name, one in target.items()} == places
    assert [record.getMessage() for record in caplog.records] == [
        f"merging on the CPU for {DEVICE}: the recipe trims, or combines in a peer's way"
    ]


@pytest.mark.parametrize("how", ["damaged", "infinite"])
def test_a_failure_on_the_device_leaves_the_old_weights(family: Path, tmp_path: Path, how: str) -> None:
    data = bytearray((family / "b.obm").read_bytes())
    if how == "damaged":
        data[-64] ^= 1
    (tmp_path / "b.obm").write_bytes(data)
    lam = 1e25 if how == "infinite" else 0.3
    target = target_for(family)
    recipe = parse_recipe({"method": "task-arithmetic", "lam": lam, "weight": {"b": 1e25}})
    loader = Loader(family / "base", [tmp_path / "b.obm"], device=str(DEVICE))
    loader._placement = placement()
    with loader, pytest.raises(ObmError) as caught:
        loader.activate(target, recipe)
    assert (caught.value.reason == "not_finite") == (how == "infinite")
    assert not any(one.any() for one in target.values())

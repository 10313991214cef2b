"""A dry run: bytes as they then are, memory by the recipe, and every refusal that headers tell."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint
from memory import memory_of
from tiny_experts import Tensors, fine_tune, save, tensor, tiny_backbone, tiny_expert

from obm_format.checkpoint import Checkpoint, open_checkpoint
from obm_format.compress import CompressOptions, compress_checkpoint
from obm_format.expert import Expert
from obm_format.merge import materialize, parse_recipe, plan_merge
from obm_format.merge.dense import Source, open_dense
from obm_format.merge.execute import PIECE_NBYTES
from obm_format.merge.folder import open_sources
from obm_format.merge.preview import needs, refusals
from obm_format.model import DType

FACTOR = 2.5  # what a foreseen amount of memory may be off by, either way
LINEAR = ("l.attn.weight", "l.mlp.weight")


def experts_of(folder: Path, base: Tensors) -> list[Source]:
    return [
        tiny_expert(folder / f"{task}.obm", base, fine_tune(base, seed), compressed=LINEAR, task=task)
        for seed, task in enumerate("abc", 1)
    ]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of three matrices of 34 MB, fine-tunes of it (a, b, c), and experts: exact, 1-bit and ternary."""
    folder, rng, shape = tmp_path_factory.mktemp("large"), np.random.default_rng(0), (4096, 4096)
    base = {f"model.layers.0.mlp.{kind}_proj.weight": rng.normal(0, 0.02, shape) for kind in ("gate", "up", "down")}
    write_checkpoint(folder / "base", {name: (DType.BF16, values) for name, values in base.items()})
    encodings = {"a": {"position": "none"}, "b": {"position": "linear"}, "c": {"encoding": "tern1"}}
    for task, encoding in encodings.items():
        tuned = {name: (DType.BF16, values + rng.normal(0, 5e-4, shape)) for name, values in base.items()}
        write_checkpoint(folder / task, tuned)
        compress_checkpoint(
            folder / "base", folder / task, folder / f"{task}.obm", CompressOptions(task=task, **encoding)
        )
    return folder


@pytest.mark.parametrize(
    ("content", "looks"),
    [
        ({"route": "a"}, 0),
        ({"method": "ties", "density": 0.5}, 0),
        ({"method": "ties", "density": 0.5, "trim_scope": "global"}, 2),
        ({"method": "ties", "density": 0.5, "trim_scope": "global", "cut": "exact"}, 3),
        ({"method": "ties", "density": 0.5, "compat": "official"}, 3),
        ({"method": "ties", "compat": "official"}, 1),
    ],
)
def test_bytes_are_those_of_the_merge(tmp_path: Path, content: dict[str, object], looks: int) -> None:
    base = tiny_backbone()
    experts = experts_of(tmp_path, base)
    save(tmp_path / "base", base)
    recipe = parse_recipe(content)
    with open_checkpoint(tmp_path / "base") as backbone:
        plan = plan_merge(backbone.tensors, experts, recipe)
        found = needs(plan, threads=2, piece_nbytes=1 << 20)
    report = materialize(tmp_path / "base", experts, recipe, tmp_path / "out")
    assert found.looks == looks
    assert found.bytes_written == report.bytes_written
    assert report.bytes_read <= found.bytes_read, "a look may be spared"
    if looks < 3:
        assert report.bytes_read == found.bytes_read
    assert found.tensors == len(base)


def test_memory_grows_with_threads_and_pieces_but_not_with_dense_operands(tmp_path: Path) -> None:
    base = tiny_backbone()
    save(tmp_path / "base", base)
    save(tmp_path / "tuned", fine_tune(base, 1))
    exact = tiny_expert(tmp_path / "x.obm", base, fine_tune(base, 2), task="x")
    with open_checkpoint(tmp_path / "base") as backbone, open_dense(tmp_path / "tuned", backbone) as dense:

        def peak(one: Source, threads: int, piece_nbytes: int) -> int:
            plan = plan_merge(backbone.tensors, [one], parse_recipe({"method": "ties"}))
            return needs(plan, threads=threads, piece_nbytes=piece_nbytes).peak_private_bytes

        assert peak(dense, 1, 64) < peak(dense, 2, 64) < peak(dense, 2, 256)
        assert peak(dense, 1, 64) < peak(exact, 1, 64), "a dense fine-tune stays in its map"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experts", "content"),
    [
        (["a", "b", "c"], {"method": "ties"}),
        (["a", "b", "c"], {"method": "ties", "density": 0.2, "compat": "mergekit"}),
        (["a.obm", "b.obm", "c.obm"], {"route": "a"}),
        (["a.obm", "b.obm", "c.obm"], {"route": "b", "scope": "all", "lam": 0.5}),
        (["a.obm", "b.obm", "c.obm"], {"method": "ties", "density": 0.5}),
        (["b.obm", "c.obm"], {"method": "ties", "density": 0.5, "trim_scope": "global"}),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_that_of_the_merge_to_a_factor(
    large: Path, experts: list[str], content: dict[str, object], threads: int
) -> None:
    paths = [large / one for one in experts]
    with ExitStack() as stack:
        backbone, sources = open_sources(large / "base", paths, stack)
        plan = plan_merge(backbone.tensors, sources, parse_recipe(content))
        expected = needs(plan, threads=threads, piece_nbytes=PIECE_NBYTES).peak_private_bytes
    taken = memory_of(large, experts, content, threads).taken
    assert expected / FACTOR <= taken <= expected * FACTOR


def opened(folder: Path, base: Tensors) -> tuple[Checkpoint, list[Source]]:
    save(folder / "base", base)
    return open_checkpoint(folder / "base"), experts_of(folder, base)


def test_nothing_to_refuse(tmp_path: Path) -> None:
    base, experts = opened(tmp_path, tiny_backbone())
    assert refusals(base.tensors, experts, parse_recipe({"route": "a"}), tmp_path / "out") == []


def test_every_expert_of_another_backbone_is_named(tmp_path: Path) -> None:
    _, experts = opened(tmp_path, tiny_backbone())
    other = dict(tiny_backbone())
    other["norm.weight"] = tensor([1.0] * 11)
    save(tmp_path / "other", other)
    with open_checkpoint(tmp_path / "other") as base:
        found = refusals(base.tensors, experts, parse_recipe({"route": "a"}), tmp_path / "out")
    assert [(error.reason, error.where) for error in found] == [("base_tensor", f"expert {task}") for task in "abc"]


def test_route_and_output_are_looked_at(tmp_path: Path) -> None:
    base, experts = opened(tmp_path, tiny_backbone())
    assert all(isinstance(one, Expert) for one in experts)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    cases = [
        ({}, tmp_path / "out", ["route_needed"]),
        ({"route": "nobody"}, tmp_path / "out", ["bad_recipe"]),
        ({"route": "a"}, tmp_path / "full", ["exists"]),
        ({"route": "a"}, tmp_path / "none" / "out", ["not_found"]),
        ({"route": "a"}, None, []),
    ]
    for content, out, reasons in cases:
        found = refusals(base.tensors, experts, parse_recipe(content), out)
        assert [error.reason for error in found] == reasons, content


def test_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, experts = opened(tmp_path, tiny_backbone())
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    found = refusals(base.tensors, experts, parse_recipe({"route": "a"}), tmp_path / "out")
    assert [(error.reason, error.got) for error in found] == [("disk_full", "10")]

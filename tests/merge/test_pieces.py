"""Tensors are made in pieces on several threads: neither shows in the output, and memory stays within its bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import shifted, tiny_llama, write_checkpoint
from memory import memory_of
from tiny_experts import KERNELS, fine_tune, integers, save, tensor, tiny_backbone, tiny_expert

from obm_format import compress_checkpoint, open_expert
from obm_format.checkpoint import open_checkpoint
from obm_format.compress import CompressOptions
from obm_format.errors import ObmError
from obm_format.expert import Expert
from obm_format.kernels import select_kernels
from obm_format.kernels.words import Words
from obm_format.merge import WeightStream, parse_recipe
from obm_format.model import DType

ENCODINGS = {
    "exact": CompressOptions(position="none"),
    "sign1": CompressOptions(planes=2),
    "tern1": CompressOptions(encoding="tern1"),
    "affine4": CompressOptions(encoding="affine4"),
    "sparse": CompressOptions(encoding="sparse"),
}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, and an expert of each encoding."""
    folder = tmp_path_factory.mktemp("pieces")
    base = tiny_llama(0, DType.BF16, layers=1)
    write_checkpoint(folder / "base", base)
    for seed, (name, options) in enumerate(ENCODINGS.items(), 1):
        write_checkpoint(folder / name, shifted(base, seed))
        compress_checkpoint(folder / "base", folder / name, folder / f"{name}.obm", options)
    return folder


def merged(folder: Path, names: Sequence[str], content: dict[str, object], **how: object) -> dict[str, bytes]:
    experts = [open_expert(folder / f"{name}.obm") for name in names]
    recipe = parse_recipe({**content, "route": experts[0].id} if "route" in content else content)
    with open_checkpoint(folder / "base") as base:
        return {spec.name: words.tobytes() for spec, words in WeightStream(base, experts, recipe, **how)}


@pytest.mark.parametrize("first", ENCODINGS)
@pytest.mark.parametrize(
    "content",
    [{"route": "", "lam": 0.5, "scope": "all"}, {"method": "routing", "route": ""}, {"method": "ties", "density": 0.3}],
)
def test_pieces_and_threads_do_not_show(family: Path, first: str, content: dict[str, object]) -> None:
    names = [first, *(name for name in ENCODINGS if name != first)]
    wanted = merged(family, names, content, piece_nbytes=1 << 30, threads=1, kernels=KERNELS)
    for threads, piece, kernels in [(1, 32, KERNELS), (3, 1000, None), (2, 200, select_kernels(2))]:
        assert merged(family, names, content, piece_nbytes=piece, threads=threads, kernels=kernels) == wanted


@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_routing_is_what_each_encoding_rebuilds(family: Path, piece: int) -> None:
    for name in ENCODINGS:
        made = merged(family, [name], {"method": "routing", "route": ""}, piece_nbytes=piece)
        with open_expert(family / f"{name}.obm") as expert, open_checkpoint(family / "base") as base:
            for tensor_name in base.tensors:
                assert made[tensor_name] == expert.rebuild(tensor_name, base.words(tensor_name)).tobytes(), tensor_name


@pytest.mark.parametrize("piece", [1, 50, 1 << 20])
def test_grown_added_and_replaced_tensors_in_pieces(tmp_path: Path, piece: int) -> None:
    base = tiny_backbone(DType.F16)
    tuned = fine_tune(base, 1)
    rng = np.random.default_rng(5)
    tuned["emb.weight"] = tensor(np.vstack([rng.normal(size=(7, 12)), rng.normal(size=(3, 12))]), DType.F16)
    tuned["new.weight"] = tensor(rng.normal(size=(4, 5)), DType.F16)
    tuned["ids"] = integers(np.arange(9))
    save(tmp_path / "base", base)
    expert = tiny_expert(tmp_path / "a.obm", base, tuned, task="a")
    other = tiny_expert(tmp_path / "b.obm", base, fine_tune(base, 2), compressed=["emb.weight"], task="b")
    for recipe in ({"method": "routing", "route": "a"}, {"route": "a", "scope": "all"}):
        with open_checkpoint(tmp_path / "base") as opened:
            stream = WeightStream(opened, [expert, other], parse_recipe(recipe), piece_nbytes=piece)
            whole = WeightStream(opened, [expert, other], parse_recipe(recipe), piece_nbytes=1 << 30)
            made, wanted = ({spec.name: words for spec, words in one} for one in (stream, whole))
        assert made.keys() == tuned.keys()
        for name, words in wanted.items():
            assert np.array_equal(made[name], words), name
        if recipe["route"] == "a" and "method" in recipe:
            for name, one in tuned.items():
                assert np.array_equal(made[name], one.words), name


def damaged_expert(folder: Path, expert: Expert, name: str) -> Expert:
    """The expert with a bit of a tensor's part flipped."""
    data = bytearray((folder / "a.obm").read_bytes())
    part = next(part for key, part in expert.header.parts.items() if key.startswith(name))
    data[part.offset] ^= 1
    return open_expert(bytes(data))


def test_wrong_backbone_is_named_even_where_parts_do_not_decode(tmp_path: Path) -> None:
    base = tiny_backbone(DType.F32)
    expert = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1))
    base["norm.weight"].words[5] ^= 1 << 30
    save(tmp_path / "base", base)
    with open_checkpoint(tmp_path / "base") as opened, pytest.raises(ObmError) as caught:
        dict(WeightStream(opened, [expert], parse_recipe({}), piece_nbytes=16))
    assert (caught.value.reason, caught.value.where) == ("base_digest", "norm.weight")


@pytest.mark.parametrize("threads", [1, 2])
def test_damage_stops_all_threads_with_its_own_error(tmp_path: Path, threads: int) -> None:
    base = tiny_backbone(DType.F32)
    expert = tiny_expert(tmp_path / "a.obm", base, fine_tune(base, 1))
    bad = damaged_expert(tmp_path, expert, "l.attn.weight")
    save(tmp_path / "base", base)
    with open_checkpoint(tmp_path / "base") as opened:
        stream = WeightStream(opened, [bad], parse_recipe({}), threads=threads)
        with pytest.raises(ObmError) as caught:
            stream.run(lambda step: Sink())
    assert caught.value.reason in {"part_digest", "frame_digest"}


class Sink:
    """A target that keeps nothing."""

    def room(self, span: object) -> Words:
        return np.empty(span.size, np.uint32)  # type: ignore[attr-defined]

    def put(self, span: object, words: Words) -> None:
        pass


SHAPE = (8192, 4096)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of three matrices of 67 MB, and two experts: exact, and 1-bit."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    kinds = {f"model.layers.0.mlp.{kind}_proj.weight": seed for seed, kind in enumerate(("gate", "up", "down"))}
    values = 0.02 * rng.standard_normal(SHAPE, np.float32)
    write_checkpoint(folder / "base", {name: (DType.BF16, np.roll(values, seed)) for name, seed in kinds.items()})
    for task, position in {"a": "none", "b": "linear"}.items():
        tuned = values + np.float32(5e-4) * rng.standard_normal(SHAPE, np.float32)
        write_checkpoint(folder / task, {name: (DType.BF16, np.roll(tuned, seed)) for name, seed in kinds.items()})
        options = CompressOptions(task=task, position=position)
        compress_checkpoint(folder / "base", folder / task, folder / f"{task}.obm", options)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_private_memory_stays_below_64_mb_and_a_tensor_per_worker(large: Path, threads: int) -> None:
    recipe = {"route": "a", "lam": 0.5, "scope": "all"}
    seen = memory_of(large, ["a.obm", "b.obm"], recipe, threads)
    largest = 2 * SHAPE[0] * SHAPE[1]
    assert seen.taken <= (64 << 20) + threads * largest
    assert abs(seen.reported - seen.taken) <= 16 << 20

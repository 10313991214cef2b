"""Dense fine-tunes as operands: the same weights as exact experts give, nothing of them hashed, NaN refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from tiny_experts import Tensors, fine_tune, load, save, tensor, tiny_backbone, tiny_expert

from obm_format.checkpoint import Checkpoint, open_checkpoint
from obm_format.errors import ObmError
from obm_format.kernels import Kernels, ReferenceKernels, select_kernels
from obm_format.kernels.words import EXPONENT, to_float32
from obm_format.merge import WeightStream, materialize, parse_recipe, plan_merge
from obm_format.merge.dense import open_dense
from obm_format.model import DType


def family(folder: Path, dtype: DType = DType.BF16) -> tuple[dict[str, object], list[Tensors]]:
    base = tiny_backbone(dtype)
    tuned = [fine_tune(base, seed) for seed in (1, 2, 3)]
    save(folder / "base", base)
    for place, one in enumerate(tuned):
        save(folder / "abc"[place], one)
    return dict(base), tuned


@pytest.mark.parametrize(
    "content",
    [
        {"method": "ties"},
        {"method": "ties", "density": 0.4, "weight": {"a": 2, "c": -1}},
        {"method": "task-arithmetic", "lam": 0.5},
        {"method": "average"},
        {"method": "1bit-merging", "route": "b", "scope": "all"},
        {"method": "routing", "route": "c"},
    ],
)
def test_dense_fine_tunes_merge_like_exact_experts(tmp_path: Path, content: dict[str, object]) -> None:
    base, tuned = family(tmp_path)
    experts = [tiny_expert(tmp_path / f"{n}.obm", base, one, task=n) for n, one in zip("abc", tuned, strict=True)]
    # experts are summed by artifact id, dense fine-tunes as they are given
    order = [one.manifest.task for one in sorted(experts, key=lambda one: one.id)]
    recipe = parse_recipe(content)
    materialize(tmp_path / "base", experts, recipe, tmp_path / "exact")
    report = materialize(tmp_path / "base", [tmp_path / name for name in order], recipe, tmp_path / "dense")
    exact, dense = load(tmp_path / "exact"), load(tmp_path / "dense")
    assert exact.keys() == dense.keys()
    for name in exact:
        assert np.array_equal(exact[name].words, dense[name].words), name
    assert [one.id for one in report.experts] == ["dense:0001", "dense:0002", "dense:0003"]
    assert [one.task for one in report.experts] == order


def test_dense_and_one_bit_operands_in_one_merge(tmp_path: Path) -> None:
    base, tuned = family(tmp_path, DType.F32)
    one_bit = tiny_expert(tmp_path / "x.obm", base, tuned[0], compressed=["l.mlp.weight"], task="x")
    recipe = parse_recipe({"method": "task-arithmetic", "lam": 1})
    materialize(tmp_path / "base", [one_bit, tmp_path / "b"], recipe, tmp_path / "out")
    old = to_float32(base["l.mlp.weight"].words, DType.F32)
    dense = to_float32(tuned[1]["l.mlp.weight"].words, DType.F32) - old
    wanted = old + (dense + one_bit.values("l.mlp.weight"))  # "dense:..." comes before "obm1-..."
    assert np.array_equal(load(tmp_path / "out")["l.mlp.weight"].words.view(np.float32), wanted)


def test_dense_only_merge_hashes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family(tmp_path)
    monkeypatch.setattr(Checkpoint, "sha256", lambda self, name: pytest.fail(f"{name} is hashed"))
    materialize(tmp_path / "base", [tmp_path / "a", tmp_path / "b"], parse_recipe({"method": "ties"}), tmp_path / "out")


def test_experts_still_vouch_for_the_backbone_beside_dense_ones(tmp_path: Path) -> None:
    base, tuned = family(tmp_path)
    expert = tiny_expert(tmp_path / "x.obm", base, tuned[0], task="x")
    base["norm.weight"].words[-1] ^= 1
    save(tmp_path / "other", base)
    recipe = parse_recipe({"method": "ties"})
    with pytest.raises(ObmError) as caught:
        materialize(tmp_path / "other", [expert, tmp_path / "b"], recipe, tmp_path / "out")
    assert caught.value.reason == "base_digest"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spoilt", ["base", "a"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_in_dense_inputs_refused(tmp_path: Path, spoilt: str, value: float) -> None:
    base, tuned = family(tmp_path, DType.F32)
    bad = base if spoilt == "base" else tuned[0]
    bad["l.attn.weight"].words.view(np.float32)[3, 4] = value
    save(tmp_path / spoilt, bad)
    recipe = parse_recipe({"method": "ties"})
    with pytest.raises(ObmError) as caught:
        materialize(tmp_path / "base", [tmp_path / "a", tmp_path / "b"], recipe, tmp_path / "out")
    assert (caught.value.reason, caught.value.where) == ("not_finite_input", "l.attn.weight")
    assert not (tmp_path / "out").exists()


NAN_RECIPES: list[dict[str, object]] = [
    {"method": "ties"},
    {"method": "ties", "weight": {"a": 0, "b": -1}},
    {"method": "ties", "density": 0.3},
    {"method": "ties", "density": 0.3, "cut": "exact"},
    {"method": "ties", "density": 0.3, "rescale": "l1"},
    {"method": "ties", "densities": {"a": 0, "b": 0.5}},
    {"method": "average"},
    {"method": "ties", "densities": {"a": 0}, "compat": "mergekit"},
    {"method": "dare", "density": 0.3, "seed": 5},
    {"method": "1bit-merging", "route": "a", "scope": "all", "lam": 0.5},
]


def refusal(folder: Path, content: dict[str, object], kernels: Kernels, threads: int, piece_nbytes: int) -> str:
    """What a merge of the family is refused with."""
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(open_checkpoint(folder / "base"))
        tuned = [stack.enter_context(open_dense(folder / name, base, place)) for place, name in enumerate("abc", 1)]
        stream = WeightStream(
            base, tuned, parse_recipe(content), kernels=kernels, threads=threads, piece_nbytes=piece_nbytes
        )
        with pytest.raises(ObmError) as caught:
            for _ in stream:
                pass
    return str(caught.value)


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F16])
@pytest.mark.parametrize("content", NAN_RECIPES)
@pytest.mark.parametrize("spoilt", ["base", "a", "c"])
def test_nan_is_refused_in_the_same_words_by_all_kernels_threads_and_pieces(
    tmp_path: Path, dtype: DType, content: dict[str, object], spoilt: str
) -> None:
    base, tuned = family(tmp_path, dtype)
    bad = base if spoilt == "base" else tuned["abc".index(spoilt)]
    words = bad["l.attn.weight"].words
    words[3, 4] = EXPONENT[dtype] + (spoilt == "c")  # infinite, or NaN
    save(tmp_path / spoilt, bad)
    fast = select_kernels(1)
    said = {
        refusal(tmp_path, content, kernels, threads, piece_nbytes)
        for kernels in (ReferenceKernels(), fast)
        for threads, piece_nbytes in ((1, 1 << 30), (3, 16))
    }
    index = 3 * words.shape[1] + 4
    assert len(said) == 1, said
    assert f"holds NaN or Inf at flat index {index} (3, 4)" in said.pop()


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
@pytest.mark.parametrize("content", NAN_RECIPES)
def test_what_moved_is_the_same_for_all_kernels_and_pieces(
    tmp_path: Path, dtype: DType, content: dict[str, object]
) -> None:
    base, tuned = family(tmp_path, dtype)
    for one in tuned:  # a part that stays
        one["l.mlp.weight"].words[:2] = base["l.mlp.weight"].words[:2]
    for name, one in zip("abc", tuned, strict=True):
        save(tmp_path / name, one)
    counts = set()
    for kernels in (ReferenceKernels(), select_kernels(1)):
        for piece_nbytes in (1 << 30, 16):
            with contextlib.ExitStack() as stack:
                opened = stack.enter_context(open_checkpoint(tmp_path / "base"))
                sources = [
                    stack.enter_context(open_dense(tmp_path / name, opened, i)) for i, name in enumerate("abc", 1)
                ]
                stream = WeightStream(
                    opened, sources, parse_recipe(content), kernels=kernels, piece_nbytes=piece_nbytes, measure=True
                )
                assert len(list(stream)) == len(base)
                counts.add((stream.meter.total.moved, stream.meter.total.comparable))
    assert len(counts) == 1
    moved, comparable = counts.pop()
    assert 0 < moved < comparable


def test_dense_fine_tune_with_grown_vocabulary_and_own_prefix(tmp_path: Path) -> None:
    base = tiny_backbone(DType.F32)
    tuned = dict(fine_tune(base, 1))
    tuned["emb.weight"] = tensor(np.vstack([tuned["emb.weight"].words.view(np.float32), np.ones((2, 12))]))
    save(tmp_path / "base", base)
    save(tmp_path / "a", {f"model.{name}": one for name, one in tuned.items()})
    materialize(tmp_path / "base", [tmp_path / "a"], parse_recipe({"method": "ties"}), tmp_path / "out")
    got = load(tmp_path / "out")
    assert got["emb.weight"].words.shape == (7, 12)  # without a route, the backbone's tensors
    old, new = base["emb.weight"].words.view(np.float32), tuned["emb.weight"].words.view(np.float32)[:7]
    assert np.array_equal(got["emb.weight"].words.view(np.float32), old + (new - old))
    materialize(tmp_path / "base", [tmp_path / "a"], parse_recipe({"method": "routing"}), tmp_path / "routed")
    routed = load(tmp_path / "routed")
    assert np.array_equal(routed["model.emb.weight"].words, tuned["emb.weight"].words)


def test_dense_routed_fine_tune_brings_its_side_files(tmp_path: Path) -> None:
    family(tmp_path)
    (tmp_path / "base/config.json").write_text('{"a": 1}')
    (tmp_path / "a/config.json").write_text('{"a": 2}')
    (tmp_path / "a/modeling.py").write_text("raise SystemExit")
    materialize(tmp_path / "base", [tmp_path / "a"], parse_recipe({"method": "routing"}), tmp_path / "out")
    assert (tmp_path / "out/config.json").read_text() == '{"a": 2}'
    assert not (tmp_path / "out/modeling.py").exists()


def test_dense_fine_tune_of_another_shape_refused(tmp_path: Path) -> None:
    base, _ = family(tmp_path)
    base["l.mlp.weight"] = tensor(np.ones((5, 12)), DType.BF16)
    save(tmp_path / "bad", base)
    with open_checkpoint(tmp_path / "base") as backbone, pytest.raises(ObmError) as caught:
        open_dense(tmp_path / "bad", backbone)
    assert caught.value.reason == "shape_differs"


def test_plan_counts_the_bytes_of_dense_operands(tmp_path: Path) -> None:
    family(tmp_path)
    with open_checkpoint(tmp_path / "base") as base, open_dense(tmp_path / "a", base) as one:
        plan = plan_merge(base.tensors, [one], parse_recipe({"method": "ties"}))
        integers = base.tensors["ids"].nbytes  # a copy of the backbone's
        assert plan.bytes_read == base.nbytes + one.checkpoint.nbytes - integers

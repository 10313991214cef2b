"""`expert_stats` against plain NumPy on the same tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from checkpoints import Tensors, shifted, tiny_llama, words_of, write_checkpoint

from obm_format import stats
from obm_format.checkpoint import open_checkpoint
from obm_format.compress import compress_checkpoint, compress_rtvq
from obm_format.compress.options import parse_compress_options
from obm_format.errors import BackboneMismatch
from obm_format.expert import open_expert
from obm_format.kernels.words import to_float32
from obm_format.model import DType
from obm_format.stats import ExpertStats, TensorStats, expert_stats

VECTORS = sorted((Path(__file__).resolve().parents[1] / "spec" / "vectors" / "valid").glob("*.obm"))
Q, UP, HEAD = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"


def made(folder: Path, base: Tensors, tuned: Tensors, **options: str) -> Path:
    """An expert of two checkpoints, which stay beside it."""
    write_checkpoint(folder / "base", base)
    write_checkpoint(folder / "tuned", tuned)
    compress_checkpoint(folder / "base", folder / "tuned", folder / "x.obm", parse_compress_options(**options))
    return folder / "x.obm"


def by_name(found: ExpertStats) -> dict[str, TensorStats]:
    return {one.record.name: one for one in found.tensors}


def floats(tensors: Tensors, name: str) -> np.ndarray:
    dtype, values = tensors[name]
    return to_float32(words_of(dtype, values), dtype)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32])
def test_paper_preset_against_numpy(tmp_path: Path, dtype: DType) -> None:
    base = tiny_llama(0, dtype)
    tuned = shifted(base, 1, by=0.003)
    path = made(tmp_path, base, tuned, preset="math", task="t")
    found = expert_stats(path, base=tmp_path / "base")
    stored = by_name(found)
    with open_expert(path) as expert, open_checkpoint(tmp_path / "base") as backbone:
        rebuilt = to_float32(expert.rebuild(Q, backbone.words(Q)), dtype)
    w, d = floats(base, Q), floats(tuned, Q) - floats(base, Q)
    alpha = float(np.float16(np.abs(d).mean(dtype=np.float64)))

    one = stored[Q]
    assert (one.role.value, one.record.encoding) == ("attention", "sign1")
    assert one.alpha is not None
    assert (one.alpha.count, one.alpha.min, one.alpha.mean, one.alpha.max) == (1, alpha, alpha, alpha)
    assert one.sign_set == np.mean(d >= 0)
    assert one.nbytes == d.size // 8 + 2
    assert one.bits_per_weight == pytest.approx(1 + 16 / d.size)
    assert one.zero_fraction == 0
    assert one.shift is not None
    moved = np.mean(rebuilt != w)
    assert one.shift.moved_fraction == moved
    assert one.shift.absorbed_fraction == 1 - moved
    assert one.shift.norm_ratio == pytest.approx(alpha * math.sqrt(d.size) / np.linalg.norm(w.astype(np.float64)))
    assert dtype is DType.F32 or 0 < moved < 1, "the case would show nothing"


def test_exact_tensor_says_what_one_bit_would_cost(tmp_path: Path) -> None:
    base = tiny_llama(0, DType.BF16)
    tuned = shifted(base, 1)
    path = made(tmp_path, base, tuned, preset="math")
    alone, with_base = by_name(expert_stats(path))[UP], by_name(expert_stats(path, base=tmp_path / "base"))[UP]
    d = (floats(tuned, UP) - floats(base, UP)).astype(np.float64)
    error = np.linalg.norm(d - np.abs(d).mean() * np.where(d >= 0, 1, -1)) / np.linalg.norm(d)

    assert (alone.nnz, alone.zero_fraction, alone.shift, alone.sign_set) == (None, None, None, None)
    assert with_base.record.is_exact
    assert with_base.shift is not None
    assert with_base.shift.sign1_error == pytest.approx(error)
    assert with_base.zero_fraction == np.mean(d == 0)
    assert with_base.shift.absorbed_fraction == 0
    assert with_base.shift.moved_fraction == np.mean(d != 0)
    assert with_base.as_json()["sign1_error"] == with_base.shift.sign1_error


def test_constant_shift_costs_nothing_and_no_shift_has_no_error(tmp_path: Path) -> None:
    ones = np.ones((8, 16))
    base: Tensors = {"a.weight": (DType.F32, ones), "b.weight": (DType.F32, ones)}
    path = made(tmp_path, base, {**base, "a.weight": (DType.F32, ones * 1.25)}, position="none")
    stored = by_name(expert_stats(path, base=tmp_path / "base"))
    moved, same = stored["a.weight"].shift, stored["b.weight"].shift
    assert moved is not None
    assert same is not None
    assert (moved.sign1_error, moved.moved_fraction, moved.norm_ratio) == (0.0, 1.0, 0.25)
    assert (same.sign1_error, same.moved_fraction, same.norm_ratio) == (None, 0.0, 0.0)
    assert stored["b.weight"].zero_fraction == 1


@pytest.mark.parametrize("encoding", ["tern1", "sparse", "affine4"])
def test_zero_fraction_of_what_is_not_one_bit(tmp_path: Path, encoding: str) -> None:
    base = tiny_llama(0, DType.F16)
    tuned = shifted(base, 1)
    values = np.array(tuned[Q][1])
    values[:4] = np.asarray(base[Q][1])[:4]
    path = made(tmp_path, base, {**tuned, Q: (DType.F16, values)}, encoding=encoding)
    with open_expert(path) as expert:
        d = expert.values(Q)
    alone, with_base = by_name(expert_stats(path))[Q], by_name(expert_stats(path, base=tmp_path / "base"))[Q]
    assert alone.nnz == with_base.nnz == np.count_nonzero(d)
    assert alone.zero_fraction == np.mean(d == 0)
    assert alone.sign_set == (pytest.approx(np.mean(d[d != 0] > 0)) if encoding == "tern1" else None)
    assert (alone.alpha is not None) == (encoding == "tern1")


def test_tensors_without_a_counterpart_of_their_shape_have_no_shift(tmp_path: Path) -> None:
    base = {**tiny_llama(0), "steps": (DType.I64, np.arange(4))}
    tuned = {**shifted(base, 1), "steps": (DType.I64, np.arange(4) + 1), "extra.weight": (DType.F16, np.ones((2, 2)))}
    tuned[HEAD] = (DType.F16, np.concatenate([np.asarray(tuned[HEAD][1]), np.ones((3, 16))]))
    path = made(tmp_path, base, tuned, position=HEAD)
    found = expert_stats(path, base=tmp_path / "base")
    stored = by_name(found)
    assert found.bytes["sign"] == 10 * 2
    assert stored["steps"].shift is None
    assert stored["steps"].nnz is None
    assert stored["extra.weight"].shift is None
    grown = stored[HEAD]
    assert grown.shift is not None
    assert grown.shift.count == grown.nnz == 10 * 16, "the rows that the backbone has"
    assert grown.nbytes == 10 * (2 + 2) + 3 * 16 * 2, "bits and alphas of the old rows, the new rows whole"


def test_pieces_do_not_change_what_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(0, DType.BF16)
    path = made(tmp_path, base, shifted(base, 1, by=0.003), preset="math")
    whole = expert_stats(path, base=tmp_path / "base")
    monkeypatch.setattr(stats, "_PIECE", 24)
    monkeypatch.setattr(stats, "_BITS_PIECE", 3)
    for one, other in zip(whole.tensors, expert_stats(path, base=tmp_path / "base").tensors, strict=True):
        assert one.shift is not None
        assert other.shift is not None
        assert (one.nnz, one.sign_set, one.shift.absorbed) == (other.nnz, other.sign_set, other.shift.absorbed)
        assert one.shift.sum_square == pytest.approx(other.shift.sum_square)


def test_totals_are_the_sums_of_their_tensors(tmp_path: Path) -> None:
    base = tiny_llama(0, DType.BF16)
    path = made(tmp_path, base, shifted(base, 1))
    found = expert_stats(path, base=tmp_path / "base")
    assert sum(totals.tensors for totals in found.roles.values()) == found.total.tensors == len(found.tensors)
    assert sum(totals.nbytes for totals in found.roles.values()) == found.total.nbytes
    alphas = [one.alpha for one in found.tensors if one.alpha is not None]
    assert found.total.alpha is not None
    assert found.total.alpha.count == sum(one.count for one in alphas)
    assert found.total.alpha.min == min(one.min for one in alphas)
    assert found.total.alpha.mean == pytest.approx(
        np.average([a.mean for a in alphas], weights=[a.count for a in alphas])
    )
    assert sum(found.bytes.values()) == found.nbytes == path.stat().st_size


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(0)
    path = made(tmp_path, base, shifted(base, 1))
    with pytest.raises(BackboneMismatch) as refused:
        expert_stats(path, base=tmp_path / "tuned")
    assert refused.value.reason == "base_digest"
    write_checkpoint(tmp_path / "short", {name: value for name, value in base.items() if name != Q})
    with pytest.raises(BackboneMismatch) as refused:
        expert_stats(path, base=tmp_path / "short")
    assert (refused.value.reason, refused.value.where) == ("base_tensor", Q)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    base = tiny_llama(0)
    told: list[tuple[int, int]] = []
    path = made(tmp_path, base, shifted(base, 1))
    expert_stats(path, progress=lambda phase, done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    assert told == sorted(told)


def test_every_valid_vector_can_be_looked_at(subtests: pytest.Subtests) -> None:
    assert len(VECTORS) > 30
    for path in VECTORS:
        with subtests.test(path.stem):
            base = json.loads(path.with_suffix(".json").read_text()).get("base")
            for checkpoint in (None, path.parents[1] / base if base else None):
                found = expert_stats(path, base=checkpoint)
                assert sum(found.bytes.values()) == path.stat().st_size
                assert json.loads(json.dumps(found.as_json(), allow_nan=False))["id"] == found.id


def test_rtvq_is_measured_where_its_base_vector_lies_beside_it(tmp_path: Path) -> None:
    base = tiny_llama(0, DType.BF16)
    folder = write_checkpoint(tmp_path / "base", base)
    tuned = [write_checkpoint(tmp_path / name, shifted(base, seed, by=0.02)) for seed, name in enumerate("ab", 1)]
    compress_rtvq(folder, tuned, tmp_path / "rtvq")
    path = tmp_path / "rtvq" / "a.obm"
    shift = by_name(expert_stats(path, base=folder))[Q].shift
    opened = [open_expert(tmp_path / "rtvq" / name) for name in ("a.obm", "base.obm")]
    with opened[0] as expert, opened[1] as reference, open_checkpoint(folder) as backbone:
        expert.refer_to(reference)
        d, rebuilt = expert.values(Q), to_float32(expert.rebuild(Q, backbone.words(Q)), DType.BF16)
    assert shift is not None
    assert shift.nonzero == np.count_nonzero(d)
    assert shift.moved_fraction == np.mean(rebuilt != floats(base, Q))
    assert shift.sum_abs == pytest.approx(np.abs(d).sum(dtype=np.float64))
    path.rename(tmp_path / "alone.obm")
    assert by_name(expert_stats(tmp_path / "alone.obm", base=folder))[Q].shift is None

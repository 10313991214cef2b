"""`diff_experts` on pairs of experts whose differences are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import Tensors, shifted, tiny_llama, words_of, write_checkpoint

from obm_format import diff
from obm_format.compress import compress_checkpoint
from obm_format.compress.options import parse_compress_options
from obm_format.diff import diff_experts
from obm_format.errors import FormatError
from obm_format.kernels.words import to_float32
from obm_format.model import DType

VECTORS = sorted((Path(__file__).resolve().parents[1] / "spec" / "vectors" / "valid").glob("*.obm"))
Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
BASE = tiny_llama(0, DType.F32)
CONFIG = {"architectures": ["LlamaForCausalLM"], "note": "one"}


def made(path: Path, tuned: Tensors, base: Tensors = BASE, note: str = "one", **options: str) -> Path:
    """An expert at `path`, its checkpoints in a folder beside it."""
    home = path.with_suffix("")
    home.mkdir()
    write_checkpoint(home / "base", base, config=CONFIG)
    write_checkpoint(home / "tuned", tuned, config={**CONFIG, "note": note})
    compress_checkpoint(home / "base", home / "tuned", path, parse_compress_options(**options))
    return path


def shift_of(tuned: Tensors, name: str) -> np.ndarray:
    left, right = (to_float32(words_of(*side[name]), side[name][0]) for side in (tuned, BASE))
    return left - right


def test_the_same_file_is_identical(tmp_path: Path) -> None:
    one = made(tmp_path / "a.obm", shifted(BASE, 1))
    two = made(tmp_path / "b.obm", shifted(BASE, 1))
    found = diff_experts(one, two)
    assert found.identical
    assert found.same_backbone
    assert (found.fields, found.attachments, found.only_a, found.only_b, found.differ) == ({}, (), (), (), ())
    assert found.same == len(BASE)
    assert found.signs is None


def test_task_and_position_are_named(tmp_path: Path) -> None:
    one = made(tmp_path / "a.obm", shifted(BASE, 1), task="one", position="mlp")
    two = made(tmp_path / "b.obm", shifted(BASE, 1), position="attention")
    found = diff_experts(one, two)
    assert not found.identical
    assert found.fields == {"position": ("mlp", "attention"), "task": ("one", None)}
    changed = {tensor.name: tensor for tensor in found.differ}
    assert changed[Q].fields["encoding"] == ("xdelta", "sign1")
    assert set(changed[Q].parts) == {"bits0", "alphas", "data"}
    assert changed[Q].signs is None
    assert "model.norm.weight" not in changed


def test_sign_bits_and_alphas_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "_PIECE", 5)
    tuned, other = shifted(BASE, 1), shifted(BASE, 2, by=0.05)
    other[UP] = tuned[UP]
    one = made(tmp_path / "a.obm", tuned, alpha="mean/row")
    two = made(tmp_path / "b.obm", other, alpha="mean/matrix")
    found = {tensor.name: tensor for tensor in diff_experts(one, two).differ}
    d, e = shift_of(tuned, Q), shift_of(other, Q)
    signs = found[Q].signs
    assert signs is not None
    assert signs.count == d.size
    assert signs.equal_fraction == np.mean((d >= 0) == (e >= 0))
    assert signs.alpha_ratio == pytest.approx(np.abs(e).mean() / np.abs(d).mean(), rel=1e-3)
    assert 0.3 < signs.equal_fraction < 0.7, "chance"
    same = found[UP]
    assert same.signs is not None
    assert same.signs.equal_fraction == 1
    assert (set(same.fields), same.parts) == ({"params"}, ("alphas",))


def test_alphas_count_by_the_elements_that_share_them(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    base: Tensors = {"w": (DType.F32, np.zeros((4, 80)))}
    d = draw.normal(0, 1, (4, 80)) * np.where(np.arange(80) < 64, 1.0, 9.0)  # groups of 64 and of 16 columns
    one = made(tmp_path / "a.obm", {"w": (DType.F32, d)}, base, position="w", alpha="mean/group:64")
    two = made(tmp_path / "b.obm", {"w": (DType.F32, d)}, base, position="w", alpha="mean/matrix")
    (tensor,) = diff_experts(one, two).differ
    assert tensor.signs is not None
    assert tensor.signs.alpha_ratio == pytest.approx(1, rel=1e-3)


def test_sums_count_every_element_once(tmp_path: Path) -> None:
    one, two = made(tmp_path / "a.obm", shifted(BASE, 1)), made(tmp_path / "b.obm", shifted(BASE, 2))
    found = diff_experts(one, two)
    parts = [tensor.signs for tensor in found.differ if tensor.signs is not None]
    assert found.signs is not None
    assert found.signs.count == sum(part.count for part in parts)
    assert found.signs.equal == sum(part.equal for part in parts)


def test_tensors_of_one_side_and_another_backbone(tmp_path: Path) -> None:
    one = made(tmp_path / "a.obm", {**shifted(BASE, 1), "extra.weight": (DType.F32, np.ones((2, 2)))})
    other_base = tiny_llama(5, DType.F32)
    two = made(tmp_path / "b.obm", shifted(other_base, 1), other_base)
    found, back = diff_experts(one, two), diff_experts(two, one)
    assert (found.only_a, found.only_b) == (("extra.weight",), ())
    assert (back.only_a, back.only_b) == ((), ("extra.weight",))
    assert not found.same_backbone
    assert "backbone.fingerprint" in found.fields
    assert "base_sha256" in {field for tensor in found.differ for field in tensor.fields}


def test_attachment_of_the_same_size_is_looked_into(tmp_path: Path) -> None:
    one = made(tmp_path / "a.obm", shifted(BASE, 1), note="two")
    two = made(tmp_path / "b.obm", shifted(BASE, 1), note="six")
    found = diff_experts(one, two)
    assert found.attachments == ("config.json",)
    assert (found.fields, found.differ, found.identical) == ({}, (), False)


def test_damage_behind_the_header_is_no_difference(tmp_path: Path) -> None:
    one = made(tmp_path / "a.obm", shifted(BASE, 1))
    data = bytearray(one.read_bytes())
    data[-70] ^= 1
    (tmp_path / "b.obm").write_bytes(data)
    with pytest.raises(FormatError) as refused:
        diff_experts(one, tmp_path / "b.obm")
    assert refused.value.reason == "part_digest"


def test_every_valid_vector_against_its_neighbour(subtests: pytest.Subtests) -> None:
    for one, two in zip(VECTORS, [*VECTORS[1:], VECTORS[0]], strict=True):
        with subtests.test(one.stem):
            found = diff_experts(one, two)
            assert found.identical == (one.read_bytes() == two.read_bytes())
            assert json.loads(json.dumps(found.as_json(), allow_nan=False))["ids"] == list(found.ids)
            assert diff_experts(one, one).identical

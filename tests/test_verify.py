"""Verification with a backbone: how often each byte is hashed, and that it still finds what is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import Tensors, write_checkpoint

from obm_format import compress_checkpoint, verify_expert
from obm_format.model import DType

SIGN_NAME, EXACT_NAME = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"
SHAPE = (512, 512)


def brains(seed: int, scale: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A backbone with one tensor inside the position and one outside, and an expert."""
    folder = tmp_path_factory.mktemp("verify")
    old = {name: brains(seed, 0.02) for seed, name in enumerate((SIGN_NAME, EXACT_NAME))}
    new = {name: values + brains(9, 1e-3) for name, values in old.items()}
    for side, tensors in (("base", old), ("tuned", new)):
        held: Tensors = {name: (DType.BF16, values) for name, values in tensors.items()}
        write_checkpoint(folder / side, held)
    compress_checkpoint(folder / "base", folder / "tuned", folder / "x.obm")
    return folder / "base", folder / "x.obm"


class Counted:
    """`hashlib.sha256` that counts the bytes it is given."""

    nbytes = 0

    def __init__(self, real: Callable[[], hashlib._Hash], data: bytes | memoryview = b"") -> None:
        self._hash = real()
        self.update(data)

    def update(self, data: bytes | memoryview) -> None:
        Counted.nbytes += memoryview(data).nbytes
        self._hash.update(data)

    def digest(self) -> bytes:
        return self._hash.digest()

    def hexdigest(self) -> str:
        return self.digest().hex()


def test_deep_verification_hashes_the_backbone_once(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base, path = files
    tensor, real = 2 * SHAPE[0] * SHAPE[1], hashlib.sha256
    monkeypatch.setattr(Counted, "nbytes", 0)
    monkeypatch.setattr(hashlib, "sha256", lambda data=b"": Counted(real, data))
    assert verify_expert(path, base=base, deep=True).ok
    # the file as it is and once more as it is decoded, both backbone tensors, the rebuilt exact one, and small change
    assert Counted.nbytes < 2 * path.stat().st_size + 2 * tensor + tensor + 20_000


def test_deep_verification_still_finds_another_backbone(files: tuple[Path, Path], tmp_path: Path) -> None:
    _, path = files
    held: Tensors = {name: (DType.BF16, brains(seed, 0.03)) for seed, name in enumerate((SIGN_NAME, EXACT_NAME))}
    write_checkpoint(tmp_path / "other", held)
    found = verify_expert(path, base=tmp_path / "other", deep=True)
    assert {defect.reason for defect in found.defects} == {"base_digest"}


def test_damaged_part_and_wrong_backbone_are_both_listed(files: tuple[Path, Path], tmp_path: Path) -> None:
    base, path = files
    data = bytearray(path.read_bytes())
    data[-64] ^= 1  # the last part
    (tmp_path / "x.obm").write_bytes(data)
    others: Tensors = {name: (DType.BF16, brains(7, 0.02)) for name in (SIGN_NAME, EXACT_NAME)}
    write_checkpoint(tmp_path / "other", others)
    found = verify_expert(tmp_path / "x.obm", base=tmp_path / "other").defects
    assert sorted(defect.reason for defect in found) == ["base_digest", "base_digest", "part_digest"]
    assert [defect.reason for defect in verify_expert(tmp_path / "x.obm", base=base).defects] == ["part_digest"]


def test_without_the_digests_nothing_is_held_against_the_backbone(files: tuple[Path, Path], tmp_path: Path) -> None:
    base, path = files
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1
    (tmp_path / "x.obm").write_bytes(data)
    found = verify_expert(tmp_path / "x.obm", base=base, deep=True).defects
    assert [(defect.reason, defect.where) for defect in found] == [("part_digest", "#digests")]

"""`obm convert` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint
from safetensors.numpy import load_file, save_file

from obm_cli.main import main
from obm_format.model import DType


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a backbone and a delta."""
    write_checkpoint(tmp_path / "base", {"a.weight": (DType.F32, np.ones((2, 3))), "b": (DType.F16, np.ones(4))})
    save_file({"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}, tmp_path / "d.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_and_back(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["convert", "d.safetensors", "-o", "x.obm", "--from", "delta", "--base", "base", "--task", "sum", "--json"]
    assert main(words) == 0
    made = json.loads(capfd.readouterr().out)
    assert made["schema"] == "obm.convert/1"
    assert made["nbytes"] == (folder / "x.obm").stat().st_size
    assert (made["task"], made["source"], made["encodings"]) == ("sum", "delta", {"raw": 1, "zero": 1})
    assert main(["verify", "x.obm", "--base", "base", "--deep"]) == 0
    assert main(["materialize", "--base", "base", "--expert", "x.obm", "-o", "merged"]) == 0
    merged = load_file(folder / "merged" / "model.safetensors")
    assert np.array_equal(merged["a.weight"], np.arange(6).reshape(2, 3) + 1)
    capfd.readouterr()
    assert main(["convert", "x.obm", "-o", "back", "--to", "delta", "--base", "base", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["n_tensors"] == 1
    found = load_file(folder / "back" / "delta.safetensors")
    assert np.array_equal(found["a.weight"], np.arange(6).reshape(2, 3))


def test_report_for_people(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "d.safetensors", "-o", "x.obm", "--from", "delta", "--base", "base"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("wrote x.obm: ")
    assert "1 raw, 1 zero" in out
    assert main(["convert", "x.obm", "-o", "back", "--to", "delta", "--base", "base"]) == 0
    assert capfd.readouterr().out == "wrote back: 1 tensors as delta\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--base", "base"],
        ["--base", "base", "--from", "delta", "--to", "delta"],
        ["--base", "base", "--to", "delta", "--task", "t"],
        ["--base", "base", "--from", "delta", "--ref", "d.safetensors"],
        ["--base", "base", "--from", "gguf"],
        ["--base", "base", "--from", "delta", "--encoding", "sign1"],
        ["--base", "base", "--from", "peft-lora", "--encoding", "tern1"],
        ["--from", "delta"],
    ],
)
def test_wrong_words_are_a_usage_error(folder: Path, words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "d.safetensors", "-o", "x.obm", *words, "--json"]) == 2
    assert json.loads(capfd.readouterr().err)["reason"] == "usage"
    assert not (folder / "x.obm").exists()


def test_torch_file_is_read_under_its_own_flag_only(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.save({"a.weight": torch.ones(2, 3)}, folder / "d.pt")
    assert main(["convert", "d.pt", "-o", "x.obm", "--from", "delta", "--base", "base", "--json"]) == 4
    assert json.loads(capfd.readouterr().err)["reason"] == "pickle_refused"

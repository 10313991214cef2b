"""`obm compress --budget` as a user runs it: it fits, says what it chose and why, and refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import save_model, tiny_llama, tuned

from obm_cli.main import main


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    save_model(tiny_llama(0), place / "base")
    save_model(tuned(tiny_llama(0), 1), place / "math")
    return place


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder beside which a real tiny Llama and its fine-tune lie."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "math"):
        Path(name).symlink_to(models / name)
    return tmp_path


@pytest.mark.parametrize("budget", ["0.2", "25%", "20kB", "30000", "0.9"])
def test_file_fits_and_choices_are_listed(folder: Path, budget: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "base", "math", "-o", "x.obm", "--budget", budget, "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    limit = {"0.2": 0.2, "25%": 0.25, "0.9": 0.9}.get(budget, 0) * report["dense_nbytes"] or int(
        budget.replace("kB", "000")
    )
    assert report["nbytes"] == Path("x.obm").stat().st_size <= limit
    assert {one["name"] for one in report["choices"]} >= {"model.layers.0.mlp.up_proj.weight", "model.norm.weight"}
    assert main(["verify", "x.obm", "--base", "base", "--deep"]) == 0
    assert main(["materialize", "--base", "base", "--expert", "x.obm", "-o", "out"]) == 0


def test_table_says_what_and_why(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "base", "math", "-o", "x.obm", "--budget", "0.3"]) == 0
    said = capfd.readouterr().out
    for word in ("budget", "is the least", "STORED AS", "KEPT", "OF SHIFT", "first the whole shift", "next"):
        assert word in said


@pytest.mark.parametrize(
    ("flags", "reason", "word"),
    [
        (["--budget", "100"], "budget_too_small", "at least"),
        (["--budget", "0.0001"], "budget_too_small", "at least"),
        (["--budget", "many"], "usage", "12MB"),
        (["--budget", "0.2", "--encoding", "tern1"], "usage", "--encoding"),
        (["--budget", "0.2", "--planes", "1"], "usage", "--planes"),
        (["--budget", "0.2", "--gain", "1"], "usage", "--gain"),
        (["--budget", "0.2", "--rtvq", "3+2"], "usage", "--budget"),
    ],
)
def test_refused_in_one_line(
    folder: Path, flags: list[str], reason: str, word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", "base", "math", "-o", "x.obm", *flags]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert word in err
    assert main(["compress", "base", "math", "-o", "x.obm", *flags, "--json"]) == 2
    assert json.loads(capfd.readouterr().err)["reason"] == reason
    assert sorted(path.name for path in folder.iterdir()) == ["base", "math"]


def test_budget_keeps_to_position_and_rest(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--budget", "0.9", "--position", "mlp", "--rest", "exact"]
    assert main(["compress", "base", "math", "-o", "x.obm", *flags, "--json"]) == 0
    assert {one["role"] for one in json.loads(capfd.readouterr().out)["choices"]} == {"mlp"}

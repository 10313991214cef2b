"""`obm materialize`: the flags of the methods, soft routes, dry runs, dense fine-tunes and mergekit's YAML."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import shifted, tiny_llama, write_checkpoint

from obm_cli.commands import materialize as command
from obm_cli.main import main
from obm_format.checkpoint import open_checkpoint
from obm_format.kernels.words import to_float32
from obm_format.model import DType

Ask = Callable[..., tuple[int, dict[str, Any], dict[str, Any]]]
NAME = "model.norm.weight"
BASE = ("--base", "base", "--expert", "math", "--expert", "chat")


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    """Run `obm materialize --json` in a folder with a backbone and two dense fine-tunes: status, stdout, error."""
    base = tiny_llama(0, DType.F32)
    write_checkpoint(tmp_path / "base", base, config={"architectures": ["LlamaForCausalLM"]})
    for seed, name in enumerate(("math", "chat"), start=1):
        write_checkpoint(tmp_path / name, shifted(base, seed), config={"architectures": ["LlamaForCausalLM"]})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))

    def run(*args: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
        capfd.readouterr()
        status = main(["materialize", *args, "--json"])
        out, err = capfd.readouterr()
        return status, json.loads(out or "{}"), json.loads(err.splitlines()[-1]) if status else {}

    return run


def values(folder: str) -> np.ndarray:
    with open_checkpoint(folder) as found:
        return to_float32(found.words(NAME), DType.F32).copy()


def test_flags_reach_the_recipe(ask: Ask) -> None:
    flags = ["--method", "ties", "--density", "0.5", "--density", "math=0.25", "--weight", "chat=-2"]
    flags += ["--trim-scope", "global", "--cut", "exact", "--weights", "after", "--rescale", "l1", "--lam", "0.5"]
    status, made, _ = ask(*BASE, *flags, "-o", "out")
    assert (status, made["method"], made["lam"]) == (0, "ties", 0.5)
    again = ["--method", "ties", "--density", "#1=0.25", "--density", "#2=0.5", "--weight", "#2=-2", "--density", "0.5"]
    assert ask(*BASE, *again, *flags[8:], "-o", "same")[1]["recipe"] == made["recipe"]
    assert np.array_equal(values("out"), values("same"))


@pytest.mark.parametrize("peer", ["official", "mergekit", "peft"])
def test_compat_is_taken(ask: Ask, peer: str) -> None:
    assert ask(*BASE, "--method", "ties", "--density", "0.5", "--compat", peer, "-o", "out")[0] == 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--density", "0.5", "--density", "0.6"], "usage"),
        (["--density", "x=y"], "bad_recipe"),
        (["--density", "much"], "bad_recipe"),
        (["--weight", "3"], "usage"),
        (["--density", "nobody=0.5"], "bad_recipe"),
        (["--cut", "matrix"], "bad_recipe"),
    ],
)
def test_bad_flags_are_usage(ask: Ask, flags: list[str], reason: str) -> None:
    status, _, error = ask(*BASE, "--method", "ties", *flags, "-o", "out")
    assert (status, error["reason"]) == (2, reason)
    assert not Path("out").exists()


def test_soft_route_by_weights(ask: Ask) -> None:
    status, made, _ = ask(*BASE, "--route", "soft", "--weight", "math=0.75", "--weight", "chat=0.25", "-o", "out")
    assert (status, made["method"], made["route"]) == (0, "routing", "soft")
    base, math, chat = (values(name) for name in ("base", "math", "chat"))
    wanted = base + (np.float32(0.75) * (math - base) + np.float32(0.25) * (chat - base))
    assert np.array_equal(values("out"), wanted)
    assert ask(*BASE, "--route", "soft", "-o", "none")[2]["reason"] == "route_needed"


def test_soft_route_by_a_router(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tiny_models import WORDS, save_model, tiny_llama, tuned

    from obm_format.route import load_router, train_router

    monkeypatch.chdir(tmp_path)
    save_model(tiny_llama(), tmp_path / "base")
    for seed, name in enumerate(("colour", "number"), 1):
        save_model(tuned(tiny_llama(), seed), tmp_path / name)
    prompts = {
        "colour": [f"the {word} thing" for word in WORDS[:6]],
        "number": [f"{word} is a" for word in WORDS[6:12]],
    }
    train_router("base", prompts, "r.obm")
    text = "the red thing and one"
    experts = ("materialize", "--base", "base", "--expert", "colour", "--expert", "number", "--json")
    assert main([*experts, "--router", "r.obm", "--input", text, "--route", "soft", "-o", "soft"]) == 0
    by_router = json.loads(capfd.readouterr().out)
    (decision,) = load_router("r.obm").route([text], "base")
    weights = [flag for name, p in decision.probabilities.items() for flag in ("--weight", f"{name}={p!r}")]
    assert main([*experts, "--route", "soft", *weights, "-o", "given"]) == 0
    given = json.loads(capfd.readouterr().out)
    assert (by_router["route"], by_router["recipe"]) == ("soft", given["recipe"])
    assert main([*experts, "--router", "r.obm", "--input", text, "--route", "colour", "-o", "hard"]) == 0
    assert json.loads(capfd.readouterr().out)["route"] == "colour"


def test_dry_run_says_what_it_takes(ask: Ask) -> None:
    flags = ("--method", "ties", "--density", "0.5", "--trim-scope", "global")
    status, would, _ = ask(*BASE, *flags, "--dry-run", "-o", "out", "--threads", "1")
    assert (status, would["dry_run"], would["refused"], would["looks"]) == (0, True, [], 2)
    assert not Path("out").exists()
    made = ask(*BASE, *flags, "-o", "out", "--threads", "1")[1]
    assert (would["bytes_read"], would["bytes_written"]) == (made["bytes_read"], made["bytes_written"])


def test_dry_run_lists_refusals_and_exits_as_the_first(ask: Ask) -> None:
    Path("out").mkdir()
    Path("out/x").touch()
    status, would, error = ask(*BASE, "--method", "ties", "--dry-run", "-o", "out")
    assert [one["reason"] for one in would["refused"]] == ["exists"]
    assert (status, error["reason"]) == (7, "exists")
    assert would["bytes_written"] > 0
    status, would, error = ask(*BASE, "--dry-run")
    assert [one["reason"] for one in would["refused"]] == ["route_needed"]
    assert (status, "bytes_written" in would) == (2, False)


def test_dry_run_for_people(ask: Ask, capfd: pytest.CaptureFixture[str]) -> None:
    del ask
    assert main(["materialize", *BASE, "--method", "average", "--dry-run"]) == 0
    shown = capfd.readouterr().out
    assert "would write" in shown
    assert "memory" in shown
    assert "refused   nothing" in shown


def test_mergekit_yaml_from_file(ask: Ask) -> None:
    Path("m.yml").write_text(
        "merge_method: task_arithmetic\nbase_model: base\nmodels:\n"
        "- model: math\n  parameters: {weight: 0.5}\n- model: chat\n  parameters: {weight: 2.0}\ndtype: float32\n"
    )
    status, made, _ = ask("m.yml", "-o", "out")
    assert (status, made["method"], made["lam"]) == (0, "task-arithmetic", 1.0)
    base, math, chat = (values(name) for name in ("base", "math", "chat"))
    wanted = base + (np.float32(0.5) * (math - base) + np.float32(2) * (chat - base))
    assert np.array_equal(values("out"), wanted)
    Path("bad.yml").write_text("merge_method: slerp\nmodels: [{model: math}]\n")
    status, _, error = ask("bad.yml", "-o", "none")
    assert (status, error["reason"], error["where"]) == (2, "bad_recipe", "merge_method")


def test_output_reasons_are_reasons() -> None:
    from obm_format.errors import REASONS

    assert set(REASONS) >= command.OUTPUT_REASONS

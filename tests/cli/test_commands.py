"""The commands as a user runs them: one expert from compress to materialize, and every refusal in one line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import shifted, tiny_llama, write_checkpoint
from click.testing import CliRunner, Result

from obm_cli.main import COMMANDS, cli, main
from obm_format.checkpoint import open_checkpoint
from obm_format.model import DType

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a backbone, two fine-tunes, and an empty home."""
    base = tiny_llama(0, DType.BF16)
    write_checkpoint(tmp_path / "base", base, config={"architectures": ["LlamaForCausalLM"]})
    for seed, name in enumerate(("math", "chat"), start=1):
        write_checkpoint(tmp_path / name, shifted(base, seed), config={"architectures": ["LlamaForCausalLM"]})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OBM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OBM_REGISTRY", raising=False)
    return tmp_path


def ok(capfd: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """Run a command with --json; its exit status must be 0. Its JSON."""
    capfd.readouterr()
    status = main([*args, "--json"])
    out, err = capfd.readouterr()
    assert status == 0, err
    payload = json.loads(out)
    assert isinstance(payload, dict)
    return payload


def refused(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    """Run a command with --json; it must fail with one JSON error on stderr. Exit status and error."""
    capfd.readouterr()
    status = main([*args, "--json"])
    out, err = capfd.readouterr()
    assert out == ""
    error = json.loads(err.splitlines()[-1])
    assert error["schema"] == "obm.error/1"
    assert error["code"] == status != 0
    return status, error


def test_a_backbone_with_its_weights_there_and_back(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bare = ok(capfd, "backbone", "add", "base", "acme/tiny")
    assert bare["weights_digest"] is None
    status, error = refused(capfd, "backbone", "pull", "acme/tiny", "-o", "again")
    assert (status, error["reason"]) == (3, "not_found")
    added = ok(capfd, "backbone", "add", "base", "acme/tiny", "--with-weights")
    assert added["manifest_digest"] == bare["manifest_digest"]
    pulled = ok(capfd, "backbone", "pull", "acme/tiny", "-o", "again")
    assert (pulled["schema"], pulled["folder"]) == ("obm.backbone-pull/1", "again")
    assert (
        pulled["weights_digest"]
        == added["weights_digest"]
        == ok(capfd, "backbone", "show", "acme/tiny")["weights_digest"]
    )
    with open_checkpoint("base") as first, open_checkpoint("again") as second:
        assert first.table() == second.table()
    assert main(["backbone", "pull", "acme/tiny"]) == 0
    assert (folder / "tiny" / "config.json").is_file()
    assert main(["backbone", "show", "acme/tiny"]) == 0


def test_whole_way_of_an_expert(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = ok(capfd, "compress", "base", "math", "-o", "math.obm", "--task", "math")
    assert made["schema"] == "obm.compress/1"
    assert sum(made["bytes"].values()) == made["nbytes"] == (folder / "math.obm").stat().st_size
    ok(capfd, "compress", "base", "chat", "-o", "chat.obm", "--task", "chat", "--preset", "chat")

    seen = ok(capfd, "inspect", "math.obm")
    assert seen["id"] == made["id"]
    assert {"name", "dtype", "shape", "mode", "encoding", "params", "parts", "base_sha256", "out_sha256"} == set(
        seen["tensors"][0]
    )
    assert ok(capfd, "verify", "math.obm", "--base", "base", "--deep")["ok"] is True

    added = ok(capfd, "backbone", "add", "base", "acme/tiny")
    assert added["fingerprint"] == made["backbone"]["fingerprint"]
    pushed = ok(capfd, "push", "math.obm", "acme/tiny:math-v1")
    ok(capfd, "push", "chat.obm", "acme/tiny:chat-v1")
    assert [one["ref"] for one in ok(capfd, "ls", "acme/tiny")["experts"]] == [
        "acme/tiny:chat-v1",
        "acme/tiny:math-v1",
    ]
    pulled = ok(capfd, "pull", "acme/tiny:math-v1", "-o", "back.obm")
    assert pulled["id"] == pushed["id"] == made["id"]
    assert (folder / "back.obm").read_bytes() == (folder / "math.obm").read_bytes()

    report = ok(
        capfd, "materialize", "--base", "base", "--expert", "acme/tiny:math-v1", "--expert", "chat.obm",
        "--route", "math", "-o", "merged", "--report", "report.json",
    )  # fmt: skip
    assert (report["method"], report["route"], report["lam"]) == ("1bit-merging", "math", 0.1)
    assert json.loads((folder / "report.json").read_text()) == report
    with open_checkpoint(folder / "merged") as merged, open_checkpoint(folder / "base") as base:
        assert merged.tensors == base.tensors


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
def test_position_none_then_routing_returns_the_fine_tune_bit_for_bit(
    folder: Path, capfd: pytest.CaptureFixture[str], dtype: DType
) -> None:
    base = dict(tiny_llama(3, dtype))
    tuned = shifted(base, 4)
    values = np.array(tuned["model.norm.weight"][1])
    values[:3] = (-0.0, 0.0, 1e-7)
    tuned["model.norm.weight"] = (dtype, values)
    write_checkpoint(folder / "b", base)
    write_checkpoint(folder / "t", tuned)
    ok(capfd, "compress", "b", "t", "-o", "x.obm", "--position", "none")
    ok(capfd, "materialize", "--base", "b", "--expert", "x.obm", "--method", "routing", "-o", "out")
    with open_checkpoint(folder / "out") as out, open_checkpoint(folder / "t") as expected:
        assert out.tensors == expected.tensors
        for name in expected.tensors:
            np.testing.assert_array_equal(out.words(name), expected.words(name))


def test_explicit_route_goes_before_the_router(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ok(capfd, "compress", "base", "math", "-o", "math.obm", "--task", "math")
    asked = ("materialize", "--base", "base", "--expert", "math.obm", "--router", "none.obm", "--input", "text")
    assert refused(capfd, *asked, "-o", "out")[1]["reason"] == "not_found"
    assert ok(capfd, *asked, "--route", "math", "-o", "out")["route"] == "math"
    assert ok(capfd, *asked, "--route", "none", "-o", "bare")["route"] is None


def test_report_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ok(capfd, "compress", "base", "math", "-o", "math.obm", "--task", "math")
    asked = ("materialize", "--base", "base", "--expert", "math.obm", "-o", "out", "--report")
    for report, where, reason in (("no/report.json", "no", "not_found"), ("base", "base", "usage")):
        error = refused(capfd, *asked, report)[1]
        assert (error["where"], error["reason"]) == (where, reason)
        assert not (folder / "out").exists()
    made = ok(capfd, *asked, "out/report.json")
    assert json.loads((folder / "out" / "report.json").read_text()) == made


def test_same_bytes_from_another_folder(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ok(capfd, "compress", "base", "math", "-o", "a.obm", "--task", "math")
    (folder / "elsewhere").mkdir()
    (folder / "math").rename(folder / "elsewhere" / "tuned")
    ok(capfd, "compress", "base", "elsewhere/tuned", "-o", "elsewhere/b.obm", "--task", "math")
    assert (folder / "a.obm").read_bytes() == (folder / "elsewhere" / "b.obm").read_bytes()


def test_recipe_file_and_dry_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("math", "chat"):
        ok(capfd, "compress", "base", name, "-o", f"{name}.obm", "--task", name)
    (folder / "r.yaml").write_text("backbone: base\nexperts: [math.obm, chat.obm]\nmethod: ties\nlambda: '0.5'\n")
    planned = ok(capfd, "materialize", "r.yaml", "--dry-run")
    assert not (folder / "out").exists()
    made = ok(capfd, "materialize", "r.yaml", "-o", "out")
    assert made["lam"] == 0.5
    assert made["bytes_written"] == planned["bytes_written"]


REFUSALS = {
    "no weights": (["compress", "empty", "math", "-o", "x.obm"], 3, "no_weights"),
    "no such folder": (["compress", "nowhere", "math", "-o", "x.obm"], 3, "not_found"),
    "pickle": (["compress", "base", "pickled", "-o", "x.obm"], 4, "pickle_refused"),
    "NaN": (["compress", "base", "broken", "-o", "x.obm"], 4, "not_finite_input"),
    "tensor missing": (["compress", "base", "short", "-o", "x.obm"], 5, "tensor_missing"),
    "shape differs": (["compress", "base", "wide", "-o", "x.obm"], 5, "shape_differs"),
    "position matches nothing": (
        ["compress", "base", "math", "-o", "x.obm", "--position", "*.nothing"], 2, "bad_position",
    ),
    "unknown architecture": (["compress", "odd", "odd2", "-o", "x.obm"], 2, "unknown_architecture"),
    "truncated": (["inspect", "cut.obm"], 4, "truncated"),
    "not an expert": (["inspect", "base/model.safetensors"], 4, "not_obm"),
    "wrong backbone": (
        ["materialize", "--base", "math", "--expert", "good.obm", "-o", "out"], 5, "base_digest",
    ),
    "several experts, no route": (
        ["materialize", "--base", "base", "--expert", "good.obm", "--expert", "chat.obm", "-o", "out"],
        2, "route_needed",
    ),
    "backbone unknown": (["push", "good.obm", "acme/other:v1"], 5, "backbone_unknown"),
    "other backbone": (["push", "good.obm", "acme/mathbase:v1"], 5, "backbone_mismatch"),
    "tag exists": (["push", "chat.obm", "acme/tiny:math-v1"], 7, "tag_exists"),
    "no valid REF": (["push", "good.obm", "Acme//tiny"], 2, "bad_ref"),
    "unknown REF": (["pull", "acme/tiny:nothing"], 3, "not_found"),
    "unknown method": (
        ["materialize", "--base", "base", "--expert", "good.obm", "--method", "magic", "-o", "out"], 2, "bad_recipe",
    ),
    "missing flag": (["compress", "base", "math"], 2, "usage"),
    "another registry": (["ls", "--registry", "http://registry.example"], 2, "usage"),
}  # fmt: skip


@pytest.fixture
def faulty(folder: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """The working folder with one of everything that can be wrong, and two published experts."""
    base = dict(tiny_llama(0, DType.BF16))
    (folder / "empty").mkdir()
    (folder / "pickled").mkdir()
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    broken = np.array(base["lm_head.weight"][1], np.float32)
    broken[2, 3] = np.nan
    write_checkpoint(folder / "broken", base | {"lm_head.weight": (DType.BF16, broken)})
    write_checkpoint(folder / "short", {n: t for n, t in base.items() if "norm" not in n})
    wide = np.zeros((16, 17), np.float32)
    write_checkpoint(folder / "wide", base | {"model.layers.0.self_attn.q_proj.weight": (DType.BF16, wide)})
    write_checkpoint(folder / "odd", {"thing.weight": (DType.F32, np.ones((4, 4)))})
    write_checkpoint(folder / "odd2", {"thing.weight": (DType.F32, np.zeros((4, 4)))})
    ok(capfd, "compress", "base", "math", "-o", "good.obm", "--task", "math")
    ok(capfd, "compress", "base", "chat", "-o", "chat.obm", "--task", "chat")
    (folder / "cut.obm").write_bytes((folder / "good.obm").read_bytes()[:-100])
    ok(capfd, "backbone", "add", "base", "acme/tiny")
    ok(capfd, "backbone", "add", "math", "acme/mathbase")
    ok(capfd, "push", "good.obm", "acme/tiny:math-v1")
    return folder


def entries(folder: Path) -> set[str]:
    """Everything below a folder, the registry's own bookkeeping aside."""
    return {
        os.path.relpath(Path(root) / name, folder)
        for root, _, names in os.walk(folder)
        for name in names
        if "registry.sqlite3" not in name
    }


def test_bad_input_gets_one_line_its_exit_code_and_leaves_nothing(
    faulty: Path, capfd: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    before = entries(faulty)
    for name, (args, status, reason) in REFUSALS.items():
        with subtests.test(name):
            got, error = refused(capfd, *args)
            assert (got, error["reason"]) == (status, reason)
            assert "\n" not in error["message"]
            assert entries(faulty) == before


def test_nan_is_named_with_tensor_and_index(faulty: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "base", "broken", "-o", "x.obm"]) == 4
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert "lm_head.weight" in line
    assert str(2 * 16 + 3) in line


def test_altered_expert_is_listed_and_exits_4(faulty: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray((faulty / "good.obm").read_bytes())
    data[-70] ^= 1
    (faulty / "bad.obm").write_bytes(data)
    capfd.readouterr()
    assert main(["verify", "bad.obm", "--json"]) == 4
    found = json.loads(capfd.readouterr().out)
    assert found["ok"] is False
    assert found["defects"][0]["reason"] in {"part_digest", "pad_not_zero"}


def test_verify_mmap_finds_the_same_without_reading(
    faulty: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray((faulty / "good.obm").read_bytes())
    data[-70] ^= 1
    (faulty / "bad.obm").write_bytes(data)
    statuses = [main(["verify", name, "--json"]) for name in ("good.obm", "bad.obm")]
    read = capfd.readouterr().out

    def no_reading(*_: object) -> int:
        raise OSError(errno.EIO, "read")

    monkeypatch.setattr(os, "preadv", no_reading)
    assert [main(["verify", name, "--mmap", "--json"]) for name in ("good.obm", "bad.obm")] == statuses == [0, 4]
    assert capfd.readouterr().out == read


def test_every_command_has_the_help_line_that_the_list_shows() -> None:
    for name, line in COMMANDS.items():
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0
        assert line in " ".join(result.output.split())


def test_unknown_command_names_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["comprss"]) == 2
    assert "compress" in capfd.readouterr().err

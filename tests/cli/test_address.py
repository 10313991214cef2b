"""Experts at http addresses on the command line: read like files, refused with their own exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import shifted, tiny_llama, write_checkpoint
from range_server import RangeServer, serving

from obm_cli.main import main
from obm_format.expert import open_expert


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OBM_OFFLINE", raising=False)
    write_checkpoint(tmp_path / "base", tiny_llama(1))
    write_checkpoint(tmp_path / "tuned", shifted(tiny_llama(1), 2))
    assert main(["compress", "base", "tuned", "-o", "x.obm", "--json"]) == 0
    good = Path("x.obm").read_bytes()
    bad = bytearray(good)
    with open_expert(good) as expert:
        bad[expert.header.parts["model.layers.0.mlp.up_proj.weight#bits0"].offset] ^= 1
    with serving(
        {"/x.obm": good, "/bad.obm": bytes(bad), "/cut.obm": good[:-64], "/page.obm": b"<html>" * 50}
    ) as state:
        yield state


@pytest.mark.parametrize("command", ["inspect", "verify", "stats"])
def test_same_output_as_for_the_file(server: RangeServer, command: str, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main([command, "x.obm", "--json"]) == 0
    local = json.loads(capfd.readouterr().out)
    assert main([command, f"{server.url}/x.obm", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == local
    assert main([command, f"{server.url}/x.obm"]) == 0


def test_diff_of_file_and_address(server: RangeServer, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main(["diff", "x.obm", f"{server.url}/x.obm", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["identical"] is True


@pytest.mark.parametrize(
    ("command", "path", "mode", "status", "reason"),
    [
        ("inspect", "cut.obm", "good", 4, "truncated"),
        ("inspect", "page.obm", "good", 4, "header_too_large"),
        ("inspect", "nothing.obm", "good", 3, "not_found"),
        ("inspect", "x.obm", "broken", 8, "network"),
        ("stats", "x.obm", "other_range", 8, "network"),
        ("stats", "bad.obm", "good", 4, "part_digest"),
        ("diff", "x.obm", "denied", 6, "denied"),
        ("verify", "x.obm", "short", 8, "network"),
    ],
)
def test_exit_codes(
    server: RangeServer, command: str, path: str, mode: str, status: int, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    server.mode = mode
    args = [command, *(["x.obm"] if command == "diff" else []), f"{server.url}/{path}"]
    capfd.readouterr()
    assert main([*args, "--json"]) == status
    assert json.loads(capfd.readouterr().err)["reason"] == reason
    assert main(args) == status
    assert capfd.readouterr().err.count("\n") == 1


def test_an_address_cannot_be_mapped(server: RangeServer, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main(["verify", f"{server.url}/x.obm", "--mmap", "--json"]) == 2
    assert "--mmap" in json.loads(capfd.readouterr().err)["hint"]


def test_damage_behind_an_address_is_listed(server: RangeServer, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main(["verify", f"{server.url}/bad.obm", "--json"]) == 4
    assert [one["reason"] for one in json.loads(capfd.readouterr().out)["defects"]] == ["part_digest"]


def test_offline_is_honoured(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OBM_OFFLINE", "1")
    assert main(["inspect", f"{server.url}/x.obm"]) == 8
    assert "OBM_OFFLINE" in capfd.readouterr().err
    assert server.asked == []

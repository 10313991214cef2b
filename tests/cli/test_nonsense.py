"""Nonsense in place of every input of the format's tools: one line, its exit code, nothing written, no waiting."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
from checkpoints import shifted, tiny_llama, write_checkpoint

from obm_cli.main import main

NONSENSE = ["empty.obm", "folder.obm", "fifo.obm", "zip.obm", "cut.obm", "header.obm", "weights.obm", "none.obm", ""]
CODES = {"empty.obm": 4, "folder.obm": 1, "fifo.obm": 1, "none.obm": 3, "": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nonsense")
    write_checkpoint(folder / "base", tiny_llama(1))
    write_checkpoint(folder / "other", tiny_llama(9))
    write_checkpoint(folder / "tuned", shifted(tiny_llama(1), 2))
    assert main(["compress", str(folder / "base"), str(folder / "tuned"), "-o", str(folder / "good.obm")]) == 0
    good = (folder / "good.obm").read_bytes()
    (folder / "empty.obm").touch()
    (folder / "folder.obm").mkdir()
    os.mkfifo(folder / "fifo.obm")
    with zipfile.ZipFile(folder / "zip.obm", "w") as packed:
        packed.writestr("data.pkl", b"no pickle")
    (folder / "cut.obm").write_bytes(good[:-64])
    (folder / "header.obm").write_bytes(good[:1000])
    (folder / "weights.obm").write_bytes((folder / "base" / "model.safetensors").read_bytes())
    return folder


def refused(args: list[str], status: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Both for people and as JSON: one line on stderr, nothing on stdout."""
    before = sorted(Path().iterdir())
    capfd.readouterr()
    assert main(args) == status, args
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), args
    assert main([*args, "--json"]) == status
    assert json.loads(capfd.readouterr().err)["code"] == status
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("name", NONSENSE)
def test_in_place_of_an_expert(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    status = CODES.get(name, 4)
    for args in (["inspect", name], ["stats", name], ["diff", "good.obm", name], ["diff", name, "good.obm"]):
        refused(args, status, capfd)
    if name:
        refused(["convert", name, "--to", "delta", "--base", "base", "-o", "out"], status, capfd)
    # a file that can be read is judged, and what is wrong with it is the result
    capfd.readouterr()
    assert main(["verify", name, "--json"]) == status
    out, err = capfd.readouterr()
    assert len(json.loads(out)["defects"] if status == 4 else [err]) == 1


@pytest.mark.parametrize("name", [name for name in NONSENSE if name not in ("weights.obm", "")] + ["good.obm"])
def test_in_place_of_a_checkpoint(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    status = {"folder.obm": 3, "none.obm": 3}.get(name, 4)
    for args in (
        ["compress", "base", name, "-o", "out.obm"],
        ["compress", name, "tuned", "-o", "out.obm", "--budget", "9kB"],
        ["verify", "good.obm", "--base", name],
        ["stats", "good.obm", "--base", name],
        ["convert", name, "--from", "delta", "--base", "base", "-o", "out.obm"],
    ):
        refused(args, status, capfd)
    refused(["convert", name, "--from", "peft-lora", "--base", "base", "-o", "out.obm"], 3, capfd)
    torch_status = 3 if name in ("folder.obm", "fifo.obm", "none.obm") else 4
    refused(["convert", name, "--from", "bitdelta", "--base", "base", "-o", "out.obm"], torch_status, capfd)


def test_wrong_backbone(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    refused(["stats", "good.obm", "--base", "other"], 5, capfd)
    refused(["convert", "good.obm", "--to", "delta", "--base", "other", "-o", "out"], 5, capfd)
    capfd.readouterr()
    assert main(["verify", "good.obm", "--base", "other"]) == 5
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == len(tiny_llama(1)) + 1
    assert lines[-1].endswith("defects")


def test_place_in_a_message_stands_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    capfd.readouterr()
    assert main(["verify", "empty.obm"]) == 4
    first, last = capfd.readouterr().out.splitlines()
    assert first.count("empty.obm") == 1
    assert last == "empty.obm: 1 defect"


# Every command that reads a file or folder, with MISSING where its name stands, and every one that writes, with OUT.
READING = """
compress MISSING tuned -o out.obm | compress base MISSING -o out.obm | inspect MISSING.obm | verify MISSING.obm
verify good.obm --base MISSING | verify good.obm --ref MISSING | verify good.obm --key MISSING | stats MISSING.obm
stats good.obm --base MISSING | diff MISSING.obm good.obm | diff good.obm MISSING.obm
convert MISSING --from delta --base base -o out.obm | convert MISSING --to delta --base base -o out
convert MISSING --from peft-lora --base base -o out.obm | convert MISSING --from bitdelta --base base -o out.obm
convert tuned --from delta --base MISSING -o out.obm | convert good.obm --to delta --base MISSING -o out
materialize MISSING -o out | materialize --base MISSING --expert good.obm -o out
materialize --base base --expert MISSING.obm -o out | materialize --base base --expert good.obm --ref MISSING -o out
materialize --base base --expert good.obm --router MISSING.obm --input x -o out
route train --base base --prompts a=MISSING --prompts b=MISSING -o out.obm
route eval --router MISSING.obm --base base --prompts a=MISSING | route predict --router MISSING.obm --base base x
backbone add MISSING acme/base | push MISSING acme/base:v1 | push good.obm acme/base:v1 --ref MISSING
sign good.obm --key MISSING | sign MISSING.obm --key MISSING
login example.com --token-file MISSING --unchecked | serve --port 0 --tls-cert MISSING --tls-key MISSING
"""
WRITING = """
compress base tuned -o OUT.obm | compress base tuned tuned --rtvq 3+2 -o OUT --task a --task b
stats good.obm --html OUT
convert good.obm --to delta --base base -o OUT | convert tuned --from delta --base base -o OUT.obm
materialize --base base --expert good.obm -o OUT | materialize --base base --expert good.obm -o out --report OUT
pull acme/base:v1 -o OUT.obm | backbone pull acme/base -o OUT
route train --base base --prompts a=p --prompts b=p -o OUT.obm | sign --new-key OUT
"""


def commands(text: str) -> list[str]:
    return [command.strip() for command in text.replace("\n", " | ").split("|") if command.strip()]


@pytest.fixture
def alone(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OBM_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("command", commands(READING))
def test_missing_input_is_not_found(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    args = command.replace("MISSING", "no-such").split()
    if command.startswith("verify MISSING"):  # whose result lists what is wrong
        assert main(args) == 3
        return
    refused(args, 3, capfd)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("command", commands(WRITING))
def test_missing_folder_of_an_output_is_not_found(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    args = command.replace("OUT", "no-such/x").split()
    refused(args, 3, capfd)
    main([*args, "--json"])
    error = json.loads(capfd.readouterr().err)
    assert (error["reason"], error["hint"]) == ("not_found", "create it first")
    assert error["where"].endswith("no-such")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("command", commands(READING) + commands(WRITING))
def test_empty_path_is_usage(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["" if "MISSING" in word or "OUT" in word else word for word in command.replace("=MISSING", "=").split()]
    refused(words, 2, capfd)

"""The README's commands and code, run line by line on tiny checkpoints under the names that it uses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from tiny_models import save_model, tiny_bert, tuned

from obm_cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README supposes."""
    save_model(tiny_bert(), tmp_path / "minilm")
    for seed, task in enumerate(("sentiment", "topic"), start=1):
        save_model(tuned(tiny_bert(), seed), tmp_path / task)
        words = ("red green blue", "what a day")[seed - 1].split()
        texts = [f"{first} {second}" for first in words for second in ("one", "two", "three")]
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OBM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_readme_runs(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 5
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, "README.md", "exec"), {})  # noqa: S102 - our own page
            continue
        for line in text.splitlines():
            prompt, command, *arguments = shlex.split(line)
            assert (prompt, command) == ("$", "obm")
            status = main(arguments)
            assert status == 0, f"{line}\n{capfd.readouterr().err}"


def test_documents_name_only_commands_that_exist() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for command in re.findall(r"`obm ([a-z]+)", page.read_text(encoding="utf-8")):
            assert command in COMMANDS or command == "serve", f"{page}: obm {command}"


def test_every_command_is_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"`{command}`" in changelog or f"`obm {command}`" in changelog

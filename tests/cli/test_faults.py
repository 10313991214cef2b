"""Ctrl-C at any moment and a full disk: one line, the exit code, nothing half written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import shifted, tiny_llama, write_checkpoint

from obm_cli.main import main
from obm_format.model import DType


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, a fine-tune and an expert, of about 40 layers, so that work takes a moment."""
    folder = tmp_path_factory.mktemp("faults")
    base = tiny_llama(0, DType.BF16, layers=40)
    write_checkpoint(folder / "base", base)
    write_checkpoint(folder / "tuned", shifted(base, 1))
    assert main(["compress", str(folder / "base"), str(folder / "tuned"), "-o", str(folder / "x.obm"), "--json"]) == 0
    return folder


# `obm`, which says when its guard is up: what comes before that is the interpreter's to answer
STARTED = """
import sys
from obm_cli.__main__ import run
class Finder:
    def find_spec(self, name, *_):
        if name == "obm_cli.main":
            sys.meta_path.remove(self)
            print("started", flush=True)
sys.meta_path.insert(0, Finder())
run()
"""


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
@pytest.mark.parametrize(
    ("command", "number"),
    [("compress", signal.SIGINT), ("materialize", signal.SIGINT), ("materialize", signal.SIGTERM)],
)
def test_interrupt_leaves_a_whole_result_or_none(
    checkpoints: Path, tmp_path: Path, command: str, number: signal.Signals, delay: float
) -> None:
    arguments = {
        "compress": ["compress", "base", "tuned", "-o", str(tmp_path / "out")],
        "materialize": ["materialize", "--base", "base", "--expert", "x.obm", "-o", str(tmp_path / "out")],
    }[command]
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED, *arguments],
        cwd=checkpoints,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(delay)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    if process.returncode == 0:
        assert (tmp_path / "out").exists()
    else:
        assert process.returncode == 130, err
        assert list(tmp_path.iterdir()) == []


IMPORT_INTERRUPTED = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "obm_cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
from obm_cli.__main__ import run
run()
"""


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_interrupt_while_the_commands_are_imported_is_one_line(flag: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_INTERRUPTED, "ls", *flag], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["reason"] == "interrupted" if flag else line.startswith("obm: ")


# a command whose work is interrupted inside a callback from C, where Python prints an exception and drops it
CALLBACK_INTERRUPTED = """
import ctypes, signal, time
import obm_cli.commands.ls as ls
def work(**_):
    ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))()
    time.sleep(30)
ls.command.callback = work
from obm_cli.__main__ import run
run()
"""


# the same on a machine so busy that the interrupt comes again while it is still being looked after
BUSY = """
import _thread, time
start, times = _thread.start_new_thread, []
def slow(*args):
    start(*args)
    times.append(0)
    if len(times) == 1:
        time.sleep(0.5)
_thread.start_new_thread = slow
"""


@pytest.mark.parametrize("before", ["", BUSY], ids=["at leisure", "busy"])
def test_interrupt_in_a_callback_is_not_lost(before: str) -> None:
    code = before + CALLBACK_INTERRUPTED
    done = subprocess.run([sys.executable, "-c", code, "ls"], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 130
    # click ends the terminal's line with the ^C first
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("obm: stopped by the user")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_gets_one_line_and_leaves_nothing(
    checkpoints: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkpoints)
    monkeypatch.setenv("OBM_HOME", str(small_disk.parent / "home"))
    assert main(["backbone", "add", "base", "acme/tiny"]) == 0
    assert main(["push", "x.obm", "acme/tiny:v1"]) == 0
    for arguments in (
        ["compress", "base", "tuned", "-o", str(small_disk / "x.obm")],
        ["materialize", "--base", "base", "--expert", "x.obm", "--method", "routing", "-o", str(small_disk / "out")],
        ["pull", "acme/tiny:v1", "-o", str(small_disk / "x.obm")],
    ):
        capfd.readouterr()
        assert main(arguments) == 1
        err = capfd.readouterr().err
        assert err.count("\n") == 1
        assert "no space left" in err.lower() or "no space is left" in err
        assert list(small_disk.iterdir()) == []

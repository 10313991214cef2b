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
from signals import runs_with_signal

from obm_cli.main import main
from obm_format.model import DType


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, a fine-tune and an expert, of about 40 layers, so that work takes a moment; and what they make."""
    folder = tmp_path_factory.mktemp("faults")
    base = tiny_llama(0, DType.BF16, layers=40)
    write_checkpoint(folder / "base", base)
    write_checkpoint(folder / "tuned", shifted(base, 1))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert main([*COMPRESS, "-o", "x.obm", "--json"]) == 0
        assert main([*MATERIALIZE, "-o", "made", "--json"]) == 0
    return folder


COMPRESS = ["compress", "base", "tuned"]
MATERIALIZE = ["materialize", "--base", "base", "--expert", "x.obm"]


def contents(path: Path) -> dict[str, bytes]:
    """Every file under a path, by its place there; a folder without one counts as a file without bytes."""
    found = [path, *path.rglob("*")] if path.exists() else []
    is_kept = {one: one.is_file() or not any(one.iterdir()) for one in found}
    return {
        one.relative_to(path).as_posix(): one.read_bytes() if one.is_file() else b"" for one in found if is_kept[one]
    }


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


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize(
    ("command", "number"),
    [("compress", signal.SIGINT), ("materialize", signal.SIGINT), ("materialize", signal.SIGTERM)],
)
def test_interrupt_leaves_a_whole_result_or_none(
    checkpoints: Path, tmp_path: Path, command: str, number: signal.Signals, delay: float
) -> None:
    arguments, expected = {"compress": (COMPRESS, "x.obm"), "materialize": (MATERIALIZE, "made")}[command]
    process = started(checkpoints, *arguments, "-o", str(tmp_path / "out"))
    time.sleep(delay)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    require_whole_or_none(tmp_path, "out", process.returncode, err, checkpoints / expected)


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`obm`, with its guard up, in a folder."""
    command = [sys.executable, "-c", STARTED, *arguments]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def require_whole_or_none(folder: Path, name: str, status: int, err: str, expected: Path) -> None:
    """The result is there, or nothing is; without it nobody says that all is well.

    An interrupt that comes between the result's last rename and the end of the command finds it there.
    """
    assert "Traceback" not in err
    assert status in (0, 130), err
    left = sorted(path.name for path in folder.iterdir())
    assert left in ([name], [] if status else [name]), err
    if left:
        assert contents(folder / name) == contents(expected)


@pytest.mark.slow
def test_interrupt_while_loops_are_compiled_leaves_nothing(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba", reason="nothing is compiled without numba")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "empty"))
    process = started(checkpoints, *MATERIALIZE, "-o", str(tmp_path / "out"))
    while not list(tmp_path.glob(".out.*.partial/*.part")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, "Traceback" in err) == (130, False), err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


AT_ANY_STEP = {
    "compress": ["compress", "../base", "../tuned", "-o", "out"],
    "rtvq": ["compress", "../base", "../tuned", "../other", "--rtvq", "3+2", "-o", "out"],
    "materialize": ["materialize", "--base", "../base", "--expert", "../x.obm", "--threads", "1", "-o", "out"],
    "pull": ["pull", "acme/tiny:v1", "-o", "out"],
    "convert": ["convert", "../x.obm", "-o", "out", "--to", "delta", "--base", "../base"],
    "stats": ["stats", "../x.obm", "--html", "out"],
}


@pytest.mark.parametrize(
    ("command", "first", "stride"),
    [
        ("compress", 6, 19),
        ("materialize", 2, 17),
        ("pull", 3, 4),
        *[pytest.param(command, 0, 1, marks=pytest.mark.slow) for command in AT_ANY_STEP],
    ],
)
def test_interrupt_at_any_step_leaves_a_whole_result_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, first: int, stride: int
) -> None:
    base = tiny_llama(0, DType.BF16, layers=1)
    write_checkpoint(tmp_path / "base", base)
    for seed, name in enumerate(("tuned", "other")):
        write_checkpoint(tmp_path / name, shifted(base, seed))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    for arguments in (["compress", "base", "tuned", "-o", "x.obm"], ["backbone", "add", "base", "acme/tiny"]):
        assert main(arguments) == 0
    assert main(["push", "x.obm", "acme/tiny:v1"]) == 0
    *runs, last = runs_with_signal("SIGINT", tmp_path, AT_ANY_STEP[command], first=first, stride=stride)
    assert len(runs) > 1
    assert last.is_over
    assert {one.status for one in runs} == {130}
    for one in runs:
        require_whole_or_none(one.folder, "out", one.status, one.err, tmp_path / "whole" / "out")


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


# the same on a machine so busy that the interrupt could come again at every step of what keeps it
BUSY = """
import sys, time
def slow(frame, event, arg):
    if frame.f_code.co_name == "_keep_interrupts":
        frame.f_trace_opcodes = True
        time.sleep(0.03)
    return slow
sys.settrace(slow)
"""

# and where the user presses the keys again and again meanwhile
IMPATIENT = """
import signal, sys
times = []
def pressed(frame, event, arg):
    if frame.f_code.co_name == "_keep_interrupts":
        frame.f_trace_opcodes = True
        times.append(event)
        signal.raise_signal(signal.SIGINT)
    return pressed
sys.settrace(pressed)
"""


@pytest.mark.parametrize("before", ["", BUSY, IMPATIENT], ids=["at leisure", "busy", "impatient"])
def test_interrupt_in_a_callback_is_not_lost(before: str) -> None:
    code = before + CALLBACK_INTERRUPTED
    done = subprocess.run([sys.executable, "-c", code, "ls"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 130
    # click ends the terminal's line with the ^C first
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("obm: stopped by the user")


# a command that is interrupted when its work is done and nothing more is to be interrupted
END_INTERRUPTED = """
import signal
import obm_cli.commands.ls as ls
ls.command.callback = lambda **_: print("result")
real = signal.signal
def late(number, action):
    if number == NUMBER and action is signal.SIG_IGN:
        signal.signal = real
        signal.raise_signal(number)
    return real(number, action)
signal.signal = late
from obm_cli.__main__ import run
run()
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_interrupt_at_the_end_changes_nothing(number: str) -> None:
    code = END_INTERRUPTED.replace("NUMBER", f"signal.{number}")
    done = subprocess.run([sys.executable, "-c", code, "ls"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "result\n", "")


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

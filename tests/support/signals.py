"""Runs of `obm` with a signal at each step: what became of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = Path(__file__).with_name("step_signals.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a command.

    Args:
        folder: its working directory.
        status: its exit status; negative for the signal that ended it.
        err: its standard error.
        is_over: whether it was over before the signal was due.
    """

    folder: Path
    status: int
    err: str
    is_over: bool


def runs_with_signal(
    signal: str, folder: Path, arguments: Sequence[str], *, first: int = 0, stride: int = 1
) -> list[Run]:
    """Run `obm` with a signal at a step, at a later one, and so on to its end; see `step_signals`."""
    done = subprocess.run(
        [sys.executable, _PROGRAM, signal, str(first), str(stride), folder, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [Run(**{**one, "folder": folder / one["folder"]}) for one in found]

"""Run `obm` with a signal at one step, then at the next, and so on through all of them.

Called as `step_signals.py SIGNAL FIRST STRIDE FOLDER OBM-ARGUMENTS...`. Every run has a working directory of its own,
`FOLDER/run<step>`, which is a copy of `FOLDER/start` where that is there; `FOLDER/whole` is that of a run without a
signal. Prints a line of JSON per run (`signals.Run`); the last one was over before its step.

A step lies before and after every call that changes something on the disk. Every run is a child of this process, so
that nothing is imported again, and does what `obm` does from start to end.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from obm_cli.__main__ import run
from obm_cli.main import main as obm

CALLS = (
    "open", "mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "write", "pwrite", "ftruncate",
    "posix_fallocate", "copy_file_range",
)  # fmt: skip
STEP_LIMIT = 2000
NO_STEP = 99  # the exit status of a run that was over before its step


def arm(step: int, number: signal.Signals) -> list[int]:
    """Send this process a signal at step number `step`, and none after; gives a list that has the step once it came."""
    places, reached = itertools.count(), []

    def tick() -> None:
        if next(places) == step:  # whichever thread comes there
            reached.append(step)
            signal.raise_signal(number)

    def stepped(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **kwargs: object) -> object:
            if "open" in call.__name__ and only_reads(*args, **kwargs):
                return call(*args, **kwargs)
            tick()
            result = call(*args, **kwargs)
            tick()
            return result

        return counted

    for name in CALLS:
        setattr(os, name, stepped(getattr(os, name)))
    io.open = stepped(io.open)  # type: ignore[assignment]  # what `Path.open` calls
    return reached


def only_reads(_path: object, how: object = "r", *_: object, **__: object) -> bool:
    """Whether a call of `open` leaves the disk as it is."""
    return not set(how) & set("wxa+") if isinstance(how, str) else not how & (os.O_WRONLY | os.O_RDWR)  # type: ignore[operator]


def child(step: int, number: signal.Signals, folder: Path, arguments: list[str]) -> None:
    """Be `obm`, with the signal; never returns."""
    leave = os._exit
    for stream in (1, 2):
        os.dup2(os.open(folder.with_suffix(f".{stream}"), os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(folder)
    sys.argv = ["obm", *arguments]
    reached = arm(step, number)
    os._exit = lambda status: leave(status if reached else NO_STEP)  # type: ignore[assignment]
    run()


def main() -> None:
    """All runs."""
    number, first, stride = signal.Signals[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    work, arguments = Path(sys.argv[4]), sys.argv[5:]
    (work / "whole").mkdir()
    os.chdir(work / "whole")
    with contextlib.redirect_stdout(io.StringIO()):  # and all that it needs is imported now
        assert obm(arguments) == 0
    for step in range(first, STEP_LIMIT, stride):
        folder = work / f"run{step}"
        shutil.copytree(work / "start", folder) if (work / "start").exists() else folder.mkdir()
        process = os.fork()
        if process == 0:
            child(step, number, folder, arguments)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        said = {"folder": folder.name, "status": status, "err": folder.with_suffix(".2").read_text()}
        said["is_over"] = status == NO_STEP
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
        if status == NO_STEP:
            return
    raise SystemExit("more steps than the limit")


if __name__ == "__main__":
    main()

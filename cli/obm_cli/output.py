"""The one place that writes to the terminal: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from obm_format.errors import ObmError
from obm_format.progress import Progress, silent

if TYPE_CHECKING:
    from rich.progress import TaskID

_Command = Callable[..., Any]
_QUANTITY = re.compile(r"[0-9.]+( [kMGT]?B|%)?")


def json_option(command: _Command) -> _Command:
    """Add `--json` to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def emit(schema: str, payload: dict[str, Any], *, as_json: bool, human: Callable[[], None]) -> None:
    """Print a command's result: one JSON object, or what `human` prints."""
    if as_json:
        click.echo(json.dumps({"schema": f"obm.{schema}/1", **payload}))
    else:
        human()


def say(line: str = "") -> None:
    """Print one line of a result for people."""
    click.echo(line)


def note(line: str) -> None:
    """Print one line beside the result: a warning, or what happens next."""
    click.echo(line, err=True)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print an aligned table; columns of numbers are set to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    right = [bool(cells) and all(_QUANTITY.fullmatch(row[i]) for row in cells) for i in range(len(headers))]
    widths = [max(len(line[i]) for line in [list(headers), *cells]) for i in range(len(headers))]
    for line in [list(headers), *cells]:
        columns = [
            value.rjust(width) if flag else value.ljust(width)
            for value, width, flag in zip(line, widths, right, strict=True)
        ]
        say("  ".join(columns).rstrip())


def _cell(value: object) -> str:
    # names and tasks may be somebody else's text
    return f"{value:.4f}" if isinstance(value, float) else printable(str(value))


def nbytes(count: float) -> str:
    """A number of bytes for people: `22.7 MB`, with powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def report_error(error: ObmError, *, as_json: bool) -> None:
    """Print an error on stderr: one line, or one JSON object."""
    if not as_json:
        click.echo(f"obm: {printable(str(error))}", err=True)
        return
    payload = {
        "schema": "obm.error/1",
        "code": error.exit_code,
        "reason": error.reason,
        "message": error.message,
        "where": error.where,
        "expected": error.expected,
        "got": error.got,
        "hint": error.hint,
    }
    click.echo(json.dumps(payload), err=True)


def printable(text: str) -> str:
    """`text` on one line and without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A `Progress` that draws bars with bytes, rate and time left on stderr, or is silent off a terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield show


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start

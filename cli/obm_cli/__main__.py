"""What the `obm` script and `python -m obm_cli` start: `main`, guarded while it is still being imported."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import gc
import os
import signal
import sys
import time
from types import FrameType
from typing import Any, NoReturn

_LOOK_AFTER_S = 0.01  # too short for anybody to notice
_MAIN_THREAD = _thread.get_ident()
# new objects from one look for garbage to the next: importing numba makes half a million that all stay, and the
# interpreter's own number (700) lets it look through them for a fifth of the start-up
_GARBAGE_LOOK = 100_000


def run() -> None:
    """Run the command line and leave with its exit status."""
    gc.set_threshold(_GARBAGE_LOOK)
    # a polite kill tidies up like Ctrl-C
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us wants none
        signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _keep_interrupts
    try:
        from obm_cli.main import main
        from obm_format.errors import EXIT_INTERRUPTED
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from obm_cli.output import report_error
        from obm_format.errors import ObmError

        error = ObmError("interrupted", "stopped by the user before the work began")
        report_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    status = EXIT_INTERRUPTED
    try:
        status = main()
        _ignore_interrupts()
    except KeyboardInterrupt:  # after the work, or while its end was told
        _ignore_interrupts()
    _leave(status)


def _ignore_interrupts() -> None:
    """The result is known: an interrupt while the interpreter tidies up must not turn it into another one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _leave(status: int) -> NoReturn:
    """End the process without taking the interpreter apart: that takes as long as loading it, and forgets nothing.

    It would also end by killing itself after an interrupt that passed through code made from a string (dataclasses
    make such), answered or not. Source: ADR 0044.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # `click.echo` has flushed each line, and told of a full disk; a stream that was closed from the start is None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Stop the work; but not what keeps an interrupt, where this one would be dropped: that one is delivered for both.

    Raises:
        KeyboardInterrupt: as Python's own handler does.
    """
    if not _is_being_kept(frame):
        raise KeyboardInterrupt


def _is_being_kept(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not _keep_interrupts.__code__:
        frame = frame.f_back
    return frame is not None


def _keep_interrupts(dropped: Any) -> None:  # noqa: ANN401 - CPython's own structure, without a public type
    """Deliver an interrupt once more that hit code whose errors Python drops: a destructor, a callback from C."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        _thread.start_new_thread(_interrupt_again, ())
    else:
        sys.__unraisablehook__(dropped)


def _interrupt_again() -> None:
    is_kept = False
    while not is_kept:
        time.sleep(_LOOK_AFTER_S)
        is_kept = not _is_being_kept(sys._current_frames().get(_MAIN_THREAD))
    signal.pthread_kill(_MAIN_THREAD, signal.SIGINT)


if __name__ == "__main__":
    run()

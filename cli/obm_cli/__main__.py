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
from typing import Any, NoReturn

# long enough for the code that dropped the interrupt to return, too short for anybody to notice
_AGAIN_AFTER_S = 0.01
_MAIN_THREAD = _thread.get_ident()
# new objects from one look for garbage to the next: importing numba makes half a million that all stay, and the
# interpreter's own number (700) lets it look through them for a fifth of the start-up
_GARBAGE_LOOK = 100_000


def run() -> None:
    """Run the command line and leave with its exit status."""
    gc.set_threshold(_GARBAGE_LOOK)
    # a polite kill tidies up like Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.unraisablehook = _keep_interrupts
    try:
        from obm_cli.main import main
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from obm_cli.output import report_error
        from obm_format.errors import ObmError

        error = ObmError("interrupted", "stopped by the user before the work began")
        report_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    status = main()
    # the result is known: an interrupt while the interpreter tidies up must not turn it into another one
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _leave(status)


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


def _keep_interrupts(dropped: Any) -> None:  # noqa: ANN401 - CPython's own structure, without a public type
    """Deliver an interrupt once more that hit code whose errors Python drops: a destructor, a callback from C."""
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
        return
    is_kept = False
    while not is_kept:
        # on a busy machine it may come again before this is left, where it would be dropped for good
        with contextlib.suppress(KeyboardInterrupt):
            _thread.start_new_thread(_interrupt_again, ())
            is_kept = True


def _interrupt_again() -> None:
    time.sleep(_AGAIN_AFTER_S)
    signal.pthread_kill(_MAIN_THREAD, signal.SIGINT)


if __name__ == "__main__":
    run()

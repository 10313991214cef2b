"""What the `obm` script and `python -m obm_cli` start: `main`, guarded while it is still being imported."""

from __future__ import annotations

import signal
import sys


def run() -> None:
    """Run the command line and leave with its exit status."""
    # a polite kill tidies up like Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
    # CPython remembers an interrupt that passed through code made from a string (dataclasses make such), answered or
    # not, and would end by killing itself; running other such code makes it forget
    exec("")  # noqa: S102
    sys.exit(status)


if __name__ == "__main__":
    run()

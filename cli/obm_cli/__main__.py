"""What the `obm` script and `python -m obm_cli` start: `main`, guarded while it is still being imported."""

from __future__ import annotations

import signal
import sys


def run() -> None:
    """Run the command line and leave with its exit status."""
    try:
        from obm_cli.main import main
    except KeyboardInterrupt:
        sys.exit(130)
    status = main()
    # the result is known: an interrupt while the interpreter tidies up must not turn it into another one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # CPython remembers an interrupt that passed through code made from a string (dataclasses make such), answered or
    # not, and would end by killing itself; running other such code makes it forget
    exec("")  # noqa: S102
    sys.exit(status)


if __name__ == "__main__":
    run()

"""Benchmarks: each case against a limit that is timed around every repeat, after a check of its bits.

    python benchmarks/run.py CASE... [--threads N] [--repeats N] [--json]

A family of cases is a file beside this one with `CASES`: name to a function that makes the case for a number of
threads. Exit status 1 if a result is not exact.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import Row, machine, measure

FAMILIES = {
    "kernel_cases": ("apply-4096x14336", "merge3-linear", "merge3-paper-math", "merge8-linear", "pack-4096x14336"),
    "codec_cases": ("codec-xdelta", "codec-xdelta-bucket", "sign1-encode", "sign1-decode"),
    "verify_cases": ("verify",),
}
_HOME = {case: family for family, cases in FAMILIES.items() for case in cases}


def main() -> int:
    """Run the cases named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=sorted(_HOME), metavar="CASE", help=", ".join(sorted(_HOME)))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.cases:
        rows.append(run(name, arguments.threads, arguments.repeats))
        if not arguments.json:
            print(rows[-1].line(), flush=True)
    if arguments.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}))
    return 0 if all(row.exact for row in rows) else 1


def run(name: str, threads: int, repeats: int) -> Row:
    """Make one case and time it."""
    make = import_module(_HOME[name]).CASES[name]
    return measure(name, make(threads), threads, repeats)


if __name__ == "__main__":
    sys.exit(main())

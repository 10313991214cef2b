"""Benchmarks: each case against a limit that is timed around every repeat, after a check of its bits.

    python benchmarks/run.py CASE... [--threads N] [--repeats N] [--json]

A family of cases is a file beside this one with `CASES`: name to a function that makes the case for a number of
threads. Cases on whole checkpoints are scripts of their own with the same flags, started from here too (their further
flags: `python benchmarks/SCRIPT.py --help`). Exit status 1 if a result is not exact.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import Row, machine, measure

FAMILIES = {
    "kernel_cases": ("apply-4096x14336", "merge3-linear", "merge3-paper-math", "merge8-linear", "pack-4096x14336"),
    "codec_cases": ("codec-xdelta", "codec-xdelta-bucket", "sign1-encode", "sign1-decode", "sign1-decode-fresh"),
    "verify_cases": ("verify", "verify-mapped", "header-50k"),
}
SCRIPTS = {
    "materialize": ("materialize-linear", "materialize-paper"),
    "mergekit": ("mergekit-ties-d1.0", "mergekit-ties-d0.2"),
    "registry": ("push-many", "push-pull"),
}
_HOME = {case: family for family, cases in FAMILIES.items() for case in cases}
_SCRIPT = {case: script for script, cases in SCRIPTS.items() for case in cases}
_HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run the cases named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = sorted(_HOME | _SCRIPT)
    parser.add_argument("cases", nargs="+", choices=known, metavar="CASE", help=", ".join(known))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, help="pairs of runs; default 9, fewer for whole checkpoints")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.cases:
        if name in _SCRIPT:
            rows += run_script(name, arguments.threads, arguments.repeats, quiet=arguments.json)
            continue
        row = run(name, arguments.threads, arguments.repeats or 9)
        rows.append(asdict(row))
        if not arguments.json:
            print(row.line(), flush=True)
    if arguments.json:
        print(json.dumps({"machine": machine(), "rows": rows}))
    return 0 if all(row["exact"] for row in rows) else 1


def run(name: str, threads: int, repeats: int) -> Row:
    """Make one case and time it."""
    make = import_module(_HOME[name]).CASES[name]
    return measure(name, make(threads), threads, repeats)


def run_script(name: str, threads: int, repeats: int | None, *, quiet: bool) -> list[dict[str, Any]]:
    """Let a script of its own run a case; its rows."""
    command = [sys.executable, str(_HERE / f"{_SCRIPT[name]}.py"), name, "--json"]
    command += ["--threads", str(threads), *(["--repeats", str(repeats)] if repeats else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        sys.exit(done.returncode or 1)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    for row in [] if quiet else rows:
        print(f"{row['case']:22} {row['bytes'] / 1e6:7.0f} MB  ratio {row['ratio']:.2f}", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())

"""Plain TIES of three dense fine-tunes, from checkpoints on disk to a folder, against mergekit: same in, same out.

    python benchmarks/mergekit.py mergekit-ties-d1.0 mergekit-ties-d0.2 --python VENV/bin/python [--repeats N] [--json]

VENV is an environment that has mergekit (`OBM_MERGEKIT_PYTHON` names it too). Both run as commands of their own, with
start-up, from Python bytecode as installed packages are, float32, on a backbone and three fine-tunes of 1.4 GB each,
page cache warm; ours once more at first (`first_seconds`), when it compiles what was never compiled here. The tensors
that they write are compared bit by bit before a figure is printed: `differing` elements may differ, each at a magnitude
that equals a cut, of which mergekit's sort keeps any. Memory is the peak of private anonymous memory
(RssAnon, polled every 5 ms) less that of a process that only has imported what it needs. `ratio` is mergekit's time
over ours.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import with_bytecode
from synthetic import Noise, specs, tuned, write_base

from obm_format.checkpoint import Checkpoint, open_checkpoint
from obm_format.checkpoint_writer import CheckpointWriter
from obm_format.kernels import select_kernels
from obm_format.model import DType

LAYERS, VOCABULARY = 1, 16000
CASES = {"mergekit-ties-d1.0": "1.0", "mergekit-ties-d0.2": "0.2"}
NAMES = ("a", "b", "c")
PEER_IDLE = "import mergekit.scripts.run_yaml, mergekit.merge"
OUR_IDLE = "import obm_format.merge, obm_format.kernels as k; k.select_kernels()"
_REPORT = "; print(next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon:')) * 1024)"


@dataclass(frozen=True)
class Run:
    """Seconds on the clock, seconds of processors, and peak private anonymous bytes of one command."""

    seconds: float
    cpu_seconds: float
    private_bytes: int


@dataclass(frozen=True)
class Row:
    """One case's figures; `peer` stands for mergekit."""

    case: str
    dtype: str
    kernel: str
    threads: int
    output: str
    bytes: int
    seconds: list[float]
    first_seconds: float
    peer_seconds: list[float]
    cpu_seconds: list[float]
    peer_cpu_seconds: list[float]
    ratio: float
    private_bytes: int
    peer_private_bytes: int
    memory_ratio: float
    exact: bool
    differing: int


def main() -> int:
    """Run the cases named on the command line; exit status 1 if a tensor differs from mergekit's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=sorted(CASES))
    parser.add_argument("--python", default=os.environ.get("OBM_MERGEKIT_PYTHON"), help="interpreter with mergekit")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where inputs are made, and found again; default: a temporary one")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.python:
        parser.error("name an interpreter that has mergekit: --python, or OBM_MERGEKIT_PYTHON")
    with tempfile.TemporaryDirectory(prefix="obm-bench-") as scratch:
        folder = arguments.folder or Path(scratch)
        write_inputs(folder)
        rows = [measure(name, folder, Path(scratch), arguments) for name in arguments.cases]
    if arguments.json:
        print(json.dumps({"load": os.getloadavg(), "rows": [asdict(row) for row in rows]}))
    for row in [] if arguments.json else rows:
        print(f"{row.case:20} obm {statistics.median(row.seconds):.1f} s  mergekit"
              f" {statistics.median(row.peer_seconds):.1f} s  {row.ratio:.1f} times faster"
              f" (processors {statistics.median(row.cpu_seconds):.1f} and"
              f" {statistics.median(row.peer_cpu_seconds):.1f} s), memory"
              f" {row.private_bytes / 1e6:.0f} of {row.peer_private_bytes / 1e6:.0f} MB (1/{row.memory_ratio:.0f})"
              f"  equal {row.exact} but for {row.differing} at a cut  load {os.getloadavg()[0]:.1f}")  # fmt: skip
    return 0 if all(row.exact for row in rows) else 1


def measure(name: str, folder: Path, scratch: Path, arguments: argparse.Namespace) -> Row:
    """Run both in turns, compare what they wrote, and put the figures together."""
    density, ours_out, peer_out = CASES[name], scratch / "ours", scratch / "peer"
    config = scratch / "mergekit.yaml"
    config.write_text(yaml_of(folder, density))
    ours = [sys.executable, "-m", "obm_cli", "materialize", "--base", str(folder / "base")]
    ours += [word for one in NAMES for word in ("--expert", str(folder / one))]
    ours += ["--method", "ties", "--density", density, "--compat", "mergekit", "--threads", str(arguments.threads)]
    peer = [str(Path(arguments.python).parent / "mergekit-yaml"), str(config), str(peer_out), "--no-copy-tokenizer"]
    nbytes = 5 * sum(spec.nbytes for spec in specs(LAYERS, VOCABULARY, DType.F32))
    mine, theirs, exact, differing = [], [], True, 0
    idles = idle(sys.executable, OUR_IDLE), idle(arguments.python, PEER_IDLE)
    first = watched([*ours, "-o", str(ours_out)])
    shutil.rmtree(ours_out)
    for _ in range(arguments.repeats):
        theirs.append(watched(peer))
        mine.append(watched([*ours, "-o", str(ours_out)]))
        differing, unexplained = differences(ours_out, peer_out, folder, float(density))
        exact = exact and not unexplained
        shutil.rmtree(ours_out)
        shutil.rmtree(peer_out)
    mine_bytes = max(run.private_bytes for run in mine) - idles[0]
    their_bytes = max(run.private_bytes for run in theirs) - idles[1]
    return Row(
        case=name,
        dtype="F32",
        kernel=select_kernels().name,
        threads=arguments.threads,
        output="file",
        bytes=nbytes,
        seconds=[run.seconds for run in mine],
        first_seconds=first.seconds,
        peer_seconds=[run.seconds for run in theirs],
        cpu_seconds=[run.cpu_seconds for run in mine],
        peer_cpu_seconds=[run.cpu_seconds for run in theirs],
        ratio=statistics.median(b.seconds / a.seconds for a, b in zip(mine, theirs, strict=True)),
        private_bytes=mine_bytes,
        peer_private_bytes=their_bytes,
        memory_ratio=their_bytes / mine_bytes,
        exact=exact,
        differing=differing,
    )


def write_inputs(folder: Path) -> None:
    """A backbone and three fine-tunes of it, float32."""
    noise, wanted = Noise(), specs(LAYERS, VOCABULARY, DType.F32)
    if not (folder / "base").exists():
        write_base(folder / "base", wanted, noise, layers=LAYERS, vocabulary=VOCABULARY)
    for seed, name in enumerate(NAMES, 1):
        if (folder / name).exists():
            continue
        with open_checkpoint(folder / "base") as base, CheckpointWriter(folder / name, wanted) as writer:
            for place, spec in enumerate(wanted):
                writer.write_flat(spec.name, tuned(base.words(spec.name), spec, 1000 * seed + place, noise))
            for file in base.side_files():
                writer.copy_side_file(file)
            writer.commit()


def yaml_of(folder: Path, density: str) -> str:
    """What mergekit is told: the same merge."""
    models = "".join(
        f"  - model: {folder / name}\n    parameters: {{weight: 1.0, density: {density}}}\n" for name in NAMES
    )
    return f"models:\n{models}merge_method: ties\nbase_model: {folder / 'base'}\ndtype: float32\n"


def watched(command: list[str]) -> Run:
    """Run a command and watch its private memory."""
    started, worked, peak = time.perf_counter(), children_seconds(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=with_bytecode())
    status = Path(f"/proc/{process.pid}/status")
    with tempfile.TemporaryFile() as log:
        assert process.stderr is not None  # noqa: S101 - a pipe was asked for
        os.set_blocking(process.stderr.fileno(), False)
        while process.poll() is None:
            peak = max(peak, rss_anon(status))
            log.write(process.stderr.read() or b"")
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{command[0]} failed:\n{(log.read() + process.stderr.read()).decode()[-2000:]}")
    return Run(seconds, children_seconds() - worked, peak)


def children_seconds() -> float:
    """Processor seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rss_anon(status: Path) -> int:
    """Private anonymous bytes of a process; 0 when it has gone."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def idle(python: str, statement: str) -> int:
    """Private anonymous bytes of a process that has imported what it needs and done nothing."""
    command = [python, "-c", statement + _REPORT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=with_bytecode())
    return int(done.stdout.split()[-1])


def differences(ours: Path, theirs: Path, folder: Path, density: float) -> tuple[int, int]:
    """Elements that differ between two merges, and those among them that are not at a cut of any fine-tune."""
    differing = unexplained = 0
    with contextlib.ExitStack() as stack:
        one, other, base, *tuned = (
            stack.enter_context(open_checkpoint(path))
            for path in (ours, theirs, folder / "base", *(folder / name for name in NAMES))
        )
        if dict(one.tensors) != dict(other.tensors):
            return one.nbytes, one.nbytes
        for name in one.tensors:
            places = np.flatnonzero(one.words(name).reshape(-1) != other.words(name).reshape(-1))
            if places.size:
                differing += places.size
                explained = [at_cut(fine_tune, base, name, density, places) for fine_tune in tuned]
                unexplained += int((~np.any(explained, axis=0)).sum())
    return differing, unexplained


def at_cut(fine_tune: Checkpoint, base: Checkpoint, name: str, density: float, places: np.ndarray) -> np.ndarray:
    """Which elements of a fine-tune have the magnitude of the last one that a density keeps."""
    words, old = fine_tune.words(name).reshape(-1), base.words(name).reshape(-1)
    magnitudes = np.abs(words.view(np.float32) - old.view(np.float32))
    kept = max(1, int(density * magnitudes.size))
    found = magnitudes[places]
    return found == np.partition(magnitudes, magnitudes.size - kept)[magnitudes.size - kept]


if __name__ == "__main__":
    sys.exit(main())

"""`materialize` to a folder against plain input and output of the same bytes, synced to the disk on both sides.

    python benchmarks/materialize.py materialize-linear materialize-paper [--threads N] [--repeats N] [--json]

The floor reads every input once into one warm buffer and writes as many bytes as the output has, fsync included; where
parts are compressed, the time of zstd itself on the same frames, on as many threads, is added. `ratio` is the median of
floor / own over runs that follow one another, in this process; `command_ratio` that of floor / `obm materialize`, a
process of its own with start-up, from Python bytecode as an installed package is. Page cache warm on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import Copy, timed, with_bytecode
from synthetic import Noise, specs, tuned, write_base

from obm_format import compress_checkpoint, materialize, open_expert, parse_recipe
from obm_format.checkpoint import open_checkpoint
from obm_format.checkpoint_writer import CheckpointWriter
from obm_format.compress import CompressOptions
from obm_format.container.table import part_name
from obm_format.kernels.words import words_dtype
from obm_format.merge import WeightStream
from obm_format.merge.execute import Place
from obm_format.merge.meter import private_bytes
from obm_format.merge.plan import Step
from obm_format.model import DType

LAYERS, VOCABULARY = 2, 16000
_BUFFER = 8 << 20
_POSITIONS = {"linear": dict.fromkeys(("chat", "math", "code"), "linear")}
_POSITIONS["paper"] = {"chat": "mlp", "math": "attention", "code": "attention"}
CASES = {"materialize-linear": "linear", "materialize-paper": "paper"}


@dataclass(frozen=True)
class Row:
    """One case's figures, as the JSON names them; `ratio` is that of the floor."""

    case: str
    dtype: str
    kernel: str
    threads: int
    output: str
    bytes: int
    seconds: list[float]
    memcpy_seconds: list[float]
    floor_seconds: list[float]
    zstd_seconds: list[float]
    ratio: float
    command_seconds: list[float]
    command_ratio: float
    exact: bool
    phases: dict[str, float] = field(default_factory=dict)  # summed over threads
    peak_private_bytes: int = 0  # above that of the process before the last run


def main() -> int:
    """Run the cases named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=sorted(CASES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where inputs are made, and found again; default: a temporary one")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="obm-bench-") as scratch:
        folder = arguments.folder or Path(scratch)
        rows = [measure(name, folder, Path(scratch), arguments.threads, arguments.repeats) for name in arguments.cases]
    if arguments.json:
        print(json.dumps({"load": os.getloadavg(), "rows": [asdict(row) for row in rows]}))
    for row in [] if arguments.json else rows:
        print(f"{row.case:20} {row.bytes / 1e6:6.0f} MB  own {statistics.median(row.seconds):.2f} s"
              f"  floor {statistics.median(row.floor_seconds):.2f} s (zstd {statistics.median(row.zstd_seconds):.2f} s)"
              f"  own/floor {1 / row.ratio:.2f}  command {statistics.median(row.command_seconds):.2f} s,"
              f" {1 / row.command_ratio:.2f}  load {os.getloadavg()[0]:.1f}")  # fmt: skip
        print(f"{'':20} {row.phases}  peak {row.peak_private_bytes / 1e6:.0f} MB")
    return 0 if all(row.exact for row in rows) else 1


def measure(name: str, folder: Path, scratch: Path, threads: int, repeats: int) -> Row:
    """Check one case, then time it and its floor in turns."""
    base, experts = inputs(folder, CASES[name])
    recipe = parse_recipe({"route": "math"})
    out = scratch / "out"
    exact = is_exact(base, experts, threads)
    files = [base / "model.safetensors", *experts]
    nbytes = sum(file.stat().st_size for file in files) + (base / "model.safetensors").stat().st_size
    frames = framed(base, experts) if CASES[name] == "paper" else []
    own, commands, floors, zstd, copies, report, idle = [], [], [], [], [], None, 0
    memcpy = Copy(nbytes, threads)
    memcpy()  # faults its memory in
    run_command(base, experts, out, threads)
    shutil.rmtree(out)
    for _ in range(repeats):
        copies.append(timed(memcpy))
        plain = timed(lambda: copy(files, out))
        zstd.append(timed(lambda: decompress(frames, threads)))
        floors.append(plain + zstd[-1])
        shutil.rmtree(out)
        idle, started = private_bytes(), time.perf_counter()
        report = materialize(base, experts, recipe, out, threads=threads)
        own.append(time.perf_counter() - started)
        shutil.rmtree(out)
        os.sync()
        commands.append(timed(lambda: run_command(base, experts, out, threads)))
        shutil.rmtree(out)
        os.sync()
    assert report is not None  # noqa: S101 - there is at least one repeat
    return Row(
        case=name,
        dtype="BF16",
        kernel=report.kernel,
        threads=threads,
        output="file",
        bytes=nbytes,
        seconds=own,
        memcpy_seconds=copies,
        floor_seconds=floors,
        zstd_seconds=zstd,
        ratio=statistics.median(floor / mine for floor, mine in zip(floors, own, strict=True)),
        command_seconds=commands,
        command_ratio=statistics.median(floor / mine for floor, mine in zip(floors, commands, strict=True)),
        exact=exact,
        phases={phase: round(value, 2) for phase, value in report.seconds.items()},
        peak_private_bytes=report.peak_private_bytes - idle,
    )


def inputs(folder: Path, kind: str) -> tuple[Path, list[Path]]:
    """A backbone of 1.1 GB and three experts; only what changed in `linear` is its linear layers."""
    noise = Noise()
    wanted = specs(LAYERS, VOCABULARY, DType.BF16)
    base = folder / "base"
    if not base.exists():
        write_base(base, wanted, noise, layers=LAYERS, vocabulary=VOCABULARY)
    experts = []
    for seed, (task, position) in enumerate(_POSITIONS[kind].items(), 1):
        expert = folder / f"{kind}-{task}.obm"
        if not expert.exists():
            fine_tune = folder / f"{kind}-{task}"
            with open_checkpoint(base) as opened, CheckpointWriter(fine_tune, wanted) as writer:
                for place, spec in enumerate(wanted):
                    words = opened.words(spec.name).reshape(-1)
                    moves = kind == "paper" or (".layers." in spec.name and len(spec.shape) == 2)
                    moved = tuned(words, spec, 1000 * seed + place, noise) if moves else words
                    writer.write_flat(spec.name, moved)
                writer.commit()
            compress_checkpoint(base, fine_tune, expert, CompressOptions(task=task, position=position))
            shutil.rmtree(fine_tune)
        experts.append(expert)
    return base, experts


def is_exact(base: Path, experts: list[Path], threads: int) -> bool:
    """Whether kernels, threads and pieces of the timed run give the bits of the reference, on one layer's shapes."""
    from obm_format.kernels.reference import ReferenceKernels

    opened = [open_expert(path) for path in experts]
    with open_checkpoint(base) as backbone:
        fast = WeightStream(backbone, opened, parse_recipe({"route": "math"}), threads=threads)
        slow = WeightStream(backbone, opened, parse_recipe({"route": "math"}), kernels=ReferenceKernels(), threads=1)
        return all(np.array_equal(*pair) for pair in zip(some(fast), some(slow), strict=True))


def some(stream: WeightStream) -> list[np.ndarray]:
    """The matrices of the first layer."""
    names = [spec.name for spec in stream.metadata()]
    chosen = {name for name in names if ".layers.0." in name}
    places: dict[str, Place] = {}

    def place(step: Step) -> Place:
        places[step.spec.name] = Place(np.empty(step.spec.numel, words_dtype(step.spec.dtype)))
        return places[step.spec.name]

    stream.run(place, skip=[name for name in names if name not in chosen])
    return [places[name].words for name in sorted(places)]


def run_command(base: Path, experts: list[Path], out: Path, threads: int) -> None:
    """The same merge by the command line."""
    command = [sys.executable, "-m", "obm_cli", "materialize", "--base", str(base), "--route", "math", "-o", str(out)]
    command += [word for expert in experts for word in ("--expert", str(expert))]
    command += ["--threads", str(threads)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=with_bytecode())


def copy(files: list[Path], out: Path) -> None:
    """Read all files through one buffer, and write the first one's bytes; synced."""
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    out.mkdir()
    with (out / "model.safetensors").open("wb", buffering=0) as target:
        for place, file in enumerate(files):
            with file.open("rb", buffering=0) as source:
                while count := source.readinto(buffer):
                    if not place:
                        target.write(view[:count])
        os.fsync(target.fileno())


def framed(base: Path, experts: list[Path]) -> list[tuple[bytes, int]]:
    """The zstd frames that the merge decompresses: the routed expert's."""
    del base
    found = []
    for path in experts:
        with open_expert(path) as expert:
            if expert.manifest.task != "math":
                continue
            for record in expert.manifest.tensors:
                part = expert.header.parts.get(part_name(record.name, "data"))
                if part is not None and part.raw_nbytes is not None:
                    for place, frame in enumerate(expert.container.frames(record, "data")):
                        found.append((expert.container.frame(record, "data", place), frame.raw_nbytes))
    return found


def decompress(frames: list[tuple[bytes, int]], threads: int) -> None:
    """What zstd alone does."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda frame: zstandard.ZstdDecompressor().decompress(frame[0]), frames):
            pass


if __name__ == "__main__":
    sys.exit(main())

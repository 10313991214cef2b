"""Several fine-tunes of one backbone at once: a base vector that they share, and a small expert for each.

The base vector is what the mean of the fine-tunes adds to the backbone, quantised once; each expert then holds
what its fine-tune has beyond the *decoded* base vector, so the error of the first step does not stay (error
correction). One tensor is in memory at a time, of one fine-tune; the folder appears whole or not at all.
Source: Residual Task Vector Quantization; obm-1 clause 6.7.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from obm_format.checkpoint import Checkpoint, open_checkpoint
from obm_format.checkpoint_writer import refuse_occupied, sync_folder
from obm_format.codecs import affine
from obm_format.codecs.base import Encoded
from obm_format.compress.compression import Compression, SharedBase, backbone_id
from obm_format.compress.measure import ErrorSums
from obm_format.compress.options import RtvqOptions
from obm_format.compress.report import CompressReport, make_report
from obm_format.container.names import TASK
from obm_format.errors import CheckpointError, UsageError, from_os_error
from obm_format.expert import ExpertWriter, open_expert
from obm_format.kernels import select_kernels
from obm_format.kernels.contract import Kernels
from obm_format.kernels.words import Float32, to_float32
from obm_format.model import Kind, Mode, TensorSpec, ZeroParams
from obm_format.positions import matrix_rows
from obm_format.progress import Progress, silent
from obm_format.taskvector import Pair, Relation, check_finite

BASE_FILE = "base.obm"


@dataclass(frozen=True, slots=True, kw_only=True)
class RtvqReport:
    """What `compress_rtvq` made.

    Args:
        folder: the folder, as it was given.
        base: the shared base vector; its errors are those against the mean of the fine-tunes, and its
            `dense_nbytes` those of the backbone.
        experts: one for each fine-tune, in their order.
    """

    folder: str
    base: CompressReport
    experts: tuple[CompressReport, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return self.base.nbytes + sum(expert.nbytes for expert in self.experts)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the fine-tunes' tensors."""
        return sum(expert.dense_nbytes for expert in self.experts)

    @property
    def ratio(self) -> float:
        """Bytes of all files over bytes of the dense fine-tunes."""
        return self.nbytes / self.dense_nbytes

    def as_json(self) -> dict[str, object]:
        """What `obm compress --rtvq --json` prints, without the schema."""
        return {
            "folder": self.folder,
            "base": self.base.as_json(),
            "experts": [expert.as_json() for expert in self.experts],
            "nbytes": self.nbytes,
            "dense_nbytes": self.dense_nbytes,
            "ratio": self.ratio,
        }


def compress_rtvq(
    base_path: str | os.PathLike[str],
    tuned_paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    options: RtvqOptions | None = None,
    *,
    kernels: Kernels | None = None,
    progress: Progress = silent,
) -> RtvqReport:
    """Compress fine-tunes into a folder with `base.obm` and a `TASK.obm` for each; nothing else is left behind.

    In the position, with d_t = f32(theta_t) - f32(theta_PRE) in float32: the base vector is the mean of
    f32(theta_t), over the fine-tunes that have the tensor, summed in their order in float64, less
    f32(theta_PRE), rounded to float32 and quantised; the offset d_t - base vector as decoded, in float32, is
    quantised too. All else is as in `compress_checkpoint`.

    Args:
        base_path: the backbone: a checkpoint folder, or one safetensors file.
        tuned_paths: the fine-tunes, likewise; at least one.
        out: the folder to make; it must not exist, or be empty.
        options: bits, task names, position and rest.
        kernels: None for the fastest of this machine; the files do not depend on them.
        progress: told of the phases `base vector` and `compress` in bytes; may raise to stop.

    Raises:
        CheckpointError: as `compress_checkpoint`; `exists`, `not_found` for `out`.
        BackboneMismatch, UsageError, ObmError: as `compress_checkpoint`.
    Source: Residual Task Vector Quantization; obm-1 clauses 6.7 and 11.6.
    """
    options = options or RtvqOptions()
    chosen = kernels or select_kernels()
    tasks = task_names(tuned_paths, options.tasks)
    with ExitStack() as stack, _whole_folder(Path(out)) as folder:
        base = stack.enter_context(open_checkpoint(base_path))
        runs = []
        for path, task in zip(tuned_paths, tasks, strict=True):
            tuned = stack.enter_context(open_checkpoint(path))
            runs.append(Compression(base, tuned, replace(options.common, task=task), chosen))
        reports = [_write_base(folder / BASE_FILE, base, runs, options, progress)]
        reports += _write_experts(folder, runs, options, progress)
    named = [replace(report, file=os.fspath(Path(out, Path(report.file).name))) for report in reports]
    return RtvqReport(folder=os.fspath(out), base=named[0], experts=tuple(named[1:]))


def task_names(tuned_paths: Sequence[str | os.PathLike[str]], given: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of tasks and files: those given, else the folders' names, or `expert-N` where one is no name.

    Args:
        tuned_paths: the fine-tunes.
        given: a name for each, or none at all.

    Raises:
        UsageError: `usage`: no fine-tune, another number of names, no task name, `base`, or one twice.
    """
    if not tuned_paths:
        raise UsageError("usage", "name at least one fine-tune")
    if given and len(given) != len(tuned_paths):
        raise UsageError("usage", "name each task or none", expected=f"{len(tuned_paths)} names", got=len(given))
    names = tuple(given) or tuple(_default_name(Path(path), at) for at, path in enumerate(tuned_paths, start=1))
    seen = {Path(BASE_FILE).stem}
    for name in names:
        if not name or TASK.fullmatch(name) is None:
            raise UsageError("usage", "this is no task name", expected="letters, digits, . _ -", got=ascii(name[:80]))
        # file systems may not tell upper from lower case
        if name.lower() in seen:
            raise UsageError("usage", "this name is taken by another file", got=name, hint="use --task for each")
        seen.add(name.lower())
    return names


def _default_name(path: Path, number: int) -> str:
    name = path.stem if path.is_file() else path.absolute().name
    return name if name and TASK.fullmatch(name) else f"expert-{number}"


# --- the base vector ----------------------------------------------------------------------------------------


def _write_base(
    out: Path, base: Checkpoint, runs: Sequence[Compression], options: RtvqOptions, progress: Progress
) -> CompressReport:
    sharers = _sharers(runs)
    error, done = ErrorSums(), 0
    total = sum(found.spec.nbytes for shared in sharers.values() for _, found in shared)
    with ExpertWriter(out) as writer:
        for name, shared in sharers.items():
            old = shared[0][1].base
            assert old is not None  # noqa: S101 - only floats with a counterpart are in a position
            vector = _mean_shift(name, old, base, shared)
            spec = TensorSpec(name, old.dtype, old.shape)
            encoded = _encode_base(vector, name, options.base_bits)
            record = writer.add(spec, old, Mode.DELTA, encoded, base_sha256=base.sha256(old.name))
            error.add(vector, record, encoded, runs[0].kernels)
            base.release(old.name)
            done += sum(found.spec.nbytes for _, found in shared)
            progress("base vector", done, total)
        position = options.common.position
        header = writer.commit(kind=Kind.RTVQ_BASE, position=position, backbone=backbone_id(base))
    return make_report(
        os.fspath(out), header, inside=frozenset(sharers), dense_nbytes=base.nbytes, fidelity=error.fidelity
    )


def _sharers(runs: Sequence[Compression]) -> dict[str, list[tuple[Compression, Pair]]]:
    """Who has each tensor of the position, sorted by its name; without those that are copies of others in all."""
    found: dict[str, list[tuple[Compression, Pair]]] = {}
    wanted: set[str] = set()
    for run in runs:
        wanted |= run.inside - run.aliases().keys()
        for one in run.plan.pairs:
            if one.name in run.inside:
                found.setdefault(one.name, []).append((run, one))
    return {name: found[name] for name in sorted(wanted)}


def _mean_shift(name: str, old: TensorSpec, base: Checkpoint, sharers: Sequence[tuple[Compression, Pair]]) -> Float32:
    """What the mean of the fine-tunes adds to the backbone's tensor, over the backbone's rows."""
    check_finite(base, old.name, "backbone")
    total = np.zeros(old.shape, dtype=np.float64)
    for run, found in sharers:
        check_finite(run.tuned, found.source, "fine-tune")
        words = run.tuned.words(found.source)
        if found.relation is Relation.GROWN:
            words = words[: old.shape[0]]
        total += to_float32(words, found.spec.dtype)
        run.tuned.release(found.source)
    total /= len(sharers)
    total -= to_float32(base.words(old.name), old.dtype)
    with np.errstate(over="ignore"):
        mean: Float32 = total.astype(np.float32)
    if not np.isfinite(mean).all():
        raise CheckpointError(
            "not_finite_input", "fine-tunes and backbone differ by more than float32 holds", where=name
        )
    return mean


def _encode_base(vector: Float32, name: str, bits: int) -> Encoded:
    if not vector.any():
        return Encoded(params=ZeroParams(), parts=())
    return affine.encode(vector, bits=bits, rows=matrix_rows(name, vector.shape))


# --- the experts --------------------------------------------------------------------------------------------


def _write_experts(
    folder: Path, runs: Sequence[Compression], options: RtvqOptions, progress: Progress
) -> Iterator[CompressReport]:
    total, done = sum(run.tuned.nbytes for run in runs), 0
    with open_expert(folder / BASE_FILE) as expert:
        shared = SharedBase(expert=expert, bits=options.offset_bits)
        for run in runs:

            def shifted(phase: str, now: int, _: int, done: int = done) -> None:
                progress(phase, done + now, total)

            yield run.write(folder / f"{run.options.task}.obm", shifted, shared)
            done += run.tuned.nbytes


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which is put in place at the end, or removed on any error."""
    refuse_occupied(target)
    partial = target.parent / f".{target.name[:40]}.{secrets.token_hex(8)}.partial"
    try:
        with _os_errors(target):
            partial.mkdir()
        yield partial
        refuse_occupied(target)
        with _os_errors(target):
            sync_folder(partial)
            partial.rename(target)
            sync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _os_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, str(target)) from error

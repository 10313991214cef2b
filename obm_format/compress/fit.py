"""Choose an encoding for every tensor, so that the file fits into a budget and keeps as much as it can.

A first pass over both checkpoints measures every way to store every tensor, one tensor in memory at a time; what stays
of it are numbers. The writing is the second pass. See docs/adr/0014. Source: design page, "Defaults, and why".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from obm_format.codecs.base import Encoded
from obm_format.compress import allocate, measure
from obm_format.compress.accounting import file_nbytes, fixed_nbytes, record_nbytes
from obm_format.compress.allocate import Option, Step
from obm_format.compress.budget import Budget
from obm_format.compress.choices import Choice, Chosen, Fitted, Unaffordable, candidates, with_gain
from obm_format.compress.compression import Compression, backbone_id
from obm_format.compress.measure import Fidelity
from obm_format.compress.options import FIT
from obm_format.errors import ObmError
from obm_format.kernels.words import Float32
from obm_format.model import Attachment, Kind, Manifest, Mode, TensorRecord
from obm_format.positions import matrix_rows, role_of
from obm_format.progress import Progress, silent
from obm_format.taskvector import Pair, difference

_DIGITS = 16  # of an offset: more than any file needs
_SPARSE_SHARE = 4  # sparse elements take six bytes each: not tried where more than one in four is not zero


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """One measured way to store one tensor; `choice` is None where there is no other."""

    record: TensorRecord
    nbytes: int
    choice: Choice | None = None
    fidelity: Fidelity = field(default_factory=Fidelity)


def fit(compression: Compression, budget: Budget, progress: Progress = silent) -> Fitted:
    """Measure all tensors and choose.

    Args:
        compression: the fine-tune against its backbone.
        budget: what the whole file may take.
        progress: told of phase `measure` in bytes of the fine-tune; may raise to stop.

    Returns:
        a choice for every tensor that there is a choice for; a file written by it has at most the budget's bytes.

    Raises:
        ObmError: `budget_too_small`, naming the smallest size.
        CheckpointError: as `compress_checkpoint`.
    """
    limit = budget.limit(compression.tuned.nbytes)
    ways, aliases = _measure_all(compression, progress)
    frame = _frame(compression, aliases)
    ladders = _Ladders(ways, frame)
    if ladders.smallest > limit:
        raise _too_small(limit, ladders.smallest, compression)
    reached, refused = ladders.spend(limit)
    chosen = {name: ladders.way(name, rung) for name, rung in reached.items()}
    return Fitted(
        limit=limit,
        smallest=ladders.smallest,
        largest=ladders.largest,
        chosen=tuple(_chosen(way, way.choice) for way in chosen.values() if way.choice is not None),
        refused=None if refused is None else _unaffordable(refused, ladders),
    )


class _Ladders:
    """The ways to store all tensors, as ladders, and what whole files of them take.

    Args:
        ways: by tensor, sorted by name.
        frame: the manifest without records.
    """

    def __init__(self, ways: Mapping[str, Sequence[_Way]], frame: Manifest) -> None:
        # no offset in a file has more digits than this sum has
        most = sum(max(record_nbytes(way.record, _DIGITS) for way in some) for some in ways.values())
        digits = len(str(fixed_nbytes(frame, _DIGITS) + most))
        self._ways: dict[str, list[_Way]] = {}
        self._steps: dict[str, list[Step]] = {}
        self._cheapest = fixed_nbytes(frame, digits)
        for name, some in ways.items():
            options = [Option(nbytes=record_nbytes(way.record, digits), fidelity=way.fidelity) for way in some]
            rungs = allocate.ladder(options)
            self._steps[name] = allocate.steps(name, options, rungs)
            self._ways[name] = [some[rung] for rung in rungs]
            self._cheapest += options[rungs[0]].nbytes
        self._frame = frame
        self.smallest = self._file_nbytes(0)
        self.largest = self._file_nbytes(-1)

    def spend(self, limit: int) -> tuple[dict[str, int], Step | None]:
        """The rung of each tensor within `limit` bytes, and the best step that does not fit."""
        if self.largest <= limit:
            return dict.fromkeys(self._ways, -1), None
        return allocate.allocate(self._steps, limit - self._cheapest)

    def way(self, name: str, rung: int) -> _Way:
        """How a tensor is stored on a rung."""
        return self._ways[name][rung]

    def _file_nbytes(self, rung: int) -> int:
        records = tuple(some[rung].record for some in self._ways.values())
        return file_nbytes(replace(self._frame, tensors=records))


def _frame(compression: Compression, aliases: Sequence[tuple[str, str]]) -> Manifest:
    """The manifest that will be written, but for its records."""
    files = [(file.name, file.stat().st_size) for file in compression.side_files()]
    return Manifest(
        kind=Kind.TASK_VECTOR,
        task=compression.options.task,
        position=compression.options.position,
        backbone=backbone_id(compression.base),
        aliases=tuple(sorted(aliases)),
        removed=tuple(sorted(compression.plan.removed)),
        prefix=compression.plan.prefix,
        attachments=tuple(Attachment(name=name, nbytes=nbytes) for name, nbytes in sorted(files)),
    )


# --- measuring ----------------------------------------------------------------------------------------------


def _measure_all(compression: Compression, progress: Progress) -> tuple[dict[str, list[_Way]], list[tuple[str, str]]]:
    ways: dict[str, list[_Way]] = {}
    aliases: list[tuple[str, str]] = []
    with closing(compression.walk("measure", progress)) as walk:
        for found, target in walk:
            if target is None:
                ways[found.name] = list(_ways(compression, found))
            else:
                aliases.append((found.name, target))
    return ways, aliases


def _ways(compression: Compression, found: Pair) -> Iterator[_Way]:
    """All ways to store one tensor; a single one where the budget has no say."""
    inside = found.name in compression.inside
    chooses = inside or compression.options.rest == FIT
    if not (chooses and compression.may_lose(found)):
        yield _way(found, *compression.encode(found))
        return
    d = difference(found, compression.base, compression.tuned, compression.kernels)
    if not d.any():
        # equal values and other bits: nothing to keep along d
        yield _way(found, *compression.encode(found))
        return
    alpha = compression.options.alpha if compression.options.asked_alpha else None
    for choice in candidates(d.shape, alpha, signs=inside):
        if choice.encoding == "sparse" and np.count_nonzero(d) * _SPARSE_SHARE > d.size:
            continue
        way = _measured(compression, found, d, choice)
        yield way
        finer = with_gain(choice, way.fidelity.kept)
        if finer is not None:
            yield _measured(compression, found, d, finer)


def _measured(compression: Compression, found: Pair, d: Float32, choice: Choice) -> _Way:
    kernels, rows = compression.kernels, matrix_rows(found.name, d.shape)
    if choice.encoding in ("exact", "zero"):
        mode, encoded = compression.store(found, choice)
        whole = measure.exact(d, rows=rows, kernels=kernels)
        nothing = Fidelity(shift=whole.shift, lost=whole.shift, skew=whole.shift)
        return _way(found, mode, encoded, choice, whole if choice.encoding == "exact" else nothing)
    values = compression.encode_values(d, found, choice)
    record = TensorRecord(spec=found.spec, base=found.base, mode=Mode.DELTA, params=values.params)
    fidelity = measure.measure(d, record, values, rows=rows, kernels=kernels)
    return _way(found, Mode.DELTA, compression.with_tail(values, found), choice, fidelity)


def _way(
    found: Pair, mode: Mode, encoded: Encoded, choice: Choice | None = None, fidelity: Fidelity | None = None
) -> _Way:
    record = TensorRecord(spec=found.spec, base=found.base, mode=mode, params=encoded.params)
    return _Way(record=record, nbytes=encoded.nbytes, choice=choice, fidelity=fidelity or Fidelity())


# --- what it says -------------------------------------------------------------------------------------------


def _chosen(way: _Way, choice: Choice) -> Chosen:
    record = way.record
    return Chosen(
        name=record.name,
        role=role_of(record.name, record.spec.shape).value,
        choice=choice,
        nbytes=way.nbytes,
        numel=record.encoded_numel,
        fidelity=way.fidelity,
    )


def _unaffordable(step: Step, ladders: _Ladders) -> Unaffordable:
    choice = ladders.way(step.tensor, step.rung).choice
    assert choice is not None  # noqa: S101 - a ladder of one way has no step
    return Unaffordable(name=step.tensor, choice=choice, nbytes=step.nbytes)


def _too_small(limit: int, smallest: int, compression: Compression) -> ObmError:
    dense = compression.tuned.nbytes
    drop = compression.options.rest != "drop"
    return ObmError(
        "budget_too_small",
        "the expert cannot be made so small",
        where=str(compression.tuned.path),
        expected=f"at least {smallest} bytes ({smallest / dense:.4f} of the dense fine-tune)",
        got=f"{limit} bytes",
        hint="raise the budget" + (", or leave out what is outside the position (--rest drop)" if drop else ""),
    )

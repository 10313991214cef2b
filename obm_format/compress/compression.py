"""One fine-tune against its backbone, tensor by tensor, into one expert.

One tensor is in memory at a time; digests and checks of the next ones run in a thread beside the encoding,
and no byte of the file depends on threads, folders or dates. Never decides how bits lie (`codecs`) or where
parts lie (`container`). Source: design page, "Format" and "Defaults"; obm-1 clause 11.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from obm_format.checkpoint import Checkpoint
from obm_format.codecs import affine, catalogue, raw, rtvq, sign1, sparse, tern1
from obm_format.codecs.base import Encoded, with_tail
from obm_format.compress.choices import Choice, Fitted
from obm_format.compress.measure import ErrorSums
from obm_format.compress.options import FIT, CompressOptions
from obm_format.compress.report import CompressReport, make_report
from obm_format.errors import CheckpointError, UsageError
from obm_format.expert import Expert, ExpertWriter
from obm_format.kernels.contract import Kernels
from obm_format.kernels.words import Float32
from obm_format.limits import DEFAULT_LIMITS
from obm_format.model import BackboneId, Granularity, Kind, Mode, RtvqParams, TensorRecord, TensorSpec, ZeroParams
from obm_format.positions import blocks_of, matrix_rows, select
from obm_format.progress import Progress, silent
from obm_format.taskvector import Pair, Relation, check_difference, check_finite, difference, pair

_AHEAD = 4  # tensors that are hashed and checked before their turn


def backbone_id(base: Checkpoint, progress: Progress = silent) -> BackboneId:
    """What an expert's manifest says of its backbone (obm-1 clause 10.2); hashes it."""
    return BackboneId(
        fingerprint=base.fingerprint(progress),
        n_tensors=len(base.tensors),
        n_params=sum(spec.numel for spec in base.tensors.values()),
        architecture=base.architecture,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBase:
    """The base vector that the offsets of several experts are taken from.

    Args:
        expert: the artifact of kind rtvq-base that holds it, open; it has every tensor of the position.
        bits: bits of an offset.
    """

    expert: Expert
    bits: int


class Compression:
    """One fine-tune against its backbone: what all its tensors share, and what was measured on the way.

    Args:
        base: the backbone.
        tuned: the fine-tune; both stay the caller's.
        options: how to compress.
        kernels: the arithmetic.

    Raises:
        CheckpointError, BackboneMismatch, UsageError: as `compress_checkpoint`.
    """

    def __init__(self, base: Checkpoint, tuned: Checkpoint, options: CompressOptions, kernels: Kernels) -> None:
        self.base = base
        self.tuned = tuned
        self.plan = pair(base, tuned, allow_removed=options.allow_removed)
        self.options = options
        self.kernels = kernels
        self.config = base.config() or tuned.config()
        floats = [
            TensorSpec(found.name, found.spec.dtype, found.encoded_shape) for found in self.plan.pairs if found.is_float
        ]
        self.inside = select(floats, options.position, base.architecture)
        self._error = ErrorSums()

    def write(
        self,
        out: str | os.PathLike[str],
        progress: Progress = silent,
        shared: SharedBase | None = None,
        fitted: Fitted | None = None,
    ) -> CompressReport:
        """Write the expert; on any error nothing is left behind.

        Args:
            out: the file.
            progress: told of phase `compress` in bytes of the fine-tune; may raise to stop.
            shared: store the tensors of the position as `rtvq` offsets from it, whatever the options say.
            fitted: how to store the tensors that a budget chose for, whatever the options say.

        Raises:
            ObmError: as `compress_checkpoint`.
        """
        self._error = ErrorSums()
        with ExpertWriter(out) as writer:
            aliases = self._write_tensors(writer, progress, shared, fitted)
            for file in self.side_files():
                writer.attach(file.name, file.read_bytes())
            refers = any(isinstance(record.params, RtvqParams) for record in writer.records)
            header = writer.commit(
                kind=Kind.TASK_VECTOR,
                task=self.options.task,
                position=self.options.position,
                backbone=backbone_id(self.base),
                aliases=aliases,
                removed=self.plan.removed,
                prefix=self.plan.prefix,
                refs=(shared.expert.id,) if shared is not None and refers else (),
            )
        return make_report(
            os.fspath(out),
            header,
            inside=self.inside if fitted is None else fitted.approximate,
            dense_nbytes=self.tuned.nbytes,
            fidelity=self._error.fidelity if fitted is None else fitted.fidelity,
            fitted=fitted,
        )

    def aliases(self) -> dict[str, str]:
        """The tensors that are stored as copies of others, with those; hashes what it needs to know that."""
        targets: dict[tuple[object, ...], Pair] = {}
        twins = ((found.name, self._twin(found, targets)) for found in self.plan.pairs)
        return {name: target for name, target in twins if target is not None}

    def walk(self, phase: str, progress: Progress) -> Generator[tuple[Pair, str | None], None, None]:
        """The tensors in the order of their names, each hashed and found finite, with those they are copies of.

        Memory of a tensor is given back when the next one is asked for. Close the generator on any error: the
        thread that hashes ahead must not outlive the checkpoints.

        Args:
            phase: what `progress` is told of, in bytes of the fine-tune.
            progress: may raise to stop.
        """
        targets: dict[tuple[object, ...], Pair] = {}
        done, total = 0, self.tuned.nbytes
        with closing(self._vetted()) as vetted:
            for found in vetted:
                yield found, self._twin(found, targets)
                self.tuned.release(found.source)
                if found.base is not None:
                    self.base.release(found.base.name)
                done += found.spec.nbytes
                progress(phase, done, total)

    def side_files(self) -> list[Path]:
        """Files of the fine-tune that travel along: those that the backbone has not or has otherwise."""
        return _changed_side_files(self.base, self.tuned)

    def _write_tensors(
        self, writer: ExpertWriter, progress: Progress, shared: SharedBase | None, fitted: Fitted | None
    ) -> list[tuple[str, str]]:
        """Encode and write all tensors, sorted by name; give the aliases."""
        aliases: list[tuple[str, str]] = []
        with closing(self.walk("compress", progress)) as walk:
            for found, target in walk:
                if target is not None:
                    aliases.append((found.name, target))
                    continue
                choice = None if fitted is None else fitted.choices.get(found.name)
                self._write(found, writer, *self.encode(found, shared) if choice is None else self.store(found, choice))
        return aliases

    def _write(self, found: Pair, writer: ExpertWriter, mode: Mode, encoded: Encoded) -> None:
        record = TensorRecord(spec=found.spec, base=found.base, mode=mode, params=encoded.params)
        writer.add(
            found.spec,
            found.base,
            mode,
            encoded,
            base_sha256=None if found.base is None else self.base.sha256(found.base.name),
            out_sha256=self.tuned.sha256(found.source) if record.is_exact else None,
        )

    def encode(self, found: Pair, shared: SharedBase | None = None) -> tuple[Mode, Encoded]:
        """A tensor as the options say."""
        if found.name in self.inside:
            return Mode.DELTA, self._encode_inside(found, shared)
        return self._encode_rest(found)

    def store(self, found: Pair, choice: Choice) -> tuple[Mode, Encoded]:
        """A float tensor as `choice` says, with its tail where it grew.

        Args:
            found: a pair with `is_float` that has elements.
            choice: how.
        """
        if choice.encoding == "exact":
            return self._encode_exact(found)
        if choice.encoding == "zero":
            return Mode.DELTA, self.with_tail(Encoded(params=ZeroParams(), parts=()), found)
        d = difference(found, self.base, self.tuned, self.kernels)
        return Mode.DELTA, self.with_tail(self.encode_values(d, found, choice), found)

    def encode_values(self, d: Float32, found: Pair, choice: Choice) -> Encoded:
        """The task vector of a tensor by an approximate encoding, without tail.

        Args:
            d: float32, finite, not all zero.
            found: whose.
            choice: how.
        """
        rows = matrix_rows(found.name, d.shape)
        if choice.alpha is None:
            bits = _affine_bits(choice.encoding)
            return sparse.encode_delta(d) if bits is None else affine.encode(d, bits=bits, rows=rows)
        alpha, blocks = choice.alpha, blocks_of(found.name, d.shape, self.config)
        if alpha.granularity is Granularity.MATRIX and blocks is not None:
            alpha = replace(alpha, granularity=Granularity.BLOCK, blocks=blocks)
        if choice.encoding == "tern1":
            return tern1.encode(d, alpha, rows=rows, kernels=self.kernels)
        return sign1.encode(d, alpha, rows=rows, planes=choice.planes, kernels=self.kernels)

    def _vetted(self) -> Generator[Pair, None, None]:
        """The pairs in order, each hashed and found finite; then the rest of the backbone likewise.

        The hashing of the next ones runs in a thread, so that it costs no time beside the encoding.
        """
        pool = ThreadPoolExecutor(1)
        pairs, ahead = iter(self.plan.pairs), deque[tuple[Pair, Future[None]]]()
        try:
            for found in itertools.islice(pairs, _AHEAD):
                ahead.append((found, pool.submit(self._vet, found)))
            while ahead:
                found, vetted = ahead.popleft()
                vetted.result()
                for following in itertools.islice(pairs, 1):
                    ahead.append((following, pool.submit(self._vet, following)))
                yield found
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        for name in self.plan.removed:
            check_finite(self.base, name, "backbone")

    def _vet(self, found: Pair) -> None:
        # obm-1 clause 11.1
        if found.base is not None:
            self.base.sha256(found.base.name)
            check_finite(self.base, found.base.name, "backbone")
        if found.name not in self.inside:
            self.tuned.sha256(found.source)
        check_finite(self.tuned, found.source, "fine-tune")
        if found.name not in self.inside:
            check_difference(found, self.base, self.tuned, self.kernels)

    def _twin(self, found: Pair, targets: dict[tuple[object, ...], Pair]) -> str | None:
        """The tensor that this one is tied to: equal bytes, and so in the backbone (obm-1 clause 5.8).

        Vectors and unchanged tensors cost next to nothing and are often equal by chance: they are no twins.
        """
        if len(found.spec.shape) < 2:
            return None
        old = None if found.base is None else self.base.sha256(found.base.name)
        shapes = (found.spec.dtype, found.spec.shape, found.base and (found.base.dtype, found.base.shape))
        # tuned tensors in the position are hashed only where their backbone tensors are twins already
        key = (*shapes, old, found.name in self.inside, *(() if old else (self.tuned.sha256(found.source),)))
        target = targets.setdefault(key, found)
        if target is found:
            return None
        digest = self.tuned.sha256(found.source)
        return target.name if digest == self.tuned.sha256(target.source) != old else None

    # --- inside the position ---

    def _encode_inside(self, found: Pair, shared: SharedBase | None) -> Encoded:
        d = difference(found, self.base, self.tuned, self.kernels)
        # obm-1 clause 11.1: an all-zero task vector in the position is `zero`
        if not d.any():
            return self.with_tail(Encoded(params=ZeroParams(), parts=()), found)
        reference = None if shared is None else shared.expert.values(found.name)
        if shared is None or reference is None:
            encoded = self.encode_values(d, found, self.options.choice)
        else:
            encoded = rtvq.encode(d, reference, bits=shared.bits, rows=matrix_rows(found.name, d.shape))
        record = TensorRecord(spec=found.spec, base=found.base, mode=Mode.DELTA, params=encoded.params)
        self._error.add(d, record, encoded, self.kernels, reference)
        return self.with_tail(encoded, found)

    def with_tail(self, encoded: Encoded, found: Pair) -> Encoded:
        """`encoded`, with the grown rows of the tensor behind it, if it has any."""
        if found.relation is not Relation.GROWN:
            return encoded
        return with_tail(encoded, self.tuned.words(found.source)[found.encoded_shape[0] :])

    # --- outside the position ---

    def _encode_rest(self, found: Pair) -> tuple[Mode, Encoded]:
        rest, words = self.options.rest, self.tuned.words(found.source)
        if found.base is None and rest == "drop":
            raise UsageError(
                "usage",
                "the backbone lacks this tensor, so it cannot be dropped",
                where=found.name,
                hint="use --rest exact",
            )
        if rest == "raw" or found.relation is Relation.RESHAPED:
            mode = Mode.ADDED if found.base is None else Mode.REPLACE
            return mode, raw.encode(words, found.spec.dtype, framed=False if rest == "raw" else None)
        if rest not in ("exact", FIT) and self.may_lose(found):
            return self.store(found, Choice(encoding="zero" if rest == "drop" else rest))
        return self._encode_exact(found)

    def _encode_exact(self, found: Pair) -> tuple[Mode, Encoded]:
        words, old = self.tuned.words(found.source), None if found.base is None else self.base.words(found.base.name)
        dtypes = found.spec.dtype, None if found.base is None else found.base.dtype
        return catalogue.encode_exact(words, old, *dtypes)

    def may_lose(self, found: Pair) -> bool:
        """Whether a lossy encoding touches this tensor: it has elements, and a counterpart of other bytes."""
        if found.base is None or not found.is_float or not math.prod(found.encoded_shape):
            return False
        return self.tuned.sha256(found.source) != self.base.sha256(found.base.name)


def _changed_side_files(base: Checkpoint, tuned: Checkpoint) -> list[Path]:
    """Files of the fine-tune that travel along, and that the backbone has not or has otherwise."""
    old = {file.name: file for file in base.side_files()}
    changed = []
    for file in tuned.side_files():
        if file.stat().st_size > DEFAULT_LIMITS.attachment_nbytes:
            raise CheckpointError(
                "limit_exceeded",
                "the file is too large to travel with an expert",
                where=str(file),
                expected=f"at most {DEFAULT_LIMITS.attachment_nbytes} bytes",
            )
        if file.name not in old or old[file.name].read_bytes() != file.read_bytes():
            changed.append(file)
    return changed


def _affine_bits(encoding: str) -> int | None:
    return int(encoding.removeprefix("affine")) if encoding.startswith("affine") else None

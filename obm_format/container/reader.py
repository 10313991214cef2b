"""Open a file and give its parts, whole or in ranges; never a byte that its digest does not cover.

Knows nothing of what parts mean: that is the codecs' work. Source: obm-1 clauses 7, 8 and 14.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from obm_format.container.header import Header, read_header
from obm_format.container.pools import DIGEST_NBYTES, FRAME_NBYTES, PoolIndex, index_pools
from obm_format.container.sources import AnySource, Source, open_source
from obm_format.container.table import attachment_part_name, part_name, pool_part_name
from obm_format.container.verify import Check, Defect, check_digest, check_padding, verify_parts
from obm_format.digest import sha256
from obm_format.errors import FormatError, ObmError, UsageError
from obm_format.layout import frame_count, part_layouts
from obm_format.limits import DEFAULT_LIMITS, Limits
from obm_format.model import (
    CHUNK_NBYTES,
    POOL_NAMES,
    SUM_NBYTES,
    SUMS_FROM_NBYTES,
    Manifest,
    Part,
    TensorRecord,
)
from obm_format.progress import Progress, silent

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Container", "Defect", "Frame", "RecordDigests"]

_FRAME_SLACK: Final = 65_536  # obm-1 clause 8.2: a frame is at most this much longer than what it holds
_CACHED_NBYTES: Final = 2 * SUMS_FROM_NBYTES
_NamedCheck = tuple[str, Callable[[], None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordDigests:
    """The digests of one record (obm-1 clause 7.4), 32 bytes each.

    Args:
        base: of the backbone tensor; None in mode added.
        out: of the rebuilt tensor; None where it is not exact.
        parts: of its parts, in order.
    """

    base: bytes | None
    out: bytes | None
    parts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One zstd frame of a framed part (obm-1 clause 8.2).

    Args:
        nbytes: compressed bytes.
        raw_nbytes: bytes when decompressed.
        offset: where it begins in its part, in bytes.
        sha256: of the compressed bytes.
    """

    nbytes: int
    raw_nbytes: int
    offset: int
    sha256: bytes


class _Recent:
    """The last verified parts, up to a few MiB: row ranges of a part should not hash all of it each time."""

    def __init__(self) -> None:
        self._parts: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> bytes | None:
        with self._lock:
            return self._parts.get(name)

    def put(self, name: str, data: bytes) -> None:
        with self._lock:
            self._parts[name] = data
            while sum(map(len, self._parts.values())) > _CACHED_NBYTES:
                self._parts.popitem(last=False)


def _parse_frames(part: Part, entries: bytes, raw_nbytes: int) -> tuple[Frame, ...]:
    """The frame table of a part whose entries in the frame pool are `entries` (obm-1 clause 8.2)."""
    frames: list[Frame] = []
    offset = 0
    for at in range(0, len(entries), FRAME_NBYTES):
        raw = min(CHUNK_NBYTES, raw_nbytes - len(frames) * CHUNK_NBYTES)
        nbytes = int.from_bytes(entries[at : at + 4], "little")
        if not 0 < nbytes <= raw + _FRAME_SLACK:
            raise FormatError(
                "bad_frame", "no frame has this length", where=f"{part.name}, frame {len(frames)}", got=nbytes
            )
        frames.append(Frame(nbytes=nbytes, raw_nbytes=raw, offset=offset, sha256=entries[at + 4 : at + FRAME_NBYTES]))
        offset += nbytes
    if offset != part.nbytes:
        raise FormatError("bad_frame", "the frames are not the part", where=part.name, expected=part.nbytes, got=offset)
    return tuple(frames)


class Container:
    """An open `.obm` file whose header has been checked.

    All methods may be called from several threads. Use `Container.open`.

    Args:
        source: where the bytes are; closed with the container.
        header: its checked header.
    """

    def __init__(self, source: Source, header: Header) -> None:
        self.header = header
        self._source = source
        self._index: PoolIndex | None = None
        self._pools: dict[str, bytes] = {}
        self._frames: dict[str, tuple[Frame, ...]] = {}
        self._recent = _Recent()
        self._sound_sums: set[tuple[str, int]] = set()
        self._lock = threading.RLock()

    @classmethod
    def open(
        cls,
        source: AnySource,
        *,
        expected_id: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
        mapped: bool = False,
    ) -> Self:
        """Open a file and check its header; parts are read later.

        Args:
            source: a path, the bytes of a file, or a source, which then belongs to the container.
            expected_id: artifact id that the file must have.
            limits: bounds on what is accepted.
            mapped: map a path into memory instead of reading it.

        Raises:
            FormatError: the header is not sound, or not that of `expected_id` (reason `artifact_id`).
            ObmError: the file cannot be read (`not_found`, `io`, `network`).
        """
        opened = open_source(source, mapped=mapped)
        try:
            return cls(opened, read_header(opened, limits, expected_id=expected_id))
        except FormatError as error:
            opened.close()
            error.where = f"{opened.name}: {error.where}" if error.where else opened.name
            raise
        except BaseException:
            opened.close()
            raise

    @property
    def id(self) -> str:
        """Artifact id."""
        return self.header.id

    @property
    def manifest(self) -> Manifest:
        """The manifest."""
        return self.header.manifest

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""
        return self.header.file_nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    # --- pools ----------------------------------------------------------------------------------------------

    def pool(self, name: str) -> bytes:
        """The bytes of a pool, read and verified once.

        Args:
            name: `digests`, `alphas`, `frames` or `sums`.

        Returns:
            its bytes without padding; empty where the file has no such pool.

        Raises:
            FormatError: `part_digest`, `pad_not_zero`, `truncated`.
        """
        with self._lock:
            if name not in self._pools:
                pool = self.header.pools.get(name)
                part = self.header.parts.get(pool_part_name(name))
                self._pools[name] = (
                    b"" if pool is None or part is None else self._whole(Check(part=part, sha256=pool.sha256))
                )
            return self._pools[name]

    @property
    def _places(self) -> PoolIndex:
        # Two threads may make it side by side: both make the same.
        if self._index is None:
            self._index = index_pools(self.manifest)
        return self._index

    def digests(self, record: TensorRecord) -> RecordDigests:
        """The digests of a record.

        Raises:
            FormatError: the digest pool is damaged (`part_digest`, `pad_not_zero`, `truncated`).
        """
        at, count = self._places.records[record.name]
        pool = self.pool("digests")
        cut = [pool[at + i * DIGEST_NBYTES : at + (i + 1) * DIGEST_NBYTES] for i in range(count)]
        base = cut.pop(0) if record.base is not None else None
        out = cut.pop(0) if record.is_exact else None
        return RecordDigests(base=base, out=out, parts=tuple(cut))

    def alphas(self, record: TensorRecord) -> bytes:
        """What the alpha pool holds for a record (obm-1 clause 7.5); empty where its encoding has none.

        Raises:
            FormatError: the alpha pool is damaged (`part_digest`, `pad_not_zero`, `truncated`).
        """
        at, nbytes = self._places.alphas[record.name]
        return self.pool("alphas")[at : at + nbytes]

    def _digest(self, name: str) -> bytes:
        at = self._places.digests[name]
        return self.pool("digests")[at : at + DIGEST_NBYTES]

    # --- parts ----------------------------------------------------------------------------------------------

    def part(self, record: TensorRecord, suffix: str) -> memoryview:
        """A whole part, its digest and padding checked.

        Raises:
            FormatError: `part_digest`, `pad_not_zero`, `truncated`.
            UsageError: the record has no such part.
        """
        return memoryview(self._verified(self._part(record, suffix)))

    def part_range(self, record: TensorRecord, suffix: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a part that is not framed, verified.

        A part with sums is read a little beyond the range, another one whole.

        Raises:
            FormatError: `part_digest`, `pad_not_zero`, `truncated`.
            UsageError: the record has no such part, it is framed, or the range leaves it.
        """
        part = self._part(record, suffix)
        if part.raw_nbytes is not None or not 0 <= start <= stop <= part.nbytes:
            raise UsageError(
                "usage",
                "no such range in an unframed part",
                where=part.name,
                got=f"{start} to {stop} of {part.nbytes}",
            )
        if part.name in self._places.sums:
            return self._summed_range(part, start, stop)
        data = self._recent.get(part.name)
        if data is None:
            data = self._verified(part)
            self._recent.put(part.name, data)
        return data[start:stop]

    def frames(self, record: TensorRecord, suffix: str) -> tuple[Frame, ...]:
        """The frame table of a framed part (obm-1 clause 8.2).

        Raises:
            FormatError: lengths outside their bounds or of another sum (`bad_frame`); a damaged pool
                (`part_digest`, `pad_not_zero`, `truncated`).
            UsageError: the record has no such part, or it is not framed.
        """
        part = self._part(record, suffix)
        if part.raw_nbytes is None:
            raise UsageError("usage", "the part is not framed", where=part.name)
        with self._lock:
            if part.name not in self._frames:
                at = self._places.frames[part.name]
                entries = self.pool("frames")[at : at + FRAME_NBYTES * frame_count(part.raw_nbytes)]
                self._frames[part.name] = _parse_frames(part, entries, part.raw_nbytes)
            return self._frames[part.name]

    def frame(self, record: TensorRecord, suffix: str, i: int) -> bytes:
        """The compressed bytes of frame `i` of a framed part, its digest checked.

        Raises:
            FormatError: `frame_digest`, and as `frames`.
            UsageError: as `frames`.
        """
        part, frame = self._part(record, suffix), self.frames(record, suffix)[i]
        data = self._source.read(part.offset + frame.offset, frame.nbytes)
        if sha256(data) != frame.sha256:
            raise FormatError("frame_digest", "the frame does not hash to its digest", where=f"{part.name}, frame {i}")
        return data

    def attachment(self, name: str) -> bytes:
        """The bytes of an attachment, its digest and padding checked.

        Raises:
            FormatError: `part_digest`, `pad_not_zero`, `truncated`.
            ObmError: there is no such attachment (reason `not_found`).
        """
        known = [attachment.name for attachment in self.manifest.attachments]
        if name not in known:
            raise ObmError("not_found", "there is no such attachment", where=name, expected=", ".join(known) or "none")
        return self._verified(self._attachment_part(name))

    def _attachment_part(self, name: str) -> Part:
        key = attachment_part_name(name)
        # An attachment of no bytes has a digest but no part (obm-1 clause 2.3).
        return self.header.parts.get(key) or Part(name=key, offset=self.nbytes, nbytes=0)

    def _part(self, record: TensorRecord, suffix: str) -> Part:
        part = self.header.parts.get(part_name(record.name, suffix))
        if part is None:
            raise UsageError("usage", "the record has no such part", where=record.name, got=suffix)
        return part

    def _verified(self, part: Part) -> bytes:
        return self._whole(Check(part=part, sha256=self._digest(part.name)))

    def _whole(self, check: Check) -> bytes:
        part = check.part
        data = self._source.read(part.offset, part.nbytes)
        # obm-1 clauses 7.2, 2.3; clause 14.1: digests before padding
        check_digest(check, sha256(data))
        pad = self._source.read(part.offset + part.nbytes, part.padded_nbytes - part.nbytes)
        check_padding(part.name, pad_is_zero=not any(pad))
        return data

    def _summed_range(self, part: Part, start: int, stop: int) -> bytes:
        """Bytes of a part with sums: whole runs are read and checked, then cut (obm-1 clause 8.3)."""
        first, last = start // SUM_NBYTES, -(-stop // SUM_NBYTES)
        begin, end = first * SUM_NBYTES, min(last * SUM_NBYTES, part.nbytes)
        if begin >= end:
            return b""
        data = self._source.read(part.offset + begin, end - begin)
        self._check_sums(part, data, first)
        return data[start - begin : stop - begin]

    def _check_sums(self, part: Part, data: bytes, first: int) -> None:
        at = self._places.sums[part.name]
        pool = self.pool("sums")
        view = memoryview(data)
        for i, begin in enumerate(range(0, len(data), SUM_NBYTES), first):
            expected = pool[at + i * DIGEST_NBYTES : at + (i + 1) * DIGEST_NBYTES]
            if sha256(view[begin : begin + SUM_NBYTES]) != expected:
                raise FormatError(
                    "part_digest",
                    "a run of the part does not hash to its sum",
                    where=f"{part.name}, byte {i * SUM_NBYTES}",
                    hint="fetch or copy the file again",
                )
            self._sound_sums.add((part.name, i))

    # --- verification ---------------------------------------------------------------------------------------

    def verify(self, collect: bool = False, progress: Progress | None = None, *, deep: bool = False) -> list[Defect]:
        """Read every byte of every part: digests and padding (obm-1 clause 14.2).

        The header has been checked already. Two threads hash; no part is held whole.

        Args:
            collect: find all defects; otherwise stop after the first.
            progress: told how many bytes are done, from the hashing threads; may raise to stop.
            deep: also check every frame and sum against its own digest.

        Returns:
            defects in file order; empty for a sound file.

        Raises:
            ObmError: the file cannot be read (reasons `io`, `network`).
        """
        told = progress or silent
        pools = self._pool_checks()
        defects = verify_parts(self._source, pools, collect=True, progress=silent)
        # The other digests are in a pool: without it there is nothing to hold the parts against.
        if defects:
            return defects if collect else defects[:1]
        defects = verify_parts(self._source, self._part_checks(), collect=collect, progress=told)
        defects += self._empty_attachment_defects()
        if deep and (collect or not defects):
            defects += self._deep_defects(collect=collect)
        return defects if collect else defects[:1]

    def _pool_checks(self) -> list[Check]:
        return [
            Check(part=self.header.parts[pool_part_name(name)], sha256=self.header.pools[name].sha256)
            for name in POOL_NAMES
            if name in self.header.pools
        ]

    def _part_checks(self) -> list[Check]:
        pools = {pool_part_name(name) for name in POOL_NAMES}
        return [
            Check(part=part, sha256=self._digest(name)) for name, part in self.header.parts.items() if name not in pools
        ]

    def _empty_attachment_defects(self) -> list[Defect]:
        defects: list[Defect] = []
        for attachment in self.manifest.attachments:
            if not attachment.nbytes:
                try:
                    self._verified(self._attachment_part(attachment.name))
                except FormatError as error:
                    defects.append(Defect.of(error, attachment.name))
        return defects

    def sum_defects(self) -> list[Defect]:
        """Sums that do not agree with the parts, whose own digests may well be right (obm-1 clause 8.3).

        Those that agreed when a range was read are not looked at again.
        """
        return list(_failed(self._sum_checks()))

    def _deep_defects(self, *, collect: bool) -> list[Defect]:
        """Frames and sums that do not agree with the parts, in file order."""
        checks = dict(itertools.chain(self._frame_checks(), self._sum_checks()))
        failed = _failed((name, checks[name]) for name in self.header.parts if name in checks)
        return list(failed if collect else itertools.islice(failed, 1))

    def _frame_checks(self) -> Iterator[_NamedCheck]:
        for record in self.manifest.tensors:
            for layout in part_layouts(record):
                if layout.raw_nbytes is not None:
                    name = part_name(record.name, layout.suffix)
                    yield name, partial(self._check_all_frames, record, layout.suffix)

    def _sum_checks(self) -> Iterator[_NamedCheck]:
        return ((name, partial(self._check_all_sums, name)) for name in self._places.sums)

    def _check_all_frames(self, record: TensorRecord, suffix: str) -> None:
        for i in range(len(self.frames(record, suffix))):
            self.frame(record, suffix, i)

    def _check_all_sums(self, name: str) -> None:
        part = self.header.parts[name]
        for i, begin in enumerate(range(0, part.nbytes, SUM_NBYTES)):
            if (name, i) not in self._sound_sums:
                nbytes = min(SUM_NBYTES, part.nbytes - begin)
                self._check_sums(part, self._source.read(part.offset + begin, nbytes), i)


def _failed(checks: Iterable[_NamedCheck]) -> Iterator[Defect]:
    for name, check in checks:
        try:
            check()
        except FormatError as error:
            yield Defect.of(error, name)

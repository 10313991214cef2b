"""Where a file is cut into blobs, and how the blobs become the file again.

The cut is a fixed rule, so that equal files give equal blobs everywhere: first the header, whose digest is
the artifact id, then the parts in file order. Consecutive parts share a segment up to 64 MiB; a larger part
stands alone and is cut where its chunks end (frames, or sums of 1 MiB), at most 64 MiB each. Concatenated
they are the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from obm_format.container.reader import Container
from obm_format.limits import MIB
from obm_format.model import Part

SEGMENT_NBYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Segment:
    """The bytes [offset, offset + nbytes) of a file."""

    offset: int
    nbytes: int


def cut(container: Container) -> list[Segment]:
    """The segments of a file: the header, then its parts by the fixed rule.

    Args:
        container: the open file; the frame table is read where a framed part is larger than a segment.

    Returns:
        Segments without gaps, from byte 0 to the end.
    """
    header = container.header
    segments = [Segment(0, header.nbytes)]
    start = end = header.nbytes
    for part in header.parts.values():
        if part.offset + part.padded_nbytes - start > SEGMENT_NBYTES and end > start:
            segments.append(Segment(start, end - start))
            start = end
        end = part.offset + part.padded_nbytes
        if end - start > SEGMENT_NBYTES:
            segments += _pieces(start, end, _chunks(container, part))
            start = end
    if end > start:
        segments.append(Segment(start, end - start))
    return segments


def _pieces(start: int, stop: int, chunks: Iterable[int]) -> Iterator[Segment]:
    """Cut [start, stop) where chunks end, as far apart as the limit allows; padding is in the last piece."""
    begin = end = start
    for nbytes in chunks:
        if end + nbytes - begin > SEGMENT_NBYTES:
            yield Segment(begin, end - begin)
            begin = end
        end += nbytes
    yield Segment(begin, stop - begin)


def _chunks(container: Container, part: Part) -> Sequence[int]:
    if part.raw_nbytes is None:
        whole, rest = divmod(part.nbytes, MIB)
        return [MIB] * whole + ([rest] if rest else [])
    name, _, suffix = part.name.rpartition("#")
    record = next(record for record in container.manifest.tensors if record.name == name)
    return [frame.nbytes for frame in container.frames(record, suffix)]

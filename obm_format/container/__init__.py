"""Bytes to named parts and back: the frame, the header, digests and sums; nothing of what parts mean.

Standard library only. Reads from a path, from memory or by ranges; writes in place at once or not at all.
"""

from obm_format.container.header import Header, encode_header, parse_header, read_header
from obm_format.container.reader import Container, Frame, RecordDigests
from obm_format.container.sources import (
    AnySource,
    BytesSource,
    MappedSource,
    PathSource,
    RangeSource,
    Source,
    open_source,
)
from obm_format.container.verify import Defect
from obm_format.container.writer import ContainerWriter

__all__ = [
    "AnySource",
    "BytesSource",
    "Container",
    "ContainerWriter",
    "Defect",
    "Frame",
    "Header",
    "MappedSource",
    "PathSource",
    "RangeSource",
    "RecordDigests",
    "Source",
    "encode_header",
    "open_source",
    "parse_header",
    "read_header",
]

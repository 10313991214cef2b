"""What RFC 8878 and obm-1 ask of a zstd frame and the zstd library does not check.

Pure parsing of block headers; nothing is decompressed. Source: obm-1 clause 8.2, RFC 8878 sections 3.1.1.1 and 3.1.1.2.
"""

from __future__ import annotations

from typing import Final

from obm_format.errors import FormatError

MOST_BLOCK_NBYTES: Final = 128 << 10
_BLOCK_HEADER: Final = 3
_RLE: Final = 1
_DICTIONARY_FLAG: Final = 0b11


def check_form(frame: bytes, header_nbytes: int, window_nbytes: int, where: str) -> None:
    """Refuse a frame with a dictionary id, be it 0, or with a block larger than its window or 128 KiB.

    What lies beyond the end of the frame is not looked at; the library refuses a frame that is cut.

    Args:
        frame: one frame whose header is sound.
        header_nbytes: bytes before its first block.
        window_nbytes: its window, or its content where it is a single segment.
        where: the frame, for errors.

    Raises:
        FormatError: `bad_frame`.
    """
    if frame[4] & _DICTIONARY_FLAG:
        raise FormatError("bad_frame", "the frame has a dictionary", where=where)
    largest = min(window_nbytes, MOST_BLOCK_NBYTES)
    place, is_last = header_nbytes, False
    while not is_last and place + _BLOCK_HEADER <= len(frame):
        head = int.from_bytes(frame[place : place + _BLOCK_HEADER], "little")
        is_last, kind, nbytes = bool(head & 1), head >> 1 & 3, head >> 3
        if nbytes > largest:
            raise FormatError(
                "bad_frame", "a block is too large", where=where, expected=f"at most {largest} bytes", got=nbytes
            )
        place += _BLOCK_HEADER + (1 if kind == _RLE else nbytes)

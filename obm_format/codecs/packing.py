"""Codes of 2, 3, 4 or 8 bits, packed least significant bit first in rows that end on a byte.

Source: obm-1 clause 6.2.
"""

from __future__ import annotations

import numpy as np

from obm_format.codecs.base import Bytes
from obm_format.errors import FormatError
from obm_format.layout import packed_row_nbytes

# bits: codes and bytes of the shortest run that ends on a byte
_UNIT = {2: (4, 1), 3: (8, 3), 4: (2, 1), 8: (1, 1)}


def pack_codes(codes: Bytes, bits: int) -> Bytes:
    """Pack codes.

    Args:
        codes: uint8[rows, cols], each below 2^bits.
        bits: 2, 3, 4 or 8.

    Returns:
        uint8[rows, ceil(cols * bits / 8)], unused bits 0.
    """
    rows, cols = codes.shape
    count, nbytes = _UNIT[bits]
    padded = np.zeros((rows, -(-cols // count) * count), dtype=np.uint8)
    padded[:, :cols] = codes
    units = padded.reshape(rows, -1, count)
    joined = np.zeros(units.shape[:2], dtype=np.uint32)
    for place in range(count):
        joined |= units[:, :, place].astype(np.uint32) << np.uint32(bits * place)
    packed = np.empty((*joined.shape, nbytes), dtype=np.uint8)
    for place in range(nbytes):
        packed[:, :, place] = (joined >> np.uint32(8 * place)) & np.uint32(0xFF)
    return np.ascontiguousarray(packed.reshape(rows, -1)[:, : packed_row_nbytes(cols, bits)])


def unpack_codes(packed: Bytes, cols: int, bits: int, where: str) -> Bytes:
    """Unpack codes.

    Args:
        packed: uint8[rows, ceil(cols * bits / 8)].
        cols: codes of a row.
        bits: 2, 3, 4 or 8.
        where: the part, for errors.

    Returns:
        uint8[rows, cols].

    Raises:
        FormatError: `pad_bits_set`.
    """
    rows, width = packed.shape
    count, nbytes = _UNIT[bits]
    padded = np.zeros((rows, -(-width // nbytes), nbytes), dtype=np.uint8)
    padded.reshape(rows, -1)[:, :width] = packed
    joined = np.zeros(padded.shape[:2], dtype=np.uint32)
    for place in range(nbytes):
        joined |= padded[:, :, place].astype(np.uint32) << np.uint32(8 * place)
    codes = np.empty((*joined.shape, count), dtype=np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for place in range(count):
        codes[:, :, place] = (joined >> np.uint32(bits * place)) & mask
    flat = codes.reshape(rows, -1)
    # obm-1 clause 6.2: whole codes cover all unused bits, because a unit ends on a byte
    if flat[:, cols:].any():
        raise FormatError("pad_bits_set", "an unused bit at the end of a row is set", where=where)
    return flat[:, :cols]

"""The ceilings that a reader enforces before it allocates or decodes anything (obm-1 clause 3)."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds for one file.

    Args:
        header_nbytes: largest N, the length of the header JSON in bytes.
        tensors: most tensor records.
        parts: most parts in the part table.
        rank: most dimensions of one tensor.
        numel: most elements of one tensor (exclusive).
        name_nbytes: longest tensor name in bytes.
        json_depth: deepest nesting of arrays and objects.
        json_values: most commas and opening brackets outside the strings of one JSON text.
        ext_nbytes: largest canonical `ext` object in bytes.
        attachment_nbytes: largest attachment in bytes.
        attachments: most attachments.
        refs: most references to other artifacts.
    """

    header_nbytes: int = 64 * MIB
    tensors: int = 65_536
    parts: int = 262_144
    rank: int = 8
    numel: int = 1 << 53
    name_nbytes: int = 512
    json_depth: int = 12
    json_values: int = 1 << 21
    ext_nbytes: int = 65_536
    attachment_nbytes: int = 64 * MIB
    attachments: int = 64
    refs: int = 4


DEFAULT_LIMITS = Limits()

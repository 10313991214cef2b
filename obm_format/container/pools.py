"""Where each record finds its digests, alphas, frame lengths and sums in the pools.

Pure arithmetic on a manifest; never reads. Source: obm-1 clauses 7.4, 7.5, 8.2, 8.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from obm_format.container.table import attachment_part_name, part_name
from obm_format.layout import (
    PartLayout,
    alpha_nbytes,
    frame_count,
    leading_digest_count,
    part_layouts,
    sum_count,
)
from obm_format.model import Manifest

DIGEST_NBYTES: Final = 32
FRAME_NBYTES: Final = 36  # length as u32, SHA-256


@dataclass(frozen=True, slots=True)
class PoolIndex:
    """Offsets into the pools, in bytes.

    Args:
        records: tensor name to (first digest of its record, number of them): backbone tensor, rebuilt tensor, parts.
        digests: part name to its digest.
        alphas: tensor name to (offset, nbytes) of its alphas.
        frames: name of a framed part to its first frame entry.
        sums: name of a large unframed part to its first sum.
    """

    records: dict[str, tuple[int, int]] = field(default_factory=dict)
    digests: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, tuple[int, int]] = field(default_factory=dict)
    frames: dict[str, int] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=dict)


def index_pools(manifest: Manifest) -> PoolIndex:
    """The index of the pools of a file with this manifest."""
    index = PoolIndex()
    digests = alphas = frames = sums = 0
    for record in manifest.tensors:
        layouts, leading = part_layouts(record), leading_digest_count(record)
        index.records[record.name] = (digests, leading + len(layouts))
        digests += DIGEST_NBYTES * leading
        size = alpha_nbytes(record)
        index.alphas[record.name] = (alphas, size)
        alphas += size
        for layout in layouts:
            name = part_name(record.name, layout.suffix)
            index.digests[name] = digests
            digests += DIGEST_NBYTES
            if layout.raw_nbytes is not None:
                index.frames[name] = frames
                frames += FRAME_NBYTES * frame_count(layout.raw_nbytes)
            elif sum_count(layout):
                index.sums[name] = sums
                sums += DIGEST_NBYTES * sum_count(layout)
    for attachment in manifest.attachments:
        name = attachment_part_name(attachment.name)
        index.digests[name] = digests
        digests += DIGEST_NBYTES
        count = sum_count(PartLayout("", attachment.nbytes))
        if count:
            index.sums[name] = sums
            sums += DIGEST_NBYTES * count
    return index

"""How many bytes a file will take, before it is written: exactly, and as a sum over tensors that is never too small.

Source: obm-1 clauses 2, 4 and 7; the sizes of parts are those of `layout`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Final

from obm_format.container.canonical import encode_canonical
from obm_format.container.header import encode_header
from obm_format.container.records import record_object
from obm_format.container.table import Entry, attachment_part_name, part_entries, part_name, pool_part_name, table_text
from obm_format.layout import alpha_nbytes, frame_count, leading_digest_count, part_layouts, pool_sizes, sum_count
from obm_format.limits import DEFAULT_LIMITS
from obm_format.model import ALIGNMENT, POOL_NAMES, Manifest, Pool, TensorRecord, padded

_NO_DIGEST: Final = bytes(32)


def file_nbytes(manifest: Manifest) -> int:
    """The exact size of the file that has this manifest, in bytes."""
    facts = {name: Pool(nbytes=size, sha256=_NO_DIGEST) for name, size in pool_sizes(manifest).items() if size}
    parts = sum(padded(entry.nbytes) for entry in part_entries(manifest, DEFAULT_LIMITS))
    return len(encode_header(manifest, facts)) + parts


def fixed_nbytes(manifest: Manifest, digits: int) -> int:
    """At most what a file takes beside its tensors: all that `record_nbytes` does not count.

    Args:
        manifest: with any records, which do not count.
        digits: of the largest offset in the file.
    """
    bare = replace(manifest, tensors=())
    facts = {name: Pool(nbytes=10**digits - 1, sha256=_NO_DIGEST) for name in POOL_NAMES}
    attached = [Entry(attachment_part_name(item.name), item.nbytes) for item in manifest.attachments if item.nbytes]
    table = [*(Entry(pool_part_name(name), 0) for name in POOL_NAMES), *attached]
    own_table = table_text(part_entries(bare, DEFAULT_LIMITS))
    header = len(encode_header(bare, facts)) - len(own_table) + _table_nbytes(table, digits)
    body = sum(padded(entry.nbytes) for entry in attached) + sum(pool_sizes(bare).values())
    # the header, and each pool, ends on a multiple of 64
    return header + body + (1 + len(POOL_NAMES)) * (ALIGNMENT - 1)


def record_nbytes(record: TensorRecord, digits: int) -> int:
    """At most what one tensor adds to a file: record, part table, digests, alphas, frame table, sums and parts.

    Args:
        record: its record.
        digits: of the largest offset in the file.
    """
    layouts = part_layouts(record)
    # the manifest is a JSON string in the header, so its quotes are escaped; a comma goes before it
    header = len(json.dumps(encode_canonical(record_object(record)))) - 2 + 1
    table = _table_nbytes([Entry(part_name(record.name, layout.suffix), layout.nbytes) for layout in layouts], digits)
    pools = 32 * (leading_digest_count(record) + len(layouts)) + alpha_nbytes(record)
    for layout in layouts:
        pools += 32 * sum_count(layout)
        pools += 36 * frame_count(layout.raw_nbytes) if layout.raw_nbytes is not None else 0
    return header + table + pools + sum(padded(layout.nbytes) for layout in layouts)


def _table_nbytes(entries: list[Entry], digits: int) -> int:
    """At most what these entries take in the part table, wherever in the file they stand."""
    # alone, an entry begins at 0, which has one digit, and ends at its size
    return sum(len(table_text([entry])) + 2 * digits - 1 - len(str(padded(entry.nbytes))) for entry in entries)

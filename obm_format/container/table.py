"""Which parts a manifest implies, in file order, and what the part table says of them.

Source: obm-1 clauses 2.3 to 2.6 and 7.3. Never touches bytes of parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from obm_format.container.canonical import encode_canonical
from obm_format.errors import FormatError
from obm_format.layout import part_layouts, pool_sizes
from obm_format.limits import Limits
from obm_format.model import POOL_NAMES, Manifest, Part, Pool, padded


class Entry(NamedTuple):
    """One part before the length of the header is known; see `model.Part`."""

    name: str
    nbytes: int
    raw_nbytes: int | None = None


def part_name(tensor: str, suffix: str) -> str:
    """Key in the part table of a part of a tensor record (clause 2.5)."""
    return f"{tensor}#{suffix}"


def pool_part_name(pool: str) -> str:
    """Key in the part table of a pool (clause 2.5)."""
    return f"#{pool}"


def attachment_part_name(attachment: str) -> str:
    """Key in the part table of an attachment (clause 2.5)."""
    return f"#attach/{attachment}"


def part_entries(manifest: Manifest, limits: Limits) -> list[Entry]:
    """All parts that `manifest` implies, in file order (obm-1 clause 2.5).

    Raises:
        FormatError: there are more than `limits.parts` (reason `limit_exceeded`).
    """
    layouts = [part_layouts(record) for record in manifest.tensors]
    sizes = pool_sizes(manifest, layouts)
    entries = [Entry(pool_part_name(pool), sizes[pool]) for pool in POOL_NAMES if sizes[pool]]
    for record, parts in zip(manifest.tensors, layouts, strict=True):
        entries += [Entry(part_name(record.name, part.suffix), part.nbytes, part.raw_nbytes) for part in parts]
    entries += [Entry(attachment_part_name(item.name), item.nbytes) for item in manifest.attachments if item.nbytes]
    # obm-1 clause 3.1
    if len(entries) > limits.parts:
        raise FormatError("limit_exceeded", "too many parts", expected=f"at most {limits.parts}", got=len(entries))
    return entries


def check_pools(pools: Mapping[str, Pool], entries: list[Entry]) -> None:
    """Refuse pools of other names or sizes than the records imply (obm-1 clause 7.3).

    Args:
        pools: what the manifest says of them.
        entries: what it implies.

    Raises:
        FormatError: reason `part_table`.
    """
    names = {pool_part_name(name) for name in POOL_NAMES}
    implied = {entry.name: entry.nbytes for entry in entries[: len(names)] if entry.name in names}
    stated = {pool_part_name(name): pool.nbytes for name, pool in pools.items()}
    if stated != implied:
        raise FormatError(
            "part_table",
            "the pools do not follow from the records",
            where="pools",
            expected=implied,
            got=stated,
        )


def _spans(entries: Iterable[Entry]) -> Iterator[tuple[str, int, int]]:
    """Name, begin and end of each part, counted from the end of the header, with padding."""
    end = 0
    for entry in entries:
        start, end = end, end + padded(entry.nbytes)
        yield entry.name, start, end


def table_text(entries: Iterable[Entry]) -> str:
    """The entries of the part table as they stand in the header, each after a comma (obm-1 clause 2.5)."""
    # By hand, because this is the longest part of a header, and its names need no escapes.
    return "".join(
        [
            f',"{name}":{{"dtype":"U8","shape":[{end - start}],"data_offsets":[{start},{end}]}}'
            for name, start, end in _spans(entries)
        ]
    )


def check_table(table: Mapping[str, object], entries: list[Entry]) -> None:
    """Refuse a part table that is not the one the manifest implies (obm-1 clause 2.6).

    Args:
        table: the header's keys but `__metadata__`, in the order of the file.
        entries: what the manifest implies.

    Raises:
        FormatError: reason `part_table`.
    """
    for (got_name, got), (name, start, end) in zip(table.items(), _spans(entries), strict=False):
        if got_name != name:
            raise FormatError("part_table", "another part stands here", where="part table", expected=name, got=got_name)
        expected = {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
        # as text, because false is no number in JSON, but equal to 0 here
        if encode_canonical(got) != encode_canonical(expected):
            raise FormatError(
                "part_table",
                "the entry does not follow from the manifest",
                where=name,
                expected=expected,
                got=got,
            )
    if len(table) != len(entries):
        raise FormatError(
            "part_table",
            "parts are missing or too many",
            where="part table",
            expected=len(entries),
            got=len(table),
        )


def place_parts(entries: list[Entry], header_nbytes: int) -> dict[str, Part]:
    """The parts at their offsets in a file whose parts begin at `header_nbytes`, by name, in file order."""
    parts: dict[str, Part] = {}
    offset = header_nbytes
    for entry in entries:
        parts[entry.name] = Part(name=entry.name, offset=offset, nbytes=entry.nbytes, raw_nbytes=entry.raw_nbytes)
        offset += padded(entry.nbytes)
    return parts

"""Bytes 0 to 8+N of a file: from bytes to a checked `Header`, and from a manifest to bytes.

`parse_header` is the one way in. It makes the checks of obm-1 clause 14.1 in their order, up to the file
size, and takes no memory that the limits do not bound. Source: obm-1 clauses 2 to 5 and 7.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, cast

from obm_format.container.canonical import encode_canonical, parse_canonical, parse_to_compare
from obm_format.container.collector import garbage_left_alone
from obm_format.container.manifest import manifest_object, parse_manifest
from obm_format.container.sources import Source
from obm_format.container.table import (
    Entry,
    check_pools,
    check_table,
    part_entries,
    place_parts,
    table_text,
)
from obm_format.digest import artifact_id
from obm_format.errors import FormatError
from obm_format.limits import DEFAULT_LIMITS, Limits
from obm_format.model import ALIGNMENT, Manifest, Part, Pool

VERSION: Final = "1.0"
FIRST_READ_NBYTES: Final = 65_536  # obm-1 clause 3.2
_LENGTH_NBYTES: Final = 8
_START: Final = b'{"__metadata__":{"format":"obm","obm_version":"'
_BEFORE_MANIFEST = re.compile(re.escape(_START.decode()) + r'[0-9.]++","obm":(?=")')
_JSON: Final = json.JSONDecoder()
_VERSION = re.compile(rb'(1\.(?:0|[1-9][0-9]{0,8}))"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file says of itself, checked.

    Args:
        id: artifact id, `obm1-sha256:` and 64 hexadecimal digits.
        nbytes: length of the header with its length field, 8+N: the offset of the first part.
        version: version of the format, `1.<minor>`.
        manifest: all but the pools and the part table.
        pools: size and digest of each pool that is not empty, by name without `#`.
        parts: every part, by its key in the part table, in file order.
        file_nbytes: size of the whole file.
    """

    id: str
    nbytes: int
    version: str
    manifest: Manifest
    pools: Mapping[str, Pool]
    parts: Mapping[str, Part]
    file_nbytes: int


def header_nbytes(start: bytes, *, file_nbytes: int | None, limits: Limits = DEFAULT_LIMITS) -> int:
    """Check the frame and give 8+N (obm-1 clauses 2.1, 2.2, 2.4).

    Args:
        start: the first bytes of the file, 64 or more unless it is shorter.
        file_nbytes: size of the file, None where it is not known.
        limits: `header_nbytes` applies.

    Raises:
        FormatError: `truncated`, `header_too_large`, `bad_header_length`, `not_obm`, `unsupported_version`.
    """
    if len(start) < _LENGTH_NBYTES:
        raise FormatError("truncated", "the file is too short for a header length", got=f"{len(start)} bytes")
    length = int.from_bytes(start[:_LENGTH_NBYTES], "little")
    total = _LENGTH_NBYTES + length
    is_obm = start[_LENGTH_NBYTES:].startswith(_START)
    hint = None if is_obm else "this is no .obm file; a checkpoint is compressed by `obm compress`"
    # obm-1 clause 3.1
    if length > limits.header_nbytes:
        raise FormatError(
            "header_too_large", "N is above the limit", expected=limits.header_nbytes, got=length, hint=hint
        )
    # obm-1 clause 2.2
    if length == 0 or total % ALIGNMENT:
        raise FormatError("bad_header_length", "8+N is not a positive multiple of 64", got=f"N = {length}", hint=hint)
    if file_nbytes is not None and total > file_nbytes:
        raise FormatError(
            "bad_header_length",
            "the header is longer than the file",
            expected=f"at most {file_nbytes} bytes",
            got=f"{total} bytes",
            hint=hint,
        )
    # obm-1 clause 2.4
    if not is_obm:
        raise FormatError("not_obm", "the header does not begin as that of an .obm file", hint=hint)
    _version_of(start[:total])
    return total


def _version_of(start: bytes) -> str:
    at = _LENGTH_NBYTES + len(_START)
    found = _VERSION.match(start, at)
    # obm-1 clause 12.1
    if not found:
        raise FormatError(
            "unsupported_version",
            "the format version is not 1.<minor>",
            expected="1.<minor>",
            got=ascii(start[at : at + 16].split(b'"')[0].decode("latin-1")),
            hint="a newer obm may read it",
        )
    return found[1].decode()


def parse_header(head: bytes, *, file_nbytes: int | None, limits: Limits = DEFAULT_LIMITS) -> Header:
    """Parse and check the header of a file (obm-1 clause 14.1, up to the file size).

    Args:
        head: the file from its first byte, at least 8+N bytes; what follows is ignored.
        file_nbytes: size of the file, None where it is not known and so not checked.
        limits: bounds on what is accepted.

    Returns:
        the header; `encode_header` of it gives the same bytes where the version is 1.0.

    Raises:
        FormatError: whatever is wrong first.
    """
    nbytes = header_nbytes(head, file_nbytes=file_nbytes, limits=limits)
    if len(head) < nbytes:
        raise FormatError("truncated", "the header is cut short", expected=f"{nbytes} bytes", got=f"{len(head)} bytes")
    head = bytes(head[:nbytes])
    with garbage_left_alone():
        content = _content(head, limits)
        parts = place_parts(content.entries, nbytes)
    last = next(reversed(parts.values()), None)
    end = nbytes if last is None else last.offset + last.padded_nbytes
    if file_nbytes is not None:
        _check_file_size(file_nbytes, end)
    return Header(
        id=artifact_id(head),
        nbytes=nbytes,
        version=_version_of(head),
        manifest=content.manifest,
        pools=content.pools,
        parts=parts,
        file_nbytes=end,
    )


@dataclass(frozen=True, slots=True)
class _Content:
    """What a header says, and the JSON text of the manifest, which the header holds if it is canonical."""

    manifest: Manifest
    pools: dict[str, Pool]
    entries: list[Entry]
    text: str


def _content(head: bytes, limits: Limits) -> _Content:
    """Manifest, pools and parts of a header whose frame is sound.

    A sound header is the one byte image of its manifest (obm-1 clause 4.3), so reading the manifest and
    comparing bytes recognises it. The part table is parsed only to find out what is wrong with any other.
    """
    header, version = str(memoryview(head)[_LENGTH_NBYTES:], "latin-1"), _version_of(head)
    before = _BEFORE_MANIFEST.match(header)
    if before:
        with suppress(FormatError, ValueError):
            text, _ = _JSON.raw_decode(header, before.end())
            content = _interpret(parse_to_compare(text, limits, "manifest"), limits)
            if _image(content.text, content.entries, version) == header:
                return content
    return _content_in_order(header, version, limits)


def _content_in_order(header: str, version: str, limits: Limits) -> _Content:
    """As `_content`, by the checks of obm-1 clause 14.1 in their order."""
    tree = parse_canonical(header.rstrip(" "), limits, "header")
    # The frame begins with a brace, so the root is an object, and with the key `__metadata__`.
    table = dict(cast(Mapping[str, object], tree))
    text = _manifest_text(table.pop("__metadata__"))
    content = _interpret(parse_canonical(text, limits, "manifest"), limits)
    check_table(table, content.entries)
    if _image(content.text, content.entries, version) != header:
        raise FormatError("not_canonical", "the header is not the canonical byte image of its content", where="header")
    return content


def _interpret(tree: object, limits: Limits) -> _Content:
    manifest, pools = parse_manifest(tree, limits)
    entries = part_entries(manifest, limits)
    check_pools(pools, entries)
    return _Content(manifest, pools, entries, encode_canonical(tree))


def _manifest_text(metadata: object) -> str:
    """The manifest's text from `__metadata__` (obm-1 clause 2.4)."""
    # The prefix has proven `format` and `obm_version`.
    if not isinstance(metadata, dict) or metadata.keys() != {"format", "obm_version", "obm"}:
        raise FormatError(
            "manifest_field",
            "exactly these keys must be there",
            where="__metadata__",
            expected="format, obm_version, obm",
        )
    text = metadata["obm"]
    if not isinstance(text, str):
        raise FormatError("manifest_field", "the manifest is not a string", where="__metadata__.obm")
    return text


def _check_file_size(file_nbytes: int, end: int) -> None:
    """Refuse a file that ends before or after its last part (obm-1 clause 2.3)."""
    if file_nbytes < end:
        raise FormatError(
            "truncated",
            "the file ends before its last part does",
            expected=f"{end} bytes",
            got=f"{file_nbytes} bytes",
            hint="fetch or copy the file again",
        )
    if file_nbytes > end:
        raise FormatError(
            "trailing_data", "bytes follow the last part", expected=f"{end} bytes", got=f"{file_nbytes} bytes"
        )


def encode_header(manifest: Manifest, pools: Mapping[str, Pool], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Bytes 0 to 8+N of the file with this manifest and these pools.

    Nothing is checked; `parse_header` of the result checks everything.

    Args:
        manifest: the manifest.
        pools: size and digest of each pool that is not empty, by name without `#`.
        limits: `parts` applies.

    Raises:
        FormatError: more parts than the limit (reason `limit_exceeded`).
    """
    manifest_text = encode_canonical(manifest_object(manifest, pools))
    image = _image(manifest_text, part_entries(manifest, limits), VERSION).encode("ascii", "replace")
    return len(image).to_bytes(_LENGTH_NBYTES, "little") + image


def _image(manifest: str, entries: list[Entry], version: str) -> str:
    """The header's JSON with this manifest, which is canonical, and its padding."""
    # obm-1 clauses 2.4, 2.5: these objects have a fixed order of keys.
    pieces = [_START.decode(), version, '","obm":', json.dumps(manifest), "}", table_text(entries), "}"]
    nbytes = _LENGTH_NBYTES + sum(map(len, pieces))
    return "".join([*pieces, " " * (-nbytes % ALIGNMENT)])


def read_header(source: Source, limits: Limits = DEFAULT_LIMITS, *, expected_id: str | None = None) -> Header:
    """Read and check the header of a source: at most N + 64 KiB bytes are read (obm-1 clause 3.2).

    Args:
        source: the file.
        limits: bounds on what is accepted.
        expected_id: artifact id that the header must hash to, checked before anything of it is parsed.

    Raises:
        FormatError: whatever is wrong first; `artifact_id` where the header is not that of `expected_id`.
    """
    head = source.read(0, min(FIRST_READ_NBYTES, source.nbytes))
    nbytes = header_nbytes(head, file_nbytes=source.nbytes, limits=limits)
    head = head[:nbytes] if nbytes <= len(head) else head + source.read(len(head), nbytes - len(head))
    # obm-1 clause 14.2
    if expected_id is not None and artifact_id(head) != expected_id:
        raise FormatError(
            "artifact_id",
            "this is another artifact than the one asked for",
            where=source.name,
            expected=expected_id,
            got=artifact_id(head),
        )
    return parse_header(head, file_nbytes=source.nbytes, limits=limits)

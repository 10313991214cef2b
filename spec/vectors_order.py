"""Invalid vectors with two defects, of which clause 14.1 puts one first; and the edges between neighbouring reasons."""

# ruff: noqa: ANN401 - keywords that become fields of JSON have no better type
from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from vector_tensors import added
from vector_writer import Dense, Json
from vectors_spoilt import Invalid, lean, refused, sound


def order_vectors() -> Iterator[Invalid]:
    """Clauses 2.4, 2.6, 4.1 and 14.1."""
    yield from _pairs_in_the_header()
    yield from _pairs_behind_it()
    yield from _words()
    yield from _edges()


def _pair(name: str, reason: str, stage: str = "header", **defect: Any) -> Invalid:
    return refused(f"order-{name}", "14.1", reason, stage, **defect)


def _cut(text: str) -> str:
    return text[:-1]


def _twice(header: str) -> str:
    return header.replace(',"#alphas"', ',"#digests":{},"#alphas"', 1)


def _unknown_field(manifest: Json) -> None:
    manifest["created"] = "2026-01-01"


def _written_default(manifest: Json) -> None:
    manifest["task"] = ""


def _last_part_lost(table: list[list[Any]]) -> None:
    table.pop()


def _pairs_in_the_header() -> Iterator[Invalid]:
    def other(header: str) -> str:
        return header.replace('"obm"', '"pt"', 1)

    def spaced(text: str) -> str:
        return text.replace(":", ": ", 1)

    def foreign(header: str) -> str:
        return header.replace('"},"#', '","z":""},"#', 1)

    def nul(raw: bytes) -> bytes:
        return raw.rstrip(b" ").ljust(len(raw), b"\0")

    def null(text: str) -> str:
        return text.replace('"2026-01-01"', "null", 1)

    yield _pair("prefix-before-text", "not_obm", header=other, padded=nul)
    yield _pair("header-before-manifest", "json_duplicate_key", text=_cut, header=_twice)
    yield _pair("metadata-before-manifest", "manifest_field", text=_cut, header=foreign)
    yield _pair("json-before-fields", "json_syntax", manifest=_unknown_field, text=null)
    yield _pair("fields-before-table", "manifest_field", manifest=_unknown_field, table=_last_part_lost)
    yield _pair("table-before-defaults", "part_table", manifest=_written_default, table=_last_part_lost)
    yield _pair("table-before-spaces", "part_table", text=spaced, table=_last_part_lost)


def _pairs_behind_it() -> Iterator[Invalid]:
    def longer(file: bytes) -> bytes:
        return file + b"\0"

    def shorter(file: bytes) -> bytes:
        return file[:-1]

    def unused_bit(data: bytearray) -> None:
        data[128 + 8] |= 0x80  # of the first row of 70 sign bits

    yield _pair("canonical-before-size", "not_canonical", manifest=_written_default, file=longer)
    yield _pair("size-before-digests", "truncated", data=unused_bit, file=shorter)
    yield _pair("digests-before-content", "part_digest", "parts", data=unused_bit)


def _words() -> Iterator[Invalid]:
    """What begins like a number is a bad number, whatever follows; any other word is no JSON."""
    words = {
        "json_number": ("-", "1.", "1x", "0x10", "-Infinity", "1_000", "1e", "--1", "00", "1-1"),
        "json_syntax": ("+1", ".5", "True", "truex", "_1", "e1", "undefined"),
    }
    for reason, texts in words.items():
        for i, word in enumerate(texts):
            draft = lean(ext={"a.b": "Q"})
            name = f"word-{reason.removeprefix('json_')}-{i}"

            def put(text: str, word: str = word) -> str:
                return text.replace('"Q"', word, 1)

            yield refused(name, "4.1", reason, "header", draft, text=put)


def _edges() -> Iterator[Invalid]:
    def false_offset(table: list[list[Any]]) -> None:
        table[0][1]["data_offsets"][0] = False

    yield refused("part-offset-false", "2.6", "part_table", "header", table=false_offset)
    head = b'{"__metadata__":{"format":"obm","obm_version":"1.1234567'
    file = struct.pack("<Q", len(head)) + head + b'89","obm":"{}"}}'.ljust(64)
    yield Invalid(name="version-beyond-header", clause="2.4", reason="unsupported_version", stage="header", file=file)
    huge = lean()
    huge.tensors = [added("new", Dense(dtype="F64", shape=[1], data=bytes(8)))]

    def grow(manifest: Json) -> None:
        manifest["tensors"][0]["shape"] = [2**52]

    yield refused("part-of-2-to-55", "2.6", "part_table", "header", huge, manifest=grow)
    alias = sound()
    alias.fields = {"ext": {"b.a": 0, "a.b": 0}}

    def descending(text: str) -> str:
        return text.replace('"a.b":0,"b.a":0', '"b.a":0,"a.b":0', 1)

    yield refused("ext-unsorted", "4.1", "not_canonical", "header", alias, text=descending)

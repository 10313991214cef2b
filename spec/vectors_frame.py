"""Invalid vectors of the frame, the text, the part table and the parts (clauses 2 to 4, 7 and 12)."""

# ruff: noqa: ANN401 - keywords that become fields of JSON have no better type
from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from vector_writer import Draft, Json, dumps, file_bytes
from vectors_spoilt import Invalid, lean, refused, sound


def _with_n(n: int) -> Callable[[bytes], bytes]:
    return lambda file: struct.pack("<Q", n) + file[8:]


def frame_vectors() -> Iterator[Invalid]:
    """Clauses 2.1 to 2.4: what is wrong before any JSON is read, or after all of it was."""
    whole, small = file_bytes(sound()), file_bytes(lean())
    n = struct.unpack("<Q", whole[:8])[0]
    files = {
        "empty": ("2.1", "truncated", b""),
        "seven-bytes": ("2.1", "truncated", small[:7]),
        "n-zero": ("2.2", "bad_header_length", _with_n(0)(small)),
        "n-not-aligned": ("2.2", "bad_header_length", _with_n(len(small) - 9)(small)),
        "n-beyond-file": ("2.2", "bad_header_length", _with_n(len(small) - 8 + 64)(small)),
        "header-cut": ("2.2", "bad_header_length", small[:-1]),
        "n-above-limit": ("3.1", "header_too_large", _with_n(2**26 + 56)(small)),
        "n-2-to-63": ("3.1", "header_too_large", _with_n(2**63 - 8)(small)),
        "n-wraps": ("3.1", "header_too_large", _with_n(2**64 - 8)(small)),
        "n-all-ones": ("3.1", "header_too_large", _with_n(2**64 - 1)(small)),
        "last-part-cut": ("2.3", "truncated", whole[:-65]),
        "last-padding-cut": ("2.3", "truncated", whole[:-1]),
        "last-part-missing": ("2.3", "truncated", whole[:-64]),
        "no-parts": ("2.3", "truncated", whole[: 8 + n]),
        "trailing-byte": ("2.3", "trailing_data", small + b"\0"),
        "trailing-padding": ("2.3", "trailing_data", small + bytes(64)),
        "trailing-zip": ("2.3", "trailing_data", small + b"PK\5\6" + bytes(18)),
        "zip": ("2.2", "header_too_large", b"PK\3\4\x14\0\0\0\x08\0" + bytes(64)),
        "gzip": ("2.2", "header_too_large", b"\x1f\x8b\x08\0\x40\x17\x6b\x5f\2\xff" + bytes(64)),
        "gguf": ("2.2", "header_too_large", b"GGUF\3\0\0\0" + bytes(64)),
        "pickle": ("2.2", "header_too_large", b"\x80\4\x95\x30\0\0\0\0\0\0\0\x8c\x05posix" + bytes(64)),
    }
    for name, (clause, reason, file) in files.items():
        yield Invalid(name=name, clause=clause, reason=reason, stage="header", file=file)
    yield from _prefixes()


def _prefixes() -> Iterator[Invalid]:
    def header(name: str, clause: str, reason: str, old: str, new: str) -> Invalid:
        return refused(name, clause, reason, "header", lean(), header=lambda text: text.replace(old, new, 1))

    yield header("dense-safetensors", "2.4", "not_obm", '"format":"obm"', '"format":"pt"')
    yield header("no-metadata", "2.4", "not_obm", '"__metadata__"', '"metadata"')
    yield header(
        "metadata-order", "2.4", "not_obm", '"format":"obm","obm_version":"1.0"', '"obm_version":"1.0","format":"obm"'
    )
    yield header("leading-space", "2.4", "not_obm", "{", " {")
    yield header("byte-order-mark", "2.4", "not_obm", "{", "\xef\xbb\xbf{")
    yield refused("utf-16", "2.4", "not_obm", "header", lean(), header=lambda t: t.encode("utf-16").decode("latin-1"))
    versions = {"major-0": "0.9", "major-2": "2.0", "major-10": "10.0", "minor-missing": "1.", "minor-zero": "1.01"}
    versions |= {
        "minor-letter": "1.0a",
        "minor-sign": "1.-1",
        "minor-ten-digits": "1.1000000000",
        "three": "1.0.0",
        "no-minor": "1",
    }
    for name, version in versions.items():
        reason = "unsupported_version"
        yield refused(f"version-{name}", "2.4", reason, "header", _version(version))
    yield refused("padding-nul", "4.1", "bad_encoding_of_text", "header", lean(), padded=_padding(b"\0"))
    yield refused("padding-newline", "4.1", "bad_encoding_of_text", "header", lean(), padded=_padding(b"\n"))
    yield refused("padding-tab", "4.1", "bad_encoding_of_text", "header", lean(), padded=_padding(b"\t"))
    yield refused("padding-long", "2.2", "not_canonical", "header", lean(), padded=lambda raw: raw + b" " * 64)


def _version(version: str) -> Draft:
    draft = lean()
    draft.version = version
    return draft


def _padding(byte: bytes) -> Callable[[bytes], bytes]:
    """Another last byte; the header of `sound()` has at least one byte of padding, or this adds 64 of them."""
    return lambda raw: (raw if raw.endswith(b" ") else raw + b" " * 64)[:-1] + byte


# Of clause 4.1: in the stead of the string "Q" in the manifest's `ext`.
_IN_EXT = {
    "number-nan": ("json_syntax", "NaN"),
    "number-infinity": ("json_syntax", "Infinity"),
    "number-minus-one": ("json_number", "-1"),
    "number-minus-zero": ("json_number", "-0"),
    "number-fraction": ("json_number", "1.0"),
    "number-exponent": ("json_number", "1e3"),
    "number-huge-exponent": ("json_number", "1e999"),
    "number-2-to-53": ("json_number", str(2**53)),
    "number-leading-zero": ("json_number", "01"),
    "number-500-digits": ("json_number", "9" * 500),
    "null": ("json_syntax", "null"),
    "utf-8": ("bad_encoding_of_text", '"\xc3\xa9"'),
    "utf-8-invalid": ("bad_encoding_of_text", '"\xff"'),
    "delete": ("bad_encoding_of_text", '"\x7f"'),
    "escape-non-ascii": ("bad_encoding_of_text", '"\\u00e9"'),
    "escape-surrogate": ("bad_encoding_of_text", '"\\ud800"'),
    "escape-newline": ("bad_encoding_of_text", '"\\n"'),
    "escape-nul": ("bad_encoding_of_text", '"\\u0000"'),
    "escape-letter": ("not_canonical", '"\\u0051"'),
    "escape-slash": ("not_canonical", '"\\/"'),
    "escape-unknown": ("json_syntax", '"\\x51"'),
    "space-in-manifest": ("not_canonical", ' "Q"'),
    "duplicate-in-ext": ("json_duplicate_key", '{"k":1,"k":1}'),
    "trailing-comma": ("json_syntax", '"Q",'),
    "comment": ("json_syntax", '"Q"/**/'),
    "single-quotes": ("json_syntax", "'Q'"),
    "manifest-cut": ("json_syntax", '"Q'),
    "depth-13": ("json_depth", "[" * 11 + "]" * 11),
    "depth-1100": ("json_depth", "[" * 1100 + "]" * 1100),
}
# Of clause 4.1: what is replaced in the header, and by what.
_ENTRY = '"#digests":{"dtype":"U8","shape":[64],"data_offsets":[0,64]}'
_VERSION = '"format":"obm","obm_version":"1.0"'
_IN_HEADER = {
    "escape-in-header": ("not_canonical", '"#digests"', '"#digest\\u0073"'),
    "space-in-header": ("not_canonical", '"dtype":', '"dtype": '),
    "newline-in-header": ("bad_encoding_of_text", '"dtype":', '"dtype":\n'),
    "entry-key-order": ("not_canonical", '"dtype":"U8","shape":[64]', '"shape":[64],"dtype":"U8"'),
    "duplicate-in-metadata": ("json_duplicate_key", _VERSION, _VERSION + ',"obm":"{}"'),
    "duplicate-metadata": ("json_duplicate_key", ',"#digests"', ',"__metadata__":{},"#digests"'),
    "duplicate-part": ("json_duplicate_key", ',"#alphas"', f',{_ENTRY},"#alphas"'),
    "depth-in-header": ("json_depth", "[64]", "[" * 1100 + "]" * 1100),
}


def text_vectors() -> Iterator[Invalid]:
    """Clause 4.1 and the nesting of clause 3.1."""

    def text(name: str, reason: str, old: str, new: str, ext: Json) -> Invalid:
        return refused(name, "4.1", reason, "header", lean(ext=ext), text=lambda t: t.replace(old, new, 1))

    for name, (reason, new) in _IN_EXT.items():
        yield text(name, reason, '"Q"', new, {"a.b": "Q"})
    yield text("duplicate-in-manifest", "json_duplicate_key", '"kind":', '"kind":"task-vector","kind":', {"a.b": "Q"})
    pairs = {"a.b": "Q", "c.d": 0}
    yield text("manifest-key-order", "not_canonical", '"a.b":"Q","c.d":0', '"c.d":0,"a.b":"Q"', pairs)
    for name, (reason, old, new) in _IN_HEADER.items():
        yield refused(name, "4.1", reason, "header", header=_replacing(old, new))
    yield refused("manifest-empty", "4.1", "json_syntax", "header", lean(), text=lambda _: "")
    yield refused("second-value", "4.1", "json_syntax", "header", lean(), text=lambda t: t + "{}")
    yield refused("header-brace-missing", "4.1", "json_syntax", "header", header=lambda t: t[:-1])


def _replacing(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


def table_vectors() -> Iterator[Invalid]:
    """Clauses 2.4 to 2.6."""

    def table(name: str, change: Callable[[list[list[Any]]], object]) -> Invalid:
        return refused(name, "2.6", "part_table", "header", table=change)

    def entry(name: str, index: int, **fields: Any) -> Invalid:
        return table(name, lambda entries: entries[index][1].update(fields))

    yield entry("offsets-reversed", 1, data_offsets=[128, 64])
    yield entry("parts-overlap", 1, data_offsets=[0, 64])
    yield entry("parts-hole", 2, data_offsets=[192, 256])
    yield entry("part-not-padded", 2, shape=[27], data_offsets=[128, 155])
    yield entry("part-too-long", 2, shape=[128], data_offsets=[128, 256])
    yield entry("part-dtype", 1, dtype="I8")
    yield entry("part-rank-2", 1, shape=[8, 8])
    yield entry("part-scalar-shape", 1, shape=64)
    yield entry("part-shape-length", 1, shape=[63])
    yield entry("part-offset-string", 1, data_offsets=["64", 128])
    yield entry("part-field-extra", 1, sha256="")
    yield table("part-field-missing", lambda entries: entries[1][1].pop("dtype"))
    yield table("part-not-object", lambda entries: entries[1].__setitem__(1, []))
    yield table("part-missing", lambda entries: entries.pop())
    yield table(
        "part-extra", lambda entries: entries.append(["more#data", {**entries[2][1], "data_offsets": [192, 256]}])
    )
    yield table(
        "part-extra-empty",
        lambda entries: entries.append(["w#tail", {"dtype": "U8", "shape": [0], "data_offsets": [192, 192]}]),
    )
    yield table("part-renamed", lambda entries: entries[2].__setitem__(0, "w#bits1"))
    yield table("parts-swapped", _swap)
    yield from _odd_tables()


def _odd_tables() -> Iterator[Invalid]:
    yield refused("many-parts", "2.6", "part_table", "header", table=_many)
    yield refused("pool-size", "7.3", "part_table", "header", manifest=_pool("digests", nbytes=65))
    yield refused("pool-size-alphas", "7.3", "part_table", "header", manifest=_pool("alphas", nbytes=8))
    yield refused("pool-missing", "7.3", "part_table", "header", manifest=lambda m: m["pools"].pop("alphas"))
    yield refused("pool-extra", "7.3", "part_table", "header", manifest=_pool("frames", nbytes=0, sha256="0" * 64))
    yield refused("part-emptied", "2.6", "part_table", "header", table=_short)
    yield refused(
        "metadata-extra", "2.4", "manifest_field", "header", header=lambda t: t.replace('"},"#', '","z":""},"#', 1)
    )
    yield refused("manifest-missing", "2.4", "manifest_field", "header", header=lambda t: _only_table(t, None))
    yield refused("manifest-number", "2.4", "manifest_field", "header", header=lambda t: _only_table(t, 7))
    yield refused(
        "manifest-inline", "2.4", "manifest_field", "header", header=lambda t: _only_table(t, {"kind": "router"})
    )


def _only_table(header: str, manifest: object) -> str:
    """The header with something else in the stead of the manifest's string."""
    table = header[header.index(',"#digests"') :]
    metadata: Json = {"format": "obm", "obm_version": "1.0"} | ({} if manifest is None else {"obm": manifest})
    return '{"__metadata__":' + dumps(metadata, sort=False) + table


def _pool(pool: str, **fields: Any) -> Callable[[Json], object]:
    return lambda m: m["pools"].setdefault(pool, {}).update(fields)


def _swap(entries: list[list[Any]]) -> None:
    entries[1], entries[2] = entries[2], entries[1]


def _many(entries: list[list[Any]]) -> None:
    entries += [[f"{i}#x", {"dtype": "U8", "shape": [0], "data_offsets": [192, 192]}] for i in range(40)]


def _short(entries: list[list[Any]]) -> None:
    entries[2][1].update(shape=[0], data_offsets=[128, 128])


def part_vectors() -> Iterator[Invalid]:
    """Clauses 2.3, 7.2 and 7.3: what full verification finds. Parts of `sound()` lie at 0, 64 and 128."""

    def flip(name: str, offset: int, reason: str, clause: str) -> Invalid:
        def change(data: bytearray) -> None:
            data[offset] ^= 1

        return refused(name, clause, reason, "parts", sound(attach={"notes.txt": b"read me"}), data=change)

    yield flip("digests-flipped", 3, "part_digest", "7.3")
    yield flip("alphas-flipped", 128, "part_digest", "7.3")
    yield flip("signs-flipped", 192, "part_digest", "7.2")
    yield flip("attachment-flipped", 256, "part_digest", "7.2")
    yield flip("alphas-padding", 134, "pad_not_zero", "2.3")
    yield flip("signs-padding", 255, "pad_not_zero", "2.3")
    yield flip("last-padding", 319, "pad_not_zero", "2.3")
    swapped = sound(attach={"a.txt": b"first", "b.txt": b"other"})
    yield refused("attachments-exchanged", "7.4", "part_digest", "parts", swapped, data=_exchange)
    empty = sound(attach={"a.txt": b""})
    yield refused("empty-attachment-digest", "7.4", "part_digest", "parts", empty, pools=_zero_last)


def _exchange(data: bytearray) -> None:
    data[-128:] = data[-64:] + data[-128:-64]


def _zero_last(pools: dict[str, bytes]) -> dict[str, bytes]:
    return pools | {"digests": pools["digests"][:-32] + bytes(32)}

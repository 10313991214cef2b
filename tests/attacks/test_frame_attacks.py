"""Hostile frames, headers and part tables: refused with their reasons, and only the header is read."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from container_files import (
    START,
    dumps,
    frame,
    header_nbytes,
    manifest_of,
    manifest_tree,
    record,
    sample,
    sound_header,
    tree_of,
    with_manifest,
)

from obm_format.container import BytesSource, Container
from obm_format.errors import FormatError, ObmError
from obm_format.model import AlphaLayout, SignParams


class Watched(BytesSource):
    """Remembers the last byte that was read."""

    highest = 0

    def read(self, offset: int, nbytes: int) -> bytes:
        data = super().read(offset, nbytes)
        self.highest = max(self.highest, offset + nbytes)
        return data


def refusal(data: bytes) -> str:
    """The reason for which a file is refused, by a reader that stays within the header and 64 KiB."""
    source = Watched(data)
    with pytest.raises(FormatError) as caught:
        Container.open(source)
    length = int.from_bytes(data[:8].ljust(8, b"\0"), "little")
    assert source.highest <= min(len(data), length + 8 + 65_536)
    return caught.value.reason


def with_length(length: int) -> bytes:
    return length.to_bytes(8, "little") + sample()[8:]


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    return made.getvalue()


HEAD = header_nbytes(sample())
FRAMES: dict[str, tuple[str, bytes]] = {
    "empty": ("truncated", b""),
    "seven bytes": ("truncated", b"1234567"),
    "no header": ("bad_header_length", bytes(64)),
    "2^63": ("header_too_large", with_length(1 << 63)),
    "2^63 aligned": ("header_too_large", with_length((1 << 63) + 56)),
    "2^64-1": ("header_too_large", with_length((1 << 64) - 1)),
    "2^64-8 aligned": ("header_too_large", with_length((1 << 64) - 8)),
    "header longer than file": ("bad_header_length", sample()[: HEAD - 64]),
    "last brace cut": ("json_syntax", frame(sample()[8:HEAD].rstrip(b" ")[:-1]) + sample()[HEAD:]),
    "not aligned": ("bad_header_length", with_length(HEAD - 8 + 1)),
    "above the limit": ("header_too_large", frame(START + b" " * (65 << 20))),
    "byte order mark": ("not_obm", frame(b"\xef\xbb\xbf" + sample()[8:HEAD].rstrip(b" "))),
    "utf-16": ("not_obm", frame(sample()[8:HEAD].decode().encode("utf-16"))),
    "leading space": ("not_obm", frame(b" " + sample()[8:HEAD].rstrip(b" "))),
    "newline padding": (
        "bad_encoding_of_text",
        sample()[:HEAD].rstrip(b" ").ljust(HEAD, b"\n") + sample()[HEAD:],
    ),
    "nul padding": (
        "bad_encoding_of_text",
        sample()[:HEAD].rstrip(b" ").ljust(HEAD, b"\0") + sample()[HEAD:],
    ),
    "zip appended": ("trailing_data", sample() + zipped()),
    "one byte appended": ("trailing_data", sample() + b"\0"),
    "cut in last part": ("truncated", sample()[:-1]),
    "cut at a part": ("truncated", sample()[:-64]),
    "all parts cut": ("truncated", sample()[:HEAD]),
    "format pt": ("not_obm", frame(sample()[8:HEAD].replace(b'"obm"', b'"pt"', 1))),
    "zip": ("header_too_large", zipped().ljust(4096, b"\0")),
    "pickle": ("header_too_large", pickle.dumps(["x" * 5000])),
    "gguf": ("header_too_large", b"GGUF\3\0\0\0" + bytes(4096)),
    "gzip": ("header_too_large", gzip.compress(sample(), mtime=1_600_000_000)),
    "major version 2": (
        "unsupported_version",
        sample().replace(b'"obm_version":"1.0"', b'"obm_version":"2.0"'),
    ),
    "major version 10": (
        "unsupported_version",
        frame(b'{"__metadata__":{"format":"obm","obm_version":"10.0"}}'),
    ),
    "no minor version": (
        "unsupported_version",
        frame(b'{"__metadata__":{"format":"obm","obm_version":"1."}}'),
    ),
    "minor version 00": (
        "unsupported_version",
        frame(b'{"__metadata__":{"format":"obm","obm_version":"1.00"}}'),
    ),
    "empty version": ("unsupported_version", frame(b'{"__metadata__":{"format":"obm","obm_version":""}}')),
}


@pytest.mark.parametrize(("reason", "data"), FRAMES.values(), ids=FRAMES)
def test_hostile_frame_refused(reason: str, data: bytes) -> None:
    assert refusal(data) == reason


def test_ordinary_safetensors_file_refused(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"w": np.zeros(100, np.float32)}, tmp_path / "x.obm", metadata={"format": "pt"})
    assert refusal((tmp_path / "x.obm").read_bytes()) in {"not_obm", "bad_header_length"}


def test_file_stripped_of_its_metadata_by_another_tool_refused() -> None:
    tree = tree_of(sample())
    del tree["__metadata__"]
    assert refusal(frame(json.dumps(tree).encode())) == "not_obm"


def table() -> dict[str, Any]:
    return {key: value for key, value in tree_of(sample()).items() if key != "__metadata__"}


def manifest_text() -> str:
    return dumps(manifest_tree(sample()))


def forged_table(change: Callable[[dict[str, Any]], object]) -> bytes:
    entries = table()
    result = change(entries)
    return with_manifest(manifest_text(), result if isinstance(result, dict) else entries)


NAMES = list(table())
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "begin after end": (
        "part_table",
        lambda t: t[NAMES[2]].update(data_offsets=t[NAMES[2]]["data_offsets"][::-1]),
    ),
    "overlap": ("part_table", lambda t: t[NAMES[3]].update(data_offsets=t[NAMES[2]]["data_offsets"])),
    "hole": (
        "part_table",
        lambda t: t[NAMES[-1]].update(data_offsets=[n + 64 for n in t[NAMES[-1]]["data_offsets"]]),
    ),
    "other order": ("part_table", lambda t: dict(sorted(t.items(), reverse=True))),
    "swapped names": ("part_table", lambda t: {NAMES[1]: t[NAMES[0]], NAMES[0]: t[NAMES[1]], **t}),
    "length not padded": ("part_table", lambda t: t[NAMES[2]].update(shape=[1])),
    "dtype": ("part_table", lambda t: t[NAMES[2]].update(dtype="I8")),
    "rank 2": ("part_table", lambda t: t[NAMES[2]].update(shape=[1, *t[NAMES[2]]["shape"]])),
    "part missing": ("part_table", lambda t: t.pop(NAMES[-1])),
    "part too many": ("part_table", lambda t: t.update(extra=t[NAMES[-1]])),
    "no parts": ("part_table", lambda t: t.clear()),
    "entry no object": ("part_table", lambda t: t.update({NAMES[2]: []})),
    "unknown field": ("part_table", lambda t: t[NAMES[2]].update(sha256="ab" * 32)),
    "begin false": (
        "part_table",
        lambda t: t[NAMES[0]].update(data_offsets=[False, t[NAMES[0]]["shape"][0]]),
    ),
    "key order": ("not_canonical", lambda t: t.update({NAMES[0]: dict(sorted(t[NAMES[0]].items()))})),
}


@pytest.mark.parametrize(("reason", "change"), TABLES.values(), ids=TABLES)
def test_hostile_part_table_refused(reason: str, change: Callable[[dict[str, Any]], object]) -> None:
    assert refusal(forged_table(change) + sample()[HEAD:]) == reason


def header_text() -> bytes:
    return sample()[8:HEAD].rstrip(b" ")


def replaced(old: bytes, new: bytes) -> bytes:
    assert header_text().count(old) >= 1
    return frame(header_text().replace(old, new, 1)) + sample()[HEAD:]


def manifest_replaced(old: str, new: str) -> bytes:
    assert manifest_text().count(old) >= 1
    return with_manifest(manifest_text().replace(old, new, 1), table()) + sample()[HEAD:]


META = b'"__metadata__":{"format":"obm"'
TEXTS: dict[str, tuple[str, bytes]] = {
    "sound": ("", replaced(b"", b"")),
    "invalid utf-8": ("bad_encoding_of_text", replaced(b"LlamaFor", b"Llama\xff\xfer")),
    "lone surrogate": ("bad_encoding_of_text", manifest_replaced("LlamaFor", "Llama\\ud800")),
    "duplicate part": ("json_duplicate_key", replaced(b',"#alphas"', b',"#digests":{},"#alphas"')),
    "duplicate metadata": ("json_duplicate_key", replaced(b',"#digests"', b"," + META + b'},"#digests"')),
    "duplicate in metadata": ("json_duplicate_key", replaced(b',"obm":', b',"format":"obm","obm":')),
    "duplicate in manifest": ("json_duplicate_key", manifest_replaced('"kind":', '"kind":"router","kind":')),
    "extra metadata": ("manifest_field", replaced(b',"obm":', b',"author":"me","obm":')),
    "extra metadata after": ("manifest_field", replaced(b'},"#digests"', b',"author":"me"},"#digests"')),
    "metadata number": ("manifest_field", replaced(b'},"#digests"', b',"n":1},"#digests"')),
    "manifest number": ("manifest_field", frame(START + b"1}}")),
    "manifest object": ("manifest_field", frame(START + b"{}}}")),
    "no manifest": ("manifest_field", frame(START[: -len(b',"obm":')] + b"}}")),
    "manifest array": ("manifest_field", with_manifest("[]")),
    "manifest empty": ("json_syntax", with_manifest("")),
    "deep header": ("json_depth", replaced(b',"#digests":{', b',"a":' + b"[" * 100_000 + b',"#digests":{')),
    "deep manifest": ("json_depth", manifest_replaced('"kind":', '"a":' + "[" * 100_000 + ',"kind":')),
    "nan": ("json_syntax", manifest_replaced('"nbytes":2', '"nbytes":NaN')),
    "float": ("json_number", manifest_replaced('"nbytes":2', '"nbytes":2.0')),
    "exponent": ("json_number", manifest_replaced('"nbytes":2', '"nbytes":2e0')),
    "negative": ("json_number", manifest_replaced('"nbytes":2', '"nbytes":-2')),
    "negative zero": ("json_number", replaced(b'"data_offsets":[0,', b'"data_offsets":[-0,')),
    "2^53": ("json_number", manifest_replaced('"nbytes":2', f'"nbytes":{2**53}')),
    "leading zero": ("json_number", manifest_replaced('"nbytes":2', '"nbytes":02')),
    "5000 digits": ("json_number", manifest_replaced('"nbytes":2', '"nbytes":' + "9" * 5000)),
    "trailing comma": ("json_syntax", manifest_replaced('"nbytes":2', '"nbytes":2,')),
    "comment": ("json_syntax", manifest_replaced('"nbytes":2', '"nbytes":2/*x*/')),
    "null": ("json_syntax", manifest_replaced('"nbytes":2', '"nbytes":null')),
    "two values": ("json_syntax", frame(header_text() + b"{}")),
    "white space": ("not_canonical", replaced(b',"#digests"', b', "#digests"')),
    "white space in manifest": ("not_canonical", manifest_replaced('"nbytes":2', '"nbytes": 2')),
    "key order": (
        "not_canonical",
        manifest_replaced('"name":"config.json","nbytes":2', '"nbytes":2,"name":"config.json"'),
    ),
    "escaped letter": ("not_canonical", manifest_replaced("LlamaFor", "\\u004clamaFor")),
    "escaped slash": ("not_canonical", manifest_replaced("m/zero", "m\\/zero")),
    "many entries": ("limit_exceeded", frame(START + b'"{}"}' + b',"a":{}' * 1_100_000 + b"}")),
}


@pytest.mark.parametrize(("reason", "data"), TEXTS.values(), ids=TEXTS)
def test_hostile_text_refused(reason: str, data: bytes) -> None:
    if reason:
        assert refusal(data) == reason
    else:
        Container.open(data).close()


@pytest.mark.parametrize("name", ["many entries", "deep header", "5000 digits"])
def test_hostile_text_takes_little_time_and_memory(name: str) -> None:
    data = TEXTS[name][1]
    start = time.process_time()
    with pytest.raises(ObmError):
        Container.open(data)
    took = time.process_time() - start
    tracemalloc.start()  # which makes the same take many times as long
    with pytest.raises(ObmError):
        Container.open(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 5
    assert peak < 16 * len(data) + (8 << 20)


def test_huge_shapes_cost_nothing() -> None:
    tree = manifest_tree(sample())
    zero = next(item for item in tree["tensors"] if item["encoding"] == "zero")  # type: ignore[attr-defined]
    zero["shape"] = [2**50, 7]
    tracemalloc.start()
    Container.open(with_manifest(dumps(tree), table()) + sample()[HEAD:]).close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_huge_part_that_the_file_lacks_is_refused_without_memory() -> None:
    signs = SignParams(alpha=AlphaLayout(), rows=2**40)
    head = sound_header(manifest_of((record("w", signs, shape=(2**40, 8)),)))
    tracemalloc.start()
    assert refusal(head + bytes(4096)) == "truncated"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20

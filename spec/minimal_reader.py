"""Reads `.obm` files by the prose of obm-1.md alone: standard library only, short rather than fast.

`minimal_reader.py FILE [BASE [REF ...]]` prints the artifact id and, for each tensor, the digests of its task vector
value and of its rebuilt form (null where there is none without BASE or a REF), or `{"reason": ...}`. It exits with 0,
with 4 when it refuses, and with 1 at a zstd block that takes a zstd library. `minimal_text.py`, `minimal_manifest.py`
and `minimal_values.py` belong to it. Numbers in comments are clauses.
"""

# ruff: noqa: D102, D103 - the clause numbers are the documentation
from __future__ import annotations

import json
import os
import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from minimal_manifest import WIDTH, Manifest, sum_count, sum_counts
from minimal_text import Refused, check, dumps, parse
from minimal_values import MEBI, decode

START = b'{"__metadata__":{"format":"obm","obm_version":"'


class Expert:
    """One file, of which every byte was checked."""

    def __init__(self, path: str) -> None:
        with Path(path).open("rb") as file:
            file_nbytes, start = os.fstat(file.fileno()).st_size, file.read(8)
            check(len(start) == 8, "truncated")
            n = int.from_bytes(start, "little")
            check(n <= 64 * MEBI, "header_too_large")  # 2.2, 3.1
            check(n % 64 == 56 and 8 + n <= file_nbytes, "bad_header_length")
            header = file.read(n)
            check(header.startswith(START), "not_obm")  # 2.4
            check(re.match(rb'1\.(0|[1-9][0-9]{0,8})"', header[len(START) :]), "unsupported_version")
            end = 8 + n + self.check_header(header.decode("latin-1"))
            check(file_nbytes >= end, "truncated")  # 2.3
            check(file_nbytes == end, "trailing_data")
            self.id = "obm1-sha256:" + sha256(start + header).hexdigest()
            self.read_parts(file.read())

    def check_header(self, text: str) -> int:
        top = parse(text.rstrip(" "))
        meta = top.pop("__metadata__")
        check(type(meta) is dict and set(meta) == {"format", "obm_version", "obm"}, "manifest_field")
        check(type(meta["obm"]) is str, "manifest_field")
        self.manifest, end = Manifest(meta["obm"]), 0
        self.table: dict[str, dict[str, Any]] = {}
        for name, nbytes in self.manifest.layout():
            begin, end = end, end + nbytes + -nbytes % 64
            self.table[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        check(list(top.items()) == list(self.table.items()), "part_table")  # 2.6
        pools = self.manifest.fields["pools"]
        check({name: pool["nbytes"] for name, pool in pools.items()} == self.manifest.pool_nbytes, "part_table")
        again = json.dumps({"__metadata__": meta, **self.table}, separators=(",", ":"))
        check(text == again + " " * (-(8 + len(again)) % 64), "not_canonical")
        check(self.manifest.canonical and meta["obm"] == dumps(parse(meta["obm"])), "not_canonical")
        return end

    def read_parts(self, data: bytes) -> None:
        fields = self.manifest.fields
        parts: dict[str, bytes] = {}
        padding = bytearray()
        for name, nbytes in self.manifest.layout():
            begin, end = self.table[name]["data_offsets"]
            parts[name] = data[begin : begin + nbytes]
            padding += data[begin + nbytes : end]
        for pool in fields["pools"]:
            check(sha256(parts[f"#{pool}"]).hexdigest() == fields["pools"][pool]["sha256"], "part_digest")
        digests = (parts["#digests"][i : i + 32] for i in range(0, len(parts.get("#digests", b"")), 32))
        alphas, frames, sums = (memoryview(parts.get(f"#{pool}", b"")) for pool in ("alphas", "frames", "sums"))
        for r in self.manifest.tensors:  # 7.4, 7.5
            r["base_sha256"] = next(digests) if r["mode"] != "added" else b""
            r["out_sha256"] = next(digests) if r["is_exact"] else b""
            r["parts"] = {suffix: parts[f"{r['name']}#{suffix}"] for suffix in r["sizes"]}
            for part in r["parts"].values():
                check(sha256(part).digest() == next(digests), "part_digest")
            size = r["alpha_count"] * WIDTH[r["alpha_dtype"]]
            r["alphas"], alphas = bytes(alphas[:size]), alphas[size:]
            size = 36 * -(-r["numel"] * WIDTH[r["value_dtype"]] // (2 * MEBI)) if r["framed"] else 0
            r["frames"], frames = bytes(frames[:size]), frames[size:]
            for suffix, count in sum_counts(r).items():
                sums = check_sums(r["parts"][suffix], count, sums)
        for file in fields["attach"]:
            content = parts.get(f"#attach/{file['name']}", b"")
            check(sha256(content).digest() == next(digests), "part_digest")
            sums = check_sums(content, sum_count(file["nbytes"]), sums)
        check(not any(padding), "pad_not_zero")  # 2.3


def check_sums(part: bytes, count: int, sums: memoryview) -> memoryview:  # 8.3
    for i in range(count):
        run = part[i * MEBI : (i + 1) * MEBI]
        check(sha256(run).digest() == bytes(sums[32 * i : 32 * i + 32]), "part_digest")
    return sums[32 * count :]


def read_backbone(path: str) -> dict[str, tuple[dict[str, Any], bytes]]:
    with Path(path).open("rb") as file:
        header, data = json.loads(file.read(int.from_bytes(file.read(8), "little"))), file.read()
    header.pop("__metadata__", None)
    spans = {name: slice(*entry["data_offsets"]) for name, entry in header.items()}
    return {name: (header[name], data[span]) for name, span in spans.items()}


def check_backbone(file: Expert, base: dict[str, tuple[dict[str, Any], bytes]]) -> None:  # 10.3, 10.4
    wanted = {r["counterpart"]["name"]: r for r in file.manifest.tensors if r["mode"] != "added"}
    by_name = {r["name"]: r for r in wanted.values()}
    wanted |= {name: by_name[target] for name, target in file.manifest.fields["alias"] if target in by_name}
    for name, r in wanted.items():
        entry, data = base.get(name, ({}, b""))
        same = all(entry.get(key) == r["counterpart"][key] for key in ("dtype", "shape"))
        check(same, "base_tensor")
        check(sha256(data).digest() == r["base_sha256"], "base_digest")
    removed = set(file.manifest.fields["removed"])
    check(removed <= set(base), "base_tensor")
    if file.manifest.fields["kind"] != "router":
        check(set(base) <= {*wanted, *removed}, "backbone_mismatch")


def read(path: str, base_path: str = "", *ref_paths: str) -> dict[str, Any]:
    file, refs = Expert(path), {ref.id: ref for ref in map(Expert, ref_paths)}
    base = read_backbone(base_path) if base_path else {}
    if base_path:
        check_backbone(file, base)
    tensors = {}
    for r in file.manifest.tensors:
        data = base.get(r["counterpart"]["name"], (None, None))[1] if r["mode"] != "added" else None
        digests = [None if part is None else sha256(part).hexdigest() for part in decode(r, file, data, refs)]
        tensors[r["name"]] = {
            "dtype": r["dtype"],
            "shape": r["shape"],
            "f32_sha256": digests[0],
            "out_sha256": digests[1],
        }
    return {"id": file.id, "tensors": tensors}


def main() -> int:
    try:
        report, status = read(*sys.argv[1:]), 0
    except Refused as refusal:
        report, status = {"reason": str(refusal)}, 4
    sys.stdout.write(json.dumps(report) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())

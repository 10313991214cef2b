"""Checks the manifest of an `.obm` file by the prose of obm-1.md alone (clauses 3, 5 and 6).

The half of `minimal_reader.py` that never sees a part: standard library only, short rather than fast. Numbers in
comments are clauses.
"""

# ruff: noqa: ANN401, D102, D103 - JSON has no better type here, and the clause numbers are the documentation
from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import Any

from minimal_text import check, dumps, parse

WIDTH = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
FLOATS = {"F16", "BF16", "F32"}
POOLS = ("digests", "alphas", "frames", "sums")
MODES = {
    **dict.fromkeys(("zero", "sign1", "tern1", "affine", "rtvq", "xdelta"), ("delta",)),
    "raw": ("delta", "replace", "added"),
    "sparse": ("delta", "replace"),
}  # 5.4
TASK, HEX = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "[0-9a-f]{64}"
GRAMMAR = {
    "bad_name": {
        "name": r"(?!__metadata__$)(?!(.*/)?\.{0,2}(/|$))[A-Za-z0-9_.:/+-]{1,512}",  # 5.3
        "attach_name": r"(?=.{1,128}$)[A-Za-z0-9_][A-Za-z0-9_.-]*\.(json|txt|jinja|model|md)",  # 5.9
    },
    "bad_digest": {"fingerprint": HEX, "sha256": HEX, "artifact_id": "obm1-sha256:" + HEX},
    "manifest_field": {
        "architecture": "([A-Za-z0-9_.-]{1,128})?",
        "dtype": "|".join(WIDTH),
        "ext_key": r"[a-z0-9-]+\.[a-z0-9_.-]+",
        "feature": "[a-z0-9][a-z0-9_.-]{0,63}",
        "kind": "task-vector|rtvq-base|router",
        "position": ".{1,512}",
        "route": TASK,
        "side": "tuned|backbone",
        "task": f"({TASK})?",
        "text": r"[A-Za-z0-9_.:/+-]{0,511}\.",
    },
    "bad_params": {
        "alpha": "matrix|row|group|block",
        "alpha_dtype": "F16|F32",
        "bits": "[2348]",
        "gain": r"[0-9]{1,4}(\.[0-9]{1,9})?",
        "planes": "[1-4]",
        "rule": "mean|rms|proj",
        "value_dtype": "F16|BF16|F32",
    },
}
FORMS = {field: (form, reason) for reason, forms in GRAMMAR.items() for field, form in forms.items()}

# Stand for a field that has no default: values that no file can hold.
NO_NUMBER, NO_LIST, NO_OBJECT = -1, [-1], {"": -1}
ALPHA = {"alpha": "matrix", "alpha_dtype": "F16", "blocks": NO_LIST, "gain": "1", "group": NO_NUMBER, "rule": "mean"}
ROWS = {"rows": NO_NUMBER}
OPTIONAL: dict[str, dict[str, Any]] = {
    "raw": {"zstd_nbytes": NO_NUMBER},
    "sign1": {**ALPHA, **ROWS, "planes": 1},
    "tern1": {**ALPHA, **ROWS},
    "affine": ROWS,
    "rtvq": {**ROWS, "ref": 0},
    "xdelta": {"bucket": False},
}  # 6.5
REQUIRED: dict[str, dict[str, Any]] = {
    "affine": {"bits": 0},
    "rtvq": {"bits": 0},
    "sparse": {"nnz": 0},
    "xdelta": {"zstd_nbytes": 0},
}


def conform(field: str, values: Iterable[Any]) -> None:
    form, reason = FORMS[field]
    for value in values:
        check(type(value) is str or field in ("bits", "planes"), "manifest_field")
        check(re.fullmatch(form, str(value)), reason)


class Manifest:
    """A manifest, its records completed with all that follows from them.

    `canonical` is false where a default was written out (4.2), which is reported only after the part table (14.1).
    """

    def __init__(self, text: str) -> None:
        self.canonical = True
        value = parse(text)
        if type(value) is dict and type(value.get("requires")) is list:  # 12.2: before any other field
            conform("feature", value["requires"])
            check(not value["requires"], "unsupported_feature")
        self.fields = fields = self.object(
            value,
            {"backbone": {}, "kind": "", "tensors": []},
            {"alias": [], "attach": [], "ext": {}, "pools": {}, "position": "none", "prefix": NO_OBJECT, "refs": [],
             "removed": [], "requires": [], "router": NO_OBJECT, "task": ""},
        )  # fmt: skip
        self.object(fields["backbone"], {"fingerprint": "", "n_params": 0, "n_tensors": 0}, {"architecture": ""})
        conform("ext_key", fields["ext"])
        check(len(dumps(fields["ext"])) <= 65_536, "limit_exceeded")
        conform("artifact_id", fields["refs"])
        check(len(fields["refs"]) <= 4, "limit_exceeded")
        if fields["prefix"] is not NO_OBJECT:
            self.object(fields["prefix"], {"side": "", "text": ""}, {})
        check(set(fields["pools"]) <= set(POOLS), "manifest_field")
        for pool in fields["pools"].values():
            self.object(pool, {"nbytes": 0, "sha256": ""}, {})
        self.check_attachments()
        self.tensors = [self.record(value) for value in fields["tensors"]]
        self.check_names()
        check((fields["kind"] == "router") == (fields["router"] is not NO_OBJECT), "manifest_field")
        if fields["kind"] == "router":
            router = self.object(fields["router"], {"max_tokens": 0, "routes": []}, {})
            check(router["max_tokens"], "manifest_field")
            self.check_router(router["routes"])
        self.pool_nbytes = self.count_pools()
        check(sum(1 for _ in self.layout()) <= 262_144, "limit_exceeded")

    def object(self, value: Any, required: dict[str, Any], optional: dict[str, Any]) -> dict[str, Any]:
        check(type(value) is dict and set(required) <= set(value) <= {*required, *optional}, "manifest_field")
        known = {**optional, **required}
        for field, content in value.items():
            check(type(content) is type(known[field]), "manifest_field")
            if field in FORMS:
                conform(field, [content])
            if field in optional and content == optional[field]:
                self.canonical = False
        return {**optional, **value}

    def check_attachments(self) -> None:
        files = self.fields["attach"]
        for value in files:
            check(self.object(value, {"name": "", "nbytes": 0}, {})["nbytes"] <= 2**26, "limit_exceeded")
        check(len(files) <= 64, "limit_exceeded")
        names = [value["name"] for value in files]
        conform("attach_name", names)  # 5.9
        check(names == sorted(set(names)), "duplicate_name")

    def check_names(self) -> None:
        tensors = [record["name"] for record in self.tensors]
        for pair in self.fields["alias"]:  # 5.8
            check(type(pair) is list and len(pair) == 2 and pair[1] in tensors, "manifest_field")
        groups = [tensors, [name for name, _ in self.fields["alias"]], self.fields["removed"]]
        names = [name for group in groups for name in group]
        conform("name", names)
        check(all(group == sorted(set(group)) for group in groups), "duplicate_name")
        check(len(names) == len(set(names)), "duplicate_name")  # 5.3
        check(len(names) <= 65_536, "limit_exceeded")

    def check_router(self, routes: list[Any]) -> None:  # 5.10
        conform("route", routes)
        shapes = {record["name"]: record["shape"] for record in self.tensors}
        layers = ("0", "1") if "1.weight" in shapes else ("0",)
        dims = [shapes.get(name, [0]) for name in ("mean", *(f"{i}.bias" for i in layers))]
        want = {"mean": dims[0], "scale": dims[0]}
        for i, (d, h) in zip(layers, pairwise(dims), strict=True):
            want |= {f"{i}.weight": h + d, f"{i}.bias": h}
        check(shapes == want and all(len(d) == 1 for d in dims), "manifest_field")
        check(dims[-1] == [len(routes)] and len(set(routes)) == len(routes), "manifest_field")
        for record in self.tensors:
            check((record["encoding"], record["mode"], record["dtype"]) == ("raw", "added", "F32"), "manifest_field")

    def record(self, value: Any) -> dict[str, Any]:
        required = {"dtype": "", "encoding": "", "name": "", "shape": []}
        r = self.object(value, required, {"base": NO_OBJECT, "mode": "delta", "params": {}})
        encoding, mode, own = r["encoding"], r["mode"], {key: r[key] for key in ("dtype", "name", "shape")}
        check(mode in MODES.get(encoding, ()), "unknown_encoding")
        r["counterpart"] = dict(own)
        if r["base"] is not NO_OBJECT:
            check(mode != "added", "manifest_field")
            r["counterpart"] = self.object(r["base"], {}, own)  # equal to the record's: not canonical, as a default
            self.canonical &= r["base"] != {}
        base = r["counterpart"]
        for shape in (r["shape"], base["shape"]):
            check(all(type(n) is int for n in shape), "manifest_field")
            check(len(shape) <= 8, "limit_exceeded")
            check(math.prod(n or 1 for n in shape) < 2**53, "bad_shape")
        self.check_sides(r, base)
        r["enc_shape"] = base["shape"] if mode == "delta" else r["shape"]
        r["numel"] = math.prod(r["enc_shape"])
        check(r["numel"] or encoding in ("zero", "raw", "sparse"), "bad_shape")  # 6.1
        self.check_params(r)
        r["sizes"] = part_sizes(r)
        return r

    def check_sides(self, r: dict[str, Any], base: dict[str, Any]) -> None:
        encoding, shape, old, same = r["encoding"], r["shape"], base["shape"], r["dtype"] == base["dtype"]
        if r["mode"] == "delta" and shape != old:  # 5.6
            check(shape and len(shape) == len(old) and shape[1:] == old[1:] and shape[0] > old[0], "bad_shape")
        if r["mode"] == "replace" and encoding == "sparse":
            check(shape == old, "bad_shape")
            check(same, "bad_params")
        r["is_exact"] = r["mode"] != "delta" or encoding == "xdelta"  # 5.5
        r["is_kept"] = encoding == "zero" and same and shape == old
        if encoding == "xdelta":  # 6.9
            check(same and r["dtype"] in FLOATS, "bad_params")
        elif not r["is_exact"] and not r["is_kept"]:
            check({r["dtype"], base["dtype"]} <= FLOATS, "bad_params")

    def check_params(self, r: dict[str, Any]) -> None:  # 6.5
        encoding, optional = r["encoding"], dict(OPTIONAL.get(r["encoding"], {}))
        if encoding in ("raw", "sparse") and r["mode"] == "delta":
            optional["value_dtype"] = "F32" if encoding == "sparse" else r["dtype"]
        p = r["p"] = self.object(r["params"], REQUIRED.get(encoding, {}), optional)
        r["value_dtype"] = p.get("value_dtype", r["dtype"])
        r["framed"] = p.get("zstd_nbytes", NO_NUMBER) != NO_NUMBER
        check(not r["framed"] or (p["zstd_nbytes"] and r["numel"]), "bad_params")
        check(p.get("nnz", 0) <= r["numel"], "bad_params")
        if encoding == "rtvq":
            check(p["ref"] < len(self.fields["refs"]), "bad_params")
        r["rows"] = default = r["enc_shape"][0] if len(r["enc_shape"]) > 1 else 1
        if p.get("rows", NO_NUMBER) != NO_NUMBER:  # 6.1
            r["rows"] = p["rows"]
            check(p["rows"] in accumulate(r["enc_shape"], int.__mul__, initial=1), "bad_params")
            self.canonical &= p["rows"] != default
        r["cols"] = r["numel"] // (r["rows"] or 1)
        r["alpha_count"] = self.count_alphas(r) if "alpha" in p else 2 if "bits" in p else 0
        r["alpha_dtype"] = p.get("alpha_dtype", "F32")

    def count_alphas(self, r: dict[str, Any]) -> int:  # 6.3
        p, rows, cols = r["p"], r["rows"], r["cols"]
        check((p["alpha"] == "group") == (p["group"] != NO_NUMBER), "bad_params")
        check((p["alpha"] == "block") == (p["blocks"] != NO_LIST), "bad_params")
        runs = {"matrix": [[1, rows]], "block": p["blocks"]}.get(p["alpha"], [[rows, 1]])
        check(all(type(run) is list and [type(n) for n in run] == [int, int] for run in runs), "manifest_field")
        check(all(count and height for count, height in runs), "bad_params")
        check(all(a[1] != b[1] for a, b in pairwise(runs)), "bad_params")
        check(sum(count * height for count, height in runs) == rows, "bad_params")
        r["runs"], r["width"] = runs, p["group"] if p["alpha"] == "group" else cols
        check(p["alpha"] != "group" or (p["group"] > 0 and p["group"] % 64 == 0), "bad_params")
        count = sum(count for count, _ in runs) * -(-cols // r["width"]) * p.get("planes", 1)
        return int(count)

    def count_pools(self) -> dict[str, int]:  # 7.3
        size = dict.fromkeys(POOLS, 0)
        for r in self.tensors:
            size["digests"] += 32 * ((r["mode"] != "added") + r["is_exact"] + len(r["sizes"]))
            size["alphas"] += r["alpha_count"] * WIDTH[r["alpha_dtype"]]
            size["frames"] += 36 * -(-r["numel"] * WIDTH[r["value_dtype"]] // 2**21) if r["framed"] else 0
            size["sums"] += 32 * sum(sum_counts(r).values())
        size["digests"] += 32 * len(self.fields["attach"])
        size["sums"] += 32 * sum(sum_count(file["nbytes"]) for file in self.fields["attach"])
        return {pool: nbytes for pool, nbytes in size.items() if nbytes}

    def layout(self) -> Iterator[tuple[str, int]]:
        """Name and size without padding of each part, in file order (2.5)."""
        yield from ((f"#{pool}", nbytes) for pool, nbytes in self.pool_nbytes.items())
        for r in self.tensors:
            yield from ((f"{r['name']}#{suffix}", nbytes) for suffix, nbytes in r["sizes"].items())
        yield from ((f"#attach/{a['name']}", a["nbytes"]) for a in self.fields["attach"] if a["nbytes"])


def part_sizes(r: dict[str, Any]) -> dict[str, int]:
    """Size of each part of a record by suffix, in part order (6.5)."""
    p, numel, encoding = r["p"], r["numel"], r["encoding"]
    sizes: dict[str, int] = {}
    if encoding == "sign1":
        sizes = {f"bits{plane}": r["rows"] * -(-r["cols"] // 8) for plane in range(p["planes"])}
    elif encoding == "tern1":
        sizes = dict.fromkeys(("bits0", "mask"), r["rows"] * -(-r["cols"] // 8))
    elif encoding in ("affine", "rtvq"):
        sizes = {"codes": r["rows"] * -(-r["cols"] * p["bits"] // 8)}
    elif encoding == "sparse" and p["nnz"]:
        width = WIDTH[r["value_dtype"]]
        sizes = {"counts": 4 * -(-numel // 65_536), "index": 2 * p["nnz"], "values": width * p["nnz"]}
    elif encoding in ("raw", "xdelta"):
        sizes = {"data": p["zstd_nbytes"] if r["framed"] else numel * WIDTH[r["value_dtype"]]}
    sizes["tail"] = (math.prod(r["shape"]) - numel) * WIDTH[r["dtype"]]  # 5.6
    return {suffix: nbytes for suffix, nbytes in sizes.items() if nbytes}


def sum_counts(r: dict[str, Any]) -> dict[str, int]:
    """Number of sums of each part of a record that has them (8.3)."""
    return {s: sum_count(n) for s, n in r["sizes"].items() if not (r["framed"] and s == "data")}


def sum_count(nbytes: int) -> int:
    """Number of sums of a part of so many bytes that is not framed (8.3)."""
    return -(-nbytes // 2**20) if nbytes > 2**23 else 0

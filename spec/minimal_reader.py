"""Reads `.obm` files by obm-1.md, whose clauses the comments number, and obm-1.schema.json: short rather than fast."""

import json
import re
import struct
import sys
from hashlib import sha256
from itertools import accumulate, chain, islice, pairwise, repeat
from math import copysign, isfinite, prod
from operator import add, sub
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SCHEMA = json.loads(Path(__file__).with_name("obm-1.schema.json").read_text())
TYPES = {"array": list, "boolean": bool, "integer": int, "object": dict, "string": str}
FIELDS = SCHEMA["$defs"] | SCHEMA["properties"]
DEFAULTS = {field: rule[word] for field, rule in FIELDS.items() for word in ("default", "x-absent") if word in rule}
WIDTH = {dtype: int(re.findall(r"\d+", dtype + " 8")[0]) // 8 for dtype in FIELDS["dtype"]["enum"]}  # 1.2
FORM = {"F16": "e", "BF16": "f", "F32": "f", "U8": "B", "U16": "H", "U32": "I", "U64": "Q"}  # BF16 goes as F32
FLOATS = {"F16": (10, 65520.0), "BF16": (7, 2.0**128 - 2.0**119), "F32": (23, 2.0**128 - 2.0**103)}  # bits; too large
CUT, MEBI, POOLS = 2**21, 2**20, ("#digests", "#alphas", "#frames")  # 8.2, 8.3, 7.3
PLAIN, CANONICAL = (json.JSONEncoder(separators=(",", ":"), sort_keys=sort).encode for sort in (False, True))  # 4.1
STRING = r'"(?:[^"\\]|\\.)*+"'


class Refused(Exception):
    """The file is not what the spec says; the argument is the reason code."""


def check(**conditions: object) -> None:
    for reason in (reason for reason, holds in conditions.items() if not holds):
        raise Refused(reason)


def faults(value: Any, rule: Any) -> list[str]:  # a default that was written is `not_canonical` (4.2)
    rule = rule and SCHEMA["$defs"].get(rule.get("$ref", "")[8:], {}) | rule
    if rule is False or type(value) is not TYPES.get(rule.get("type"), type(value)):
        return ["manifest_field"]
    obj, items, text = (value if type(value) is kind else kind() for kind in (dict, list, str))
    size, unmet = value if type(value) is int else len(items), "if" in rule and faults(value, rule["if"])
    fields, others, each = rule.get("properties", {}), rule.get("additionalProperties", {}), rule.get("items", {})
    inner = [(obj[field], own) for field, own in fields.items() if field in obj] + [(item, each) for item in items]
    inner += [(value, part) for part in (*rule.get("allOf", []), rule.get("else" if unmet else "then", {}))]
    inner += [(obj[key], others) for key in {*obj} - {*fields}] + [(key, rule.get("propertyNames", {})) for key in obj]
    holds = rule.get("minimum", rule.get("minItems", 0)) <= size <= rule.get("maximum", rule.get("maxItems", size))
    holds = holds and size % rule.get("multipleOf", 1) == 0 and value in rule.get("enum", [value])
    holds = holds and {*rule.get("required", [])} <= {*obj} and re.search(rule.get("pattern", ""), str(text))
    found = [rule.get("x-reason", "manifest_field")] * (not holds) + ["not_canonical"] * (value == rule.get("default"))
    return [reason for item, own in inner if own != {} for reason in faults(item, own)] + found


def parse(text: str) -> Any:  # 3.1, 4.1, but for the order of keys, white space and escapes
    bare = re.sub(STRING, '""', text)
    check(bad_encoding_of_text=all(" " <= c <= "~" for c in text), limit_exceeded=sum(map(bare.count, ",[{")) <= 2**21)
    check(json_depth=max(accumulate((c in "[{") - (c in "]}") for c in bare), default=0) <= 12)
    for w in set(re.findall(r"[-+.\w]+", bare)) - {"true", "false"}:
        check(json_syntax=w[0] in "-0123456789", json_number=re.fullmatch("0|[1-9][0-9]{0,15}", w) and int(w) < 2**53)
    try:
        again = CANONICAL(value := json.loads(text))
    except ValueError:
        raise Refused("json_syntax") from None
    check(json_duplicate_key=bare.count(":") == re.sub(STRING, "", again).count(":"))
    check(bad_encoding_of_text=re.fullmatch(r'(?:[ -\[\]-~]|\\["\\])*+', again))
    return value


def numbers(dtype: str, data: bytes, reason: str = "not_finite") -> list[Any]:  # of dtypes without a form: the bytes
    data = data if dtype != "BF16" else b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    values = [value for (value,) in struct.iter_unpack("<" + FORM.get(dtype, "B"), data)]
    check(**{reason: all(map(isfinite, values))})
    return values


def encode(dtype: str, values: list[float]) -> bytes:  # RNE; to BF16 from binary32
    check(not_finite=all(abs(value) < FLOATS[dtype][1] for value in values))
    data = struct.pack(f"<{len(values)}{FORM[dtype]}", *values)
    words = numbers("U32", data) if dtype == "BF16" else []
    return b"".join(struct.pack("<H", u + 0x7FFF + (u >> 16 & 1) >> 16) for u in words) or data


def f32(values: list[float]) -> list[float]:  # sums and quotients of two binary32 are exact enough in binary64
    return numbers("F32", encode("F32", values))


class Record(SimpleNamespace):  # a tensor record with all that follows from it (5.2 to 5.6, 6.1 to 6.5)
    def __init__(self, value: dict[str, Any], file: "Expert") -> None:
        params, own = value.get("params", {}), {field: value[field] for field in ("dtype", "name", "shape")}
        super().__init__(file=file, **DEFAULTS | value | params)
        written, self.base, encoding, delta = self.base | params, own | self.base, self.encoding, self.mode == "delta"
        shape, old, self.dtypes = self.shape, self.base["shape"], {self.dtype, self.base["dtype"]}
        grown, alike = delta and old and shape[1:] == old[1:] and shape > old, len(self.dtypes) == 1  # 5.6
        self.is_exact, self.is_kept = not delta or encoding == "xdelta", encoding == "zero" and alike and shape == old
        check(bad_shape=all(prod(n or 1 for n in dims) < 2**53 for dims in (shape, old)))  # 3.1
        check(bad_shape=shape == old or grown or (encoding == "raw" and not delta))
        check(bad_params=alike or encoding == "raw" or not self.is_exact)
        check(bad_params=self.is_kept or self.dtypes <= FLOATS.keys() or not delta)
        self.covered, self.model = old if delta else shape, file.backbone["fingerprint"]
        self.numel, height = prod(self.covered), self.covered[0] if len(self.covered) > 1 else 1  # 6.1
        own |= {"rows": height, "value_dtype": "F32" if delta and encoding in ("sparse", "zero") else self.dtype}
        self.is_lean = all(own.get(field) != item for field, item in written.items())  # 4.2
        vars(self).update(own | params)
        check(bad_params=self.rows in [prod(self.covered[:k]) for k in range(len(self.covered) + 1)])
        check(bad_shape=self.numel or encoding in ("zero", "raw", "sparse"), bad_params=self.nnz <= self.numel)
        check(bad_params=(self.numel or not self.zstd_nbytes) and (file.refs[self.ref :] or encoding != "rtvq"))
        self.cols, self.width = self.numel // (self.rows or 1), WIDTH[self.value_dtype]
        self.nbytes, self.per_row = self.numel * self.width, -(-self.cols // self.group)
        self.runs = {"matrix": [[1, self.rows]], "block": self.blocks}.get(self.alpha, [[self.rows, 1]])  # 6.3
        check(bad_params=sum(map(prod, self.runs)) == self.rows and all(a[1] != b[1] for a, b in pairwise(self.runs)))
        alphas = WIDTH[self.alpha_dtype] * self.planes * self.per_row * sum(count for count, _ in self.runs)
        packed, counts = self.rows * -(-self.cols * self.bits // 8), -(-self.numel // 2**16) if self.nnz else 0
        sizes = {f"bits{plane}": packed for plane in range(self.planes)} | {"mask": packed, "codes": packed}
        sizes |= {"counts": 4 * counts, "index": 2 * self.nnz, "values": self.width * self.nnz}
        sizes |= {"data": self.zstd_nbytes or self.nbytes, "tail": WIDTH[self.dtype] * (prod(shape) - self.numel)}
        self.sizes = parts = {part: sizes[part] for part in FIELDS[encoding]["x-parts"] if sizes.get(part)}
        self.fixed, frames = 32 * ((self.mode != "added") + self.is_exact), self.zstd_nbytes and -(-self.nbytes // CUT)
        self.takes = self.fixed + 32 * len(parts), alphas if "bits0" in parts else 8 * ("codes" in parts), 36 * frames

    def codes(self, part: str) -> list[int]:  # 6.2
        data, bits, stride = self.parts[part], self.bits, -(-self.cols * self.bits // 8)
        rows = [int.from_bytes(data[start : start + stride], "little") for start in range(0, len(data), stride)]
        check(pad_bits_set=all(row >> bits * self.cols == 0 for row in rows))
        return [row >> bits * c & (1 << bits) - 1 for row in rows for c in range(self.cols)]

    def plain(self) -> bytes:  # 8.2, and RFC 8878 without compressed blocks
        data, plain, frames = self.parts.get("data", b""), b"", [*struct.iter_unpack("<I32s", self.frames)]
        check(bad_frame=not frames or sum(nbytes for nbytes, _ in frames) == len(data))
        for nbytes, digest in frames:
            cut, frame, data = min(CUT, self.nbytes - len(plain)), data[:nbytes], data[nbytes:]
            check(bad_frame=nbytes <= cut + 2**16, frame_digest=sha256(frame).digest() == digest)
            check(bad_frame=frame[:4] == b"\x28\xb5\x2f\xfd" and len(frame) > 8 and not frame[4] & 0b1111)
            single, width, last, mixed = frame[4] >> 5 & 1, (frame[4] >> 5 & 1, 2, 4, 8)[frame[4] >> 6], 0, b""
            window, pos = cut if single else (8 + (frame[5] & 7)) << (frame[5] >> 3) + 7, 6 - single + width
            size = int.from_bytes(frame[6 - single : pos], "little") + 256 * (width == 2)
            check(bad_frame=width and size == cut and window <= 8 * MEBI)
            while not last:
                head, pos = int.from_bytes(frame[pos : pos + 3], "little"), pos + 3
                last, kind, size = head & 1, head >> 1 & 3, head >> 3
                check(bad_frame=pos <= len(frame) and kind < 3 and size <= min(window, 2**17) and len(mixed) <= cut)
                if kind == 2:
                    sys.exit("a compressed block: this reader has no zstd library")
                mixed += frame[pos : pos + 1] * size if kind else frame[pos : pos + size]
                pos += 1 if kind else size
            check(bad_frame=len(mixed) == cut and pos == len(frame))
            plain += b"".join(mixed[i :: cut // self.width] for i in range(cut // self.width))
        return plain or data

    def content(self, old: bytes) -> bytes:  # what is stored for the covered rows, over the backbone's or zeros
        dtype, data = f"U{8 * self.width}", self.plain()
        words = numbers(dtype, data if self.encoding == "raw" else old)
        if self.encoding == "xdelta":  # 6.9
            half, shift, per_cut = 1 << 8 * self.width - 1, FLOATS[self.dtype][0], CUT // self.width
            places = sorted(range(self.numel), key=lambda i: (i // per_cut, self.bucket and words[i] % half >> shift))
            for i, code in zip(places, numbers(dtype, data), strict=True):
                order = (words[i] ^ half if words[i] < half else ~words[i]) + (code >> 1 ^ -(code & 1)) & 2 * half - 1
                words[i] = order ^ half if order >= half else ~order & 2 * half - 1
        elif self.encoding != "raw":  # 6.8
            forms = (self.value_dtype, "values"), ("U32", "counts"), ("U16", "index"), (dtype, "values")  # 9.4
            _, counts, index, values = (numbers(form, self.parts.get(part, b"")) for form, part in forms)
            places = [*map(add, chain.from_iterable(repeat(2**16 * block, n) for block, n in enumerate(counts)), index)]
            check(bad_index=sum(counts) == self.nnz and all(a < b for a, b in pairwise([-1, *places, self.numel])))
            for place, value in zip(places, values, strict=True):
                words[place] = value
        return struct.pack(f"<{self.numel}{FORM[dtype]}", *words)

    def signs(self) -> list[float]:  # 6.3, 6.6
        alphas, values = numbers(self.alpha_dtype, self.alphas, "bad_alpha"), [0.0] * self.numel
        check(bad_alpha=all(copysign(1, alpha) > 0 for alpha in alphas))
        runs = enumerate(height for count, height in self.runs for _ in range(count))
        places = [self.per_row * run + i % self.cols // self.group for run, n in runs for i in range(n * self.cols)]
        ternary, mask = "mask" in self.parts, self.codes("mask") if "mask" in self.parts else [1] * self.numel
        for plane in range(self.planes):
            own = alphas[plane * len(alphas) // self.planes :]
            cells = [*zip(self.codes(f"bits{plane}"), [own[place] for place in places], mask, strict=True)]
            check(bad_plane=all((a if kept else not bit) if ternary else bit or a for bit, a, kept in cells))
            values = f32([*map(add, values, [(a if bit else -a) * kept for bit, a, kept in cells])])
        return values

    def approximate(self, refs: dict[str, "Expert"]) -> list[float] | None:  # 6.6, 6.7; None without a file of refs
        if "codes" not in self.parts:
            return self.signs() if self.alphas else numbers(self.value_dtype, self.content(bytes(self.nbytes)))
        s, z = numbers("F32", self.alphas, "bad_code")
        check(bad_code=s > 0)
        values = f32([x / s for x in f32([q - z for q in self.codes("codes")])])
        shared = refs.get(self.file.refs[self.ref]) if self.encoding == "rtvq" else None
        if shared is None:
            return values if self.encoding == "affine" else None
        found = [r for r in shared.tensors if (r.name, r.covered, r.model) == (self.name, self.covered, self.model)]
        check(bad_reference=shared.kind == "rtvq-base" and found and found[0].encoding in ("affine", "zero"))
        return f32([*map(add, found[0].approximate({}) or [], values)])

    def digested(self, base: bytes | None, refs: dict[str, "Expert"]) -> dict[str, Any]:  # 9.2, 9.3
        check(limit_exceeded=self.numel <= 2**24)  # 3.3: this reader has no row ranges
        tail, old = self.parts.get("tail", b""), bytes(self.nbytes) if self.mode == "added" else base
        values, built = None if self.is_exact else self.approximate(refs), base if self.is_kept else None
        if self.is_exact:
            built = self.content(old or bytes(self.nbytes))
            new = numbers("" if self.encoding == "xdelta" and base is None else self.dtype, built)  # 9.4
            if old is not None and self.dtypes <= FLOATS.keys() and self.covered == self.base["shape"]:
                values = f32([*map(sub, new, numbers(self.base["dtype"], old))])
            built = built if self.encoding == "raw" or base is not None else None
            check(output_digest=built is None or sha256(built + tail).digest() == self.digests[-32:])
        elif base is not None and values is not None and not self.is_kept:
            built = encode(self.dtype, f32([*map(add, numbers(self.base["dtype"], base), values)]))
        rest = numbers(self.dtype, tail)
        both = None if values is None else encode("F32", values + rest), None if built is None else built + tail
        digests = [None if data is None else sha256(data).hexdigest() for data in both]
        return {"dtype": self.dtype, "shape": self.shape, "f32_sha256": digests[0], "out_sha256": digests[1]}


class Expert(SimpleNamespace):  # one file, of which every byte was checked
    def __init__(self, path: str) -> None:
        with Path(path).open("rb") as file:
            n, size = int.from_bytes(file.read(8), "little"), Path(path).stat().st_size  # 2.2, 3.1
            check(truncated=size >= 8, header_too_large=n <= 2**26, bad_header_length=n % 64 == 56 and 8 + n <= size)
            head = re.match(rb'{"__metadata__":{"format":"obm","obm_version":"(1\.(0|[1-9]\d{0,8})")?', file.peek()[:n])
            check(not_obm=head, unsupported_version=head and head[1])  # 2.4, 3.2
            end = 8 + n + self.read_header((header := file.read(n)).decode("latin-1").rstrip(" "))
            check(not_canonical=header[-64:].strip(b" "), truncated=size >= end, trailing_data=size <= end)  # 2.2, 2.3
            self.id = "obm1-sha256:" + sha256(n.to_bytes(8, "little") + header).hexdigest()  # 7.1
            read = {name: (file.read(n), file.read(-n % 64)) for name, n in self.sizes.items()}
        parts = {name: part for name, (part, _) in read.items()}
        check(part_digest=all(sha256(parts["#" + p]).hexdigest() == e["sha256"] for p, e in self.pools.items()))
        pools = [iter(parts.get(pool, b"")) for pool in POOLS]
        for r in self.owners:  # 7.2
            digests, r.alphas, r.frames = (bytes(islice(pool, n)) for pool, n in zip(pools, r.takes, strict=True))
            r.parts, r.digests = {s: parts.get(f"{r.name}#{s}", b"") for s in r.sizes}, digests[: r.fixed]
            check(part_digest=digests[r.fixed :] == b"".join(sha256(part).digest() for part in r.parts.values()))
        runs = [parts[name][i : i + MEBI] for name in self.large for i in range(0, len(parts[name]), MEBI)]  # 8.3
        check(part_digest=parts.get("#sums", b"") == b"".join(sha256(run).digest() for run in runs))
        check(pad_not_zero=not any(chain(*(pad for _, pad in read.values()))))  # 2.3

    def read_header(self, text: str) -> int:  # 2.5, 7.3, 8.3; gives the size of all parts together
        meta = (top := parse(text)).pop("__metadata__")
        check(manifest_field=list(meta) == ["format", "obm_version", "obm"] and type(meta["obm"]) is str)
        self.read_manifest(value := parse(meta["obm"]))
        own = {f"{r.name}#{part}": nbytes for r in self.owners for part, nbytes in r.sizes.items()}
        framed = {f"{r.name}#data" for r in self.tensors if r.zstd_nbytes}
        self.large = [name for name, nbytes in own.items() if nbytes > 8 * MEBI and name not in framed]
        pools = {pool: sum(r.takes[i] for r in self.owners) for i, pool in enumerate(POOLS)}
        pools["#sums"] = 32 * sum(-(-own[name] // MEBI) for name in self.large)
        self.sizes = sizes = {name: nbytes for name, nbytes in (pools | own).items() if nbytes}
        check(part_table={"#" + p: e["nbytes"] for p, e in self.pools.items()} == {p: n for p, n in pools.items() if n})
        ends: list[int] = [*accumulate((nbytes + -nbytes % 64 for nbytes in sizes.values()), initial=0)]
        entries = [{"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]} for a, b in pairwise(ends)]
        table = dict(zip(sizes, entries, strict=True))
        check(limit_exceeded=len(table) <= 2**18, part_table=CANONICAL([*top.items()]) == CANONICAL([*table.items()]))
        check(not_canonical=text == PLAIN({"__metadata__": meta, **table}) and meta["obm"] == CANONICAL(value))  # 4.3
        check(not_canonical=not faults(value, SCHEMA) and all(r.is_lean for r in self.tensors))  # 4.2
        return ends[-1]

    def read_manifest(self, value: Any) -> None:
        check(**{reason: reason == "not_canonical" for reason in faults(value, SCHEMA)})
        vars(self).update(DEFAULTS | value)
        check(limit_exceeded=len(self.tensors + self.alias + self.removed) <= 2**16 >= len(CANONICAL(self.ext)))
        self.tensors = [Record(value, self) for value in self.tensors]
        records, files = {r.name: r for r in self.tensors}, [{f"attach/{f['name']}": f["nbytes"]} for f in self.attach]
        self.owners = self.tensors + [SimpleNamespace(name="", fixed=0, takes=(32, 0, 0), sizes=file) for file in files]
        lists = [r.name for r in self.tensors], [n for n, _ in self.alias], self.removed, self.refs, [*chain(*files)]
        check(duplicate_name=all(names == sorted(set(names)) for names in (*lists, sorted(chain(*lists[:3])))))  # 5.3
        check(manifest_field=all(target in records for _, target in self.alias))  # 5.8
        self.built = built = records | {name: records[target] for name, target in self.alias}
        self.kin = {n: r.base["name"] if n in records else n for n, r in built.items() if r.mode != "added"}
        self.fresh = built.keys() - self.kin.keys()
        check(duplicate_name=not {*self.kin.values()} & {*self.removed, *self.fresh})
        more, cut = (self.prefix["text"], "") if self.prefix["side"] == "tuned" else ("", self.prefix["text"])  # 5.7
        check(manifest_field=all(name.startswith(cut) and name != cut for name in self.kin))
        check(duplicate_name=len(self.fresh | {more + name.removeprefix(cut) for name in self.kin}) == len(built))
        routes, shapes = self.router["routes"], " ".join(f"{r.name} {r.shape}" for r in self.tensors)  # 5.10
        found = re.fullmatch(SCHEMA["then"]["x-tensors"], f"{shapes} {len(routes)} {len({*routes})}")
        check(manifest_field=found or self.kind != "router")

    def read_backbone(self, path: str) -> dict[str, bytes]:  # 10
        data = Path(path).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        entries, data = {n: e for n, e in json.loads(data[8:end]).items() if n != "__metadata__"}, data[end:]
        base = {name: data[slice(*e.pop("data_offsets"))] for name, e in entries.items()}
        digests = {name: sha256(content).hexdigest() for name, content in base.items()}
        for name, old in self.kin.items():
            r, found = self.built[name], entries.get(old, {"dtype": "none"})
            check(base_tensor=found.items() <= r.base.items(), base_digest=digests.get(old) == r.digests[:32].hex())
        check(base_tensor={*self.removed} <= {*base} and (self.kind == "router" or not self.fresh & {*base}))
        check(backbone_mismatch=self.kind != "task-vector" or {*base} == {*self.kin.values(), *self.removed})
        rows = [(n, e["dtype"], ",".join(map(str, e["shape"])), digests[n]) for n, e in sorted(entries.items())]
        fingerprint = sha256("".join("\0".join(row) + "\n" for row in rows).encode()).hexdigest()
        named = {"fingerprint": fingerprint, "n_params": sum(prod(e["shape"]) for e in entries.values())}
        check(backbone_mismatch=self.backbone.items() >= (named | {"n_tensors": len(base)}).items())
        return base

    def report(self, base_path: str = "", *ref_paths: str) -> dict[str, Any]:
        refs, base = {ref.id: ref for ref in map(Expert, ref_paths)}, self.read_backbone(base_path) if base_path else {}
        return {"id": self.id, "tensors": {r.name: r.digested(base.get(r.base["name"]), refs) for r in self.tensors}}


if __name__ == "__main__":  # FILE [BASE [REF ...]]; exits with 0, 4 where it refuses, 1 where it takes a zstd library
    try:
        print(json.dumps(Expert(sys.argv[1]).report(*sys.argv[2:])))
    except Refused as refusal:
        print(json.dumps({"reason": str(refusal)}))
        sys.exit(4)

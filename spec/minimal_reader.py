"""Reads `.obm` files by obm-1.md and obm-1.schema.json alone: one file, standard library only, short rather than fast.

`minimal_reader.py FILE [BASE [REF ...]]` prints the artifact id and, for each tensor, the digests of its task vector
value and of its rebuilt form (null where there is none without BASE or a REF), or `{"reason": ...}`. It exits with 0,
with 4 when it refuses, and with 1 at a zstd block that takes a zstd library. Numbers in comments are clauses.
"""

# ruff: noqa: ANN401, D102, D103 - JSON has no better type here, and the clauses are the documentation
# mypy: disable-error-code="has-type"
import json
import re
import struct
import sys
from hashlib import sha256
from itertools import accumulate, chain, islice, pairwise
from math import copysign, isfinite, prod
from operator import add, sub
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SCHEMA = json.loads(Path(__file__).with_name("obm-1.schema.json").read_text())
TYPES = {"array": list, "boolean": bool, "integer": int, "object": dict, "string": str}
FIELDS = SCHEMA["$defs"] | SCHEMA["properties"]
ABSENT = {"bits": 1, "blocks": [], "group": 0, "nnz": 0, "zstd_nbytes": 0, "prefix": {"side": "tuned", "text": ""}}
DEFAULTS = ABSENT | {field: rule["default"] for field, rule in FIELDS.items() if "default" in rule}
WIDTH = {dtype: int(re.findall(r"\d+", dtype + " 8")[0]) // 8 for dtype in FIELDS["dtype"]["enum"]}  # 1.2
FORM = {"F16": "e", "BF16": "f", "F32": "f", "U16": "H", "U32": "I"}  # of struct; BF16 is handled as F32
# What is computed with: shift and mask of the exponent (6.9), and the least number that rounds to infinity.
FLOATS = {"F16": (10, 0x1F, 65520.0), "BF16": (7, 0xFF, 2.0**128 - 2.0**119), "F32": (23, 0xFF, 2.0**128 - 2.0**103)}
CUT, MEBI, POOLS = 2**21, 2**20, ("#digests", "#alphas", "#frames", "#sums")  # 8.2, 8.3, 7.3
PLAIN, CANONICAL = (json.JSONEncoder(separators=(",", ":"), sort_keys=sort).encode for sort in (False, True))  # 4.1
STRING = r'"(?:[^"\\]|\\.)*+"'


class Refused(Exception):
    """The file is not what the spec says; the argument is the reason code."""


def check(**conditions: object) -> None:
    for reason in (reason for reason, holds in conditions.items() if not holds):
        raise Refused(reason)


def faults(value: Any, rule: Any) -> list[str]:
    """Why the schema refuses a value; a default that was written is `not_canonical` (4.2)."""
    rule = rule and SCHEMA["$defs"].get(rule.get("$ref", "")[8:], {}) | rule
    if rule is False or type(value) is not TYPES.get(rule.get("type"), type(value)):
        return ["manifest_field"]
    inner, size = [(value, part) for part in rule.get("allOf", [])], value if type(value) is int else 0
    if "if" in rule:
        inner.append((value, rule.get("else" if faults(value, rule["if"]) else "then", {})))
    if type(value) is dict:
        fields, others = rule.get("properties", {}), rule.get("additionalProperties", {})
        inner = [(value[field], own) for field, own in fields.items() if field in value] + inner
        inner += [(value[field], others) for field in value if field not in fields]
        inner += [(field, rule.get("propertyNames", {})) for field in value]
    if type(value) is list:
        inner, size = [(item, rule.get("items", {})) for item in value], len(value)
    found = [reason for item, own in inner if own != {} for reason in faults(item, own)]
    holds = rule.get("minimum", rule.get("minItems", 0)) <= size <= rule.get("maximum", rule.get("maxItems", size))
    holds = holds and size % rule.get("multipleOf", 1) == 0 and value in rule.get("enum", [value])
    holds = holds and re.search(rule.get("pattern", ""), value if type(value) is str else "")
    holds = holds and all(field in value for field in rule.get("required", []))
    reason = rule.get("x-reason", "manifest_field")
    return found + [reason] * (not holds) + ["not_canonical"] * (value == rule.get("default"))


def parse(text: str) -> Any:
    """One JSON text that obeys clauses 3.1 and 4.1, but for the order of keys, white space and escapes."""
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


def numbers(dtype: str, data: bytes, reason: str = "not_finite") -> list[Any]:
    """What is in a tensor of floats, which must be finite, or of unsigned integers; the bytes of another one."""
    data = data if dtype != "BF16" else b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    values = [value for (value,) in struct.iter_unpack("<" + FORM.get(dtype, "B"), data)]
    check(**{reason: all(map(isfinite, values))})
    return values


def encode(dtype: str, values: list[float]) -> bytes:  # RNE; to BF16 from binary32
    check(not_finite=all(abs(value) < FLOATS[dtype][2] for value in values))
    data = struct.pack(f"<{len(values)}{FORM[dtype]}", *values)
    words = numbers("U32", data) if dtype == "BF16" else []
    return b"".join(struct.pack("<H", u + 0x7FFF + (u >> 16 & 1) >> 16) for u in words) or data


def f32(values: list[float]) -> list[float]:  # sums and quotients of two binary32 are exact enough in binary64
    return numbers("F32", encode("F32", values))


def unzstd(frame: bytes, nbytes: int) -> bytes:  # 8.2, and RFC 8878 without compressed blocks
    check(bad_frame=frame[:4] == b"\x28\xb5\x2f\xfd" and len(frame) > 8 and not frame[4] & 0b1111)
    single, width, last, content = frame[4] >> 5 & 1, (frame[4] >> 5 & 1, 2, 4, 8)[frame[4] >> 6], 0, b""
    window, pos = nbytes if single else (8 + (frame[5] & 7)) << (frame[5] >> 3) + 7, 6 - single + width
    size = int.from_bytes(frame[6 - single : pos], "little") + 256 * (width == 2)
    check(bad_frame=width and size == nbytes and window <= 8 * MEBI)
    while not last:
        head, pos = int.from_bytes(frame[pos : pos + 3], "little"), pos + 3
        last, kind, size = head & 1, head >> 1 & 3, head >> 3
        check(bad_frame=pos <= len(frame) and kind < 3 and size <= min(window, 2**17) and len(content) <= nbytes)
        if kind == 2:
            sys.exit("a compressed block: this reader has no zstd library")
        content += frame[pos : pos + 1] * size if kind else frame[pos : pos + size]
        pos += 1 if kind else size
    check(bad_frame=len(content) == nbytes and pos == len(frame))
    return content


class Record(SimpleNamespace):
    """A tensor record with all that follows from it (5.2 to 5.6, 6.1 to 6.5), and its way to values (6, 8, 9)."""

    def __init__(self, value: dict[str, Any], file: "Expert") -> None:
        params, own = value.get("params", {}), {field: value[field] for field in ("dtype", "name", "shape")}
        super().__init__(file=file, **DEFAULTS | value | params)
        written, self.base, delta = self.base | params, own | self.base, self.mode == "delta"
        shape, old, self.dtypes = self.shape, self.base["shape"], {self.dtype, self.base["dtype"]}
        check(bad_shape=all(prod(n or 1 for n in dims) < 2**53 for dims in (shape, old)))  # 3.1
        grown = delta and old and shape[1:] == old[1:] and shape > old  # 5.6
        check(bad_shape=shape == old or grown or (self.encoding == "raw" and not delta))
        self.is_exact = not delta or self.encoding == "xdelta"  # 5.5
        self.is_kept = self.encoding == "zero" and len(self.dtypes) == 1 and shape == old
        check(bad_params=len(self.dtypes) == 1 or self.encoding == "raw" or not self.is_exact)
        check(bad_params=not delta or self.is_kept or self.dtypes <= set(FLOATS))
        self.covered = old if delta else shape
        self.numel, height = prod(self.covered), self.covered[0] if len(self.covered) > 1 else 1  # 6.1
        own |= {"rows": height, "value_dtype": "F32" if delta and self.encoding in ("sparse", "zero") else self.dtype}
        self.is_lean = all(own.get(field) != item for field, item in written.items())  # 4.2
        vars(self).update(own | params)
        check(bad_params=self.rows in [prod(self.covered[:k]) for k in range(len(self.covered) + 1)])
        check(bad_shape=self.numel or self.encoding in ("zero", "raw", "sparse"), bad_params=self.nnz <= self.numel)
        check(bad_params=(self.numel or not self.zstd_nbytes) and (file.refs[self.ref :] or self.encoding != "rtvq"))
        self.cols, self.width = self.numel // (self.rows or 1), WIDTH[self.value_dtype]
        self.nbytes = self.numel * self.width
        self.runs = {"matrix": [[1, self.rows]], "block": self.blocks}.get(self.alpha, [[self.rows, 1]])  # 6.3
        check(bad_params=sum(count * height for count, height in self.runs) == self.rows)
        check(bad_params=all(a[1] != b[1] for a, b in pairwise(self.runs)) and (self.group or self.alpha != "group"))
        self.group = self.group or self.cols or 1
        self.per_row = -(-self.cols // self.group)
        alphas = self.planes * self.per_row * sum(count for count, _ in self.runs)
        packed, counts = self.rows * -(-self.cols * self.bits // 8), -(-self.numel // 2**16) if self.nnz else 0
        sizes = {f"bits{plane}": packed for plane in range(self.planes)} | {"mask": packed, "codes": packed}
        sizes |= {"counts": 4 * counts, "index": 2 * self.nnz, "values": self.width * self.nnz}
        sizes |= {"data": self.zstd_nbytes or self.nbytes, "tail": WIDTH[self.dtype] * (prod(shape) - self.numel)}
        self.sizes = {part: sizes[part] for part in [*FIELDS[self.encoding]["x-parts"], "tail"] if sizes.get(part)}
        self.alpha_nbytes = WIDTH[self.alpha_dtype] * alphas if "bits0" in self.sizes else 8 * ("codes" in self.sizes)
        self.frame_count = -(-self.nbytes // CUT) if self.zstd_nbytes else 0
        self.fixed = 32 * ((self.mode != "added") + self.is_exact)  # 7.4

    def codes(self, part: str) -> list[int]:  # 6.2
        data, bits, stride = self.parts[part], self.bits, -(-self.cols * self.bits // 8)
        rows = [int.from_bytes(data[start : start + stride], "little") for start in range(0, len(data), stride)]
        check(pad_bits_set=all(row >> bits * self.cols == 0 for row in rows))
        return [row >> bits * c & (1 << bits) - 1 for row in rows for c in range(self.cols)]

    def content(self, old: bytes) -> bytes:  # 8.2
        """What is stored for the covered rows, over the backbone's or zeros."""
        data, plain, frames = self.parts.get("data", b""), b"", [*struct.iter_unpack("<I32s", self.frames)]
        check(bad_frame=not frames or sum(nbytes for nbytes, _ in frames) == len(data))
        for nbytes, digest in frames:
            cut, frame, data = min(CUT, self.nbytes - len(plain)), data[:nbytes], data[nbytes:]
            check(bad_frame=nbytes <= cut + 2**16, frame_digest=sha256(frame).digest() == digest)
            mixed, n = unzstd(frame, cut), cut // self.width
            plain += bytes(chain(*zip(*(mixed[start : start + n] for start in range(0, cut, n)), strict=True)))
        stored = self.listed(old) if self.encoding in ("sparse", "zero") else plain or data
        return self.moved(plain, old) if self.encoding == "xdelta" else stored

    def moved(self, data: bytes, old_data: bytes) -> bytes:  # 6.9
        dtype, half, (shift, mask, _) = f"U{8 * self.width}", 1 << 8 * self.width - 1, FLOATS[self.dtype]
        old, per_cut = numbers(dtype, old_data), CUT // self.width
        places = sorted(range(self.numel), key=lambda i: (i // per_cut, self.bucket and old[i] >> shift & mask))
        for i, zigzag in zip(places, numbers(dtype, data), strict=True):
            order = old[i] ^ (half if old[i] < half else 2 * half - 1)
            order = order + (zigzag >> 1 ^ -(zigzag & 1)) & 2 * half - 1
            old[i] = order ^ (half if order >= half else 2 * half - 1)
        return struct.pack(f"<{self.numel}{FORM[dtype]}", *old)

    def listed(self, old: bytes) -> bytes:  # 6.8
        counts, index, values = (self.parts.get(part, b"") for part in ("counts", "index", "values"))
        numbers(self.value_dtype, values)  # 9.4
        check(bad_index=sum(numbers("U32", counts)) == self.nnz)
        blocks = [2**16 * block for block, count in enumerate(numbers("U32", counts)) for _ in range(count)]
        places = [*map(add, blocks, numbers("U16", index))]
        check(bad_index=all(a < b for a, b in pairwise([-1, *places, self.numel])))
        cells = [old[i : i + self.width] for i in range(0, len(old), self.width)]
        for i, place in enumerate(places):
            cells[place] = values[self.width * i :][: self.width]
        return b"".join(cells)

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

    def approximate(self, refs: dict[str, "Expert"]) -> list[float] | None:  # 6.6, 6.7
        """Values over the covered rows; None where they need a file that is not at hand."""
        if "codes" not in self.parts:
            return self.signs() if self.alphas else numbers(self.value_dtype, self.content(bytes(self.nbytes)))
        s, z = numbers("F32", self.alphas, "bad_code")
        check(bad_code=s > 0)
        values = f32([x / s for x in f32([q - z for q in self.codes("codes")])])
        shared = refs.get(self.file.refs[self.ref]) if self.encoding == "rtvq" else None
        if shared is None:
            return values if self.encoding == "affine" else None
        found = [r for r in shared.tensors if (r.name, r.covered) == (self.name, self.covered)]
        same = shared.kind == "rtvq-base" and shared.backbone["fingerprint"] == self.file.backbone["fingerprint"]
        check(bad_reference=same and found and found[0].encoding in ("affine", "zero"))
        return f32([*map(add, found[0].approximate({}) or [], values)])

    def decode(self, base: bytes | None, refs: dict[str, "Expert"]) -> dict[str, Any]:
        """Digests of the task vector value as F32 (9.2) and of the rebuilt tensor (9.3); None where there is none."""
        check(limit_exceeded=self.numel <= 2**24)  # 3.3: this reader has no row ranges
        tail, old = self.parts.get("tail", b""), bytes(self.nbytes) if self.mode == "added" else base
        values, built = None if self.is_exact else self.approximate(refs), base if self.is_kept else None
        if self.is_exact:
            built = self.content(bytes(self.nbytes) if old is None else old)
            new = numbers("" if self.encoding == "xdelta" and base is None else self.dtype, built)  # 9.4
            if old is not None and self.dtypes <= set(FLOATS) and self.covered == self.base["shape"]:
                values = f32([*map(sub, new, numbers(self.base["dtype"], old))])
            built = built if self.encoding == "raw" or base is not None else None
            check(output_digest=built is None or sha256(built + tail).digest() == self.digests[-32:])
        elif base is not None and values is not None and not self.is_kept:
            built = encode(self.dtype, f32([*map(add, numbers(self.base["dtype"], base), values)]))
        rest = numbers(self.dtype, tail)
        both = None if values is None else encode("F32", values + rest), None if built is None else built + tail
        digests = [None if data is None else sha256(data).hexdigest() for data in both]
        return {"dtype": self.dtype, "shape": self.shape, "f32_sha256": digests[0], "out_sha256": digests[1]}


class Expert(SimpleNamespace):
    """One file, of which every byte was checked."""

    def __init__(self, path: str) -> None:
        with Path(path).open("rb") as file:
            start, size = file.read(8), file.seek(0, 2)
            n = file.seek(8) and int.from_bytes(start, "little")  # 2.2, 3.1
            check(truncated=size >= 8, header_too_large=n <= 2**26, bad_header_length=n % 64 == 56 and 8 + n <= size)
            header = file.read(min(n, 2**16))  # 3.2
            known = re.match(rb'{"__metadata__":{"format":"obm","obm_version":"(1\.(0|[1-9]\d{0,8})")?', header)
            check(not_obm=known, unsupported_version=known and known[1])  # 2.4
            header += file.read(n - len(header))
            end = 8 + n + self.read_header(header.decode("latin-1"))
            check(truncated=size >= end, trailing_data=size <= end)  # 2.3
            self.id = "obm1-sha256:" + sha256(start + header).hexdigest()  # 7.1
            read = {name: (file.read(n), file.read(-n % 64)) for name, n in self.sizes.items()}
        parts = {name: part for name, (part, _) in read.items()}
        check(part_digest=all(sha256(parts["#" + p]).hexdigest() == e["sha256"] for p, e in self.pools.items()))
        pools = [iter(parts.get(pool, b"")) for pool in POOLS]
        for r in self.owners:  # 7.2, 8.3
            digests, r.alphas, r.frames, sums = (bytes(islice(pool, n)) for pool, n in zip(pools, r.takes, strict=True))
            r.parts, r.digests = {s: parts.get(f"{r.name}#{s}", b"") for s in r.sizes}, digests[: r.fixed]
            runs = [r.parts[part][i : i + MEBI] for part in r.large for i in range(0, r.sizes[part], MEBI)]
            hashed = [sha256(data).digest() for data in (*r.parts.values(), *runs)]
            check(part_digest=digests[r.fixed :] + sums == b"".join(hashed))
        check(pad_not_zero=not any(chain(*(pad for _, pad in read.values()))))  # 2.3

    def read_header(self, text: str) -> int:  # 2.5, 7.3 to 7.5, 8.2, 8.3
        """The size of all parts together."""
        top, end, table = parse(text.rstrip(" ")), 0, {}
        meta = top.pop("__metadata__")
        check(manifest_field=list(meta) == ["format", "obm_version", "obm"] and type(meta["obm"]) is str)
        self.read_manifest(value := parse(meta["obm"]))
        bare = {"name": "", "fixed": 0, "alpha_nbytes": 0, "frame_count": 0}
        files = [SimpleNamespace(sizes={f"attach/{file['name']}": file["nbytes"]}, **bare) for file in self.attach]
        self.owners = [*self.tensors, *files]
        for r in self.owners:
            r.large = [part for part, n in r.sizes.items() if n > 8 * MEBI and not (r.frame_count and part == "data")]
            sums = sum(-(-r.sizes[part] // MEBI) for part in r.large)
            r.takes = r.fixed + 32 * len(r.sizes), r.alpha_nbytes, 36 * r.frame_count, 32 * sums
        pools = {pool: sum(r.takes[i] for r in self.owners) for i, pool in enumerate(POOLS)}
        own = {f"{r.name}#{part}": nbytes for r in self.owners for part, nbytes in r.sizes.items()}
        self.sizes = {name: nbytes for name, nbytes in (pools | own).items() if nbytes}
        named = {"#" + pool: entry["nbytes"] for pool, entry in self.pools.items()}
        check(part_table=named.items() == self.sizes.items() & pools.items(), limit_exceeded=len(self.sizes) <= 2**18)
        for name, nbytes in self.sizes.items():
            begin, end = end, end + nbytes + -nbytes % 64
            table[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        check(part_table=list(top) == list(table) and CANONICAL(top) == CANONICAL(table))  # 2.6
        again = PLAIN({"__metadata__": meta, **table})
        check(not_canonical=meta["obm"] == CANONICAL(value) and text == again + " " * (-(8 + len(again)) % 64))  # 4.3
        check(not_canonical=not faults(value, SCHEMA) and all(r.is_lean for r in self.tensors))  # 4.2
        return end

    def read_manifest(self, value: Any) -> None:
        check(**{reason: reason == "not_canonical" for reason in faults(value, SCHEMA)})
        vars(self).update(DEFAULTS | value)
        check(limit_exceeded=len(self.tensors + self.alias + self.removed) <= 2**16 >= len(CANONICAL(self.ext)))
        self.tensors = [Record(value, self) for value in self.tensors]
        records, files = {r.name: r for r in self.tensors}, [file["name"] for file in self.attach]
        lists = [r.name for r in self.tensors], [name for name, _ in self.alias], self.removed  # 5.3
        check(duplicate_name=all(names == sorted(set(names)) for names in (*lists, self.refs, files)))
        check(duplicate_name=len({*chain(*lists)}) == sum(map(len, lists)))
        check(manifest_field=all(target in records for _, target in self.alias))  # 5.8
        self.built = built = records | {name: records[target] for name, target in self.alias}
        self.kin = {n: r.base["name"] if n in records else n for n, r in built.items() if r.mode != "added"}
        self.fresh = built.keys() - self.kin.keys()
        check(duplicate_name=not {*self.kin.values()} & {*self.removed, *self.fresh})
        more, cut = (self.prefix["text"], "") if self.prefix["side"] == "tuned" else ("", self.prefix["text"])  # 5.7
        check(manifest_field=all(name.startswith(cut) and name != cut for name in self.kin))
        check(duplicate_name=len(self.fresh | {more + name.removeprefix(cut) for name in self.kin}) == len(built))
        if self.kind == "router":  # 5.10
            shapes, routes = " ".join(f"{r.name} {r.shape}" for r in self.tensors), self.router["routes"]
            found = re.fullmatch(SCHEMA["then"]["x-tensors"], shapes)
            check(manifest_field=found and int(found[3] or found[1]) == len(routes) == len(set(routes)))

    def read_backbone(self, path: str) -> dict[str, bytes]:  # 10
        data = Path(path).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        entries, data = {n: e for n, e in json.loads(data[8:end]).items() if n != "__metadata__"}, data[end:]
        base = {name: data[slice(*e["data_offsets"])] for name, e in entries.items()}
        digests = {name: sha256(content).hexdigest() for name, content in base.items()}
        for name, old in self.kin.items():
            r, e = self.built[name], entries.get(old, {})
            check(base_tensor=(e.get("dtype"), e.get("shape")) == (r.base["dtype"], r.base["shape"]))
            check(base_digest=digests[old] == r.digests[:32].hex())
        check(base_tensor={*self.removed} <= {*base} and (self.kind == "router" or not self.fresh & {*base}))
        check(backbone_mismatch=self.kind != "task-vector" or {*base} == {*self.kin.values(), *self.removed})
        rows = [(n, e["dtype"], ",".join(map(str, e["shape"])), digests[n]) for n, e in sorted(entries.items())]
        fingerprint = sha256("".join("\0".join(row) + "\n" for row in rows).encode()).hexdigest()
        named = {"fingerprint": fingerprint, "n_params": sum(prod(e["shape"]) for e in entries.values())}
        check(backbone_mismatch=self.backbone.items() >= (named | {"n_tensors": len(base)}).items())
        return base


def read(path: str, base_path: str = "", *ref_paths: str) -> dict[str, Any]:
    file, refs = Expert(path), {ref.id: ref for ref in map(Expert, ref_paths)}
    base = file.read_backbone(base_path) if base_path else {}
    return {"id": file.id, "tensors": {r.name: r.decode(base.get(r.base["name"]), refs) for r in file.tensors}}


if __name__ == "__main__":
    try:
        print(json.dumps(read(*sys.argv[1:])))
    except Refused as refusal:
        print(json.dumps({"reason": str(refusal)}))
        sys.exit(4)

"""Reads `.obm` files by the prose of obm-1.md alone: one file, standard library only, short rather than fast.

`minimal_reader.py FILE [BASE [REF ...]]` prints the artifact id and, for each tensor, the digests of its task vector
value and of its rebuilt form (null where there is none without BASE or a REF), or `{"reason": ...}`. It exits with 0,
with 4 when it refuses, and with 1 at a zstd block that takes a zstd library. Numbers in comments are clauses.
"""

# ruff: noqa: ANN401, D102, D103 - JSON has no better type here, and the clauses are the documentation
# mypy: disable-error-code="has-type, no-any-return, redundant-expr"
import json
import math
import re
import struct
import sys
from hashlib import sha256
from io import BytesIO
from itertools import accumulate, chain, pairwise, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

START, CUT, MEBI = b'{"__metadata__":{"format":"obm","obm_version":"', 2**21, 2**20  # 2.4, 8.2, 8.3
POOLS = ("digests", "alphas", "frames", "sums")  # 7.3
DTYPES = "BOOL U8 I8 F8_E4M3 F8_E5M2 U16 I16 F16 BF16 U32 I32 F32 U64 I64 F64".split()  # noqa: SIM905 - 1.2
WIDTH = dict(zip(DTYPES, map(int, "111112222444888"), strict=True))
# What is computed with: shift and mask of the exponent (6.9), and the least number that rounds to infinity.
FLOATS = {"F16": (10, 0x1F, 65520.0), "BF16": (7, 0xFF, 2.0**128 - 2.0**119), "F32": (23, 0xFF, 2.0**128 - 2.0**103)}
# Fields of each object (5.1, 5.2, 6.5): a type where the field is required, (type,) where it is optional, or a default.
MANIFEST = {"alias": [], "attach": [], "backbone": dict, "ext": {}, "kind": str, "pools": {}, "position": "none"}
MANIFEST |= {"prefix": (dict,), "refs": [], "removed": [], "requires": [], "router": (dict,), "task": ""}
MANIFEST |= {"tensors": list}
RECORD = {"base": (dict,), "dtype": str, "encoding": str, "mode": "delta", "name": str, "params": {}, "shape": list}
BACKBONE = {"architecture": "", "fingerprint": str, "n_params": int, "n_tensors": int}
POOL, FILE, PREFIX = {"nbytes": int, "sha256": str}, {"name": str, "nbytes": int}, {"side": str, "text": str}
ROUTER = {"max_tokens": int, "routes": list}
ALPHA = {"alpha": "matrix", "alpha_dtype": "F16", "blocks": (list,), "gain": "1", "group": (int,), "rows": int}
ALPHA |= {"rule": "mean"}  # the defaults of `rows` and `value_dtype` follow from the record
ENCODINGS: dict[str, tuple[str, dict[str, Any], str]] = {  # 5.4, 6.5: modes, parameters, parts
    "zero": ("delta", {}, ""),
    "raw": ("delta replace added", {"value_dtype": str, "zstd_nbytes": (int,)}, "data"),
    "sign1": ("delta", ALPHA | {"planes": 1}, "bits0 bits1 bits2 bits3"),
    "tern1": ("delta", ALPHA, "bits0 mask"),
    "affine": ("delta", {"bits": int, "rows": int}, "codes"),
    "rtvq": ("delta", {"bits": int, "ref": 0, "rows": int}, "codes"),
    "sparse": ("delta replace", {"nnz": int, "value_dtype": str}, "counts index values"),
    "xdelta": ("delta", {"bucket": False, "zstd_nbytes": int}, "data"),
}
UNSET = {"alpha": "", "alpha_dtype": "F32", "bits": 0, "nnz": 0, "planes": 1, "ref": -1, "zstd_nbytes": None}
GRAMMAR = r"""
bad_name name=(?!__metadata__$)(?!(.*/)?\.{0,2}(/|$))[A-Za-z0-9_.:/+-]{1,512}
bad_name file=(?=.{1,128}$)[A-Za-z0-9_][A-Za-z0-9_.-]*\.(json|txt|jinja|model|md)
bad_digest fingerprint=[0-9a-f]{64} sha256=[0-9a-f]{64} refs=obm1-sha256:[0-9a-f]{64}
manifest_field architecture=[A-Za-z0-9_.-]{0,128} kind=task-vector|rtvq-base|router position=.{1,512} max_tokens=[1-9].*
manifest_field side=tuned|backbone text=[A-Za-z0-9_.:/+-]{0,511}\. ext=[a-z0-9-]+\.[a-z0-9_.-]+
manifest_field task=([A-Za-z0-9][A-Za-z0-9._-]{0,127})? route=[A-Za-z0-9][A-Za-z0-9._-]{0,127}
manifest_field requires=[a-z0-9][a-z0-9_.-]{0,63} dtype=BOOL|[UI](8|16|32|64)|F8_E4M3|F8_E5M2|B?F16|F32|F64
manifest_field pools=digests|alphas|frames|sums
bad_params alpha=matrix|row|group|block alpha_dtype=F16|F32 rule=mean|rms|proj gain=[0-9]{1,4}(\.[0-9]{1,9})?
bad_params planes=[1-4] bits=[2348] value_dtype=F16|BF16|F32
"""  # the reason of refusal, then fields with what they must be
FORMS = {f: (form, row.split()[0]) for row in GRAMMAR.splitlines()[1:] for f, form in re.findall(r" (\w+)=(\S+)", row)}
PLAIN, CANONICAL = (json.JSONEncoder(separators=(",", ":"), sort_keys=sort).encode for sort in (False, True))  # 4.1
STRING = r'"(?:[^"\\]|\\.)*+"'


class Refused(Exception):
    """The file is not what the spec says; the argument is the reason code."""


def check(**conditions: object) -> None:
    for reason in (reason for reason, holds in conditions.items() if not holds):
        raise Refused(reason)


def conform(field: str, value: Any) -> None:
    """A text, the keys of an object, or the texts of a sorted list without twins: each obeys the field's grammar."""
    values = value if type(value) in (list, tuple, dict) else [str(value)]
    check(manifest_field=all(type(text) is str for text in values))
    check(**{FORMS[field][1]: all(re.fullmatch(FORMS[field][0], text) for text in values)})
    check(duplicate_name=type(value) is not list or all(a < b for a, b in pairwise(values)))


def fill(value: Any, rules: dict[str, Any]) -> dict[str, Any]:
    """An object with its defaults (5.1). One that was written is taken out of `value`, so 4.3 shows it (4.2)."""
    check(manifest_field=type(value) is dict and set(value) <= set(rules))
    check(manifest_field=all(field in value for field, rule in rules.items() if type(rule) is type))
    filled = {field: None if type(rule) is tuple else rule for field, rule in rules.items()} | value
    for field, rule in [(field, rules[field]) for field in value]:
        kind = rule if type(rule) is type else rule[0] if type(rule) is tuple else type(rule)
        check(manifest_field=type(value[field]) is kind)
        if field in FORMS:
            conform(field, value[field])
        if value[field] == rule:
            del value[field]
    return filled


def parse(text: str) -> Any:
    """One JSON text that obeys clauses 3.1 and 4.1, but for the order of keys, white space and escapes."""
    bare = re.sub(STRING, '""', text)
    check(bad_encoding_of_text=all(" " <= c <= "~" for c in text), limit_exceeded=sum(map(bare.count, ",[{")) <= 2**21)
    check(json_depth=max(accumulate((c in "[{") - (c in "]}") for c in bare), default=0) <= 12)
    for word in set(re.findall(r"[-+.\w]+", bare)) - {"true", "false"}:
        check(json_syntax=word[0] in "-0123456789", json_number=re.fullmatch("0|[1-9][0-9]{0,15}", word))
        check(json_number=int(word) < 2**53)
    try:
        again = CANONICAL(value := json.loads(text))
    except ValueError:
        raise Refused("json_syntax") from None
    check(json_duplicate_key=bare.count(":") == re.sub(STRING, "", again).count(":"))
    check(bad_encoding_of_text=re.fullmatch(r'(?:[ -\[\]-~]|\\["\\])*+', again))
    return value


def words(form: str, data: bytes) -> list[Any]:
    return [word for (word,) in struct.iter_unpack("<" + form, data)]


def floats(dtype: str, data: bytes, reason: str = "not_finite") -> list[float]:
    wide = data if dtype != "BF16" else b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    values = words("e" if dtype == "F16" else "f", wide) if dtype in FLOATS else []
    check(**{reason: all(map(math.isfinite, values))})
    return values


def encode(dtype: str, values: list[float]) -> bytes:
    """RNE; to BF16 from binary32."""
    check(not_finite=all(abs(value) < FLOATS[dtype][2] for value in values))
    data = struct.pack(f"<{len(values)}{'e' if dtype == 'F16' else 'f'}", *values)
    if dtype != "BF16":
        return data
    return b"".join(struct.pack("<H", u + 0x7FFF + (u >> 16 & 1) >> 16) for u in words("I", data))


def f32(values: list[float]) -> list[float]:  # sums and quotients of two binary32 are exact enough in binary64
    return floats("F32", encode("F32", values))


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

    def __init__(self, value: Any, file: "Expert") -> None:
        super().__init__(file=file, **fill(value, RECORD))
        encoding, shape, delta = self.encoding, self.shape, self.mode == "delta"
        modes, params, suffixes = ENCODINGS.get(encoding, ("", {}, ""))
        check(unknown_encoding=self.mode in modes.split())
        check(manifest_field=self.mode != "added" or self.base is None)
        if self.base == {}:
            del value["base"]
        self.base = fill(self.base or {}, {"dtype": self.dtype, "name": self.name, "shape": shape})
        old, self.dtypes = self.base["shape"], {self.dtype, self.base["dtype"]}
        check(manifest_field=all(type(n) is int for n in shape + old), limit_exceeded=max(len(shape), len(old)) <= 8)
        check(bad_shape=all(math.prod(n or 1 for n in dims) < 2**53 for dims in (shape, old)))  # 3.1
        grown = delta and old and shape[1:] == old[1:] and shape > old  # 5.6
        check(bad_shape=shape == old or grown or (encoding == "raw" and not delta))
        check(bad_params=len(self.dtypes) == 1 or encoding == "raw" or (delta and encoding != "xdelta"))
        self.is_exact = not delta or encoding == "xdelta"  # 5.5
        self.is_kept = encoding == "zero" and len(self.dtypes) == 1 and shape == old
        check(bad_params=not delta or self.is_kept or self.dtypes <= set(FLOATS))
        self.covered = old if delta else shape
        self.numel, height = math.prod(self.covered), self.covered[0] if len(self.covered) > 1 else 1  # 6.1
        own = {"rows": height, "value_dtype": "F32" if delta and encoding == "sparse" else self.dtype}
        rules = {p: own.get(p, rule) for p, rule in params.items() if delta or p != "value_dtype"}
        vars(self).update(UNSET | own | fill(self.params, rules))
        check(bad_params=self.rows in [math.prod(self.covered[:k]) for k in range(len(self.covered) + 1)])
        check(bad_shape=self.numel or encoding in ("zero", "raw", "sparse"))
        check(bad_params=self.zstd_nbytes is None or (self.zstd_nbytes and self.numel))
        check(bad_params=self.nnz <= self.numel and self.ref < len(file.refs))
        self.cols, self.width = self.numel // (self.rows or 1), WIDTH[self.value_dtype]
        self.alpha_nbytes = WIDTH[self.alpha_dtype] * (self.count_alphas() if self.alpha else 2 if self.bits else 0)
        self.frame_count = -(-self.numel * self.width // CUT) if self.zstd_nbytes else 0
        packed, counts = self.rows * -(-self.cols * (self.bits or 1) // 8), -(-self.numel // 2**16) if self.nnz else 0
        sizes = {f"bits{plane}": packed for plane in range(self.planes)} | {"mask": packed, "codes": packed}
        sizes |= {"counts": 4 * counts, "index": 2 * self.nnz, "values": self.width * self.nnz}
        sizes["data"] = self.zstd_nbytes or self.numel * self.width
        sizes["tail"] = WIDTH[self.dtype] * (math.prod(shape) - self.numel)
        self.sizes = {suffix: sizes[suffix] for suffix in [*suffixes.split(), "tail"] if sizes.get(suffix)}

    def count_alphas(self) -> int:  # 6.3
        self.runs = {"matrix": [[1, self.rows]], "block": self.blocks or []}.get(self.alpha, [[self.rows, 1]])
        check(manifest_field=all(type(run) is list and [*map(type, run)] == [int, int] for run in self.runs))
        check(bad_params=all(map(all, self.runs)) and all(a[1] != b[1] for a, b in pairwise(self.runs)))
        check(bad_params=sum(count * height for count, height in self.runs) == self.rows)
        check(bad_params=(self.alpha == "group") == bool(self.group) and (self.group or 0) % 64 == 0)
        check(bad_params=(self.alpha == "block") == (self.blocks is not None) and self.group != 0)
        self.group = self.group or self.cols
        self.per_row = -(-self.cols // self.group)
        return int(sum(count for count, _ in self.runs) * self.per_row * self.planes)

    def codes(self, suffix: str, bits: int) -> list[int]:  # 6.2
        data, stride = self.parts[suffix], -(-self.cols * bits // 8)
        rows = [int.from_bytes(data[start : start + stride], "little") for start in range(0, len(data), stride)]
        check(pad_bits_set=all(row >> bits * self.cols == 0 for row in rows))
        return [row >> bits * c & (1 << bits) - 1 for row in rows for c in range(self.cols)]

    def moved(self, data: bytes, base_data: bytes) -> bytes:  # 6.9
        (shift, mask, _), half, form = FLOATS[self.dtype], 1 << 8 * self.width - 1, "H" if self.width == 2 else "I"
        base, tuned, per_cut = words(form, base_data), [0] * self.numel, CUT // self.width
        places = sorted(range(self.numel), key=lambda i: (i // per_cut, self.bucket and base[i] >> shift & mask))
        for i, zigzag in zip(places, words(form, data), strict=True):
            order = base[i] + half if base[i] < half else 2 * half - 1 - base[i]
            order = (order + (-(zigzag + 1) // 2 if zigzag & 1 else zigzag // 2)) % (2 * half)
            tuned[i] = order - half if order >= half else 2 * half - 1 - order
        return struct.pack(f"<{self.numel}{form}", *tuned)

    def content(self, base: bytes) -> bytes:  # 6.8, 8.2
        """The covered rows of `raw`, `sparse` and `xdelta`, the latter two over `base`, or zeros without one."""
        data, plain, pos, width = self.parts.get("data", self.parts.get("values", b"")), b"", 0, self.width
        base = base or bytes(self.numel * width)
        for nbytes, digest in struct.iter_unpack("<I32s", self.frames):
            cut, frame, pos = min(CUT, self.numel * width - len(plain)), data[pos : pos + nbytes], pos + nbytes
            check(bad_frame=pos <= len(data) and nbytes <= cut + 2**16, frame_digest=sha256(frame).digest() == digest)
            mixed, n = unzstd(frame, cut), cut // width
            plain += bytes(mixed[place + k] for place in range(n) for k in range(0, cut, n))
        check(bad_frame=not self.frames or pos == len(data))
        data = plain if self.frames else data
        floats("U8" if self.encoding == "xdelta" else self.value_dtype, data)  # 9.4
        if self.encoding != "sparse":
            return data if self.encoding == "raw" else self.moved(data, base)
        counts, index = words("I", self.parts.get("counts", b"")), words("H", self.parts.get("index", b""))
        check(bad_index=sum(counts) == len(index))
        blocks = chain.from_iterable(map(repeat, range(0, self.numel, 2**16), counts))
        places = [*map(sum, zip(blocks, index, strict=True))]
        check(bad_index=all(a < b for a, b in pairwise([-1, *places, self.numel])))
        cells = [base[i : i + width] for i in range(0, len(base), width)]
        for i, place in enumerate(places):
            cells[place] = data[i * width : i * width + width]
        return b"".join(cells)

    def signs(self) -> list[float]:  # 6.3, 6.6
        ternary, values = self.encoding == "tern1", [0.0] * self.numel
        alphas = floats(self.alpha_dtype, self.alphas, "bad_alpha")
        check(bad_alpha=all(math.copysign(1, alpha) > 0 for alpha in alphas))
        heights = [height for count, height in self.runs for _ in range(count)]
        firsts = [self.per_row * run for run, height in enumerate(heights) for _ in range(height)]
        mask = self.codes("mask", 1) if ternary else [1] * self.numel
        for plane in range(self.planes):
            own = alphas[plane * len(alphas) // self.planes :]
            spread = [own[first + c // self.group] for first in firsts for c in range(self.cols)]
            cells = [*zip(self.codes(f"bits{plane}", 1), spread, mask, strict=True)]
            check(bad_plane=all((a if kept else not bit) if ternary else bit or a for bit, a, kept in cells))
            values = f32([v + (a if bit else -a) * kept for v, (bit, a, kept) in zip(values, cells, strict=True)])
        return values

    def quantised(self, refs: dict[str, "Expert"]) -> list[float] | None:  # 6.6, 6.7
        s, z = floats("F32", self.alphas, "bad_code")
        check(bad_code=s > 0)
        values = f32([x / s for x in f32([q - z for q in self.codes("codes", self.bits)])])
        shared = refs.get(self.file.refs[self.ref]) if self.ref >= 0 else None
        if shared is None:
            return None if self.ref >= 0 else values
        found = [r for r in shared.tensors if (r.name, r.covered) == (self.name, self.covered)]
        same = shared.kind == "rtvq-base" and shared.backbone["fingerprint"] == self.file.backbone["fingerprint"]
        check(bad_reference=same and found and found[0].encoding in ("affine", "zero"))
        return f32([a + b for a, b in zip(found[0].approximate({}) or [], values, strict=True)])

    def approximate(self, refs: dict[str, "Expert"]) -> list[float] | None:
        """Values of clause 6 over the covered rows; None where they need a file that is not at hand."""
        if self.alpha or self.bits:
            return self.signs() if self.alpha else self.quantised(refs)
        return [0.0] * self.numel if self.encoding == "zero" else floats(self.value_dtype, self.content(b""))

    def decode(self, base: bytes | None, refs: dict[str, "Expert"]) -> dict[str, Any]:
        """Digests of the task vector value as F32 (9.2) and of the rebuilt tensor (9.3); None where there is none."""
        check(limit_exceeded=self.numel <= 2**24)  # 3.3: this reader has no row ranges
        old, tail = None if base is None else floats(self.base["dtype"], base), self.parts.get("tail", b"")
        values, content = None if self.is_exact else self.approximate(refs), base if self.is_kept else None
        if self.is_exact:
            built = self.content(base or b"")
            content = built if self.encoding == "raw" or base is not None else None
            check(output_digest=content is None or sha256(content + tail).digest() == self.out_sha256)  # 9.4
            old = [0.0] * self.numel if self.mode == "added" else old
            if old is not None and self.dtypes <= set(FLOATS) and self.covered == self.base["shape"]:
                values = f32([a - b for a, b in zip(floats(self.dtype, built), old, strict=True)])
        elif values is not None and old is not None and not self.is_kept:
            content = encode(self.dtype, f32([a + b for a, b in zip(old, values, strict=True)]))
        rest = floats(self.dtype, tail)
        both = None if values is None else encode("F32", values + rest), None if content is None else content + tail
        digests = [None if data is None else sha256(data).hexdigest() for data in both]
        return {"dtype": self.dtype, "shape": self.shape, "f32_sha256": digests[0], "out_sha256": digests[1]}


class Expert(SimpleNamespace):
    """One file, of which every byte was checked."""

    def __init__(self, path: str) -> None:
        with Path(path).open("rb") as file:
            start, nbytes = file.read(8), file.seek(0, 2)
            n = file.seek(8) and int.from_bytes(start, "little")
            check(truncated=len(start) == 8, header_too_large=n <= 64 * MEBI)  # 2.2, 3.1
            check(bad_header_length=n % 64 == 56 and 8 + n <= nbytes, not_obm=file.read(len(START)) == START)  # 2.4
            header = START + file.read(n - len(START))
            check(unsupported_version=re.match(rb'1\.(0|[1-9][0-9]{0,8})"', header[len(START) :]))
            end = 8 + n + self.read_header(header.decode("latin-1"))
            check(truncated=nbytes >= end, trailing_data=nbytes <= end)  # 2.3
            self.id = "obm1-sha256:" + sha256(start + header).hexdigest()  # 7.1
            self.read_parts(file.read())

    def read_header(self, text: str) -> int:
        top, end, table = parse(text.rstrip(" ")), 0, {}
        meta = top.pop("__metadata__")
        check(manifest_field=type(meta) is dict and list(meta) == ["format", "obm_version", "obm"])
        check(manifest_field=type(meta["obm"]) is str)
        self.read_manifest(value := parse(meta["obm"]))
        self.sizes = self.part_sizes()
        for name, nbytes in self.sizes.items():
            begin, end = end, end + nbytes + -nbytes % 64
            table[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        check(part_table=list(top) == list(table) and CANONICAL(top) == CANONICAL(table))  # 2.6
        again = PLAIN({"__metadata__": meta, **table})
        check(not_canonical=meta["obm"] == CANONICAL(value) and text == again + " " * (-(8 + len(again)) % 64))  # 4.3
        return end

    def read_manifest(self, value: Any) -> None:
        if type(value) is dict and type(value.get("requires")) is list:  # 12.2: before any other field
            conform("requires", value["requires"])
            check(unsupported_feature=not value["requires"])
        vars(self).update(fill(value, MANIFEST))
        self.backbone, self.attach = fill(self.backbone, BACKBONE), [fill(file, FILE) for file in self.attach]
        self.prefix = {"side": "", "text": ""} if self.prefix is None else fill(self.prefix, PREFIX)
        check(manifest_field=all(type(pair) is list and [*map(type, pair)] == [str, str] for pair in self.alias))
        check(limit_exceeded=len(self.attach) <= 64 and all(file["nbytes"] <= 64 * MEBI for file in self.attach))
        check(limit_exceeded=len(self.refs) <= 4 and len(CANONICAL(self.ext)) <= 2**16)
        check(limit_exceeded=len(self.tensors) + len(self.alias) + len(self.removed) <= 2**16)
        conform("file", [file["name"] for file in self.attach])
        self.pools = {pool: fill(entry, POOL) for pool, entry in self.pools.items()}
        self.tensors = [Record(value, self) for value in self.tensors]
        self.check_names()
        check(manifest_field=(self.kind == "router") == (self.router is not None))
        if self.kind == "router":
            self.check_router(**fill(self.router, ROUTER))

    def check_names(self) -> None:  # 5.3, 5.7, 5.8
        records, (side, text) = {r.name: r for r in self.tensors}, self.prefix.values()
        lists = [r.name for r in self.tensors], [name for name, _ in self.alias], self.removed
        for names in lists:
            conform("name", names)
        check(duplicate_name=len({*chain(*lists)}) == sum(map(len, lists)))
        check(manifest_field=all(target in records for _, target in self.alias))
        built = records | {name: records[target] for name, target in self.alias}
        self.fresh = {name for name, r in built.items() if r.mode == "added"}
        old = set(built) - self.fresh
        self.kin = [(r.base["name"] if name == r.name else name, r) for name, r in built.items() if name in old]
        check(duplicate_name=not {name for name, _ in self.kin} & {*self.removed, *self.fresh})
        check(manifest_field=side != "backbone" or all(name.startswith(text) and name != text for name in old))
        calls = self.fresh | {text + name if side == "tuned" else name.removeprefix(text) for name in old}
        check(duplicate_name=len(calls) == len(built))

    def check_router(self, max_tokens: int, routes: list[Any]) -> None:  # 5.10
        conform("route", tuple(routes))
        layers = r"0\.bias \[(\d+)\], 0\.weight \[\1, (\d+)\], (?:1\.bias \[(\d+)\], 1\.weight \[\3, \1\], )?"
        found = re.fullmatch(
            layers + r"mean \[\2\], scale \[\2\]", ", ".join(f"{r.name} {r.shape}" for r in self.tensors)
        )
        check(manifest_field=found and int(found[3] or found[1]) == len(routes) == len(set(routes)))
        check(manifest_field=all((r.encoding, r.mode, r.dtype) == ("raw", "added", "F32") for r in self.tensors))
        check(manifest_field=not (self.alias or self.removed or self.refs or self.prefix["text"]))

    def part_sizes(self) -> dict[str, int]:  # 2.5, 7.3 to 7.5, 8.2, 8.3
        bare: dict[str, Any] = {"name": "", "mode": "added", "is_exact": False, "alpha_nbytes": 0, "frame_count": 0}
        files = [SimpleNamespace(**bare, sizes={f"attach/{file['name']}": file["nbytes"]}) for file in self.attach]
        self.owners = self.tensors + files
        digests = sum((r.mode != "added") + r.is_exact + len(r.sizes) for r in self.owners)
        alphas, frames = sum(r.alpha_nbytes for r in self.owners), sum(r.frame_count for r in self.owners)
        own = {f"{r.name}#{suffix}": nbytes for r in self.owners for suffix, nbytes in r.sizes.items()}
        whole = own.keys() - {f"{r.name}#data" for r in self.owners if r.frame_count}
        self.sums = {name: -(-own[name] // MEBI) for name in whole if own[name] > 8 * MEBI}
        pools = zip(POOLS, (32 * digests, alphas, 36 * frames, 32 * sum(self.sums.values())), strict=True)
        sizes = {f"#{pool}": nbytes for pool, nbytes in pools if nbytes}
        check(part_table=sizes == {f"#{pool}": entry["nbytes"] for pool, entry in self.pools.items()})
        sizes |= {name: nbytes for name, nbytes in own.items() if nbytes}
        check(limit_exceeded=len(sizes) <= 2**18)
        return sizes

    def read_parts(self, data: bytes) -> None:
        parts, stream, pad = {}, BytesIO(data), b""
        for name, nbytes in self.sizes.items():
            parts[name], pad = stream.read(nbytes), pad + stream.read(-nbytes % 64)
        check(part_digest=all(sha256(parts["#" + p]).hexdigest() == e["sha256"] for p, e in self.pools.items()))
        digests, alphas, frames, sums = (BytesIO(parts.get("#" + pool, b"")) for pool in POOLS)
        for r in self.owners:
            r.base_sha256, r.out_sha256 = digests.read(32 * (r.mode != "added")), digests.read(32 * r.is_exact)
            r.alphas, r.frames = alphas.read(r.alpha_nbytes), frames.read(36 * r.frame_count)
            r.parts = {suffix: parts.get(f"{r.name}#{suffix}", b"") for suffix in r.sizes}
            for suffix, part in r.parts.items():
                check(part_digest=sha256(part).digest() == digests.read(32))
                for start in range(0, MEBI * self.sums.get(f"{r.name}#{suffix}", 0), MEBI):
                    check(part_digest=sha256(part[start : start + MEBI]).digest() == sums.read(32))
        check(pad_not_zero=not any(pad))  # 2.3

    def check_backbone(self, base: dict[str, Any]) -> None:  # 10
        for name, r in self.kin:
            dtype, shape, data = base.get(name, ("", [], b""))
            check(base_tensor=(dtype, shape) == (r.base["dtype"], r.base["shape"]))
            check(base_digest=sha256(data).digest() == r.base_sha256)
        fresh = self.fresh if self.kind != "router" else set()
        check(base_tensor=set(self.removed) <= set(base) and not fresh & set(base))
        known = {name for name, _ in self.kin} | set(self.removed)
        check(backbone_mismatch=self.kind != "task-vector" or set(base) == known)
        rows = [(n, t, ",".join(map(str, s)), sha256(data).hexdigest()) for n, (t, s, data) in sorted(base.items())]
        fingerprint = sha256("".join("\0".join(row) + "\n" for row in rows).encode()).hexdigest()
        own = {"fingerprint": fingerprint, "n_params": sum(math.prod(shape) for _, shape, _ in base.values())}
        check(backbone_mismatch=self.backbone == self.backbone | own | {"n_tensors": len(base)})


def read_backbone(path: str) -> dict[str, Any]:
    """Dtype, shape and bytes of each tensor."""
    data = Path(path).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:end]), data[end:]
    header.pop("__metadata__", None)
    return {name: (e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for name, e in header.items()}


def read(path: str, base_path: str = "", *ref_paths: str) -> dict[str, Any]:
    file, refs = Expert(path), {ref.id: ref for ref in map(Expert, ref_paths)}
    base = read_backbone(base_path) if base_path else {}
    if base_path:
        file.check_backbone(base)
    old = {r.name: base[r.base["name"]][2] if base and r.mode != "added" else None for r in file.tensors}
    return {"id": file.id, "tensors": {r.name: r.decode(old[r.name], refs) for r in file.tensors}}


if __name__ == "__main__":
    try:
        report, status = read(*sys.argv[1:]), 0
    except Refused as refusal:
        report, status = {"reason": str(refusal)}, 4
    sys.stdout.write(json.dumps(report) + "\n")
    sys.exit(status)

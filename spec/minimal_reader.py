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
SIZES = {1: "BOOL U8 I8 F8_E4M3 F8_E5M2", 2: "U16 I16 F16 BF16", 4: "U32 I32 F32", 8: "U64 I64 F64"}  # 1.2
WIDTH = {dtype: width for width, dtypes in SIZES.items() for dtype in dtypes.split()}
EXPONENT = {"F16": (10, 0x1F), "BF16": (7, 0xFF), "F32": (23, 0xFF)}  # 6.9: shift and mask, of dtypes to compute with
# Fields of each object (5.1, 5.2, 6.5): a type where the field is required, (type,) where it is optional, or a default.
MANIFEST = {"alias": [], "attach": [], "backbone": dict, "ext": {}, "kind": str, "pools": {}, "position": "none"}
MANIFEST |= {"prefix": (dict,), "refs": [], "removed": [], "requires": [], "router": (dict,), "task": ""}
RECORD = {"base": (dict,), "dtype": str, "encoding": str, "mode": "delta", "name": str, "params": {}, "shape": list}
BACKBONE = {"architecture": "", "fingerprint": str, "n_params": int, "n_tensors": int}
POOL, FILE, PREFIX = {"nbytes": int, "sha256": str}, {"name": str, "nbytes": int}, {"side": str, "text": str}
ALPHA = {"alpha": "matrix", "alpha_dtype": "F16", "blocks": (list,), "gain": "1", "group": (int,), "rule": "mean"}
BITS, ROWS, ZSTD = {"bits": int, "rows": (int,)}, {"rows": (int,)}, {"zstd_nbytes": (int,)}
PARAMS: dict[str, dict[str, Any]] = {"zero": {}, "sign1": ALPHA | ROWS | {"planes": 1}, "tern1": ALPHA | ROWS}
PARAMS |= {"raw": ZSTD, "affine": BITS, "rtvq": BITS | {"ref": 0}, "sparse": {"nnz": int}}  # and value_dtype, see below
PARAMS |= {"xdelta": {"bucket": False, "zstd_nbytes": int}}
UNSET = {"alpha": "", "alpha_dtype": "F32", "bits": 0, "nnz": 0, "planes": 1, "ref": -1} | dict.fromkeys(ROWS | ZSTD)
MODES = dict.fromkeys(PARAMS, "delta") | {"raw": "delta replace added", "sparse": "delta replace"}  # 5.4
GRAMMAR = r"""
bad_name name=(?!__metadata__$)(?!(.*/)?\.{0,2}(/|$))[A-Za-z0-9_.:/+-]{1,512}
bad_name file=(?=.{1,128}$)[A-Za-z0-9_][A-Za-z0-9_.-]*\.(json|txt|jinja|model|md)
bad_digest fingerprint=[0-9a-f]{64} sha256=[0-9a-f]{64} ref_id=obm1-sha256:[0-9a-f]{64}
manifest_field architecture=[A-Za-z0-9_.-]{0,128} kind=task-vector|rtvq-base|router position=.{1,512} max_tokens=[1-9].*
manifest_field side=tuned|backbone text=[A-Za-z0-9_.:/+-]{0,511}\. vendor_key=[a-z0-9-]+\.[a-z0-9_.-]+
manifest_field task=([A-Za-z0-9][A-Za-z0-9._-]{0,127})? route=[A-Za-z0-9][A-Za-z0-9._-]{0,127}
manifest_field feature=[a-z0-9][a-z0-9_.-]{0,63} dtype=BOOL|[UI](8|16|32|64)|F8_E4M3|F8_E5M2|B?F16|F32|F64
manifest_field pool=digests|alphas|frames|sums
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


def conform(field: str, values: Any) -> None:
    """Texts that obey the grammar of a field; if they are a list, each once and in order."""
    check(manifest_field=all(type(value) is str for value in values))
    check(**{FORMS[field][1]: all(re.fullmatch(FORMS[field][0], value) for value in values)})
    check(duplicate_name=type(values) is not list or all(a < b for a, b in pairwise(values)))


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
    values = words("e" if dtype == "F16" else "f", wide) if dtype in EXPONENT else []
    check(**{reason: all(map(math.isfinite, values))})
    return values


def encode(dtype: str, values: list[float]) -> bytes:
    """RNE; to BF16 from binary32. `read` refuses what overflows in F16 and F32."""
    data = struct.pack(f"<{len(values)}{'e' if dtype == 'F16' else 'f'}", *values)
    if dtype == "BF16":
        data = b"".join(struct.pack("<H", u + 0x7FFF + (u >> 16 & 1) >> 16) for u in words("I", data))
    return data if floats(dtype, data) else b""


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
        super().__init__(file=file, **file.fill(value, RECORD))
        encoding, shape, delta = self.encoding, self.shape, self.mode == "delta"
        check(unknown_encoding=self.mode in MODES.get(encoding, "").split())  # 5.4
        check(manifest_field=self.mode != "added" or self.base is None)
        file.canonical &= self.base != {}
        self.base = file.fill(self.base or {}, {"dtype": self.dtype, "name": self.name, "shape": shape})
        old, self.dtypes = self.base["shape"], {self.dtype, self.base["dtype"]}
        check(manifest_field=all(type(n) is int for n in shape + old), limit_exceeded=max(len(shape), len(old)) <= 8)
        check(bad_shape=all(math.prod(n or 1 for n in dims) < 2**53 for dims in (shape, old)))  # 3.1
        grown = delta and old and shape[1:] == old[1:] and shape > old  # 5.6
        check(bad_shape=shape == old or grown or (encoding == "raw" and not delta))
        check(bad_params=len(self.dtypes) == 1 or encoding == "raw" or (delta and encoding != "xdelta"))
        self.is_exact = not delta or encoding == "xdelta"  # 5.5
        self.is_kept = encoding == "zero" and len(self.dtypes) == 1 and shape == old
        check(bad_params=not delta or self.is_kept or self.dtypes <= set(EXPONENT))
        self.covered = old if delta else shape
        self.numel, default = math.prod(self.covered), self.covered[0] if len(self.covered) > 1 else 1  # 6.1
        free = {"raw": {"value_dtype": self.dtype}, "sparse": {"value_dtype": "F32"}}.get(encoding, {}) if delta else {}
        vars(self).update(UNSET | {"value_dtype": self.dtype} | file.fill(self.params, PARAMS[encoding] | free))
        file.canonical &= self.rows != default
        self.rows, self.width = default if self.rows is None else self.rows, WIDTH[self.value_dtype]
        check(bad_params=self.rows in [math.prod(self.covered[:k]) for k in range(len(self.covered) + 1)])
        check(bad_shape=self.numel or encoding in ("zero", "raw", "sparse"))
        check(bad_params=self.zstd_nbytes is None or (self.zstd_nbytes and self.numel))
        check(bad_params=self.nnz <= self.numel and self.ref < len(file.refs))
        self.cols = self.numel // (self.rows or 1)
        self.alpha_nbytes = WIDTH[self.alpha_dtype] * (self.count_alphas() if self.alpha else 2 if self.bits else 0)
        self.frame_count = -(-self.numel * self.width // CUT) if self.zstd_nbytes else 0
        bits = [f"bits{plane}" for plane in range(self.planes)] + ["mask"] * (encoding == "tern1")
        sizes = dict.fromkeys(bits if self.alpha else ["codes"], self.rows * -(-self.cols * (self.bits or 1) // 8))
        if self.nnz:
            sizes = {"counts": 4 * -(-self.numel // 2**16), "index": 2 * self.nnz, "values": self.width * self.nnz}
        elif not self.alpha and not self.bits:
            sizes = {"data": (self.zstd_nbytes or self.numel * self.width) if encoding in ("raw", "xdelta") else 0}
        sizes["tail"] = (math.prod(shape) - self.numel) * WIDTH[self.dtype]
        self.sizes = {suffix: nbytes for suffix, nbytes in sizes.items() if nbytes}

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

    def stored(self) -> bytes:  # 6.8, 8.2: the part `data` or `values`
        data, plain, pos = self.parts.get("data", self.parts.get("values", b"")), b"", 0
        for nbytes, digest in struct.iter_unpack("<I32s", self.frames):
            cut, frame, pos = min(CUT, self.numel * self.width - len(plain)), data[pos : pos + nbytes], pos + nbytes
            check(bad_frame=pos <= len(data) and nbytes <= cut + 2**16, frame_digest=sha256(frame).digest() == digest)
            mixed, n = unzstd(frame, cut), cut // self.width
            plain += bytes(mixed[place + k] for place in range(n) for k in range(0, cut, n))
        check(bad_frame=not self.frames or pos == len(data))
        return plain if self.frames else data

    def moved(self, data: bytes, base_data: bytes) -> bytes:  # 6.9
        (shift, mask), top, form = EXPONENT[self.dtype], 1 << 8 * self.width - 1, "H" if self.width == 2 else "I"
        base, steps, tuned, full = words(form, base_data), iter(words(form, data)), [0] * self.numel, 2 * top - 1
        for start in range(0, self.numel, CUT // self.width):
            places = range(start, min(start + CUT // self.width, self.numel))
            for i in sorted(places, key=lambda i: base[i] >> shift & mask if self.bucket else 0):
                step, order = next(steps), full - base[i] if base[i] & top else base[i] ^ top
                order = order + (-(step + 1) // 2 if step & 1 else step // 2) & full
                tuned[i] = order ^ top if order & top else full - order
        return struct.pack(f"<{self.numel}{form}", *tuned)

    def places(self) -> list[int]:  # 6.8
        counts, index = words("I", self.parts.get("counts", b"")), words("H", self.parts.get("index", b""))
        check(bad_index=sum(counts) == len(index))
        blocks = chain.from_iterable(map(repeat, range(0, self.numel, 2**16), counts))
        places = [*map(sum, zip(blocks, index, strict=True))]
        check(bad_index=all(a < b for a, b in pairwise(places)) and (not places or places[-1] < self.numel))
        return places

    def signs(self) -> list[float]:  # 6.3, 6.6
        values, alphas = [0.0] * self.numel, floats(self.alpha_dtype, self.alphas, "bad_alpha")
        check(bad_alpha=all(math.copysign(1, alpha) > 0 for alpha in alphas))
        heights, ternary = [height for count, height in self.runs for _ in range(count)], self.encoding == "tern1"
        firsts = [self.per_row * run for run, height in enumerate(heights) for _ in range(height)]
        mask = self.codes("mask", 1) if ternary else [1] * self.numel
        for plane in range(self.planes):
            own = alphas[plane * len(alphas) // self.planes :]
            spread = [own[first + c // self.group] for first in firsts for c in range(self.cols)]
            cells = [*zip(self.codes(f"bits{plane}", 1), spread, mask, strict=True)]
            check(bad_plane=all((a if kept else not bit) if ternary else bit or a for bit, a, kept in cells))
            values = f32([v + (a if bit else -a) * kept for v, (bit, a, kept) in zip(values, cells, strict=True)])
        return values

    def approximate(self, refs: dict[str, "Expert"]) -> list[float] | None:
        """Values of clauses 6.6 to 6.8 over the covered rows; None where they need a file that is not at hand."""
        if self.alpha or self.encoding == "raw":
            return self.signs() if self.alpha else floats(self.value_dtype, self.stored())
        if not self.bits:
            listed = dict(zip(self.places(), floats(self.value_dtype, self.stored()), strict=True))
            return [listed.get(i, 0.0) for i in range(self.numel)]
        s, z = floats("F32", self.alphas, "bad_code")
        check(bad_code=s > 0)
        values = f32([x / s for x in f32([q - z for q in self.codes("codes", self.bits)])])
        shared = refs.get(self.file.refs[self.ref]) if self.ref >= 0 else None
        if shared is None:
            return None if self.ref >= 0 else values
        found = [r for r in shared.tensors if (r.name, r.covered) == (self.name, self.covered)]
        same = shared.kind == "rtvq-base" and shared.backbone["fingerprint"] == self.file.backbone["fingerprint"]
        check(bad_reference=same and found and found[0].encoding in ("affine", "zero"))  # 6.7
        return f32([a + b for a, b in zip(found[0].approximate({}) or [], values, strict=True)])

    def exact(self, base: bytes | None) -> bytes | None:
        """The fine-tune's bytes in the covered rows; None where they need the backbone."""
        data, places, width = self.stored(), self.places(), self.width
        floats("U8" if self.encoding == "xdelta" else self.dtype, data)  # 9.4
        if self.encoding == "raw" or base is None:
            return data if self.encoding == "raw" else None
        listed = {place: data[i * width : i * width + width] for i, place in enumerate(places)}
        old = [base[i : i + width] for i in range(0, len(base), width)]
        return self.moved(data, base) if not places and data else b"".join(listed.get(i, x) for i, x in enumerate(old))

    def decode(self, base: bytes | None, refs: dict[str, "Expert"]) -> list[bytes | None]:
        """Task vector value as F32 bytes (9.2) and rebuilt tensor (9.3)."""
        check(limit_exceeded=self.numel <= 2**24)  # 3.3: this reader has no row ranges
        old, tail = None if base is None else floats(self.base["dtype"], base), self.parts.get("tail", b"")
        if self.is_exact:
            content, values = self.exact(base), None
            check(output_digest=content is None or sha256(content + tail).digest() == self.out_sha256)  # 9.4
            old = [0.0] * self.numel if self.mode == "added" else old
            if None not in (content, old) and self.dtypes <= set(EXPONENT) and self.covered == self.base["shape"]:
                values = f32([a - b for a, b in zip(floats(self.dtype, content or b""), old or [], strict=True)])
        else:
            values, content = self.approximate(refs), base if self.is_kept else None
            if values is not None and old is not None and not self.is_kept:
                content = encode(self.dtype, f32([a + b for a, b in zip(old, values, strict=True)]))
        rest = floats(self.dtype, tail)
        return [None if values is None else encode("F32", values + rest), None if content is None else content + tail]


class Expert(SimpleNamespace):
    """One file, of which every byte was checked."""

    def __init__(self, path: str) -> None:
        super().__init__(canonical=True)
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

    def fill(self, value: Any, fields: dict[str, Any]) -> dict[str, Any]:
        """An object with its defaults (4.2, 5.1); that one was written is refused after the part table (14.1)."""
        check(manifest_field=type(value) is dict and set(value) <= set(fields))
        for field, rule in fields.items():
            kind = rule if type(rule) is type else rule[0] if type(rule) is tuple else type(rule)
            check(manifest_field=type(value[field]) is kind if field in value else type(rule) is not type)
            if field in value and field in FORMS:
                conform(field, {str(value[field])})
            self.canonical &= field not in value or value[field] != rule
        return {field: None if type(rule) is tuple else rule for field, rule in fields.items()} | value

    def read_header(self, text: str) -> int:
        top, end, table = parse(text.rstrip(" ")), 0, {}
        meta = top.pop("__metadata__")
        check(manifest_field=type(meta) is dict and list(meta) == ["format", "obm_version", "obm"])
        check(manifest_field=type(meta["obm"]) is str)
        self.read_manifest(value := parse(meta["obm"]))
        for name, nbytes in self.sizes.items():
            begin, end = end, end + nbytes + -nbytes % 64
            table[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        check(part_table=list(top) == list(table) and CANONICAL(top) == CANONICAL(table))  # 2.6
        again = PLAIN({"__metadata__": meta, **table})
        check(not_canonical=self.canonical and meta["obm"] == CANONICAL(value))
        check(not_canonical=text == again + " " * (-(8 + len(again)) % 64))
        return end

    def read_manifest(self, value: Any) -> None:
        if type(value) is dict and type(value.get("requires")) is list:  # 12.2: before any other field
            conform("feature", value["requires"])
            check(unsupported_feature=not value["requires"])
        vars(self).update(self.fill(value, MANIFEST | {"tensors": list}))
        self.backbone, self.attach = self.fill(self.backbone, BACKBONE), [self.fill(file, FILE) for file in self.attach]
        self.prefix = {"side": "", "text": ""} if self.prefix is None else self.fill(self.prefix, PREFIX)
        check(manifest_field=all(type(pair) is list and [*map(type, pair)] == [str, str] for pair in self.alias))
        check(limit_exceeded=len(self.attach) <= 64 and all(file["nbytes"] <= 64 * MEBI for file in self.attach))
        check(limit_exceeded=len(self.refs) <= 4 and len(CANONICAL(self.ext)) <= 2**16)
        check(limit_exceeded=len(self.tensors) + len(self.alias) + len(self.removed) <= 2**16)
        listed = {"vendor_key": {*self.ext}, "ref_id": self.refs, "file": [file["name"] for file in self.attach]}
        for field, values in (listed | {"pool": {*self.pools}, "name": self.removed}).items():
            conform(field, values)
        self.pools = {pool: self.fill(entry, POOL) for pool, entry in self.pools.items()}
        self.tensors = [Record(value, self) for value in self.tensors]
        self.check_names()
        check(manifest_field=(self.kind == "router") == (self.router is not None))
        if self.kind == "router":
            self.check_router(**self.fill(self.router, {"max_tokens": int, "routes": list}))
        self.sizes = self.part_sizes()

    def check_names(self) -> None:  # 5.3, 5.7, 5.8
        records, (side, text), fresh = {r.name: r for r in self.tensors}, self.prefix.values(), set()
        aliases, added = [name for name, _ in self.alias], {r.name for r in self.tensors if r.mode == "added"}
        for names in ([r.name for r in self.tensors], aliases, self.removed):
            conform("name", names)
        check(manifest_field=all(target in records for _, target in self.alias))
        check(
            duplicate_name=len({*records, *aliases, *self.removed}) == len(records) + len(aliases) + len(self.removed)
        )
        fresh = added | {name for name, target in self.alias if target in added}
        self.kin = [(r.base["name"], r) for r in self.tensors if r.mode != "added"]
        check(duplicate_name=not {name for name, _ in self.kin} & {*self.removed, *fresh})
        self.kin += [(name, records[target]) for name, target in self.alias if target not in added]
        old = {*records, *aliases} - fresh
        check(manifest_field=side != "backbone" or all(name.startswith(text) and name != text for name in old))
        calls = fresh | {text + name if side == "tuned" else name.removeprefix(text) for name in old}
        check(duplicate_name=len(calls) == len(records) + len(aliases))
        self.fresh = fresh if self.kind != "router" else set()

    def check_router(self, routes: Any, max_tokens: int) -> None:  # 5.10
        conform("route", tuple(routes))
        conform("max_tokens", {str(max_tokens)})
        shapes = {r.name: r.shape for r in self.tensors}
        layers = "01" if "1.weight" in shapes else "0"
        dims = [shapes.get(name, []) for name in ("mean", *(f"{i}.bias" for i in layers))]
        want = {f"{i}.weight": h + d for i, (d, h) in zip(layers, pairwise(dims), strict=True)}
        want |= {"mean": dims[0], "scale": dims[0]} | {f"{i}.bias": h for i, h in zip(layers, dims[1:], strict=True)}
        check(manifest_field=shapes == want and all(len(d) == 1 for d in dims) and dims[-1] == [len(set(routes))])
        check(manifest_field=all((r.encoding, r.mode, r.dtype) == ("raw", "added", "F32") for r in self.tensors))
        check(manifest_field=len(set(routes)) == len(routes))
        check(manifest_field=not (self.alias or self.removed or self.refs or self.prefix["text"]))

    def part_sizes(self) -> dict[str, int]:  # 2.5, 7.3 to 7.5, 8.2, 8.3
        whole = [n for r in self.tensors for s, n in r.sizes.items() if s != "data" or not r.zstd_nbytes]
        sums = sum(-(-n // MEBI) for n in whole + [file["nbytes"] for file in self.attach] if n > 8 * MEBI)
        digests = sum((r.mode != "added") + r.is_exact + len(r.sizes) for r in self.tensors) + len(self.attach)
        alphas, frames = sum(r.alpha_nbytes for r in self.tensors), sum(r.frame_count for r in self.tensors)
        pools = dict(zip(POOLS, (32 * digests, alphas, 36 * frames, 32 * sums), strict=True))
        check(part_table={p: n for p, n in pools.items() if n} == {p: e["nbytes"] for p, e in self.pools.items()})
        sizes = {f"#{pool}": nbytes for pool, nbytes in pools.items()}
        sizes |= {f"{r.name}#{suffix}": nbytes for r in self.tensors for suffix, nbytes in r.sizes.items()}
        sizes |= {f"#attach/{file['name']}": file["nbytes"] for file in self.attach}
        check(limit_exceeded=sum(map(bool, sizes.values())) <= 2**18)
        return {name: nbytes for name, nbytes in sizes.items() if nbytes}

    def read_parts(self, data: bytes) -> None:
        parts, stream, digest = {}, BytesIO(data), {pool: entry["sha256"] for pool, entry in self.pools.items()}
        pad = b""
        for name, nbytes in self.sizes.items():
            parts[name], pad = stream.read(nbytes), pad + stream.read(-nbytes % 64)
        check(part_digest=all(sha256(parts["#" + pool]).hexdigest() == digest[pool] for pool in digest))
        digests, alphas, frames, sums = (BytesIO(parts.get("#" + pool, b"")) for pool in POOLS)

        def verify(part: bytes, *, summed: bool) -> None:
            runs = [part[i : i + MEBI] for i in range(0, len(part), MEBI)] if summed and len(part) > 8 * MEBI else []
            check(part_digest=sha256(part).digest() == digests.read(32))
            check(part_digest=all(sha256(run).digest() == sums.read(32) for run in runs))

        for r in self.tensors:
            r.base_sha256, r.out_sha256 = digests.read(32 * (r.mode != "added")), digests.read(32 * r.is_exact)
            r.alphas, r.frames = alphas.read(r.alpha_nbytes), frames.read(36 * r.frame_count)
            r.parts = {suffix: parts[f"{r.name}#{suffix}"] for suffix in r.sizes}
            for suffix, part in r.parts.items():
                verify(part, summed=suffix != "data" or not r.zstd_nbytes)
        for file in self.attach:
            verify(parts.get(f"#attach/{file['name']}", b""), summed=True)
        check(pad_not_zero=not any(pad))  # 2.3


def read_backbone(path: str) -> dict[str, Any]:
    data = Path(path).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = {name: entry for name, entry in json.loads(data[8:end]).items() if name != "__metadata__"}
    spans = {name: [end + offset for offset in entry["data_offsets"]] for name, entry in header.items()}
    return {
        n: SimpleNamespace(dtype=e["dtype"], shape=e["shape"], data=data[slice(*spans[n])]) for n, e in header.items()
    }


def check_backbone(file: Expert, base: dict[str, Any]) -> None:  # 10
    for name, r in file.kin:
        check(base_tensor=name in base and (base[name].dtype, base[name].shape) == (r.base["dtype"], r.base["shape"]))
        check(base_digest=sha256(base[name].data).digest() == r.base_sha256)
    check(base_tensor=set(file.removed) <= set(base) and not file.fresh & set(base))
    known = {name for name, _ in file.kin} | set(file.removed)
    check(backbone_mismatch=file.kind != "task-vector" or set(base) == known)
    lines = [(n, t.dtype, ",".join(map(str, t.shape)), sha256(t.data).hexdigest()) for n, t in sorted(base.items())]
    own: dict[str, Any] = {
        "fingerprint": sha256("".join("\0".join(line) + "\n" for line in lines).encode()).hexdigest()
    }
    own |= {"n_params": sum(math.prod(t.shape) for t in base.values()), "n_tensors": len(base)}
    check(backbone_mismatch=all(file.backbone[key] == own[key] for key in own))


def read(path: str, base_path: str = "", *ref_paths: str) -> dict[str, Any]:
    file, refs, tensors = Expert(path), {ref.id: ref for ref in map(Expert, ref_paths)}, {}
    base = read_backbone(base_path) if base_path else {}
    if base_path:
        check_backbone(file, base)
    for r in file.tensors:
        old = base[r.base["name"]].data if base and r.mode != "added" else None
        try:
            hashes = [None if part is None else sha256(part).hexdigest() for part in r.decode(old, refs)]
        except OverflowError:
            raise Refused("not_finite") from None
        tensors[r.name] = {"dtype": r.dtype, "shape": r.shape, "f32_sha256": hashes[0], "out_sha256": hashes[1]}
    return {"id": file.id, "tensors": tensors}


if __name__ == "__main__":
    try:
        report, status = read(*sys.argv[1:]), 0
    except Refused as refusal:
        report, status = {"reason": str(refusal)}, 4
    sys.stdout.write(json.dumps(report) + "\n")
    sys.exit(status)

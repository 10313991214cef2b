"""Encodes tensors by the prose of obm-1.md alone (clauses 6 and 11), and says what a reader must make of them.

Arithmetic is plain Python: floats are binary64, and `f32` rounds. Never imports `obm_format`.
"""

# ruff: noqa: ANN401 - keywords that become fields of JSON have no better type
from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

from vector_writer import Backbone, Dense, Json, Tensor, frames_of

FORM = {"F16": "e", "F32": "f", "BF16": "H", "I16": "h", "I64": "q", "U8": "B", "BOOL": "B", "F64": "d", "I32": "i"}
LEAST_POSITIVE = {"F16": 2.0**-24, "F32": 2.0**-149}


def f32(x: float) -> float:
    """RNE to binary32; what is too large becomes infinite."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", x))[0])
    except OverflowError:
        return math.copysign(math.inf, x)


def pack(dtype: str, values: list[Any]) -> bytes:
    """Little-endian bytes; floats are rounded RNE from binary32."""
    if dtype == "BF16":
        words = (struct.unpack("<I", struct.pack("<f", x))[0] for x in values)
        values = [(u >> 16) + ((u & 0xFFFF) + (u >> 16 & 1) > 0x8000) for u in words]
    return struct.pack(f"<{len(values)}{FORM[dtype]}", *values)


def unpack(dtype: str, data: bytes) -> list[float]:
    """The numbers in little-endian bytes."""
    values = [x for (x,) in struct.iter_unpack(f"<{FORM[dtype]}", data)]
    if dtype == "BF16":
        values = [struct.unpack("<f", struct.pack("<I", u << 16))[0] for u in values]
    return values


def noise(seed: str, n: int, scale: float) -> list[float]:
    """`n` values in (-scale, scale), the same on every machine."""
    digests = b"".join(hashlib.sha256(f"{seed}/{i}".encode()).digest() for i in range(n // 16 + 1))
    return [f32(u / 32768 * scale) for (u,) in struct.iter_unpack("<h", digests[: 2 * n])]


def random_dense(seed: str, dtype: str, shape: list[int], scale: float = 0.1) -> Dense:
    """A tensor of noise."""
    return Dense(dtype=dtype, shape=shape, data=pack(dtype, noise(seed, math.prod(shape), scale)))


def moved(base: Dense, seed: str, scale: float = 0.01) -> list[float]:
    """Values of a fine-tune near `base`."""
    steps = noise(seed, math.prod(base.shape), scale)
    return [f32(a + b) for a, b in zip(unpack(base.dtype, base.data), steps, strict=True)]


def step(base: Dense, seed: str, scale: float = 0.01) -> list[float]:
    """A task vector (clause 11.2) from `base` to a fine-tune near it, of the same dtype."""
    tuned = unpack(base.dtype, pack(base.dtype, moved(base, seed, scale)))
    return [f32(a - b) for a, b in zip(tuned, unpack(base.dtype, base.data), strict=True)]


def add(left: list[float], right: list[float]) -> list[float]:
    """Sums in binary32."""
    return [f32(a + b) for a, b in zip(left, right, strict=True)]


def pack_codes(rows: list[list[int]], bits: int) -> bytes:
    """Clause 6.2."""
    data = b""
    for row in rows:
        whole = sum(code << bits * i for i, code in enumerate(row))
        data += whole.to_bytes(-(-len(row) * bits // 8), "little")
    return data


class Counterpart:
    """The backbone's side of a record, and the sides that all delta records share."""

    def __init__(
        self, backbone: Backbone, name: str, *, dtype: str = "", tail: Dense | None = None, as_name: str = ""
    ) -> None:
        self.base = backbone[name]
        self.dtype = dtype or self.base.dtype
        self.tail = tail
        self.name = as_name or name
        self.base_name = name
        self.shape = list(self.base.shape)
        if tail:
            self.shape[0] += tail.shape[0]

    @property
    def rows(self) -> int:
        """Rows of the matrix view (clause 6.1)."""
        return self.base.shape[0] if len(self.base.shape) > 1 else 1

    def record(self, encoding: str, params: Json, mode: str = "delta") -> Json:
        """The record of the manifest (clause 5.2)."""
        record: Json = {"dtype": self.dtype, "encoding": encoding, "name": self.name, "shape": self.shape}
        pairs = (("dtype", self.base.dtype), ("name", self.base_name), ("shape", self.base.shape))
        differing = {key: value for key, value in pairs if value != record[key]}
        if differing:
            record["base"] = differing
        if params:
            record["params"] = params
        return record | ({"mode": mode} if mode != "delta" else {})

    def approximate(self, encoding: str, params: Json, values: list[float], **rest: Any) -> Tensor:
        """A record whose rebuilt tensor is RNE(f32(backbone) + d) (clause 9.3)."""
        rebuilt = pack(self.dtype, add(unpack(self.base.dtype, self.base.data), values))
        return self.finish(self.record(encoding, params), values, rebuilt, **rest)

    def finish(self, record: Json, values: list[float] | None, rebuilt: bytes, **rest: Any) -> Tensor:
        """A record with its tail, if it has one (clause 5.6)."""
        tensor = Tensor(record=record, base=self.base.data, **rest)
        if self.tail:
            tensor.parts["tail"] = self.tail.data
            rebuilt += self.tail.data
            values = None if values is None else values + unpack(self.tail.dtype, self.tail.data)
        tensor.values = None if values is None else pack("F32", values)
        tensor.rebuilt = rebuilt
        return tensor

    def exact(self, encoding: str, params: Json, tuned: bytes, mode: str = "delta", **rest: Any) -> Tensor:
        """A record that gives the fine-tune's bytes back."""
        values = None
        if {self.dtype, self.base.dtype} <= {"F16", "BF16", "F32"} and len(self.shape) == len(self.base.shape):
            pairs = zip(unpack(self.dtype, tuned), unpack(self.base.dtype, self.base.data), strict=True)
            values = [f32(a - b) for a, b in pairs]
        tensor = self.finish(self.record(encoding, params, mode), values, tuned, **rest)
        tensor.out = tensor.rebuilt
        return tensor


def zero(side: Counterpart) -> Tensor:
    """A `zero` record."""
    values = [0.0] * math.prod(side.base.shape)
    if side.dtype != side.base.dtype or side.tail:
        return side.approximate("zero", {}, values)
    return side.finish(side.record("zero", {}), values, side.base.data)


def zeros(backbone: Backbone, *but: str) -> list[Tensor]:
    """`zero` records for all tensors of a backbone except some."""
    return [zero(Counterpart(backbone, name)) for name in sorted(backbone) if name not in but]


def added(name: str, content: Dense, *, framed: bool = False) -> Tensor:
    """A `raw` record in mode added."""
    record: Json = {"dtype": content.dtype, "encoding": "raw", "mode": "added", "name": name, "shape": content.shape}
    tensor = Tensor(record=record, parts={"data": content.data}, out=content.data, rebuilt=content.data)
    if content.dtype in ("F16", "BF16", "F32"):
        tensor.values = pack("F32", unpack(content.dtype, content.data))
    if framed:
        set_frames(tensor, frames_of(content.data, struct.calcsize("<" + FORM[content.dtype])))
    return tensor


def set_frames(tensor: Tensor, frames: list[bytes]) -> Tensor:
    """The record with other frames as its part `data`."""
    tensor.frames = frames
    tensor.parts = {"data": b"".join(frames)} | {k: v for k, v in tensor.parts.items() if k != "data"}
    params = tensor.record.get("params", {}) | {"zstd_nbytes": len(tensor.parts["data"])}
    tensor.record = tensor.record | {"params": params}
    return tensor


def replaced(backbone: Backbone, name: str, content: Dense) -> Tensor:
    """A `raw` record in mode replace."""
    side = Counterpart(backbone, name, dtype=content.dtype)
    side.shape = content.shape
    tensor = side.finish(side.record("raw", {}, "replace"), None, content.data, parts={"data": content.data})
    tensor.out = content.data
    if content.shape == side.base.shape and content.dtype in ("F16", "BF16", "F32"):
        pairs = zip(unpack(content.dtype, content.data), unpack(side.base.dtype, side.base.data), strict=True)
        tensor.values = pack("F32", [f32(a - b) for a, b in pairs])
    return tensor


def raw_delta(side: Counterpart, values: list[float], value_dtype: str = "", *, framed: bool = False) -> Tensor:
    """A `raw` record in mode delta."""
    dtype = value_dtype or side.dtype
    data = pack(dtype, values)
    params = {"value_dtype": dtype} if dtype != side.dtype else {}
    tensor = side.approximate("raw", params, unpack(dtype, data), parts={"data": data})
    return set_frames(tensor, frames_of(data, struct.calcsize("<" + FORM[dtype]))) if framed else tensor


# Alphas and signs: clauses 6.3 and 11.2 to 11.5


def groups_of(rows: int, cols: int, choice: Json) -> list[list[int]]:
    """Flat indices of each alpha's elements, in row-major order within, in the order of the alphas."""
    granularity = choice.get("alpha", "matrix")
    runs = {"matrix": [[1, rows]], "block": choice.get("blocks")}.get(granularity, [[rows, 1]])
    width = choice["group"] if granularity == "group" else cols
    groups, top = [], 0
    for count, height in runs or ():
        for _ in range(count):
            for left in range(0, cols, width):
                right = min(left + width, cols)
                groups.append([r * cols + c for r in range(top, top + height) for c in range(left, right)])
            top += height
    return groups


def pinned_sum(values: list[float]) -> float:
    """The order of clause 11.3."""
    total = 0.0
    for start in range(0, len(values), 65_536):
        lanes = [0.0] * 16
        for i, value in enumerate(values[start : start + 65_536]):
            lanes[i % 16] += value
        for half in (8, 4, 2, 1):
            lanes = [lanes[lane] + lanes[lane + half] for lane in range(half)]
        total += lanes[0]
    return total


def real_alpha(group: list[float], rule: str, gain: str, kept: list[bool] | None = None) -> float:
    """Clause 11.3 before rounding; `kept` as in clause 11.5."""
    kept = kept or [True] * len(group)
    n = sum(kept)
    s1 = pinned_sum([abs(x) if k else 0.0 for x, k in zip(group, kept, strict=True)])
    s2 = pinned_sum([x * x if k else 0.0 for x, k in zip(group, kept, strict=True)])
    if not s1:
        return 0.0
    real = {"mean": s1 / n, "rms": math.sqrt(s2 / n), "proj": (s2 / n) / (s1 / n)}[rule]
    return real * float(gain)


def round_alphas(reals: list[float], dtype: str) -> list[float] | None:
    """Clause 11.3: rounded to `dtype`, None where F16 will not do."""
    rounded = unpack(dtype, pack(dtype, reals))
    if dtype == "F16" and any(abs(a - x) > x * 2.0**-11 for a, x in zip(rounded, reals, strict=True)):
        return None
    return [a or (LEAST_POSITIVE[dtype] if x else 0.0) for a, x in zip(rounded, reals, strict=True)]


def alpha_params(choice: Json, dtype: str) -> Json:
    """Parameters of a choice of alphas that became `dtype`."""
    return choice | ({"alpha_dtype": dtype} if dtype != "F16" else {})


def sign_planes(
    d: list[float], rows: int, choice: Json, dtype: str
) -> tuple[list[list[int]], list[list[float]], list[float]] | None:
    """Bits and alphas of each plane and the values they stand for, or None where F16 alphas will not do."""
    groups = groups_of(rows, len(d) // rows, choice)
    planes, rule, gain = choice.get("planes", 1), choice.get("rule", "mean"), choice.get("gain", "1")
    left, total = d, [0.0] * len(d)
    all_bits, all_alphas = [], []
    for plane in range(planes):
        last = plane == planes - 1
        reals = [real_alpha([left[i] for i in g], rule if last else "mean", gain if last else "1") for g in groups]
        alphas = round_alphas(reals, dtype)
        if alphas is None:
            return None
        bits, step_ = [int(x >= 0) for x in left], [0.0] * len(d)
        for group, alpha in zip(groups, alphas, strict=True):
            for i in group:
                bits[i] |= not alpha
                step_[i] = alpha if bits[i] else -alpha
        left = add(left, [-x for x in step_])
        total = add(total, step_)
        all_bits.append(bits)
        all_alphas.append(alphas)
    return all_bits, all_alphas, total


def sign1(side: Counterpart, d: list[float], **choice: Any) -> Tensor:
    """A `sign1` record of the task vector `d` (clauses 11.2 to 11.4)."""
    rows = choice.get("rows", side.rows)
    dtype = "F16" if "alpha_dtype" not in choice else choice.pop("alpha_dtype")
    made = sign_planes(d, rows, choice, dtype)
    if made is None:
        dtype = "F32"
        made = sign_planes(d, rows, choice, dtype)
    if made is None:
        raise ValueError("alphas outside F32")
    bits, alphas, values = made
    return side.approximate(
        "sign1",
        alpha_params(choice, dtype),
        values,
        parts={f"bits{p}": pack_codes(in_rows(plane, rows), 1) for p, plane in enumerate(bits)},
        alphas=b"".join(pack(dtype, plane) for plane in alphas),
    )


def in_rows(codes: list[int], rows: int) -> list[list[int]]:
    """Codes cut into rows."""
    cols = len(codes) // rows
    return [codes[r * cols : (r + 1) * cols] for r in range(rows)]


def tern1(side: Counterpart, d: list[float], **choice: Any) -> Tensor:
    """A `tern1` record of the task vector `d` (clause 11.5)."""
    rows = choice.get("rows", side.rows)
    groups = groups_of(rows, len(d) // rows, choice)
    mask, reals = [0] * len(d), []
    for group in groups:
        inside = [d[i] for i in group]
        cut = 0.7 * (pinned_sum([abs(x) for x in inside]) / len(inside))
        kept = [abs(x) > cut for x in inside]
        reals.append(real_alpha(inside, choice.get("rule", "mean"), choice.get("gain", "1"), kept))
        for i, k in zip(group, kept, strict=True):
            mask[i] = int(k)
    dtype = "F16" if round_alphas(reals, "F16") is not None else "F32"
    alphas, values = round_alphas(reals, dtype) or [], [0.0] * len(d)
    bits = [int(bool(m) and x >= 0) for m, x in zip(mask, d, strict=True)]
    for group, alpha in zip(groups, alphas, strict=True):
        for i in group:
            values[i] = (alpha if bits[i] else -alpha) if mask[i] else 0.0
    parts = {"bits0": pack_codes(in_rows(bits, rows), 1), "mask": pack_codes(in_rows(mask, rows), 1)}
    return side.approximate("tern1", alpha_params(choice, dtype), values, parts=parts, alphas=pack(dtype, alphas))


# Codes, sparse and exact records: clauses 6.6 to 6.9 and 11.6


def quantise(d: list[float], bits: int) -> tuple[list[int], float, float]:
    """Codes, multiplier and zero of clause 11.6."""
    low, high, top = min(d), max(d), 2**bits - 1
    if low == high:
        return [0] * len(d), 1.0, 0.0 - low
    s = f32(top * f32(1 / f32(high - low)))
    z = 0.0 - round(f32(s * low))
    return [min(max(round(f32(f32(s * x) + z)), 0), top) for x in d], s, z


def dequantise(codes: list[int], s: float, z: float) -> list[float]:
    """Clause 6.6."""
    return [f32(f32(q - z) / s) for q in codes]


def affine(side: Counterpart, d: list[float], bits: int, **choice: Any) -> Tensor:
    """An `affine` record of the task vector `d`."""
    codes, s, z = quantise(d, bits)
    rows = choice.get("rows", side.rows)
    parts = {"codes": pack_codes(in_rows(codes, rows), bits)}
    values = dequantise(codes, s, z)
    return side.approximate("affine", {"bits": bits, **choice}, values, parts=parts, alphas=pack("F32", [s, z]))


def rtvq(side: Counterpart, d: list[float], bits: int, shared: list[float], **choice: Any) -> Tensor:
    """`shared` are the values of the tensor in the artifact that the record refers to."""
    codes, s, z = quantise([f32(a - b) for a, b in zip(d, shared, strict=True)], bits)
    parts = {"codes": pack_codes(in_rows(codes, side.rows), bits)}
    values = add(shared, dequantise(codes, s, z))
    return side.approximate("rtvq", {"bits": bits, **choice}, values, parts=parts, alphas=pack("F32", [s, z]))


def sparse_parts(places: list[int], values: bytes, numel: int) -> dict[str, bytes]:
    """Clause 6.8."""
    blocks = [[p % 65_536 for p in places if p // 65_536 == b] for b in range(-(-numel // 65_536))]
    counts = struct.pack(f"<{len(blocks)}I", *map(len, blocks))
    return {
        "counts": counts if places else b"",
        "index": struct.pack(f"<{len(places)}H", *(place for block in blocks for place in block)),
        "values": values,
    }


def sparse(side: Counterpart, listed: dict[int, float], value_dtype: str = "F32") -> Tensor:
    """A `sparse` record in mode delta of values by place."""
    numel = math.prod(side.base.shape)
    data = pack(value_dtype, list(listed.values()))
    values = [0.0] * numel
    for place, value in zip(listed, unpack(value_dtype, data), strict=True):
        values[place] = value
    params = {"nnz": len(listed)} | ({"value_dtype": value_dtype} if value_dtype != "F32" else {})
    return side.approximate("sparse", params, values, parts=sparse_parts(list(listed), data, numel))


def sparse_replace(side: Counterpart, listed: dict[int, Any]) -> Tensor:
    """A `sparse` record in mode replace of elements by place."""
    width = struct.calcsize("<" + FORM[side.dtype])
    tuned, stored = bytearray(side.base.data), pack(side.dtype, list(listed.values()))
    for i, place in enumerate(listed):
        tuned[place * width : (place + 1) * width] = stored[i * width : (i + 1) * width]
    parts = sparse_parts(list(listed), stored, math.prod(side.base.shape))
    return side.exact("sparse", {"nnz": len(listed)}, bytes(tuned), "replace", parts=parts)


def zigzags(dtype: str, tuned: bytes, base: bytes, *, bucket: bool) -> bytes:
    """Clause 6.9, before clause 8.2; for tensors of one cut."""
    form, width = ("<I", 32) if dtype == "F32" else ("<H", 16)
    top, full = 1 << width - 1, (1 << width) - 1
    shift, mask = {"F16": (10, 0x1F), "BF16": (7, 0xFF), "F32": (23, 0xFF)}[dtype]

    def order(u: int) -> int:
        return full - u if u & top else u ^ top

    pairs = [(b, a) for (a,), (b,) in zip(struct.iter_unpack(form, tuned), struct.iter_unpack(form, base), strict=True)]
    if bucket:
        pairs.sort(key=lambda pair: pair[0] >> shift & mask)
    zigzag = b""
    for b, a in pairs:
        e = (order(a) - order(b)) & full
        e -= (e & top) * 2
        zigzag += struct.pack(form, 2 * e if e >= 0 else -2 * e - 1)
    return zigzag


def xdelta(side: Counterpart, tuned: bytes, *, bucket: bool = False) -> Tensor:
    """An `xdelta` record of the fine-tune `tuned`."""
    content = zigzags(side.dtype, tuned, side.base.data, bucket=bucket)
    tensor = side.exact("xdelta", {"bucket": True} if bucket else {}, tuned)
    return set_frames(tensor, frames_of(content, 4 if side.dtype == "F32" else 2))

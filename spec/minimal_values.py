"""Turns the parts of one tensor record into values by the prose of obm-1.md alone (clauses 6, 8 and 9).

The half of `minimal_reader.py` that never sees the frame: standard library only, short rather than fast. Numbers in
comments are clauses.
"""

# ruff: noqa: ANN401, D103 - JSON has no better type here, and the clause numbers are the documentation
from __future__ import annotations

import math
import struct
import sys
from hashlib import sha256
from operator import add, sub
from typing import Any

from minimal_manifest import FLOATS, WIDTH
from minimal_text import Refused, check

MEBI = 2**20
EXPONENT = {"F16": (10, 0x1F), "BF16": (7, 0xFF), "F32": (23, 0xFF)}  # 6.9: shift and mask


def f32(x: float) -> float:
    """RNE to binary32; all sums and quotients of two binary32 are first exact enough in binary64 for that."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", x))[0])
    except OverflowError:
        raise Refused("not_finite") from None


def apply(operation: Any, left: list[float], right: list[float]) -> list[float]:
    return [f32(operation(a, b)) for a, b in zip(left, right, strict=True)]


def floats(dtype: str, data: bytes, reason: str = "not_finite") -> list[float]:
    if dtype == "BF16":
        dtype, data = "F32", b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    values = [x for (x,) in struct.iter_unpack("<e" if dtype == "F16" else "<f", data)]
    check(all(map(math.isfinite, values)), reason)
    return values


def encode(dtype: str, values: list[float]) -> bytes:
    try:
        data = struct.pack(f"<{len(values)}{'e' if dtype == 'F16' else 'f'}", *values)
    except OverflowError:
        raise Refused("not_finite") from None
    if dtype == "BF16":
        words = [u + 0x7FFF + (u >> 16 & 1) >> 16 for (u,) in struct.iter_unpack("<I", data)]
        data = struct.pack(f"<{len(words)}H", *words)
        floats(dtype, data)
    return data


def codes(r: dict[str, Any], data: bytes, bits: int) -> list[int]:  # 6.2
    stride, values = -(-r["cols"] * bits // 8), []
    for start in range(0, len(data), stride):
        row = int.from_bytes(data[start : start + stride], "little")
        check(row >> bits * r["cols"] == 0, "pad_bits_set")
        values += [row >> bits * c & (1 << bits) - 1 for c in range(r["cols"])]
    return values


def unzstd(frame: bytes, nbytes: int) -> bytes:  # 8.2, and RFC 8878 without compressed blocks
    check(frame[:4] == b"\x28\xb5\x2f\xfd" and len(frame) > 8, "bad_frame")
    flags, pos, content, last = frame[4], 5, bytearray(), 0
    check(not flags & 0b1111, "bad_frame")  # reserved, checksum, dictionary
    if not flags & 0b100000:
        check((8 + (frame[5] & 7)) << (frame[5] >> 3) + 7 <= 8 * MEBI, "bad_frame")
        pos = 6
    width = (flags >> 5 & 1, 2, 4, 8)[flags >> 6]
    size = int.from_bytes(frame[pos : pos + width], "little") + (256 if width == 2 else 0)
    check(width and size == nbytes, "bad_frame")
    pos += width
    while not last:
        check(pos + 3 <= len(frame) and len(content) <= nbytes, "bad_frame")
        head = int.from_bytes(frame[pos : pos + 3], "little")
        last, kind, size, pos = head & 1, head >> 1 & 3, head >> 3, pos + 3
        if kind == 2:
            sys.exit("a compressed block: this reader has no zstd library")
        block = frame[pos : pos + (1 if kind else size)]
        check(kind < 2 and size <= 2**17 and len(block) == (1 if kind else size), "bad_frame")
        content, pos = content + (block * size if kind else block), pos + len(block)
    check(len(content) == nbytes and pos == len(frame), "bad_frame")
    return bytes(content)


def unshuffle(data: bytes, width: int) -> bytes:
    plain, n = bytearray(data), len(data) // width
    for byte in range(width):
        plain[byte::width] = data[byte * n : (byte + 1) * n]
    return bytes(plain)


def unxdelta(r: dict[str, Any], data: bytes, base_data: bytes) -> bytes:  # 6.9
    width, (shift, mask) = WIDTH[r["dtype"]], EXPONENT[r["dtype"]]
    top, full = 1 << 8 * width - 1, (1 << 8 * width) - 1
    form = f"<{r['numel']}{'H' if width == 2 else 'I'}"
    base, steps, tuned = struct.unpack(form, base_data), struct.unpack(form, data), [0] * r["numel"]
    for start in range(0, len(base), 2 * MEBI // width):
        places = list(range(start, min(start + 2 * MEBI // width, len(base))))
        if r["p"]["bucket"]:
            places.sort(key=lambda i: base[i] >> shift & mask)
        for place, step in zip(places, steps[start:], strict=False):
            order = full - base[place] if base[place] & top else base[place] ^ top
            order = order + (-(step + 1) // 2 if step & 1 else step // 2) & full
            tuned[place] = order ^ top if order & top else full - order
    return struct.pack(form, *tuned)


def data_part(r: dict[str, Any]) -> bytes:  # 8.2
    data, width = r["parts"].get("data", b""), WIDTH[r["value_dtype"]]
    if not r["framed"]:
        return bytes(data)
    cuts, pos, left = [], 0, r["numel"] * width
    for entry in range(0, len(r["frames"]), 36):
        nbytes = int.from_bytes(r["frames"][entry : entry + 4], "little")
        frame, pos, cut = data[pos : pos + nbytes], pos + nbytes, min(left, 2 * MEBI)
        check(pos <= len(data) and nbytes <= cut + 2**16, "bad_frame")
        check(sha256(frame).digest() == r["frames"][entry + 4 : entry + 36], "frame_digest")
        cuts.append(unshuffle(unzstd(frame, cut), width))
        left -= cut
    check(pos == len(data), "bad_frame")
    return b"".join(cuts)


def sparse_places(r: dict[str, Any]) -> list[int]:  # 6.8
    places, pos = [], 0
    counts = [n for (n,) in struct.iter_unpack("<I", r["parts"].get("counts", b""))]
    index = [i for (i,) in struct.iter_unpack("<H", r["parts"].get("index", b""))]
    check(sum(counts) == len(index), "bad_index")
    for block, count in enumerate(counts):
        run, pos = index[pos : pos + count], pos + count
        check(run == sorted(set(run)), "bad_index")
        places += [65_536 * block + i for i in run]
    check(not places or places[-1] < r["numel"], "bad_index")
    return places


def spread_alphas(r: dict[str, Any], data: bytes) -> list[float]:  # 6.3
    alphas = floats(r["alpha_dtype"], data, "bad_alpha")
    spread: list[float] = []
    check(all(math.copysign(1, alpha) > 0 for alpha in alphas), "bad_alpha")
    per_row = -(-r["cols"] // r["width"])
    for count, height in r["runs"]:
        for _ in range(count):
            row = [alpha for alpha in alphas[:per_row] for _ in range(r["width"])][: r["cols"]]
            spread, alphas = spread + row * height, alphas[per_row:]
    return spread


def signs(r: dict[str, Any]) -> list[float]:  # 6.6
    planes = r["p"].get("planes", 1)
    size, values = len(r["alphas"]) // planes, [0.0] * r["numel"]
    mask = codes(r, r["parts"]["mask"], 1) if r["encoding"] == "tern1" else [1] * r["numel"]
    for plane in range(planes):
        bits = codes(r, r["parts"][f"bits{plane}"], 1)
        alphas = spread_alphas(r, r["alphas"][plane * size : (plane + 1) * size])
        if r["encoding"] == "sign1":
            check(all(bit or alpha for bit, alpha in zip(bits, alphas, strict=True)), "bad_plane")
        else:
            check(
                all((m and alpha) or not (m or bit) for bit, alpha, m in zip(bits, alphas, mask, strict=True)),
                "bad_plane",
            )
        step = [(alpha if bit else -alpha) if m else 0.0 for bit, alpha, m in zip(bits, alphas, mask, strict=True)]
        values = apply(add, values, step)
    return values


def approximate(r: dict[str, Any], file: Any, refs: dict[str, Any]) -> list[float] | None:
    """Values of clause 6.6 to 6.8 over the encoded rows; None where they need a file that is not at hand."""
    if r["encoding"] in ("sign1", "tern1"):
        return signs(r)
    if r["encoding"] == "raw":
        return floats(r["value_dtype"], data_part(r))
    values = [0.0] * r["numel"]
    if r["encoding"] == "sparse":
        for place, value in zip(sparse_places(r), floats(r["value_dtype"], r["parts"].get("values", b"")), strict=True):
            values[place] = value
    if "bits" not in r["p"]:
        return values
    s, z = floats("F32", r["alphas"], "bad_code")
    check(s > 0, "bad_code")
    values = [f32(f32(q - z) / s) for q in codes(r, r["parts"]["codes"], r["p"]["bits"])]
    if r["encoding"] == "affine":
        return values
    shared = refs.get(file.manifest.fields["refs"][r["p"]["ref"]])
    if shared is None:
        return None
    backbone = file.manifest.fields["backbone"]
    check(shared.manifest.fields["kind"] == "rtvq-base", "bad_reference")  # 6.7
    check(shared.manifest.fields["backbone"] == backbone, "bad_reference")
    found = [t for t in shared.manifest.tensors if (t["name"], t["enc_shape"]) == (r["name"], r["enc_shape"])]
    check(found and found[0]["encoding"] in ("affine", "zero"), "bad_reference")
    return apply(add, approximate(found[0], shared, {}) or [], values)


def exact(r: dict[str, Any], base: bytes | None) -> bytes | None:
    """The fine-tune's bytes in the encoded rows; None where they need the backbone."""
    if r["encoding"] == "sparse":
        places, values, width = sparse_places(r), r["parts"].get("values", b""), WIDTH[r["dtype"]]
        if r["dtype"] in FLOATS:
            floats(r["dtype"], values)
        content = bytearray(base or b"")
        for i, place in enumerate(places if base is not None else ()):
            content[place * width : (place + 1) * width] = values[i * width : (i + 1) * width]
        return None if base is None else bytes(content)
    data = data_part(r)
    if r["encoding"] == "xdelta":
        return None if base is None else unxdelta(r, data, base)
    if r["dtype"] in FLOATS:
        floats(r["dtype"], data)
    return data


def decode(r: dict[str, Any], file: Any, base: bytes | None, refs: dict[str, Any]) -> list[bytes | None]:
    """Task vector value as F32 bytes (9.2) and rebuilt tensor (9.3)."""
    dtype, old, tail = r["dtype"], r["counterpart"]["dtype"], r["parts"].get("tail", b"")
    values, content, rest = None, None, floats(dtype, tail) if dtype in FLOATS else []
    if r["is_exact"]:
        content = exact(r, base)
        check(content is None or sha256(content + tail).digest() == r["out_sha256"], "output_digest")  # 9.4
        if content is not None and dtype in FLOATS and r["mode"] == "added":
            values = floats(dtype, content)
        elif (
            content is not None
            and base is not None
            and {dtype, old} <= FLOATS
            and r["enc_shape"] == r["counterpart"]["shape"]
        ):
            values = apply(sub, floats(dtype, content), floats(old, base))
    else:
        values = approximate(r, file, refs)
        if values is not None and base is not None:
            content = base if r["is_kept"] else encode(dtype, apply(add, floats(old, base), values))
    rebuilt = None if content is None else content + tail
    return [None if values is None else encode("F32", values + rest), rebuilt]

"""Changes to an `.obm` file that get past its outer checks: the lengths, digests and tables are made right again.

Without that nearly every change ends at the first digest, and the code behind it is never reached. Deterministic for a
given generator. Nothing here decides what is valid: what cannot be made right again is left as it fell.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from obm_format.container.canonical import encode_canonical
from obm_format.container.header import encode_header
from obm_format.container.manifest import parse_manifest
from obm_format.container.pools import DIGEST_NBYTES, FRAME_NBYTES, index_pools
from obm_format.container.table import part_entries
from obm_format.digest import sha256
from obm_format.errors import ObmError
from obm_format.layout import frame_count
from obm_format.limits import DEFAULT_LIMITS
from obm_format.model import POOL_NAMES, Manifest, Pool, padded

_MOST_NBYTES = 1 << 20
_NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 31, 32, 63, 64, 65, 127, 128, 255, 256, 1 << 16, 1 << 21, 1 << 31)
_HUGE = (1 << 32, (1 << 52), (1 << 53) - 1, 1 << 53, 1 << 64, -1)
_WORDS = (
    "", "w", "a.b", "BF16", "F16", "F32", "F64", "I8", "U8", "BOOL", "delta", "replace", "added", "zero", "raw",
    "sign1", "tern1", "affine", "rtvq", "sparse", "xdelta", "matrix", "row", "group", "block", "mean", "rms", "proj",
    "gap8", "bitmap", "shuffle", "1", "0", "0.5", "task-vector", "rtvq-base", "router",
)  # fmt: skip
_EXTRA: dict[str, object] = {
    "bits": 3, "rows": 2, "planes": 2, "zstd": 40, "bucket": True, "group": 64, "mode": "replace", "nnz": 3,
    "base": {"shape": [2, 70]}, "ext": {"acme.x": [1]}, "aliases": [["v", "w"]], "removed": ["v"],
}  # fmt: skip
# What goes wrong where a file is too broken to be taken apart, or a changed manifest implies no parts.
_UNFIT = (ObmError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)
Json = dict[str, Any]


@dataclass
class _Pieces:
    """A file taken apart."""

    manifest: Json
    parts: dict[str, bytearray]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another file: a few fields or parts changed and the rest made to fit, or now and then plain noise."""
    try:
        whole = _fitting(data, rng) if rng.random() < 0.9 else data
    except _UNFIT:
        whole = data
    return _noise(bytearray(whole), rng) if whole is data or rng.random() < 0.05 else whole


def _fitting(data: bytes, rng: random.Random) -> bytes:
    """Another file whose outer checks pass where its manifest lets them."""
    pieces = _take_apart(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(pieces, rng)
    try:
        return _put_together(pieces, rng)
    except _UNFIT:
        return _left_as_it_fell(pieces)


def _take_apart(data: bytes) -> _Pieces:
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    manifest = json.loads(header.pop("__metadata__")["obm"])
    parts = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        parts[name] = bytearray(data[start + begin : start + end])
    if not isinstance(manifest, dict) or not manifest:
        raise ValueError("no manifest")
    return _Pieces(manifest, parts)


# --- changes ------------------------------------------------------------------------------------------------


def _change(pieces: _Pieces, rng: random.Random) -> None:
    if pieces.parts and rng.random() < 0.5:
        part = pieces.parts[rng.choice(sorted(pieces.parts))]
        part[:] = _noise(part, rng)
    else:
        _change_json(pieces.manifest, rng)


def _noise(data: bytearray, rng: random.Random) -> bytes:
    """Some bytes flipped, set, removed or doubled."""
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, kind = rng.randrange(len(data) + 1), rng.random()
        if kind < 0.5 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 0.8 and at < len(data):
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
        elif kind < 0.9:
            del data[at : at + rng.choice((1, 2, 8, 64))]
        else:
            data[at:at] = data[at : at + 8] or b"\0"
    return bytes(data)


def _change_json(tree: Json, rng: random.Random) -> None:
    places = _places(tree)
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.55:
        holder[key] = _other_value(holder[key], rng)
    elif kind < 0.7:
        del holder[key]
    elif kind < 0.85:
        other, from_key = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[from_key])) if _has(other, from_key) else None
    else:
        dicts = [found[at] for found, at in places if isinstance(found[at], dict)] or [tree]
        name = rng.choice(sorted(_EXTRA))
        rng.choice(dicts)[name] = json.loads(json.dumps(_EXTRA[name]))


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every value of a tree, as (holder, key)."""
    found: list[tuple[Any, Any]] = []
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        found.append((tree, key))
        if isinstance(tree[key], dict | list):
            found += _places(tree[key])
    return found


def _other_value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, value * 2, rng.choice(_NUMBERS), rng.choice(_HUGE)))
    if isinstance(value, list) and value:
        return rng.choice((value + value[-1:], value[:-1], [], value[::-1]))
    return rng.choice((rng.choice(_WORDS), rng.choice(_NUMBERS), [], {}, None))


# --- back to a file -----------------------------------------------------------------------------------------


def _put_together(pieces: _Pieces, rng: random.Random) -> bytes:
    """The file with sizes, digests and part table that follow from its manifest; sometimes a digest stays wrong."""
    manifest = _parsed(pieces.manifest)
    entries = part_entries(manifest, DEFAULT_LIMITS)
    if sum(padded(entry.nbytes) for entry in entries) > _MOST_NBYTES:
        return _left_as_it_fell(pieces)
    parts = {entry.name: _cut(pieces.parts.get(entry.name, b""), entry.nbytes) for entry in entries}
    raw = {entry.name: entry.raw_nbytes for entry in entries}
    index = index_pools(manifest)
    for name, at in index.frames.items() if "#frames" in parts else ():
        _put_frames(parts[name], parts["#frames"], at, frame_count(raw[name] or 0))
    for name, at in index.digests.items():
        if rng.random() < 0.98:
            parts["#digests"][at : at + DIGEST_NBYTES] = sha256(bytes(parts.get(name, b"")))
    pools = {
        name: Pool(nbytes=len(parts[f"#{name}"]), sha256=sha256(bytes(parts[f"#{name}"])))
        for name in POOL_NAMES
        if f"#{name}" in parts
    }
    body = b"".join(bytes(part) + bytes(padded(len(part)) - len(part)) for part in parts.values())
    return encode_header(manifest, pools) + body


def _parsed(tree: Json) -> Manifest:
    """The manifest, whatever its pools say."""
    manifest, _ = parse_manifest({key: value for key, value in tree.items() if key != "pools"}, DEFAULT_LIMITS)
    return manifest


def _cut(data: bytes | bytearray, nbytes: int) -> bytearray:
    return bytearray((data * (nbytes // max(1, len(data)) + 1) if data else bytes(nbytes))[:nbytes])


def _put_frames(part: bytearray, pool: bytearray, at: int, count: int) -> None:
    """Lengths that add up to the part, and the frames' digests; the lengths that are there stay where they can."""
    offset = 0
    for place in range(at, at + count * FRAME_NBYTES, FRAME_NBYTES):
        nbytes = int.from_bytes(pool[place : place + 4], "little")
        if place + FRAME_NBYTES == at + count * FRAME_NBYTES or nbytes > len(part) - offset:
            nbytes = len(part) - offset
        pool[place : place + 4] = nbytes.to_bytes(4, "little")
        pool[place + 4 : place + FRAME_NBYTES] = sha256(bytes(part[offset : offset + nbytes]))
        offset += nbytes


def _left_as_it_fell(pieces: _Pieces) -> bytes:
    """The file with whatever manifest there is, and a part table of the parts there are."""
    table, end = "", 0
    for name, part in pieces.parts.items():
        begin, end = end, end + len(part)
        table += f',{json.dumps(name)}:{{"dtype":"U8","shape":[{len(part)}],"data_offsets":[{begin},{end}]}}'
    text = json.dumps(_canonical(pieces.manifest))
    header = f'{{"__metadata__":{{"format":"obm","obm_version":"1.0","obm":{text}}}{table}}}'.encode()
    header += b" " * (-(8 + len(header)) % 64)
    return len(header).to_bytes(8, "little") + header + b"".join(map(bytes, pieces.parts.values()))


def _canonical(tree: Json) -> str:
    try:
        return encode_canonical(tree)
    except (ObmError, ValueError, RecursionError):
        return json.dumps(tree)


MUTATORS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "expert": mutate,
    "messages": lambda data, rng: _noise(bytearray(data), rng),
    "checkpoint": lambda data, rng: _noise(bytearray(data), rng),
}

"""Writes `.obm` files by the prose of obm-1.md alone, whole or with one chosen defect: the base of all vectors.

Never imports `obm_format`: the vectors are a second opinion on the format. It knows the container (clauses 2 to 5, 7
and 10) and zstd frames of raw and RLE blocks; `vector_tensors.py` knows the encodings.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

POOLS = ("digests", "alphas", "frames", "sums")
CUT_NBYTES = 2**21
ZSTD_BLOCK_NBYTES = 2**17
Json = dict[str, Any]


def sha(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def dumps(value: object, *, sort: bool = True) -> str:
    """Canonical JSON (clause 4.1); `sort` is off for the objects of clauses 2.4 and 2.5."""
    return json.dumps(value, separators=(",", ":"), sort_keys=sort)


def pad64(data: bytes) -> bytes:
    """Clause 2.3."""
    return data + bytes(-len(data) % 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A tensor as a checkpoint holds it: dtype, shape, row-major little-endian bytes."""

    dtype: str
    shape: list[int]
    data: bytes


Backbone = dict[str, Dense]


def checkpoint_bytes(tensors: Backbone) -> bytes:
    """A dense safetensors file."""
    header, end = {}, 0
    for name, tensor in sorted(tensors.items()):
        begin, end = end, end + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = dumps(header, sort=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensor.data for _, tensor in sorted(tensors.items()))


def fingerprint(tensors: Backbone) -> str:
    """Clause 10.1."""
    lines = [
        "\0".join((name, t.dtype, ",".join(map(str, t.shape)), sha(t.data).hex())) + "\n"
        for name, t in sorted(tensors.items())
    ]
    return sha("".join(lines).encode()).hex()


@dataclass(slots=True, kw_only=True)
class Tensor:
    """One record, its parts, and what a reader must make of it.

    Args:
        record: the record of the manifest, without fields that have their default.
        parts: bytes by suffix, in part order.
        alphas: its bytes of the alpha pool.
        frames: the zstd frames of its `data` part.
        base: its backbone tensor's bytes, None in mode added.
        out: the rebuilt tensor's bytes of an exact record, which the file holds a digest of.
        values: the task vector value (clause 9.2), None where there is none.
        rebuilt: the rebuilt tensor's bytes (clause 9.3), None where it takes another artifact.
    """

    record: Json
    parts: dict[str, bytes] = field(default_factory=dict)
    alphas: bytes = b""
    frames: list[bytes] = field(default_factory=list)
    base: bytes | None = None
    out: bytes | None = None
    values: bytes | None = None
    rebuilt: bytes | None = None

    def digests(self) -> bytes:
        """Clause 7.4."""
        fixed = [sha(part) for part in (self.base, self.out) if part is not None]
        return b"".join(fixed + [sha(part) for part in self.parts.values() if part])


@dataclass(slots=True, kw_only=True)
class Draft:
    """Everything a file says, before it is bytes."""

    backbone: Backbone
    tensors: list[Tensor] = field(default_factory=list)
    attach: dict[str, bytes] = field(default_factory=dict)
    fields: Json = field(default_factory=dict)
    version: str = "1.0"

    def pools(self) -> dict[str, bytes]:
        """Clauses 7.3 to 7.5, 8.2 and 8.3."""
        digests = b"".join(t.digests() for t in self.tensors) + b"".join(map(sha, self.attach.values()))
        frames = [frame for t in self.tensors for frame in t.frames]
        large = [part for t in self.tensors for suffix, part in t.parts.items() if not (suffix == "data" and t.frames)]
        large = [part for part in [*large, *self.attach.values()] if len(part) > 2**23]
        pools = {
            "digests": digests,
            "alphas": b"".join(t.alphas for t in self.tensors),
            "frames": b"".join(struct.pack("<I", len(frame)) + sha(frame) for frame in frames),
            "sums": b"".join(sha(part[i : i + 2**20]) for part in large for i in range(0, len(part), 2**20)),
        }
        return {pool: data for pool, data in pools.items() if data}

    def manifest(self, pools: dict[str, bytes]) -> Json:
        """Clause 5.1."""
        manifest: Json = {
            "backbone": {
                "fingerprint": fingerprint(self.backbone),
                "n_params": sum(_numel(t.shape) for t in self.backbone.values()),
                "n_tensors": len(self.backbone),
            },
            "kind": "task-vector",
            "tensors": [t.record for t in self.tensors],
        }
        if pools:
            manifest["pools"] = {pool: {"nbytes": len(d), "sha256": sha(d).hex()} for pool, d in pools.items()}
        if self.attach:
            manifest["attach"] = [{"name": name, "nbytes": len(data)} for name, data in self.attach.items()]
        return json.loads(json.dumps(manifest | self.fields))  # type: ignore[no-any-return]


def _numel(shape: list[int]) -> int:
    n = 1
    for dim in shape:
        n *= dim
    return n


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """How a file is spoilt: each step changes what the step before it made.

    Args:
        pools: the pools, before their digests are taken.
        manifest: the manifest object.
        text: the manifest's JSON text.
        table: the entries of the part table, a list of [name, entry].
        header: the header's JSON text, before padding.
        padded: the header's bytes, after padding.
        data: the bytes after the header.
        file: the whole file.
    """

    pools: Callable[[dict[str, bytes]], dict[str, bytes]] | None = None
    manifest: Callable[[Json], object] | None = None
    text: Callable[[str], str] | None = None
    table: Callable[[list[list[Any]]], object] | None = None
    header: Callable[[str], str] | None = None
    padded: Callable[[bytes], bytes] | None = None
    data: Callable[[bytearray], object] | None = None
    file: Callable[[bytes], bytes] | None = None


def file_bytes(draft: Draft, defect: Defect = Defect()) -> bytes:
    """The file of a draft (clause 2), spoilt as `defect` says."""
    pools = draft.pools()
    pools = defect.pools(pools) if defect.pools else pools
    manifest = draft.manifest(pools)
    if defect.manifest:
        defect.manifest(manifest)
    text = dumps(manifest)
    text = defect.text(text) if defect.text else text
    named = [(f"#{pool}", pools[pool]) for pool in POOLS if pool in pools]
    named += [(f"{t.record['name']}#{suffix}", part) for t in draft.tensors for suffix, part in t.parts.items() if part]
    named += [(f"#attach/{name}", data) for name, data in draft.attach.items() if data]
    table: list[Any] = []
    data = bytearray()
    for name, part in named:
        begin = len(data)
        data += pad64(part)
        table.append([name, {"dtype": "U8", "shape": [len(data) - begin], "data_offsets": [begin, len(data)]}])
    if defect.table:
        defect.table(table)
    metadata = {"format": "obm", "obm_version": draft.version, "obm": text}
    header = dumps({"__metadata__": metadata, **dict(table)}, sort=False)
    header = defect.header(header) if defect.header else header
    raw = header.encode("latin-1")
    raw += b" " * (-(8 + len(raw)) % 64)
    raw = defect.padded(raw) if defect.padded else raw
    if defect.data:
        defect.data(data)
    whole = struct.pack("<Q", len(raw)) + raw + bytes(data)
    return defect.file(whole) if defect.file else whole


def artifact_id(file: bytes) -> str:
    """Clause 7.1."""
    (n,) = struct.unpack("<Q", file[:8])
    return f"obm1-sha256:{sha(file[: 8 + n]).hex()}"


def zstd_frame(content: bytes) -> bytes:
    """A single-segment frame (RFC 8878) of raw blocks, and RLE blocks where 16 or more bytes are equal."""
    blocks: list[tuple[int, int, bytes]] = []
    for byte, run in groupby(content):
        length = len(list(run))
        if length >= 16:
            sizes = [min(ZSTD_BLOCK_NBYTES, length - i) for i in range(0, length, ZSTD_BLOCK_NBYTES)]
            blocks += [(1, size, bytes([byte])) for size in sizes]
        elif blocks and blocks[-1][0] == 0 and blocks[-1][1] + length <= ZSTD_BLOCK_NBYTES:
            _, size, start = blocks.pop()
            blocks.append((0, size + length, start + bytes([byte]) * length))
        else:
            blocks.append((0, length, bytes([byte]) * length))
    frame = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(content))
    for i, (kind, size, body) in enumerate(blocks):
        frame += struct.pack("<I", size << 3 | kind << 1 | (i == len(blocks) - 1))[:3] + body
    return frame


def shuffle(content: bytes, width: int) -> bytes:
    """Clause 8.2: byte 0 of all elements, then byte 1, and so on."""
    return b"".join(content[byte::width] for byte in range(width))


def frames_of(content: bytes, width: int) -> list[bytes]:
    """Clause 8.2."""
    return [zstd_frame(shuffle(content[i : i + CUT_NBYTES], width)) for i in range(0, len(content), CUT_NBYTES)]

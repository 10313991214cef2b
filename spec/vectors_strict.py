"""Valid vectors that fail a reader which computes, rounds or grows tensors otherwise than clauses 5 to 9 say."""

# ruff: noqa: ANN401 - keywords that become fields of JSON have no better type
from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from vector_tensors import (
    Counterpart,
    add,
    added,
    affine,
    dequantise,
    f32,
    in_rows,
    noise,
    pack,
    pack_codes,
    random_dense,
    replaced,
    set_frames,
    sign1,
    sparse,
    tern1,
)
from vector_writer import Backbone, Dense, Draft, Tensor

Drafts = Iterator[tuple[str, str, str, Draft]]


def strict_drafts(backbones: dict[str, Backbone]) -> Drafts:
    """Name, clause, name of the backbone and content of each."""
    yield from _arithmetic(backbones)
    yield from _grown(backbones)
    yield from _replaced(backbones["one"])
    yield from _accepted(backbones["one"])


def coded(side: Counterpart, codes: list[int], bits: int, s: float, z: float) -> Tensor:
    """An `affine` record of these codes, multiplier and zero."""
    parts = {"codes": pack_codes(in_rows(codes, side.rows), bits)}
    return side.approximate("affine", {"bits": bits}, dequantise(codes, s, z), parts=parts, alphas=pack("F32", [s, z]))


def planes(side: Counterpart, alphas: list[float], bits: list[list[int]]) -> Tensor:
    """A `sign1` record of one F16 alpha and these bits for each plane, whose values are float32 sums in order."""
    values = [0.0] * len(bits[0])
    for alpha, plane in zip(alphas, bits, strict=True):
        values = add(values, [alpha if bit else -alpha for bit in plane])
    parts = {f"bits{p}": pack_codes(in_rows(plane, side.rows), 1) for p, plane in enumerate(bits)}
    return side.approximate("sign1", {"planes": len(alphas)}, values, parts=parts, alphas=pack("F16", alphas))


def _arithmetic(backbones: dict[str, Backbone]) -> Drafts:
    """With binary64, a reciprocal or another order of the sums, other bits come out."""
    full, one = backbones["full"], backbones["one"]
    codes = [i % 16 for i in range(335)]
    tensors = [coded(Counterpart(full, "down"), codes, 4, f32(37.3), f32(0.1))]
    tensors.insert(0, coded(Counterpart(full, "bias"), [0, 255, 1, 254, 2, 3, 77, 128, 5], 8, f32(0.7), f32(0.1)))
    yield "affine-float32-steps", "6.6", "full", Draft(backbone=full, tensors=tensors)
    patterns = [[i >> p & 1 for i in range(9)] for p in range(3)]
    tiny = 2.0**-24
    tensors = [planes(Counterpart(full, "bias"), [1.0, tiny, tiny], patterns)]
    wide = [[i >> p & 1 for i in range(335)] for p in range(3)]
    tensors.append(planes(Counterpart(full, "down"), [tiny, 1.0, tiny], wide))
    yield "sign1-three-planes", "6.6", "full", Draft(backbone=full, tensors=tensors)
    minus = coded(Counterpart(one, "w"), [i % 4 for i in range(210)], 2, 64.0, -0.0)
    yield "affine-z-minus-zero", "6.6", "one", Draft(backbone=one, tensors=[minus])
    d = noise("strict", 210, 0.01)
    block = tern1(Counterpart(one, "w"), d, alpha="block", blocks=[[1, 2], [1, 1]])
    yield "tern1-block", "6.3", "one", Draft(backbone=one, tensors=[block])
    small = tern1(Counterpart(one, "w"), [x * 2.0**-20 for x in d], alpha="row")
    yield "tern1-f32-alphas", "6.3", "one", Draft(backbone=one, tensors=[small])


def _grown(backbones: dict[str, Backbone]) -> Drafts:
    one, d = backbones["one"], noise("grown", 210, 0.01)

    def side() -> Counterpart:
        return Counterpart(one, "w", tail=random_dense("t", "BF16", [2, 70]))

    made = {
        "affine": affine(side(), d, 3),
        "tern1": tern1(side(), d, alpha="row"),
        "sparse-nothing": sparse(side(), {}),
    }
    for name, tensor in made.items():
        yield f"{name}-grown", "5.6", "one", Draft(backbone=one, tensors=[tensor])


def _replaced(one: Backbone) -> Drafts:
    """Another dtype of the same shape has a task vector value; more rows in mode `replace` have none."""
    for dtype in ("F16", "F32"):
        tensor = replaced(one, "w", random_dense("replaced", dtype, [3, 70]))
        yield f"raw-replace-{dtype.lower()}", "9.2", "one", Draft(backbone=one, tensors=[tensor])
    more = replaced(one, "w", random_dense("more", "BF16", [4, 70]))
    yield "raw-replace-more-rows", "9.2", "one", Draft(backbone=one, tensors=[more])


def _accepted(one: Backbone) -> Drafts:
    """The far ends of grammars, and bytes that no rule looks at."""

    def signs(**choice: Any) -> Tensor:
        return sign1(Counterpart(one, "w"), noise("accepted", 210, 0.01), **choice)

    nan = added("x", Dense(dtype="F64", shape=[2], data=struct.pack("<2d", float("nan"), float("-inf"))))
    yield "raw-f64-nan", "9.4", "one", Draft(backbone=one, tensors=[signs(), nan])
    size, block = struct.pack("<I", 64), struct.pack("<I", 64 << 3 | 1)[:3] + bytes(range(64))
    frame = b"\x28\xb5\x2f\xfd\x80\x67" + size + block  # 7 eighths above 4 MiB
    window = set_frames(added("x", Dense(dtype="U8", shape=[64], data=bytes(range(64)))), [frame])
    yield "frame-window-7-5-mib", "8.2", "one", Draft(backbone=one, tensors=[signs(), window])
    yield "gain-longest", "6.4", "one", Draft(backbone=one, tensors=[signs(gain="0001.000000001")])
    yield "minor-version-longest", "2.4", "one", Draft(backbone=one, tensors=[signs()], version="1.123456789")
    yield (
        "task-longest",
        "5.1",
        "one",
        Draft(backbone=one, tensors=[signs()], fields={"task": "a" + "._-Z" * 31 + "0_."}),
    )

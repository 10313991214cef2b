"""Valid vectors of the edges that a reader's author has to guess unless shown: empty, scalar, shared, rounded."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from vector_tensors import (
    Counterpart,
    added,
    affine,
    f32,
    pack,
    random_dense,
    raw_delta,
    replaced,
    set_frames,
    sign1,
    sparse,
    sparse_replace,
    step,
    tern1,
    xdelta,
    zero,
)
from vector_writer import Backbone, Dense, Draft, Json, Tensor

FLT_MAX = (2 - 2**-23) * 2.0**127


def edge_backbones() -> dict[str, Backbone]:
    """The checkpoints of `base/` that only these vectors use, by name."""
    ties = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 2**-25, 3 * 2**-26, 2**-14 - 2**-25, 65519.0, -0.0]
    ties += [1 + 2**-11 + 2**-23, -(1 + 2**-11), 2**-24 * 1.5, 2**-24 * 2.5, 0.0]
    names = ["+", "-", ".x", "0", ":", "A", "_", "a", "a+", "a-b", "a.b", "a/b", "aa", "z" * 512]
    half = pack("BF16", [1.0, 0.02, 0.06, 0.5, 0.001])
    worked = {
        name: Dense(dtype="F32", shape=shape, data=bytes(4 * math.prod(shape))) for name, shape in _WORKED.items()
    }
    return {
        "worked": worked | {"n16": Dense(dtype="BF16", shape=[5], data=half)},
        "deep": {"w": random_dense("deep", "BF16", [2, 1, 3, 1, 1, 2, 1, 2])},
        "far": {"w": Dense(dtype="F32", shape=[2], data=pack("F32", [3e38, 1.0]))},
        "hollow": {f"{i}": Dense(dtype="F32", shape=shape, data=b"") for i, shape in enumerate(_HOLLOW)},
        "names": {name: Dense(dtype="U8", shape=[1], data=bytes([i])) for i, name in enumerate(names)},
        "namesake": {"mean": random_dense("namesake", "F32", [4]), "w": random_dense("w", "F32", [2])},
        "nan": {"w": Dense(dtype="F32", shape=[3], data=struct.pack("<3I", 0x7FC00001, 0xFF800000, 0x80000000))},
        "near": {"w": Dense(dtype="F32", shape=[2], data=pack("F32", [-FLT_MAX / 2, 2.0**-149]))},
        "scalars": {name: Dense(dtype="F32", shape=[], data=pack("F32", [0.375])) for name in "abcdef"},
        "ties": {"w": Dense(dtype="F32", shape=[len(ties)], data=pack("F32", ties))},
    }


_HOLLOW = [[0], [0, 4], [2, 0, 3], [0, 4], [0, 2**40], [3, 0]]
_WORKED = {"n1": [2, 2], "n3": [4], "n4": [3, 9], "n5": [4], "n7": [4], "n15": [2, 2], "q5": [3], "q6": [3]}
_WORKED |= {f"w{bits}": [5] for bits in (2, 3, 4, 8)}
EDGES = edge_backbones()


def edge_drafts(tied: Backbone, full: Backbone) -> Iterator[tuple[str, str, str, Draft]]:
    """Name, clause, name of the backbone and content of each; `tied` and `full` are backbones of other vectors."""
    yield from _relations(tied, full)
    yield from _shapes()
    yield from _numbers()
    yield from _frames()


def _relations(tied: Backbone, full: Backbone) -> Iterator[tuple[str, str, str, Draft]]:
    d = step(tied["embed"], "tied/embed/tuned")
    kept = [zero(Counterpart(tied, name)) for name in ("embed", "head")]
    untied = sign1(Counterpart(tied, "embed", as_name="untied"), d, alpha="row")
    yield "counterpart-shared", "5.4", "tied", Draft(backbone=tied, tensors=[*kept, untied])
    swapped = [zero(Counterpart(tied, other, as_name=name)) for name, other in (("embed", "head"), ("head", "embed"))]
    yield "counterpart-swapped", "5.4", "tied", Draft(backbone=tied, tensors=swapped)
    grown = sign1(Counterpart(tied, "embed", tail=random_dense("t", "BF16", [1, 4])), d)
    yield "alias-grown", "5.8", "tied", Draft(backbone=tied, tensors=[grown], fields={"alias": [["head", "embed"]]})
    fields: Json = {"alias": [["head", "embed"], ["m.twin", "m.new"]], "prefix": {"side": "tuned", "text": "m."}}
    tensors = [kept[0], added("m.new", random_dense("new", "F32", [2]))]
    yield "prefix-and-added", "5.7", "tied", Draft(backbone=tied, tensors=tensors, fields=fields)
    part = affine(Counterpart(full, "down"), step(full["down"], "part"), 3)
    yield "rtvq-base-part", "10.4", "full", Draft(backbone=full, tensors=[part], fields={"kind": "rtvq-base"})
    names = EDGES["names"]
    yield "names-in-order", "5.3", "names", Draft(backbone=names, tensors=[zero(Counterpart(names, n)) for n in names])


def _shapes() -> Iterator[tuple[str, str, str, Draft]]:
    hollow, deep, scalars = EDGES["hollow"], EDGES["deep"], EDGES["scalars"]
    tensors = [
        raw_delta(Counterpart(hollow, "0"), []),
        zero(Counterpart(hollow, "1", tail=random_dense("t", "F32", [2, 4]))),
        sparse(Counterpart(hollow, "2"), {}),
        replaced(hollow, "3", Dense(dtype="I64", shape=[7, 0], data=b"")),
        sparse_replace(Counterpart(hollow, "4"), {}),
        zero(Counterpart(hollow, "5", dtype="F16")),
    ]
    yield "no-elements", "6.1", "hollow", Draft(backbone=hollow, tensors=tensors)
    d = step(deep["w"], "deep/tuned")
    for rows in (1, 6, 24):
        tensor = sign1(Counterpart(deep, "w"), d, rows=rows, alpha="row")
        yield f"eight-dimensions-{rows}", "6.1", "deep", Draft(backbone=deep, tensors=[tensor])
    tensors = [
        affine(Counterpart(scalars, "a"), [0.25], 2),
        raw_delta(Counterpart(scalars, "b"), [0.5], "BF16"),
        sign1(Counterpart(scalars, "c"), [-0.25], alpha="group", group=64),
        sparse(Counterpart(scalars, "d"), {0: -1.0}),
        tern1(Counterpart(scalars, "e"), [-0.25]),
        xdelta(Counterpart(scalars, "f"), pack("F32", [-0.0]), bucket=True),
    ]
    yield "scalars", "6.1", "scalars", Draft(backbone=scalars, tensors=tensors)


def _numbers() -> Iterator[tuple[str, str, str, Draft]]:
    ties, near = EDGES["ties"], EDGES["near"]
    for dtype in ("F16", "BF16"):
        tensor = zero(Counterpart(ties, "w", dtype=dtype))
        yield f"rounded-to-{dtype.lower()}", "9.3", "ties", Draft(backbone=ties, tensors=[tensor])
    small = sparse(Counterpart(ties, "w", dtype="F16"), {0: 2.0**-24, 10: -(2.0**-24), 13: 2.0**-149})
    yield "rounded-twice", "9.3", "ties", Draft(backbone=ties, tensors=[small])
    tuned = pack("F32", [FLT_MAX / 2, -(2.0**-149)])
    largest = Draft(backbone=near, tensors=[xdelta(Counterpart(near, "w"), tuned)])
    kept = zero(Counterpart(EDGES["nan"], "w"))
    yield "zero-kept-nan", "9.3", "nan", Draft(backbone=EDGES["nan"], tensors=[kept])
    yield "worked-numbers", "11.3", "worked", _worked()
    yield "largest-difference", "9.2", "near", largest


def _worked() -> Draft:
    """Numbers that can be followed by hand; `tests/spec/test_numeric_cases.py` has what comes out."""
    worked = EDGES["worked"]
    shifts = {"n1": [0.5, -0.25, 0.0, -1.25], "n3": [-0.0, 0.0, -1.0, 1.0], "n4": [1.0] * 27, "n5": [f32(0.1)] * 4}
    shifts |= {"n7": [f32(1e-6)] * 4, "n15": [1.0, -1.0, 3.0, -3.0], "n16": [f32(2e-4)] * 5}
    rows: Json = {"n15": {"alpha": "row"}, "n16": {"alpha_dtype": "F32"}}
    tensors = [sign1(Counterpart(worked, name), d, **rows.get(name, {})) for name, d in shifts.items()]
    x = [-1.0, f32(-0.2), 0.0, 0.5, 2.0]
    tensors += [affine(Counterpart(worked, f"w{bits}"), x, bits) for bits in (2, 3, 4, 8)]
    tensors += [affine(Counterpart(worked, "q5"), [-2.0, -1.25, -1.0], 2)]
    tensors += [affine(Counterpart(worked, "q6"), [f32(0.3)] * 3, 3)]
    return Draft(backbone=worked, tensors=sorted(tensors, key=_name))


def _frames() -> Iterator[tuple[str, str, str, Draft]]:
    """What RFC 8878 leaves to who writes a frame, and obm-1 does too."""
    near, body = EDGES["near"], bytes(range(255))
    magic, block = b"\x28\xb5\x2f\xfd", struct.pack("<I", 255 << 3 | 1)[:3] + body
    frames = {
        "8-bytes-of-size": magic + b"\xe0" + struct.pack("<Q", 255) + block,
        "empty-blocks": magic + b"\x20\xff" + bytes(3) * 5 + b"\2\0\0x" + block,
        "unused-bit": magic + b"\x30\xff" + block,
        "window-1-kib": magic + b"\x80\x00" + struct.pack("<I", 255) + block,
        "window-8-mib": magic + b"\x80\x68" + struct.pack("<I", 255) + block,
    }
    content = Dense(dtype="U8", shape=[255], data=body)
    tensors = [set_frames(added(name, content), [frame]) for name, frame in sorted(frames.items())]
    wide = Dense(dtype="U8", shape=[256], data=bytes([7]) * 256)
    run = magic + b"\x60\0\0" + struct.pack("<I", 256 << 3 | 3)[:3] + b"\7"
    tensors.append(set_frames(added("x-2-bytes-of-size", wide), [run]))
    tensors.insert(0, xdelta(Counterpart(near, "w"), near["w"].data))
    tensors.sort(key=_name)
    yield "frame-liberties", "8.2", "near", Draft(backbone=near, tensors=tensors)


def _name(tensor: Tensor) -> str:
    return str(tensor.record["name"])

"""The valid vectors: for every encoding, option and field of obm-1.md at least one small file."""

# ruff: noqa: ANN401 - keywords that become fields of JSON have no better type
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vector_tensors import (
    Counterpart,
    added,
    affine,
    moved,
    noise,
    pack,
    random_dense,
    raw_delta,
    replaced,
    rtvq,
    set_frames,
    sign1,
    sparse,
    sparse_replace,
    step,
    tern1,
    unpack,
    xdelta,
    zero,
    zeros,
)
from vector_writer import Backbone, Dense, Draft, Tensor, artifact_id, file_bytes
from vectors_edges import EDGES, edge_drafts
from vectors_strict import strict_drafts
from vectors_zstd import REAL_FRAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Valid:
    """One valid vector.

    Args:
        name: of the file, without `.obm`.
        clause: that it proves.
        base: name of its backbone in `base/`.
        draft: what the file says.
        needs: `zstd` where frames hold compressed blocks, `refs` where records take their values from other files.
        refs: names of the vectors that hold those values.
    """

    name: str
    clause: str
    base: str
    draft: Draft
    needs: list[str] = field(default_factory=list)
    refs: list[str] = field(default_factory=list)


def _bytes(*values: int) -> Dense:
    return Dense(dtype="U8", shape=[len(values)], data=bytes(values))


def _one() -> Backbone:
    return {"w": random_dense("w", "BF16", [3, 70])}


def _tiny() -> Backbone:
    bias = pack("F32", [0.5, -0.0, 0.0, -1.25, 2.0**-130, 3.0, -0.0625, 1.0, -7.0])
    return {
        "bias": Dense(dtype="F32", shape=[9], data=bias),
        "down": random_dense("down", "F32", [5, 67]),
        "ids": Dense(dtype="I64", shape=[4], data=pack("I64", [0, 1, -2, 2**40])),
        "up": random_dense("up", "F16", [4, 70]),
        "w": random_dense("w", "BF16", [3, 70]),
    }


def backbones() -> dict[str, Backbone]:
    """The dense checkpoints of `base/`, by name."""
    embed = random_dense("embed", "BF16", [3, 4])
    return {
        "cube": {"cube": random_dense("cube", "F16", [2, 3, 5]), "scalar": random_dense("scalar", "F32", [])},
        "headed": {
            "lm_head.weight": random_dense("head", "F32", [2, 3]),
            "model.norm.weight": random_dense("norm", "F32", [4]),
            "model.w": random_dense("model.w", "F32", [2, 8]),
        },
        "full": {name: tensor for name, tensor in _tiny().items() if tensor.dtype == "F32"},
        "half": {"up": _tiny()["up"]},
        "one": _one(),
        "rough": {"w": Dense(dtype="F16", shape=[2, 3], data=pack("F16", [65504.0, -65504.0, 1.0, 0.0, -0.0, 2.0]))},
        "tied": {"embed": embed, "head": embed},
        "tiny": _tiny(),
        "wide": {"u8": Dense(dtype="U8", shape=[65_546], data=bytes(65_546))},
    }


BACKBONES = backbones() | EDGES


def _draft(base: str, *tensors: Tensor, **rest: Any) -> Draft:
    """A draft of some records, with `zero` for the backbone's other tensors."""
    backbone = BACKBONES[base]
    own = {t.record.get("base", {}).get("name", t.record["name"]) for t in tensors}
    records = sorted([*tensors, *zeros(backbone, *own)], key=lambda t: str(t.record["name"]))
    return Draft(backbone=backbone, tensors=records, **rest)


def _one_file(name: str, clause: str, base: str, *tensors: Tensor, needs: list[str] | None = None) -> Valid:
    return Valid(name=name, clause=clause, base=base, draft=_draft(base, *tensors), needs=needs or [])


def _side(base: str, name: str, **rest: Any) -> tuple[Counterpart, list[float]]:
    """A counterpart, and a task vector for it."""
    return Counterpart(BACKBONES[base], name, **rest), step(BACKBONES[base][name], f"{base}/{name}/tuned")


def _plain() -> Iterator[Valid]:
    tiny = BACKBONES["tiny"]
    yield _one_file("zero-kept", "5.5", "tiny")
    yield _one_file(
        "zero-cast",
        "9.3",
        "tiny",
        zero(Counterpart(tiny, "w", dtype="F16")),
        zero(Counterpart(tiny, "bias", dtype="BF16")),
    )
    yield _one_file(
        "zero-grown", "5.6", "full", zero(Counterpart(BACKBONES["full"], "bias", tail=random_dense("tail", "F32", [2])))
    )
    for home, name, dtype in (
        ("full", "down", ""),
        ("half", "up", "F32"),
        ("one", "w", "F16"),
        ("full", "bias", "BF16"),
    ):
        side, d = _side(home, name)
        suffix = f"{side.dtype}-as-{dtype}".lower() if dtype else side.dtype.lower()
        yield _one_file(f"raw-delta-{suffix}", "6.6", home, raw_delta(side, d, dtype))
    side, d = _side("half", "up")
    yield _one_file("raw-delta-framed", "8.2", "half", raw_delta(side, d, framed=True))
    tail = random_dense("tail", "F16", [1, 70])
    side, d = _side("half", "up", tail=tail)
    yield _one_file("raw-delta-framed-grown", "5.6", "half", raw_delta(side, d, framed=True))
    shaped = random_dense("replaced", "F32", [2, 2, 2])
    same = Dense(dtype="F16", shape=[4, 70], data=pack("F16", moved(tiny["up"], "replaced")))
    ids = Dense(dtype="I64", shape=[4], data=pack("I64", [9, -9, 2**62, 0]))
    yield _one_file(
        "raw-replace",
        "5.4",
        "tiny",
        replaced(tiny, "w", shaped),
        replaced(tiny, "up", same),
        replaced(tiny, "ids", ids),
    )


def _added() -> Iterator[Valid]:
    contents = {
        "new.bf16": random_dense("a", "BF16", [2, 3]),
        "new.bool": Dense(dtype="BOOL", shape=[3], data=b"\1\0\1"),
        "new.f16": random_dense("b", "F16", [3]),
        "new.f32": random_dense("c", "F32", [1, 2, 3]),
        "new.f64": Dense(dtype="F64", shape=[1], data=pack("F64", [math.pi])),
        "new.f8": Dense(dtype="F8_E4M3", shape=[2], data=b"\x38\x7f"),
        "new.i32": Dense(dtype="I32", shape=[2], data=pack("I32", [-1, 2**31 - 1])),
        "new.none": Dense(dtype="F32", shape=[0, 2**50], data=b""),
        "new.scalar": random_dense("d", "F32", []),
    }
    yield _one_file("raw-added", "5.4", "one", *(added(name, content) for name, content in contents.items()))
    counts = [i // 70_000 - 7 for i in range(2**20 + 3)]
    large = Dense(dtype="I16", shape=[2**20 + 3], data=pack("I16", counts))
    yield _one_file("raw-framed-two-cuts", "8.2", "one", added("counts", large, framed=True))
    yield Valid(
        name="nothing",
        clause="5.1",
        base="one",
        draft=Draft(backbone=BACKBONES["one"], fields={"tensors": [], "removed": ["w"]}),
    )


def _signs() -> Iterator[Valid]:
    choices: dict[str, tuple[str, dict[str, Any]]] = {
        "matrix-mean": ("6.3", {}),
        "matrix-rms": ("6.4", {"rule": "rms"}),
        "matrix-proj": ("6.4", {"rule": "proj"}),
        "gain": ("6.4", {"gain": "0.75"}),
        "row": ("6.3", {"alpha": "row", "rule": "proj"}),
        "group": ("6.3", {"alpha": "group", "group": 64}),
        "group-wide": ("6.3", {"alpha": "group", "group": 128, "rule": "proj"}),
        "block": ("6.3", {"alpha": "block", "blocks": [[1, 2], [1, 1]]}),
        "block-runs": ("6.3", {"alpha": "block", "blocks": [[3, 1]]}),
        "f32-alphas": ("6.3", {"alpha": "row", "alpha_dtype": "F32"}),
        "rows": ("6.1", {"rows": 210, "alpha": "row"}),
        "one-row": ("6.1", {"rows": 1, "alpha": "group", "group": 64}),
        "two-planes": ("11.4", {"planes": 2, "rule": "proj"}),
        "four-planes": ("11.4", {"planes": 4, "alpha": "group", "group": 64}),
    }
    for name, (clause, choice) in choices.items():
        side, d = _side("one", "w")
        yield _one_file(f"sign1-{name}", clause, "one", sign1(side, d, **choice))
    side, d = _side("one", "w")
    yield _one_file("sign1-zero-row", "6.6", "one", sign1(side, [0.0, -0.0] * 35 + d[70:], alpha="row"))
    yield _one_file("sign1-tiny-alpha", "11.3", "one", sign1(side, [x * 2.0**-20 for x in d], alpha="row"))
    yield _one_file("sign1-f16", "5.5", "half", sign1(*_side("half", "up")))
    yield _one_file("sign1-f32", "5.5", "full", sign1(*_side("full", "down"), alpha="row"))
    yield _one_file("sign1-vector", "6.1", "full", sign1(*_side("full", "bias")))
    yield _one_file("sign1-other-dtype", "5.4", "one", sign1(*_side("one", "w", dtype="F32")))
    yield _one_file(
        "sign1-grown", "5.6", "one", sign1(*_side("one", "w", tail=random_dense("t", "BF16", [2, 70])), alpha="row")
    )
    cube, scalar = sign1(*_side("cube", "cube"), rows=6, alpha="row"), sign1(*_side("cube", "scalar"))
    yield _one_file("sign1-cube", "6.1", "cube", cube, scalar)
    yield _one_file("tern1-matrix", "6.6", "one", tern1(side, d))
    yield _one_file("tern1-group", "6.6", "one", tern1(side, d, alpha="group", group=64, rule="proj"))
    yield _one_file("tern1-zero-row", "6.6", "one", tern1(side, [0.0] * 70 + d[70:], alpha="row"))


def _codes() -> Iterator[Valid]:
    for bits in (2, 3, 4, 8):
        yield _one_file(f"affine-{bits}", "6.2", "one", affine(*_side("one", "w"), bits))
    side, d = _side("full", "down")
    yield _one_file("affine-constant", "11.6", "full", affine(side, [0.125] * len(d), 4))
    yield _one_file("affine-negative", "11.6", "full", affine(side, [-1.0 - abs(x) for x in d], 3))
    yield _one_file("affine-rows", "6.1", "cube", affine(*_side("cube", "cube"), 3, rows=6))
    yield from _shared()


def _shared() -> Iterator[Valid]:
    side, d = _side("full", "down")
    shared = affine(side, d, 3)
    base = _draft("full", shared, fields={"kind": "rtvq-base", "task": "shared"})
    refs = ["obm1-sha256:" + "0" * 64, artifact_id(file_bytes(base))]
    offset = rtvq(side, [x * 1.25 for x in d], 2, unpack("F32", shared.values or b""), ref=1)
    zero_ref = rtvq(Counterpart(BACKBONES["full"], "bias"), noise("bias", 9, 0.01), 8, [0.0] * 9, ref=1)
    draft = _draft("full", offset, zero_ref, fields={"refs": refs, "task": "math"})
    yield Valid(name="rtvq-base", clause="6.7", base="full", draft=base)
    yield Valid(name="rtvq", clause="6.7", base="full", draft=draft, needs=["refs"], refs=["rtvq-base"])
    yield from _more_of_shared(side, d, shared, refs[1])


def _more_of_shared(side: Counterpart, d: list[float], shared: Tensor, ref: str) -> Iterator[Valid]:
    """A record that grew where the base vector did not, and base vectors that others may not build on."""
    longer = Counterpart(BACKBONES["full"], "down", tail=random_dense("t", "F32", [2, 67]))
    grown = rtvq(longer, [x * 0.75 for x in d], 2, unpack("F32", shared.values or b""))
    draft = _draft("full", grown, fields={"refs": [ref]})
    yield Valid(name="rtvq-grown", clause="6.7", base="full", draft=draft, needs=["refs"], refs=["rtvq-base"])
    kind = {"kind": "rtvq-base"}
    tiny = affine(Counterpart(BACKBONES["tiny"], "down"), d, 3)
    yield Valid(name="rtvq-base-tiny", clause="6.7", base="tiny", draft=_draft("tiny", tiny, fields=kind))
    bias = Counterpart(BACKBONES["full"], "bias")
    odd = [sign1(bias, d[:9]), affine(Counterpart(BACKBONES["full"], "bias", as_name="down"), d[:9], 3)]
    draft = Draft(backbone=BACKBONES["full"], tensors=odd, fields=kind)
    yield Valid(name="rtvq-base-odd", clause="6.7", base="full", draft=draft)


def _sparse() -> Iterator[Valid]:
    side = Counterpart(BACKBONES["full"], "down")
    listed = {0: 0.25, 5: -0.5, 66: 1.0, 334: 0.0078125}
    yield _one_file("sparse-delta", "6.8", "full", sparse(side, listed))
    yield _one_file("sparse-delta-f16", "6.8", "full", sparse(side, listed, "F16"))
    yield _one_file("sparse-delta-bf16", "6.8", "full", sparse(side, listed, "BF16"))
    yield _one_file("sparse-nothing", "6.8", "full", sparse(side, {}))
    grown = Counterpart(BACKBONES["half"], "up", tail=random_dense("t", "F16", [1, 70]))
    yield _one_file("sparse-grown", "5.6", "half", sparse(grown, {7: 0.5}))
    replaced_ = sparse_replace(Counterpart(BACKBONES["tiny"], "bias"), {1: 4.0, 8: -0.0})
    yield _one_file(
        "sparse-replace", "6.8", "tiny", replaced_, sparse_replace(Counterpart(BACKBONES["tiny"], "ids"), {2: 77})
    )
    wide = sparse_replace(Counterpart(BACKBONES["wide"], "u8"), {3: 1, 65_535: 2, 65_536: 3, 65_545: 255})
    yield _one_file("sparse-two-blocks", "6.8", "wide", wide)
    last = sparse_replace(Counterpart(BACKBONES["wide"], "u8"), {65_540: 9})
    yield _one_file("sparse-empty-block", "6.8", "wide", last)


def _xdelta() -> Iterator[Valid]:
    for home, name in (("one", "w"), ("half", "up"), ("full", "down")):
        base = BACKBONES[home][name]
        tuned = moved(base, "x")
        tuned[:4] = [-tuned[0], 0.0, -0.0, 1.0]
        data = pack(base.dtype, tuned)
        plain, bucket = (xdelta(Counterpart(BACKBONES[home], name), data, bucket=on) for on in (False, True))
        yield _one_file(f"xdelta-{base.dtype.lower()}", "6.9", home, plain)
        yield _one_file(f"xdelta-{base.dtype.lower()}-bucket", "6.9", home, bucket)
    full = BACKBONES["full"]
    grown = Counterpart(full, "bias", tail=random_dense("t", "F32", [3]))
    yield _one_file("xdelta-grown", "5.6", "full", xdelta(grown, pack("F32", moved(full["bias"], "x"))))


def _real_frames() -> Iterator[Valid]:
    """Frames with compressed blocks, made once with zstandard 0.25 at level 1."""
    ramp = Dense(dtype="F32", shape=[8, 64], data=pack("F32", [float(i % 37) for i in range(512)]))
    tensor = set_frames(added("ramp", ramp), [bytes.fromhex(REAL_FRAMES["ramp"])])
    yield _one_file("zstd-raw", "8.2", "one", tensor, needs=["zstd"])
    down = BACKBONES["full"]["down"]
    exact = xdelta(Counterpart(BACKBONES["full"], "down"), pack("F32", unpack("F32", down.data)[::-1]), bucket=True)
    yield _one_file(
        "zstd-xdelta", "8.2", "full", set_frames(exact, [bytes.fromhex(REAL_FRAMES["down"])]), needs=["zstd"]
    )


def _fields() -> Iterator[Valid]:
    side, d = _side("one", "w")
    signs = sign1(side, d)

    def one(name: str, clause: str, *more: Tensor, **rest: Any) -> Valid:
        return Valid(name=name, clause=clause, base="one", draft=_draft("one", signs, *more, **rest))

    nested: Any = {"deep": 1}
    for _ in range(8):  # with the objects around it, 12 levels: the most that clause 3.1 allows
        nested = [nested]
    values = [nested, True, False, '"quoted" \\ and / ~', 2**53 - 1, 0, {}, []]
    yield one("ext", "5.1", fields={"ext": {"acme-corp.build_1": values, "z.z": ""}})
    yield one("described", "5.1", fields={"position": 're:^w$ "x" \\', "task": "math-7B.v1_2"})
    yield one("minor-version", "12.1", version="1.27")
    attach = {"README.md": b"# what it does\n", "_merges.txt": b"", "tokenizer.json": b"{}" * 40}
    yield one("attachments", "5.9", attach=attach)
    architecture = Draft(backbone=BACKBONES["one"], tensors=[signs]).manifest({})["backbone"] | {
        "architecture": "LlamaForCausalLM"
    }
    yield one("architecture", "10.2", fields={"backbone": architecture})
    renamed = sign1(*_side("one", "w", as_name="blocks/0:w+b"))
    yield Valid(name="other-name", clause="5.4", base="one", draft=_draft("one", renamed))
    embed = sign1(*_side("tied", "embed"))
    yield Valid(
        name="alias",
        clause="5.8",
        base="tied",
        draft=Draft(backbone=BACKBONES["tied"], tensors=[embed], fields={"alias": [["head", "embed"]]}),
    )
    twin = added("new", random_dense("new", "F32", [2]))
    yield one("alias-added", "5.8", twin, fields={"alias": [["new.again", "new"]]})
    yield from _names()
    yield from _routers()


def _names() -> Iterator[Valid]:
    tensors = [sign1(*_side("headed", name)) for name in ("model.norm.weight", "model.w")]
    headed = BACKBONES["headed"]
    fields: dict[str, Any] = {"removed": ["lm_head.weight"], "prefix": {"side": "backbone", "text": "model."}}
    draft = Draft(backbone=headed, tensors=tensors, fields=fields)
    yield Valid(name="prefix-backbone", clause="5.7", base="headed", draft=draft)
    fields = {"prefix": {"side": "tuned", "text": "base_model.model."}}
    yield Valid(name="prefix-tuned", clause="5.7", base="headed", draft=_draft("headed", *tensors, fields=fields))


def _routers() -> Iterator[Valid]:
    mean, scale = random_dense("mean", "F32", [4]), random_dense("scale", "F32", [4])
    linear = {"0.bias": [3], "0.weight": [3, 4]}
    deep = {"0.bias": [5], "0.weight": [5, 4], "1.bias": [3], "1.weight": [3, 5]}
    cases = (
        ("router-linear", "one", linear),
        ("router-two-layers", "one", deep),
        ("router-of-namesake", "namesake", deep),  # its backbone has a tensor `mean` too
    )
    for name, home, shapes in cases:
        tensors = [added(part, random_dense(part, "F32", shape)) for part, shape in shapes.items()]
        tensors += [added("mean", mean), added("scale", scale)]
        router = {"max_tokens": 256, "routes": ["math", "chat", "code"]}
        draft = Draft(backbone=BACKBONES[home], tensors=tensors, fields={"kind": "router", "router": router})
        yield Valid(name=name, clause="5.10", base=home, draft=draft)


def _edges() -> Iterator[Valid]:
    for name, clause, base, draft in edge_drafts(BACKBONES["tied"], BACKBONES["full"]):
        yield Valid(name=name, clause=clause, base=base, draft=draft)
    for name, clause, base, draft in strict_drafts(BACKBONES):
        yield Valid(name=name, clause=clause, base=base, draft=draft)


def valid_vectors() -> list[Valid]:
    """All valid vectors."""
    makers = (_plain, _added, _signs, _codes, _sparse, _xdelta, _real_frames, _fields, _edges)
    return [vector for maker in makers for vector in maker()]

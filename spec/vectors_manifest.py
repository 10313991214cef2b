"""Invalid vectors of the manifest: fields, names, records and parameters (clauses 3, 5, 6.1 to 6.5 and 12)."""

# ruff: noqa: ANN401 - keywords that become fields of JSON have no better type
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vector_tensors import (
    Counterpart,
    added,
    affine,
    noise,
    pack,
    random_dense,
    raw_delta,
    replaced,
    sparse,
    sparse_replace,
    tern1,
    xdelta,
    zero,
)
from vector_writer import Dense, Draft, Json, Tensor
from vectors_spoilt import Invalid, kept, lean, refused, signs, sound
from vectors_valid import BACKBONES, valid_vectors

FIELD = "manifest_field"


def _draft(name: str, clause: str, reason: str, draft: Draft) -> Invalid:
    return refused(name, clause, reason, "header", draft)


def _fields(name: str, reason: str = FIELD, clause: str = "5.1", **fields: Any) -> Invalid:
    return _draft(name, clause, reason, lean(**fields))


def _beside(name: str, reason: str, clause: str, **fields: Any) -> Invalid:
    """Other fields of the manifest beside the record `w`."""
    draft = kept()
    draft.fields = fields
    return _draft(name, clause, reason, draft)


def _edit(name: str, clause: str, reason: str, change: Callable[[Json], object], draft: Draft | None = None) -> Invalid:
    return refused(name, clause, reason, "header", draft, manifest=change)


def field_vectors() -> Iterator[Invalid]:
    """The manifest's own fields, limits of counts, and defaults that are written out."""
    yield refused("manifest-array", "5.1", FIELD, "header", lean(), text=lambda _: "[]")
    yield refused("manifest-text", "5.1", FIELD, "header", lean(), text=lambda _: '""')
    for field in ("backbone", "kind", "tensors"):
        yield _edit(f"{field}-missing", "5.1", FIELD, lambda m, f=field: m.pop(f), lean())  # type: ignore[misc]
    wrong: Json = {"alias": {}, "attach": 0, "backbone": "", "ext": [], "kind": 1, "pools": [], "position": 0}
    wrong |= {"prefix": "model.", "refs": "", "removed": True, "requires": {}, "task": ["math"], "tensors": {}}
    for field, value in wrong.items():
        yield _edit(f"{field}-type", "5.1", FIELD, lambda m, f=field, v=value: m.update({f: v}), lean())  # type: ignore[misc]
    defaults: Json = {"alias": [], "attach": [], "ext": {}, "position": "none", "refs": [], "removed": []}
    for field, value in (defaults | {"requires": [], "task": ""}).items():
        yield _fields(f"{field}-default", "not_canonical", "4.2", **{field: value})
    empty = Draft(backbone=BACKBONES["one"], fields={"removed": ["w"], "pools": {}})
    yield _draft("pools-default", "4.2", "not_canonical", empty)
    yield _fields("field-unknown", created="2026-01-01")
    yield _fields("kind-unknown", kind="lora")
    yield _fields("position-empty", position="")
    yield _fields("position-long", position="x" * 513)
    yield _fields("task-space", task="two words")
    yield _fields("task-dot", task=".hidden")
    yield _fields("task-long", task="x" * 129)
    yield _fields("ext-key-bare", ext={"note": 1})
    yield _fields("ext-key-upper", ext={"Acme.note": 1})
    yield from _requires_and_refs()
    yield from _prefixes()
    yield from _backbone_fields()
    yield from _attachments()
    yield from _routers()


def _requires_and_refs() -> Iterator[Invalid]:
    yield _fields("requires-unknown", "unsupported_feature", "12.2", requires=["sparse-signs"])
    yield _fields("requires-and-unknown-field", "unsupported_feature", "12.2", requires=["planes"], planes=2)
    yield _fields("requires-unsorted", "unsupported_feature", "12.2", requires=["planes", "more-planes"])
    yield _fields("requires-twice", "unsupported_feature", "12.2", requires=["planes", "planes"])
    yield _fields("requires-grammar", FIELD, "12.2", requires=["Sparse"])
    yield _fields("requires-grammar-beside-unknown", FIELD, "12.2", requires=["Sparse", "planes"])
    yield _fields("requires-number", FIELD, "12.2", requires=[1])
    yield _fields("refs-five", "limit_exceeded", "3.1", refs=[f"obm1-sha256:{i:064x}" for i in range(5)])
    yield _fields("refs-path", "bad_digest", "6.7", refs=["../base.obm"])
    yield _fields("refs-bare-digest", "bad_digest", "6.7", refs=["0" * 64])
    yield _fields("refs-upper", "bad_digest", "6.7", refs=["obm1-sha256:" + "A" * 64])


def _prefixes() -> Iterator[Invalid]:
    yield _fields("prefix-side", FIELD, "5.7", prefix={"side": "left", "text": "model."})
    yield _fields("prefix-no-dot", FIELD, "5.7", prefix={"side": "tuned", "text": "model"})
    yield _fields("prefix-empty", FIELD, "5.7", prefix={"side": "tuned", "text": ""})
    yield _fields("prefix-long", FIELD, "5.7", prefix={"side": "tuned", "text": "m" * 512 + "."})
    yield _fields("prefix-text-grammar", FIELD, "5.7", prefix={"side": "tuned", "text": "a b."})
    yield _fields("prefix-text-missing", FIELD, "5.7", prefix={"side": "tuned"})


def _backbone_fields() -> Iterator[Invalid]:
    def backbone(name: str, reason: str, **fields: Any) -> Invalid:
        return _edit(f"backbone-{name}", "10.2", reason, lambda m: m["backbone"].update(fields), lean())

    yield backbone("fingerprint-upper", "bad_digest", fingerprint="A" * 64)
    yield backbone("fingerprint-63", "bad_digest", fingerprint="0" * 63)
    yield backbone("fingerprint-prefixed", "bad_digest", fingerprint="sha256:" + "0" * 64)
    yield backbone("fingerprint-number", FIELD, fingerprint=0)
    yield backbone("count-text", FIELD, n_params="210")
    yield backbone("count-boolean", FIELD, n_tensors=True)
    yield backbone("architecture-space", FIELD, architecture="a b")
    yield backbone("architecture-default", "not_canonical", architecture="")
    yield backbone("field-unknown", FIELD, path="/models/base")
    yield _edit("backbone-fingerprint-missing", "10.2", FIELD, lambda m: m["backbone"].pop("fingerprint"))
    yield _edit("pool-digest-upper", "7.3", "bad_digest", lambda m: m["pools"]["alphas"].update(sha256="A" * 64))
    yield _edit("pool-field-unknown", "7.3", FIELD, lambda m: m["pools"]["alphas"].update(crc32=0))
    yield _edit("pool-unknown", "7.3", FIELD, lambda m: m["pools"].update(zeros={"nbytes": 1, "sha256": "0" * 64}))


def _attachments() -> Iterator[Invalid]:
    def attach(name: str, reason: str, *files: str) -> Invalid:
        draft = lean()
        draft.attach = dict.fromkeys(files, b"")
        return _draft(f"attach-{name}", "5.9", reason, draft)

    names = {
        "python": "run.py",
        "pickle": "router.pkl",
        "no-extension": "README",
        "hidden": ".json",
        "long": "x" * 124 + ".json",
    }
    names |= {
        "traversal": "../a.json",
        "folder": "a/b.json",
        "backslash": "..\\a.json",
        "case": "a.JSON",
        "space": "a b.txt",
    }
    for name, file in names.items():
        yield attach(name, "bad_name", file)
    yield attach("unsorted", "duplicate_name", "b.txt", "a.txt")
    yield attach("sixty-five", "limit_exceeded", *(f"{i:02}.txt" for i in range(65)))
    twice = [{"name": "a.txt", "nbytes": 0}] * 2
    yield _edit("attach-twice", "5.9", "duplicate_name", lambda m: m.update(attach=twice), sound(attach={"a.txt": b""}))
    large = [{"name": "a.txt", "nbytes": 2**26 + 1}]
    yield _edit(
        "attach-large", "3.1", "limit_exceeded", lambda m: m.update(attach=large), sound(attach={"a.txt": b"x"})
    )
    media = [{"media": "text/plain", "name": "a.txt", "nbytes": 1}]
    yield _edit("attach-field-unknown", "5.9", FIELD, lambda m: m.update(attach=media), sound(attach={"a.txt": b"x"}))


def _routers() -> Iterator[Invalid]:
    drafts = {vector.name: vector.draft for vector in valid_vectors() if vector.name.startswith("router")}
    linear = drafts["router-linear"]

    def router(name: str, change: Callable[[Json], object], reason: str = FIELD) -> Invalid:
        return _edit(f"router-{name}", "5.10", reason, change, linear)

    yield router("missing", lambda m: m.pop("router"))
    yield router("kind", lambda m: m.update(kind="task-vector"))
    yield router("routes-fewer", lambda m: m["router"]["routes"].pop())
    yield router("routes-twice", lambda m: m["router"].update(routes=["math", "math", "code"]))
    yield router("no-tokens", lambda m: m["router"].update(max_tokens=0))
    yield router("route-grammar", lambda m: m["router"].update(routes=["math", "a b", "code"]))
    yield router("field-unknown", lambda m: m["router"].update(temperature=1))
    fields = linear.fields
    for name, tensors in {
        "no-scale": [t for t in linear.tensors if t.record["name"] != "scale"],
        "extra-tensor": [*linear.tensors, added("zero", random_dense("z", "F32", [1]))],
        "f16": [*linear.tensors[:3], added("scale", random_dense("z", "F16", [4]))],
        "scale-longer": [*linear.tensors[:3], added("scale", random_dense("z", "F32", [5]))],
        "bias-longer": [added("0.bias", random_dense("z", "F32", [4])), *linear.tensors[1:]],
        "no-width": [
            linear.tensors[0],
            _empty("0.weight", 3, 0),
            _empty("mean", 0),
            _empty("scale", 0),
        ],
        "weight-turned": [linear.tensors[0], added("0.weight", random_dense("z", "F32", [4, 3])), *linear.tensors[2:]],
    }.items():
        draft = Draft(backbone=linear.backbone, tensors=tensors, fields=fields)
        yield _draft(f"router-{name}", "5.10", FIELD, draft)
    yield router("routes-none", lambda m: m["router"].update(routes=[]))
    yield from _deep_routers(drafts["router-two-layers"])


def _deep_routers(deep: Draft) -> Iterator[Invalid]:
    narrow = added("1.weight", random_dense("z", "F32", [3, 4]))
    tensors = [narrow if tensor.record["name"] == "1.weight" else tensor for tensor in deep.tensors]
    broken = Draft(backbone=deep.backbone, tensors=tensors, fields=deep.fields)
    yield _draft("router-layers-broken", "5.10", FIELD, broken)
    hollow = {t.record["name"]: t for t in (_empty("0.bias", 0), _empty("0.weight", 0, 4), _empty("1.weight", 3, 0))}
    tensors = [hollow.get(tensor.record["name"], tensor) for tensor in deep.tensors]
    yield _draft(
        "router-no-inner-width", "5.10", FIELD, Draft(backbone=deep.backbone, tensors=tensors, fields=deep.fields)
    )


def _empty(name: str, *shape: int) -> Tensor:
    return added(name, Dense(dtype="F32", shape=[*shape], data=b""))


def name_vectors() -> Iterator[Invalid]:
    """Names, aliases and the order of lists (clauses 5.3 and 5.8)."""
    names = {
        "empty": "",
        "long": "x" * 513,
        "parent": "../x",
        "inner-parent": "a/../b",
        "root": "/etc/x",
        "dot": "a/./b",
    }
    names |= {"double-slash": "a//b", "trailing-slash": "a/", "backslash": "a\\b", "space": "a b", "hash": "w#bits0"}
    names |= {"metadata": "__metadata__", "percent": "a%2fb", "one-dot": ".", "quote": 'a"b'}
    for name, text in names.items():
        yield _draft(f"name-{name}", "5.3", "bad_name", _hollow(text))
    look_alike = _hollow("weight")
    yield refused(
        "name-look-alike",
        "4.1",
        "bad_encoding_of_text",
        "header",
        look_alike,
        text=lambda text: text.replace("weight", "w\\u0435ight"),
    )
    yield _draft("names-unsorted", "5.3", "duplicate_name", _hollow("b", "a"))
    yield _draft("name-twice", "5.3", "duplicate_name", _hollow("a", "a"))
    yield _beside("name-removed-too", "duplicate_name", "5.3", removed=["w"])
    yield _beside("name-alias-too", "duplicate_name", "5.3", alias=[["w", "w"]])
    yield _beside("alias-removed-too", "duplicate_name", "5.3", alias=[["v", "w"]], removed=["v"])
    yield _fields("removed-unsorted", "duplicate_name", removed=["b", "a"])
    yield _fields("removed-twice", "duplicate_name", removed=["a", "a"])
    yield _fields("removed-grammar", "bad_name", "5.3", removed=["a b"])
    yield _fields("removed-number", removed=[1])
    yield _beside("alias-unsorted", "duplicate_name", "5.8", alias=[["b", "w"], ["a", "w"]])
    yield _beside("alias-twice", "duplicate_name", "5.8", alias=[["a", "w"], ["a", "w"]])
    yield _beside("alias-grammar", "bad_name", "5.3", alias=[["../a", "w"]])
    yield _beside("alias-of-nothing", FIELD, "5.8", alias=[["a", "v"]])
    yield _beside("alias-of-alias", FIELD, "5.8", alias=[["a", "b"], ["b", "w"]])
    yield _beside("alias-triple", FIELD, "5.8", alias=[["a", "w", "w"]])
    yield _beside("alias-object", FIELD, "5.8", alias=[{"name": "a", "target": "w"}])


def _hollow(*names: str) -> Draft:
    """Added tensors without elements, hence without parts, of whose names JSON would say the first word."""
    draft = lean()
    draft.tensors = [added(name, Dense(dtype="F32", shape=[0], data=b"")) for name in names]
    return draft


def _record(name: str, clause: str, reason: str, /, **fields: Any) -> Invalid:
    """The record of `kept()` with other fields; None takes one away."""
    return _edit(name, clause, reason, lambda m: _set(m["tensors"][0], fields), kept())


def _set(record: Json, fields: Json) -> None:
    record.update(fields)
    for field in [field for field, value in record.items() if value is None]:
        del record[field]


def _params(name: str, clause: str, reason: str, /, **params: Any) -> Invalid:
    """The parameters of the record of `sound()`: alpha row and others."""
    return _edit(name, clause, reason, lambda m: _set(m["tensors"][0]["params"], params))


def record_vectors() -> Iterator[Invalid]:
    """Tensor records and their parameters (clauses 5.2 to 5.6 and 6)."""
    for field in ("dtype", "encoding", "name", "shape"):
        yield _record(f"record-{field}-missing", "5.2", FIELD, **{field: None})
    yield _record("record-field-unknown", "5.2", FIELD, role="mlp")
    yield _edit("record-not-object", "5.2", FIELD, lambda m: m.update(tensors=["w"]))
    yield _record("record-name-number", "5.2", FIELD, name=7)
    yield _record("dtype-unknown", "1.2", FIELD, dtype="F12")
    yield _record("dtype-lower", "1.2", FIELD, dtype="bf16")
    yield _record("shape-text", "5.2", FIELD, shape=["3", 70])
    yield _record("shape-boolean", "5.2", FIELD, shape=[True, 210])
    yield _record("mode-default", "4.2", "not_canonical", mode="delta")
    yield _record("mode-unknown", "5.4", "unknown_encoding", mode="multiply")
    yield _record("encoding-unknown", "5.4", "unknown_encoding", encoding="lowrank")
    yield _draft("sign1-replace", "5.4", "unknown_encoding", _with(signs(), mode="replace"))
    yield _draft("sign1-added", "5.4", "unknown_encoding", _with(signs(), mode="added"))
    yield from _modes()
    yield from _bases()
    yield from _shapes()
    yield from _sign_params()
    yield from _other_params()


def _modes() -> Iterator[Invalid]:
    new = added("new", random_dense("new", "F32", [2]))
    for encoding in ("zero", "sparse", "xdelta"):
        record = new.record | {"encoding": encoding}
        yield _draft(f"{encoding}-added", "5.4", "unknown_encoding", sound(signs(), Tensor(record=record, out=b"")))
    yield _record("zero-replace", "5.4", "unknown_encoding", mode="replace")
    exact = _xdelta("w")
    exact.record["mode"] = "replace"
    yield _draft("xdelta-replace", "5.4", "unknown_encoding", sound(exact))


def _xdelta(name: str) -> Tensor:
    base = BACKBONES["one"][name]
    return xdelta(Counterpart(BACKBONES["one"], name), base.data[::-1])


def _bases() -> Iterator[Invalid]:
    yield _record("base-same-dtype", "5.4", "not_canonical", base={"dtype": "BF16"})
    yield _record("base-same-name", "5.4", "not_canonical", base={"name": "w"})
    yield _record("base-same-shape", "5.4", "not_canonical", base={"shape": [3, 70]})
    yield _record("base-empty", "5.4", "not_canonical", base={})
    yield _record("base-field-unknown", "5.4", FIELD, base={"sha256": "0" * 64})
    yield _record("base-name-grammar", "5.3", "bad_name", base={"name": "../w"})
    yield _record("base-name-metadata", "5.3", "bad_name", base={"name": "__metadata__"})
    yield _record("base-dtype-integer", "5.5", "bad_params", base={"dtype": "I16"})
    fresh = added("new", random_dense("new", "F32", [2]))
    fresh.record["base"] = {"name": "old"}
    yield _draft("base-of-added", "5.4", FIELD, sound(signs(), fresh))
    tiny = BACKBONES["tiny"]
    signed_ids = signs()
    signed_ids.record = {**signed_ids.record, "dtype": "I16"}
    yield _draft("sign1-integer", "5.5", "bad_params", sound(signed_ids))
    cast = zero(Counterpart(tiny, "ids"))
    cast.record = {**cast.record, "dtype": "F32", "base": {"dtype": "I64"}}
    yield _draft("zero-integer-cast", "5.5", "bad_params", sound(cast, base="tiny"))
    exact = _xdelta("w")
    exact.record = {**exact.record, "base": {"dtype": "F16"}}
    yield _draft("xdelta-other-dtype", "5.6", "bad_params", sound(exact))
    listed = sparse_replace(Counterpart(BACKBONES["full"], "bias"), {1: 4.0})
    listed.record = {**listed.record, "base": {"dtype": "I32"}}
    yield _draft("sparse-replace-other-dtype", "5.6", "bad_params", sound(listed, base="full"))
    listed = sparse_replace(Counterpart(BACKBONES["full"], "bias"), {1: 4.0})
    listed.record = {**listed.record, "base": {"shape": [3, 3]}}
    yield _draft("sparse-replace-other-shape", "5.6", "bad_shape", sound(listed, base="full"))


def _shapes() -> Iterator[Invalid]:
    yield _record("shape-rank-9", "3.1", "limit_exceeded", shape=[1] * 7 + [3, 70])
    yield _record("shape-rank-100", "3.1", "limit_exceeded", shape=[1] * 100)
    yield _record("shape-2-to-53", "3.1", "bad_shape", shape=[2**26, 2**27])
    yield _record("shape-wraps", "3.1", "bad_shape", shape=[2**32, 2**32])
    yield _record("shape-hollow-wraps", "3.1", "bad_shape", shape=[2**32, 2**32, 0])
    yield _record("shape-hollow-first-wraps", "3.1", "bad_shape", shape=[0, 2**32, 2**32])
    yield _record("base-shape-wraps", "3.1", "bad_shape", base={"shape": [2**32, 2**32]})
    for name, shape in {
        "fewer-rows": [4, 70],
        "other-columns": [3, 71],
        "other-rank": [210],
        "turned": [70, 3],
    }.items():
        yield _record(f"delta-{name}", "5.6", "bad_shape", base={"shape": shape})
    yield _record("delta-scalar", "5.6", "bad_shape", base={"shape": []})
    hollow = {"hollow": Dense(dtype="F32", shape=[0, 4], data=b"")}
    for encoding, params in (("sign1", None), ("affine", {"bits": 2}), ("tern1", None)):
        record: Json = {"dtype": "F32", "encoding": encoding, "name": "hollow", "shape": [0, 4]}
        record |= {"params": params} if params else {}
        alphas = b"\0" * 8 if params else b"\0\0"
        draft = Draft(backbone=hollow, tensors=[Tensor(record=record, base=b"", alphas=alphas)])
        yield _draft(f"{encoding}-no-elements", "6.1", "bad_shape", draft)


def _sign_params() -> Iterator[Invalid]:
    yield _draft("params-default", "6.5", "not_canonical", _with(signs(planes=1), params={}))
    defaults: dict[str, Json] = {
        "alpha-dtype": {"alpha_dtype": "F16"},
        "gain": {"gain": "1"},
        "planes": {"planes": 1},
        "rows": {"rows": 3},
        "rule": {"rule": "mean"},
    }
    for name, params in defaults.items():
        yield _params(f"{name}-default", "4.2", "not_canonical", **params)
    yield _draft("alpha-default", "4.2", "not_canonical", _with(signs(planes=1), params={"alpha": "matrix"}))
    yield _params("params-unknown", "4.2", FIELD, scale=1)
    yield _record("params-array", "5.2", FIELD, params=[])
    yield _params("planes-zero", "6.5", "bad_params", planes=0)
    yield _params("planes-text", "6.5", FIELD, planes="1")
    five = signs(planes=4)
    five.parts["bits4"], five.alphas = five.parts["bits3"], five.alphas + five.alphas[-2:]
    yield _draft("planes-five", "6.5", "bad_params", _with(five, params={"planes": 5}))
    yield from _alpha_params()


def _alpha_params() -> Iterator[Invalid]:
    yield _params("alpha-unknown", "6.3", "bad_params", alpha="column")
    yield _params("alpha-dtype-unknown", "6.3", "bad_params", alpha_dtype="BF16")
    yield _params("rule-unknown", "6.4", "bad_params", rule="median")
    for name, gain in {"empty": "", "exponent": "1e3", "negative": "-1", "five-digits": "12345", "dot": "1."}.items():
        yield _params(f"gain-{name}", "6.4", "bad_params", gain=gain)
    yield _params("gain-number", "6.4", FIELD, gain=2)
    for name, group in {"zero": 0, "65": 65, "32": 32}.items():
        yield _params(f"group-{name}", "6.3", "bad_params", alpha="group", group=group)
    yield _params("group-missing", "6.3", "bad_params", alpha="group")
    yield _params("group-of-rows", "6.3", "bad_params", group=64)
    yield _params("blocks-of-rows", "6.3", "bad_params", blocks=[[1, 1], [1, 2]])
    blocks: Json = {
        "short": [[1, 2]],
        "long": [[1, 2], [2, 1]],
        "neighbours": [[1, 1], [2, 1]],
        "zero": [[0, 7], [1, 3]],
    }
    blocks |= {"hollow": [[1, 3], [4, 0]], "none": []}
    for name, runs in blocks.items():
        yield _params(f"blocks-{name}", "6.3", "bad_params", alpha="block", blocks=runs)
    yield _params("blocks-missing", "6.3", "bad_params", alpha="block")
    yield _params("blocks-triple", "6.3", FIELD, alpha="block", blocks=[[1, 3, 1]])
    yield _params("blocks-numbers", "6.3", FIELD, alpha="block", blocks=[3])
    for name, rows in {"zero": 0, "divisor": 6, "columns": 70, "beyond": 420}.items():
        yield _params(f"rows-{name}", "6.1", "bad_params", rows=rows)
    base = BACKBONES["one"]
    ternary = tern1(Counterpart(base, "w"), noise("t", 210, 0.01))
    ternary.record = {**ternary.record, "params": {"planes": 2}}
    yield _draft("tern1-planes", "6.5", FIELD, sound(ternary))


def _with(tensor: Tensor, **fields: Any) -> Draft:
    tensor.record = {**tensor.record, **fields}
    return sound(tensor)


def _other_params() -> Iterator[Invalid]:
    yield from _coded_params()
    yield from _raw_params()
    yield from _sparse_params()
    yield from _xdelta_params()
    yield _draft("sign1-framed", "8.1", FIELD, _with(signs(), params={"alpha": "row", "zstd_nbytes": 27}))
    yield _record("zero-params", "6.5", FIELD, params={"rows": 210})


def _coded_params() -> Iterator[Invalid]:
    side, d = Counterpart(BACKBONES["one"], "w"), noise("q", 210, 0.01)
    for bits in (0, 1, 5, 9, 16):
        yield _draft(f"affine-bits-{bits}", "6.5", "bad_params", _with(affine(side, d, 8), params={"bits": bits}))
    yield _draft("affine-bits-missing", "6.5", FIELD, _with(affine(side, d, 8), params={"rows": 210}))
    yield _draft("rtvq-no-refs", "6.7", "bad_params", _with(affine(side, d, 2), encoding="rtvq"))
    late = sound(affine(side, d, 2), fields={"refs": ["obm1-sha256:" + "0" * 64]})
    beyond: Json = {"encoding": "rtvq", "params": {"bits": 2, "ref": 1}}
    yield _edit("rtvq-ref-beyond", "6.7", "bad_params", lambda m: m["tensors"][0].update(beyond), late)


def _raw_params() -> Iterator[Invalid]:
    side, d = Counterpart(BACKBONES["one"], "w"), noise("q", 210, 0.01)
    whole = replaced(BACKBONES["one"], "w", random_dense("r", "F32", [2]))
    yield _draft("raw-replace-value-dtype", "6.5", FIELD, _with(whole, params={"value_dtype": "F16"}))
    delta: dict[str, tuple[str, str, Json]] = {
        "value-dtype-integer": ("6.5", "bad_params", {"params": {"value_dtype": "I16"}}),
        "value-dtype-default": ("4.2", "not_canonical", {"params": {"value_dtype": "BF16"}}),
        "delta-base-integer": ("5.5", "bad_params", {"base": {"dtype": "I16"}}),
    }
    for name, (clause, reason, fields) in delta.items():
        yield _draft(f"raw-{name}", clause, reason, _with(raw_delta(side, d), **fields))
    framed: Json = {"dtype": "F32", "encoding": "raw", "mode": "added", "name": "h", "shape": [0]}
    hollow = lean()
    hollow.tensors = [Tensor(record=framed | {"params": {"zstd_nbytes": 9}}, out=b"", parts={"data": b"x" * 9})]
    yield _draft("raw-framed-no-elements", "6.5", "bad_params", hollow)


def _sparse_params() -> Iterator[Invalid]:
    delta: dict[str, tuple[str, str, Json]] = {
        "nnz-missing": ("6.5", FIELD, {"params": {"value_dtype": "F16"}}),
        "nnz-beyond": ("6.8", "bad_params", {"params": {"nnz": 211}}),
        "value-dtype": ("6.5", "bad_params", {"params": {"nnz": 1, "value_dtype": "I32"}}),
        "value-dtype-default": ("4.2", "not_canonical", {"params": {"nnz": 1, "value_dtype": "F32"}}),
        "delta-base-integer": ("5.5", "bad_params", {"base": {"dtype": "I16"}}),
    }
    for name, (clause, reason, fields) in delta.items():
        listed = sparse(Counterpart(BACKBONES["one"], "w"), {1: 0.5})
        yield _draft(f"sparse-{name}", clause, reason, _with(listed, **fields))
    chosen = sparse_replace(Counterpart(BACKBONES["full"], "bias"), {1: 4.0})
    chosen.record = {**chosen.record, "params": {"nnz": 1, "value_dtype": "F32"}}
    yield _draft("sparse-replace-value-dtype", "6.5", FIELD, sound(chosen, base="full"))


def _xdelta_params() -> Iterator[Invalid]:
    side, data = Counterpart(BACKBONES["one"], "w"), pack("BF16", noise("q", 210, 0.01))
    frames = xdelta(side, data).record["params"]
    exact: dict[str, tuple[str, Json]] = {
        "not-framed": (FIELD, {"bucket": True}),
        "zero-bytes": ("bad_params", {"zstd_nbytes": 0}),
        "bucket-default": ("not_canonical", {**frames, "bucket": False}),
        "bucket-number": (FIELD, {**frames, "bucket": 1}),
    }
    for name, (reason, params) in exact.items():
        yield _draft(f"xdelta-{name}", "6.5", reason, _with(xdelta(side, data), params=params))
    yield _draft("xdelta-integer", "6.9", "bad_params", _integers())


def _integers() -> Draft:
    """A backbone of integers whose differences are stored as if they were floats'."""
    backbone = {"w": Dense(dtype="I16", shape=[4], data=bytes(8))}
    side = Counterpart({"w": Dense(dtype="BF16", shape=[4], data=bytes(8))}, "w")
    tensor = xdelta(side, bytes([0, 1] * 4))
    tensor.record = {**tensor.record, "dtype": "I16"}
    return Draft(backbone=backbone, tensors=[tensor])

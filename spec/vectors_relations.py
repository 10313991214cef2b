"""Invalid vectors of how names relate: counterparts, new and removed names, prefixes, routers, whole backbones."""

from __future__ import annotations

from collections.abc import Iterator

from vector_tensors import Counterpart, added, random_dense, zero
from vector_writer import Backbone, Dense, Draft, Json, Tensor, checkpoint_bytes
from vectors_spoilt import Invalid, refused, signs, sound, with_base
from vectors_valid import BACKBONES, valid_vectors

FIELD = "manifest_field"


def relation_vectors() -> Iterator[Invalid]:
    """Clauses 5.3, 5.7, 5.8, 5.10, 6.7, 10.4 and 10.5."""
    yield from _references()
    yield from _counterparts()
    yield from _prefixes()
    yield from _routers()
    yield from _new_names()
    yield from _shared_counterparts()
    yield from _whole_backbones()


def _header(name: str, clause: str, reason: str, draft: Draft) -> Invalid:
    return refused(name, clause, reason, "header", draft)


def _references() -> Iterator[Invalid]:
    ids = [f"obm1-sha256:{digit * 64}" for digit in "01"]
    yield _header("refs-twice", "6.7", "duplicate_name", sound(fields={"refs": [ids[0], ids[0]]}))
    yield _header("refs-unsorted", "6.7", "duplicate_name", sound(fields={"refs": ids[::-1]}))


def _renamed(name: str, counterpart: str, base: str = "tied") -> Tensor:
    """A `zero` record called `name` whose counterpart is called otherwise."""
    return zero(Counterpart(BACKBONES[base], counterpart, as_name=name))


def _new(name: str) -> Tensor:
    return added(name, random_dense("new", "F32", [2]))


def _counterparts() -> Iterator[Invalid]:
    tied = BACKBONES["tied"]
    records = [_renamed("a", "embed"), _renamed("head", "head")]
    gone = Draft(backbone=tied, tensors=records, fields={"removed": ["embed"]})
    yield _header("counterpart-removed", "5.3", "duplicate_name", gone)
    new = Draft(backbone=tied, tensors=[_renamed("a", "embed"), _new("embed"), _renamed("head", "head")])
    yield _header("counterpart-added", "5.3", "duplicate_name", new)
    fields: Json = {"alias": [["embed", "b"]]}
    again = Draft(backbone=tied, tensors=[_renamed("a", "embed"), _new("b"), _renamed("head", "head")], fields=fields)
    yield _header("counterpart-alias-of-added", "5.3", "duplicate_name", again)


def _prefix(side: str, text: str) -> Json:
    return {"prefix": {"side": side, "text": text}}


def _prefixes() -> Iterator[Invalid]:
    headed, names = BACKBONES["headed"], ("lm_head.weight", "model.norm.weight", "model.w")
    records = [zero(Counterpart(headed, name)) for name in names]
    whole = Draft(backbone=headed, tensors=records, fields=_prefix("backbone", "model."))
    yield _header("prefix-lacking", "5.7", FIELD, whole)
    tensors = [Tensor(record={**records[0].record, "name": "model."}, base=records[0].base), *records[1:]]
    tensors[0].record["base"] = {"name": "lm_head.weight"}
    bare = Draft(backbone=headed, tensors=tensors, fields=_prefix("backbone", "model."))
    yield _header("prefix-alone", "5.7", FIELD, bare)
    fields = _prefix("backbone", "model.") | {"alias": [["lm_head.weight", "model.w"]]}
    alias = Draft(backbone=headed, tensors=records[1:], fields=fields)
    yield _header("prefix-lacking-in-alias", "5.7", FIELD, alias)
    one = zero(Counterpart(BACKBONES["one"], "w"))
    twice = Draft(backbone=BACKBONES["one"], tensors=[_new("m.w"), one], fields=_prefix("tuned", "m."))
    yield _header("prefix-tuned-twice", "5.7", "duplicate_name", twice)
    tensors = [records[1], records[2], _new("w")]
    fields = _prefix("backbone", "model.") | {"removed": ["lm_head.weight"]}
    twice = Draft(backbone=headed, tensors=tensors, fields=fields)
    yield _header("prefix-backbone-twice", "5.7", "duplicate_name", twice)


def _routers() -> Iterator[Invalid]:
    (linear,) = [vector.draft for vector in valid_vectors() if vector.name == "router-linear"]
    more: dict[str, Json] = {
        "alias": {"alias": [["average", "mean"]]},
        "prefix": _prefix("tuned", "m."),
        "refs": {"refs": ["obm1-sha256:" + "0" * 64]},
        "removed": {"removed": ["w"]},
    }
    for name, fields in more.items():
        draft = Draft(backbone=linear.backbone, tensors=linear.tensors, fields=linear.fields | fields)
        yield _header(f"router-{name}", "5.10", FIELD, draft)
    other = checkpoint_bytes({"w": random_dense("other", "BF16", [3, 70])})
    yield with_base("base-router-other", "10.5", "backbone_mismatch", linear, "one-noise", other)


def _new_names() -> Iterator[Invalid]:
    """What the backbone must not have: it is refused for that, not for being more than the list."""
    more = BACKBONES["one"] | {"new": random_dense("x", "F32", [1])}
    draft = sound(_new("new"))
    yield with_base("base-has-added", "5.4", "base_tensor", draft, "one-and-new", checkpoint_bytes(more))
    draft = sound(_new("a"), fields={"alias": [["new", "a"]]})
    yield with_base("base-has-alias-of-added", "5.8", "base_tensor", draft, "one-and-new", checkpoint_bytes(more))


def _shared_counterparts() -> Iterator[Invalid]:
    """Two records of one backbone tensor, of which the first says what is not so."""
    forged, other = _renamed("a", "w", "one"), _renamed("a", "w", "one")
    forged.base = bytes(420)
    yield with_base("base-digest-forged-of-two", "10.3", "base_digest", sound(forged, signs()), "one")
    other.record["dtype"] = "F16"
    yield with_base("base-dtype-other-of-two", "10.3", "base_tensor", sound(other, signs()), "one")


def _whole_backbones() -> Iterator[Invalid]:
    (kept,) = [vector.draft for vector in valid_vectors() if vector.name == "prefix-backbone"]
    other: Backbone = BACKBONES["headed"] | {"lm_head.weight": random_dense("other", "F32", [2, 3])}
    yield with_base("base-other-removed", "10.5", "backbone_mismatch", kept, "headed-other", checkpoint_bytes(other))
    tied = BACKBONES["tied"]
    partial = Draft(backbone=tied, tensors=[_renamed("embed", "embed")])
    yield with_base("base-not-all-listed", "10.4", "backbone_mismatch", partial, "tied")
    for count in ("n_params", "n_tensors"):
        draft = sound(signs())
        named: Json = draft.manifest(draft.pools())["backbone"]
        draft.fields = {"backbone": named | {count: named[count] + 1}}
        yield with_base(f"base-{count.replace('_', '-')}", "10.5", "backbone_mismatch", draft, "one")
    wide = {
        "w": Dense(dtype="BF16", shape=[3, 70], data=BACKBONES["one"]["w"].data),
        "x": random_dense("x", "F32", [1]),
    }
    forged = signs()
    forged.base = bytes(420)
    yield with_base("base-digest-forged", "10.3", "base_digest", sound(forged), "one")
    shared = sound(fields={"kind": "rtvq-base"})
    yield with_base("base-of-rtvq-base", "10.5", "backbone_mismatch", shared, "one-one-more", checkpoint_bytes(wide))

"""One invalid vector, and the sound drafts that the invalid ones start from."""

# ruff: noqa: ANN401 - keywords that become fields of JSON have no better type
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vector_tensors import Counterpart, sign1, step, zero, zeros
from vector_writer import Defect, Draft, Tensor, file_bytes
from vectors_valid import BACKBONES


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalid:
    """One invalid vector.

    Args:
        name: of the file, without `.obm`.
        clause: that the file breaks.
        reason: the code that a reader must give.
        stage: where it must refuse: `header` (on opening), `parts` (on full verification), `decode` (on deep
            verification) or `base` (with the backbone).
        file: its bytes.
        base: name of the checkpoint in `base/` that takes part, or empty.
        checkpoint: bytes of that checkpoint where it is made for this vector.
        refs: names of the valid vectors that the reader is given as well.
    """

    name: str
    clause: str
    reason: str
    stage: str
    file: bytes
    base: str = ""
    checkpoint: bytes | None = None
    refs: tuple[str, ...] = ()


def signs(**choice: Any) -> Tensor:
    """The record `w` of the backbone `one` as sign1, with an alpha per row if no other choice is made."""
    base = BACKBONES["one"]
    return sign1(Counterpart(base, "w"), step(base["w"], "one/w/tuned"), **(choice or {"alpha": "row"}))


def sound(*tensors: Tensor, base: str = "one", **rest: Any) -> Draft:
    """A sound draft of some records (by default `signs()`), with `zero` for what else the backbone has."""
    chosen = tensors or ((signs(),) if base == "one" else ())
    backbone = BACKBONES[base]
    own = {t.record.get("base", {}).get("name", t.record["name"]) for t in chosen}
    records = sorted([*chosen, *zeros(backbone, *own)], key=lambda t: str(t.record["name"]))
    return Draft(backbone=backbone, tensors=records, **rest)


def kept() -> Draft:
    """The smallest sound draft with a record of the backbone's only tensor."""
    return sound(zero(Counterpart(BACKBONES["one"], "w")))


def lean(**fields: Any) -> Draft:
    """The smallest sound draft: the fine-tune lacks the backbone's only tensor, so there are no parts."""
    return Draft(backbone=BACKBONES["one"], fields={"removed": ["w"], **fields})


def refused(name: str, clause: str, reason: str, stage: str, draft: Draft | None = None, **defect: Any) -> Invalid:
    """A draft, spoilt by one defect, as a vector."""
    return Invalid(
        name=name,
        clause=clause,
        reason=reason,
        stage=stage,
        file=file_bytes(draft or sound(), Defect(**defect)),
    )


def with_base(name: str, clause: str, reason: str, draft: Draft, base: str, checkpoint: bytes | None = None) -> Invalid:
    """A sound file, as a vector that only shows with the checkpoint `base`."""
    file = file_bytes(draft)
    return Invalid(name=name, clause=clause, reason=reason, stage="base", file=file, base=base, checkpoint=checkpoint)

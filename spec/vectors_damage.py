"""Invalid vectors of one flipped bit in each kind of part, and of references that are no base vector (6.7, 7)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from vector_tensors import Counterpart, affine, noise, random_dense, raw_delta, rtvq, set_frames, sign1, sparse, tern1
from vector_writer import Draft, Tensor, artifact_id, file_bytes, frames_of
from vectors_spoilt import Invalid, refused, sound, with_base
from vectors_valid import BACKBONES, valid_vectors


def damage_vectors() -> Iterator[Invalid]:
    """What full verification finds in parts of every kind, and what a second artifact must be."""
    yield from _flips()
    yield from _references()


def _flip(name: str, part: str, tensor: Tensor, *, padding: bool = False) -> Invalid:
    """The first bit of a part, or of its padding, is another than the header says."""
    draft = sound(tensor)
    whole = file_bytes(draft)
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    begin, stop = header[part]["data_offsets"]
    place = stop - 1 if padding else begin

    def change(data: bytearray) -> None:
        data[place] ^= 1

    reason, clause = ("pad_not_zero", "2.3") if padding else ("part_digest", "7.2")
    return refused(name, clause, reason, "parts", draft, data=change)


def _flips() -> Iterator[Invalid]:
    one, d = BACKBONES["one"], noise("damage", 210, 0.01)
    side = Counterpart(one, "w")
    framed = raw_delta(side, d)
    framed = set_frames(framed, frames_of(framed.parts["data"], 2))
    grown = sign1(Counterpart(one, "w", tail=random_dense("t", "BF16", [1, 70])), d)
    listed = sparse(side, {3: 0.5, 70: -0.5})
    parts = {
        "frames-flipped": ("#frames", framed),
        "framed-data-flipped": ("w#data", framed),
        "data-flipped": ("w#data", raw_delta(side, d)),
        "tail-flipped": ("w#tail", grown),
        "mask-flipped": ("w#mask", tern1(side, d)),
        "codes-flipped": ("w#codes", affine(side, d, 4)),
        "counts-flipped": ("w#counts", listed),
        "index-flipped": ("w#index", listed),
        "values-flipped": ("w#values", listed),
    }
    for name, (part, tensor) in parts.items():
        yield _flip(name, part, tensor)
    yield _flip("digests-padding", "#digests", grown, padding=True)
    yield _flip("frames-padding", "#frames", framed, padding=True)


def _references() -> Iterator[Invalid]:
    drafts = {vector.name: vector.draft for vector in valid_vectors()}

    def reference(name: str, to: str, tensor: str) -> Invalid:
        side = Counterpart(BACKBONES["full"], tensor)
        numel = len(side.base.data) // 4
        own = rtvq(side, noise("reference", numel, 0.01), 2, [0.0] * numel)
        fields = {"refs": [artifact_id(file_bytes(drafts[to]))]}
        draft: Draft = sound(own, base="full", fields=fields)
        return replace(with_base(f"reference-{name}", "6.7", "bad_reference", draft, "full"), refs=(to,))

    yield reference("other-kind", "affine-constant", "down")
    yield reference("other-backbone", "rtvq-base-tiny", "down")
    yield reference("other-encoding", "rtvq-base-odd", "bias")
    yield reference("other-shape", "rtvq-base-odd", "down")
    yield reference("tensor-missing", "rtvq-base-part", "bias")

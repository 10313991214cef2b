"""How two experts differ: manifest, tensors, parts, and for sign bits how many agree.

Reads headers and digests; of the tensors only sign bits and alphas, where they differ. Never decodes a value.
Source: obm-1 clauses 5 and 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from obm_format.codecs import alphas
from obm_format.codecs.base import Span
from obm_format.container.manifest import manifest_object
from obm_format.container.reader import Container
from obm_format.container.records import record_object
from obm_format.container.sources import Source, open_source
from obm_format.errors import FormatError
from obm_format.expert.parts import RecordParts
from obm_format.layout import columns, packed_row_nbytes, part_layouts
from obm_format.model import SignParams, TensorRecord
from obm_format.remote import reachable

_PIECE = 1 << 20  # bytes compared together
_DIGEST_FIELDS = ("base_sha256", "out_sha256")

Pair = tuple[object, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignAgreement:
    """The first planes of sign bits of one tensor, or of several, side by side.

    Args:
        count: elements with a sign bit on both sides.
        equal: those whose bits are equal.
        alpha_a: mean alpha of the first expert, every element counting once.
        alpha_b: of the second.
    """

    count: int
    equal: int
    alpha_a: float
    alpha_b: float

    @property
    def equal_fraction(self) -> float:
        """Share of equal sign bits, 0 to 1; 0.5 is what chance gives."""
        return self.equal / self.count

    @property
    def alpha_ratio(self) -> float | None:
        """Mean alpha of the second expert over that of the first; None where that is 0."""
        return self.alpha_b / self.alpha_a if self.alpha_a else None

    def as_json(self) -> dict[str, object]:
        """What `obm diff --json` prints of it."""
        return {"count": self.count, "equal_fraction": self.equal_fraction, "alpha_ratio": self.alpha_ratio}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDiff:
    """A tensor of both experts that is not the same in both.

    Args:
        name: in backbone coordinates.
        fields: what the records and their digests say of it, by field, where they differ; None for nothing.
        parts: suffixes of the parts whose bytes differ, or that one side lacks; `alphas` for its alphas.
        signs: where both sides are `sign1` in the same matrix view.
    """

    name: str
    fields: dict[str, Pair]
    parts: tuple[str, ...]
    signs: SignAgreement | None

    def as_json(self) -> dict[str, object]:
        """One entry of `differ` of `obm diff --json`."""
        return {
            "name": self.name,
            "fields": _pairs(self.fields),
            "parts": list(self.parts),
            "signs": self.signs.as_json() if self.signs else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertDiff:
    """What `diff_experts` found.

    Args:
        ids: artifact ids.
        same_backbone: whether both belong to backbones of one fingerprint.
        fields: fields of the manifests that differ, tensors aside; None for a field that is left out.
        attachments: names of attachments in both whose bytes differ.
        only_a: tensors that only the first has.
        only_b: tensors that only the second has.
        same: number of tensors that are the same in both.
        differ: the others that both have, in the order of names.
    """

    ids: tuple[str, str]
    same_backbone: bool
    fields: dict[str, Pair]
    attachments: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    same: int
    differ: tuple[TensorDiff, ...]

    @property
    def identical(self) -> bool:
        """Whether the files are the same, byte for byte."""
        return self.ids[0] == self.ids[1]

    @property
    def signs(self) -> SignAgreement | None:
        """Over all tensors that differ and have sign bits side by side; None where there are none."""
        found = [one.signs for one in self.differ if one.signs is not None]
        count = sum(one.count for one in found)
        if not count:
            return None
        return SignAgreement(
            count=count,
            equal=sum(one.equal for one in found),
            alpha_a=sum(one.alpha_a * one.count for one in found) / count,
            alpha_b=sum(one.alpha_b * one.count for one in found) / count,
        )

    def as_json(self) -> dict[str, object]:
        """What `obm diff --json` prints, without the schema."""
        return {
            "identical": self.identical,
            "ids": list(self.ids),
            "same_backbone": self.same_backbone,
            "fields": _pairs(self.fields),
            "attachments": list(self.attachments),
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "same": self.same,
            "differ": [one.as_json() for one in self.differ],
            "signs": self.signs.as_json() if self.signs else None,
        }


def diff_experts(a: str | Path, b: str | Path) -> ExpertDiff:
    """Compare two experts.

    Args:
        a: an `.obm` file, or its http(s) address.
        b: another one.

    Raises:
        FormatError: a file is not sound; `part_digest` where two files of one artifact id have other bytes.
        ObmError: a file cannot be read.
    """
    with ExitStack() as stack:
        sources = [stack.enter_context(closing(open_source(reachable(path)))) for path in (a, b)]
        first, second = (stack.enter_context(Container.open(source)) for source in sources)
        # obm-1 clause 7.2: the artifact id fixes every byte
        if first.id == second.id and not _same_bytes(*sources):
            raise FormatError(
                "part_digest",
                "two files of one artifact id have other bytes: one is damaged",
                where=f"{a}, {b}",
                hint="`obm verify` says which",
            )
        mine, theirs = ({one.name: one for one in side.manifest.tensors} for side in (first, second))
        common = sorted(mine.keys() & theirs.keys())
        differ = tuple(_tensor_diffs(first, second, [(mine[name], theirs[name]) for name in common]))
        return ExpertDiff(
            ids=(first.id, second.id),
            same_backbone=first.manifest.backbone.fingerprint == second.manifest.backbone.fingerprint,
            fields=_differing(_manifest_fields(first), _manifest_fields(second)),
            attachments=tuple(_other_attachments(first, second)),
            only_a=tuple(sorted(mine.keys() - theirs.keys())),
            only_b=tuple(sorted(theirs.keys() - mine.keys())),
            same=len(common) - len(differ),
            differ=differ,
        )


def _same_bytes(one: Source, other: Source) -> bool:
    if one.nbytes != other.nbytes:
        return False
    pieces = Span(0, one.nbytes).pieces(_PIECE)
    return all(one.read(piece.start, piece.size) == other.read(piece.start, piece.size) for piece in pieces)


def _manifest_fields(side: Container) -> dict[str, object]:
    """The manifest's fields but tensors and pools, with the backbone's one by one."""
    fields = manifest_object(side.manifest, {})
    backbone = fields.pop("backbone")
    assert isinstance(backbone, dict)  # noqa: S101 - our own object
    kept = {name: value for name, value in fields.items() if name not in ("tensors", "pools")}
    return kept | {f"backbone.{name}": value for name, value in backbone.items()}


def _differing(mine: dict[str, object], theirs: dict[str, object]) -> dict[str, Pair]:
    names = sorted(mine.keys() | theirs.keys())
    return {name: (mine.get(name), theirs.get(name)) for name in names if mine.get(name) != theirs.get(name)}


def _other_attachments(first: Container, second: Container) -> Iterator[str]:
    mine, theirs = ({one.name: one.nbytes for one in side.manifest.attachments} for side in (first, second))
    for name in sorted(mine.keys() & theirs.keys()):
        if mine[name] != theirs[name] or first.attachment(name) != second.attachment(name):
            yield name


def _tensor_diffs(
    first: Container, second: Container, pairs: list[tuple[TensorRecord, TensorRecord]]
) -> Iterator[TensorDiff]:
    for mine, theirs in pairs:
        fields = _differing(_fields(first, mine), _fields(second, theirs))
        ours, others = _parts(first, mine), _parts(second, theirs)
        parts = tuple(name for name in {**ours, **others} if ours.get(name) != others.get(name))
        if fields or parts:
            signs = _agreement(first, mine, second, theirs)
            yield TensorDiff(name=mine.name, fields=fields, parts=parts, signs=signs)


def _fields(side: Container, record: TensorRecord) -> dict[str, object]:
    digests = side.digests(record)
    hashes = [value.hex() if value else None for value in (digests.base, digests.out)]
    return record_object(record) | dict(zip(_DIGEST_FIELDS, hashes, strict=True))


def _parts(side: Container, record: TensorRecord) -> dict[str, bytes]:
    """What tells a record's parts apart: their digests, and the alphas themselves."""
    layouts, found = part_layouts(record), side.digests(record).parts
    values = {layout.suffix: value for layout, value in zip(layouts, found, strict=True)}
    alphas_of = side.alphas(record)
    return values | ({"alphas": alphas_of} if alphas_of else {})


def _agreement(first: Container, mine: TensorRecord, second: Container, theirs: TensorRecord) -> SignAgreement | None:
    a, b = mine.params, theirs.params
    if not isinstance(a, SignParams) or not isinstance(b, SignParams):
        return None
    shape = (a.rows, columns(mine, a.rows))
    if shape != (b.rows, columns(theirs, b.rows)):
        return None
    count = mine.encoded_numel
    unequal = 0
    for piece in Span(0, shape[0] * packed_row_nbytes(shape[1], 1)).pieces(_PIECE):
        left, right = (
            int.from_bytes(side.part_range(record, "bits0", piece.start, piece.stop))
            for side, record in ((first, mine), (second, theirs))
        )
        unequal += (left ^ right).bit_count()
    return SignAgreement(
        count=count,
        equal=count - unequal,
        alpha_a=_mean_alpha(RecordParts(first, mine), mine, a),
        alpha_b=_mean_alpha(RecordParts(second, theirs), theirs, b),
    )


def _mean_alpha(parts: RecordParts, record: TensorRecord, params: SignParams) -> float:
    """The mean over the elements of the alpha of the first plane."""
    shape = (params.rows, columns(record, params.rows))
    first = alphas.load(parts.alphas(), params.alpha, shape, params.planes, record.name)[0]
    sizes = np.diff(alphas.group_bounds(params.alpha, *shape))
    return float(np.average(first.astype(np.float64), weights=sizes))


def _pairs(fields: dict[str, Pair]) -> dict[str, object]:
    return {name: {"a": pair[0], "b": pair[1]} for name, pair in fields.items()}

"""Whether an expert, or another checkpoint, belongs to a backbone, tensor by tensor.

Source: obm-1 clauses 10.2 to 10.4.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from obm_format.container.reader import Container
from obm_format.errors import BackboneMismatch
from obm_format.model import Kind, TensorSpec
from obm_registry.manifest.backbone import BackboneTable, BackboneTensor

MAX_DIFFERENCES = 20
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One tensor that is not the backbone's: what is expected of it, and what it is."""

    name: str
    expected: str
    got: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.name}: the expert expects {self.expected}, the backbone has {self.got}"


def require_match(container: Container, table: BackboneTable, where: str) -> None:
    """Refuse an expert that was made against another backbone.

    Args:
        container: the expert; its digest pool is read and verified.
        table: the tensors of the backbone.
        where: the backbone's name, for the message.

    Raises:
        BackboneMismatch: `backbone_mismatch`, with the first differences.
    """
    own = container.manifest.backbone.fingerprint
    found = list(itertools.islice(differences(container, table), MAX_DIFFERENCES))
    if own == table.fingerprint and not found:
        return
    shown = "; ".join(map(str, found[:_SHOWN])) or "no tensor differs, but the fingerprint does"
    if len(found) > _SHOWN:
        more = len(found) - _SHOWN
        shown += f"; and {more} more" if len(found) < MAX_DIFFERENCES else f"; and at least {more} more"
    raise BackboneMismatch(
        "backbone_mismatch",
        f"the expert was made against another backbone: {shown}",
        where=where,
        expected=f"fingerprint {own}",
        got=table.fingerprint,
        hint="push it to the repository of its own backbone, or add that one under another name",
    )


def differences(container: Container, table: BackboneTable) -> Iterator[Difference]:
    """Every backbone tensor that differs from what the expert says of it, in the expert's order."""
    for record in container.manifest.tensors:
        if record.base is None:
            continue
        digest = container.digests(record).base
        row = table.tensors.get(record.base.name)
        # obm-1 clause 10.3
        if row is None:
            yield Difference(name=record.base.name, expected=_looks(record.base), got="no such tensor")
        elif (row.spec.dtype, row.spec.shape) != (record.base.dtype, record.base.shape):
            yield Difference(name=record.base.name, expected=_looks(record.base), got=_looks(row.spec))
        elif row.sha256 != digest:
            expected = f"SHA-256 {digest.hex()[:16]}" if digest else "a digest"
            yield Difference(name=record.base.name, expected=expected, got=f"{row.sha256.hex()[:16]}")
    # a router or a shared base vector does not list the backbone's tensors
    if container.manifest.kind is Kind.TASK_VECTOR:
        yield from _incomplete(container, table)


def table_differences(own: BackboneTable, backbone: BackboneTable) -> Iterator[Difference]:
    """Every tensor in which a checkpoint's table differs from a backbone's, by name."""
    for name in sorted(own.tensors.keys() | backbone.tensors.keys()):
        mine, theirs = own.tensors.get(name), backbone.tensors.get(name)
        if mine != theirs:
            yield Difference(name=name, expected=_describes(theirs, mine), got=_describes(mine, theirs))


def _describes(row: BackboneTensor | None, other: BackboneTensor | None) -> str:
    """What tells a tensor from its counterpart: that it is there, its form, else its bytes."""
    if row is None:
        return "no such tensor"
    if other is None or (row.spec.dtype, row.spec.shape) != (other.spec.dtype, other.spec.shape):
        return _looks(row.spec)
    return f"SHA-256 {row.sha256.hex()[:16]}"


def _incomplete(container: Container, table: BackboneTable) -> Iterator[Difference]:
    manifest = container.manifest
    removed = set(manifest.removed)
    known = {record.base.name for record in manifest.tensors if record.base is not None}
    known |= removed | {name for name, _ in manifest.aliases}
    # obm-1 clause 10.4: the list is complete
    for name, row in table.tensors.items():
        if name not in known:
            yield Difference(name=name, expected="no such tensor", got=_looks(row.spec))
    for name in sorted(removed - table.tensors.keys()):
        yield Difference(name=name, expected="a tensor that the fine-tune lacks", got="no such tensor")


def _looks(spec: TensorSpec) -> str:
    return f"{spec.dtype.name} {list(spec.shape)}"

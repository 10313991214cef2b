"""Whether a file is a sound expert, and whether a checkpoint is its backbone: all defects, not the first one.

Source: obm-1 clauses 10.3 and 14.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from obm_format.checkpoint import Checkpoint, open_checkpoint
from obm_format.container.manifest import new_names
from obm_format.container.reader import Defect
from obm_format.container.table import pool_part_name
from obm_format.errors import FormatError, ObmError
from obm_format.expert import Expert, References, open_expert
from obm_format.model import Kind, TensorSpec
from obm_format.progress import Progress, silent
from obm_format.remote import is_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What `verify_expert` found.

    Args:
        id: artifact id, or None when the header is not sound.
        level: `parts` (every byte hashed), `deep` (also decoded), each with `+base` when a backbone was checked.
        defects: all that is wrong; empty for a sound file.
    """

    id: str | None
    level: str
    defects: list[Defect]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.defects


def verify_expert(
    path: str | Path,
    *,
    base: str | Path | None = None,
    deep: bool = False,
    expected_id: str | None = None,
    refs: Sequence[str | Path] = (),
    mapped: bool = False,
    progress: Progress = silent,
) -> Verification:
    """Check every byte of an expert, and with `base` that this checkpoint is its backbone.

    Args:
        path: an `.obm` file, or its http(s) address.
        base: a checkpoint folder or safetensors file.
        deep: also decode every tensor and check every frame and sum; exact tensors need `base`.
        expected_id: the artifact id that the file must have.
        refs: where to look first for the base vector of `rtvq` tensors, which `deep` needs.
        mapped: hash a file where it lies in memory instead of reading it: faster, but one that is cut short meanwhile,
            or a disk that fails, kills the process (SIGBUS) instead of being a defect (ADR 0046).
        progress: told how many bytes are hashed.

    Returns:
        all defects found; a header that cannot be trusted ends the search.

    Raises:
        ObmError: the file or the checkpoint cannot be read at all.
    """
    level = ("deep" if deep else "parts") + ("+base" if base is not None else "")
    try:
        expert = open_expert(path, expected_id=expected_id, mapped=mapped)
    except FormatError as error:
        return Verification(id=None, level=level, defects=[_defect(error, str(path))])
    with expert, References(refs) as references:
        lacking = list(_reference_defects(expert, references, path)) if deep else []
        if base is None:
            defects = expert.verify("deep" if deep else "parts", progress=progress)
            return Verification(id=expert.id, level=level, defects=defects + lacking)
        with open_checkpoint(base) as backbone:
            defects = expert.verify("parts", progress=progress)
            if all(defect.where != pool_part_name("digests") for defect in defects):
                defects += backbone_defects(expert, backbone)
            defects = defects or list(_fingerprint_defects(expert, backbone))
            if deep and not defects:
                defects = expert.verify_tensors(backbone.words, base_checked=True)
        return Verification(id=expert.id, level=level, defects=defects + lacking)


def backbone_defects(expert: Expert, backbone: Checkpoint) -> Iterator[Defect]:
    """How `backbone` differs from the backbone that `expert` names (obm-1 clauses 5.8, 10.3 and 10.4)."""
    expected = list(_expected_tensors(expert))
    for name in sorted(new_names(expert.manifest) & backbone.tensors.keys()):
        yield Defect(reason="base_tensor", where=name, detail="the expert says that the backbone has no such tensor")
    for name, spec, sha256 in expected:
        found = backbone.tensors.get(name)
        if found is None or spec not in (None, found):
            wanted = "a tensor" if spec is None else _describe(spec)
            got = "no such tensor" if found is None else _describe(found)
            yield Defect(reason="base_tensor", where=name, detail=f"expected {wanted}, got {got}")
        elif sha256 is not None and backbone.sha256(name) != sha256:
            yield Defect(reason="base_digest", where=name, detail="the backbone tensor has other bytes")
    if expert.manifest.kind is not Kind.TASK_VECTOR:
        return  # only a task vector speaks of every tensor
    for name in sorted(backbone.tensors.keys() - {name for name, _, _ in expected}):
        yield Defect(reason="backbone_mismatch", where=name, detail="the expert knows no such backbone tensor")


def _fingerprint_defects(expert: Expert, backbone: Checkpoint) -> Iterator[Defect]:
    """Whether tensors that are all as the expert says still make another backbone (obm-1 clause 10.5)."""
    named = expert.manifest.backbone
    counts = (len(backbone.tensors), sum(spec.numel for spec in backbone.tensors.values()))
    if counts != (named.n_tensors, named.n_params):
        detail = f"expected {named.n_tensors} tensors and {named.n_params} elements, got {counts[0]} and {counts[1]}"
        yield Defect(reason="backbone_mismatch", where="backbone", detail=detail)
    expected, found = named.fingerprint, backbone.fingerprint()
    if found != expected:
        detail = f"expected fingerprint {expected}, got {found}"
        yield Defect(reason="backbone_mismatch", where="backbone", detail=detail)


def _reference_defects(expert: Expert, references: References, path: str | Path) -> Iterator[Defect]:
    """The base vector that an expert refers to and that is not found (obm-1 clause 6.7)."""
    try:
        references.attach(expert, None if is_url(path) else path)
    except FormatError as error:
        yield _defect(error, str(path))


def _expected_tensors(expert: Expert) -> Iterator[tuple[str, TensorSpec | None, bytes | None]]:
    """What an expert says of its backbone's tensors: name, spec and digest, None where it does not say.

    Several records may speak of one tensor (obm-1 clause 5.4), and each has to be right.
    """
    for name in expert.manifest.removed:
        yield name, None, None
    for record in expert.records.values():
        if record.base is not None:
            yield record.base.name, record.base, expert.digests(record.name).base
    for name, target in expert.manifest.aliases:
        base = expert.records[target].base
        if base is not None:
            yield name, replace(base, name=name), expert.digests(target).base


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype.name} {list(spec.shape)}"


def _defect(error: ObmError, path: str) -> Defect:
    return Defect(reason=error.reason, where=error.where or path, detail=str(error))

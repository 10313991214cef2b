"""The two readers that the vectors are shown to: `spec/minimal_reader.py` and `obm_format`, behind one function each.

Both give `{"id", "tensors"}` as `minimal_reader.py` prints it, or raise `Refusal` with the stage that refused.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import minimal_reader

from obm_format.checkpoint import open_checkpoint
from obm_format.errors import ObmError, UsageError
from obm_format.expert import Expert, open_expert
from obm_format.verify import verify_expert

SPEC = Path(__file__).resolve().parents[2] / "spec"
VECTORS = SPEC / "vectors"


class Refusal(Exception):
    """A reader said no: reason code and stage (`header`, `parts`, `decode`, `base`)."""


def read_minimal(file: Path, base: Path | None, refs: list[Path]) -> dict[str, Any]:
    """`minimal_reader.py`, in this process; it does not tell stages apart, so it is asked without BASE first."""
    stage = "any"
    try:
        report = minimal_reader.Expert(str(file)).report()
        if base is not None:
            stage = "base"
            report = minimal_reader.Expert(str(file)).report(str(base), *map(str, refs))
    except minimal_reader.Refused as refused:
        raise Refusal(str(refused), stage) from refused
    return report


def read_package(file: Path, base: Path | None, refs: list[Path]) -> dict[str, Any]:
    """`obm_format`: open, verify in steps, then ask for values and rebuilt tensors."""
    with ExitStack() as stack:
        shared = [stack.enter_context(open_expert(ref)) for ref in refs]
        try:
            expert = stack.enter_context(open_expert(file))
        except ObmError as error:
            raise Refusal(error.reason, "header") from error
        for stage, level in (("parts", "parts"), ("decode", "deep")):
            for defect in expert.verify(level):
                raise Refusal(defect.reason, stage)
        for ref in shared:
            expert.refer_to(ref)
        for defect in verify_expert(file, base=base, deep=True, refs=refs).defects if base else ():
            raise Refusal(defect.reason, "base")
        return {"id": expert.id, "tensors": _tensors(expert, base, stack)}


def _tensors(expert: Expert, base: Path | None, stack: ExitStack) -> dict[str, Any]:
    backbone = stack.enter_context(open_checkpoint(base)) if base else None
    tensors = {}
    for name, record in expert.records.items():
        words = None if backbone is None or record.base is None else backbone.words(record.base.name)
        tensors[name] = {
            "dtype": record.spec.dtype.name,
            "shape": list(record.spec.shape),
            "f32_sha256": _digest(expert.values, name, words),
            "out_sha256": _digest(expert.rebuild, name, words),
        }
    return tensors


def _digest(method: Any, name: str, words: Any) -> str | None:  # noqa: ANN401 - either of two bound methods
    try:
        array = method(name, words)
    except UsageError:
        return None
    return hashlib.sha256(array.tobytes()).hexdigest()

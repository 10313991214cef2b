"""Whole tensors, for what has to look at all of them before the first is merged.

Source: obm-1 clauses 9.2 and 10.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from obm_format.checkpoint import Checkpoint
from obm_format.kernels.contract import ExactOperand, Operand
from obm_format.kernels.words import Words
from obm_format.merge.dense import DenseFineTune, Source
from obm_format.merge.plan import Step, covered_shape
from obm_format.merge.tensor import Inputs
from obm_format.merge.windows import matrix_view
from obm_format.model import TensorRecord
from obm_format.taskvector import check_finite


def whole_operands(step: Step, inputs: Inputs) -> tuple[Words, Sequence[Operand]]:
    """The backbone's words of a step, checked, and the operands of `Step.others`.

    Raises:
        BackboneMismatch: `base_digest`.
        ObmError: what decoding finds.
    """
    if step.base is None:
        return np.empty(0, np.uint8), ()
    base = _checked(step, inputs.base, inputs.experts)
    return base, [_operand(inputs.experts[one.participant], one.record, base) for one in step.others]


def _checked(step: Step, base: Checkpoint, experts: Sequence[Source]) -> Words:
    """The backbone's words, once their digest is that of every expert; where none vouches, found finite."""
    assert step.base is not None  # noqa: S101 - the caller looked
    sources = [(experts[witness.participant], witness.record) for witness in step.witnesses]
    vouching = [(one, record) for one, record in sources if not isinstance(one, DenseFineTune)]
    if not vouching:
        check_finite(base, step.base.name, "backbone")
    for expert, record in vouching:
        expert.check_base(record.name, step.base, base.sha256(step.base.name))
    return base.words(step.base.name)


def _operand(expert: Source, record: TensorRecord, base: Words) -> Operand:
    if record.is_exact and covered_shape(record) != record.encoded_shape:  # grown, and stored whole
        words = expert.exact(record.name, base, base_checked=True)[: base.shape[0]]
        return ExactOperand(words=words.reshape(matrix_view([], base)), dtype=record.spec.dtype)
    return expert.operand(record.name, base, base_checked=True)

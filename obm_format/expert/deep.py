"""The deep half of verification: decode every tensor of an expert, as far as what is at hand allows.

Source: obm-1 clauses 9.2, 9.4 and 14.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from obm_format.codecs import catalogue
from obm_format.container.reader import Defect
from obm_format.errors import ObmError
from obm_format.expert.parts import RecordParts
from obm_format.kernels.words import Words
from obm_format.model import Mode, RawParams, RtvqParams, TensorRecord

if TYPE_CHECKING:
    from obm_format.expert.reader import Expert

_Base = Callable[[str], Words] | None


def tensor_defects(expert: Expert, base: _Base, base_checked: bool) -> Iterator[Defect]:
    """What is wrong with the tensors of a file whose parts were verified.

    Args:
        expert: the open expert.
        base: gives the words of a backbone tensor by the backbone's name; with it all tensors are rebuilt.
        base_checked: the digests of all that `base` gives have been checked.
    """
    lacking = frozenset(expert.missing_refs)
    for record in expert.manifest.tensors:
        try:
            _check(expert, record, base, base_checked, lacking)
        except ObmError as error:
            yield Defect(reason=error.reason, where=error.where or record.name, detail=str(error))


def _check(expert: Expert, record: TensorRecord, base: _Base, base_checked: bool, lacking: frozenset[str]) -> None:
    shared = expert.manifest.refs[record.params.ref] if isinstance(record.params, RtvqParams) else None
    is_whole = shared not in lacking
    if base is not None and record.base is not None and record.has_difference:
        expert.values(record.name, base(record.base.name), base_checked=base_checked)
    elif record.mode is not Mode.DELTA and isinstance(record.params, RawParams):
        expert.exact(record.name)
    elif record.base is None:
        expert.rebuild(record.name)
    elif base is not None and is_whole:
        expert.rebuild(record.name, base(record.base.name), base_checked=base_checked)
    elif shared is not None and is_whole:
        expert.values(record.name)
    else:
        catalogue.check(record, RecordParts.of(expert, record), expert.kernels)
        expert.tail(record.name)

"""Write side: compress fine-tunes into experts.

The flow is in `execute`, one fine-tune in `compression`; `fit` chooses encodings for a budget, `rtvq` shares a base
vector.
"""

from obm_format.compress.budget import Budget, parse_budget
from obm_format.compress.choices import Choice, Chosen, Fitted
from obm_format.compress.compression import backbone_id
from obm_format.compress.execute import compress_checkpoint
from obm_format.compress.options import (
    ENCODINGS,
    PRESETS,
    RESTS,
    CompressOptions,
    RtvqOptions,
    parse_compress_options,
    parse_rtvq_options,
)
from obm_format.compress.report import CompressReport
from obm_format.compress.rtvq import RtvqReport, compress_rtvq

__all__ = [
    "ENCODINGS",
    "PRESETS",
    "RESTS",
    "Budget",
    "Choice",
    "Chosen",
    "CompressOptions",
    "CompressReport",
    "Fitted",
    "RtvqOptions",
    "RtvqReport",
    "backbone_id",
    "compress_checkpoint",
    "compress_rtvq",
    "parse_budget",
    "parse_compress_options",
    "parse_rtvq_options",
]

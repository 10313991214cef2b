"""Write side: compress fine-tunes into experts. The flow is in `execute`; `rtvq` shares a base vector."""

from obm_format.compress.execute import backbone_id, compress_checkpoint
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
    "CompressOptions",
    "CompressReport",
    "RtvqOptions",
    "RtvqReport",
    "backbone_id",
    "compress_checkpoint",
    "compress_rtvq",
    "parse_compress_options",
    "parse_rtvq_options",
]

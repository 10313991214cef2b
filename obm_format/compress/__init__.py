"""Write side: compress a fine-tune into an expert. The flow is in `execute`."""

from obm_format.compress.execute import backbone_id, compress_checkpoint
from obm_format.compress.options import ENCODINGS, PRESETS, RESTS, CompressOptions, parse_compress_options
from obm_format.compress.report import CompressReport

__all__ = [
    "ENCODINGS",
    "PRESETS",
    "RESTS",
    "CompressOptions",
    "CompressReport",
    "backbone_id",
    "compress_checkpoint",
    "parse_compress_options",
]

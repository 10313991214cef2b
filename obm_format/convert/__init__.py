"""Bring fine-tunes of other formats over into experts, and experts back. One file per format; `assemble` writes."""

from obm_format.convert.assemble import ConvertReport
from obm_format.convert.export import ExportReport
from obm_format.convert.formats import SOURCES, TARGETS, convert_from, convert_to

__all__ = ["SOURCES", "TARGETS", "ConvertReport", "ExportReport", "convert_from", "convert_to"]

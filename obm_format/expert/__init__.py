"""An expert: where the container's parts and the codecs meet. `reader` opens one, `writer` makes one."""

from obm_format.expert.reader import Expert, open_expert
from obm_format.expert.writer import ExpertWriter

__all__ = ["Expert", "ExpertWriter", "open_expert"]

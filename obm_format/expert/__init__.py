"""An expert: where the container's parts and the codecs meet.

`opening` opens one, `reader` decodes its tensors, `references` finds what it refers to, `writer` makes one.
"""

from obm_format.expert.opening import open_expert
from obm_format.expert.reader import Expert
from obm_format.expert.references import References
from obm_format.expert.writer import ExpertWriter

__all__ = ["Expert", "ExpertWriter", "References", "open_expert"]

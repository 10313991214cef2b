"""Storage format and loader for 1-bit task vectors.

The public API is the names below; everything else may move. Names are imported on first use, so that
`import obm_format` loads neither numpy nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obm_format.checkpoint import Checkpoint, open_checkpoint
    from obm_format.compress import CompressOptions, CompressReport, compress_checkpoint
    from obm_format.errors import ObmError
    from obm_format.expert import Expert, open_expert
    from obm_format.loader import Loader
    from obm_format.merge import MergeReport, Recipe, WeightStream, materialize, parse_recipe
    from obm_format.route import Router, load_router, train_router
    from obm_format.verify import Verification, verify_expert

__all__ = [
    "Checkpoint",
    "CompressOptions",
    "CompressReport",
    "Expert",
    "Loader",
    "MergeReport",
    "ObmError",
    "Recipe",
    "Router",
    "Verification",
    "WeightStream",
    "compress_checkpoint",
    "load_router",
    "materialize",
    "open_checkpoint",
    "open_expert",
    "parse_recipe",
    "train_router",
    "verify_expert",
]

_HOMES = {
    "Checkpoint": "checkpoint",
    "CompressOptions": "compress",
    "CompressReport": "compress",
    "Expert": "expert",
    "Loader": "loader",
    "MergeReport": "merge",
    "ObmError": "errors",
    "Recipe": "merge",
    "Router": "route",
    "Verification": "verify",
    "WeightStream": "merge",
    "compress_checkpoint": "compress",
    "load_router": "route",
    "materialize": "merge",
    "open_checkpoint": "checkpoint",
    "open_expert": "expert",
    "parse_recipe": "merge",
    "train_router": "route",
    "verify_expert": "verify",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

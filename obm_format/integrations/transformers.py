"""Load merged weights straight into a transformers model, without a folder in between.

Source: reference (ecosystem) C1: `from_pretrained(None, config=..., state_dict=...)` gives the bits of a
folder.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from obm_format.errors import CheckpointError, UsageError
from obm_format.loader import as_torch
from obm_format.merge import Recipe, WeightStream
from obm_format.merge.folder import (
    TORCH_NAMES,
    BaseSource,
    ExpertSource,
    open_sources,
    routed_expert,
    side_files,
)


def load(
    base: BaseSource,
    experts: Sequence[ExpertSource],
    recipe: Recipe | None = None,
    *,
    cls: Any = None,  # noqa: ANN401  a transformers class, which the core does not know
    **options: Any,  # noqa: ANN401  passed through
) -> Any:  # noqa: ANN401  what `cls` makes
    """Merge experts into a backbone and give back the model.

    Args:
        base: the backbone: open, or its folder.
        experts: experts: open, or paths of `.obm` files.
        recipe: how; by default 1bit-merging.
        cls: a model class of transformers with `from_pretrained`; by default `AutoModel`.
        options: for `from_pretrained`.

    Returns:
        the model, in evaluation mode, in the dtype of the merged weights.

    Raises:
        UsageError: torch or transformers is not installed (`missing_dependency`).
        CheckpointError: neither backbone nor expert has a config.json (`bad_checkpoint`).
        ObmError: as `WeightStream`.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "missing_dependency", "transformers is not installed", hint="pip install 'obm-format[torch]'"
        ) from error
    with contextlib.ExitStack() as stack:
        backbone, opened = open_sources(base, experts, stack)
        stream = WeightStream(backbone, opened, recipe or Recipe())
        files = side_files(backbone, routed_expert(stream, opened), stream.plan.recipe.dtype)
        if "config.json" not in files:
            raise CheckpointError(
                "bad_checkpoint", "there is no config.json to build a model by", where=str(backbone.path)
            )
        config = _config(files["config.json"], transformers)
        weights = {spec.name: as_torch(words, spec.dtype) for spec, words in stream}
        floats = [spec for spec in stream.metadata() if spec.dtype.is_float]
    largest = max(floats, key=lambda spec: spec.nbytes, default=None)
    if largest is not None:
        options.setdefault("dtype", TORCH_NAMES[largest.dtype])
    wanted = _concrete(cls or transformers.AutoModel, config)
    model = wanted.from_pretrained(None, config=config, state_dict=weights, **options)
    return model.eval()


def _config(data: bytes, transformers: Any) -> Any:  # noqa: ANN401  the module, and what it makes
    """The configuration object of a config.json; code of its folder is never run."""
    with tempfile.TemporaryDirectory(prefix="obm-") as folder:
        (Path(folder) / "config.json").write_bytes(data)
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _concrete(cls: Any, config: Any) -> Any:  # noqa: ANN401  classes and objects of transformers
    """The model class that an auto class picks for a configuration; those do not load without a folder."""
    if not hasattr(cls, "from_config"):
        return cls
    import torch

    with torch.device("meta"):
        return type(cls.from_config(config))

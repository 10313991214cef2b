"""The flow of the write side: open both checkpoints, choose encodings where a budget asks for it, write the expert.

Source: design page, "Format" and "Defaults"; obm-1 clause 11.
"""

from __future__ import annotations

import os
from pathlib import Path

from obm_format.checkpoint import open_checkpoint
from obm_format.compress.compression import Compression
from obm_format.compress.fit import fit
from obm_format.compress.options import CompressOptions
from obm_format.compress.report import CompressReport
from obm_format.errors import UsageError
from obm_format.kernels import select_kernels
from obm_format.kernels.contract import Kernels
from obm_format.progress import Progress, silent


def compress_checkpoint(
    base_path: str | os.PathLike[str],
    tuned_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: CompressOptions | None = None,
    *,
    kernels: Kernels | None = None,
    progress: Progress = silent,
) -> CompressReport:
    """Compress a fine-tune into an expert file; on any error nothing is left behind.

    Args:
        base_path: the backbone: a checkpoint folder, or one safetensors file.
        tuned_path: the fine-tune, likewise.
        out: the file to write; an existing one is replaced when all is done.
        options: the defaults: position `linear`, alpha `proj/row`, rest exact.
        kernels: None for the fastest of this machine; the file does not depend on them.
        progress: told of phase `compress`, and before it with a budget of phase `measure`, in bytes of the
            fine-tune; may raise to stop.

    Raises:
        CheckpointError: a checkpoint that cannot be read, or holds NaN or Inf.
        BackboneMismatch: fine-tune and backbone do not belong together.
        UsageError: a position that matches nothing, an option that does not fit.
        ObmError: `budget_too_small`, `disk_full`, `io`, `not_found`.
    """
    options = options or CompressOptions()
    # obm-1 clause 13.1
    if Path(out).suffix == ".safetensors":
        raise UsageError("usage", "an expert is no dense checkpoint", where=str(out), hint="name it *.obm")
    with open_checkpoint(base_path) as base, open_checkpoint(tuned_path) as tuned:
        compression = Compression(base, tuned, options, kernels or select_kernels())
        fitted = None if options.budget is None else fit(compression, options.budget, progress)
        return compression.write(out, progress, fitted=fitted)

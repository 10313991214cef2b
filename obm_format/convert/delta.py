"""Dense deltas: a safetensors file or folder of what to add to the backbone, by the backbone's tensor names."""

from __future__ import annotations

from obm_format.checkpoint import Checkpoint
from obm_format.codecs import raw
from obm_format.convert.assemble import ZERO, Change, check_sum, delta_target
from obm_format.errors import CheckpointError
from obm_format.kernels.words import to_float32
from obm_format.model import Mode
from obm_format.taskvector import check_finite


class DenseDelta:
    """Deltas of F16, BF16 or F32; each is stored bit for bit as `raw` in mode delta, or `zero` where it is 0.

    Args:
        deltas: the open file or folder; stays the caller's.
    """

    position = "none"

    def __init__(self, deltas: Checkpoint) -> None:
        self._deltas = deltas
        self.names = frozenset(deltas.tensors)

    def change(self, base: Checkpoint, name: str) -> Change:
        """The record of one delta.

        Raises:
            BackboneMismatch: `shape_differs`.
            CheckpointError: `unsupported_dtype`, `not_finite_input`.
        """
        delta = self._deltas.tensors[name]
        spec = delta_target(base, name, delta.shape)
        if not delta.dtype.is_float:
            raise CheckpointError(
                "unsupported_dtype",
                "a delta of this dtype cannot be stored",
                where=name,
                expected="F16, BF16, F32",
                got=delta.dtype.name,
            )
        # obm-1 clause 11.1
        check_finite(self._deltas, name, "delta")
        words = self._deltas.words(name)
        values = to_float32(words, delta.dtype)
        check_sum(base, name, values)
        encoded = raw.encode(words, delta.dtype) if values.any() else ZERO
        self._deltas.release(name)
        return Change(spec=spec, mode=Mode.DELTA, encoded=encoded)

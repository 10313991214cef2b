"""Merged weights into device memory: every tensor is merged where it is to lie, and checked, before any is used.

Backbone and packed experts travel, dense weights do not: what the kernels write stays on the device. What is only
copied, and added rows, are uploaded. Source: design, "Loader".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from obm_format.checkpoint import Checkpoint
from obm_format.codecs.base import Span
from obm_format.device.arrays import DeviceKernels
from obm_format.device.triton import TritonKernels
from obm_format.device.uploads import Uploads
from obm_format.kernels.contract import Kernels
from obm_format.kernels.words import Words
from obm_format.merge import Recipe, WeightStream
from obm_format.merge.arithmetic import kernel_combine
from obm_format.merge.dense import Source
from obm_format.merge.figures import Figures
from obm_format.merge.plan import MergePlan, Step
from obm_format.merge.tensor import Target

PIECE_NBYTES = 64 << 20  # a launch costs what a small piece does
_WORDS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


class Placement:
    """Puts merged weights into the memory of one device.

    Args:
        device: which.
        kernels: who computes there.
        uploads: copies arrays there.
    """

    def __init__(self, device: torch.device, kernels: TritonKernels, uploads: Uploads | None = None) -> None:
        self.device = device
        self._uploads = uploads or Uploads(device)
        self.kernels: Kernels = DeviceKernels(kernels, self._uploads)

    def can_make(self, plan: MergePlan) -> bool:
        """Whether the kernels do all of a merge; a trim, or a peer's way of combining, is NumPy's in between."""
        arithmetic = plan.recipe.arithmetic
        combined = plan.participants if plan.recipe.rules.combine is not None else ()
        is_known = kernel_combine(arithmetic, [one.weight for one in combined]) is not None
        return is_known and arithmetic.zero_is_positive and all(one.density == 1 for one in plan.participants)

    def stage(
        self, base: Checkpoint, experts: Sequence[Source], recipe: Recipe, like: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Every merged tensor by name, on the device, whole and checked; tied names share one.

        Args:
            base: the open backbone.
            experts: open experts and dense fine-tunes.
            recipe: how to merge; its plan is one that `can_make` says yes to.

            like: tensors of their names, dtypes and shapes.

        Raises:
            ObmError: as `WeightStream`.
            torch.OutOfMemoryError: the device has no room for all merged tensors.
        """
        stream = WeightStream(base, experts, recipe, kernels=self.kernels, piece_nbytes=PIECE_NBYTES)
        staged: dict[str, torch.Tensor] = {}

        def done(step: Step, place: Target, _: Figures) -> None:
            assert isinstance(place, _Place)  # noqa: S101 - `_place` made it
            for spec in step.specs:
                staged[spec.name] = place.words.view(like[spec.name].dtype).reshape(spec.shape)

        stream.run(self._place, done=done)
        if self.device.type == "cuda":
            torch.cuda.synchronize(
                self.device
            )  # it was made on other threads, whose streams the caller's does not know
        return staged

    def _place(self, step: Step) -> Target:
        words = torch.empty(step.spec.numel, dtype=_WORDS[step.spec.dtype.itemsize], device=self.device)
        return _Place(words, self._uploads)


class _Place:
    """A `Target` that is device memory."""

    def __init__(self, words: torch.Tensor, uploads: Uploads) -> None:
        self.words = words
        self._uploads = uploads

    def room(self, span: Span) -> Words:
        """See `Target.room`: a tensor in the guise of an array, which `DeviceKernels` see through."""
        return cast("Words", self.words[span.start : span.stop])

    def put(self, span: Span, words: Words) -> None:
        """See `Target.put`; what `room` gave is there already."""
        if not isinstance(words, torch.Tensor):
            self.words[span.start : span.stop].copy_(self._uploads(words))

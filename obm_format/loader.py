"""The loader: a pristine backbone and packed experts to merged weights in storage that exists already.

The backbone stays a mapped file that is only read, so there is nothing to undo: every activation starts from
it. An activation stages all tensors first and copies them last; whatever fails before that leaves the old
weights.
Source: design, "Loader".
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from obm_format.checkpoint import open_checkpoint
from obm_format.container.sources import BytesSource
from obm_format.errors import UsageError
from obm_format.expert import Expert, References, open_expert
from obm_format.kernels.contract import Kernels
from obm_format.kernels.words import Words
from obm_format.merge import Recipe, WeightStream
from obm_format.model import DType, Kind, TensorSpec

if TYPE_CHECKING:
    import torch

    from obm_format.device.placement import Placement

logger = logging.getLogger(__name__)
BUDGET_NBYTES = 1 << 30
_TORCH = {
    DType.BOOL: "bool",
    DType.U8: "uint8",
    DType.I8: "int8",
    DType.F8_E4M3: "float8_e4m3fn",
    DType.F8_E5M2: "float8_e5m2",
    DType.U16: "uint16",
    DType.I16: "int16",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.U32: "uint32",
    DType.I32: "int32",
    DType.F32: "float32",
    DType.U64: "uint64",
    DType.I64: "int64",
    DType.F64: "float64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What `Loader.activate` put in place.

    Args:
        method: name of the merge method.
        route: task name or artifact id of the routed expert, or None.
        recipe: digest of the recipe with backbone and experts in it.
        tensors: tensors that were written.
        nbytes: their bytes.
    """

    method: str
    route: str | None
    recipe: str
    tensors: int
    nbytes: int


class Loader:
    """A backbone with a set of experts, ready to become weights.

    Args:
        base: checkpoint folder or safetensors file of the backbone.
        experts: paths of `.obm` files; base vectors of `rtvq` experts may be among them, or lie beside them.
        budget_bytes: most bytes of packed experts that are kept in memory; the least recently used go first.
            What does not fit is read from its file each time.
        device: where the weights are: "cpu", "cuda", or "cuda:1" and so on. For CUDA they are merged there, where
            triton is installed and the recipe's arithmetic is the kernels'; else on the CPU, and a log line says why.
        kernels: who computes; by default the fastest at hand. With kernels given, all is merged by them.

    Raises:
        ObmError: a file cannot be opened.
        UsageError: `usage`, a device that is not there, or a budget below 0.
    """

    def __init__(
        self,
        base: str | os.PathLike[str],
        experts: Sequence[str | os.PathLike[str]],
        budget_bytes: int = BUDGET_NBYTES,
        device: str = "cpu",
        *,
        kernels: Kernels | None = None,
    ) -> None:
        if budget_bytes < 0:
            raise UsageError("usage", "the budget is a number of bytes", got=budget_bytes)
        self._device = check_device(device)
        self._placement = None if device == "cpu" or kernels is not None else _placement(self._device)
        self._kernels = kernels
        self._lock = threading.Lock()
        self._base = open_checkpoint(base)
        self._residents = Residents(experts, budget_bytes)
        self.active: Activation | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close backbone and experts."""
        with self._lock:
            self._residents.close()
            self._base.close()

    def activate(self, target: Mapping[str, torch.Tensor], recipe: Recipe) -> Activation:
        """Merge by `recipe` and copy the result into tensors that exist, whose storage stays where it is.

        One activation runs at a time, from whatever threads. Needs memory for all merged tensors once: that of the
        device where they are merged there.

        Args:
            target: tensors by the names of the merged checkpoint, for instance `model.state_dict()`. Tensors
                that share their storage with one of the merged ones (tied weights) are written through that.
            recipe: how to merge.

        Returns:
            what is in place now, also as `active`.

        Raises:
            UsageError: `usage`: names, shapes or dtypes of `target` are not those of the merged weights.
            ObmError: as `WeightStream`; `target` has its old values then.
        """
        with self._lock:
            experts = self._residents.experts()
            stream = WeightStream(self._base, experts, recipe, kernels=self._kernels)
            specs = stream.metadata()
            check_target(target, specs, self._device)
            staged = self._staged(stream, experts, recipe, target)
            self.active = None  # from here on neither the old weights nor the new ones, until all are copied
            _commit(target, staged)
            self.active = Activation(
                method=recipe.method.value,
                route=stream.plan.route,
                recipe=stream.plan.digest,
                tensors=len(specs),
                nbytes=stream.plan.bytes_written,
            )
            return self.active

    def _staged(
        self, stream: WeightStream, experts: Sequence[Expert], recipe: Recipe, target: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """All merged tensors: on the device where its kernels do the whole merge, else on the CPU."""
        if self._placement is not None:
            if self._placement.can_make(stream.plan):
                return self._placement.stage(self._base, experts, recipe, target)
            logger.info("merging on the CPU for %s: the recipe trims, or combines in a peer's way", self._device)
        return {spec.name: as_torch(words, spec.dtype) for spec, words in stream}


class Residents:
    """Open experts, as many of them as a budget allows held in memory, the least recently used dropped first.

    Args:
        paths: `.obm` files.
        budget_bytes: most bytes held in memory.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]], budget_bytes: int) -> None:
        self._paths = [Path(path) for path in paths]
        self._budget = budget_bytes
        self._held: OrderedDict[Path, Expert] = OrderedDict()
        self._files: list[Expert] = []
        self._references = References(self._paths)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return sum(expert.nbytes for expert in self._held.values())

    def experts(self) -> list[Expert]:
        """All experts, open, with their base vectors. Those of the last call that were not held are closed."""
        self._close_files()
        found = []
        for path in list(self._paths):
            expert = self._held.get(path) or self._open(path)
            if expert.manifest.kind is Kind.RTVQ_BASE:
                # takes no part; the references open it once more where an expert needs it
                self._paths.remove(path)
                self._held.pop(path, expert).close()
                continue
            self._references.attach(expert, path)
            if path in self._held:
                self._held.move_to_end(path)
            found.append(expert)
        return found

    def close(self) -> None:
        """Close all."""
        self._references.close()
        self._close_files()
        while self._held:
            self._held.popitem()[1].close()

    def _open(self, path: Path) -> Expert:
        if path.is_file() and path.stat().st_size + self.nbytes <= self._budget:
            self._held[path] = open_expert(BytesSource(path.read_bytes(), str(path)))
            return self._held[path]
        expert = open_expert(path)
        self._files.append(expert)
        return expert

    def _close_files(self) -> None:
        while self._files:
            self._files.pop().close()


def check_device(device: str) -> str:
    """The device by its full name, with its number for CUDA.

    Raises:
        UsageError: `usage`: it is not there, or torch is not (`missing_dependency`).
    """
    if device == "cpu":
        return device
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            "missing_dependency", "torch is not installed", hint="pip install 'obm-format[torch]'"
        ) from error
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    found = f"cuda:{torch.cuda.current_device()}" if device == "cuda" and len(there) > 1 else device
    if found not in there:
        raise UsageError("usage", "there is no such device", expected=", ".join(there), got=device)
    return found


def check_target(target: Mapping[str, torch.Tensor], specs: Sequence[TensorSpec], device: str) -> None:
    """Refuse tensors that merged weights cannot be copied into one to one.

    Raises:
        UsageError: `usage`.
    """
    for spec in specs:
        tensor = target.get(spec.name)
        if tensor is None:
            raise UsageError("usage", "the target has no such tensor", where=spec.name)
        expected = f"{torch_name(spec.dtype)}{list(spec.shape)}"
        got = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        if expected != got or str(tensor.device) != device:
            raise UsageError(
                "usage",
                "the target's tensor does not fit",
                where=spec.name,
                expected=f"{expected} on {device}",
                got=f"{got} on {tensor.device}",
                hint="a recipe with `dtype` casts the merged weights",
            )
    names = {spec.name for spec in specs}
    written = {_place(target[name]) for name in names}
    left = sorted(name for name in target if name not in names and _place(target[name]) not in written)
    if left:
        raise UsageError("usage", f"{len(left)} tensors of the target are not in the merged weights", where=left[0])


def torch_name(dtype: DType) -> str:
    """What torch calls a dtype."""
    return _TORCH[dtype]


def as_torch(words: Words, dtype: DType) -> torch.Tensor:
    """A torch tensor of its own memory with these bits.

    Args:
        words: words of `dtype`, any shape.
        dtype: any dtype that torch has.
    """
    import torch

    own = words.copy() if not words.flags.writeable or words.base is not None else words
    flat = torch.from_numpy(np.ascontiguousarray(own).reshape(-1).view(np.uint8))
    return flat.view(getattr(torch, torch_name(dtype))).reshape(words.shape)


def _placement(device: str) -> Placement | None:
    """What merges on a CUDA device, or None where it cannot."""
    import torch

    from obm_format.device import device_kernels

    kernels = device_kernels(torch.device(device))
    if kernels is None:
        return None
    from obm_format.device.placement import Placement

    return Placement(torch.device(device), kernels)


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


def _commit(target: Mapping[str, torch.Tensor], staged: Mapping[str, torch.Tensor]) -> None:
    """Copy all; an interrupt in the midst is answered after a second, complete pass."""
    try:
        _copy_all(target, staged)
    except BaseException:
        _copy_all(target, staged)
        raise


def _copy_all(target: Mapping[str, torch.Tensor], staged: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in staged.items():
        target[name].detach().copy_(tensor)

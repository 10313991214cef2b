"""PEFT LoRA adapters: a folder with adapter_config.json and adapter_model.safetensors.

The delta of a module's weight is lora_B @ lora_A * scale in float32, transposed for layers that store their weight so
(GPT-2); parameters that were trained whole stand in the place of the backbone's. Whatever would make it something else
is refused, known or not: an option that is not listed here must be off. Source: huggingface/peft, tuners/lora.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from obm_format.checkpoint import Checkpoint, open_checkpoint
from obm_format.codecs import raw, sign1
from obm_format.compress import CompressOptions
from obm_format.convert.assemble import ZERO, Change, check_sum, delta_target, replaced
from obm_format.errors import CheckpointError, UsageError
from obm_format.kernels import select_kernels
from obm_format.kernels.contract import Kernels
from obm_format.kernels.words import Float32, from_float32, to_float32
from obm_format.model import DType, Mode
from obm_format.positions import matrix_rows
from obm_format.taskvector import check_finite

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ENCODINGS = ("sign1", "raw")

_CONFIG_NBYTES = 1 << 20
_POSITION_LENGTH = 512
_LARGEST = 1e38  # float32 holds it; integers in JSON have no limit of their own
_ROWS = 64  # rows whose product is summed together: they stay in the cache
_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_WHOLE = re.compile(r"base_model\.model\.(?P<name>(?!.*(\.lora_|\.base_layer\.|\.modules_to_save\.)).+)")
_PATTERN = re.compile(r"\^?[A-Za-z0-9_.]{1,512}")  # names; other regular expressions could take for ever
_READ = frozenset(
    {
        "alpha_pattern",
        "bias",
        "fan_in_fan_out",
        "init_lora_weights",
        "lora_alpha",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "use_rslora",
    }
)
# options that say which modules have an adapter, or how it was trained, but not what its weights mean
_NEUTRAL = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
# other initialisations take something off the backbone's weights, which then are no longer the backbone's
_INITS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """What a configuration says of the weights.

    Args:
        rank: of modules that `ranks` does not name.
        alpha: likewise.
        rslora: whether the scale is alpha over the root of the rank, and not over the rank.
        transposed: whether layers store their weight as [in, out].
        ranks: by pattern of module names, in the order in which they are tried.
        alphas: likewise.
    """

    rank: int
    alpha: float
    rslora: bool = False
    transposed: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def of(self, module: str) -> tuple[int, float]:
        """Rank and scale of one module."""
        rank = next((value for key, value in self.ranks.items() if _names(key, module)), self.rank)
        alpha = next((value for key, value in self.alphas.items() if _names(key, module)), self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)


class LoraAdapter:
    """An open adapter; each of its matrices is compressed like a task vector.

    Args:
        config: rank and scale.
        weights: the open safetensors file; closed by `close`.
        encoding: `sign1` with the default alphas, or `raw` in F32.
        kernels: the arithmetic.

    Raises:
        UsageError: the weights hold what is not understood (`usage`).
        CheckpointError: half of a pair is missing (`bad_checkpoint`).
    """

    def __init__(self, config: LoraConfig, weights: Checkpoint, encoding: str, kernels: Kernels) -> None:
        self._config = config
        self._weights = weights
        self._encoding = encoding
        self._kernels = kernels
        self._pairs, self._whole = _pairs(weights)
        self.names = frozenset(self._pairs) | frozenset(self._whole)
        self.position = _position(frozenset(self._pairs)) if encoding == "sign1" and self._pairs else "none"

    def change(self, base: Checkpoint, name: str) -> Change:
        """The record of one matrix, or of a parameter that was trained whole.

        Raises:
            BackboneMismatch: `shape_differs`.
            CheckpointError: `not_finite_input`, `unsupported_dtype`, `bad_checkpoint`.
        """
        if name in self._whole:
            key = self._whole[name]
            return replaced(base, replace(self._weights.tensors[key], name=name), self._weights.words(key))
        d = self._delta(name, base.tensors[name].shape)
        spec = delta_target(base, name, d.shape)
        check_sum(base, name, d)
        if not d.any():
            encoded = ZERO
        elif self._encoding == "raw":
            encoded = raw.encode(from_float32(d, DType.F32), DType.F32)
        else:
            choice = CompressOptions().alpha
            encoded = sign1.encode(d, choice, rows=matrix_rows(name, d.shape), kernels=self._kernels)
        return Change(spec=spec, mode=Mode.DELTA, encoded=encoded)

    def _delta(self, name: str, shape: tuple[int, ...]) -> Float32:
        down, up = (self._matrix(key) for key in self._pairs[name])
        rank, scale = self._config.of(name.removesuffix(".weight"))
        if down.shape[0] != rank or up.shape[1] != rank:
            raise CheckpointError(
                "bad_checkpoint",
                "the matrices of the adapter do not have the rank of its configuration",
                where=name,
                expected=rank,
                got=f"{list(down.shape)} and {list(up.shape)}",
            )
        d = product(up, down, scale)
        if not np.isfinite(d).all():
            raise CheckpointError("not_finite_input", "the adapter's product is more than float32 holds", where=name)
        # a linear layer beside transposed ones is known by its shape
        turned = self._config.transposed and d.T.shape == shape
        return np.ascontiguousarray(d.T) if turned else d

    def _matrix(self, key: str) -> Float32:
        spec = self._weights.tensors[key]
        if len(spec.shape) != 2:
            raise UsageError("usage", "only adapters of linear layers are read", where=key, got=list(spec.shape))
        # obm-1 clause 11.1
        check_finite(self._weights, key, "adapter")
        return to_float32(self._weights.words(key), spec.dtype)


def open_lora(folder: Path, encoding: str) -> tuple[LoraAdapter, Checkpoint]:
    """Open an adapter folder.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        encoding: one of ENCODINGS.

    Returns:
        the adapter and its open weights, which the caller closes.

    Raises:
        CheckpointError: `not_found`, `no_weights`, `pickle_refused`, `bad_checkpoint`.
        UsageError: an option that is not understood (`usage`).
    """
    config = parse_config(_read_config(folder / CONFIG), str(folder / CONFIG))
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").exists():
            raise CheckpointError(
                "pickle_refused", "holds only a pickled adapter", where=str(folder), hint="save it as safetensors"
            )
        raise CheckpointError("no_weights", f"holds no {WEIGHTS}", where=str(folder))
    weights = open_checkpoint(path)
    try:
        return LoraAdapter(config, weights, encoding, select_kernels()), weights
    except BaseException:
        weights.close()
        raise


def parse_config(found: Mapping[str, object], where: str) -> LoraConfig:
    """Ranks and scales of an adapter, when its configuration asks for nothing else.

    Args:
        found: adapter_config.json.
        where: its path, for errors.

    Raises:
        UsageError: an option that is not understood (`usage`).
        CheckpointError: rank or alpha are no positive numbers (`bad_checkpoint`).
    """
    if found.get("peft_type") != "LORA":
        raise _refused("peft_type", found.get("peft_type"), where)
    if found.get("bias", "none") != "none":
        raise _refused("bias", found["bias"], where)
    init = found.get("init_lora_weights", True)
    if not any(init is known or (isinstance(known, str) and init == known) for known in _INITS):
        raise _refused("init_lora_weights", init, where)
    for key, value in found.items():
        if key not in _READ | _NEUTRAL and value not in (None, False, "", [], {}):
            raise _refused(key, value, where)
    return LoraConfig(
        rank=_rank(found.get("r"), where),
        alpha=_alpha(found.get("lora_alpha"), where),
        rslora=bool(found.get("use_rslora")),
        transposed=bool(found.get("fan_in_fan_out")),
        ranks={key: _rank(value, where) for key, value in _patterns(found, "rank_pattern", where)},
        alphas={key: _alpha(value, where) for key, value in _patterns(found, "alpha_pattern", where)},
    )


def _rank(value: object, where: str) -> int:
    if type(value) is not int or not 1 <= value <= _LARGEST:
        raise CheckpointError("bad_checkpoint", "the rank `r` is no positive integer", where=where, got=value)
    return value


def _alpha(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise CheckpointError("bad_checkpoint", "`lora_alpha` is no number", where=where, got=value)
    return value


def _patterns(found: Mapping[str, object], key: str, where: str) -> list[tuple[str, object]]:
    """Patterns that are names of modules or ends of them, with their values."""
    patterns = found.get(key) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError("bad_checkpoint", f"`{key}` is no object", where=where)
    for text in patterns:
        if _PATTERN.fullmatch(text) is None:
            raise _refused(key, text, where)
    return list(patterns.items())


def _names(pattern: str, module: str) -> bool:
    """Whether a pattern names a module: all of its name, or without `^` its last parts."""
    return module == pattern.removeprefix("^") or module.endswith(f".{pattern}")


def product(up: Float32, down: Float32, scale: float) -> Float32:
    """The product up @ down * scale, summed over the rank in ascending order: the same bits on every machine.

    Args:
        up: float32[out, rank].
        down: float32[rank, in].
        scale: rounded to float32.

    Returns:
        float32[out, in]; infinite or NaN where float32 overflows.
    """
    total: Float32 = np.zeros((up.shape[0], down.shape[1]), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, up.shape[0], _ROWS):
            block = total[start : start + _ROWS]
            term = np.empty_like(block)
            for column, row in zip(up[start : start + _ROWS].T, down, strict=True):
                np.multiply(column[:, None], row, out=term)
                block += term
        total *= np.float32(scale)
    return total


def _pairs(weights: Checkpoint) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """The keys of lora_A and lora_B, and of parameters that were trained whole, by the backbone's tensor name."""
    sides: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for key in weights.tensors:
        lora, other = _LORA.fullmatch(key), _WHOLE.fullmatch(key)
        if lora is not None:
            sides.setdefault(f"{lora['module']}.weight", {})[lora["side"]] = key
        elif other is not None:
            whole[other["name"]] = key
        else:
            raise UsageError(
                "usage",
                "the adapter holds a tensor that is not read",
                where=f"{weights.path}: {ascii(key[:200])[1:-1]}",
                expected="base_model.model.<module>.lora_A.weight or .lora_B.weight, or a whole parameter",
                hint="merge the adapter into its base model, and compress that",
            )
    for name, found in sides.items():
        if len(found) != 2:
            raise CheckpointError("bad_checkpoint", "the adapter lacks lora_A or lora_B", where=name)
        if name in whole:
            raise CheckpointError("bad_checkpoint", "the adapter has a matrix and its difference", where=name)
    return {name: (found["A"], found["B"]) for name, found in sides.items()}, whole


def _position(names: frozenset[str]) -> str:
    """Globs of the last parts of the names, which are what PEFT calls target modules."""
    globs = sorted({f"*.{name.split('.')[-2]}.weight" if name.count(".") > 1 else name for name in names})
    text = ",".join(globs)
    return text if text.isascii() and text.isprintable() and len(text) <= _POSITION_LENGTH else "none"


def _read_config(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise CheckpointError("not_found", "is no adapter folder: it has no adapter_config.json", where=str(path))
    try:
        with path.open("rb") as file:
            data = file.read(_CONFIG_NBYTES + 1)
        found = json.loads(data) if len(data) <= _CONFIG_NBYTES else None
    except (ValueError, RecursionError) as error:
        raise CheckpointError("bad_checkpoint", "is not JSON, or is damaged", where=str(path)) from error
    if not isinstance(found, dict):
        raise CheckpointError("bad_checkpoint", "holds no JSON object, or is too large", where=str(path))
    return found


def _refused(key: str, value: object, where: str) -> UsageError:
    return UsageError(
        "usage",
        f"adapters with this `{key}` are not read",
        where=where,
        got=ascii(value)[:80],
        hint="merge the adapter into its base model, and compress that",
    )

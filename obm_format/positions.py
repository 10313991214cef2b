"""Tensor name -> role: which tensors of a model are attention or MLP matrices, and which matrices were fused.

The table of families is data; it was checked against the model classes of transformers
(tests/test_positions.py). Never reads a tensor. Source: design page, "position"; 1bit-Merging section 3.2.
"""

from __future__ import annotations

import enum
import fnmatch
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from obm_format.errors import UsageError
from obm_format.model import TensorSpec

POSITION_WORDS = ("attention", "mlp", "linear", "none")
PATTERN_LENGTH = 512  # obm-1 clause 5.1

_HINT = "use attention, mlp, linear, none, comma-separated globs of whole tensor names, or re:EXPRESSION"


class Role(enum.Enum):
    """What a tensor does in a transformer block."""

    ATTENTION = "attention"
    MLP = "mlp"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Family:
    """Names of the matrices of one family of model classes: regular expressions for the end of a tensor name.

    Args:
        name: the classes that use these names.
        attention: expressions, anchored at a dot and at the end.
        mlp: likewise.
    """

    name: str
    attention: tuple[str, ...]
    mlp: tuple[str, ...]


FAMILIES = (
    Family(
        "Llama Mistral Qwen2 Qwen3 Gemma OLMo Granite Cohere StableLM Starcoder2",
        (r"self_attn\.[qkvo]_proj\.weight",),
        (r"mlp\.(gate|up|down)_proj\.weight", r"mlp\.c_(fc|proj)\.weight"),
    ),
    Family(
        "Phi-3 GLM-4",
        (r"self_attn\.(qkv|o)_proj\.weight",),
        (r"mlp\.(gate_up|down)_proj\.weight",),
    ),
    Family("Phi Persimmon", (r"self_attn\.(query_key_value|dense)\.weight",), (r"mlp\.fc[12]\.weight",)),
    Family("GPT-2 GPT-BigCode", (r"attn\.c_(attn|proj)\.weight",), (r"mlp\.c_(fc|proj)\.weight",)),
    Family(
        "GPT-J GPT-Neo CodeGen wav2vec2",
        (r"(attn|attention)\.([qkv]|out)_proj\.weight", r"attn\.qkv_proj\.weight"),
        (r"mlp\.fc_(in|out)\.weight", r"feed_forward\.(intermediate|output)_dense\.weight"),
    ),
    Family(
        "GPT-NeoX Pythia BLOOM Falcon",
        (r"(self_)?attention\.(query_key_value|dense)\.weight",),
        (r"mlp\.dense_(h_to_4h|4h_to_h)\.weight",),
    ),
    Family(
        "OPT BART Whisper",
        (r"(self|encoder)_attn\.([qkv]|out)_proj\.weight",),
        (r"layers\.[0-9]+\.fc[12]\.weight",),
    ),
    Family("MPT", (r"attn\.(Wqkv|out_proj)\.weight",), (r"ffn\.(up|down)_proj\.weight",)),
    Family(
        "BERT RoBERTa ELECTRA DeBERTa ViT BEiT DINOv2 Swin",
        (
            r"(cross)?attention\.(self|attention)\.(query|key|value)(_proj)?\.weight",
            r"(cross)?attention\.output\.dense\.weight",
            r"attention\.self\.pos_(key|query)_proj\.weight",
        ),
        (r"intermediate\.dense\.weight", r"[0-9]+\.output\.dense\.weight"),
    ),
    Family("MPNet", (r"attention\.attn\.[qkvo]\.weight",), ()),
    Family("ALBERT", (r"attention\.(query|key|value|dense)\.weight",), (r"ffn(_output)?\.weight",)),
    Family("DistilBERT", (r"attention\.([qkv]|out)_lin\.weight",), (r"ffn\.lin[12]\.weight",)),
    Family("ModernBERT", (r"attn\.W(qkv|o)\.weight",), (r"mlp\.W[io]\.weight",)),
    Family(
        "CLIP SigLIP open_clip timm",
        (r"(attn|attention)\.in_proj_weight", r"attn\.(qkv|proj)\.weight"),
        (r"mlp\.fc[12]\.weight",),
    ),
    Family(
        "T5",
        (r"(Self|EncDec)Attention\.[qkvo]\.weight",),
        (r"DenseReluDense\.(wi|wi_0|wi_1|wo)\.weight",),
    ),
    Family(
        "Mixtral Qwen-MoE OLMoE HunYuan Llama 4 GPT-OSS LFM2",
        (),
        (
            r"experts\.[0-9]+\.w[123]\.weight",
            r"experts\.[0-9]+\.(gate|up|down)_proj\.weight",
            r"experts\.(gate_up|gate|up|down)_proj(\.weight)?",
            r"shared_(experts?|mlp)\.(gate|up|down)_proj\.weight",
            r"feed_forward\.w[123]\.weight",
            r"feed_forward\.(gate|up|down)_proj\.weight",
        ),
    ),
    Family(
        "Granite-MoE JetMoe",
        (r"self_attention\.(kv_proj|experts\.(input|output)_linear)\.weight",),
        (r"(block_sparse_moe|mlp|shared_mlp)\.(input|output)_linear\.weight",),
    ),
    Family("DBRX", (), (r"experts\.mlp\.(w1|v1|w2)",)),
    Family("Qwen3-Next", (r"linear_attn\.(in_proj_(qkvz|ba|qkv|[zab])|out_proj)\.weight",), ()),
    Family("RWKV", (r"attention\.(receptance|output)\.weight",), (r"feed_forward\.(key|value|receptance)\.weight",)),
    Family(
        "DeepSeek",
        (r"self_attn\.(q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj)\.weight",),
        (),
    ),
)


def _any_of(expressions: Iterable[str]) -> re.Pattern[str]:
    return re.compile(r"(?:^|\.)(?:" + "|".join(f"(?:{text})" for text in expressions) + r")\Z")


_ATTENTION = _any_of(itertools.chain.from_iterable(family.attention for family in FAMILIES))
_MLP = _any_of(itertools.chain.from_iterable(family.mlp for family in FAMILIES))
_EXPERTS = re.compile(
    r"(?:^|\.)(?:experts\.(?:gate_up|gate|up|down)_proj(?:\.weight)?"
    r"|(?:block_sparse_moe|mlp|self_attention\.experts)\.(?:input|output)_linear\.weight)\Z"
)


def role_of(name: str, shape: tuple[int, ...]) -> Role:
    """The role of a tensor: matrices of known names, and 3-D stacks of experts; everything else is OTHER.

    Args:
        name: tensor name, with any prefix.
        shape: its shape.
    """
    if len(shape) != 2 and not (len(shape) == 3 and _EXPERTS.search(name)):
        return Role.OTHER
    if _ATTENTION.search(name):
        return Role.ATTENTION
    return Role.MLP if _MLP.search(name) else Role.OTHER


def select(specs: Iterable[TensorSpec], position: str, architecture: str = "") -> frozenset[str]:
    """Names of the tensors in a position; only those of dtype F16, BF16 or F32 can be.

    Args:
        specs: the tensors to choose from.
        position: `attention`, `mlp`, `linear`, `none`; or comma-separated shell globs, each matched on the
            whole name; or `re:` and a regular expression that is searched in the name.
        architecture: model class, for the message only.

    Raises:
        UsageError: a built-in position and no known tensor name (`unknown_architecture`); nothing matches, or
            the text is no position (`bad_position`).
    """
    specs = list(specs)
    if position == "none":
        return frozenset()
    matches = _matcher(position)
    chosen = [spec for spec in specs if matches(spec)]
    if not chosen and position in POSITION_WORDS and all(_is_other(spec) for spec in specs):
        raise UsageError(
            "unknown_architecture",
            "no tensor has the name of an attention or MLP matrix that obm knows",
            where=architecture or None,
            hint="name the tensors: --position GLOB,GLOB or --position re:EXPRESSION",
        )
    floats = frozenset(spec.name for spec in chosen if spec.dtype.is_float)
    if not floats:
        kind = "no tensor of dtype F16, BF16 or F32" if chosen else "no tensor"
        raise UsageError("bad_position", f"the position matches {kind}", got=position, hint=_HINT)
    return floats


def _is_other(spec: TensorSpec) -> bool:
    return role_of(spec.name, spec.shape) is Role.OTHER


def _matcher(position: str) -> Callable[[TensorSpec], bool]:
    if position == "linear":
        return lambda spec: not _is_other(spec)
    if position in POSITION_WORDS:
        return lambda spec: role_of(spec.name, spec.shape).value == position
    if not 1 <= len(position) <= PATTERN_LENGTH or not position.isascii() or not position.isprintable():
        raise UsageError("bad_position", "is no position", got=repr(position[:40]), hint=_HINT)
    if position.startswith("re:"):
        try:
            expression = re.compile(position[3:])
        except re.error as error:
            raise UsageError("bad_position", f"bad regular expression: {error}", got=position) from error
        return lambda spec: expression.search(spec.name) is not None
    globs = [re.compile(fnmatch.translate(text)) for text in position.split(",") if text]
    return lambda spec: any(glob.match(spec.name) for glob in globs)


# --- fused matrices -----------------------------------------------------------------------------------------

_THIRDS = re.compile(r"(?:^|\.)(?:attn|attention)\.(?:Wqkv\.weight|qkv\.weight|in_proj_weight)\Z")
_HALVES = re.compile(r"(?:^|\.)mlp\.(?:gate_up_proj|Wi)\.weight\Z")
_QKV = re.compile(r"(?:^|\.)self_attn\.qkv_proj\.weight\Z")
_FALCON = re.compile(r"(?:^|\.)self_attention\.query_key_value\.weight\Z")

Blocks = tuple[tuple[int, int], ...]


def matrix_rows(name: str, shape: tuple[int, ...]) -> int:
    """Rows of the matrix view (obm-1 clause 6.1): shape[0], or all leading dimensions for stacked experts.

    Args:
        name: tensor name.
        shape: the shape that is encoded.
    """
    if len(shape) == 3 and _EXPERTS.search(name):
        return math.prod(shape[:2])
    return shape[0] if len(shape) >= 2 else 1


def blocks_of(name: str, shape: tuple[int, ...], config: Mapping[str, object] | None) -> Blocks | None:
    """The logical matrices of a fused one, where each is a run of whole rows (obm-1 clause 6.3).

    Fused tensors that interleave heads (GPT-NeoX, BLOOM) or lie transposed (GPT-2) have no such runs.

    Args:
        name: tensor name.
        shape: the shape that is encoded.
        config: the model's config.json, needed where grouped-query attention makes parts of unequal size.

    Returns:
        Run-length pairs (count, rows) whose products sum to `matrix_rows`; None where the tensor is one
        matrix.
    """
    rows = matrix_rows(name, shape)
    if len(shape) == 3 and _EXPERTS.search(name):
        return ((shape[0], shape[1]),) if shape[0] > 1 else None
    if len(shape) != 2 or not rows:
        return None
    if _HALVES.search(name) and rows % 2 == 0:
        return ((2, rows // 2),)
    if _THIRDS.search(name) and rows == 3 * shape[1]:
        return ((3, shape[1]),)
    if _QKV.search(name) or (_FALCON.search(name) and _is_multi_query(config)):
        return _query_key_value(rows, config)
    return None


def _query_key_value(rows: int, config: Mapping[str, object] | None) -> Blocks | None:
    heads = _size(config, "num_attention_heads")
    kv_heads = 1 if _is_multi_query(config) else _size(config, "num_key_value_heads") or heads
    if not heads or rows % (heads + 2 * kv_heads):
        return None
    head = rows // (heads + 2 * kv_heads)
    if head != (_size(config, "head_dim") or head):  # laid out otherwise, as in MiniMax's linear attention
        return None
    return ((3, heads * head),) if heads == kv_heads else ((1, heads * head), (2, kv_heads * head))


def _is_multi_query(config: Mapping[str, object] | None) -> bool:
    found = config or {}
    return found.get("multi_query") is True and found.get("new_decoder_architecture") is not True


def _size(config: Mapping[str, object] | None, key: str) -> int:
    """A positive size of the configuration, perhaps of its text model; 0 where there is none."""
    found = config or {}
    nested = found.get("text_config")
    value = found.get(key, nested.get(key) if isinstance(nested, Mapping) else None)
    return value if type(value) is int and value > 0 else 0

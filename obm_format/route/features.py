"""Features: the frozen backbone's last hidden state, averaged over the tokens of a text.

The backbone runs in float32 in evaluation mode, from local files, safetensors only, without code of its
folder.
Source: obm-1 clause 5.10.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from obm_format.checkpoint import open_checkpoint
from obm_format.errors import CheckpointError, UsageError
from obm_format.kernels.words import Float32

BATCH = 32
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")


class FeatureModel:
    """A backbone that is ready to give features.

    Args:
        base: checkpoint folder with configuration and tokenizer.

    Raises:
        UsageError: torch or transformers is not installed (`missing_dependency`), or there is no folder
            (`usage`).
        CheckpointError: no weights, a pickle, or files that transformers cannot load.
    """

    def __init__(self, base: str | os.PathLike[str]) -> None:
        self.path = Path(base)
        transformers = _transformers()
        with open_checkpoint(self.path):  # refuses pickles and folders without weights in our own words
            pass
        if not (self.path / "config.json").is_file():
            raise UsageError("usage", "features need a folder with config.json and a tokenizer", where=str(self.path))
        _check_tokenizer(self.path)
        local = {"local_files_only": True, "trust_remote_code": False}
        with _quiet(transformers), _load_errors(self.path):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(self.path, **local)
            model = transformers.AutoModel.from_pretrained(
                self.path, use_safetensors=True, dtype=_torch().float32, **local
            )
        encodes_apart = getattr(model.config, "is_encoder_decoder", False)
        self._model = (model.get_encoder() if encodes_apart else model).eval()

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text that the backbone has positions for."""
        positions = getattr(self._model.config, "max_position_embeddings", None)
        limits = [self._tokenizer.model_max_length, positions if isinstance(positions, int) else 0]
        return min(int(limit) for limit in (*limits, 1 << 20) if limit and limit > 0)

    def features(self, texts: Sequence[str], max_tokens: int) -> Float32:
        """The features of texts.

        Args:
            texts: at least one.
            max_tokens: tokens of a text that are looked at.

        Returns:
            float32[len(texts), d].

        Raises:
            UsageError: `usage`: no text, or a text without any token.
        """
        tokens = self._tokenize(texts, max_tokens)
        # neighbours in length share a batch, so that little is spent on padding
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        rows: dict[int, Float32] = {}
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            averages = self._averages([tokens[index] for index in batch])
            rows |= dict(zip(batch, averages, strict=True))
        return np.stack([rows[index] for index in range(len(texts))])

    def _tokenize(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        if not texts:
            raise UsageError("usage", "there is no text to route")
        limit = min(max_tokens, self.max_tokens)
        tokens: list[list[int]] = self._tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        for text, ids in zip(texts, tokens, strict=True):
            if not ids:
                raise UsageError("usage", "a text has no token", got=repr(text[:40]))
        return tokens

    def _averages(self, batch: Sequence[Sequence[int]]) -> Float32:
        torch = _torch()
        longest = max(len(ids) for ids in batch)
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            kept = mask.unsqueeze(-1).float()
            mean = (hidden * kept).sum(dim=1) / kept.sum(dim=1)
        return np.asarray(mean.numpy(), dtype=np.float32)


def _check_tokenizer(folder: Path) -> None:
    """Refuse a folder without tokenizer: for some models transformers would make an empty one, without a word."""
    if not any((folder / name).is_file() for name in _TOKENIZERS) and not any(folder.glob("*.model")):
        raise CheckpointError(
            "bad_checkpoint",
            "holds no tokenizer",
            where=str(folder),
            hint="routing needs config.json and the tokenizer files of the backbone",
        )


def _torch() -> Any:  # noqa: ANN401  the module itself
    try:
        import torch
    except ImportError as error:
        raise _missing("torch") from error
    return torch


def _transformers() -> Any:  # noqa: ANN401  the module itself
    _torch()
    try:
        import transformers
    except ImportError as error:
        raise _missing("transformers") from error
    return transformers


def _missing(name: str) -> UsageError:
    return UsageError("missing_dependency", f"{name} is not installed", hint="pip install 'obm-format[torch]'")


@contextlib.contextmanager
def _load_errors(path: Path) -> Iterator[None]:
    """Put what transformers says of a folder that it cannot load into one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            "bad_checkpoint",
            f"transformers cannot load it: {first}",
            where=str(path),
            hint="routing needs config.json and the tokenizer files of the backbone",
        ) from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:  # noqa: ANN401  the module itself
    """Without bars and reports of unused heads; as before afterwards."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

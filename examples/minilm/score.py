"""Score an encoder: mean-pooled features, the accuracy of a linear head, and the probe on frozen features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

MAX_TOKENS = 24
EMBED_BATCH = 64
PROBE_L2 = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
PROBE_ITERATIONS = 200

transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Head:
    """A linear classifier on pooled features: ``features @ weight.T + bias``."""

    weight: torch.Tensor
    bias: torch.Tensor

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Give one row of class scores per row of features."""
        return torch.nn.functional.linear(features, self.weight, self.bias)


@dataclass(frozen=True)
class Probe:
    """The best head on frozen features, and how it was chosen."""

    head: Head
    l2: float
    dev_accuracy: float


def embed(
    model: PreTrainedModel | str | os.PathLike[str],
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> torch.Tensor:
    """Turn texts into features: the mean of the last hidden state over a text's tokens.

    Args:
        model: A loaded encoder, or its checkpoint folder.
        texts: What to embed, in any order.
        tokenizer: Needed with a loaded encoder; by default the one in the checkpoint folder.

    Returns:
        One float32 row per text, in the order of the texts.

    Raises:
        ValueError: A loaded encoder came without a tokenizer.
    """
    if not isinstance(model, PreTrainedModel):
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
        model = load_encoder(model)
    if tokenizer is None:
        raise ValueError("a loaded encoder needs its tokenizer")
    tokens = tokenize(tokenizer, texts)
    # Neighbours in length share a batch, so hardly anything is spent on padding.
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    features = torch.empty(len(tokens), model.config.hidden_size)
    with torch.inference_mode():
        for start in range(0, len(order), EMBED_BATCH):
            batch = order[start : start + EMBED_BATCH]
            features[batch] = pooled(model, [tokens[index] for index in batch])
    return features


def accuracy(features: torch.Tensor, labels: Sequence[int], head: Head) -> float:
    """Give the share of rows whose highest class score is at their label."""
    hits = head.logits(features).argmax(dim=1) == torch.tensor(labels)
    return float(hits.double().mean())


def fit_probe(train: tuple[torch.Tensor, Sequence[int]], dev: tuple[torch.Tensor, Sequence[int]]) -> Probe:
    """Fit a softmax regression on frozen features, its regularisation chosen on the dev split.

    Args:
        train: Features and labels to fit on.
        dev: Features and labels to choose on; of equal scores the stronger regularisation wins.

    Returns:
        The chosen head with its dev accuracy.
    """
    probes = []
    for l2 in PROBE_L2:
        head = fit_head(*train, l2)
        probes.append(Probe(head, l2, accuracy(*dev, head)))
    return max(probes, key=lambda probe: (probe.dev_accuracy, probe.l2))


def fit_head(features: torch.Tensor, labels: Sequence[int], l2: float) -> Head:
    """Fit a softmax regression with L2 regularisation on standardised features.

    Args:
        features: One row per item.
        labels: One class number per row.
        l2: Weight of the squared norm of the standardised weights.

    Returns:
        A head for the features as they are: the standardisation is folded into it.
    """
    mean, std = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    rows, target = (features - mean) / std, torch.tensor(labels)
    weight = torch.zeros(int(target.max()) + 1, rows.shape[1], requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=PROBE_ITERATIONS, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = torch.nn.functional.linear(rows, weight, bias)
        value = torch.nn.functional.cross_entropy(scores, target) + l2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    folded = weight.detach() / std
    return Head(folded, bias.detach() - folded @ mean)


def save_head(head: Head, path: Path) -> None:
    """Write a head as a safetensors file."""
    save_file({"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}, path)


def load_head(path: Path) -> Head:
    """Read a head that ``save_head`` wrote."""
    return Head(**load_file(path))


def load_encoder(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Load an encoder from a checkpoint folder, ready to score: no dropout, and nothing from a network."""
    model: PreTrainedModel = AutoModel.from_pretrained(folder, local_files_only=True)
    return model.eval()


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Give the token numbers of each text, cut after ``MAX_TOKENS``."""
    encoded = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def pooled(model: PreTrainedModel, batch: Sequence[Sequence[int]]) -> torch.Tensor:
    """Run one batch of token numbers and average the last hidden state over the real tokens."""
    longest = max(len(tokens) for tokens in batch)
    ids = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in batch])
    mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in batch])
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    mean: torch.Tensor = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    return mean

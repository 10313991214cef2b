"""The demo's report: means over seeds, as report.json and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from examples.minilm import finetune, tasks
from examples.minilm.evaluate import Merge
from obm_format import CompressReport

ENDS = ("probe", "fine_tune")
VARIANTS = ("paper", "attention", "mlp", "linear")  # the last one is the default
ROUTED = ("routing", "1bit-merging")
UNROUTED = ("task-arithmetic", "ties")
COLUMNS = (*ENDS, *VARIANTS, *ROUTED, *UNROUTED)


@dataclass(frozen=True)
class Single:
    """One fine-tune with its experts: the default one's path, accuracies by column, sizes by variant, seconds."""

    run: finetune.Run
    path: Path
    accuracy: dict[str, float]
    sizes: dict[str, CompressReport]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Merged:
    """Right answers by task of one merged encoder, and seconds."""

    right: dict[str, int]
    seconds: dict[str, float]


def mean_report(
    seeds: Sequence[int],
    singles: Sequence[Single],
    merges: Sequence[tuple[Merge, Merged]],
    routes: Mapping[str, Sequence[str]],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The object of report.json.

    Args:
        seeds: the seeds.
        singles: one per seed and task.
        merges: every merged encoder with its right answers.
        routes: by task, the route of every test text.
        seconds: by step.
    """
    per_task = {}
    for task, chosen in routes.items():
        columns = {column: [_single(singles, task, seed, column) for seed in seeds] for column in (*ENDS, *VARIANTS)}
        columns |= {
            method: [_merged(merges, task, seed, method) / len(chosen) for seed in seeds]
            for method in (*ROUTED, *UNROUTED)
        }
        per_task[task] = {
            "n_test": len(chosen),
            "classes": len(tasks.load(task).classes),
            "accuracy": {column: fmean(values) for column, values in columns.items()},
            "per_seed": columns,
        }
    sent = [route == task for task, chosen in routes.items() for route in chosen]
    return {
        "schema": "obm.demo/1",
        "seeds": list(seeds),
        "tasks": per_task,
        "recovered": {column: _recovered(per_task, column) for column in COLUMNS[2:]},
        "router": {"n_test": len(sent), "accuracy": fmean(sent)},
        "files": _files(singles, seeds[0]),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def _single(singles: Sequence[Single], task: str, seed: int, column: str) -> float:
    (found,) = [one for one in singles if (one.run.task, one.run.seed) == (task, seed)]
    return found.accuracy[column]


def _merged(merges: Sequence[tuple[Merge, Merged]], task: str, seed: int, method: str) -> int:
    return sum(made.right[task] for merge, made in merges if (merge.seed, merge.method) == (seed, method))


def _files(singles: Sequence[Single], seed: int) -> dict[str, dict[str, float]]:
    return {
        f"{one.run.task}-{variant}": {"nbytes": made.nbytes, "dense_nbytes": made.dense_nbytes, "ratio": made.ratio}
        for one in singles
        if one.run.seed == seed
        for variant, made in one.sizes.items()
    }


def _recovered(per_task: Mapping[str, Any], column: str) -> float:
    """Mean over the tasks of (x - probe) / (fine-tune - probe)."""
    rows = [entry["accuracy"] for entry in per_task.values()]
    return fmean((row[column] - row["probe"]) / (row["fine_tune"] - row["probe"]) for row in rows)


def print_report(report: Mapping[str, Any]) -> None:
    """Print the report as a table for people."""
    tasks = report["tasks"]
    print(f"\nheld-out accuracy, mean of {len(report['seeds'])} seeds")
    print(f"{'':18}" + "".join(f"{name:>12}" for name in tasks) + f"{'recovered':>12}")
    for column in COLUMNS:
        cells = "".join(f"{entry['accuracy'][column]:12.1%}" for entry in tasks.values())
        recovered = report["recovered"].get(column)
        print(f"{_LABELS[column]:18}{cells}" + (f"{recovered:12.2f}" if recovered is not None else ""))
    router = report["router"]
    print(f"\nrouter: {router['accuracy']:.1%} of {router['n_test']} held-out texts sent to their task")
    print("\nfile sizes, first seed")
    for name, entry in report["files"].items():
        print(f"  {name:22}{entry['nbytes'] / 1e6:8.2f} MB {entry['ratio']:8.1%} of the dense fine-tune")
    print("\nseconds: " + ", ".join(f"{name} {value:.0f}" for name, value in report["seconds"].items()))


_LABELS = {
    "probe": "probe (frozen)",
    "fine_tune": "full fine-tune",
    "paper": "1 bit, paper",
    "attention": "1 bit, attention",
    "mlp": "1 bit, mlp",
    "linear": "1 bit, linear",
    "routing": "routing",
    "1bit-merging": "1bit-merging",
    "task-arithmetic": "task arithmetic",
    "ties": "TIES",
}

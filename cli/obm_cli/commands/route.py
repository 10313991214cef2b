"""`obm route`: train, evaluate and use a router."""

from __future__ import annotations

import dataclasses

import click

from obm_cli import output
from obm_cli.paths import InputPath, OutputPath
from obm_cli.registry import expert_path, registry_option
from obm_format.errors import UsageError

_prompts = click.option(
    "--prompts",
    metavar="NAME=F.jsonl",
    multiple=True,
    required=True,
    help='Texts of one route, one {"text": ...} per line; repeatable.',
)


@click.group("route")
def command() -> None:
    """Train, evaluate and use a router."""


@command.command("train")
@click.option("--base", metavar="BASE", required=True, type=InputPath(), help="The backbone, with its tokenizer.")
@_prompts
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the held-out choice.")
@click.option("-o", "--output", "out", metavar="R.obm", required=True, type=OutputPath(), help="The file to write.")
@output.json_option
def train(base: str, prompts: tuple[str, ...], seed: int, out: str, as_json: bool) -> None:
    """Fit a router on prompts per route, over the frozen backbone.

    Example: obm route train --base ./minilm --prompts math=m.jsonl --prompts chat=c.jsonl -o router.obm
    """
    from obm_format.route import train_router

    with output.progress_bar() as progress:
        trained = train_router(base, _read_prompts(prompts), out, seed=seed, progress=progress)

    def human() -> None:
        output.say(f"wrote {out}: routes {', '.join(trained.routes)}")
        output.say(f"  id        {trained.id}")
        output.say(f"  held out  {trained.held_out_accuracy:.1%} of {trained.held_out_n} prompts routed right")

    output.emit("route-train", dataclasses.asdict(trained), as_json=as_json, human=human)


@command.command("eval")
@click.option("--router", metavar="R", required=True, help="The router: a file or a reference.")
@click.option("--base", metavar="BASE", required=True, type=InputPath(), help="The backbone, with its tokenizer.")
@_prompts
@registry_option
@output.json_option
def evaluate(router: str, base: str, prompts: tuple[str, ...], registry: str | None, as_json: bool) -> None:
    """Count how many prompts a router sends the right way."""
    from obm_format.route import evaluate_router, load_router

    result = evaluate_router(load_router(expert_path(router, registry)), _read_prompts(prompts), base)

    def human() -> None:
        output.say(f"{result.accuracy:.1%} of {result.n} prompts routed right")
        names = sorted({name for row in result.confusion.values() for name in row})
        rows = [(true, *(row.get(name, 0) for name in names)) for true, row in result.confusion.items()]
        output.table(("FROM \\ TO", *names), rows)

    output.emit("route-eval", dataclasses.asdict(result), as_json=as_json, human=human)


@command.command("predict")
@click.argument("text", metavar="TEXT")
@click.option("--router", metavar="R", required=True, help="The router: a file or a reference.")
@click.option("--base", metavar="BASE", required=True, type=InputPath(), help="The backbone, with its tokenizer.")
@registry_option
@output.json_option
def predict(text: str, router: str, base: str, registry: str | None, as_json: bool) -> None:
    """Show where a router sends a text."""
    from obm_format.route import load_router

    (decision,) = load_router(expert_path(router, registry)).route([text], base)

    def human() -> None:
        output.say(decision.route)
        for name, probability in decision.probabilities.items():
            output.say(f"  {name}  {probability:.3f}")

    output.emit("route-predict", dataclasses.asdict(decision), as_json=as_json, human=human)


def _read_prompts(arguments: tuple[str, ...]) -> dict[str, list[str]]:
    from obm_format.route import read_prompts

    prompts: dict[str, list[str]] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or not name or not path:
            raise UsageError("usage", "prompts are given as NAME=FILE", where="--prompts", got=argument)
        prompts.setdefault(name, []).extend(read_prompts(path))
    return prompts

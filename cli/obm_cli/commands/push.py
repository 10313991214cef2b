"""`obm push`: publish an expert."""

from __future__ import annotations

import dataclasses

import click

from obm_cli import output
from obm_cli.paths import InputPath, NeededPath
from obm_cli.registry import open_registry, registry_option


@click.command("push")
@click.argument("file", metavar="X.obm", type=InputPath())
@click.argument("ref", metavar="REF")
@click.option("--move", is_flag=True, help="Move the tag if it names another expert.")
@click.option(
    "--ref", "bases", metavar="FILE", multiple=True, type=NeededPath(),
    help="The base vector that an rtvq expert refers to [default: looked for beside it]; repeatable.",
)  # fmt: skip
@registry_option
@output.json_option
def command(file: str, ref: str, move: bool, bases: tuple[str, ...], registry: str | None, as_json: bool) -> None:
    """Publish an expert in a registry.

    REF is namespace/backbone:tag. The backbone must be registered (`obm backbone add`) and be the one that
    the expert was made against. The base vector of an rtvq expert goes along.

    Example: obm push sentiment.obm acme/minilm:sentiment-v1
    """
    with open_registry(registry, ref) as there, output.progress_bar() as progress:
        result = there.push(file, ref, move=move, bases=bases, progress=progress)

    for warning in result.warnings:
        output.note(f"warning: {output.printable(warning)}")

    def human() -> None:
        sent, reused = output.nbytes(result.sent_bytes), output.nbytes(result.reused_bytes)
        output.say(f"pushed {result.ref}")
        output.say(f"  id        {result.id}")
        output.say(f"  manifest  {result.manifest_digest}")
        output.say(f"  sent      {sent}, {reused} were there already")

    output.emit("push", dataclasses.asdict(result), as_json=as_json, human=human)

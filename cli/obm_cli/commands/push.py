"""`obm push`: publish an expert."""

from __future__ import annotations

import dataclasses

import click

from obm_cli import output
from obm_cli.registry import open_registry, registry_option


@click.command("push")
@click.argument("file", metavar="X.obm", type=click.Path())
@click.argument("ref", metavar="REF")
@click.option("--move", is_flag=True, help="Move the tag if it names another expert.")
@registry_option
@output.json_option
def command(file: str, ref: str, move: bool, registry: str | None, as_json: bool) -> None:
    """Publish an expert in a registry.

    REF is namespace/backbone:tag. The backbone must be registered (`obm backbone add`) and be the one that
    the expert was made against.

    Example: obm push sentiment.obm acme/minilm:sentiment-v1
    """
    with open_registry(registry, ref) as there, output.progress_bar() as progress:
        result = there.push(file, ref, move=move, progress=progress)

    for warning in result.warnings:
        output.note(f"warning: {output.printable(warning)}")

    def human() -> None:
        sent, reused = output.nbytes(result.sent_bytes), output.nbytes(result.reused_bytes)
        output.say(f"pushed {result.ref}")
        output.say(f"  id        {result.id}")
        output.say(f"  manifest  {result.manifest_digest}")
        output.say(f"  sent      {sent}, {reused} were there already")

    output.emit("push", dataclasses.asdict(result), as_json=as_json, human=human)

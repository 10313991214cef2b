"""`obm tag`: another name for a published expert."""

from __future__ import annotations

import dataclasses

import click

from obm_cli import output
from obm_cli.registry import open_registry, registry_option


@click.command("tag")
@click.argument("ref", metavar="REF")
@click.argument("name", metavar="NAME")
@click.option("--move", is_flag=True, help="Move NAME if it names another expert.")
@registry_option
@output.json_option
def command(ref: str, name: str, move: bool, registry: str | None, as_json: bool) -> None:
    """Give a published expert another name.

    Example: obm tag acme/minilm:sentiment-v2 sentiment --move
    """
    with open_registry(registry, ref) as there:
        tagged = there.tag(ref, name, move=move)
    payload = dataclasses.asdict(tagged)
    output.emit("tag", payload, as_json=as_json, human=lambda: output.say(f"{tagged.ref} -> {tagged.manifest_digest}"))

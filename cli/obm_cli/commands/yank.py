"""`obm yank`: mark a published expert as not to be used."""

from __future__ import annotations

import dataclasses

import click

from obm_cli import output
from obm_cli.registry import open_registry, registry_option


@click.command("yank")
@click.argument("ref", metavar="REF")
@click.option("--reason", default="", metavar="TEXT", help="Why; shown to whoever pulls it.")
@click.option("--undo", is_flag=True, help="Take the mark away.")
@registry_option
@output.json_option
def command(ref: str, reason: str, undo: bool, registry: str | None, as_json: bool) -> None:
    """Mark a published expert as not to be used.

    It stays where it is, and whoever pulls it is warned.

    Example: obm yank acme/minilm:sentiment-v1 --reason "trained on the wrong split"
    """
    with open_registry(registry, ref) as there:
        yanked = there.yank(ref, reason=reason, undo=undo)
    word = "no longer yanked" if undo else "yanked"
    payload = dataclasses.asdict(yanked)
    output.emit("yank", payload, as_json=as_json, human=lambda: output.say(f"{yanked.ref} is {word}"))

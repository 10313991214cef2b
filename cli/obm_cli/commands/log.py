"""`obm log`: how a tag moved."""

from __future__ import annotations

import dataclasses

import click

from obm_cli import output
from obm_cli.registry import open_registry, registry_option


@click.command("log")
@click.argument("ref", metavar="REF")
@registry_option
@output.json_option
def command(ref: str, registry: str | None, as_json: bool) -> None:
    """Show how a tag moved.

    Example: obm log acme/minilm:sentiment
    """
    with open_registry(registry, ref) as there:
        events = there.log(ref)

    def human() -> None:
        rows = [(e.at, e.tag, e.actor, (e.old_digest or "-")[:19], (e.new_digest or "-")[:19]) for e in events]
        output.table(("WHEN", "TAG", "WHO", "FROM", "TO"), rows)

    output.emit("log", {"events": [dataclasses.asdict(event) for event in events]}, as_json=as_json, human=human)

"""`obm rm`: remove a tag or a published expert."""

from __future__ import annotations

import dataclasses

import click

from obm_cli import output
from obm_cli.registry import open_registry, registry_option


@click.command("rm")
@click.argument("ref", metavar="REF")
@registry_option
@output.json_option
def command(ref: str, registry: str | None, as_json: bool) -> None:
    """Remove a tag or a published expert.

    With a tag only the tag goes; with @sha256:... the expert and all its tags. Bytes go with `obm gc`.

    Example: obm rm acme/minilm:sentiment-v1
    """
    with open_registry(registry, ref) as there:
        removed = there.remove(ref)
    payload = dataclasses.asdict(removed)
    output.emit("rm", payload, as_json=as_json, human=lambda: output.say(f"removed {removed.ref}"))

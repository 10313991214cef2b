"""`obm pull`: fetch an expert."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from obm_cli import output
from obm_cli.paths import OutputPath
from obm_cli.registry import open_registry, registry_option


@click.command("pull")
@click.argument("ref", metavar="REF")
@click.option("-o", "--output", "out", type=OutputPath(), help="The file to write [default: TAG.obm].")
@registry_option
@output.json_option
def command(ref: str, out: str | None, registry: str | None, as_json: bool) -> None:
    """Fetch an expert from a registry.

    Every segment is checked against its digest, and the file appears whole or not at all. The base vector of an
    rtvq expert is written beside it.

    Example: obm pull acme/minilm:sentiment-v1 -o sentiment.obm
    """
    from obm_registry.refs import parse_ref

    parsed = parse_ref(ref)
    target = Path(out) if out else Path(f"{parsed.tag or parsed.backbone}.obm")
    with open_registry(registry, ref) as there, output.progress_bar() as progress:
        result = there.pull(ref, target, progress=progress)

    for warning in result.warnings:
        output.note(f"warning: {output.printable(warning)}")

    def human() -> None:
        output.say(f"pulled {result.ref} to {target}")
        output.say(f"  id        {result.id}")
        output.say(f"  received  {output.nbytes(result.received_bytes)}, every segment verified")

    output.emit("pull", {"file": str(target), **dataclasses.asdict(result)}, as_json=as_json, human=human)

"""`obm ls`: list experts."""

from __future__ import annotations

import dataclasses

import click

from obm_cli import output
from obm_cli.registry import open_registry, registry_option


@click.command("ls")
@click.argument("ref", metavar="[REF]", required=False)
@registry_option
@output.json_option
def command(ref: str | None, registry: str | None, as_json: bool) -> None:
    """List the experts of a registry.

    With REF (namespace/backbone) only those of that repository.

    Example: obm ls acme/minilm
    """
    with open_registry(registry, ref) as there:
        experts = there.experts(ref)

    def human() -> None:
        if not experts:
            output.note("no experts here; `obm push X.obm NAMESPACE/BACKBONE:TAG` publishes one")
            return
        rows = [(e.ref, e.task or "-", e.position, output.nbytes(e.nbytes), e.id[12:24]) for e in experts]
        output.table(("REF", "TASK", "POSITION", "SIZE", "ID"), rows)

    output.emit("ls", {"experts": [dataclasses.asdict(e) for e in experts]}, as_json=as_json, human=human)

"""`obm gc`: delete stored bytes that nothing refers to."""

from __future__ import annotations

import dataclasses

import click

from obm_cli import output
from obm_cli.registry import open_embedded_registry, registry_option


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Show what would go.")
@click.option(
    "--grace", type=click.FloatRange(min=0), default=24.0, show_default=True, metavar="HOURS",
    help="Keep what was stored or touched since then.",
)  # fmt: skip
@registry_option
@output.json_option
def command(dry_run: bool, grace: float, registry: str | None, as_json: bool) -> None:
    """Delete stored bytes that nothing refers to."""
    with open_embedded_registry(registry) as there:
        result = there.gc(dry_run=dry_run, grace_s=grace * 3600)
    verb = "would delete" if dry_run else "deleted"

    def human() -> None:
        output.say(f"{verb} {result.deleted} blobs, {output.nbytes(result.deleted_bytes)}")

    output.emit("gc", {"dry_run": dry_run, **dataclasses.asdict(result)}, as_json=as_json, human=human)

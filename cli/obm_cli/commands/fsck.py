"""`obm fsck`: check the registry's catalog against its bytes."""

from __future__ import annotations

import dataclasses

import click

from obm_cli import output
from obm_cli.registry import open_embedded_registry, registry_option
from obm_format.errors import EXIT_INTEGRITY


@click.command("fsck")
@registry_option
@output.json_option
@click.pass_context
def command(ctx: click.Context, registry: str | None, as_json: bool) -> None:
    """Check the registry's catalog against its bytes.

    Every blob is read and hashed.

    Exit status 4 if something is damaged or missing.
    """
    with open_embedded_registry(registry) as there, output.progress_bar() as progress:
        report = there.fsck(progress=progress)

    def human() -> None:
        for problem in report.problems:
            output.say(output.printable(problem))
        output.say(f"{report.blobs} blobs, {output.nbytes(report.nbytes)}: {len(report.problems)} problems")

    output.emit("fsck", {"ok": not report.problems, **dataclasses.asdict(report)}, as_json=as_json, human=human)
    if report.problems:
        ctx.exit(EXIT_INTEGRITY)

"""`obm cache`: the cache of pulled experts."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import click

from obm_cli import output, settings
from obm_format.errors import EXIT_INTEGRITY

if TYPE_CHECKING:
    from obm_registry.client.cache import Cache, CachedExpert


@click.group("cache")
def command() -> None:
    """Show, shrink and check the cache of pulled experts."""


def _cache() -> Cache:
    from obm_registry.client.cache import Cache

    return Cache(settings.cache(), settings.cache_limit())


def _row(entry: CachedExpert) -> dict[str, object]:
    used = datetime.datetime.fromtimestamp(entry.used_at, datetime.UTC).isoformat(timespec="seconds")
    return {"id": entry.id, "nbytes": entry.nbytes, "used_at": used, "complete": entry.complete}


@command.command("ls")
@output.json_option
def ls(as_json: bool) -> None:
    """List what is in the cache, the least recently used first."""
    entries = _cache().entries()
    rows = [_row(entry) for entry in entries]

    def human() -> None:
        table = [
            (row["used_at"], output.nbytes(entry.nbytes), "whole" if entry.complete else "unfinished", entry.id)
            for row, entry in zip(rows, entries, strict=True)
        ]
        output.table(("USED", "SIZE", "STATE", "ID"), table)

    output.emit("cache-ls", {"experts": rows, "limit": settings.cache_limit()}, as_json=as_json, human=human)


@command.command("prune")
@click.option("--all", "everything", is_flag=True, help="Remove all, also what was used just now.")
@output.json_option
def prune(everything: bool, as_json: bool) -> None:
    """Remove the least recently used until the cache is below OBM_CACHE_LIMIT.

    What is being downloaded stays.
    """
    cache = _cache()
    removed = cache.prune(0, in_use_s=-1e9) if everything else cache.prune(settings.cache_limit())
    total = sum(entry.nbytes for entry in removed)

    def human() -> None:
        output.say(f"removed {len(removed)} files, {output.nbytes(total)}")

    output.emit("cache-prune", {"removed": [_row(e) for e in removed], "nbytes": total}, as_json=as_json, human=human)


@command.command("verify")
@output.json_option
@click.pass_context
def verify(ctx: click.Context, as_json: bool) -> None:
    """Check every byte of every expert in the cache, and remove what is damaged.

    Exit status 4 if something was.
    """
    from obm_format.verify import verify_expert

    cache, damaged, checked = _cache(), [], 0
    with output.progress_bar() as progress:
        for entry in cache.entries():
            if entry.complete:
                checked += 1
                if not verify_expert(entry.path, expected_id=entry.id, progress=progress).ok:
                    cache.remove(entry)
                    damaged.append(entry)

    def human() -> None:
        for entry in damaged:
            output.say(f"removed {entry.id}: damaged")
        output.say(f"{checked} experts checked, {len(damaged)} damaged")

    payload = {"ok": not damaged, "checked": checked, "removed": [_row(entry) for entry in damaged]}
    output.emit("cache-verify", payload, as_json=as_json, human=human)
    if damaged:
        ctx.exit(EXIT_INTEGRITY)

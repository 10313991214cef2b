"""What the registry commands share: the `--registry` flag, the open registry, experts by path or reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from obm_cli import settings

if TYPE_CHECKING:
    from obm_registry.embedded import EmbeddedRegistry

registry_option = click.option("--registry", metavar="URL", help="The registry to use [default: the embedded one].")


@contextmanager
def open_registry(url: str | None) -> Iterator[EmbeddedRegistry]:
    """The registry that `url`, or the environment, names."""
    settings.require_embedded(url)
    from obm_registry.embedded import open_embedded

    with open_embedded(settings.home()) as registry:
        yield registry


def expert_source(text: str, registry: str | None = None) -> str | Path:
    """Where an expert is read from: an http(s) address as it is, all else by `expert_path`."""
    from obm_format.remote import is_url

    if not is_url(text):
        return expert_path(text, registry)
    settings.require_online(text)
    return text


def expert_path(text: str, registry: str | None = None) -> Path:
    """The file of an expert: `text` is a path if it ends in `.obm` or exists, else a reference to pull.

    What was pulled is kept in the cache by its artifact id.
    """
    path = Path(text)
    if text.endswith(".obm") or path.exists():
        return path
    with open_registry(registry) as open_one:
        found = open_one.resolve(text)
        kept = settings.cache() / "experts" / f"{found.id.removeprefix('obm1-sha256:')}.obm"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            open_one.pull(text, kept)
        return kept

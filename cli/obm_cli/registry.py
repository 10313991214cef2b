"""What the registry commands share: the `--registry` flag, the open registry, experts by path or reference."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from obm_cli import output, settings
from obm_format.errors import UsageError

if TYPE_CHECKING:
    from obm_registry.client.open import Places
    from obm_registry.embedded import EmbeddedRegistry
    from obm_registry.interface import ExpertRegistry

registry_option = click.option(
    "--registry",
    metavar="URL",
    help="The registry of references without a host: embedded, https://HOST, file://FOLDER, s3://BUCKET/PREFIX "
    "[default: OBM_REGISTRY, else the embedded one].",
)


@contextmanager
def open_embedded_registry(url: str | None) -> Iterator[EmbeddedRegistry]:
    """The embedded registry, for what only it can do; refuses when `url`, or the environment, names another."""
    settings.require_embedded(url)
    from obm_registry.embedded import open_embedded

    with open_embedded(settings.home()) as registry:
        yield registry


@contextmanager
def open_registry(url: str | None, ref: str | None = None) -> Iterator[ExpertRegistry]:
    """The registry that a reference's host names, else `url`, else the environment, else the embedded one."""
    from obm_registry.refs import parse_ref

    host = parse_ref(ref).host if ref is not None else None
    chosen = host or settings.registry_url(url)
    if chosen is None:
        with open_embedded_registry(url) as embedded:
            yield embedded
        return
    from obm_registry.client.open import open_client

    with open_client(chosen, places()) as remote:
        yield remote


def places() -> Places:
    """Where the client keeps things, from the environment."""
    from obm_registry.client.open import Places

    token, registry = os.environ.get("OBM_TOKEN_FILE"), settings.registry_url(None)
    return Places(
        home=settings.home(),
        cache=settings.cache(),
        limit=settings.cache_limit(),
        token=(Path(token), registry) if token and registry and settings.is_server(registry) else None,
        offline=settings.offline(),
    )


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
    if not text:
        raise UsageError("usage", "an empty word names no expert", hint="name a file or a reference")
    path = Path(text)
    if text.endswith(".obm") or path.exists():
        return path
    from obm_registry.manifest.bases import is_complete

    with open_registry(registry, text) as there:
        found = there.resolve(text)
        kept = settings.cache() / "experts" / f"{found.id.removeprefix('obm1-sha256:')}.obm"
        if not is_complete(kept):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with output.progress_bar() as progress:
                there.pull(text, kept, progress=progress)
        os.utime(kept)
        return kept

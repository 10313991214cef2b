"""Where things lie: folders and defaults from flags and environment variables."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from obm_format.errors import ObmError, UsageError


def home() -> Path:
    """The folder of the embedded registry: `OBM_HOME`, else the user's data folder."""
    chosen = os.environ.get("OBM_HOME")
    return Path(chosen) if chosen else Path(platformdirs.user_data_dir("obm", appauthor=False))


def cache() -> Path:
    """The folder of pulled experts: `OBM_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("OBM_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("obm", appauthor=False))


def cache_limit() -> int:
    """Bytes that the cache of pulled experts keeps: `OBM_CACHE_LIMIT`, else 20 GB.

    Raises:
        UsageError: it is no number of bytes.
    """
    text = os.environ.get("OBM_CACHE_LIMIT", "20000000000")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UsageError("usage", "OBM_CACHE_LIMIT is no number of bytes", got=text[:40], expected="20000000000")
    return int(text)


def offline() -> bool:
    """Whether to work from the cache alone: `OBM_OFFLINE` is set to something other than `0`."""
    return os.environ.get("OBM_OFFLINE", "0") not in ("", "0")


def registry_url(registry: str | None) -> str | None:
    """The registry that `--registry`, else `OBM_REGISTRY`, names; None for the embedded one."""
    chosen = registry or os.environ.get("OBM_REGISTRY")
    return None if chosen in (None, "", "embedded") else chosen


def is_server(url: str) -> bool:
    """Whether the URL of a registry names a server, rather than a layout."""
    return not url.startswith(("file://", "s3://"))


def require_online(address: str) -> None:
    """Refuse an address on the network where `OBM_OFFLINE` is set to anything but nothing or 0.

    Raises:
        ObmError: `network`.
    """
    if offline():
        where = address.partition("?")[0]
        raise ObmError("network", "OBM_OFFLINE is set", where=where, hint="unset it, or name a file")


def require_embedded(registry: str | None) -> None:
    """Refuse a registry other than the embedded one.

    Raises:
        UsageError: `registry`, or `OBM_REGISTRY` without it, names another one.
    """
    chosen = registry_url(registry)
    if chosen is not None:
        raise UsageError(
            "usage",
            "this is for the embedded registry alone",
            where=f"registry {chosen}",
            hint="leave out --registry and OBM_REGISTRY, or set them to `embedded`",
        )

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


def require_online(address: str) -> None:
    """Refuse an address on the network where `OBM_OFFLINE` is set to anything but nothing or 0.

    Raises:
        ObmError: `network`.
    """
    if os.environ.get("OBM_OFFLINE", "0") not in ("", "0"):
        where = address.partition("?")[0]
        raise ObmError("network", "OBM_OFFLINE is set", where=where, hint="unset it, or name a file")


def require_embedded(registry: str | None) -> None:
    """Refuse a registry other than the embedded one, which is all that this version speaks to.

    Raises:
        UsageError: `registry`, or `OBM_REGISTRY` without it, names another one.
    """
    chosen = registry or os.environ.get("OBM_REGISTRY")
    if chosen and chosen != "embedded":
        raise UsageError(
            "usage",
            "this version speaks to the embedded registry only",
            where=f"registry {chosen}",
            hint="leave out --registry and OBM_REGISTRY, or set them to `embedded`",
        )

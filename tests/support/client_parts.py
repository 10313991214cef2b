"""Parts of the client for tests: folders of its own, short pauses between tries."""

from __future__ import annotations

import time
from pathlib import Path

from obm_registry.client.credentials import Credential, CredentialFile
from obm_registry.client.http import Patience
from obm_registry.client.open import Places, open_client
from obm_registry.client.origin import parse_origin
from obm_registry.client.registry import ClientRegistry

# long enough for a server to notice that a connection broke
HASTE = Patience(stall_s=20.0, pause_s=0.02, sleep=lambda seconds: time.sleep(min(seconds, 0.05)))


def places(folder: Path, *, offline: bool = False, limit: int = 10**9) -> Places:
    """Home and cache under `folder`."""
    return Places(home=folder / "home", cache=folder / "cache", limit=limit, offline=offline)


def open_there(url: str, folder: Path, *, offline: bool = False, patience: Patience = HASTE) -> ClientRegistry:
    """The registry at `url`, with home and cache under `folder`."""
    return open_client(url, places(folder, offline=offline), patience=patience)


def log_in(address: str, secret: str, folder: Path) -> None:
    """Store a token for a server, as `obm login` does."""
    stored = CredentialFile(folder / "home" / "credentials.json")
    stored.put(parse_origin(address), Credential(username="token", secret=secret))

"""The file of the key that signs short-lived tokens."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from obm_format.errors import ObmError
from obm_registry.server.sessions import SessionKey, SignedSession, load_key

SESSION = SignedSession(public_id="a" * 16, scopes=(), expires_at=1000)


def test_a_key_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "server.key"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ObmError):
            load_key(path)
    assert list(tmp_path.iterdir()) == []
    assert load_key(path).read(load_key(path).sign(SESSION), 0) == SESSION
    assert [(found.name, found.stat().st_mode & 0o777) for found in tmp_path.iterdir()] == [("server.key", 0o600)]


def test_servers_that_start_together_have_one_key(tmp_path: Path) -> None:
    def load(_number: int) -> SessionKey:
        return load_key(tmp_path / "server.key")

    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(load, range(8)))
    assert all(key.read(keys[0].sign(SESSION), 0) == SESSION for key in keys)

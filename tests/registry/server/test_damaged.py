"""Objects that are lost or cut under the server's hands: told before a status goes out, and well when sent again."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from registry_server import RunningServer, push_blob


def object_of(server: RunningServer, digest: str) -> Path:
    with closing(sqlite3.connect(server.home / "registry.sqlite3")) as catalog:
        ((key,),) = catalog.execute("SELECT storage_key FROM blob WHERE digest = ?", (digest,))
    return server.home / "data" / key[:2] / key


@pytest.mark.parametrize("left", [None, 1_000_000, 2_999_999, 3_000_001])
def test_a_damaged_blob_is_an_error_and_can_be_sent_again(
    server: RunningServer, admin: httpx.Client, repo: str, left: int | None
) -> None:
    data = os.urandom(3_000_000)
    digest = push_blob(admin, repo, data)
    broken = object_of(server, digest)
    if left is None:
        broken.unlink()
    else:
        os.truncate(broken, left)
    for headers in ({}, {"Range": "bytes=5-"}, {"Range": "bytes=-5"}):
        refused = admin.get(f"/v2/{repo}/blobs/{digest}", headers=headers)
        assert refused.status_code == 500
        assert refused.json()["errors"][0]["detail"]["reason"] == "blob_damaged"
    assert admin.head(f"/v2/{repo}/blobs/{digest}").status_code == 404
    assert push_blob(admin, repo, data) == digest
    assert admin.get(f"/v2/{repo}/blobs/{digest}").content == data
    assert not broken.exists()
    assert admin.post("/api/v1/admin/fsck").json()["problems"] == []

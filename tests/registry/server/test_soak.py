"""I-15: a server that works on and on keeps its memory and its open files: round after round of the same work."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest
from registry_server import RunningServer, push_blob, push_image

ROUNDS = 4
PUSHES = 80
BLOB_NBYTES = 256 << 10
MORE_MIB = 8  # of private memory after the first round: the allocator's, no page of which grows with the work


def held(server: RunningServer) -> tuple[float, int]:
    """Private memory in MiB, and number of open files."""
    process = Path(f"/proc/{server.process.pid}")
    lines = process.joinpath("status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    return resident / 1024, len(list(process.joinpath("fd").iterdir()))


def work(client: httpx.Client, stranger: httpx.Client, repo: str, number: int) -> None:
    """Pushes in one piece and in several, pulls, lists, refusals, and uploads that are left alone."""
    for i in range(PUSHES):
        data = os.urandom(BLOB_NBYTES)
        digest = push_blob(client, repo, data)
        assert client.get(f"/v2/{repo}/blobs/{digest}").content == data
        where = client.post(f"/v2/{repo}/blobs/uploads/").headers["Location"]
        assert client.patch(where, content=data[:1000]).status_code == 202
        if i % 2:
            assert client.delete(where).status_code == 204
        push_image(client, repo, f"t{number}-{i}")
        client.get(f"/v2/{repo}/tags/list", params={"n": 100})
        assert client.get(f"/v2/{repo}/manifests/absent").status_code == 404
        assert stranger.get("/v2/").status_code == 401


@pytest.mark.slow
def test_i15_memory_and_open_files_stay(server: RunningServer, repo: str) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    client, stranger = server.client(), server.client("")
    seen = []
    for number in range(ROUNDS):
        work(client, stranger, repo, number)
        seen.append(held(server))
    (first, files), (last, files_now) = seen[0], seen[-1]
    assert files_now <= files + 2, seen
    assert last < first + MORE_MIB, seen

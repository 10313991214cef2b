"""A server whose bytes lie in a bucket: who is sent there, with what (S-27), and who is not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from registry_server import RunningServer, digest_of, image, push_blob, put_manifest, running_server

from obm_cli.main import main

REPOSITORY = "acme/shelved"


@pytest.fixture
def shelved(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`obm serve --blobs s3://...` over a fresh prefix."""
    folder = tmp_path_factory.mktemp("shelved")
    options = ("--blobs", f"s3://shelf/{folder.name}", "--anonymous", "pull")
    with running_server(folder / "home", *options) as server:
        yield server


def test_s27_a_pull_is_sent_to_the_bucket_after_the_check_of_access(shelved: RunningServer, s3: str) -> None:
    admin, data = shelved.client(), os.urandom(100_000)
    digest = push_blob(admin, REPOSITORY, data)
    path = f"/v2/{REPOSITORY}/blobs/{digest}"
    admin.put("/api/v1/namespaces/acme", json={"visibility": "private"}).raise_for_status()
    for stranger in (shelved.client(""), shelved.client(shelved.token("nobody"))):
        refused = stranger.get(path)
        assert refused.status_code in (401, 403)
        assert "location" not in refused.headers

    reply = admin.get(path)
    assert (reply.status_code, reply.content) == (307, b"")
    assert (reply.headers["Docker-Content-Digest"], reply.headers["Cache-Control"]) == (digest, "no-store")
    target = urlsplit(reply.headers["Location"])
    query = parse_qs(target.query)
    assert f"{target.scheme}://{target.netloc}" == s3
    assert digest.partition(":")[2] not in target.path  # the key tells nothing
    assert int(query["X-Amz-Expires"][0]) <= 900
    assert query["X-Amz-SignedHeaders"] == ["host"]
    got = httpx.get(reply.headers["Location"], trust_env=False)
    assert (got.content, got.headers["Content-Type"]) == (data, "application/octet-stream")

    partial = admin.get(path, headers={"Range": "bytes=5-9"})
    assert partial.status_code == 307
    got = httpx.get(partial.headers["Location"], headers={"Range": "bytes=5-9"}, trust_env=False)
    assert (got.status_code, got.content) == (206, data[5:10])
    assert admin.get(path, headers={"Range": "bytes=100000-"}).status_code == 416
    head = admin.head(path)
    assert (head.status_code, head.headers["Content-Length"]) == (200, "100000")


def test_who_comes_from_elsewhere_is_not_sent_to_a_bucket_on_this_machine(shelved: RunningServer) -> None:
    admin, data = shelved.client(), b"x" * 3_000_000
    digest = push_blob(admin, REPOSITORY, data)
    headers = {"Host": "registry.example.com"}
    reply = admin.get(f"/v2/{REPOSITORY}/blobs/{digest}", headers=headers)
    assert (reply.status_code, reply.content) == (200, data)
    headers["Range"] = "bytes=2000000-2000003"
    reply = admin.get(f"/v2/{REPOSITORY}/blobs/{digest}", headers=headers)
    assert (reply.status_code, reply.content) == (206, b"xxxx")


def test_an_upload_in_pieces_survives_a_refused_end(shelved: RunningServer) -> None:
    admin, data = shelved.client(), os.urandom((20 << 20) + 3)  # above one part
    admin.put("/api/v1/namespaces/acme", json={"quota_nbytes": 1000}).raise_for_status()
    place = admin.post(f"/v2/{REPOSITORY}/blobs/uploads/").headers["Location"]
    half = len(data) // 2
    for start, stop in ((0, half), (half, len(data))):
        sent = admin.patch(place, content=data[start:stop], headers={"Content-Range": f"{start}-{stop - 1}"})
        assert sent.status_code == 202
    digest = digest_of(data)
    assert admin.put(place, params={"digest": digest}).status_code == 429  # over quota, after the bytes were moved
    admin.put("/api/v1/namespaces/acme", json={"quota_nbytes": None}).raise_for_status()
    assert admin.put(place, params={"digest": digest}).status_code == 201
    assert admin.get(f"/v2/{REPOSITORY}/blobs/{digest}", follow_redirects=True).content == data
    assert list((shelved.home / "incoming").glob("??/*")) == []
    assert admin.post("/api/v1/admin/fsck").json()["problems"] == []


def test_collection_takes_objects_out_of_the_bucket(shelved: RunningServer) -> None:
    admin = shelved.client()
    kept, gone = push_blob(admin, REPOSITORY, b"{}"), push_blob(admin, REPOSITORY, b"gone")
    assert put_manifest(admin, REPOSITORY, "x", image((kept, 2))).status_code == 201
    link = admin.get(f"/v2/{REPOSITORY}/blobs/{gone}").headers["Location"]
    time.sleep(0.01)  # a blob counts as unused when it was touched before now
    done = admin.post("/api/v1/admin/gc", params={"grace_hours": "0"}).json()
    assert (done["deleted"], done["orphans"]) == (1, 0)
    assert httpx.get(link, trust_env=False).status_code in (403, 404)  # S3 tells strangers no more
    assert admin.get(f"/v2/{REPOSITORY}/blobs/{kept}", follow_redirects=True).content == b"{}"


@pytest.mark.parametrize(("bucket", "code", "reason"), [("absent-shelf", 3, "not_found"), ("shut-shelf", 6, "denied")])
def test_a_bucket_that_cannot_be_used_is_told_at_the_start(
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    bucket: str,
    code: int,
    reason: str,
) -> None:
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    assert main(["serve", "--port", "0", "--blobs", f"s3://{bucket}/x", "--json"]) == code
    assert json.loads(capfd.readouterr().err.splitlines()[-1])["reason"] == reason

"""Blobs and uploads by the categories of the distribution spec's own conformance suite, for both digest algorithms."""

from __future__ import annotations

import random

import httpx
import pytest
from registry_server import digest_of, push_blob

SIZE = 3000  # the suite's ranges suppose a blob between 2,001 and 5,000 bytes
DATA = random.Random(1).randbytes(SIZE)
ALGORITHMS = pytest.mark.parametrize("algorithm", ["sha256", "sha512"])


def begin(client: httpx.Client, repo: str, **params: str) -> str:
    done = client.post(f"/v2/{repo}/blobs/uploads/", params=params)
    assert done.status_code == 202, done.text
    assert done.headers["Range"] == "0-0"
    return done.headers["Location"]


def patch(client: httpx.Client, where: str, data: bytes, start: int | None = None) -> httpx.Response:
    headers = {} if start is None else {"Content-Range": f"{start}-{start + len(data) - 1}"}
    return client.patch(where, content=data, headers={**headers, "Content-Type": "application/octet-stream"})


def put(client: httpx.Client, where: str, digest: str, data: bytes = b"", **headers: str) -> httpx.Response:
    return client.put(where, params={"digest": digest}, content=data, headers=headers)


def require_stored(client: httpx.Client, repo: str, digest: str, data: bytes) -> None:
    found = client.get(f"/v2/{repo}/blobs/{digest}")
    assert (found.status_code, found.content) == (200, data)
    assert found.headers["Docker-Content-Digest"] == digest
    head = client.head(f"/v2/{repo}/blobs/{digest}")
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(data)), b"")


def test_ping(admin: httpx.Client) -> None:
    done = admin.get("/v2/")
    assert done.status_code == 200
    assert done.headers["Docker-Distribution-API-Version"] == "registry/2.0"


@ALGORITHMS
def test_missing_blob(admin: httpx.Client, repo: str, algorithm: str) -> None:
    push_blob(admin, repo, b"other")
    for call in (admin.get, admin.head, admin.delete):
        found = call(f"/v2/{repo}/blobs/{digest_of(b'missing', algorithm)}")
        assert found.status_code == 404
        if call != admin.head:
            assert found.json()["errors"][0]["code"] == "BLOB_UNKNOWN"


@ALGORITHMS
def test_post_only(admin: httpx.Client, repo: str, algorithm: str) -> None:
    digest = digest_of(DATA, algorithm)
    done = admin.post(f"/v2/{repo}/blobs/uploads/", params={"digest": digest}, content=DATA)
    assert done.status_code == 201
    assert admin.get(done.headers["Location"]).content == DATA
    require_stored(admin, repo, digest, DATA)


@ALGORITHMS
def test_post_then_put(admin: httpx.Client, repo: str, algorithm: str) -> None:
    digest = digest_of(DATA, algorithm)
    where = begin(admin, repo, **{"digest-algorithm": algorithm})
    done = put(admin, where, digest, DATA)
    assert done.status_code == 201
    assert done.headers["Location"].endswith(digest)
    require_stored(admin, repo, digest, DATA)
    assert admin.get(where).status_code == 404


@ALGORITHMS
def test_algorithm_that_the_upload_did_not_announce(admin: httpx.Client, repo: str, algorithm: str) -> None:
    where = begin(admin, repo, **{"digest-algorithm": {"sha256": "sha512", "sha512": "sha256"}[algorithm]})
    assert patch(admin, where, DATA).status_code == 202
    assert put(admin, where, digest_of(DATA, algorithm)).status_code == 201


@ALGORITHMS
def test_one_chunk(admin: httpx.Client, repo: str, algorithm: str) -> None:
    digest = digest_of(DATA, algorithm)
    done = patch(admin, begin(admin, repo), DATA, 0)
    assert (done.status_code, done.headers["Range"]) == (202, f"0-{SIZE - 1}")
    assert put(admin, done.headers["Location"], digest).status_code == 201
    require_stored(admin, repo, digest, DATA)


@ALGORITHMS
@pytest.mark.parametrize("last_by_put", [False, True])
def test_many_chunks(admin: httpx.Client, repo: str, algorithm: str, last_by_put: bool) -> None:
    digest, where = digest_of(DATA, algorithm), begin(admin, repo)
    for start in (0, 1000):
        done = patch(admin, where, DATA[start : start + 1000], start)
        assert done.status_code == 202
        status = admin.get(done.headers["Location"])
        assert (status.status_code, status.headers["Range"]) == (204, f"0-{start + 999}")
        where = status.headers["Location"]
    if last_by_put:
        done = put(admin, where, digest, DATA[2000:], **{"Content-Range": f"2000-{SIZE - 1}"})
    else:
        where = patch(admin, where, DATA[2000:], 2000).headers["Location"]
        done = put(admin, where, digest)
    assert done.status_code == 201
    require_stored(admin, repo, digest, DATA)


@ALGORITHMS
def test_stream_without_length(admin: httpx.Client, repo: str, algorithm: str) -> None:
    digest = digest_of(DATA, algorithm)
    where = admin.patch(begin(admin, repo), content=iter([DATA[:7], DATA[7:]])).headers["Location"]
    assert put(admin, where, digest).status_code == 201
    require_stored(admin, repo, digest, DATA)


@pytest.mark.parametrize("start", [0, 999, 1001, 2000])
def test_chunk_out_of_order(admin: httpx.Client, repo: str, start: int) -> None:
    where = begin(admin, repo)
    where = patch(admin, where, DATA[:1000], 0).headers["Location"]
    refused = patch(admin, where, DATA[start : start + 1000], start)
    assert (refused.status_code, refused.headers["Range"]) == (416, "0-999")
    refused = put(admin, where, digest_of(DATA), DATA[2000:], **{"Content-Range": f"2000-{SIZE - 1}"})
    assert refused.status_code == 416
    where = admin.get(where).headers["Location"]
    where = patch(admin, where, DATA[1000:], 1000).headers["Location"]
    assert put(admin, where, digest_of(DATA)).status_code == 201


def test_chunk_of_another_length_than_its_range_is_refused(admin: httpx.Client, repo: str) -> None:
    refused = admin.patch(begin(admin, repo), content=DATA[:10], headers={"Content-Range": "0-99"})
    assert refused.status_code == 416


def test_cancel(admin: httpx.Client, repo: str) -> None:
    where = patch(admin, begin(admin, repo), DATA).headers["Location"]
    assert admin.delete(where).status_code == 204
    for done in (admin.get(where), admin.delete(where), put(admin, where, digest_of(DATA))):
        assert done.status_code == 404
        assert done.json()["errors"][0]["code"] == "BLOB_UPLOAD_UNKNOWN"


@ALGORITHMS
def test_mount(admin: httpx.Client, repo: str, algorithm: str) -> None:
    data = DATA + repo.encode()
    digest = digest_of(data, algorithm)
    admin.post(f"/v2/{repo}/blobs/uploads/", params={"digest": digest}, content=data)
    for query in ({"mount": digest, "from": repo}, {"mount": digest}):
        target = f"{repo}-{len(query)}"
        done = admin.post(f"/v2/{target}/blobs/uploads/", params=query)
        assert done.status_code == 201
        require_stored(admin, target, digest, data)


def test_mount_of_what_is_not_there_begins_an_upload(admin: httpx.Client, repo: str) -> None:
    for source in (repo, "acme/nowhere", "Not/A Name", ""):
        params = {"mount": digest_of(b"missing"), "from": source}
        done = admin.post(f"/v2/{repo}/blobs/uploads/", params=params)
        assert done.status_code == 202
        assert put(admin, done.headers["Location"], digest_of(DATA), DATA).status_code == 201


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("500-1499", 500, 1499), ("500-", 500, 2999), ("-500", 2500, 2999), ("2000-5000", 2000, 2999), ("-5000", 0, 2999)],
)
def test_range(admin: httpx.Client, repo: str, asked: str, first: int, last: int) -> None:
    digest = push_blob(admin, repo, DATA)
    found = admin.get(f"/v2/{repo}/blobs/{digest}", headers={"Range": f"bytes={asked}"})
    assert (found.status_code, found.headers["Content-Range"]) == (206, f"bytes {first}-{last}/{SIZE}")
    assert found.content == DATA[first : last + 1]
    assert found.headers["Content-Length"] == str(last + 1 - first)


@pytest.mark.parametrize("asked", ["500-0", "5000-10000", "3000-", "-0"])
def test_range_outside(admin: httpx.Client, repo: str, asked: str) -> None:
    digest = push_blob(admin, repo, DATA)
    refused = admin.get(f"/v2/{repo}/blobs/{digest}", headers={"Range": f"bytes={asked}"})
    assert (refused.status_code, refused.headers["Content-Range"]) == (416, f"bytes */{SIZE}")


@pytest.mark.parametrize(("same", "expected"), [(True, (206, DATA[:2])), (False, (200, DATA))])
def test_range_of_another_version_gives_everything(
    admin: httpx.Client, repo: str, same: bool, expected: tuple[int, bytes]
) -> None:
    digest = push_blob(admin, repo, DATA)
    tag = admin.head(f"/v2/{repo}/blobs/{digest}").headers["ETag"] if same else '"another"'
    found = admin.get(f"/v2/{repo}/blobs/{digest}", headers={"Range": "bytes=0-1", "If-Range": tag})
    assert (found.status_code, found.content) == expected


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "words=0-1", "bytes=-", "bytes=x-2"])
def test_range_of_another_kind_gives_everything(admin: httpx.Client, repo: str, asked: str) -> None:
    digest = push_blob(admin, repo, DATA)
    found = admin.get(f"/v2/{repo}/blobs/{digest}", headers={"Range": asked})
    assert (found.status_code, found.content) == (200, DATA)


@ALGORITHMS
@pytest.mark.parametrize("data", [b"", b"{}"], ids=["empty", "braces"])
@pytest.mark.parametrize("how", ["post", "put", "patch", "patch-nothing"])
def test_small_contents(admin: httpx.Client, repo: str, algorithm: str, data: bytes, how: str) -> None:
    digest = digest_of(data, algorithm)
    if how == "post":
        done = admin.post(f"/v2/{repo}/blobs/uploads/", params={"digest": digest}, content=data)
    elif how == "put":
        done = put(admin, begin(admin, repo), digest, data)
    elif how == "patch":
        done = put(admin, patch(admin, begin(admin, repo), data).headers["Location"], digest)
    else:
        done = put(admin, patch(admin, begin(admin, repo), b"").headers["Location"], digest, data)
    assert done.status_code == 201
    require_stored(admin, repo, digest, data)


@ALGORITHMS
@pytest.mark.parametrize("how", ["post", "put", "patch", "patch-put", "stream"])
def test_bad_digest(admin: httpx.Client, repo: str, algorithm: str, how: str) -> None:
    digest = digest_of(b"other", algorithm)
    if how == "post":
        done = admin.post(f"/v2/{repo}/blobs/uploads/", params={"digest": digest}, content=DATA)
    elif how == "put":
        done = put(admin, begin(admin, repo), digest, DATA)
    elif how == "patch":
        done = put(admin, patch(admin, begin(admin, repo), DATA, 0).headers["Location"], digest)
    elif how == "patch-put":
        where = patch(admin, begin(admin, repo), DATA[:5], 0).headers["Location"]
        done = put(admin, where, digest, DATA[5:], **{"Content-Range": f"5-{SIZE - 1}"})
    else:
        where = admin.patch(begin(admin, repo), content=iter([DATA])).headers["Location"]
        done = put(admin, where, digest)
    assert (done.status_code, done.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")
    for wrong in (digest, digest_of(DATA, algorithm)):
        assert admin.head(f"/v2/{repo}/blobs/{wrong}").status_code == 404


def test_put_without_a_digest_is_refused(admin: httpx.Client, repo: str) -> None:
    assert admin.put(begin(admin, repo), content=DATA).status_code == 400


@ALGORITHMS
def test_delete(admin: httpx.Client, repo: str, algorithm: str) -> None:
    digest = digest_of(DATA, algorithm)
    admin.post(f"/v2/{repo}/blobs/uploads/", params={"digest": digest}, content=DATA)
    assert admin.delete(f"/v2/{repo}/blobs/{digest}").status_code == 202
    assert admin.head(f"/v2/{repo}/blobs/{digest}").status_code == 404
    assert admin.delete(f"/v2/{repo}/blobs/{digest}").status_code == 404

"""Manifests, tags and referrers by the categories of the distribution spec's own conformance suite."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from registry_server import (
    IMAGE,
    INDEX,
    digest_of,
    image,
    next_page,
    push_blob,
    push_image,
    put_manifest,
)

THING = "application/vnd.example.thing.v1"
EMPTY = "application/vnd.oci.empty.v1+json"
Make = Callable[[httpx.Client, str], tuple[bytes, str]]


def descriptor(body: bytes, media_type: str = IMAGE, algorithm: str = "sha256", **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(body, algorithm), "size": len(body), **more}


def index(*children: dict[str, object], **fields: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(children), **fields}).encode()


def plain(client: httpx.Client, repo: str, data: bytes = b"config", **fields: object) -> bytes:
    """An image with a config and a layer, which are pushed."""
    blobs = [(push_blob(client, repo, part), len(part)) for part in (data, b"layer of " + data)]
    return image(*blobs, **fields)


def child(client: httpx.Client, repo: str, data: bytes, **fields: object) -> dict[str, object]:
    body = plain(client, repo, data, **fields)
    assert put_manifest(client, repo, digest_of(body), body).status_code == 201
    return descriptor(body)


def an_image(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    return plain(client, repo), IMAGE


def a_large_manifest(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    return plain(client, repo, annotations={"org.example.long": "x" * (4_000_000)}), IMAGE


def an_index(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    return index(child(client, repo, b"a"), child(client, repo, b"b")), INDEX


def a_nested_index(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    inner = index(child(client, repo, b"c"))
    assert put_manifest(client, repo, digest_of(inner), inner, INDEX).status_code == 201
    return index(descriptor(inner, INDEX), child(client, repo, b"d")), INDEX


def an_empty_index(_client: httpx.Client, _repo: str) -> tuple[bytes, str]:
    return index(), INDEX


def a_sparse_index(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    return index(child(client, repo, b"e"), descriptor(b"never pushed")), INDEX


def an_artifact(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    return plain(client, repo, artifactType=THING), IMAGE


def an_artifact_index(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    return index(child(client, repo, b"f", artifactType=THING), artifactType=THING), INDEX


def an_artifact_without_layers(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    config = {"mediaType": EMPTY, "digest": push_blob(client, repo, b"{}"), "size": 2}
    document = {"schemaVersion": 2, "mediaType": IMAGE, "artifactType": THING, "config": config, "layers": [config]}
    return json.dumps(document).encode(), IMAGE


def no_layers(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    return image((push_blob(client, repo, b"{}"), 2)), IMAGE


def a_data_field(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    config = {"mediaType": EMPTY, "digest": push_blob(client, repo, b"{}"), "size": 2, "data": "e30="}
    return json.dumps({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": []}).encode(), IMAGE


def custom_fields(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    return plain(client, repo, **{"org.example": {"x": [1, 2.5, None]}}), IMAGE


def a_subject(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    return plain(client, repo, artifactType=THING, subject=child(client, repo, b"subject")), IMAGE


def an_index_with_subject(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    return index(artifactType=THING, subject=child(client, repo, b"subject")), INDEX


def a_missing_subject(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    return plain(client, repo, subject=descriptor(b"never pushed")), IMAGE


def nondistributable(client: httpx.Client, repo: str) -> tuple[bytes, str]:
    away = descriptor(b"elsewhere", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")
    document = json.loads(plain(client, repo))
    document["layers"] = [away, *document["layers"]]
    return json.dumps(document).encode(), IMAGE


KINDS: list[Make] = [
    an_image,
    a_large_manifest,
    an_index,
    a_nested_index,
    an_empty_index,
    a_sparse_index,
    an_artifact,
    an_artifact_index,
    an_artifact_without_layers,
    no_layers,
    a_data_field,
    custom_fields,
    a_subject,
    an_index_with_subject,
    a_missing_subject,
    nondistributable,
]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_push_list_head_pull_refer_delete(admin: httpx.Client, repo: str, make: Make, algorithm: str) -> None:
    body, media_type = make(admin, repo)
    digest, subject = digest_of(body, algorithm), json.loads(body).get("subject")
    done = put_manifest(admin, repo, digest, body, media_type)
    assert done.status_code == 201, done.text
    assert done.headers["Docker-Content-Digest"] == digest
    assert done.headers.get("OCI-Subject") == (subject["digest"] if subject else None)
    assert admin.get(done.headers["Location"]).content == body
    tagged = push_tag(admin, repo, body, media_type)
    for reference, known in (("t", tagged), (digest, digest)):
        head = admin.head(f"/v2/{repo}/manifests/{reference}")
        assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(body)), b"")
        found = admin.get(f"/v2/{repo}/manifests/{reference}", headers={"Accept": media_type})
        assert (found.content, found.headers["Content-Type"]) == (body, media_type)
        assert found.headers["Docker-Content-Digest"] == known
    if subject:
        require_listed(admin, repo, subject["digest"], digest, json.loads(body))
    assert admin.delete(f"/v2/{repo}/manifests/t").status_code == 202
    assert admin.get(f"/v2/{repo}/manifests/t").status_code == 404
    for own in {digest, tagged}:
        assert admin.delete(f"/v2/{repo}/manifests/{own}").status_code == 202
        assert admin.get(f"/v2/{repo}/manifests/{own}").json()["errors"][0]["code"] == "MANIFEST_UNKNOWN"
    if subject:
        assert admin.get(f"/v2/{repo}/referrers/{subject['digest']}").json()["manifests"] == []


def push_tag(client: httpx.Client, repo: str, body: bytes, media_type: str) -> str:
    done = put_manifest(client, repo, "t", body, media_type)
    assert done.status_code == 201, done.text
    assert client.get(f"/v2/{repo}/tags/list").json() == {"name": repo, "tags": ["t"]}
    return done.headers["Docker-Content-Digest"]


def require_listed(client: httpx.Client, repo: str, subject: str, digest: str, document: dict[str, object]) -> None:
    found = client.get(f"/v2/{repo}/referrers/{subject}")
    assert found.headers["Content-Type"] == INDEX
    listed = {row["digest"]: row for row in found.json()["manifests"]}[digest]
    assert listed["mediaType"] == document["mediaType"]
    assert listed.get("artifactType") == document.get("artifactType", "application/x")
    filtered = client.get(f"/v2/{repo}/referrers/{subject}", params={"artifactType": listed["artifactType"]})
    assert digest in [row["digest"] for row in filtered.json()["manifests"]]
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    other = client.get(f"/v2/{repo}/referrers/{subject}", params={"artifactType": "application/other"})
    assert (other.json()["manifests"], other.headers["OCI-Filters-Applied"]) == ([], "artifactType")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_tag_parameter(admin: httpx.Client, repo: str, algorithm: str) -> None:
    body = plain(admin, repo)
    digest, tags = digest_of(body, algorithm), [f"t{i}" for i in range(12)]
    done = admin.put(
        f"/v2/{repo}/manifests/{digest}", params={"tag": tags}, content=body, headers={"Content-Type": IMAGE}
    )
    assert done.status_code == 201
    assert [tag.strip() for tag in done.headers["OCI-Tag"].split(",")] == tags
    for tag in tags:
        assert admin.head(f"/v2/{repo}/manifests/{tag}").headers["Docker-Content-Digest"] == digest


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_bad_digest(admin: httpx.Client, repo: str, algorithm: str) -> None:
    done = put_manifest(admin, repo, digest_of(b"other", algorithm), plain(admin, repo))
    assert (done.status_code, done.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")


def test_missing(admin: httpx.Client, repo: str) -> None:
    push_image(admin, repo, "t")
    for reference in ("absent", digest_of(b"absent"), digest_of(b"absent", "sha512")):
        for call in (admin.get, admin.head, admin.delete):
            assert call(f"/v2/{repo}/manifests/{reference}").status_code == 404


@pytest.mark.parametrize("reference", ["sha256:zz", "sha256:" + "a" * 63, "md5:" + "a" * 32, ".dot", "a" * 129])
def test_malformed_reference(admin: httpx.Client, repo: str, reference: str) -> None:
    assert admin.get(f"/v2/{repo}/manifests/{reference}").status_code == 400
    assert put_manifest(admin, repo, reference, plain(admin, repo)).status_code == 400


def test_missing_blob_is_named(admin: httpx.Client, repo: str) -> None:
    body = image((digest_of(b"never pushed"), 12))
    done = put_manifest(admin, repo, "t", body)
    assert (done.status_code, done.json()["errors"][0]["code"]) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert done.json()["errors"][0]["detail"]["where"] == digest_of(b"never pushed")


def test_manifest_above_the_limit(admin: httpx.Client, repo: str) -> None:
    for content in (b" " * (4 << 20) + b"{", iter([b" " * (1 << 20)] * 5)):
        done = admin.put(f"/v2/{repo}/manifests/t", content=content, headers={"Content-Type": IMAGE})
        assert done.status_code == 413


def test_type_that_differs_from_the_header(admin: httpx.Client, repo: str) -> None:
    assert put_manifest(admin, repo, "t", plain(admin, repo), INDEX).json()["errors"][0]["code"] == "MANIFEST_INVALID"


def test_empty_repository(admin: httpx.Client, repo: str) -> None:
    assert admin.get(f"/v2/{repo}/tags/list").status_code == 404
    found = admin.get(f"/v2/{repo}/referrers/{digest_of(b'x')}")
    assert (found.status_code, found.json()["manifests"]) == (200, [])
    assert admin.get(f"/v2/{repo}/referrers/sha256:zz").status_code == 400


def test_tags_page_in_order(admin: httpx.Client, repo: str) -> None:
    body = plain(admin, repo)
    tags = sorted(["b", "a", "A", "Z", "_x", "1", "a.b", "a-b"])
    done = admin.put(
        f"/v2/{repo}/manifests/{digest_of(body)}", params={"tag": tags}, content=body, headers={"Content-Type": IMAGE}
    )
    assert done.status_code == 201
    seen, where = [], f"/v2/{repo}/tags/list?n=3"
    while where:
        page = admin.get(where)
        seen.append(page.json()["tags"])
        where = next_page(page) or ""
    assert [tag for page in seen for tag in page] == tags
    assert [len(page) for page in seen] == [3, 3, 2]
    assert admin.get(f"/v2/{repo}/tags/list?last=_x").json()["tags"] == ["a", "a-b", "a.b", "b"]
    nothing = admin.get(f"/v2/{repo}/tags/list?n=0")
    assert (nothing.json()["tags"], "Link" in nothing.headers) == ([], False)


def test_catalog_pages(admin: httpx.Client, repo: str) -> None:
    names = sorted(f"{repo}/{letter}" for letter in "abc")
    for name in names:
        push_image(admin, name, "t")
    first = admin.get("/v2/_catalog", params={"n": 2, "last": repo + "/"})
    assert first.json()["repositories"] == names[:2]
    assert names[2] in admin.get(next_page(first) or "").json()["repositories"]


def test_referrers_page(admin: httpx.Client, repo: str) -> None:
    subject = descriptor(b"later")
    pushed = [
        push_image(admin, repo, f"t{i}", b"%d" % i, subject=subject, artifactType=THING, annotations={"n": str(i)})
        for i in range(52)
    ]
    first = admin.get(f"/v2/{repo}/referrers/{subject['digest']}", params={"artifactType": THING})
    second = admin.get(next_page(first) or "")
    assert "Link" not in second.headers
    rows = first.json()["manifests"] + second.json()["manifests"]
    assert [row["digest"] for row in rows] == pushed
    assert [row["annotations"] for row in rows] == [{"n": str(i)} for i in range(52)]


def test_a_subject_may_come_after_what_refers_to_it(admin: httpx.Client, repo: str) -> None:
    body = plain(admin, repo, b"late")
    digest = push_image(admin, repo, "t", subject=descriptor(body))
    assert put_manifest(admin, repo, "late", body).status_code == 201
    assert [row["digest"] for row in admin.get(f"/v2/{repo}/referrers/{digest_of(body)}").json()["manifests"]] == [
        digest
    ]


def test_push_twice_is_the_same(admin: httpx.Client, repo: str) -> None:
    assert push_image(admin, repo, "t") == push_image(admin, repo, "t")


def test_conditions_on_tags(admin: httpx.Client, repo: str) -> None:
    first, other = push_image(admin, repo, "t"), plain(admin, repo)
    assert put_manifest(admin, repo, "t", other, If_None_Match="*").status_code == 409
    assert put_manifest(admin, repo, "t", other, If_Match=f'"{digest_of(other)}"').status_code == 409
    assert put_manifest(admin, repo, "t", other, If_Match=f'"{first}"').status_code == 201
    assert put_manifest(admin, repo, "t", other, If_None_Match="*").status_code == 201
    moved = admin.head(f"/v2/{repo}/manifests/t")
    assert moved.headers["ETag"] == f'"{digest_of(other)}"'


def test_manifest_in_an_index_is_kept(admin: httpx.Client, repo: str) -> None:
    inner = child(admin, repo, b"inner")
    body = index(inner)
    assert put_manifest(admin, repo, "t", body, INDEX).status_code == 201
    assert admin.delete(f"/v2/{repo}/manifests/{inner['digest']}").status_code == 409
    assert admin.delete(f"/v2/{repo}/manifests/{digest_of(body)}").status_code == 202
    assert admin.delete(f"/v2/{repo}/manifests/{inner['digest']}").status_code == 202


def test_blob_that_a_manifest_names_is_kept(admin: httpx.Client, repo: str) -> None:
    digest = push_image(admin, repo, "t", b"kept")
    assert admin.delete(f"/v2/{repo}/blobs/{digest_of(b'kept')}").status_code == 409
    assert admin.delete(f"/v2/{repo}/manifests/{digest}").status_code == 202
    assert admin.delete(f"/v2/{repo}/blobs/{digest_of(b'kept')}").status_code == 202

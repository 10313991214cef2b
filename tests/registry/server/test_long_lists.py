"""Lists longer than a page: every row once, in pages of a bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from client_parts import log_in, open_there
from registry_pushes import BY_TESTER, REPO, manifest_body, push_blob
from registry_server import RunningServer, next_page, running_server
from sqlalchemy import insert

from obm_registry.catalog import tables
from obm_registry.manifest.oci import Descriptor, digest_of
from obm_registry.server.home import open_home
from obm_registry.service.publish import put_manifest
from obm_registry.service.registry import Registry

MANY = 10_000
N_REPOSITORIES = 2_500
N_TAGS = 1_001


def push_tags(registry: Registry, n: int) -> Descriptor:
    """A manifest with tags `t00000`, `t00001`, ...; what a subject says of it."""
    blob = push_blob(registry, b"{}")
    body = manifest_body(blob, blob)
    put_manifest(registry, REPO, body, change=BY_TESTER, tags=[f"t{i:05}" for i in range(n)])
    return Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=digest_of(body), size=len(body))


def rows(client: httpx.Client, path: str, key: str, *, most: int) -> Iterator[object]:
    """The rows of all pages of a list."""
    following: str | None = path
    while following is not None:
        reply = client.get(following).raise_for_status()
        page = reply.json()[key]
        assert 0 < len(page) <= most
        yield from page
        following = next_page(reply)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a repository of one tag more than a page holds."""
    home = tmp_path_factory.mktemp("short") / "home"
    with open_home(home) as registry:
        push_tags(registry, N_TAGS)
    with running_server(home) as server:
        yield server


@pytest.mark.parametrize("query", ["", "?n=1000", "?n=5000", "?n=400", f"?n={N_TAGS}"])
def test_tags_beyond_the_largest_page_are_listed(short: RunningServer, query: str) -> None:
    found = list(rows(short.client(), f"/v2/{REPO}/tags/list{query}", "tags", most=1000))
    assert found == [f"t{i:05}" for i in range(N_TAGS)]


@pytest.mark.slow
def test_ten_thousand_of_everything_are_listed_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_home(home) as registry:
        subject = push_tags(registry, MANY)
        blob = push_blob(registry, b"{}")
        sent = []
        for i in range(MANY):
            body = manifest_body(blob, blob, note=str(i), subject=subject)
            sent.append(put_manifest(registry, REPO, body, change=BY_TESTER).digest)
        with registry.catalog.write() as session:
            for i in range(N_REPOSITORIES):
                session.names.ensure_repository(f"acme/r{i:04}", "acme", registry.clock())
    with running_server(home) as server:
        client = server.client()
        assert list(rows(client, f"/v2/{REPO}/tags/list", "tags", most=1000)) == [f"t{i:05}" for i in range(MANY)]
        for query in ("", "?artifactType=application/x.thing"):
            listed = rows(client, f"/v2/{REPO}/referrers/{subject.digest}{query}", "manifests", most=50)
            digests = [row["digest"] for row in listed if isinstance(row, dict)]
            assert sorted(digests) == sorted(sent)
        names = list(rows(client, "/v2/_catalog", "repositories", most=1000))
        assert names == sorted([REPO, *(f"acme/r{i:04}" for i in range(N_REPOSITORIES))])
        log_in(server.url, server.admin, tmp_path)
        with open_there(server.url, tmp_path) as there:
            store = there._store
            assert len(store.tags(REPO)) == MANY
            assert {row.digest for row in store.referrers(REPO, subject.digest, "application/x.thing")} == set(sent)
            assert len(store.repositories()) == N_REPOSITORIES + 1


@pytest.mark.slow
def test_i11_a_hundred_thousand_repositories_are_listed_once(tmp_path: Path) -> None:
    home, many = tmp_path / "home", 100_000
    names = [f"acme/r{i:06}" for i in range(many)]
    with open_home(home) as registry, registry.catalog.write() as session:
        first = session.names.ensure_repository(names[0], "acme", 1)
        values = [{"namespace_id": first.namespace.id, "name": name, "created_at": 1} for name in names[1:]]
        session.connection.execute(insert(tables.repository), values)
    with running_server(home) as server:
        client = server.client()
        assert list(rows(client, "/v2/_catalog", "repositories", most=1000)) == names
        reader = server.client(server.token("reader", {"other": "reader"}))
        assert reader.get("/v2/_catalog").json()["repositories"] == []

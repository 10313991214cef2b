"""A server that lets callers without a token pull what is public."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from registry_server import RunningServer, push_image, running_server

from obm_registry.server.home import open_home
from obm_registry.service.namespaces import set_namespace_rules


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server") / "home", "--anonymous", "pull") as running:
        push_image(running.client(), "open/x", "t")
        push_image(running.client(), "closed/x", "t")
        with open_home(running.home) as registry:
            set_namespace_rules(
                registry,
                "closed",
                quota_nbytes=None,
                subject_policy="require",
                immutable_tags=(),
                visibility="private",
                actor="tester",
            )
        yield running


def test_strangers_pull_what_is_public(server: RunningServer) -> None:
    stranger = server.client("")
    assert stranger.get("/v2/open/x/manifests/t").status_code == 200
    assert stranger.get("/v2/_catalog").json()["repositories"] == ["open/x"]
    assert stranger.post("/v2/open/x/blobs/uploads/").status_code == 401
    assert stranger.delete("/v2/open/x/manifests/t").status_code == 401


def test_strangers_learn_nothing_of_what_is_private(server: RunningServer) -> None:
    stranger = server.client("")
    private, absent = (stranger.get(f"/v2/{name}/x/manifests/t") for name in ("closed", "absent"))
    assert private.status_code == absent.status_code == 401
    assert private.text.replace("closed", "N") == absent.text.replace("absent", "N")


def test_strangers_get_a_session_that_pulls(server: RunningServer) -> None:
    assert server.client("").get("/v2/").status_code == 401
    done = server.client("").get(
        "/v2/token", params={"scope": ["repository:open/x:pull,push", "repository:closed/x:pull"]}
    )
    session = server.client(done.json()["token"])
    assert session.get("/v2/").status_code == 200
    assert session.get("/v2/open/x/manifests/t").status_code == 200
    assert session.get("/v2/closed/x/manifests/t").status_code == 401
    assert session.post("/v2/open/x/blobs/uploads/").status_code == 401


def test_a_token_for_elsewhere_gets_what_strangers_get(server: RunningServer) -> None:
    client: httpx.Client = server.client(server.token("guest", {"rival": "admin"}))
    assert client.get("/v2/open/x/manifests/t").status_code == 200
    assert client.get("/v2/closed/x/manifests/t").status_code == 403
    assert client.post("/v2/open/x/blobs/uploads/").status_code == 403

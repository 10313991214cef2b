"""Every route of the application against all who may not: nobody gets more, and no refusal tells what is there."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import httpx
import pytest
from registry_server import START, RunningServer, digest_of, push_image, running_server
from starlette.routing import Route

from obm_registry.server.api.routes import API_ROUTES
from obm_registry.server.app import OCI_ROUTES
from obm_registry.server.home import open_home
from obm_registry.server.pages.views import PAGE_ROUTES
from obm_registry.service.access import revoke_token

PATIENT = (
    "from obm_registry.server import run, settings\n"
    "whole = run.serve\n"
    "limits = settings.Ceilings(wrong_credentials=10**9)\n"
    "run.serve = lambda options, ready: whole(options, ready, ceilings=limits)\n"
)
THERE, ABSENT = "hidden/model", "hidden/absent"
BLOB = b"secret bytes"
OPEN = {"/healthz/live", "/healthz/ready", "/openapi.json", "/style.css", "/icon.svg", "/", "/login", "/logout"}
OWN = {"/api/v1/whoami", "/api/v1/tokens", "/v2/token"}  # these tell a caller what it was given
LISTS = re.compile(
    r"/v2/_catalog|/v2/token|/api/v1/(backbones|search|whoami|tokens).*|/v2/?|/(backbones|search|experts).*"
)
CASES = [
    (route, method) for route in (*OCI_ROUTES, *API_ROUTES, *PAGE_ROUTES) for method in sorted(route.methods or ())
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("server") / "home"
    with running_server(home, "--anonymous", "pull", start=PATIENT + START) as running:
        yield running


@pytest.fixture(scope="module")
def names(server: RunningServer) -> dict[str, dict[str, str]]:
    """What stands for each placeholder of a path: something that is there, or something that is not."""
    admin = server.client()
    digest = push_image(admin, THERE, "the-tag", BLOB)
    assert admin.put("/api/v1/namespaces/hidden", json={"visibility": "private"}).status_code == 200
    session = admin.post(f"/v2/{THERE}/blobs/uploads/").headers["Location"].rpartition("/")[2]
    owner = server.token("owner", {"hidden": "reader"}).split("_")[1]
    common = {"fingerprint": "a" * 64, "principal": "owner"}
    there = {
        "name": THERE,
        "namespace": "hidden",
        "reference": "the-tag",
        "tag": "the-tag",
        "session": session,
        "id": owner,
    }
    absent = {
        "name": ABSENT,
        "namespace": "absent",
        "reference": "no-tag",
        "tag": "no-tag",
        "session": "0" * 32,
        "id": "f" * 16,
    }
    return {
        "there": {**there, **common, "digest": digest, "blob": digest_of(BLOB)},
        "absent": {**absent, **common, "digest": digest_of(b"no"), "blob": digest_of(b"none")},
    }


@pytest.fixture(scope="module")
def callers(server: RunningServer) -> dict[str, list[tuple[str, str]]]:
    """The header fields of callers who may read nothing in `hidden`; those with `known` are somebody."""
    late = server.token("late", {"hidden": "admin"}, lifetime_s=0.05)
    gone = server.token("gone", {"hidden": "admin"})
    with open_home(server.home) as registry:
        revoke_token(registry, gone.split("_")[1], actor="tester")
    time.sleep(0.1)
    good = server.token("good", {"hidden": "admin"})
    rival = server.token("rival", {"rival": "admin", "hidden/model": "admin", "hid": "admin"})
    near = ["hidden/mode:pull,push", "hidden/model/x:pull,push,admin", "hidden/model2:pull", "hid/*:admin"]
    narrow = server.token("narrow", {"hidden": "admin"}, scopes=near)
    shown = {
        "expired": f"Bearer {late}",
        "revoked": f"Bearer {gone}",
        "no token": "Bearer",
        "no kind": good,
        "another kind": f"Digest {good}",
        "a tab": f"Bearer\t{good}",
        "a longer one": f"Bearer {good}x",
        "two in one": f"Bearer {good}, Bearer {good}",
        "malformed Basic": "Basic ===",
        "known rival": f"bearer {rival}",
        "known narrow": f"BEARER {narrow}",
    }
    return {
        "nobody": [],
        "a cookie": [("Cookie", f"obm_visit={good}; session={good}")],
        "a proxy's word": [("X-Forwarded-User", "admin"), ("X-Forwarded-For", "127.0.0.1")],
        "two": [("Authorization", f"Bearer {rival}"), ("authorization", f"Bearer {good}")],
        **{name: [("Authorization", value)] for name, value in shown.items()},
    }


def asked(client: httpx.Client, route: Route, method: str, names: dict[str, str], who: list[tuple[str, str]]) -> str:
    """Status, challenge and body of the reply, with what names are in it taken out."""
    place = {**names, "digest": names["blob"]} if "/blobs/" in route.path else names
    path = re.sub(r"\{(\w+)(:path)?\}", lambda found: place[found[1]], route.path)
    reply = client.request(method, path, headers=who, content=b"{}" if method in ("PUT", "POST", "PATCH") else None)
    client.cookies.clear()
    told = f"{reply.status_code} {reply.headers.get('WWW-Authenticate', '')} {reply.text}"
    assert BLOB.decode() not in told
    if reply.status_code < 400 and route.path not in OWN:
        assert THERE not in told
    for name in sorted(place.values(), key=len, reverse=True):
        told = told.replace(name, "*")
    return told


@pytest.mark.parametrize(("route", "method"), CASES, ids=lambda case: case if isinstance(case, str) else case.path)
def test_nobody_gets_more(
    server: RunningServer,
    names: dict[str, dict[str, str]],
    callers: dict[str, list[tuple[str, str]]],
    route: Route,
    method: str,
) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        for caller, who in callers.items():
            there, absent = (asked(client, route, method, names[place], who) for place in ("there", "absent"))
            status = int(there[:3])
            if caller == "two":
                assert status == 400
            elif route.path not in OPEN and not LISTS.fullmatch(route.path):
                assert status == (403 if caller.startswith("known") else 401), caller
            if route.path not in OWN:
                assert there == absent, caller

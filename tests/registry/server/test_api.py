"""The API under /api/v1: every route is described, every answer fits its description, and who may ask."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from registry_files import write_backbone, write_expert
from registry_server import RunningServer, digest_of, next_page, push_image

from obm_format.checkpoint import open_checkpoint
from obm_registry.embedded import open_embedded
from obm_registry.server.api.routes import API_ROUTES
from obm_registry.server.api.upkeep import openapi_text

DESCRIPTION: dict[str, Any] = json.loads(openapi_text())
PATHS: dict[str, Any] = DESCRIPTION["paths"]
SLASHED = ("name", "namespace")  # parameters that may hold slashes


def ask(client: httpx.Client, method: str, path: str, status: int = 200, **options: Any) -> Any:  # noqa: ANN401
    """Send a request; its answer, which has to fit its description."""
    reply = client.request(method, path, **options)
    assert reply.status_code == status, reply.text
    answers = described(method, path)["responses"]
    answer = answers.get(str(status), answers["default"])
    if "content" not in answer:
        assert reply.content == b""
        return None
    schema = answer["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": DESCRIPTION["components"]}).validate(reply.json())
    return reply.json()


def described(method: str, path: str) -> dict[str, Any]:
    """The operation that a path means: of those that fit, the one with the most text of its own."""
    fitting = [
        template
        for template, methods in PATHS.items()
        if method.lower() in methods
        and re.fullmatch(re.sub(r"\{(\w+)\}", lambda m: ".+" if m[1] in SLASHED else "[^/]+", template), path)
    ]
    best = max(fitting, key=lambda template: len(re.sub(r"\{\w+\}", "", template)))
    operation: dict[str, Any] = PATHS[best][method.lower()]
    return operation


@pytest.fixture(scope="module")
def stocked(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A backbone with three experts in `shop/tiny`; its fingerprint, and the digests of the experts by task."""
    folder = tmp_path_factory.mktemp("files")
    with open_embedded(server.home, actor="shopkeeper") as registry:
        backbone = registry.add_backbone(write_backbone(folder / "base"), "shop/tiny")
        found = {"fingerprint": backbone.fingerprint}
        for seed, task in enumerate(("chat", "code", "math")):
            file = write_expert(folder / f"{task}.obm", folder / "base", task=task, seed=seed)
            found[task] = registry.push(file, f"shop/tiny:{task}-v1").manifest_digest
        registry.tag("shop/tiny:chat-v1", "chat")
        registry.tag("shop/tiny:code-v1", "chat", move=True)
    return found


def test_every_route_is_described_and_every_description_has_a_route() -> None:
    routes = {
        (route.path.replace(":path", ""), method)
        for route in API_ROUTES
        for method in route.methods or ()
        if method != "HEAD" and route.path != "/openapi.json"
    }
    assert routes == {(path, method.upper()) for path, methods in PATHS.items() for method in methods}


def test_description_names_every_parameter_and_schema() -> None:
    for path, methods in PATHS.items():
        for operation in methods.values():
            named = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path)), path
    used = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(DESCRIPTION)))
    assert used == set(DESCRIPTION["components"]["schemas"])
    Draft202012Validator.check_schema(DESCRIPTION["components"]["schemas"])


def test_description_is_served(server: RunningServer) -> None:
    assert server.client("").get("/openapi.json").json() == DESCRIPTION


def test_experts_of_a_backbone_with_their_numbers(admin: httpx.Client, stocked: dict[str, str]) -> None:
    path = f"/api/v1/backbones/{stocked['fingerprint']}/experts"
    found = ask(admin, "GET", path)["experts"]
    assert [row["task"] for row in found] == ["math", "code", "chat"]
    code = found[1]
    assert code["tags"] == ["chat", "code-v1"]
    assert code["manifest_digest"] == stocked["code"]
    assert code["encodings"] == {"sign1": 3}
    assert code["position"] == "linear"
    assert 0 < code["alpha"]["min"] < code["alpha"]["mean"] < code["alpha"]["max"]
    # 3 matrices of 12 x 16
    assert code["bits"] == pytest.approx(8 * code["nbytes"] / 576)
    assert code["backbone"]["fingerprint"] == stocked["fingerprint"]
    assert code["pushed_by"] == "shopkeeper"


@pytest.mark.parametrize(
    ("query", "tasks"),
    [
        ({"task": "chat"}, ["chat"]),
        ({"task": "cha"}, []),
        ({"position": "linear"}, ["math", "code", "chat"]),
        ({"encoding": "sign1"}, ["math", "code", "chat"]),
        ({"encoding": "sign"}, []),
        ({"q": "MATH"}, ["math"]),
        ({"q": "chat"}, ["code", "chat"]),
        ({"q": "%"}, []),
        ({"q": "_"}, []),
        ({"q": "' OR 1=1 --"}, []),
        ({"yanked": "true"}, []),
        ({"yanked": "false", "task": "math"}, ["math"]),
    ],
)
def test_search(admin: httpx.Client, stocked: dict[str, str], query: dict[str, str], tasks: list[str]) -> None:
    for path in ("/api/v1/search", "/api/v1/repositories/shop/tiny/experts"):
        assert [row["task"] for row in ask(admin, "GET", path, params=query)["experts"]] == tasks


def test_pages_follow_each_other(admin: httpx.Client, stocked: dict[str, str]) -> None:
    first = ask(admin, "GET", "/api/v1/search", params={"n": 2})
    assert [row["task"] for row in first["experts"]] == ["math", "code"]
    second = ask(admin, "GET", "/api/v1/search", params={"n": 2, "cursor": first["next"]})
    assert ([row["task"] for row in second["experts"]], second["next"]) == (["chat"], None)
    linked = admin.get("/api/v1/search", params={"n": 2, "q": "tiny"})
    assert admin.get(next_page(linked) or "").json() == second
    for cursor in ("x", "-1", "9" * 30):
        ask(admin, "GET", "/api/v1/search", 400, params={"cursor": cursor})


def test_backbones(admin: httpx.Client, stocked: dict[str, str]) -> None:
    (row,) = ask(admin, "GET", "/api/v1/backbones", params={"q": "shop"})["backbones"]
    assert (row["n_experts"], row["n_tensors"], row["architecture"]) == (3, 3, "TinyModel")
    one = ask(admin, "GET", f"/api/v1/backbones/{stocked['fingerprint']}")
    assert one["repositories"] == [{"repository": "shop/tiny", "n_experts": 3, "weights_digest": None}]
    ask(admin, "GET", f"/api/v1/backbones/{'0' * 64}", 404)
    ask(admin, "GET", "/api/v1/backbones/nonsense", 400)


def test_a_checkpoint_is_held_against_a_backbone(admin: httpx.Client, stocked: dict[str, str], tmp_path: Path) -> None:
    path = f"/api/v1/backbones/{stocked['fingerprint']}/check"
    with open_checkpoint(write_backbone(tmp_path / "base")) as checkpoint:
        rows = [[row.name, row.dtype_name, list(row.shape), row.sha256.hex()] for row in checkpoint.table()]
    own = ask(admin, "POST", path, json={"tensors": rows})
    assert own == {"matches": True, "fingerprint": stocked["fingerprint"], "n_differences": 0, "differences": []}
    first, second, _ = rows
    changed = [[*first[:3], "0" * 64], [*second[:2], [16, 12], second[3]], ["x", "F16", [1], "1" * 64]]
    other = ask(admin, "POST", path, json={"tensors": changed})
    assert (other["matches"], other["n_differences"]) == (False, 4)
    assert other["fingerprint"] != stocked["fingerprint"]
    assert other["differences"] == [
        {"tensor": "w0", "expected": f"SHA-256 {first[3][:16]}", "got": "SHA-256 0000000000000000"},
        {"tensor": "w1", "expected": "F32 [12, 16]", "got": "F32 [16, 12]"},
        {"tensor": "w2", "expected": "F32 [12, 16]", "got": "no such tensor"},
        {"tensor": "x", "expected": "no such tensor", "got": "F16 [1]"},
    ]
    many = [[f"t{i:02}", "F16", [1], "1" * 64] for i in range(50)]
    found = ask(admin, "POST", path, json={"tensors": many})
    assert (found["n_differences"], len(found["differences"])) == (53, 20)
    for wrong in (rows[::-1], [first, first], [first[:3]], [[*first[:3], "x"]], "rows", [["\n", *first[1:]]]):
        ask(admin, "POST", path, 400, json={"tensors": wrong})
    ask(admin, "POST", path, 400, json={})
    ask(admin, "POST", f"/api/v1/backbones/{'0' * 64}/check", 404, json={"tensors": rows})
    ask(admin, "POST", path, 413, content=b" " * ((8 << 20) + 1))


def test_tag_history(admin: httpx.Client, stocked: dict[str, str]) -> None:
    moves = ask(admin, "GET", "/api/v1/repositories/shop/tiny/tags/chat/history")["history"]
    assert [(move["old_digest"], move["new_digest"]) for move in moves] == [
        (stocked["chat"], stocked["code"]),
        (None, stocked["chat"]),
    ]
    ask(admin, "GET", "/api/v1/repositories/shop/tiny/tags/never/history", 404)


def test_yank_and_back(admin: httpx.Client, repo: str) -> None:
    digest = push_image(admin, repo, "t")
    path = f"/api/v1/repositories/{repo}/manifests/{digest}/yank"
    assert ask(admin, "PUT", path, json={"reason": 'leaks "x"\r\nSet-Cookie: y'})["yanked"]
    warned = admin.get(f"/v2/{repo}/manifests/t")
    assert warned.headers["Warning"].startswith('299 - "withdrawn: leaks')
    assert "Set-Cookie" not in warned.headers
    assert ask(admin, "DELETE", path)["yanked"] is None
    assert "Warning" not in admin.get(f"/v2/{repo}/manifests/t").headers


def test_tokens(server: RunningServer, admin: httpx.Client, repo: str) -> None:
    push_image(admin, repo, "t")
    made = ask(admin, "POST", "/api/v1/tokens", 201, json={"principal": "bot", "scopes": [f"{repo}:pull"], "days": 1})
    ask(admin, "PUT", "/api/v1/namespaces/acme/members/bot", json={"role": "writer"})
    bot = server.client(made["token"])
    assert bot.get(f"/v2/{repo}/manifests/t").status_code == 200
    assert bot.post(f"/v2/{repo}/blobs/uploads/").status_code == 403
    me = ask(bot, "GET", "/api/v1/whoami")
    assert me == {"name": "bot", "roles": {"acme": "writer"}, "limits": [[f"{repo}:pull"]]}
    # a narrow token makes no wider one, and nobody makes one for somebody else
    ask(bot, "POST", "/api/v1/tokens", 403, json={})
    # nor does it see or end another one than itself, and a short-lived one not even that
    beside = server.token("bot").split("_")[1]
    assert [token["id"] for token in ask(bot, "GET", "/api/v1/tokens")["tokens"]] == [made["id"]]
    ask(bot, "DELETE", f"/api/v1/tokens/{beside}", 404)
    ask(admin, "DELETE", f"/api/v1/tokens/{beside}", 204)
    session = server.client(bot.get("/v2/token", params={"scope": f"repository:{repo}:pull"}).json()["token"])
    ask(session, "DELETE", f"/api/v1/tokens/{made['id']}", 404)
    plain = server.client(server.token("plain", {"acme": "admin"}))
    ask(plain, "POST", "/api/v1/tokens", 403, json={"principal": "admin"})
    own = ask(plain, "POST", "/api/v1/tokens", 201, json={})
    assert [token["principal"] for token in ask(plain, "GET", "/api/v1/tokens")["tokens"]] == ["plain", "plain"]
    ask(plain, "DELETE", f"/api/v1/tokens/{made['id']}", 404)
    ask(plain, "DELETE", f"/api/v1/tokens/{own['id']}", 204)
    ask(server.client(own["token"]), "GET", "/api/v1/whoami", 401)
    ask(admin, "DELETE", f"/api/v1/tokens/{made['id']}", 204)
    ask(bot, "GET", "/api/v1/whoami", 401)
    listed = ask(admin, "GET", "/api/v1/tokens")["tokens"]
    assert {"bot": "revoked"}.items() <= {token["principal"]: token["state"] for token in listed}.items()
    assert not any("token" in token for token in listed)


def test_namespaces_and_members(server: RunningServer, admin: httpx.Client, repo: str) -> None:
    push_image(admin, "quota/x", "t", b"1234")
    ask(admin, "GET", "/api/v1/namespaces/absent", 404)
    rules = ask(admin, "GET", "/api/v1/namespaces/quota")
    assert (rules["quota_nbytes"], rules["visibility"]) == (None, "public")
    changed = ask(admin, "PUT", "/api/v1/namespaces/quota", json={"quota_nbytes": 5, "visibility": "private"})
    assert changed == {**rules, "quota_nbytes": 5, "visibility": "private"}
    full = admin.post("/v2/quota/x/blobs/uploads/?digest=sha256:" + "0" * 64, content=b"x" * 2000)
    assert full.status_code == 400
    for wrong in (
        {"visibility": "secret"},
        {"quota_nbytes": -1},
        {"quota_nbytes": 1.5},
        {"other": 1},
        [],
        {"immutable_tags": "x"},
    ):
        ask(admin, "PUT", "/api/v1/namespaces/quota", 400, json=wrong)
    ask(admin, "PUT", "/api/v1/namespaces/quota/members/chief", json={"role": "admin"})
    chief = server.client(server.token("chief"))
    ask(chief, "PUT", "/api/v1/namespaces/quota/members/mate", json={"role": "reader"})
    assert ask(chief, "GET", "/api/v1/namespaces/quota/members")["members"] == {"chief": "admin", "mate": "reader"}
    ask(chief, "DELETE", "/api/v1/namespaces/quota/members/mate")
    for path in ("/api/v1/namespaces/acme", "/api/v1/namespaces/*/members", "/api/v1/audit"):
        ask(chief, "GET", path, 403)
    ask(chief, "PUT", "/api/v1/namespaces/*/members/chief", 403, json={"role": "admin"})
    ask(chief, "PUT", "/api/v1/namespaces/quota/members/Bad Name", 400, json={"role": "admin"})
    ask(chief, "PUT", "/api/v1/namespaces/quota/members/mate", 400, json={"role": "king"})


def test_quota_holds(server: RunningServer, admin: httpx.Client) -> None:
    push_image(admin, "small/x", "t", b"1234")
    used = ask(admin, "GET", "/api/v1/namespaces/small")["used_nbytes"]
    ask(admin, "PUT", "/api/v1/namespaces/small", json={"quota_nbytes": used + 10})
    refused = admin.post("/v2/small/x/blobs/uploads/", params={"digest": digest_of(b"y" * 11)}, content=b"y" * 11)
    assert (refused.status_code, refused.json()["errors"][0]["detail"]["reason"]) == (429, "quota_exceeded")
    fits = admin.post("/v2/small/x/blobs/uploads/", params={"digest": digest_of(b"y" * 10)}, content=b"y" * 10)
    assert fits.status_code == 201
    assert ask(admin, "GET", "/api/v1/namespaces/small")["used_nbytes"] == used + 10


def test_upkeep(server: RunningServer, admin: httpx.Client, repo: str) -> None:
    push_image(admin, repo, "t", b"kept")
    assert ask(admin, "POST", "/api/v1/admin/gc", params={"dry_run": "true", "grace_hours": "0"})["dry_run"] is True
    for wrong in ({"grace_hours": "-1"}, {"grace_hours": "nan"}, {"grace_hours": "x"}, {"dry_run": "perhaps"}):
        ask(admin, "POST", "/api/v1/admin/gc", 400, params=wrong)
    ask(admin, "POST", "/api/v1/admin/gc", params={"grace_hours": "0"})
    assert ask(admin, "POST", "/api/v1/admin/fsck")["problems"] == []
    lines, cursor = [], None
    while True:
        page = ask(admin, "GET", "/api/v1/audit", params={"n": 50, **({"cursor": cursor} if cursor else {})})
        lines += page["lines"]
        cursor = page["next"]
        if cursor is None:
            break
    assert [line["id"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["action"] == "tag.set"


# what a stranger may ask for, and gets an empty or own list of
OWN = {"backbones", "experts", "tokens", "name", "roles", "limits", "token", "id", "principal", "scopes", "state"}
OWN |= {"created_at", "expires_at"}


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("/api/")])
def test_strangers_and_strange_members_get_nothing(server: RunningServer, stocked: dict[str, str], path: str) -> None:
    stranger = server.client(server.token("stranger", {"elsewhere": "admin"}))
    for template, value in (
        ("{fingerprint}", stocked["fingerprint"]),
        ("{name}", "shop/tiny"),
        ("{tag}", "chat"),
        ("{digest}", stocked["chat"]),
        ("{namespace}", "shop"),
        ("{principal}", "stranger"),
        ("{id}", server.admin.split("_")[1]),
    ):
        path = path.replace(template, value)
    for method in ("GET", "PUT", "POST", "DELETE"):
        nobody = server.client("").request(method, path)
        assert nobody.status_code in (401, 405)
        strange = stranger.request(method, path, json={"role": "admin"} if "members" in path else {})
        assert strange.status_code in (400, 403, 404, 405) or set(strange.json()) - {"next"} <= OWN
        assert not any(secret in strange.text for secret in ("shopkeeper", "TinyModel", stocked["code"]))


def test_health(server: RunningServer) -> None:
    assert ask(server.client(""), "GET", "/healthz/live") == {"live": True}
    assert ask(server.client(""), "GET", "/healthz/ready") == {"ready": True}

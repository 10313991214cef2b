"""I-14: whatever is asked of the API, the answer is one that its description names, and never a failure of the server.

Requests are drawn from the description itself: parameters and bodies that fit it, that nearly fit it, and that do not.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from registry_files import write_backbone, write_expert
from registry_server import RunningServer, running_server

from obm_registry.embedded import open_embedded
from obm_registry.server.api.upkeep import openapi_text

DESCRIPTION: dict[str, Any] = json.loads(openapi_text())
OPERATIONS = [(method, path) for path, methods in DESCRIPTION["paths"].items() for method in methods]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30)


def fitting(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that fit a schema of the description."""
    if "$ref" in schema:
        return fitting(DESCRIPTION["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds = schema.get("type", "string")
    return st.one_of(*(_of_kind(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)))


def _of_kind(kind: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if kind == "null":
        return st.none()
    if kind == "boolean":
        return st.booleans()
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -(10**6)))
        return st.integers(int(low), int(schema.get("maximum", 10**6)))
    if kind == "array":
        if "prefixItems" in schema:
            return st.tuples(*map(fitting, schema["prefixItems"])).map(list)
        return st.lists(fitting(schema.get("items", {})), max_size=min(4, schema.get("maxItems", 4)))
    if kind == "object":
        required = set(schema.get("required", ()))
        rows = {name: fitting(inner) for name, inner in schema.get("properties", {}).items()}
        return st.fixed_dictionaries(
            {name: row for name, row in rows.items() if name in required},
            optional={name: row for name, row in rows.items() if name not in required},
        )
    return st.from_regex(schema["pattern"], fullmatch=True) if "pattern" in schema else TEXT


def value_of(parameter: dict[str, Any], known: dict[str, list[str]]) -> st.SearchStrategy[str]:
    """What stands for a parameter: something that is there, something that fits, anything."""
    drawn = fitting(parameter.get("schema", {})).map(lambda value: json.dumps(value) if value is True else str(value))
    there = known.get(parameter["name"], [])
    return (st.sampled_from(there) if there else st.nothing()) | drawn | TEXT


@pytest.fixture(scope="module")
def known(contract: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Something that is there, by the name of the parameter that it may stand for."""
    folder = tmp_path_factory.mktemp("files")
    with open_embedded(contract.home, actor="keeper") as registry:
        backbone = registry.add_backbone(write_backbone(folder / "base"), "acme/tiny", with_weights=True)
        expert = registry.push(write_expert(folder / "x.obm", folder / "base"), "acme/tiny:chat")
    return {
        "name": ["acme/tiny"],
        "namespace": ["acme", "*"],
        "fingerprint": [backbone.fingerprint],
        "digest": [backbone.manifest_digest, expert.manifest_digest],
        "tag": ["chat", "backbone"],
        "principal": ["keeper"],
    }


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of its own: what is asked of it may change everything."""
    folder: Path = tmp_path_factory.mktemp("contract")
    with running_server(folder / "home") as server:
        yield server


@pytest.fixture(scope="module")
def asker(contract: RunningServer) -> Iterator[httpx.Client]:
    with contract.client() as client:
        yield client


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_i14_every_answer_is_one_that_is_described(
    asker: httpx.Client, known: dict[str, list[str]], method: str, path: str
) -> None:
    operation = DESCRIPTION["paths"][path][method]
    parameters = operation.get("parameters", [])
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        target, query = path, {}
        for parameter in parameters:
            name = parameter["name"]
            if parameter["in"] == "path":
                safe = string.ascii_letters + string.digits + "-._~/*:"
                target = target.replace(f"{{{name}}}", quote(data.draw(value_of(parameter, known)), safe=safe))
            elif parameter.get("required") or data.draw(st.booleans()):
                query[name] = data.draw(value_of(parameter, known))
        sent: dict[str, Any] = {"params": query}
        if body is not None or data.draw(st.booleans()):
            drawn = data.draw((fitting(body) if body is not None else st.nothing()) | JSON)
            sent["content"] = data.draw(st.sampled_from([json.dumps(drawn).encode(), b"", b"{", b"\xff"]))
        require_described(asker.request(method.upper(), target, **sent), operation)

    check()


def require_described(reply: httpx.Response, operation: dict[str, Any]) -> None:
    assert reply.status_code < 500, (reply.request.url, reply.text)
    answers = operation["responses"]
    answer = answers.get(str(reply.status_code), answers["default"])
    if "content" not in answer:
        assert reply.content == b""
        return
    assert reply.headers["Content-Type"].partition(";")[0] in answer["content"], reply.request.url
    schema = answer["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": DESCRIPTION["components"]}).validate(reply.json())

"""What every request passes first, without an HTTP server around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from obm_registry.blobs.local import LocalBlobs
from obm_registry.catalog.store import open_catalog
from obm_registry.server.guard import Guard, Stalled
from obm_registry.server.sessions import SessionKey
from obm_registry.server.settings import Ceilings, Server, make_server
from obm_registry.server.throttle import Throttle
from obm_registry.service.registry import Registry

CEILINGS = Ceilings(idle_s=0.1, burst=5, rate=1e-6)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    catalog = open_catalog(tmp_path / "db")
    registry = Registry(catalog=catalog, blobs=LocalBlobs(tmp_path / "data"))
    yield make_server(registry, SessionKey(b"k" * 32), ceilings=CEILINGS)
    catalog.close()


def scope(*headers: tuple[str, str], path: str = "/v2/") -> dict[str, Any]:
    fields = [(name.encode(), value.encode()) for name, value in headers]
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": fields,
        "client": ("127.0.0.1", 1),
    }


async def answer(_scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def sent(server: Server, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and error detail of the reply to a request whose body never comes."""
    messages: list[Message] = []

    async def run() -> None:
        async def never() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            messages.append(message)

        await Guard(answer, server)(asked, never, send)

    asyncio.run(run())
    body = b"".join(message.get("body", b"") for message in messages)
    return messages[0]["status"], json.loads(body)["errors"][0]["detail"] if body else {}


@pytest.mark.parametrize(
    "headers",
    [
        [("content-length", "4"), ("transfer-encoding", "chunked")],
        [("transfer-encoding", "gzip, chunked")],
        [("content-length", "4"), ("content-length", "4")],
        [("host", "a"), ("host", "b")],
        [("authorization", "Bearer a"), ("authorization", "Bearer b")],
        [("content-length", "-1")],
        [("content-length", "1" * 19)],
        [("content-encoding", "gzip")],
    ],
)
def test_ambiguous_heads_are_refused(server: Server, headers: list[tuple[str, str]]) -> None:
    status, detail = sent(server, scope(*headers))
    assert (status, detail["reason"]) == (400, "bad_request")


@pytest.mark.parametrize(
    "path", ["/v2/a%2fb/tags/list", "/v2/a%5Cb", "/v2/../x", "/v2/a/./b", "/v2/%2e%2e/x", "/%00", "/a\\b"]
)
def test_paths_that_hide_something_are_refused(server: Server, path: str) -> None:
    assert sent(server, scope(path=path))[0] == 400


def test_large_heads_are_refused(server: Server) -> None:
    for asked in (
        scope(("x", "y" * CEILINGS.header_nbytes)),
        scope(*[(f"x{i}", "y") for i in range(101)]),
        scope(path="/" + "x" * CEILINGS.target_nbytes),
    ):
        status, detail = sent(server, asked)
        assert (status, detail["reason"]) == (413, "limit_exceeded")


def test_too_many_requests_are_refused(server: Server) -> None:
    assert [sent(server, scope())[0] for _ in range(6)] == [200] * 5 + [429]


def test_throttle_gives_permits_back() -> None:
    now = [0.0]
    throttle = Throttle(per_second=2.0, burst=3, clock=lambda: now[0])
    for _ in range(3):
        assert throttle.wait_s("a") == 0
        throttle.take("a")
    assert throttle.wait_s("a") == pytest.approx(0.5)
    assert throttle.wait_s("b") == 0
    now[0] = 0.5
    assert throttle.wait_s("a") == 0


def received(server: Server, messages: list[Message]) -> list[str]:
    """What an application sees that reads on until somebody hangs up or stalls."""
    seen: list[str] = []

    async def reader(_scope: Scope, receive: Receive, _send: Send) -> None:
        try:
            while seen[-1:] != ["http.disconnect"]:
                seen.append((await receive())["type"])
        except Stalled:
            seen.append("stalled")

    async def run() -> None:
        queue = list(messages)

        async def receive() -> Message:
            if not queue:
                await asyncio.sleep(0.3)  # longer than may pass between two pieces of a body
                return {"type": "http.disconnect"}
            return queue.pop(0)

        async def send(_message: Message) -> None: ...

        await Guard(reader, server)(scope(), receive, send)

    asyncio.run(run())
    return seen


def test_a_stalled_body_ends(server: Server) -> None:
    piece = {"type": "http.request", "body": b"x", "more_body": True}
    assert received(server, [piece]) == ["http.request", "stalled"]


def test_a_slow_reply_does_not(server: Server) -> None:
    # once the body is there, an application asks on only to learn that the other side has gone
    whole = {"type": "http.request", "body": b"", "more_body": False}
    assert received(server, [whole]) == ["http.request", "http.disconnect"]

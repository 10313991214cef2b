"""Requests that no honest client sends: names, digests, framing, sizes, slowness."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_server import START, RunningServer, digest_of, image, push_blob, push_image, put_manifest, running_server

from obm_registry.manifest.oci import MAX_DESCRIPTORS
from obm_registry.server import run
from obm_registry.server.home import open_home
from obm_registry.service.blobs import put_blob

HEX = "a" * 64
IMPATIENT = (
    "from obm_registry.server import run, settings\n"
    "whole = run.serve\n"
    "limits = settings.Ceilings(idle_s=1.0, wrong_credentials=5, blob_nbytes=1 << 20)\n"
    "run.serve = lambda options, ready: whole(options, ready, ceilings=limits)\n"
)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose limits are soon reached."""
    with running_server(tmp_path_factory.mktemp("server") / "home", start=IMPATIENT + START) as running:
        yield running


def raw(server: RunningServer, request: bytes, wait_s: float = 10) -> bytes:
    """Send bytes as they are; everything that comes back until the other side closes, or until a reply is whole."""
    host, _, port = server.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
        connection.sendall(request)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
                head, blank, body = received.partition(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                if blank and lengths and len(body) >= int(lengths[0].partition(b":")[2]):
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return received


def head(server: RunningServer, method: str, target: str, *lines: str) -> bytes:
    fields = [f"{method} {target} HTTP/1.1", f"Host: {server.host}", f"Authorization: Bearer {server.admin}", *lines]
    return ("\r\n".join(fields) + "\r\n\r\n").encode("latin-1")


def status(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1]) if reply else 0


def files_of(server: RunningServer) -> set[Path]:
    return {path for path in server.home.parent.rglob("*") if path.is_file() and "registry.sqlite3" not in path.name}


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../x",
        "sha256:" + "A" * 64,
        f"sha256:%2e%2e%2f{HEX[6:]}",
        f"sha256:{HEX[1:]}%00",
        "sha256:" + "a" * 10_240,
        "md5:" + "a" * 32,
        f"sha512:{HEX}",
        f"SHA256:{HEX}",
        HEX,
        "..%2f..%2fetc%2fpasswd",
        "..\\..\\x",
        f"sha256:{HEX}:x",
    ],
)
def test_s01_digests(server: RunningServer, repo: str, digest: str) -> None:
    push_image(server.client(), repo, "t")
    before = files_of(server)
    for method, path in (
        ("GET", f"blobs/{digest}"),
        ("DELETE", f"blobs/{digest}"),
        ("GET", f"referrers/{digest}"),
        ("POST", f"blobs/uploads/?digest={digest}"),
        ("POST", f"blobs/uploads/?mount={digest}&from={repo}"),
    ):
        reply = raw(server, head(server, method, f"/v2/{repo}/{path}", "Content-Length: 0"))
        assert status(reply) in (400, 404, 413), (method, path[:80], reply[:200])
    assert files_of(server) == before


@pytest.mark.parametrize(
    "name",
    ["..", "a/..", "acme//x", "_a/b", ".a/b", "acme/x_", "A/B", "acme/" + "x" * 256, "acme/\u0445", "acme%2fx",
     "acme\\x", "acme/x%00", "acme/x%23y", "acme/x%3fy", "acme/./x", "acme/x%0d%0aX: y", "single", "acme/x%20y"],
)  # fmt: skip
def test_s02_names(server: RunningServer, name: str) -> None:
    before = files_of(server)
    encoded = name.encode().decode("latin-1")
    for method, path in (("GET", "tags/list"), ("POST", "blobs/uploads/"), ("PUT", "manifests/t")):
        reply = raw(server, head(server, method, f"/v2/{encoded}/{path}", "Content-Length: 0"))
        assert status(reply) in (400, 404), (method, reply[:200])
        assert b"X: y" not in reply
    assert files_of(server) == before


@pytest.mark.parametrize("tag", ["..", ".t", "-t", "a%2fb", "a" * 129, "t%00", "t%0a", "\u0442"])
def test_s02_tags(server: RunningServer, repo: str, tag: str) -> None:
    body = image((push_blob(server.client(), repo, b"{}"), 2))
    encoded = tag.encode().decode("latin-1")
    lines = ("Content-Type: application/vnd.oci.image.manifest.v1+json", f"Content-Length: {len(body)}")
    reply = raw(server, head(server, "PUT", f"/v2/{repo}/manifests/{encoded}", *lines) + body)
    assert status(reply) in (400, 404)
    digest = digest_of(body)
    reply = raw(server, head(server, "PUT", f"/v2/{repo}/manifests/{digest}?tag={encoded}", *lines) + body)
    assert status(reply) == 400


def test_s04_hostile_manifests(server: RunningServer, repo: str) -> None:
    client = server.client()
    config = {"mediaType": "a/b", "digest": push_blob(client, repo, b"{}"), "size": 2}
    plain = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config}
    text = json.dumps(plain)[:-1]
    row = json.dumps(config)
    for body in (
        text + ',"layers":[' + ",".join([row] * (MAX_DESCRIPTORS + 1)) + "]}",
        text + ',"x":' + "[" * 100_000 + "]" * 100_000 + "}",
        text + ',"layers":[],"layers":[]}',
        text + ',"layers":[],"schemaVersion":3}',
        text + ',"x":1' + "0" * 5000 + "}",
        text + ',"x":NaN}',
        text + ',"x":Infinity}',
        text.replace('"size": 2', '"size": 1' + "0" * 400) + "}",
        text.replace('"size": 2', '"size": -1') + "}",
        text.replace('"size": 2', '"size": 2.0') + "}",
        text.replace('"size": 2', '"size": true') + "}",
        "[]",
        "",
        "\xff",
        "null",
    ):
        done = put_manifest(client, repo, "t", body.encode("latin-1"))
        assert done.status_code in (400, 413), body[-60:]
    assert client.get(f"/v2/{repo}/manifests/t").status_code == 404


@pytest.mark.parametrize("size", [1, 3, 10**15])
def test_s05_declared_size_lies(server: RunningServer, repo: str, size: int) -> None:
    client = server.client()
    done = put_manifest(client, repo, "t", image((push_blob(client, repo, b"{}"), size)))
    assert (done.status_code, done.json()["errors"][0]["code"]) == (400, "MANIFEST_INVALID")


def test_s06_digest_of_another_algorithm(server: RunningServer, repo: str) -> None:
    client = server.client()
    crossed = "sha512:" + digest_of(b"{}")[7:] * 2
    done = client.post(f"/v2/{repo}/blobs/uploads/", params={"digest": crossed}, content=b"{}")
    assert (done.status_code, done.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("n", ["-1", "x", "1e3", "", "\u0661", "0x10"])
def test_s15_page_sizes_that_are_none(server: RunningServer, repo: str, n: str) -> None:
    push_image(server.client(), repo, "t")
    for path in ("/v2/_catalog", f"/v2/{repo}/tags/list"):
        assert server.client().get(path, params={"n": n}).status_code == 400


def test_s15_huge_pages_and_hostile_cursors(server: RunningServer, repo: str) -> None:
    client = server.client()
    push_image(client, repo, "t")
    for path in ("/v2/_catalog", f"/v2/{repo}/tags/list"):
        assert client.get(path, params={"n": str(10**18)}).status_code == 200
        assert client.get(path, params={"n": "9" * 400}).status_code == 200
        for last in ("'; DROP TABLE tag; --", "\x00", "%", "\U0010ffff" * 20, "x" * 5000):
            assert client.get(path, params={"last": last}).status_code == 200
    for after in ("-1", "x", "9" * 30, "1 OR 1=1"):
        assert client.get(f"/v2/{repo}/referrers/sha256:{HEX}", params={"after": after}).status_code == 400


def test_s17_large_heads(server: RunningServer) -> None:
    for lines in ((f"X-Large: {'x' * 200_000}",), tuple(f"X-{i}: y" for i in range(200))):
        assert status(raw(server, head(server, "GET", "/v2/", *lines))) in (0, 400, 413, 431)
    assert status(raw(server, head(server, "GET", f"/v2/?{'x' * 20_000}"))) in (413, 414)
    assert status(raw(server, head(server, "GET", "/v2/"))) == 200


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br", "deflate", "identity, gzip"])
def test_s19_compressed_bodies(server: RunningServer, repo: str, coding: str) -> None:
    done = server.client().post(f"/v2/{repo}/blobs/uploads/", content=b"x", headers={"Content-Encoding": coding})
    assert done.status_code == 400


def test_blob_above_the_limit(impatient: RunningServer) -> None:
    client, data = impatient.client(), b"x" * ((1 << 20) + 1)
    where = client.post("/v2/acme/x/blobs/uploads/").headers["Location"]
    assert client.patch(where, content=iter([data])).status_code == 413
    done = client.post("/v2/acme/x/blobs/uploads/", params={"digest": digest_of(data)}, content=data)
    assert done.status_code == 413


def test_s16_half_a_head_is_dropped(impatient: RunningServer) -> None:
    began = time.monotonic()
    raw(impatient, b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ", wait_s=20)
    assert time.monotonic() - began < 15


def test_s16_many_who_send_nothing_leave_room_for_others(server: RunningServer) -> None:
    host, _, port = server.host.partition(":")
    with contextlib.ExitStack() as idle:
        for _ in range(300):
            connection = idle.enter_context(socket.create_connection((host, int(port)), timeout=10))
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert status(raw(server, head(server, "GET", "/v2/"), wait_s=10)) == 200


def test_s16_half_a_body_is_dropped_and_what_came_is_kept(impatient: RunningServer) -> None:
    client, data = impatient.client(), os.urandom(5000)
    where = client.post("/v2/acme/slow/blobs/uploads/").headers["Location"]
    reply = raw(impatient, head(impatient, "PATCH", where, "Content-Length: 5000") + data[:2000], wait_s=20)
    assert status(reply) == 408
    assert client.get(where).headers["Range"] == "0-1999"
    done = client.put(where, params={"digest": digest_of(data)}, content=data[2000:])
    assert done.status_code == 201
    assert client.get(f"/v2/acme/slow/blobs/{digest_of(data)}").content == data


@pytest.mark.parametrize("lines", [(), ("Range: bytes=1-",)])
def test_s16_who_stops_reading_is_dropped(impatient: RunningServer, lines: tuple[str, ...]) -> None:
    data = os.urandom(24 << 20)  # more than the system takes for who does not read
    with open_home(impatient.home) as registry:
        put_blob(registry, "acme/slow", [data], digest_of(data))
    host, _, port = impatient.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head(impatient, "GET", f"/v2/acme/slow/blobs/{digest_of(data)}", *lines))
        time.sleep(5)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(1 << 20):
                received += len(chunk)
    assert received < len(data)
    assert "Traceback" not in impatient.log.read_text()


def test_s16_a_server_whose_parts_have_other_names_starts_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.GranianServer, "_init_shared_socket", lambda _: None)
    http = object.__new__(run._HttpServer)
    http._init_shared_socket()
    assert vars(http) == {}


def test_a_broken_connection_keeps_what_came(server: RunningServer, repo: str) -> None:
    client, data = server.client(), os.urandom(300_000)
    where = client.post(f"/v2/{repo}/blobs/uploads/").headers["Location"]
    host, _, port = server.host.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head(server, "PATCH", where, f"Content-Length: {len(data)}") + data[:100_000])
    deadline = time.monotonic() + 20
    while (found := client.get(where).headers["Range"]) != "0-99999":
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    rest = {"Content-Range": f"100000-{len(data) - 1}"}
    done = client.put(where, params={"digest": digest_of(data)}, content=data[100_000:], headers=rest)
    assert done.status_code == 201


def test_s26_guessing_is_slowed_down(impatient: RunningServer) -> None:
    guesses = [impatient.client("obm_0123456789abcdef_" + "A" * 43).get("/v2/").status_code for _ in range(8)]
    assert guesses[:5] == [401] * 5
    assert guesses[-1] == 429


def test_s21_what_is_sent_cannot_run_in_a_browser(server: RunningServer, repo: str) -> None:
    client, data = server.client(), b"<script>alert(1)</script>"
    digest = push_blob(client, repo, data)
    push_image(client, repo, "t", annotations={"x": "<script>"})
    for path in (f"/v2/{repo}/blobs/{digest}", f"/v2/{repo}/manifests/t", f"/v2/{repo}/manifests/absent", "/v2/"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "text/html" not in headers["Content-Type"]
    blob = client.get(f"/v2/{repo}/blobs/{digest}")
    assert blob.headers["Content-Disposition"] == "attachment"
    assert blob.headers["Content-Type"] == "application/octet-stream"


def test_s25_secrets_are_nowhere(server: RunningServer, repo: str) -> None:
    _, _, secret = server.admin.split("_", 2)  # the secret may hold further ones
    client = server.client()
    push_image(client, repo, "t")
    replies = [
        client.get("/v2/"),
        client.get(f"/v2/{repo}/manifests/absent"),
        client.get("/v2/token", params={"scope": f"repository:{repo}:pull", "account": server.admin}),
        server.client(server.admin + "x").get("/v2/"),
    ]
    assert not any(secret in reply.text or secret in str(reply.headers) for reply in replies)
    assert secret not in server.log.read_text()
    for path in server.home.rglob("*"):
        if path.is_file() and path.name != "admin.token":
            assert secret.encode() not in path.read_bytes(), path


def test_s32_files_with_secrets_are_for_their_owner(server: RunningServer) -> None:
    for name in ("admin.token", "server.key"):
        assert (server.home / name).stat().st_mode & 0o777 == 0o600
    assert server.home.stat().st_mode & 0o777 == 0o700

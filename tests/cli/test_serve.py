"""`obm serve` and `obm token` as people and programs start them."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from registry_server import START, RunningServer, push_image, running_server

from obm_cli.main import main


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """The error of a command that is refused."""
    assert main([*arguments, "--json"]) != 0
    error: dict[str, object] = json.loads(capfd.readouterr().err.splitlines()[-1])
    return error


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_first_line_tells_where_and_how(tmp_path: Path, home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START, "serve", "--port", "0"],
        env={**os.environ, "OBM_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stdout.close()
    assert said[0].startswith("obm registry at http://127.0.0.1:")
    assert str(home / "admin.token") in said[1]


def test_a_second_start_keeps_token_and_key(tmp_path: Path) -> None:
    with running_server(tmp_path / "home") as first:
        session = first.client().get("/v2/token", params={"scope": "repository:acme/x:pull"}).json()["token"]
    with running_server(tmp_path / "home") as second:
        assert second.admin == first.admin
        assert second.client(session).get("/v2/").status_code == 200


def test_sigterm_lets_an_upload_end_and_closes_the_port(tmp_path: Path) -> None:
    with running_server(tmp_path / "home") as server:
        client = server.client()
        where = client.post("/v2/acme/x/blobs/uploads/").headers["Location"]

        def slowly() -> object:
            yield b"first "
            while not list((server.home / "data").glob("??/*")):  # until the request is in hand
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            yield b"second"

        done = client.patch(where, content=slowly())  # type: ignore[arg-type]
        assert (done.status_code, done.headers["Range"]) == (202, "0-11")
        client.close()
        assert server.process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            server.client("").get("/v2/")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])  # noqa: S104 - refused
def test_other_interfaces_need_tls_or_a_clear_word(capfd: pytest.CaptureFixture[str], host: str, home: Path) -> None:
    error = refused(capfd, "serve", "--host", host, "--port", "0")
    assert (error["code"], error["reason"]) == (2, "usage")
    assert "--tls-cert" in str(error["expected"])
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--tls-cert", __file__), "usage"),
        (("--tls-cert", "absent.pem", "--tls-key", "absent.pem"), "not_found"),
        (("--db", "postgresql://db/obm"), "usage"),
        (("--blobs", "s3://"), "usage"),
        (("--blobs", "ftp://host/x"), "usage"),
        (("--blobs", "file://host/x"), "usage"),
        (("--host", "no such host"), "usage"),
        (("--anonymous", "push"), "usage"),
    ],
)
def test_what_cannot_be_served(capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str) -> None:
    # a host that is not of this machine is refused before its name is looked up
    error = refused(capfd, "serve", "--port", "0", *arguments)
    assert error["reason"] == reason


def test_a_port_in_use_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        error = refused(capfd, "serve", "--port", str(taken.getsockname()[1]))
    assert (error["code"], error["reason"]) == (7, "exists")


def test_two_servers_do_not_share_a_port(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running_server(tmp_path / "one") as server:
        error = refused(capfd, "serve", "--port", server.host.partition(":")[2])
        assert error["reason"] == "exists"


def test_parts_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "else where").mkdir()
    urls = f"sqlite://{tmp_path}/else%20where/c.db", f"file://{tmp_path}/bytes"
    with running_server(tmp_path / "home", "--db", urls[0], "--blobs", urls[1]) as server:
        push_image(server.client(), "acme/x", "t")
    assert (tmp_path / "else where" / "c.db").exists()
    assert list((tmp_path / "bytes").glob("??/*"))
    assert not (tmp_path / "home" / "registry.sqlite3").exists()


def test_a_catalog_is_opened_with_its_own_bytes_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A push past the server would name bytes that it does not find, and the other way round."""
    home, bytes_url = tmp_path / "home", f"file://{tmp_path}/bytes"
    with running_server(home, "--blobs", bytes_url) as server:
        push_image(server.client(), "acme/x", "t")
        assert server.obm("token", "ls")["tokens"]  # needs no bytes
    for command in (("ls",), ("gc",), ("fsck",), ("backbone", "ls")):
        error = refused(capfd, *command)
        assert (error["reason"], error["expected"]) == ("usage", f"--blobs {bytes_url}")
    with running_server(home, "--blobs", bytes_url) as server:
        assert server.client().get("/v2/acme/x/manifests/t").status_code == 200
    with pytest.raises(AssertionError, match="lie elsewhere"), running_server(home):
        pass
    # a catalog elsewhere leaves the folder's own alone
    with running_server(tmp_path / "two", "--db", f"sqlite://{tmp_path}/c.db", "--blobs", bytes_url) as server:
        assert server.obm("ls")["experts"] == []


def test_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ],
        check=True,
        capture_output=True,
    )
    with running_server(tmp_path / "home", "--tls-cert", str(certificate), "--tls-key", str(key)) as server:
        assert server.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=server.url, verify=trusted, trust_env=False) as client:
            refusal = client.get("/v2/")
            assert refusal.headers["WWW-Authenticate"].startswith(f'Bearer realm="{server.url}/v2/token"')
            headers = {"Authorization": f"Bearer {server.admin}"}
            assert client.get("/v2/", headers=headers).status_code == 200


def test_token_commands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> dict[str, object]:
        assert main([*arguments, "--json"]) == 0, capfd.readouterr().err
        found: dict[str, object] = json.loads(capfd.readouterr().out)
        return found

    with running_server(tmp_path / "home") as server:
        push_image(server.client(), "acme/x", "t")
        made = run("token", "create", "ci", "--role", "reader", "--namespace", "acme", "--days", "1")
        reader: RunningServer = server
        client = reader.client(str(made["token"]))
        assert client.get("/v2/acme/x/manifests/t").status_code == 200
        listed = run("token", "ls")["tokens"]
        assert isinstance(listed, list)
        assert {row["principal"]: row["state"] for row in listed} == {"admin": "good", "ci": "good"}
        assert not any("token" in row for row in listed)
        run("token", "revoke", str(made["id"]))
        assert client.get("/v2/acme/x/manifests/t").status_code == 401
    for arguments in (
        ("token", "create", "ci", "--role", "reader"),
        ("token", "create", "Not a Name"),
        ("token", "create", "anonymous"),
        ("token", "create", "ci", "--scope", "acme/x:fly"),
    ):
        assert refused(capfd, *arguments)["code"] == 2
    assert refused(capfd, "token", "revoke", str(made["id"]))["code"] == 3

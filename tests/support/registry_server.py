"""A real registry server in a process of its own, for tests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from obm_registry.server.home import open_home
from obm_registry.service.access import create_token, set_role

START = "from obm_cli.__main__ import run; run()"


@dataclass(frozen=True)
class RunningServer:
    """A server that takes connections; `admin` is its administrator's token."""

    url: str
    home: Path
    admin: str
    process: subprocess.Popen[str]
    log: Path
    clients: list[httpx.Client] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.url.partition("//")[2]

    def client(self, token: str | None = None, **kwargs: object) -> httpx.Client:
        """A client that shows `token`; "" for none, None for the administrator's."""
        shown = self.admin if token is None else token
        headers = {"Authorization": f"Bearer {shown}"} if shown else {}
        client = httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=30, **kwargs)  # type: ignore[arg-type]
        self.clients.append(client)  # closed with the server
        return client

    def obm(self, *arguments: str) -> dict[str, object]:
        """Run `obm ... --json` over the folder of the server."""
        done = subprocess.run(
            [sys.executable, "-c", START, *arguments, "--json"],
            env={**os.environ, "OBM_HOME": str(self.home)},
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, object] = json.loads(done.stdout)
        return found

    def token(
        self,
        name: str,
        roles: dict[str, str] | None = None,
        scopes: Sequence[str] = (),
        lifetime_s: float | None = None,
    ) -> str:
        """A new token for `name`, who gets the roles; made beside the server, in its catalog."""
        with open_home(self.home) as registry:
            for namespace, role in (roles or {}).items():
                set_role(registry, name, namespace, role, actor="tester")
            return create_token(registry, name, actor="tester", scopes=scopes, lifetime_s=lifetime_s)[0]


@contextlib.contextmanager
def running_server(
    home: Path, *options: str, start: str = START, env: Mapping[str, str] | None = None
) -> Iterator[RunningServer]:
    """`obm serve` over a folder on a free port, ended by SIGTERM; `env` adds to the environment."""
    home.parent.mkdir(parents=True, exist_ok=True)
    log = home.with_name(home.name + ".log")
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", start, "serve", "--port", "0", "--json", *options],
            env={**os.environ, **(env or {}), "OBM_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    clients: list[httpx.Client] = []
    try:
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"the server did not start:\n{log.read_text()}")
        said = json.loads(line)
        token = Path(said["token_file"]).read_text().strip()
        yield RunningServer(url=said["url"], home=home, admin=token, process=process, log=log, clients=clients)
    finally:
        for client in clients:
            client.close()
        process.send_signal(signal.SIGTERM)
        process.wait(40)
        process.stdout.close()


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def push_blob(client: httpx.Client, repository: str, data: bytes) -> str:
    """Push a blob in one request; its digest."""
    digest = digest_of(data)
    done = client.post(f"/v2/{repository}/blobs/uploads/", params={"digest": digest}, content=data)
    assert done.status_code == 201, done.text
    return digest


def image(*layers: tuple[str, int], **fields: object) -> bytes:
    """An image manifest whose config is the first blob; the others are its layers."""
    described = [{"mediaType": "application/x", "digest": digest, "size": size} for digest, size in layers]
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described[0],
        "layers": described[1:],
        **fields,
    }
    return json.dumps(document).encode()


IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def put_manifest(
    client: httpx.Client, repository: str, reference: str, body: bytes, media_type: str = IMAGE, **headers: str
) -> httpx.Response:
    sent = {"Content-Type": media_type, **{key.replace("_", "-"): value for key, value in headers.items()}}
    return client.put(f"/v2/{repository}/manifests/{reference}", content=body, headers=sent)


def push_image(client: httpx.Client, repository: str, tag: str, data: bytes = b"{}", **fields: object) -> str:
    """Push a manifest of one blob; its digest."""
    body = image((push_blob(client, repository, data), len(data)), **fields)
    done = put_manifest(client, repository, tag, body)
    assert done.status_code == 201, done.text
    return done.headers["Docker-Content-Digest"]


def next_page(reply: httpx.Response) -> str | None:
    """Where the Link header of a reply leads, or None."""
    match = re.fullmatch(r'<([^>]*)>; rel="next"', reply.headers.get("Link", ""))
    return match[1] if match else None

"""Stock clients against our server: skopeo and oras push and pull, and the digest never changes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from oras.client import OrasClient
from oras.oci import Subject
from registry_files import write_backbone, write_expert
from registry_server import RunningServer

from obm_registry.embedded import open_embedded

pytestmark = pytest.mark.slow


def skopeo(server: RunningServer, *arguments: str) -> str:
    program = shutil.which("skopeo")
    assert program, "skopeo is not installed: apt-get install skopeo"
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def expert(server: RunningServer, admin: httpx.Client, repo: str, tmp_path: Path) -> tuple[Path, str]:
    """An expert in the repository of its backbone; its file and its manifest digest."""
    backbone = write_backbone(tmp_path / "base")
    file = write_expert(tmp_path / "chat.obm", backbone, added_nbytes=200_000)
    with open_embedded(server.home) as registry:
        registry.add_backbone(backbone, repo)
        digest = registry.push(file, f"{repo}:chat").manifest_digest
    assert admin.head(f"/v2/{repo}/manifests/chat").headers["Docker-Content-Digest"] == digest
    return file, digest


def test_i02_skopeo_copies_out_and_in(
    server: RunningServer, admin: httpx.Client, repo: str, expert: tuple[Path, str], tmp_path: Path
) -> None:
    layout, (file, digest) = tmp_path / "layout", expert
    source = ("--src-tls-verify=false", "--src-creds", f"admin:{server.admin}", f"docker://{server.host}/{repo}:chat")
    skopeo(server, "--insecure-policy", "copy", *source, f"oci:{layout}:chat")
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    assert entry["digest"] == digest
    # the same repository, where the backbone is, under another tag; blobs that are there already are not sent again
    target = ("--dest-tls-verify=false", "--dest-creds", f"admin:{server.admin}", f"docker://{server.host}/{repo}:back")
    skopeo(server, "--insecure-policy", "copy", f"oci:{layout}:chat", *target)
    assert admin.head(f"/v2/{repo}/manifests/back").headers["Docker-Content-Digest"] == digest
    listed = skopeo(
        server, "list-tags", "--tls-verify=false", "--creds", f"admin:{server.admin}", f"docker://{server.host}/{repo}"
    )
    assert json.loads(listed)["Tags"] == ["back", "backbone", "chat"]
    layers = json.loads(admin.get(f"/v2/{repo}/manifests/back").content)["layers"]
    joined = b"".join((layout / "blobs" / "sha256" / layer["digest"][7:]).read_bytes() for layer in layers)
    assert joined == file.read_bytes()


def test_i02_skopeo_copies_between_repositories(
    server: RunningServer, admin: httpx.Client, repo: str, expert: tuple[Path, str]
) -> None:
    creds = f"admin:{server.admin}"
    for tag in ("backbone", "chat"):
        skopeo(
            server,
            "--insecure-policy",
            "copy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--src-creds",
            creds,
            "--dest-creds",
            creds,
            f"docker://{server.host}/{repo}:{tag}",
            f"docker://{server.host}/{repo}-copy:{tag}",
        )
    copied = admin.head(f"/v2/{repo}-copy/manifests/chat")
    assert copied.headers["Docker-Content-Digest"] == expert[1]


def test_i02_skopeo_without_a_token_is_refused(server: RunningServer, repo: str, expert: tuple[Path, str]) -> None:
    program = shutil.which("skopeo") or ""
    for creds in (["--no-creds"], ["--creds", "admin:obm_0123456789abcdef_" + "A" * 43]):
        target = f"docker://{server.host}/{repo}:chat"
        done = subprocess.run([program, "inspect", "--raw", "--tls-verify=false", *creds, target], capture_output=True)
        assert done.returncode != 0


def oras_client(server: RunningServer) -> OrasClient:
    client = OrasClient(hostname=server.host, insecure=True, tls_verify=False)
    client.auth.set_basic_auth("admin", server.admin)
    return client


def test_i01_oras_pushes_and_pulls(
    server: RunningServer, admin: httpx.Client, repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("card.md").write_text("# A card\n" * 1000)
    client, target = oras_client(server), f"{server.host}/{repo}:card"
    done = client.push(target, files=["card.md:text/markdown"], disable_path_validation=True)
    assert done.status_code == 201
    digest = admin.head(f"/v2/{repo}/manifests/card").headers["Docker-Content-Digest"]
    (pulled,) = client.pull(target, outdir=str(tmp_path / "out"))
    assert Path(pulled).read_text() == Path("card.md").read_text()
    subject = Subject.from_manifest(client.get_manifest(target))
    client.push(
        f"{server.host}/{repo}:note", files=["card.md:text/plain"], subject=subject, disable_path_validation=True
    )
    assert subject.digest == digest
    referrers = admin.get(f"/v2/{repo}/referrers/{digest}").json()["manifests"]
    assert [row["digest"] for row in referrers] == [
        admin.head(f"/v2/{repo}/manifests/note").headers["Docker-Content-Digest"]
    ]


def test_i01_oras_pulls_an_expert(server: RunningServer, repo: str, expert: tuple[Path, str], tmp_path: Path) -> None:
    pulled = oras_client(server).pull(f"{server.host}/{repo}:chat", outdir=str(tmp_path / "out"))
    assert b"".join(Path(path).read_bytes() for path in sorted(pulled)) == expert[0].read_bytes()


def test_i16_a_cosign_signature_is_listed(
    server: RunningServer, admin: httpx.Client, repo: str, expert: tuple[Path, str]
) -> None:
    from registry_server import digest_of, push_blob, put_manifest

    payload = b'{"critical":{}}'
    signature = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.dev.cosign.artifact.sig.v1+json",
            "digest": push_blob(admin, repo, b"{}"),
            "size": 2,
        },
        "layers": [
            {
                "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
                "digest": push_blob(admin, repo, payload),
                "size": len(payload),
                "annotations": {"dev.cosignproject.cosign/signature": "MEUCIQ=="},
            }
        ],
        "subject": {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": expert[1],
            "size": len(admin.get(f"/v2/{repo}/manifests/chat").content),
        },
    }
    body = json.dumps(signature).encode()
    assert put_manifest(admin, repo, digest_of(body), body).status_code == 201
    (listed,) = admin.get(f"/v2/{repo}/referrers/{expert[1]}").json()["manifests"]
    assert listed["artifactType"] == "application/vnd.dev.cosign.artifact.sig.v1+json"

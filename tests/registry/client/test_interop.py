"""Stock tools and stock registries: what they copy and what we copy is the same, digest for digest."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import client_jobs
import pytest
from client_parts import open_there
from registry_files import write_expert
from stock_registry import stock_registry

from obm_format.errors import RegistryError
from obm_registry.client.credentials import Credential, CredentialFile
from obm_registry.client.origin import parse_origin
from obm_registry.client.referrers import fallback_tag
from obm_registry.manifest.expert import EXPERT_TYPE
from obm_registry.manifest.oci import IMAGE_INDEX, parse_manifest

CLIENTS = 8
HTPASSWD = "me:$2y$04$abcdefghijklmnopqrstuuNG0Z9xYjgj3pkzN.YpYToaPHOmIUPo.\n"  # s3cret-token


def skopeo(*arguments: str) -> str:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    done = subprocess.run(["skopeo", *arguments], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_skopeo_copies_between_registry_and_layout_and_we_read_both(
    stock: str, base: Path, expert: Path, tmp_path: Path
) -> None:
    with open_there(stock, tmp_path) as registry:
        registry.add_backbone(base, "acme/copied")
        pushed = registry.push(expert, "acme/copied:chat")
    layout = tmp_path / "layout"
    # names of the layout are whole references, which skopeo takes as they are
    for tag in ("backbone", "chat"):
        skopeo(
            "copy", "--src-tls-verify=false", f"docker://{stock}/acme/copied:{tag}", f"oci:{layout}:acme/copied:{tag}"
        )
    with open_there(f"file://{layout}", tmp_path / "a") as there:
        assert there.resolve("acme/copied:chat").manifest_digest == pushed.manifest_digest
        there.pull("acme/copied:chat", tmp_path / "out.obm")
        assert (tmp_path / "out.obm").read_bytes() == expert.read_bytes()
        other = write_expert(tmp_path / "other.obm", base, seed=7)
        second = there.push(other, "acme/copied:math")
        assert there.backbone("acme/copied").n_experts == 2
    skopeo("copy", "--dest-tls-verify=false", f"oci:{layout}:acme/copied:math", f"docker://{stock}/acme/copied:math")
    with open_there(stock, tmp_path / "b") as registry:
        assert registry.resolve("acme/copied:math").manifest_digest == second.manifest_digest
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{stock}/acme/copied:math")
    assert json.loads(raw)["artifactType"] == EXPERT_TYPE


def test_layout_has_the_files_of_the_spec(base: Path, expert: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    with open_there(f"file://{layout}", tmp_path) as there:
        there.add_backbone(base, "acme/tiny")
        pushed = there.push(expert, "acme/tiny:chat")
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout / "index.json").read_text())
    assert index["mediaType"] == IMAGE_INDEX
    names = {row["annotations"]["org.opencontainers.image.ref.name"]: row["digest"] for row in index["manifests"]}
    assert set(names) == {"acme/tiny:backbone", "acme/tiny:chat"}
    assert names["acme/tiny:chat"] == pushed.manifest_digest
    assert (layout / "blobs" / "sha256" / pushed.manifest_digest.removeprefix("sha256:")).is_file()


def test_a_folder_of_other_things_is_no_layout(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(Exception, match="other things") as caught:
        open_there(f"file://{tmp_path / 'photos'}", tmp_path)
    assert getattr(caught.value, "exit_code", None) == 2


@pytest.mark.parametrize("kind", ["stock", "file"])
def test_eight_clients_at_once_lose_no_referrer(kind: str, stock: str, base: Path, tmp_path: Path) -> None:
    url = stock if kind == "stock" else f"file://{tmp_path / 'layout'}"
    with open_there(url, tmp_path) as registry:
        registry.add_backbone(base, "acme/race")
    files = [write_expert(tmp_path / f"{i}.obm", base, seed=i) for i in range(CLIENTS)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["client_jobs"])
    running = [
        context.Process(target=client_jobs.push, args=(url, tmp_path / f"home{i}", file, f"acme/race:t{i}"))
        for i, file in enumerate(files)
    ]
    for child in running:
        child.start()
    for child in running:
        child.join(600)
    assert [child.exitcode for child in running] == [0] * CLIENTS
    with open_there(url, tmp_path) as registry:
        assert registry.backbone("acme/race").n_experts == CLIENTS
        assert len(registry.experts("acme/race")) == CLIENTS


def test_fallback_index_is_the_one_of_the_spec(stock: str, base: Path, expert: Path, tmp_path: Path) -> None:
    with open_there(stock, tmp_path) as registry:
        backbone = registry.add_backbone(base, "acme/fallback")
        pushed = registry.push(expert, "acme/fallback:chat")
        found = registry._store.manifest("acme/fallback", fallback_tag(backbone.manifest_digest))
    index = parse_manifest(found.body, media_type=IMAGE_INDEX)
    (row,) = index.children
    assert (row.digest, row.artifact_type) == (pushed.manifest_digest, EXPERT_TYPE)
    assert row.annotations["io.obm.id"] == pushed.id


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stock registry that wants a user name and a password."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "htpasswd").write_text(HTPASSWD)
    with stock_registry(folder, auth=f'auth: {{htpasswd: {{realm: x, path: "{folder / "htpasswd"}"}}}}') as address:
        yield address


def test_basic_credentials_open_a_stock_registry(guarded: str, base: Path, expert: Path, tmp_path: Path) -> None:
    with open_there(guarded, tmp_path) as registry, pytest.raises(RegistryError) as caught:
        registry.add_backbone(base, "acme/tiny")
    assert (caught.value.exit_code, caught.value.reason) == (6, "denied")
    assert "obm login" in str(caught.value)
    origin = parse_origin(guarded)
    stored = CredentialFile(tmp_path / "home" / "credentials.json")
    stored.put(origin, Credential(username="me", secret="s3cret-token"))  # noqa: S106 - a test's
    with open_there(guarded, tmp_path) as registry:
        registry.add_backbone(base, "acme/tiny")
        registry.push(expert, "acme/tiny:chat")
        registry.pull("acme/tiny:chat", tmp_path / "out.obm")
    assert (tmp_path / "out.obm").read_bytes() == expert.read_bytes()

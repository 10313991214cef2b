"""Experts and backbones over HTTP: what is admitted, what is refused and how, what the server tells of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import httpx
import pytest
from registry_files import write_backbone, write_expert
from registry_server import RunningServer, next_page, push_blob, put_manifest

from obm_format.checkpoint import open_checkpoint
from obm_format.container.reader import Container
from obm_format.container.sources import PathSource
from obm_format.model import DType, TensorSpec
from obm_registry.embedded import open_embedded
from obm_registry.manifest.backbone import BackbonePackage, BackboneTensor, package_backbone, tabulate
from obm_registry.manifest.expert import EXPERT_TYPE, ExpertPackage, package_expert
from obm_registry.manifest.oci import Descriptor, describe, digest_of, encode_manifest, parse_manifest
from obm_registry.server.home import open_home
from obm_registry.service.namespaces import set_namespace_rules


def packaged_backbone(folder: Path) -> BackbonePackage:
    with open_checkpoint(folder) as checkpoint:
        rows = [
            BackboneTensor(spec=TensorSpec(row.name, DType[row.dtype_name], row.shape), sha256=row.sha256)
            for row in checkpoint.table()
        ]
        return package_backbone(tabulate(rows, checkpoint.architecture))


def push_backbone(client: httpx.Client, repo: str, package: BackbonePackage) -> None:
    for data in package.blobs.values():
        push_blob(client, repo, data)
    assert put_manifest(client, repo, "backbone", package.body).status_code == 201


def push_layers(client: httpx.Client, repo: str, file: Path, subject: Descriptor | None) -> ExpertPackage:
    source = PathSource(file)
    with Container.open(source) as container:
        package = package_expert(container, source, subject)
        push_blob(client, repo, package.config)
        for layer in package.layers:
            push_blob(client, repo, b"".join(layer.chunks()))
    return package


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_backbone(folder / "base")
    write_backbone(folder / "wrong", seed=9)
    write_expert(folder / "chat.obm", folder / "base", task="chat")
    return folder


def test_expert_is_admitted_listed_and_pulled(admin: httpx.Client, repo: str, files: Path) -> None:
    backbone = packaged_backbone(files / "base")
    push_backbone(admin, repo, backbone)
    package = push_layers(admin, repo, files / "chat.obm", backbone.descriptor)
    done = put_manifest(admin, repo, "chat-v1", package.body)
    assert (done.status_code, done.headers["OCI-Subject"]) == (201, backbone.digest)
    referrers = admin.get(f"/v2/{repo}/referrers/{backbone.digest}", params={"artifactType": EXPERT_TYPE})
    (listed,) = referrers.json()["manifests"]
    assert listed["digest"] == package.digest
    assert listed["annotations"]["io.obm.id"] == package.facts.artifact_id
    assert next_page(referrers) is None
    layers = parse_manifest(admin.get(f"/v2/{repo}/manifests/chat-v1").content).layers
    pulled = b"".join(admin.get(f"/v2/{repo}/blobs/{layer.digest}").content for layer in layers)
    assert pulled == (files / "chat.obm").read_bytes()


def test_the_embedded_registry_sees_what_was_pushed(
    server: RunningServer, admin: httpx.Client, repo: str, files: Path, tmp_path: Path
) -> None:
    backbone = packaged_backbone(files / "base")
    push_backbone(admin, repo, backbone)
    package = push_layers(admin, repo, files / "chat.obm", backbone.descriptor)
    assert put_manifest(admin, repo, "chat-v1", package.body).status_code == 201
    with open_embedded(server.home) as registry:
        (listed,) = registry.experts(repo)
        registry.pull(f"{repo}:chat-v1", tmp_path / "chat.obm")
    assert (listed.id, listed.pushed_by) == (package.facts.artifact_id, "admin")
    assert (tmp_path / "chat.obm").read_bytes() == (files / "chat.obm").read_bytes()


def test_expert_without_its_backbone_is_refused(admin: httpx.Client, repo: str, files: Path) -> None:
    subject = packaged_backbone(files / "base").descriptor
    for named in (subject, None):
        package = push_layers(admin, repo, files / "chat.obm", named)
        done = put_manifest(admin, repo, "chat-v1", package.body)
        error = done.json()["errors"][0]
        assert (done.status_code, error["code"]) == (409, "MANIFEST_INVALID")
        assert error["detail"]["reason"] == "backbone_unknown"
    assert admin.get(f"/v2/{repo}/manifests/chat-v1").status_code == 404


def test_a_refusal_names_no_repository_that_the_sender_may_not_know(
    server: RunningServer, admin: httpx.Client, repo: str, files: Path
) -> None:
    backbone = packaged_backbone(files / "base")
    push_backbone(admin, "hidden/model", backbone)
    sender = server.client(server.token("sender", {"acme": "writer"}))
    package = push_layers(sender, repo, files / "chat.obm", backbone.descriptor)
    refused = put_manifest(sender, repo, "chat-v1", package.body)
    assert refused.json()["errors"][0]["detail"]["reason"] == "backbone_unknown"
    assert "hidden" not in refused.text


def test_expert_of_another_backbone_is_refused_with_the_differences(
    admin: httpx.Client, repo: str, files: Path
) -> None:
    wrong = packaged_backbone(files / "wrong")
    push_backbone(admin, repo, wrong)
    package = push_layers(admin, repo, files / "chat.obm", wrong.descriptor)
    done = put_manifest(admin, repo, "chat-v1", package.body)
    error = done.json()["errors"][0]
    assert (done.status_code, error["detail"]["reason"]) == (409, "backbone_mismatch")
    assert "w0: the expert expects" in error["message"]


@pytest.mark.parametrize(("policy", "warned"), [("warn", True), ("accept", False)])
def test_policy_lets_an_expert_pass(
    server: RunningServer, admin: httpx.Client, files: Path, policy: str, warned: bool
) -> None:
    with open_home(server.home) as registry:
        set_namespace_rules(
            registry, policy, quota_nbytes=None, subject_policy=policy, immutable_tags=(), actor="tester"
        )
    package = push_layers(admin, f"{policy}/x", files / "chat.obm", packaged_backbone(files / "base").descriptor)
    done = put_manifest(admin, f"{policy}/x", "chat", package.body)
    assert (done.status_code, "Warning" in done.headers) == (201, warned)


def test_what_the_server_tells_is_not_what_the_sender_says(
    server: RunningServer, admin: httpx.Client, repo: str, files: Path
) -> None:
    backbone = packaged_backbone(files / "base")
    push_backbone(admin, repo, backbone)
    package = push_layers(admin, repo, files / "chat.obm", backbone.descriptor)
    config = b'{"schema":"obm.expert/1","task":"lies","nbytes":1}'
    push_blob(admin, repo, config)
    manifest = parse_manifest(package.body)
    lying = dataclasses.replace(
        manifest,
        config=describe(config, manifest.config.media_type if manifest.config else ""),
        annotations={"io.obm.task": "lies", "io.obm.nbytes": "1"},
    )
    assert put_manifest(admin, repo, "lies", encode_manifest(lying)).status_code == 201
    with open_embedded(server.home) as registry:
        (listed,) = registry.experts(repo)
    assert (listed.task, listed.nbytes) == ("chat", (files / "chat.obm").stat().st_size)


def test_backbone_with_experts_cannot_be_removed(admin: httpx.Client, repo: str, files: Path) -> None:
    backbone = packaged_backbone(files / "base")
    push_backbone(admin, repo, backbone)
    package = push_layers(admin, repo, files / "chat.obm", backbone.descriptor)
    assert put_manifest(admin, repo, "chat-v1", package.body).status_code == 201
    refused = admin.delete(f"/v2/{repo}/manifests/{backbone.digest}")
    assert (refused.status_code, refused.json()["errors"][0]["detail"]["reason"]) == (409, "in_use")


def test_s20_a_hostile_index_is_refused(admin: httpx.Client, repo: str, files: Path) -> None:
    backbone = packaged_backbone(files / "base")
    push_backbone(admin, repo, backbone)
    package = push_layers(admin, repo, files / "chat.obm", backbone.descriptor)
    manifest = parse_manifest(package.body)
    whole = (files / "chat.obm").read_bytes()
    header = whole[: package.layers[0].segment.nbytes]
    for data in (b"", b"\xff" * 8, header[:-1], header.replace(b"w0", b"w9"), b"\x00" * len(header)):
        push_blob(admin, repo, data)
        index = dataclasses.replace(manifest.layers[0], digest=digest_of(data), size=len(data))
        hostile = dataclasses.replace(manifest, layers=(index, *manifest.layers[1:]))
        done = put_manifest(admin, repo, "bad", encode_manifest(hostile))
        assert 400 <= done.status_code < 500, done.text
    assert admin.get(f"/v2/{repo}/manifests/bad").status_code == 404


def test_immutable_tag_stays_even_for_an_administrator(admin: httpx.Client, repo: str, files: Path) -> None:
    backbone = packaged_backbone(files / "base")
    push_backbone(admin, repo, backbone)
    package = push_layers(admin, repo, files / "chat.obm", backbone.descriptor)
    assert put_manifest(admin, repo, "chat-v1", package.body).status_code == 201
    refused = put_manifest(admin, repo, "chat-v1", backbone.body)
    assert (refused.status_code, refused.json()["errors"][0]["detail"]["reason"]) == (409, "tag_immutable")

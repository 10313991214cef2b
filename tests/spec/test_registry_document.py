"""spec/registry-1.md says what the code does: its media types, and manifests built here from the prose alone."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_llama, write_checkpoint
from registry_files import write_backbone, write_expert
from spec_readers import SPEC

import obm_registry
from obm_format.checkpoint import SIDE_FILES
from obm_registry.embedded import open_embedded
from obm_registry.manifest import segments

PROSE = (SPEC / "registry-1.md").read_text(encoding="utf-8")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": "", "size": 2}


def image(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def described(data: bytes, media_type: str, **annotations: str) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": media_type, "digest": digest(data), "size": len(data)}
    return {**found, "annotations": annotations} if annotations else found


EMPTY["digest"] = digest(b"{}")
TITLE = "org.opencontainers.image.title"


def safetensors(path: Path) -> tuple[bytes, dict[str, Any], bytes]:
    """Header bytes, its table without metadata, and the rest of a file."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:end])
    table.pop("__metadata__", None)
    return data[:end], table, data[end:]


def backbone_manifest(folder: Path) -> bytes:
    """Clause 2, from a folder of one file."""
    _, table, body = safetensors(folder / "model.safetensors")
    config_file = folder / "config.json"
    names = json.loads(config_file.read_text()).get("architectures", [""]) if config_file.exists() else [""]
    rows = [
        [name, row["dtype"], row["shape"], hashlib.sha256(body[slice(*row["data_offsets"])]).hexdigest()]
        for name, row in sorted(table.items())
    ]
    lines = "".join(f"{name}\0{dtype}\0{','.join(map(str, shape))}\0{sha}\n" for name, dtype, shape, sha in rows)
    fingerprint = hashlib.sha256(lines.encode()).hexdigest()
    config = {
        "schema": "obm.backbone/1",
        "architecture": names[0],
        "fingerprint": fingerprint,
        "n_tensors": len(rows),
        "n_params": sum(math.prod(shape) for _, _, shape, _ in rows),
        "tensors": rows,
    }
    return image(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.obm.backbone.v1",
            "config": described(image(config), "application/vnd.obm.backbone.config.v1+json"),
            "layers": [EMPTY],
            "annotations": {"io.obm.fingerprint": fingerprint},
        }
    )


def subject_of(backbone: bytes) -> dict[str, Any]:
    return {**described(backbone, MANIFEST), "artifactType": "application/vnd.obm.backbone.v1"}


def fingerprint_of(backbone: bytes) -> str:
    found: str = json.loads(backbone)["annotations"]["io.obm.fingerprint"]
    return found


def test_backbone(tmp_path: Path) -> None:
    folders = [
        write_backbone(tmp_path / "f32"),
        write_checkpoint(tmp_path / "llama", tiny_llama(0), config={"architectures": ["Llama"]}),
        write_checkpoint(tmp_path / "bare", tiny_llama(1)),
    ]
    with open_embedded(tmp_path / "home") as registry:
        for folder in folders:
            added = registry.add_backbone(folder, f"acme/{folder.name}")
            assert added.manifest_digest == digest(backbone_manifest(folder))


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clause 4: two tensors share a segment of the size that is set here, a third is cut."""
    most = 700
    monkeypatch.setattr(segments, "SEGMENT_NBYTES", most)
    folder = write_checkpoint(tmp_path / "base", tiny_llama(0), config={"architectures": ["Llama"]})
    (folder / "spiece.model").write_bytes(b"\0model")
    (folder / "notes.md").write_text("no side file")
    backbone = backbone_manifest(folder)
    header, table, body = safetensors(folder / "model.safetensors")
    pieces: list[bytes] = []
    shared = b""
    for row in sorted(table.values(), key=lambda row: row["data_offsets"][0]):
        data = body[slice(*row["data_offsets"])]
        if shared and len(shared) + len(data) > most:
            pieces.append(shared)
            shared = b""
        if len(data) > most:
            pieces += [data[at : at + most] for at in range(0, len(data), most)]
        else:
            shared += data
    layers = [described(header, "application/vnd.obm.weights.header.v1", **{TITLE: "model.safetensors.00000"})]
    for i, piece in enumerate([*pieces, shared] if shared else pieces, start=1):
        title = {TITLE: f"model.safetensors.{i:05}"}
        layers.append(described(piece, "application/vnd.obm.weights.segment.v1", **title))
    for name in ("config.json", "spiece.model"):
        side = (folder / name).read_bytes()
        layers.append(described(side, "application/vnd.obm.weights.side.v1", **{TITLE: name}))
    manifest = image(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.obm.weights.v1",
            "config": EMPTY,
            "layers": layers,
            "subject": subject_of(backbone),
            "annotations": {"io.obm.fingerprint": fingerprint_of(backbone)},
        }
    )
    with open_embedded(tmp_path / "home") as registry:
        assert registry.add_backbone(folder, "acme/tiny", with_weights=True).weights_digest == digest(manifest)


def test_expert(tmp_path: Path) -> None:
    """Clause 3, for a file of one segment."""
    folder = write_backbone(tmp_path / "base")
    file = write_expert(tmp_path / "x.obm", folder, task="chat")
    backbone = backbone_manifest(folder)
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    stated = {
        "schema": "obm.expert/1",
        "id": f"obm1-{digest(data[:end])}",
        "kind": json.loads(json.loads(data[8:end])["__metadata__"]["obm"])["kind"],
        "task": "chat",
        "position": "linear",
        "backbone": fingerprint_of(backbone),
        "encodings": {"sign1": 3},
        "n_tensors": 3,
        "nbytes": len(data),
    }
    manifest = image(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.obm.expert.v1",
            "config": described(image(stated), "application/vnd.obm.expert.config.v1+json"),
            "layers": [
                described(data[:end], "application/vnd.obm.index.v1", **{TITLE: "expert.obm.00000"}),
                described(data[end:], "application/vnd.obm.segment.v1", **{TITLE: "expert.obm.00001"}),
            ],
            "subject": subject_of(backbone),
            "annotations": {
                "io.obm.id": stated["id"],
                "io.obm.fingerprint": stated["backbone"],
                "io.obm.nbytes": str(len(data)),
                "io.obm.position": "linear",
                "io.obm.task": "chat",
            },
        }
    )
    with open_embedded(tmp_path / "home") as registry:
        registry.add_backbone(folder, "acme/tiny")
        assert registry.push(file, "acme/tiny:chat").manifest_digest == digest(manifest)


def test_every_media_type_and_annotation_of_the_code_is_there() -> None:
    words = re.compile(r"application/vnd\.obm\.[\w.+-]*\w|io\.obm(?:\.\w+)+")
    sources = Path(obm_registry.__path__[0]).rglob("*.py")
    written = {word for path in sources for word in words.findall(path.read_text(encoding="utf-8"))}
    assert written == set(words.findall(PROSE))


def test_every_side_file_is_there() -> None:
    (named,) = re.findall(r"titled with their names: `([^`]*)`", PROSE)
    assert set(named.split()) == SIDE_FILES

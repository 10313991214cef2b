"""Base vectors that are none, shown to all readers: another kind or backbone, no such tensor, a chain."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vector_tensors import Counterpart, affine, noise, raw_delta, rtvq, sign1, zero
from vector_writer import Backbone, Dense, Draft, artifact_id, checkpoint_bytes, file_bytes

from obm_format.errors import FormatError
from obm_format.expert import open_expert

SPEC = Path(__file__).resolve().parents[2] / "spec"
NODE = shutil.which("node") or ""
READERS = [
    pytest.param([sys.executable, str(SPEC / "minimal_reader.py")], id="minimal"),
    pytest.param(
        [NODE, str(SPEC / "js" / "cli.js")],
        id="javascript",
        marks=pytest.mark.skipif(not NODE, reason="node (20 or newer) is not installed"),
    ),
]
BACKBONE: Backbone = {"w": Dense(dtype="F32", shape=[2, 4], data=bytes(32))}
D = noise("reference", 8, 0.5)


def side(backbone: Backbone = BACKBONE) -> Counterpart:
    return Counterpart(backbone, "w")


def shared(*, backbone: Backbone = BACKBONE, kind: str = "rtvq-base", encoding: str = "affine") -> Draft:
    """What the expert refers to."""
    makers = {"affine": lambda: affine(side(backbone), D, 3), "sign1": lambda: sign1(side(backbone), D)}
    makers |= {"raw": lambda: raw_delta(side(backbone), D), "zero": lambda: zero(side(backbone))}
    tensors = [] if encoding == "none" else [makers[encoding]()]
    removed = {"removed": ["w"]} if encoding == "none" and kind == "task-vector" else {}
    return Draft(backbone=backbone, tensors=tensors, fields={"kind": kind, **removed})


def expert_on(reference: bytes) -> Draft:
    tensor = rtvq(side(), D, 2, [0.0] * 8)
    return Draft(backbone=BACKBONE, tensors=[tensor], fields={"refs": [artifact_id(reference)]})


def chain() -> Draft:
    """A base vector that itself refers to another artifact."""
    draft = expert_on(file_bytes(shared()))
    draft.fields["kind"] = "rtvq-base"
    return draft


OTHER: Backbone = {"w": Dense(dtype="F32", shape=[2, 4], data=bytes(31) + b"\1")}
TURNED: Backbone = {"w": Dense(dtype="F32", shape=[4, 2], data=bytes(32))}
WRONG = {
    "another kind": shared(kind="task-vector"),
    "another backbone": shared(backbone=OTHER),
    "no such tensor": shared(encoding="none"),
    "sign1": shared(encoding="sign1"),
    "raw": shared(encoding="raw"),
    "another shape": shared(backbone=TURNED),
}


def run(command: list[str], folder: Path, reference: Draft) -> dict[str, Any]:
    """What a reader prints of an expert that refers to `reference`."""
    paths = [folder / name for name in ("x.obm", "base.safetensors", "shared.obm")]
    file = file_bytes(reference)
    for path, content in zip(paths, (file_bytes(expert_on(file)), checkpoint_bytes(BACKBONE), file), strict=True):
        path.write_bytes(content)
    done = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in (0, 4), done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_reference_refused(command: list[str], wrong: str, tmp_path: Path) -> None:
    assert run(command, tmp_path, WRONG[wrong]) == {"reason": "bad_reference"}


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("encoding", ["affine", "zero"])
def test_right_reference_taken(command: list[str], encoding: str, tmp_path: Path) -> None:
    assert run(command, tmp_path, shared(encoding=encoding))["tensors"]["w"]["f32_sha256"]


@pytest.mark.parametrize("command", READERS)
def test_references_do_not_chain(command: list[str], tmp_path: Path) -> None:
    assert run(command, tmp_path, chain()) == {"reason": "bad_reference"}


@pytest.mark.parametrize("wrong", [*WRONG, "chain"])
def test_package_refuses_wrong_reference(wrong: str) -> None:
    reference = file_bytes(chain() if wrong == "chain" else WRONG[wrong])
    with (
        open_expert(reference) as other,
        open_expert(file_bytes(expert_on(reference)), refs={other.id: other}) as expert,
    ):
        with pytest.raises(FormatError) as caught:
            expert.values("w")
        assert caught.value.reason == "bad_reference"

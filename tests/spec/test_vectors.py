"""Every conformance vector, shown to both readers: the one of the spec and `obm_format`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from spec_readers import SPEC, VECTORS, Refusal, read_minimal, read_package

from obm_format.errors import REASONS, FormatError
from obm_format.expert import open_expert

Reader = Callable[[Path, Path | None, list[Path]], dict[str, Any]]
READERS: dict[str, Reader] = {"minimal": read_minimal, "package": read_package}
VALID = sorted(path.stem for path in (VECTORS / "valid").glob("*.json"))
INVALID = sorted(path.stem for path in (VECTORS / "invalid").glob("*.json"))

# Reasons of format errors that no file alone can show, and where they are tested instead.
NOT_IN_VECTORS = {
    "artifact_id": "takes an id that the caller expects: test_open_other_id_expected_refused",
}


def described(folder: str, name: str) -> tuple[Path, dict[str, Any], Path | None]:
    path = VECTORS / folder / f"{name}.json"
    facts = json.loads(path.read_text())
    return path.with_suffix(".obm"), facts, VECTORS / facts["base"] if facts["base"] else None


def can_read(reader: str, facts: dict[str, Any]) -> bool:
    return reader == "package" or "zstd" not in facts["needs"]


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("reader", READERS)
def test_valid_vector_read_as_described(reader: str, name: str) -> None:
    file, facts, base = described("valid", name)
    if not can_read(reader, facts):
        with pytest.raises(SystemExit, match="zstd"):
            READERS[reader](file, base, [])
        return
    report = READERS[reader](file, base, [VECTORS / ref for ref in facts.get("refs", [])])
    assert report == {"id": facts["id"], "tensors": facts["tensors"]}


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("reader", READERS)
def test_invalid_vector_refused_for_its_reason(reader: str, name: str) -> None:
    file, facts, base = described("invalid", name)
    with pytest.raises(Refusal) as refusal:
        READERS[reader](file, base, [VECTORS / ref for ref in facts.get("refs", [])])
    reason, stage = refusal.value.args
    assert reason == facts["reason"]
    assert stage in (facts["stage"], "any")
    if stage == "any":
        assert facts["stage"] != "base"


@pytest.mark.parametrize("name", VALID)
def test_valid_vector_opened_by_safetensors_library(name: str) -> None:
    with safe_open(described("valid", name)[0], framework="numpy") as opened:
        assert opened.metadata()["format"] == "obm"
        for part in opened.keys():  # noqa: SIM118 - not a mapping
            assert opened.get_tensor(part).nbytes % 64 == 0


def test_vectors_are_many_and_small() -> None:
    assert len(VALID) >= 60
    assert len(INVALID) >= 400
    nbytes = sum(path.stat().st_size for path in VECTORS.glob("*/*"))
    assert nbytes < 900_000  # a file is a header of a kilobyte and parts of 64 bytes; a few show long frames


def test_vectors_cover_every_encoding_and_stage() -> None:
    headers = b"".join(described("valid", name)[0].read_bytes()[:4096] for name in VALID)
    for encoding in (b"zero", b"raw", b"sign1", b"tern1", b"affine", b"rtvq", b"sparse", b"xdelta"):
        assert b'\\"encoding\\":\\"' + encoding in headers
    assert {described("invalid", name)[1]["stage"] for name in INVALID} == {"header", "parts", "decode", "base"}


def test_every_format_reason_has_a_vector() -> None:
    reasons = list(REASONS)
    of_format = set(reasons[: reasons.index("output_digest") + 1]) | {"backbone_mismatch", "base_tensor", "base_digest"}
    shown = {described("invalid", name)[1]["reason"] for name in INVALID}
    assert shown | set(NOT_IN_VECTORS) == of_format
    assert not shown & set(NOT_IN_VECTORS)


def test_open_other_id_expected_refused() -> None:
    file, facts, _ = described("valid", "sign1-row")
    open_expert(file, expected_id=facts["id"]).close()
    with pytest.raises(FormatError) as error:
        open_expert(file, expected_id=described("valid", "sign1-group")[1]["id"])
    assert error.value.reason == "artifact_id"


@pytest.mark.parametrize(
    ("folder", "name", "status"), [("valid", "sign1-row", 0), ("invalid", "alpha-nan", 4), ("valid", "zstd-raw", 1)]
)
def test_minimal_reader_command_exit_status(folder: str, name: str, status: int) -> None:
    file, facts, base = described(folder, name)
    command = [sys.executable, str(SPEC / "minimal_reader.py"), str(file), *([str(base)] if base else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == status
    expected = {0: {key: facts.get(key) for key in ("id", "tensors")}, 4: {"reason": facts.get("reason")}}
    assert (json.loads(done.stdout) if done.stdout else None) == expected.get(status)

"""Examination: everything that does not agree is told."""

from __future__ import annotations

from pathlib import Path

from registry_pushes import push_thing
from sqlalchemy import text

from obm_registry.service.fsck import examine
from obm_registry.service.registry import Registry


def object_paths(folder: Path) -> list[Path]:
    return [path for path in (folder / "data").rglob("*") if path.is_file()]


def test_sound_registry_has_no_problems(registry: Registry) -> None:
    push_thing(registry, b"data", tags=["a"])
    found = examine(registry)
    assert (found.blobs, found.nbytes, found.manifests, found.problems) == (1, 4, 1, ())


def test_flipped_missing_and_longer_objects_are_told(registry: Registry, tmp_path: Path) -> None:
    for data in (b"one", b"two", b"three"):
        push_thing(registry, data)
    first, second, third = object_paths(tmp_path)
    content = bytearray(first.read_bytes())
    content[0] ^= 1
    first.write_bytes(content)
    second.unlink()
    third.write_bytes(third.read_bytes() + b"x")
    assert [problem.reason for problem in examine(registry).problems] == ["blob_damaged"] * 3


def test_altered_rows_are_told(registry: Registry) -> None:
    push_thing(registry, b"data")
    push_thing(registry, b"more")
    with registry.catalog.write() as session:
        session.connection.execute(text("UPDATE manifest SET body = x'78' WHERE id = 1"))
        session.connection.execute(text("DELETE FROM manifest_blob WHERE manifest_id = 2 AND role = 'layer'"))
        session.connection.execute(text("DELETE FROM repo_blob"))
    reasons = [problem.reason for problem in examine(registry).problems]
    assert reasons == ["bad_manifest", "bad_manifest", "blob_unknown", "blob_unknown"]

"""A catalog and the bytes that it names stay together."""

from __future__ import annotations

from pathlib import Path

import pytest

from obm_format.errors import UsageError
from obm_registry.blobs.base import new_key
from obm_registry.blobs.local import LocalBlobs
from obm_registry.blobs.place import note_place, require_place

URL = "s3://shelf/x"


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite3"


def test_what_was_noted_is_held_to(catalog: Path) -> None:
    require_place(catalog, URL)
    require_place(catalog, None)
    note_place(catalog, None)
    require_place(catalog, URL)
    note_place(catalog, URL)
    note_place(catalog, URL)
    require_place(catalog, URL)
    for other in (None, "s3://shelf/y", "file:///x"):
        with pytest.raises(UsageError) as caught:
            require_place(catalog, other)
        assert (caught.value.reason, caught.value.expected) == ("usage", f"--blobs {URL}")


def test_bytes_beside_a_catalog_are_its_own(catalog: Path) -> None:
    (catalog.parent / "data" / "ab").mkdir(parents=True)
    (catalog.parent / "data" / "ab" / "stranger").write_text("")
    catalog.write_text("")
    require_place(catalog, URL)
    with LocalBlobs(catalog.parent / "data").create(new_key()) as writer:
        writer.write(b"x")
    require_place(catalog, None)
    with pytest.raises(UsageError):
        require_place(catalog, URL)
    catalog.unlink()
    require_place(catalog, URL)  # nothing names them

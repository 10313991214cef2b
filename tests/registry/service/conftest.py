"""A registry in a folder, with a clock that tests set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_clock import Clock

from obm_registry.blobs.local import LocalBlobs
from obm_registry.catalog.store import open_catalog
from obm_registry.service.registry import Registry


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock) -> Iterator[Registry]:
    catalog = open_catalog(tmp_path / "registry.sqlite3")
    yield Registry(catalog=catalog, blobs=LocalBlobs(tmp_path / "data"), clock=clock)
    catalog.close()

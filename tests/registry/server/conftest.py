"""One real server for the tests of this folder; each test uses repositories of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import httpx
import pytest
from registry_server import RunningServer, running_server

_COUNT = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server") / "home") as running:
        yield running


@pytest.fixture(scope="module")
def admin(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def repo() -> str:
    """The name of a repository that no other test uses."""
    return f"acme/r{next(_COUNT)}"

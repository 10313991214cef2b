"""A stock registry, our own server, a backbone and an expert, for the tests of the client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_files import write_backbone, write_expert
from registry_server import running_server
from s3_server import aws_environment
from stock_registry import stock_registry


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of a stock registry, shared by the tests of a file; each takes names of its own."""
    with stock_registry(tmp_path_factory.mktemp("stock")) as address:
        yield address


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """`host:port` of our own server and its administrator's token, shared likewise."""
    with running_server(tmp_path_factory.mktemp("own") / "home") as server:
        yield server.host, server.admin


@pytest.fixture(scope="module")
def own_s3(s3_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Our own server that keeps its bytes in a bucket, shared likewise."""
    folder = tmp_path_factory.mktemp("own-s3")
    options = ("--blobs", f"s3://shelf/{folder.name}")
    with running_server(folder / "home", *options, env=aws_environment(s3_url)) as server:
        yield server.host, server.admin


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small backbone."""
    return write_backbone(tmp_path / "base")


@pytest.fixture
def expert(tmp_path: Path, base: Path) -> Path:
    """An expert of it, of several segments where a test makes segments small."""
    return write_expert(tmp_path / "x.obm", base, added_nbytes=5000, n_added=8)

"""A stock registry, an S3 server, a backbone and an expert, for the tests of the client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from registry_files import write_backbone, write_expert
from registry_server import running_server
from s3_server import BUCKETS, s3_server
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


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small backbone."""
    return write_backbone(tmp_path / "base")


@pytest.fixture
def expert(tmp_path: Path, base: Path) -> Path:
    """An expert of it, of several segments where a test makes segments small."""
    return write_expert(tmp_path / "x.obm", base, added_nbytes=5000, n_added=8)


@pytest.fixture(scope="module")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an S3 server with its buckets, shared likewise."""
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        for bucket in BUCKETS:
            httpx.put(f"{url}/{bucket}", trust_env=False).raise_for_status()
        yield url


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, as a user of AWS's own variables has it in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return s3_url

"""An S3 server, for the tests of everything that keeps bytes in a bucket."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from s3_server import BUCKETS, aws_environment, s3_server


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
    for name, value in aws_environment(s3_url).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return s3_url

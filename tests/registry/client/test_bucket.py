"""A registry in a bucket: what lies where, writers at once, services that know less, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from client_parts import HASTE, open_there
from registry_files import write_expert

from obm_format.errors import ObmError, RegistryError, UsageError
from obm_registry import bucket
from obm_registry.bucket import Bucket
from obm_registry.client import layout_bucket
from obm_registry.client.http import Patience
from obm_registry.client.layout_bucket import BucketLayout
from obm_registry.manifest.oci import IMAGE_INDEX

RUN = "from obm_cli.__main__ import run; run()"
REF = "acme/tiny:chat"


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """A prefix that no other test uses."""
    return tmp_path.name


@pytest.fixture
def hand(s3: str) -> Iterator[httpx.Client]:
    """Access to the objects past our client; the server looks at no signature."""
    claim = "AWS4-HMAC-SHA256 Credential=someone/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    with httpx.Client(base_url=s3, headers={"Authorization": claim}, trust_env=False) as client:
        yield client


def fill(url: str, base: Path, expert: Path, folder: Path) -> str:
    """Push an expert; its manifest's digest."""
    with open_there(url, folder) as there:
        there.add_backbone(base, "acme/tiny")
        return there.push(expert, REF).manifest_digest


def keys(hand: httpx.Client, place: str) -> set[str]:
    """Keys under `bucket/prefix`, without the prefix."""
    shelf, _, prefix = place.partition("/")
    found = hand.get(f"/{shelf}", params={"list-type": "2", "prefix": f"{prefix}/"}).raise_for_status().text
    return {part.partition("</Key>")[0].removeprefix(f"{prefix}/") for part in found.split("<Key>")[1:]}


def test_keys_are_those_of_a_layout(
    s3: str, hand: httpx.Client, prefix: str, base: Path, expert: Path, tmp_path: Path
) -> None:
    digest = fill(f"s3://shelf/{prefix}/", base, expert, tmp_path)
    there = keys(hand, f"shelf/{prefix}")
    assert {key for key in there if not key.startswith("blobs/")} == {"oci-layout", "index.json"}
    assert f"blobs/sha256/{digest.removeprefix('sha256:')}" in there
    marker = hand.get(f"/shelf/{prefix}/oci-layout").json()
    assert marker == {"imageLayoutVersion": "1.0.0"}
    index = hand.get(f"/shelf/{prefix}/index.json").json()
    assert index["mediaType"] == IMAGE_INDEX
    assert {row["annotations"]["org.opencontainers.image.ref.name"] for row in index["manifests"]} == {
        "acme/tiny:backbone",
        REF,
    }


@pytest.mark.parametrize("shelf", ["shelf", "poor-shelf", "lossy-shelf"])
def test_writers_at_once_lose_nothing(
    s3: str, hand: httpx.Client, shelf: str, prefix: str, base: Path, tmp_path: Path
) -> None:
    url = f"s3://{shelf}/{prefix}"
    with open_there(url, tmp_path) as there:
        there.add_backbone(base, "acme/tiny")
    files = [write_expert(tmp_path / f"{i}.obm", base, seed=i) for i in range(4)]

    def push(number: int) -> None:
        # writers who met wait so long that each finds itself alone soon, on a slow machine too
        with open_there(url, tmp_path / f"home{number}", patience=Patience(stall_s=20.0)) as own:
            own.push(files[number], f"acme/tiny:t{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(push, range(4)))
    with open_there(url, tmp_path) as there:
        assert [row.ref for row in there.experts("acme/tiny")] == [f"acme/tiny:t{i}" for i in range(4)]
        pulled = there.pull("acme/tiny:t3", tmp_path / "out.obm")
    assert (tmp_path / "out.obm").read_bytes() == files[3].read_bytes()
    assert pulled.received_bytes == files[3].stat().st_size
    assert {key for key in keys(hand, f"{shelf}/{prefix}") if not key.startswith("blobs/")} == {
        "oci-layout",
        "index.json",
    }


def test_a_writer_that_was_killed_is_named(
    s3: str, hand: httpx.Client, prefix: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout_bucket, "MAX_ROUNDS", 2)
    left = f"{prefix}/.obm-writers/abc"
    hand.put(f"/poor-shelf/{left}").raise_for_status()
    with open_there(f"s3://poor-shelf/{prefix}", tmp_path) as there, pytest.raises(RegistryError) as caught:
        there.add_backbone(base, "acme/tiny")
    assert (caught.value.reason, caught.value.exit_code) == ("busy", 7)
    assert left in str(caught.value)
    there_now = keys(hand, f"poor-shelf/{prefix}")
    assert {key for key in there_now if not key.startswith("blobs/")} == {"oci-layout", ".obm-writers/abc"}
    hand.delete(f"/poor-shelf/{left}").raise_for_status()
    with open_there(f"s3://poor-shelf/{prefix}", tmp_path) as there:
        there.add_backbone(base, "acme/tiny")


def test_large_blobs_go_in_parts_and_appear_whole_or_not_at_all(
    s3: str, hand: httpx.Client, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PART_NBYTES", 5 << 20)
    data = bytes(range(251)) * 50_000  # 12 MB
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    chunks = [data[at : at + 1_000_003] for at in range(0, len(data), 1_000_003)]
    there = Bucket("shelf")
    try:
        there.put_checked(f"{prefix}/right", digest, iter(chunks))
        assert hand.head(f"/shelf/{prefix}/right").headers["ETag"].endswith('-3"')
        assert b"".join(there.read(f"{prefix}/right", 0)) == data
        assert b"".join(there.read(f"{prefix}/right", 7_000_001)) == data[7_000_001:]
        assert list(there.read(f"{prefix}/right", len(data))) == []
        for wrong in ([*chunks, b"x"], [b"x"]):
            with pytest.raises(RegistryError) as caught:
                there.put_checked(f"{prefix}/wrong", digest, iter(wrong))
            assert caught.value.reason == "blob_digest"
        assert not there.has(f"{prefix}/wrong")
    finally:
        there.close()
    assert f"{prefix}/wrong" not in hand.get("/shelf", params={"uploads": ""}).text


@pytest.mark.parametrize("shelf", ["shelf", "poor-shelf"])
def test_a_range_that_the_service_does_not_know_is_cut_here(s3: str, shelf: str, prefix: str) -> None:
    data = bytes(range(256)) * 9000
    there = Bucket(shelf)
    try:
        there.put(f"{prefix}/x", data)
        for start in (1, 1 << 20, (1 << 20) + 1, len(data) - 1):
            assert b"".join(there.read(f"{prefix}/x", start)) == data[start:]
    finally:
        there.close()


def test_bytes_that_changed_in_the_bucket_are_refused(
    s3: str, hand: httpx.Client, prefix: str, base: Path, expert: Path, tmp_path: Path
) -> None:
    url = f"s3://shelf/{prefix}"
    digest = fill(url, base, expert, tmp_path)
    manifest = f"{prefix}/blobs/sha256/{digest.removeprefix('sha256:')}"
    good = hand.get(f"/shelf/{manifest}").content
    for layer in json.loads(good)["layers"]:
        path = f"/shelf/{prefix}/blobs/sha256/{layer['digest'].removeprefix('sha256:')}"
        hand.put(path, content=bytes(layer["size"]))
    with open_there(url, tmp_path / "else") as there, pytest.raises(RegistryError) as caught:
        there.pull(REF, tmp_path / "out.obm")
    assert caught.value.reason == "blob_damaged"
    hand.put(f"/shelf/{manifest}", content=good.replace(b"chat", b"chit") + b" ")
    with open_there(url, tmp_path / "else") as there, pytest.raises(RegistryError) as caught:
        there.pull(REF, tmp_path / "out.obm")
    assert caught.value.reason == "blob_digest"
    assert not (tmp_path / "out.obm").exists()


def test_another_index_is_left_alone(s3: str, hand: httpx.Client, prefix: str, base: Path, tmp_path: Path) -> None:
    page = b'{"name": "a page of somebody"}'
    hand.put(f"/shelf/{prefix}/index.json", content=page)
    with open_there(f"s3://shelf/{prefix}", tmp_path) as there, pytest.raises(RegistryError) as caught:
        there.add_backbone(base, "acme/tiny")
    assert caught.value.reason == "bad_manifest"
    assert hand.get(f"/shelf/{prefix}/index.json").content == page


def test_works_offline_from_what_was_pulled(
    s3: str, prefix: str, base: Path, expert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://shelf/{prefix}"
    fill(url, base, expert, tmp_path)
    with open_there(url, tmp_path) as there:
        there.pull(REF, tmp_path / "one.obm")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with open_there(url, tmp_path, offline=True) as there:
        there.pull(REF, tmp_path / "two.obm")
    assert (tmp_path / "two.obm").read_bytes() == expert.read_bytes()


@pytest.mark.parametrize(
    ("url", "reason", "exit_code"),
    [
        ("s3://no-such-shelf/x", "not_found", 3),
        ("s3://shut-shelf/x", "denied", 6),
        ("s3://shelf/empty", "not_found", 3),
    ],
)
def test_refusals_of_the_service_are_told(s3: str, url: str, reason: str, exit_code: int, tmp_path: Path) -> None:
    with open_there(url, tmp_path) as there, pytest.raises(RegistryError) as caught:
        there.pull(REF, tmp_path / "out.obm")
    assert (caught.value.reason, caught.value.exit_code) == (reason, exit_code)
    assert "\n" not in str(caught.value)


def test_credentials_and_service_that_are_not_there_are_told(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> ObmError:
        with pytest.raises(ObmError) as caught, open_there("s3://shelf/x", tmp_path) as there:
            there.pull(REF, tmp_path / "out.obm")
        return caught.value

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert (refused().reason, refused().exit_code) == ("unauthorized", 6)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert refused().reason == "unauthorized"
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert (refused().reason, refused().exit_code) == ("network", 8)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    assert refused().reason == "usage"


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///x",
        "s3://UPPER/x",
        "s3://a",
        "s3://shelf/../x",
        "s3://shelf//x",
        "s3://shelf/x?y",
        "s3://k:s@shelf",
    ],
)
def test_what_names_no_bucket_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_there(url, tmp_path)
    assert caught.value.reason == "usage"


def obm(prelude: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`obm ...` in a process of its own, after `prelude`."""
    command = [sys.executable, "-c", f"{prelude}{RUN}", *arguments]
    return subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True)


def test_commands_take_a_bucket_and_say_what_it_needs(
    s3: str, prefix: str, base: Path, expert: Path, tmp_path: Path
) -> None:
    url, home = f"s3://shelf/{prefix}", {"OBM_HOME": str(tmp_path / "h"), "OBM_CACHE": str(tmp_path / "c")}
    fill(url, base, expert, tmp_path)
    without = obm("import sys; sys.modules['boto3'] = None; ", "ls", "--registry", url, **home)
    assert (without.returncode, without.stdout) == (2, "")
    assert without.stderr.count("\n") == 1
    assert "pip install 'obm-format[s3]'" in without.stderr
    listed = obm("", "ls", "--json", OBM_REGISTRY=url, **home)
    assert listed.returncode == 0, listed.stderr
    assert REF in listed.stdout


def test_a_change_that_came_between_is_kept(s3: str, prefix: str) -> None:
    one, other = (BucketLayout(Bucket("shelf"), "here", f"{prefix}/", HASTE) for _ in range(2))
    changes = 0

    def change(body: bytes | None) -> bytes:
        nonlocal changes
        changes += 1
        if changes == 1:
            other.update_index(lambda now: (now or b"") + b" between")
        return (body or b"") + b" mine"

    one.update_index(change)
    assert (one.index(), changes) == (b" between mine", 2)
    one.update_index(change)
    assert (one.index(), changes) == (b" between mine mine", 3)
    one.close()
    other.close()

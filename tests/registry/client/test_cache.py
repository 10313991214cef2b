"""The cache: shared, bounded, never believed, and enough to work without a network."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from client_parts import open_there, places
from registry_files import write_expert

from obm_cli.main import main
from obm_format.errors import RegistryError
from obm_registry.client.cache import Cache
from obm_registry.client.draft import Draft
from obm_registry.client.open import open_client
from obm_registry.manifest import segments
from obm_registry.manifest.oci import Descriptor

REF = "acme/tiny:chat"


@pytest.fixture
def url(base: Path, expert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A layout that has the expert."""
    monkeypatch.setattr(segments, "SEGMENT_NBYTES", 8192)
    found = f"file://{tmp_path / 'layout'}"
    with open_there(found, tmp_path) as there:
        there.add_backbone(base, "acme/tiny")
        there.push(expert, REF)
    return found


def test_second_pull_moves_nothing(url: str, expert: Path, tmp_path: Path) -> None:
    size = expert.stat().st_size
    with open_there(url, tmp_path) as there:
        first = there.pull(REF, tmp_path / "a.obm")
        second = there.pull(REF, tmp_path / "b.obm")
    assert (first.received_bytes, first.reused_bytes) == (size, 0)
    assert (second.received_bytes, second.reused_bytes) == (0, size)
    assert (tmp_path / "b.obm").read_bytes() == expert.read_bytes()


def test_a_disk_that_takes_a_part_is_given_the_rest(
    url: str, expert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: whole(file, data[: len(data) // 2 + 1], offset))
    with open_there(url, tmp_path) as there:
        pulled = there.pull(REF, tmp_path / "a.obm")
    assert (tmp_path / "a.obm").read_bytes() == expert.read_bytes()
    assert pulled.received_bytes == expert.stat().st_size


def test_the_disk_has_a_place_for_every_mark_before_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draft, "_mark", lambda *_: None)
    segment = Descriptor(media_type="", digest=f"sha256:{'0' * 64}", size=1)
    with Draft(tmp_path / "x.part", tmp_path / "x.marks", [segment] * 8192):
        found = (tmp_path / "x.marks").stat()
    assert found.st_blocks * 512 >= found.st_size == 65_536


def test_what_a_user_does_to_a_pulled_file_stays_out_of_the_cache(url: str, expert: Path, tmp_path: Path) -> None:
    with open_there(url, tmp_path) as there:
        there.pull(REF, tmp_path / "a.obm")
        with (tmp_path / "a.obm").open("r+b") as file:
            file.write(b"mine")
        there.pull(REF, tmp_path / "b.obm")
    assert (tmp_path / "b.obm").read_bytes() == expert.read_bytes()


def test_a_damaged_segment_of_the_cache_is_fetched_again_and_it_alone(url: str, expert: Path, tmp_path: Path) -> None:
    with open_there(url, tmp_path) as there:
        there.pull(REF, tmp_path / "a.obm")
        (entry,) = Cache(tmp_path / "cache").entries()
        with entry.path.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"damage")
        pulled = there.pull(REF, tmp_path / "b.obm")
    assert (tmp_path / "b.obm").read_bytes() == expert.read_bytes()
    assert 0 < pulled.received_bytes <= 8192
    assert pulled.received_bytes + pulled.reused_bytes == expert.stat().st_size


def test_a_file_of_another_size_in_the_cache_is_made_right(url: str, expert: Path, tmp_path: Path) -> None:
    with open_there(url, tmp_path) as there:
        there.pull(REF, tmp_path / "a.obm")
        (entry,) = Cache(tmp_path / "cache").entries()
        os.truncate(entry.path, 10_000)
        there.pull(REF, tmp_path / "b.obm")
    assert (tmp_path / "b.obm").read_bytes() == expert.read_bytes()


def test_without_network_the_cache_is_enough(stock: str, base: Path, expert: Path, tmp_path: Path) -> None:
    with open_there(stock, tmp_path) as there:
        there.add_backbone(base, "acme/offline")
        there.push(expert, "acme/offline:chat")
        there.push(expert, "acme/offline:other")
        pushed = there.pull("acme/offline:chat", tmp_path / "a.obm")
    with open_there(stock, tmp_path, offline=True) as away:
        pulled = away.pull("acme/offline:chat", tmp_path / "b.obm")
        assert (pulled.id, pulled.received_bytes) == (pushed.id, 0)
        assert (tmp_path / "b.obm").read_bytes() == expert.read_bytes()
        for call in (
            lambda: away.pull("acme/offline:other", tmp_path / "c.obm"),
            lambda: away.experts(),
            lambda: away.push(expert, "acme/offline:new"),
            lambda: away.log("acme/offline:chat"),
        ):
            with pytest.raises(RegistryError, match="OBM_OFFLINE") as caught:
                call()
            assert caught.value.exit_code == 8


def test_the_least_recently_used_make_room(url: str, base: Path, tmp_path: Path) -> None:
    with open_there(url, tmp_path) as there:
        for i in range(3):
            there.push(write_expert(tmp_path / f"{i}.obm", base, seed=i, task=f"t{i}"), f"acme/tiny:t{i}")
            there.pull(f"acme/tiny:t{i}", tmp_path / "out.obm")
    cache = Cache(tmp_path / "cache")
    for age, entry in enumerate(reversed(cache.entries())):
        os.utime(entry.path, (0, time.time() - 1000 - age))
    oldest, middle, newest = cache.entries()
    assert [e.id for e in cache.prune(middle.nbytes + newest.nbytes)] == [oldest.id]
    os.utime(middle.path)  # in use
    assert [e.id for e in cache.prune(0)] == [newest.id]
    assert [e.id for e in cache.entries()] == [middle.id]


def test_a_pull_keeps_the_cache_below_its_limit(url: str, base: Path, tmp_path: Path) -> None:
    with open_there(url, tmp_path) as there:
        there.pull(REF, tmp_path / "out.obm")
        there.push(write_expert(tmp_path / "y.obm", base, seed=9), "acme/tiny:other")
    (entry,) = Cache(tmp_path / "cache").entries()
    os.utime(entry.path, (0, 1))
    with open_client(url, places(tmp_path, limit=20_000)) as there:
        there.pull("acme/tiny:other", tmp_path / "out.obm")
    assert [e.id for e in Cache(tmp_path / "cache").entries()] != [entry.id]
    assert len(Cache(tmp_path / "cache").entries()) == 1


def test_cache_commands(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OBM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OBM_CACHE", str(tmp_path / "cache"))
    assert main(["inspect", REF, "--registry", url, "--json"]) == 0
    assert main(["cache", "ls"]) == 0
    assert main(["cache", "verify"]) == 0
    (entry,) = Cache(tmp_path / "cache").entries()
    with entry.path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"damage")
    assert main(["cache", "verify"]) == 4
    assert Cache(tmp_path / "cache").entries() == []
    assert main(["inspect", REF, "--registry", url]) == 0
    assert main(["cache", "prune"]) == 0
    assert len(Cache(tmp_path / "cache").entries()) == 1
    assert main(["cache", "prune", "--all"]) == 0
    assert Cache(tmp_path / "cache").entries() == []
    monkeypatch.setenv("OBM_CACHE_LIMIT", "much")
    assert main(["cache", "prune"]) == 2
    capfd.readouterr()

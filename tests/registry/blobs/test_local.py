"""The behaviour of a blob store, on local files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from obm_format.errors import ObmError, RegistryError
from obm_registry.blobs.base import BlobStore, new_key
from obm_registry.blobs.local import LocalBlobs


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return LocalBlobs(tmp_path / "data")


def put(store: BlobStore, data: bytes) -> str:
    key = new_key()
    with store.create(key) as writer:
        writer.write(data)
    return key


def test_read_gives_ranges_of_what_was_written(store: BlobStore) -> None:
    data = os.urandom(3 << 20)
    key = put(store, data)
    assert b"".join(store.read(key)) == data
    assert b"".join(store.read(key, 5, 9)) == data[5:9]
    assert b"".join(store.read(key, 2 << 20)) == data[2 << 20 :]
    assert list(store.read(key, 7, 7)) == []
    assert max(map(len, store.read(key))) <= 1 << 20
    assert store.nbytes(key) == len(data)


def test_create_that_raises_leaves_nothing(store: BlobStore) -> None:
    key = new_key()

    def break_off() -> None:
        with store.create(key) as writer:
            writer.write(b"half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        break_off()
    assert store.nbytes(key) is None
    assert list(store.objects()) == []


def test_create_under_a_used_key_is_refused_and_changes_nothing(store: BlobStore) -> None:
    key = put(store, b"first")
    with pytest.raises(ObmError), store.create(key) as writer:
        writer.write(b"second")
    assert b"".join(store.read(key)) == b"first"


def test_read_of_a_missing_or_short_object_is_told(store: BlobStore) -> None:
    for key, stop in ((new_key(), None), (put(store, b"abc"), 4)):
        with pytest.raises(RegistryError) as caught:
            list(store.read(key, 0, stop))
        assert caught.value.reason == "blob_damaged"


@pytest.mark.parametrize("key", ["../../etc/passwd", "", "A" * 32, "0" * 31, "/etc/passwd"])
def test_any_other_key_touches_no_path(store: BlobStore, key: str) -> None:
    with pytest.raises(RegistryError):
        store.nbytes(key)
    with pytest.raises(RegistryError):
        store.delete(key)


def test_delete_is_final_and_may_be_repeated(store: BlobStore) -> None:
    key = put(store, b"x")
    store.delete(key)
    store.delete(key)
    assert store.nbytes(key) is None


def test_objects_lists_all_and_nothing_else(store: BlobStore, tmp_path: Path) -> None:
    keys = {put(store, b"x" * i): i for i in range(3)}
    (tmp_path / "data" / "ab").mkdir(exist_ok=True)
    (tmp_path / "data" / "ab" / "stray").write_text("")
    assert {found.key: found.nbytes for found in store.objects()} == keys


def test_create_on_a_full_disk_is_told_and_leaves_nothing(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ObmError) as caught:
        put(store, b"x")
    assert caught.value.reason == "disk_full"
    assert list(store.objects()) == []

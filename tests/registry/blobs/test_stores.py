"""One suite for every blob store: local files, and objects in a bucket."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from obm_format.errors import ObmError, RegistryError
from obm_registry import bucket
from obm_registry.blobs.base import BlobStore, new_key
from obm_registry.blobs.local import LocalBlobs
from obm_registry.blobs.s3 import S3Blobs
from obm_registry.bucket import Bucket


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    if request.param == "local":
        yield LocalBlobs(tmp_path / "data")
        return
    request.getfixturevalue("s3")
    with contextlib.closing(S3Blobs(Bucket("shelf"), f"{tmp_path.name}/", tmp_path / "data")) as found:
        yield found


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


# --- objects that grow ------------------------------------------------------------------------------------------------


def grow(store: BlobStore, key: str, data: bytes, durable: int) -> None:
    with store.resume(key, lambda: durable) as writer:
        writer.write(data)


def test_an_object_grows_and_is_whole_when_it_is_finished(store: BlobStore) -> None:
    key = new_key()
    grow(store, key, b"one", 0)
    grow(store, key, b"two-lost", 3)
    grow(store, key, b"three", 6)  # what is beyond the bytes that count is cut
    assert b"".join(store.read(key)) == b"onetwothree"
    assert store.nbytes(key) == 11
    store.finish(key)
    store.finish(key)
    assert b"".join(store.read(key, 3, 6)) == b"two"
    assert [(found.key, found.nbytes) for found in store.objects()] == [(key, 11)]


def test_a_finished_object_can_grow_on_when_no_row_names_it(store: BlobStore) -> None:
    key = new_key()
    grow(store, key, b"one", 0)
    store.finish(key)
    grow(store, key, b"two", 3)
    store.finish(key)
    assert b"".join(store.read(key)) == b"onetwo"


def test_only_one_writer_at_a_time_and_none_where_bytes_are_missing(store: BlobStore) -> None:
    key = new_key()
    with store.resume(key, lambda: 0) as writer:
        writer.write(b"x")
        with pytest.raises(RegistryError) as caught, store.resume(key, lambda: 0):
            pass
        assert caught.value.reason == "busy"
    with pytest.raises(RegistryError) as caught, store.resume(key, lambda: 5):
        pass
    assert caught.value.reason == "blob_damaged"


def test_delete_takes_what_is_still_coming_and_what_is_finished(store: BlobStore) -> None:
    for finished in (False, True):
        key = new_key()
        grow(store, key, b"x", 0)
        if finished:
            store.finish(key)
        store.delete(key)
        assert store.nbytes(key) is None
    assert list(store.objects()) == []


# --- a bucket ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(s3: str, tmp_path: Path) -> Iterator[S3Blobs]:
    with contextlib.closing(S3Blobs(Bucket("shelf"), f"{tmp_path.name}/", tmp_path / "data")) as found:
        yield found


def test_large_objects_go_in_parts_and_all_are_listed(
    shelf: S3Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PART_NBYTES", 5 << 20)
    data = os.urandom((11 << 20) + 7)
    key = put(shelf, data)
    assert b"".join(shelf.read(key)) == data
    assert b"".join(shelf.read(key, (5 << 20) - 3, (5 << 20) + 3)) == data[(5 << 20) - 3 : (5 << 20) + 3]
    assert list((tmp_path / "data").glob("??/*")) == []  # nothing stays on the disk
    assert [found.nbytes for found in shelf.objects()] == [len(data)]
    assert abs(next(shelf.objects()).written_at - time.time() * 1000) < 60_000


def test_a_list_of_objects_goes_on_over_pages(shelf: S3Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {put(shelf, b"x") for _ in range(5)}
    own = shelf._bucket._s3
    monkeypatch.setattr(own, "list_objects_v2", partial(own.list_objects_v2, MaxKeys=2))
    assert {found.key for found in shelf.objects()} == keys


def test_a_link_gives_one_object_and_ranges_of_it_as_a_download(shelf: S3Blobs) -> None:
    key = put(shelf, b"0123456789")
    link = shelf.link(key, 60)
    assert link is not None
    assert f"/{key[:2]}/{key}?" in link
    assert "X-Amz-Expires=60" in link
    reply = httpx.get(link, headers={"Range": "bytes=2-4"}, trust_env=False)
    assert (reply.status_code, reply.content) == (206, b"234")
    assert reply.headers["Content-Type"] == "application/octet-stream"
    assert reply.headers["Content-Disposition"] == "attachment"


def test_a_service_that_knows_no_ranges_is_read_right(s3: str, tmp_path: Path) -> None:
    with contextlib.closing(S3Blobs(Bucket("poor-shelf"), f"{tmp_path.name}/", tmp_path / "data")) as poor:
        data = os.urandom(3 << 20)
        key = put(poor, data)
        assert b"".join(poor.read(key, 10, (2 << 20) + 5)) == data[10 : (2 << 20) + 5]


def test_a_service_that_refuses_leaves_what_has_come(s3: str, tmp_path: Path) -> None:
    with contextlib.closing(S3Blobs(Bucket("shut-shelf"), "x/", tmp_path / "data")) as shut:
        key = new_key()
        with shut._incoming.create(key) as writer:
            writer.write(b"x")
        for refused in (
            lambda: shut.finish(key),
            lambda: shut.delete(new_key()),
            lambda: shut.nbytes(new_key()),
            lambda: list(shut.read(new_key())),
            lambda: list(shut.objects()),
        ):
            with pytest.raises(RegistryError) as caught:
                refused()
            # a client of the server is not told that its own credentials are wrong
            assert (caught.value.reason, "s3:ListBucket" in caught.value.message) == ("io", True)
        assert b"".join(shut.read(key)) == b"x"


class CountedParts:
    """In place of boto3's client: notes the sizes of parts, keeps no bytes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def create_multipart_upload(self, **_: object) -> dict[str, str]:
        return {"UploadId": "u"}

    def upload_part(self, *, PartNumber: int, Body: bytes, **_: object) -> dict[str, str]:  # noqa: N803 - boto3's names
        assert PartNumber == len(self.sizes) + 1
        self.sizes.append(len(Body))
        return {"ETag": str(PartNumber)}

    def complete_multipart_upload(self, **_: object) -> dict[str, str]:
        return {}

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(("nbytes", "largest"), [(10_000, 1), (10_001, 2), (25_000, 3)])
def test_i09_a_blob_never_takes_more_parts_than_there_may_be(
    shelf: S3Blobs, monkeypatch: pytest.MonkeyPatch, nbytes: int, largest: int
) -> None:
    """At a scale of 1 byte for 16 MiB."""
    monkeypatch.setattr(bucket, "PART_NBYTES", 1)
    parts = CountedParts()
    monkeypatch.setattr(shelf._bucket, "_s3", parts)
    shelf._bucket.put_sized("x", iter([bytes(nbytes)]), nbytes)
    assert len(parts.sizes) <= 10_000
    assert (sum(parts.sizes), max(parts.sizes)) == (nbytes, largest)

"""Uploads that go on over several calls, as the service sees them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from registry_clock import Clock
from registry_pushes import REPO

from obm_format.errors import ObmError, RegistryError
from obm_registry.blobs.local import LocalBlobs
from obm_registry.catalog.blobs import Blobs
from obm_registry.catalog.rows import Blob
from obm_registry.manifest.oci import digest_of
from obm_registry.service import uploads
from obm_registry.service.blobs import read_blob
from obm_registry.service.collect import collect
from obm_registry.service.fsck import examine
from obm_registry.service.hashes import RunningHashes
from obm_registry.service.registry import Registry
from obm_registry.service.uploads import Receiver, begin_upload, cancel_upload, find_upload, finish_upload

MAX = 1 << 20


def send(registry: Registry, session: str, *pieces: bytes) -> int:
    with Receiver(registry, find_upload(registry, REPO, session), max_nbytes=MAX) as receiver:
        for data in pieces:
            receiver.write(data)
    return receiver.received


def test_pieces_become_the_blob(registry: Registry) -> None:
    session = begin_upload(registry, REPO).session
    assert [send(registry, session, piece) for piece in (b"one ", b"two ", b"three")] == [4, 8, 13]
    blob = finish_upload(registry, REPO, session, digest_of(b"one two three"))
    assert (blob.size, b"".join(read_blob(registry, REPO, blob.digest))) == (13, b"one two three")
    with pytest.raises(RegistryError) as caught:
        find_upload(registry, REPO, session)
    assert caught.value.reason == "upload_unknown"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_another_process_goes_on(registry: Registry, tmp_path: Path, algorithm: str) -> None:
    session = begin_upload(registry, REPO).session
    send(registry, session, b"first ")
    other = Registry(catalog=registry.catalog, blobs=LocalBlobs(tmp_path / "data"), hashes=RunningHashes())
    send(other, session, b"second")
    blob = finish_upload(registry, REPO, session, digest_of(b"first second", algorithm))
    assert b"".join(read_blob(registry, REPO, blob.digest)) == b"first second"


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_a_disk_that_takes_no_more_gets_the_space_of_a_failed_piece_back(registry: Registry) -> None:
    import resource

    upload = begin_upload(registry, REPO)
    kept, more = os.urandom(500_000), os.urandom(500_000)
    send(registry, upload.session, kept)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, before[1]))
    try:
        with pytest.raises(ObmError) as caught:
            send(registry, upload.session, *(more[at : at + 100_000] for at in range(0, len(more), 100_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.reason == "io"
    assert registry.blobs.nbytes(upload.storage_key) == 500_000
    assert send(registry, upload.session, more) == 1_000_000
    assert finish_upload(registry, REPO, upload.session, digest_of(kept + more)).size == 1_000_000


def test_bytes_that_a_full_catalog_cannot_count_give_their_space_back(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin_upload(registry, REPO)
    send(registry, upload.session, b"kept ")

    def full(*_args: object) -> bool:
        raise RegistryError("disk_full", "no space is left on the device")

    with monkeypatch.context() as patch:
        patch.setattr(Blobs, "note_received", full)
        with pytest.raises(RegistryError) as caught:
            send(registry, upload.session, b"lost")
    assert caught.value.reason == "disk_full"
    assert registry.blobs.nbytes(upload.storage_key) == 5
    assert send(registry, upload.session, b"new") == 8


def test_bytes_that_no_row_vouches_for_are_cut_off(registry: Registry, tmp_path: Path) -> None:
    upload = begin_upload(registry, REPO)
    send(registry, upload.session, b"kept ")
    # a process that was killed between the object and the row
    with registry.blobs.resume(upload.storage_key, lambda: 5) as writer:
        writer.write(b"lost")
    assert find_upload(registry, REPO, upload.session).received == 5
    send(registry, upload.session, b"new")
    blob = finish_upload(registry, REPO, upload.session, digest_of(b"kept new"))
    assert b"".join(read_blob(registry, REPO, blob.digest)) == b"kept new"


def test_nobody_appends_while_an_upload_is_finished(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    session = begin_upload(registry, REPO).session
    send(registry, session, b"data")
    adopt = uploads.adopt

    def append_meanwhile(*arguments: object) -> Blob:
        with pytest.raises(RegistryError) as caught:
            send(registry, session, b" and more")
        assert caught.value.reason == "busy"
        return adopt(*arguments)

    monkeypatch.setattr(uploads, "adopt", append_meanwhile)
    assert finish_upload(registry, REPO, session, digest_of(b"data")).size == 4
    assert examine(registry).problems == ()


def test_two_writers_of_one_upload(registry: Registry) -> None:
    upload = begin_upload(registry, REPO)
    with Receiver(registry, upload, max_nbytes=MAX) as first:
        first.write(b"mine")
        with pytest.raises(RegistryError) as caught, Receiver(registry, upload, max_nbytes=MAX) as second:
            second.write(b"theirs")
        assert caught.value.reason == "busy"
    finish_upload(registry, REPO, upload.session, digest_of(b"mine"))


def test_a_writer_that_comes_late_changes_nothing(registry: Registry) -> None:
    stale = begin_upload(registry, REPO)
    send(registry, stale.session, b"0123456789")
    with pytest.raises(RegistryError) as caught, Receiver(registry, stale, max_nbytes=MAX) as receiver:
        receiver.write(b"abc")
    assert caught.value.reason == "upload_unknown"
    blob = finish_upload(registry, REPO, stale.session, digest_of(b"0123456789"))
    assert b"".join(read_blob(registry, REPO, blob.digest)) == b"0123456789"


def test_wrong_digest_ends_the_upload(registry: Registry, tmp_path: Path) -> None:
    session = begin_upload(registry, REPO).session
    send(registry, session, b"data")
    with pytest.raises(RegistryError) as caught:
        finish_upload(registry, REPO, session, digest_of(b"other"))
    assert caught.value.reason == "blob_digest"
    assert not list((tmp_path / "data").glob("??/*"))


def test_cancelled_and_forgotten_uploads_leave_nothing(registry: Registry, clock: Clock, tmp_path: Path) -> None:
    for end in ("cancel", "collect"):
        session = begin_upload(registry, REPO).session
        send(registry, session, b"data")
        if end == "cancel":
            cancel_upload(registry, REPO, session)
        else:
            clock.pass_hours(25)
            assert collect(registry).uploads == 1
        with pytest.raises(RegistryError):
            find_upload(registry, REPO, session)
        assert not list((tmp_path / "data").glob("??/*"))


def test_too_large_is_refused_and_what_came_is_kept(registry: Registry) -> None:
    session = begin_upload(registry, REPO).session
    with Receiver(registry, find_upload(registry, REPO, session), max_nbytes=8) as receiver:
        receiver.write(b"12345")
        with pytest.raises(RegistryError) as caught:
            receiver.write(b"6789")
    assert caught.value.reason == "limit_exceeded"
    assert find_upload(registry, REPO, session).received == 5

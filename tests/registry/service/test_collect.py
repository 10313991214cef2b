"""Collection: what nothing refers to goes, whatever else happens meanwhile stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from registry_clock import Clock
from registry_pushes import BY_TESTER, REPO, manifest_body, push_blob, push_thing

from obm_format.errors import RegistryError
from obm_registry.blobs.base import new_key
from obm_registry.manifest.oci import digest_of
from obm_registry.service.blobs import offer_blob, put_blob, read_blob
from obm_registry.service.collect import collect
from obm_registry.service.fsck import examine
from obm_registry.service.publish import put_manifest
from obm_registry.service.registry import Registry
from obm_registry.service.tags import remove


def test_collect_spares_what_a_manifest_names(registry: Registry, clock: Clock) -> None:
    push_thing(registry, b"kept")
    push_blob(registry, b"loose")
    clock.pass_hours(25)
    done = collect(registry)
    assert (done.deleted, done.deleted_bytes) == (1, 5)
    assert b"".join(read_blob(registry, REPO, digest_of(b"kept"))) == b"kept"
    assert not offer_blob(registry, REPO, digest_of(b"loose"))
    assert len(list(registry.blobs.objects())) == 1


def test_collect_spares_what_was_touched_within_the_grace_period(registry: Registry, clock: Clock) -> None:
    push_blob(registry, b"old")
    clock.pass_hours(20)
    assert offer_blob(registry, REPO, digest_of(b"old"))
    clock.pass_hours(20)
    assert collect(registry).deleted == 0
    clock.pass_hours(5)
    assert collect(registry).deleted == 1


def test_collect_dry_run_tells_and_changes_nothing(registry: Registry, clock: Clock) -> None:
    push_blob(registry, b"loose")
    clock.pass_hours(25)
    assert collect(registry, dry_run=True) == collect(registry, dry_run=True)
    assert collect(registry).deleted_bytes == 5
    assert collect(registry).deleted == 0


def test_collect_after_removal_frees_the_bytes(registry: Registry, clock: Clock) -> None:
    digest = push_thing(registry, b"data", tags=["a"]).digest
    remove(registry, REPO, digest, "tester")
    clock.pass_hours(25)
    assert collect(registry).deleted == 1
    assert list(registry.blobs.objects()) == []


def test_manifest_whose_blob_was_collected_meanwhile_is_refused(registry: Registry, clock: Clock) -> None:
    blob = push_blob(registry, b"data")
    clock.pass_hours(25)
    collect(registry)
    with pytest.raises(RegistryError) as caught:
        put_manifest(registry, REPO, manifest_body(blob), change=BY_TESTER)
    assert caught.value.reason == "blob_unknown"
    push_blob(registry, b"data")
    put_manifest(registry, REPO, manifest_body(blob), change=BY_TESTER)


def test_blob_that_was_named_or_touched_since_it_was_listed_is_not_condemned(registry: Registry, clock: Clock) -> None:
    named, touched = push_blob(registry, b"named"), push_blob(registry, b"touched")
    before = clock() + 1
    with registry.catalog.read() as session:
        listed = session.blobs.unused(before)
    assert {blob.digest for blob in listed} == {named.digest, touched.digest}
    put_manifest(registry, REPO, manifest_body(named), change=BY_TESTER)
    clock.pass_hours(1)
    assert offer_blob(registry, REPO, touched.digest)
    with registry.catalog.write() as session:
        assert [session.blobs.condemn(blob.id, before) for blob in listed] == [False, False]


def test_collect_goes_on_where_a_crash_stopped_it(registry: Registry) -> None:
    push_blob(registry, b"data")
    with registry.catalog.write() as session:
        (blob,) = session.blobs.all_live()
        assert session.blobs.condemn(blob.id, registry.clock() + 1)
    push_thing(registry, b"data")
    assert collect(registry).deleted == 1
    assert b"".join(read_blob(registry, REPO, digest_of(b"data"))) == b"data"
    assert examine(registry).problems == ()


def test_collect_takes_unfinished_uploads_and_stray_objects(registry: Registry, clock: Clock) -> None:
    push_thing(registry, b"kept")
    key, stray = new_key(), new_key()
    with registry.catalog.write() as session:
        repo = session.names.repository(REPO)
        assert repo is not None
        session.blobs.begin_upload(key, repo.id, clock())
    for name in (key, stray):
        with registry.blobs.create(name) as writer:
            writer.write(b"xy")
    assert collect(registry).uploads == 0
    clock.pass_hours(25)
    done = collect(registry)
    assert (done.uploads, done.orphans, done.orphan_bytes) == (1, 1, 2)
    assert [found.nbytes for found in registry.blobs.objects()] == [4]


def test_upload_that_a_collection_took_fails_cleanly(registry: Registry, clock: Clock) -> None:
    def slow() -> Iterator[bytes]:
        yield b"da"
        clock.pass_hours(25)
        collect(registry)
        yield b"ta"

    with pytest.raises(RegistryError) as caught:
        put_blob(registry, REPO, slow(), digest_of(b"data"))
    assert caught.value.reason == "blob_unknown"
    clock.pass_hours(25)
    collect(registry)
    assert list(registry.blobs.objects()) == []

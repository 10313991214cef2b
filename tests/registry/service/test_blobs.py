"""Blobs in, blobs out, and who may read them."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_pushes import REPO, push_blob, push_thing

from obm_format.errors import ObmError, RegistryError
from obm_registry.catalog.rows import Blob
from obm_registry.manifest.oci import digest_of
from obm_registry.service import blobs
from obm_registry.service.blobs import find_blob, mount_blob, offer_blob, put_blob, read_blob, remove_blob, send_blob
from obm_registry.service.namespaces import set_namespace_rules
from obm_registry.service.registry import Registry


def uploads(registry: Registry) -> list[str]:
    with registry.catalog.read() as session:
        return session.blobs.stale_uploads(1 << 60)


def objects(registry: Registry) -> int:
    return len(list(registry.blobs.objects()))


def test_put_then_read_gives_the_bytes_and_ranges(registry: Registry) -> None:
    data = b"0123456789" * 300_000
    put_blob(registry, REPO, [data[:7], b"", data[7:]], digest_of(data))
    assert b"".join(read_blob(registry, REPO, digest_of(data))) == data
    assert b"".join(read_blob(registry, REPO, digest_of(data), 5, 12)) == data[5:12]
    assert b"".join(read_blob(registry, REPO, digest_of(data), 5, 1 << 40)) == data[5:]
    assert uploads(registry) == []


def test_put_sha512_is_stored_under_it(registry: Registry) -> None:
    digest = "sha512:" + hashlib.sha512(b"x").hexdigest()
    put_blob(registry, REPO, [b"x"], digest)
    assert find_blob(registry, REPO, digest).size == 1


def test_a_blob_that_lost_its_object_is_stored_anew(registry: Registry) -> None:
    blob = put_blob(registry, REPO, [b"data"], digest_of(b"data"))
    registry.blobs.delete(blob.storage_key)
    assert not offer_blob(registry, REPO, blob.digest)
    assert not mount_blob(registry, "acme/other", blob.digest)
    assert not mount_blob(registry, "acme/other", blob.digest, REPO)
    assert send_blob(registry, REPO, blob.digest, [b"data"]) == 4
    again = find_blob(registry, REPO, blob.digest)
    assert (again.id, again.storage_key != blob.storage_key) == (blob.id, True)
    assert b"".join(read_blob(registry, REPO, blob.digest)) == b"data"
    assert (offer_blob(registry, REPO, blob.digest), uploads(registry), objects(registry)) == (True, [], 1)


def test_put_other_bytes_than_the_digest_keeps_nothing(registry: Registry) -> None:
    with pytest.raises(RegistryError) as caught:
        put_blob(registry, REPO, [b"other"], digest_of(b"this"))
    assert caught.value.reason == "blob_digest"
    assert (uploads(registry), objects(registry)) == ([], 0)
    assert not offer_blob(registry, REPO, digest_of(b"this"))


def test_put_that_breaks_off_keeps_nothing(registry: Registry) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ObmError) as caught:
        put_blob(registry, REPO, broken(), digest_of(b"halfhalf"))
    assert caught.value.reason == "disk_full"
    assert (uploads(registry), objects(registry)) == ([], 0)


def test_put_interrupted_after_its_commit_keeps_the_live_object(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt = blobs.adopt

    def adopt_then_stop(*args: Any) -> Blob:  # noqa: ANN401 - passed on as they are
        adopt(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(blobs, "adopt", adopt_then_stop)
    with pytest.raises(KeyboardInterrupt):
        push_blob(registry, b"data")
    assert b"".join(read_blob(registry, REPO, digest_of(b"data"))) == b"data"


def test_put_twice_stores_one_object(registry: Registry) -> None:
    first = push_blob(registry, b"same")
    assert push_blob(registry, b"same") == first
    assert push_blob(registry, b"same", "other/place") == first
    assert objects(registry) == 1


def test_blob_is_readable_only_through_a_repository_that_has_it(registry: Registry) -> None:
    push_blob(registry, b"secret")
    push_blob(registry, b"other", "other/place")
    for repository in ("other/place", "no/where"):
        with pytest.raises(RegistryError) as caught:
            read_blob(registry, repository, digest_of(b"secret"))
        assert caught.value.exit_code == 3
        assert not offer_blob(registry, repository, digest_of(b"secret"))


def test_mount_needs_a_source_that_has_the_blob(registry: Registry) -> None:
    digest = digest_of(b"data")
    push_blob(registry, b"data")
    assert not mount_blob(registry, "other/place", digest, "no/where")
    assert not mount_blob(registry, "other/place", digest_of(b"none"))
    assert mount_blob(registry, "other/place", digest, REPO)
    assert b"".join(read_blob(registry, "other/place", digest)) == b"data"
    assert objects(registry) == 1


def test_remove_takes_the_blob_from_this_repository_alone(registry: Registry) -> None:
    digest = digest_of(b"data")
    push_blob(registry, b"data")
    mount_blob(registry, "other/place", digest)
    remove_blob(registry, REPO, digest, actor="tester")
    assert not offer_blob(registry, REPO, digest)
    assert offer_blob(registry, "other/place", digest)
    with pytest.raises(RegistryError):
        remove_blob(registry, REPO, digest, actor="tester")


def test_remove_of_a_blob_that_a_manifest_names_is_refused(registry: Registry) -> None:
    push_thing(registry, b"data")
    with pytest.raises(RegistryError) as caught:
        remove_blob(registry, REPO, digest_of(b"data"), actor="tester")
    assert caught.value.reason == "in_use"


def test_put_above_the_quota_keeps_nothing(registry: Registry) -> None:
    set_namespace_rules(registry, "acme", quota_nbytes=10, subject_policy="require", immutable_tags=(), actor="tester")
    push_blob(registry, b"12345678")
    with pytest.raises(RegistryError) as caught:
        push_blob(registry, b"abcdefgh")
    assert (caught.value.reason, caught.value.exit_code) == ("quota_exceeded", 9)
    assert (uploads(registry), objects(registry)) == ([], 1)
    with pytest.raises(RegistryError):
        push_thing(registry, b"12345678")
    push_blob(registry, b"12")


def test_storage_names_tell_nothing_about_content(registry: Registry, tmp_path: Path) -> None:
    blob = push_blob(registry, b"data")
    names = [path.name for path in (tmp_path / "data").rglob("*")]
    assert not any(blob.digest[7:15] in name for name in names)

"""Publication of manifests: what is admitted, what is refused, what it leaves."""

from __future__ import annotations

import dataclasses

import pytest
from registry_pushes import BY_TESTER, REPO, manifest_body, push_blob, push_thing

from obm_format.errors import ObmError, RegistryError, UsageError
from obm_registry.manifest.backbone import BACKBONE_TYPE
from obm_registry.manifest.expert import EXPERT_TYPE, INDEX_TYPE
from obm_registry.manifest.oci import (
    EMPTY_TYPE,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    Descriptor,
    OciManifest,
    describe,
    digest_of,
    encode_manifest,
)
from obm_registry.service.lookup import find_manifest, list_referrers, list_repositories, list_tags
from obm_registry.service.publish import put_manifest
from obm_registry.service.registry import Registry


def refusal(registry: Registry, manifest: OciManifest) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        put_manifest(registry, REPO, encode_manifest(manifest), change=BY_TESTER, tags=["t"])
    assert "t" not in (list_tags(registry, REPO) if REPO in list_repositories(registry) else [])
    return caught.value


def test_put_keeps_the_bytes_as_they_came(registry: Registry) -> None:
    blob = push_blob(registry, b"data")
    body = b" " + manifest_body(blob) + b"\n"
    done = put_manifest(registry, REPO, body, change=BY_TESTER, tags=["a", "b"])
    assert done.digest == digest_of(body)
    assert find_manifest(registry, REPO, "a").body == body
    assert find_manifest(registry, REPO, done.digest).body == body
    assert list_tags(registry, REPO) == ["a", "b"]


def test_put_twice_is_idempotent(registry: Registry) -> None:
    assert push_thing(registry, b"data", tags=["a"]).created
    assert not push_thing(registry, b"data", tags=["a"]).created


def test_put_under_another_digest_is_refused(registry: Registry) -> None:
    blob = push_blob(registry, b"data")
    with pytest.raises(RegistryError) as caught:
        put_manifest(registry, REPO, manifest_body(blob), change=BY_TESTER, digest=digest_of(b"x"))
    assert caught.value.reason == "blob_digest"


def test_put_missing_blob_is_refused(registry: Registry) -> None:
    there = push_blob(registry, b"data")
    error = refusal(registry, OciManifest(config=there, layers=(describe(b"gone", "a/b"),)))
    assert (error.reason, error.where) == ("blob_unknown", digest_of(b"gone"))


def test_put_blob_of_another_repository_is_refused(registry: Registry) -> None:
    push_blob(registry, b"mine")
    blob = push_blob(registry, b"theirs", "other/place")
    assert refusal(registry, OciManifest(config=blob)).reason == "blob_unknown"


def test_put_blob_of_another_size_is_refused(registry: Registry) -> None:
    blob = dataclasses.replace(push_blob(registry, b"data"), size=5)
    assert refusal(registry, OciManifest(config=blob)).reason == "bad_manifest"


def test_put_malformed_names_are_refused(registry: Registry) -> None:
    body = manifest_body(push_blob(registry, b"data"))
    for repository, tag in (("acme/../x", "t"), (REPO, "a/b"), ("x", "t")):
        with pytest.raises(UsageError):
            put_manifest(registry, repository, body, change=BY_TESTER, tags=[tag])


def test_put_foreign_subject_need_not_be_there_and_is_listed(registry: Registry) -> None:
    subject = Descriptor(media_type=IMAGE_MANIFEST, digest=digest_of(b"later"), size=5)
    done = push_thing(registry, b"signature", subject=subject)
    assert done.subject == subject.digest
    page, more = list_referrers(registry, REPO, subject.digest)
    assert ([found.digest for found in page], more) == ([done.digest], None)
    assert list_referrers(registry, REPO, subject.digest, artifact_type="a/b") == ([], None)
    assert list_referrers(registry, "no/where", subject.digest) == ([], None)


def test_referrers_page_without_repetition(registry: Registry) -> None:
    subject = Descriptor(media_type=IMAGE_MANIFEST, digest=digest_of(b"s"), size=1)
    pushed = [push_thing(registry, b"%d" % i, subject=subject).digest for i in range(5)]
    seen: list[list[str]] = []
    after: int | None = 0
    while after is not None:
        page, after = list_referrers(registry, REPO, subject.digest, after=after, limit=2)
        seen.append([found.digest for found in page])
    assert seen == [pushed[:2], pushed[2:4], pushed[4:]]


def test_referrers_with_large_annotations_come_a_few_at_a_time(registry: Registry) -> None:
    subject = Descriptor(media_type=IMAGE_MANIFEST, digest=digest_of(b"s"), size=1)
    blob = push_blob(registry, b"data")
    pushed = []
    for i in range(4):
        body = manifest_body(blob, note=str(i) * 700_000, subject=subject)
        pushed.append(put_manifest(registry, REPO, body, change=BY_TESTER).digest)
    page, more = list_referrers(registry, REPO, subject.digest)
    assert [found.digest for found in page] == pushed[:2]
    rest, end = list_referrers(registry, REPO, subject.digest, after=more or 0)
    assert ([found.digest for found in rest], end) == (pushed[2:], None)


def test_put_index_keeps_its_children(registry: Registry) -> None:
    child = push_thing(registry, b"child")
    there = Descriptor(media_type=IMAGE_MANIFEST, digest=child.digest, size=1)
    absent = Descriptor(media_type=IMAGE_MANIFEST, digest=digest_of(b"absent"), size=1)
    body = encode_manifest(OciManifest(media_type=IMAGE_INDEX, children=(absent, there)))
    put_manifest(registry, REPO, body, change=BY_TESTER)
    with registry.catalog.read() as session:
        repo = session.names.repository(REPO)
        assert repo is not None
        found = session.manifests.get(repo.id, child.digest)
        assert found is not None
        assert session.manifests.dependents(found.id) == 1


@pytest.mark.parametrize(
    ("artifact_type", "media_type"),
    [(BACKBONE_TYPE, EMPTY_TYPE), (EXPERT_TYPE, EMPTY_TYPE), (EXPERT_TYPE, INDEX_TYPE)],
)
def test_put_own_types_with_foreign_content_is_refused(registry: Registry, artifact_type: str, media_type: str) -> None:
    push_blob(registry, b"{}")
    blob = describe(b"{}", media_type)
    with pytest.raises(ObmError) as caught:
        put_manifest(
            registry,
            REPO,
            encode_manifest(OciManifest(artifact_type=artifact_type, config=blob, layers=(blob,))),
            change=BY_TESTER,
        )
    assert caught.value.reason in ("bad_manifest", "truncated")

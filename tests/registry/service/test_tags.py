"""Tags: when they move, when they do not, and what their history says."""

from __future__ import annotations

import pytest
from registry_pushes import BY_TESTER, REPO, push_thing

from obm_format.errors import RegistryError
from obm_registry.manifest.oci import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, OciManifest, encode_manifest
from obm_registry.service.lookup import find_manifest, list_tags
from obm_registry.service.namespaces import namespace_rules, set_namespace_rules
from obm_registry.service.publish import put_manifest
from obm_registry.service.registry import Registry
from obm_registry.service.tags import TagChange, move_tag, remove, tag_history, unyank, yank

MOVE = TagChange(move=True, actor="mover")


def reason_of(registry: Registry, data: bytes, tag: str, change: TagChange = BY_TESTER) -> str:
    with pytest.raises(RegistryError) as caught:
        push_thing(registry, data, tags=[tag], change=change)
    return caught.value.reason


def test_tag_of_another_manifest_moves_only_when_asked(registry: Registry) -> None:
    first = push_thing(registry, b"1", tags=["chat"])
    assert reason_of(registry, b"2", "chat") == "tag_exists"
    assert find_manifest(registry, REPO, "chat").digest == first.digest
    second = push_thing(registry, b"2", tags=["chat"], change=MOVE)
    assert find_manifest(registry, REPO, "chat").digest == second.digest


def test_refused_publication_leaves_no_manifest(registry: Registry) -> None:
    push_thing(registry, b"1", tags=["chat"])
    reason_of(registry, b"2", "chat")
    with registry.catalog.read() as session:
        assert len(session.manifests.page()) == 1


def test_move_with_an_expected_digest_is_compare_and_swap(registry: Registry) -> None:
    first = push_thing(registry, b"1", tags=["chat"])
    second = push_thing(registry, b"2")
    change = TagChange(expected=first.digest, actor="a")
    move_tag(registry, REPO, second.digest, "chat", change)
    with pytest.raises(RegistryError) as caught:
        move_tag(registry, REPO, first.digest, "chat", TagChange(expected=first.digest, move=True, actor="b"))
    assert caught.value.reason == "tag_exists"
    with pytest.raises(RegistryError):
        move_tag(registry, REPO, first.digest, "new", TagChange(expected=first.digest, actor="b"))


def test_version_tag_never_names_another_manifest(registry: Registry) -> None:
    first = push_thing(registry, b"1", tags=["chat-v1"])
    assert reason_of(registry, b"2", "chat-v1") == "tag_exists"
    assert reason_of(registry, b"2", "chat-v1", MOVE) == "tag_immutable"
    remove(registry, REPO, "chat-v1", "tester")
    assert reason_of(registry, b"2", "chat-v1", MOVE) == "tag_immutable"
    assert not push_thing(registry, b"1", tags=["chat-v1"]).created
    assert find_manifest(registry, REPO, "chat-v1").digest == first.digest


def test_immutable_patterns_are_those_of_the_namespace(registry: Registry) -> None:
    assert namespace_rules(registry, "acme").immutable_tags == ("*-v[0-9]*",)
    set_namespace_rules(
        registry, "acme", quota_nbytes=None, subject_policy="require", immutable_tags=("rc-*",), actor="tester"
    )
    push_thing(registry, b"1", tags=["chat-v1", "rc-1"])
    push_thing(registry, b"2", tags=["chat-v1"], change=MOVE)
    assert reason_of(registry, b"2", "rc-1", MOVE) == "tag_immutable"


def test_history_tells_every_move_and_who_made_it(registry: Registry) -> None:
    first = push_thing(registry, b"1", tags=["chat"]).digest
    push_thing(registry, b"1", tags=["chat"])
    second = push_thing(registry, b"2", tags=["chat"], change=MOVE).digest
    remove(registry, REPO, "chat", "remover")
    events = [(e.old_digest, e.new_digest, e.actor) for e in tag_history(registry, REPO, "chat")]
    assert events == [(second, None, "remover"), (first, second, "mover"), (None, first, "tester")]
    with pytest.raises(RegistryError):
        tag_history(registry, REPO, "never")


def test_remove_by_tag_keeps_the_manifest_and_by_digest_takes_all_tags(registry: Registry) -> None:
    digest = push_thing(registry, b"1", tags=["a", "b"]).digest
    remove(registry, REPO, "a", "tester")
    assert list_tags(registry, REPO) == ["b"]
    remove(registry, REPO, digest, "tester")
    assert list_tags(registry, REPO) == []
    with pytest.raises(RegistryError) as caught:
        find_manifest(registry, REPO, digest)
    assert caught.value.reason == "not_found"


def test_remove_of_a_manifest_that_an_index_needs_is_refused(registry: Registry) -> None:
    child = push_thing(registry, b"child")
    there = Descriptor(media_type=IMAGE_MANIFEST, digest=child.digest, size=1)
    index = put_manifest(
        registry,
        REPO,
        encode_manifest(OciManifest(media_type=IMAGE_INDEX, children=(there,))),
        change=BY_TESTER,
    )
    with pytest.raises(RegistryError) as caught:
        remove(registry, REPO, child.digest, "tester")
    assert caught.value.reason == "in_use"
    remove(registry, REPO, index.digest, "tester")
    remove(registry, REPO, child.digest, "tester")


def test_yanked_manifest_stays_and_says_why(registry: Registry) -> None:
    push_thing(registry, b"1", tags=["a"])
    yank(registry, REPO, "a", "wrong data", actor="tester")
    assert find_manifest(registry, REPO, "a").yank_reason == "wrong data"
    unyank(registry, REPO, "a", actor="tester")
    assert find_manifest(registry, REPO, "a").yanked_at is None


def test_unknown_tag_names_those_that_look_alike(registry: Registry) -> None:
    push_thing(registry, b"1", tags=["sentiment-v1"])
    with pytest.raises(RegistryError, match="sentiment-v1"):
        find_manifest(registry, REPO, "sentimet-v1")

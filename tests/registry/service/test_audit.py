"""The audit log: what is written, that it cannot be changed, and that a change is seen."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from registry_pushes import BY_TESTER, REPO, push_thing

from obm_format.errors import RegistryError
from obm_registry.service.access import create_token, revoke_token, set_role
from obm_registry.service.audit import check_audit, read_audit
from obm_registry.service.registry import Registry
from obm_registry.service.tags import TagChange, move_tag, remove, unyank, yank


def test_changes_are_written_down(registry: Registry) -> None:
    push_thing(registry, b"data", tags=["a"])
    move_tag(registry, REPO, "a", "b", TagChange(actor="eve"))
    yank(registry, REPO, "a", "wrong data", actor="eve")
    unyank(registry, REPO, "a", actor="eve")
    remove(registry, REPO, "b", "eve")
    _, token = create_token(registry, "ci", actor="eve", scopes=["acme/*:pull"])
    set_role(registry, "ci", "acme", "reader", actor="eve")
    revoke_token(registry, token.public_id, actor="eve")
    assert [(line.actor, line.action) for line in read_audit(registry)] == [
        (BY_TESTER.actor, "manifest.push"),
        (BY_TESTER.actor, "tag.set"),
        ("eve", "tag.set"),
        ("eve", "manifest.yank"),
        ("eve", "manifest.unyank"),
        ("eve", "tag.remove"),
        ("eve", "token.create"),
        ("eve", "member.set"),
        ("eve", "token.revoke"),
    ]
    assert check_audit(registry) == 9


def test_what_fails_is_not_written_down(registry: Registry) -> None:
    push_thing(registry, b"one", tags=["a"])
    lines = len(read_audit(registry))
    with pytest.raises(RegistryError):
        push_thing(registry, b"two", tags=["a"])
    assert len(read_audit(registry)) == lines


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'x'", "DELETE FROM audit"])
def test_lines_cannot_be_changed(registry: Registry, tmp_path: Path, statement: str) -> None:
    push_thing(registry, b"data", tags=["a"])
    with sqlite3.connect(tmp_path / "registry.sqlite3") as raw, pytest.raises(sqlite3.IntegrityError, match="audit"):
        raw.execute(statement)
    raw.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'x' WHERE id = 2",
        "UPDATE audit SET at = at + 1 WHERE id = 3",
        "DELETE FROM audit WHERE id = 2",
        "DELETE FROM audit WHERE id = 1",
        "UPDATE audit SET hash = previous WHERE id = 2",
    ],
)
def test_s33_a_change_behind_our_back_is_seen(registry: Registry, tmp_path: Path, statement: str) -> None:
    push_thing(registry, b"data", tags=["a", "b"])
    with sqlite3.connect(tmp_path / "registry.sqlite3") as raw:
        raw.execute("DROP TRIGGER audit_no_update")
        raw.execute("DROP TRIGGER audit_no_delete")
        raw.execute(statement)
    raw.close()
    with pytest.raises(RegistryError) as caught:
        check_audit(registry)
    assert caught.value.reason == "audit_broken"

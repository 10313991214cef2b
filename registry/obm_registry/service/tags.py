"""Move tags, remove them, tell their history; withdraw manifests and remove them.

A tag moves in one place: `point_tag`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from obm_format.errors import RegistryError
from obm_registry.catalog.rows import Manifest, Repository, TagEvent
from obm_registry.catalog.store import Session
from obm_registry.refs import is_digest, parse_tag
from obm_registry.service.lookup import require_manifest
from obm_registry.service.registry import Registry, require_repository


@dataclass(frozen=True, slots=True, kw_only=True)
class TagChange:
    """How a tag may be set.

    Args:
        move: whether it may leave another manifest.
        expected: the digest that it must name now, so that of two who move it at once one is refused; None
            when that does not matter.
        actor: who does it, for the history.
    """

    move: bool = False
    expected: str | None = None
    actor: str


def check_tag(session: Session, repo: Repository, name: str, digest: str, change: TagChange) -> str | None:
    """Refuse a change of a tag that is not allowed.

    Returns:
        The digest that the tag names now, or None.

    Raises:
        RegistryError: `tag_exists` when it names another manifest and moving was not asked for, or it does
            not name `expected`; `tag_immutable` when the namespace never lets it name another one.
    """
    current = session.tags.digest(repo.id, parse_tag(name))
    where = f"{repo.name}:{name}"
    if change.expected is not None and current != change.expected:
        raise RegistryError(
            "tag_exists",
            "the tag was moved meanwhile",
            where=where,
            expected=change.expected,
            got=current or "no tag",
        )
    if current not in (None, digest) and not (change.move or change.expected):
        hint = "choose another tag, or move this one with --move"
        raise RegistryError("tag_exists", "the tag names another manifest", where=where, got=current, hint=hint)
    if any(fnmatchcase(name, pattern) for pattern in repo.namespace.immutable_tags):
        # a tag that was removed keeps its meaning, or removing it would be a way to move it
        first = session.tags.first_digest(repo.id, name)
        if first not in (None, digest):
            raise RegistryError(
                "tag_immutable",
                "the tag always names the manifest that it named first",
                where=where,
                expected=first,
                got=digest,
                hint=f"choose a new tag; immutable in {repo.namespace.name}: "
                + ", ".join(repo.namespace.immutable_tags),
            )
    return current


def point_tag(session: Session, repo: Repository, name: str, manifest: Manifest, change: TagChange, now: int) -> None:
    """Make a tag name a manifest, and write that into its history; within the caller's transaction.

    Raises:
        RegistryError: as `check_tag`.
    """
    current = check_tag(session, repo, name, manifest.digest, change)
    if current == manifest.digest:
        return
    session.tags.point(repo.id, name, manifest.id, change.actor, now)
    event = TagEvent(name=name, old_digest=current, new_digest=manifest.digest, actor=change.actor, at=now)
    session.tags.record(repo.id, event)
    session.audit.record(change.actor, "tag.set", f"{repo.name}:{name}", now, manifest.digest)


def move_tag(registry: Registry, repository: str, target: str, name: str, change: TagChange) -> Manifest:
    """Make a tag name the manifest that `target` names.

    Args:
        registry: where.
        repository: the repository of both.
        target: a tag or a digest.
        name: the tag to set.
        change: how it may be set.

    Raises:
        RegistryError: `not_found`, and as `check_tag`.
        UsageError: `bad_ref`.
    """
    with registry.catalog.write() as session:
        repo = require_repository(session, repository)
        manifest = require_manifest(session, repo, target)
        point_tag(session, repo, name, manifest, change, registry.clock())
    return manifest


def remove(registry: Registry, repository: str, target: str, actor: str) -> None:
    """Remove a tag, or with a digest a manifest and all its tags.

    Raises:
        RegistryError: `not_found`; `in_use` when experts or an index need the manifest.
    """
    with registry.catalog.write() as session:
        repo = require_repository(session, repository)
        manifest = require_manifest(session, repo, target)
        if not is_digest(target):
            _drop_tag(session, repo, target, manifest.digest, actor, registry.clock())
            return
        needed_by = session.manifests.dependents(manifest.id)
        if needed_by:
            raise RegistryError(
                "in_use",
                f"{needed_by} others need this manifest",
                where=f"{repository}@{target}",
                hint="remove them first; `obm ls` lists the experts of a backbone",
            )
        for name in session.tags.names_of(manifest.id):
            _drop_tag(session, repo, name, manifest.digest, actor, registry.clock())
        session.manifests.delete(manifest.id)
        session.audit.record(actor, "manifest.remove", f"{repository}@{target}", registry.clock())


def _drop_tag(session: Session, repo: Repository, name: str, digest: str, actor: str, now: int) -> None:
    session.tags.delete(repo.id, name)
    session.tags.record(repo.id, TagEvent(name=name, old_digest=digest, new_digest=None, actor=actor, at=now))
    session.audit.record(actor, "tag.remove", f"{repo.name}:{name}", now, digest)


def tag_history(registry: Registry, repository: str, name: str | None = None) -> list[TagEvent]:
    """The moves of a tag, or of all tags of a repository, the latest first.

    Raises:
        RegistryError: `not_found` when the tag never was.
    """
    with registry.catalog.read() as session:
        repo = require_repository(session, repository)
        events = session.tags.history(repo.id, name)
    if name is not None and not events:
        raise RegistryError("not_found", "there never was such a tag", where=f"{repository}:{name}")
    return events


def yank(registry: Registry, repository: str, target: str, reason: str, *, actor: str) -> Manifest:
    """Withdraw a manifest: it stays where it is, and whoever fetches it is told.

    Raises:
        RegistryError: `not_found`.
    """
    with registry.catalog.write() as session:
        manifest = require_manifest(session, require_repository(session, repository), target)
        session.manifests.set_yanked(manifest.id, registry.clock(), reason)
        session.audit.record(actor, "manifest.yank", f"{repository}@{manifest.digest}", registry.clock(), reason)
    return manifest


def unyank(registry: Registry, repository: str, target: str, *, actor: str) -> Manifest:
    """Take back that a manifest was withdrawn.

    Raises:
        RegistryError: `not_found`.
    """
    with registry.catalog.write() as session:
        manifest = require_manifest(session, require_repository(session, repository), target)
        session.manifests.set_yanked(manifest.id, None, None)
        session.audit.record(actor, "manifest.unyank", f"{repository}@{manifest.digest}", registry.clock())
    return manifest

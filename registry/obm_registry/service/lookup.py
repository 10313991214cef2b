"""Find manifests and list what there is: tags, repositories, referrers, backbones, experts."""

from __future__ import annotations

import difflib

from obm_format.errors import RegistryError
from obm_registry.catalog.rows import BackboneRow, ExpertRow, Manifest, Repository
from obm_registry.catalog.store import Session
from obm_registry.manifest.oci import Descriptor, parse_manifest
from obm_registry.refs import is_digest, parse_digest, printable
from obm_registry.service.registry import Registry, require_repository

MAX_PAGE = 1000
_MAX_ANNOTATIONS = 1 << 20  # characters in one page of referrers


def require_manifest(session: Session, repo: Repository, target: str) -> Manifest:
    """The manifest that a tag or a digest names, within the caller's transaction.

    Raises:
        RegistryError: `not_found`, with the tags that look alike.
    """
    look_up = session.manifests.get if is_digest(target) else session.manifests.tagged
    found = look_up(repo.id, target)
    if found is not None:
        return found
    mark = "@" if is_digest(target) else ":"
    near = difflib.get_close_matches(target, session.tags.names(repo.id), n=3)
    raise RegistryError(
        "not_found",
        "there is no such manifest",
        where=f"{repo.name}{mark}{printable(target)}",
        hint=f"there is {', '.join(near)}" if near else f"`obm ls {repo.name}` lists what there is",
    )


def find_manifest(registry: Registry, repository: str, target: str) -> Manifest:
    """The manifest that a tag or a digest names.

    Raises:
        RegistryError: `not_found`.
        UsageError: `bad_ref`.
    """
    with registry.catalog.read() as session:
        return require_manifest(session, require_repository(session, repository), target)


def list_repositories(registry: Registry, *, after: str = "", limit: int = MAX_PAGE) -> list[str]:
    """Names of repositories in order, behind `after`."""
    with registry.catalog.read() as session:
        return session.names.repositories(after=after, limit=min(limit, MAX_PAGE))


def list_tags(registry: Registry, repository: str, *, after: str = "", limit: int = MAX_PAGE) -> list[str]:
    """Tags of a repository in order, behind `after`, at most `limit`.

    Raises:
        RegistryError: `not_found`.
    """
    with registry.catalog.read() as session:
        repo = require_repository(session, repository)
        return session.tags.names(repo.id, after=after, limit=limit)


def list_referrers(
    registry: Registry,
    repository: str,
    subject: str,
    *,
    artifact_type: str | None = None,
    after: int = 0,
    limit: int = MAX_PAGE,
) -> tuple[list[Descriptor], int | None]:
    """Manifests of a repository that refer to `subject`; whether that, or the repository, is there or not.

    Args:
        registry: where.
        repository: the repository.
        subject: digest of the manifest that is referred to.
        artifact_type: only manifests of this type.
        after: the key that the page before gave.
        limit: most manifests, capped at `MAX_PAGE`; fewer where their annotations are large.

    Returns:
        Descriptors with the annotations of the manifests, and the key for the next page, None where there is none.

    Raises:
        RegistryError: `bad_digest`.
    """
    with registry.catalog.read() as session:
        repo = session.names.repository(repository)
        if repo is None:
            return [], None
        keys = session.manifests.referrers(
            repo.id, parse_digest(subject), artifact_type=artifact_type, after=after, limit=min(limit, MAX_PAGE) + 1
        )
        page: list[Descriptor] = []
        room = _MAX_ANNOTATIONS
        for i, key in enumerate(keys):
            if len(page) == limit or room <= 0:
                return page, keys[i - 1]
            found = _describe(session.manifests.by_key(key))
            room -= sum(len(k) + len(v) for k, v in found.annotations.items())
            page.append(found)
        return page, None


def _describe(row: Manifest) -> Descriptor:
    return Descriptor(
        media_type=row.media_type,
        digest=row.digest,
        size=len(row.body),
        artifact_type=row.artifact_type,
        annotations=parse_manifest(row.body, media_type=row.media_type).annotations,
    )


def list_backbones(registry: Registry, repository: str | None = None) -> list[BackboneRow]:
    """Backbones of one repository or of all.

    Raises:
        RegistryError: `not_found`.
    """
    with registry.catalog.read() as session:
        repo_id = require_repository(session, repository).id if repository else None
        return session.lineage.backbones(repo_id=repo_id)


def list_experts(
    registry: Registry, repository: str | None = None, *, fingerprint: str | None = None
) -> list[ExpertRow]:
    """Experts of one repository or of all, of one backbone or of all.

    Raises:
        RegistryError: `not_found`.
    """
    with registry.catalog.read() as session:
        repo_id = require_repository(session, repository).id if repository else None
        return session.lineage.experts(repo_id=repo_id, fingerprint=fingerprint)

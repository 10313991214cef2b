"""Publish a manifest: everything it needs is checked, then it appears with its tags in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from obm_format.errors import RegistryError
from obm_registry.catalog.rows import Manifest, NewManifest, Repository
from obm_registry.catalog.store import Session
from obm_registry.manifest.oci import OciManifest, digest_of, parse_manifest
from obm_registry.refs import namespace_of, parse_digest, parse_repository, parse_tag
from obm_registry.service.admission import Admission, admit, require_blobs
from obm_registry.service.registry import Registry, require_quota
from obm_registry.service.tags import TagChange, point_tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A manifest that is there now.

    Args:
        digest: its digest.
        created: False when it was there already.
        subject: digest of the manifest that it refers to, or None.
        warnings: what the namespace's policy let pass.
    """

    digest: str
    created: bool
    subject: str | None
    warnings: tuple[str, ...]


def put_manifest(
    registry: Registry,
    repository: str,
    body: bytes,
    *,
    change: TagChange,
    tags: Sequence[str] = (),
    media_type: str | None = None,
    digest: str | None = None,
) -> Published:
    """Publish a manifest whose blobs are stored already.

    Args:
        registry: where.
        repository: made when it is not there yet.
        body: the manifest, kept as these bytes.
        change: how tags may be set, and who does it.
        tags: names that shall stand for it.
        media_type: the type it was sent under, or None.
        digest: what `body` must hash to, or None.

    Raises:
        RegistryError: `blob_digest` when `digest` is another; what `parse_manifest`, `admit` and `check_tag`
            refuse; `quota_exceeded`. Nothing is published then.
        UsageError: `bad_ref`.
    """
    name = parse_repository(repository)
    for tag in tags:
        parse_tag(tag)
    own = _check_digest(body, digest)
    manifest = parse_manifest(body, media_type=media_type)
    admission = admit(registry, name, manifest)
    with registry.catalog.write() as session:
        now = registry.clock()
        repo = session.names.ensure_repository(name, namespace_of(name), now)
        stored = session.manifests.get(repo.id, own)
        created = stored is None
        if stored is None:
            stored = _insert(session, repo, manifest, body, own, admission, change.actor, now)
            session.audit.record(change.actor, "manifest.push", f"{name}@{own}", now, manifest.artifact_type)
        for tag in tags:
            point_tag(session, repo, tag, stored, change, now)
        require_quota(session, repo.namespace)
    return Published(
        digest=own,
        created=created,
        subject=manifest.subject.digest if manifest.subject else None,
        warnings=admission.warnings,
    )


def _check_digest(body: bytes, digest: str | None) -> str:
    if digest is None:
        return digest_of(body)
    own = digest_of(body, parse_digest(digest).partition(":")[0])
    if own != digest:
        raise RegistryError("blob_digest", "the manifest has another digest", expected=digest, got=own)
    return own


def _insert(
    session: Session,
    repo: Repository,
    manifest: OciManifest,
    body: bytes,
    digest: str,
    admission: Admission,
    actor: str,
    now: int,
) -> Manifest:
    # a collection or a removal may have come between the admission and this transaction
    blobs = require_blobs(session, repo, manifest)
    children = ((i, session.manifests.get(repo.id, child.digest)) for i, child in enumerate(manifest.children))
    new = NewManifest(
        digest=digest,
        media_type=manifest.media_type,
        artifact_type=manifest.artifact_type,
        body=body,
        subject_digest=manifest.subject.digest if manifest.subject else None,
        config=blobs[manifest.config.digest].id if manifest.config else None,
        layers=tuple(blobs[layer.digest].id for layer in manifest.layers if layer.digest in blobs),
        children=tuple((i, child.id) for i, child in children if child is not None),
    )
    key = session.manifests.insert(repo.id, new, actor, now)
    if admission.backbone is not None:
        session.manifests.insert_backbone(key, admission.backbone)
    if admission.expert is not None:
        backbone_id = _backbone_id(session, repo, manifest, admission)
        session.manifests.insert_expert(key, backbone_id, admission.expert)
    stored = session.manifests.get(repo.id, digest)
    if stored is None:
        raise RegistryError("internal", "a manifest vanished within its own transaction", where=digest)
    return stored


def _backbone_id(session: Session, repo: Repository, manifest: OciManifest, admission: Admission) -> int | None:
    if not admission.has_backbone or manifest.subject is None:
        return None
    found = session.manifests.get(repo.id, manifest.subject.digest)
    if found is None or not session.manifests.is_backbone(found.id):
        raise RegistryError(
            "backbone_unknown",
            "the backbone was removed meanwhile",
            where=f"{repo.name}@{manifest.subject.digest}",
        )
    return found.id

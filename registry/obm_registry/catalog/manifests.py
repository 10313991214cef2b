"""Queries about manifests, their edges and their referrers."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from obm_registry.catalog import tables as t
from obm_registry.catalog.rows import Manifest, NewManifest
from obm_registry.manifest.backbone import BackboneFacts
from obm_registry.manifest.expert import ExpertFacts
from obm_registry.manifest.weights import WEIGHTS_TYPE

_COLUMNS = (
    t.manifest.c.id,
    t.manifest.c.repo_id,
    t.manifest.c.digest,
    t.manifest.c.media_type,
    t.manifest.c.artifact_type,
    t.manifest.c.body,
    t.manifest.c.subject_digest,
    t.manifest.c.pushed_by,
    t.manifest.c.pushed_at,
    t.manifest.c.yanked_at,
    t.manifest.c.yank_reason,
)


@dataclass(frozen=True, slots=True)
class Manifests:
    """Manifests, within one transaction."""

    connection: Connection

    def get(self, repo_id: int, digest: str) -> Manifest | None:
        """The manifest with this digest in this repository."""
        query = select(*_COLUMNS).where(t.manifest.c.repo_id == repo_id, t.manifest.c.digest == digest)
        return _manifest(self.connection.execute(query).mappings().first())

    def tagged(self, repo_id: int, tag: str) -> Manifest | None:
        """The manifest that a tag names."""
        query = (
            select(*_COLUMNS)
            .join(t.tag, t.tag.c.manifest_id == t.manifest.c.id)
            .where(t.tag.c.repo_id == repo_id, t.tag.c.name == tag)
        )
        return _manifest(self.connection.execute(query).mappings().first())

    def insert(self, repo_id: int, new: NewManifest, actor: str, now: int) -> int:
        """Record a manifest and its edges; its key."""
        values = {
            "repo_id": repo_id,
            "digest": new.digest,
            "media_type": new.media_type,
            "artifact_type": new.artifact_type,
            "body": new.body,
            "subject_digest": new.subject_digest,
            "pushed_by": actor,
            "pushed_at": now,
        }
        key: int = self.connection.execute(insert(t.manifest).values(values).returning(t.manifest.c.id)).scalar_one()
        blobs = [("layer", i, blob_id) for i, blob_id in enumerate(new.layers)]
        if new.config is not None:
            blobs.append(("config", 0, new.config))
        if blobs:
            rows = [{"manifest_id": key, "role": r, "ord": i, "blob_id": b} for r, i, b in blobs]
            self.connection.execute(insert(t.manifest_blob), rows)
        if new.children:
            edges = [{"parent_id": key, "ord": i, "child_id": child} for i, child in new.children]
            self.connection.execute(insert(t.manifest_child), edges)
        return key

    def insert_backbone(self, manifest_id: int, facts: BackboneFacts) -> None:
        """Record that a manifest is a backbone."""
        values = {
            "manifest_id": manifest_id,
            "fingerprint": facts.fingerprint,
            "architecture": facts.architecture,
            "n_tensors": facts.n_tensors,
            "n_params": facts.n_params,
        }
        self.connection.execute(insert(t.backbone).values(values))

    def insert_expert(self, manifest_id: int, backbone_id: int | None, facts: ExpertFacts) -> None:
        """Record that a manifest is an expert of a backbone."""
        values = {
            "manifest_id": manifest_id,
            "backbone_id": backbone_id,
            "artifact_id": facts.artifact_id,
            "fingerprint": facts.fingerprint,
            "kind": facts.kind,
            "task": facts.task,
            "position": facts.position,
            "encodings": json.dumps(dict(facts.encodings), sort_keys=True),
            "nbytes": facts.nbytes,
            "n_tensors": facts.n_tensors,
            "alpha_min": facts.alpha_min,
            "alpha_mean": facts.alpha_mean,
            "alpha_max": facts.alpha_max,
        }
        self.connection.execute(insert(t.expert).values(values))

    def is_backbone(self, manifest_id: int) -> bool:
        """Whether the manifest is recorded as a backbone."""
        query = select(t.backbone.c.manifest_id).where(t.backbone.c.manifest_id == manifest_id)
        return self.connection.execute(query).first() is not None

    def delete(self, manifest_id: int) -> None:
        """Remove a manifest that no tag names; its edges go with it.

        Raises:
            RegistryError: `in_use` from the enclosing transaction when an index or an expert still needs it.
        """
        self.connection.execute(delete(t.manifest).where(t.manifest.c.id == manifest_id))

    def dependents(self, manifest_id: int) -> int:
        """How many experts, indexes and manifests of weights need a manifest."""
        experts = select(func.count()).select_from(t.expert).where(t.expert.c.backbone_id == manifest_id)
        parents = select(func.count()).select_from(t.manifest_child).where(t.manifest_child.c.child_id == manifest_id)
        own, weights = t.manifest.alias(), t.manifest.alias()
        stored = (
            select(func.count())
            .select_from(weights)
            .join(own, (own.c.repo_id == weights.c.repo_id) & (own.c.digest == weights.c.subject_digest))
            .where(own.c.id == manifest_id, weights.c.artifact_type == WEIGHTS_TYPE)
        )
        return sum(int(self.connection.scalar(count) or 0) for count in (experts, parents, stored))

    def set_yanked(self, manifest_id: int, at: int | None, reason: str | None) -> None:
        """Mark a manifest as withdrawn since `at`, or as good again with None."""
        self.connection.execute(
            update(t.manifest).where(t.manifest.c.id == manifest_id).values(yanked_at=at, yank_reason=reason)
        )

    def referrers(
        self,
        repo_id: int,
        subject: str,
        *,
        artifact_type: str | None = None,
        after: int = 0,
        limit: int = 1000,
    ) -> list[int]:
        """Keys of the manifests of the repository whose subject is `subject`, in order, behind `after`."""
        query = select(t.manifest.c.id).where(
            t.manifest.c.repo_id == repo_id, t.manifest.c.subject_digest == subject, t.manifest.c.id > after
        )
        if artifact_type is not None:
            query = query.where(t.manifest.c.artifact_type == artifact_type)
        return list(self.connection.scalars(query.order_by(t.manifest.c.id).limit(limit)))

    def by_key(self, key: int) -> Manifest:
        """The manifest with this key, which is there."""
        row = self.connection.execute(select(*_COLUMNS).where(t.manifest.c.id == key)).mappings().one()
        return Manifest(**row)

    def page(self, *, after: int = 0, limit: int = 500) -> list[Manifest]:
        """Manifests of all repositories with keys above `after`, in key order."""
        query = select(*_COLUMNS).where(t.manifest.c.id > after).order_by(t.manifest.c.id).limit(limit)
        return [Manifest(**row._mapping) for row in self.connection.execute(query)]

    def blob_count(self, manifest_id: int) -> int:
        """How many blobs are recorded for a manifest."""
        query = select(t.manifest_blob.c.ord).where(t.manifest_blob.c.manifest_id == manifest_id)
        return len(self.connection.execute(query).all())


def _manifest(row: RowMapping | None) -> Manifest | None:
    return Manifest(**row) if row else None

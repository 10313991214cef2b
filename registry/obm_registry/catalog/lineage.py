"""Queries about backbones and their experts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, ScalarSelect, and_, exists, func, or_, select
from sqlalchemy.sql.elements import ColumnElement

from obm_registry.catalog import tables as t
from obm_registry.catalog.rows import BackboneRow, ExpertFilter, ExpertRow, FoundExpert
from obm_registry.manifest.backbone import BackboneFacts
from obm_registry.manifest.expert import ExpertFacts
from obm_registry.manifest.weights import WEIGHTS_TAG, WEIGHTS_TYPE

_EXPERT_FACTS = (
    "artifact_id",
    "fingerprint",
    "kind",
    "task",
    "position",
    "nbytes",
    "n_tensors",
    "alpha_min",
    "alpha_mean",
    "alpha_max",
)


@dataclass(frozen=True, slots=True)
class Lineage:
    """Backbones and experts, within one transaction."""

    connection: Connection

    def backbones(
        self,
        *,
        repo_id: int | None = None,
        fingerprint: str | None = None,
        text: str = "",
        before: int | None = None,
        limit: int | None = None,
    ) -> list[BackboneRow]:
        """Backbones of one repository or of all, by repository name, then in the order they came.

        With `limit` the latest first, those older than `before`.
        """
        count = (
            select(func.count())
            .select_from(t.expert)
            .where(t.expert.c.backbone_id == t.backbone.c.manifest_id)
            .scalar_subquery()
        )
        query = (
            select(
                t.repository.c.name.label("repository"),
                t.backbone,
                t.manifest.c.digest,
                func.length(t.manifest.c.body).label("body_nbytes"),
                count.label("n_experts"),
                _weights_of_backbone().label("weights_digest"),
            )
            .join(t.manifest, t.manifest.c.id == t.backbone.c.manifest_id)
            .join(t.repository, t.repository.c.id == t.manifest.c.repo_id)
        )
        if limit is None:
            query = query.order_by(t.repository.c.name, t.manifest.c.id)
        else:
            query = query.order_by(t.manifest.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(t.manifest.c.id < before)
        if text:
            query = query.where(or_(_has(t.repository.c.name, text), _has(t.backbone.c.architecture, text)))
        if repo_id is not None:
            query = query.where(t.manifest.c.repo_id == repo_id)
        if fingerprint is not None:
            query = query.where(t.backbone.c.fingerprint == fingerprint)
        return [_backbone(row._mapping) for row in self.connection.execute(query)]

    def experts(self, *, repo_id: int | None = None, fingerprint: str | None = None) -> list[ExpertRow]:
        """Experts of one repository or of all, of one backbone or of all: one row per tag, or one without."""
        backbone_manifest = t.manifest.alias("backbone_manifest")
        query = (
            select(
                t.repository.c.name.label("repository"),
                t.tag.c.name.label("tag"),
                t.manifest.c.digest,
                t.manifest.c.pushed_by,
                t.manifest.c.pushed_at,
                t.manifest.c.yanked_at,
                t.manifest.c.yank_reason,
                backbone_manifest.c.digest.label("backbone_digest"),
                t.expert,
            )
            .join(t.manifest, t.manifest.c.id == t.expert.c.manifest_id)
            .join(t.repository, t.repository.c.id == t.manifest.c.repo_id)
            .outerjoin(t.tag, _tag_of_manifest())
            .outerjoin(backbone_manifest, backbone_manifest.c.id == t.expert.c.backbone_id)
            .order_by(t.repository.c.name, t.tag.c.name.is_(None), t.tag.c.name, t.manifest.c.id)
        )
        if repo_id is not None:
            query = query.where(t.manifest.c.repo_id == repo_id)
        if fingerprint is not None:
            query = query.where(t.expert.c.fingerprint == fingerprint)
        return [_expert(row._mapping) for row in self.connection.execute(query)]

    def search(self, wanted: ExpertFilter, *, before: int | None = None, limit: int = 50) -> list[FoundExpert]:
        """Experts, the latest first, those older than `before`."""
        query = (
            select(
                t.repository.c.name.label("repository"),
                t.manifest.c.digest,
                t.manifest.c.pushed_by,
                t.manifest.c.pushed_at,
                t.manifest.c.yanked_at,
                t.manifest.c.yank_reason,
                _OWN_BACKBONE.c.digest.label("backbone_digest"),
                t.backbone.c.n_params,
                t.expert,
            )
            .join(t.manifest, t.manifest.c.id == t.expert.c.manifest_id)
            .join(t.repository, t.repository.c.id == t.manifest.c.repo_id)
            .outerjoin(t.backbone, t.backbone.c.manifest_id == t.expert.c.backbone_id)
            .outerjoin(_OWN_BACKBONE, _OWN_BACKBONE.c.id == t.expert.c.backbone_id)
            .where(*_conditions(wanted))
            .order_by(t.expert.c.manifest_id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(t.expert.c.manifest_id < before)
        return [self._found(row._mapping) for row in self.connection.execute(query)]

    def _found(self, row: Mapping[Any, Any]) -> FoundExpert:
        tags = select(t.tag.c.name).where(t.tag.c.manifest_id == row["manifest_id"]).order_by(t.tag.c.name)
        facts = {key: row[key] for key in _EXPERT_FACTS}
        return FoundExpert(
            manifest_id=row["manifest_id"],
            repository=row["repository"],
            tags=tuple(self.connection.scalars(tags)),
            manifest_digest=row["digest"],
            backbone_digest=row["backbone_digest"],
            backbone_params=row["n_params"],
            facts=ExpertFacts(encodings=json.loads(row["encodings"]), **facts),
            pushed_by=row["pushed_by"],
            pushed_at=row["pushed_at"],
            yanked_at=row["yanked_at"],
            yank_reason=row["yank_reason"],
        )


_OWN_BACKBONE = t.manifest.alias("own_backbone")


def _conditions(wanted: ExpertFilter) -> list[ColumnElement[bool]]:
    exact = {
        t.expert.c.fingerprint: wanted.fingerprint,
        t.repository.c.name: wanted.repository,
        t.manifest.c.digest: wanted.manifest_digest,
        t.expert.c.task: wanted.task,
        t.expert.c.position: wanted.position,
    }
    found: list[ColumnElement[bool]] = [column == value for column, value in exact.items() if value]
    if wanted.encoding:
        found.append(_has(t.expert.c.encodings, json.dumps(wanted.encoding)))
    if wanted.text:
        tagged = exists().where(t.tag.c.manifest_id == t.manifest.c.id, _has(t.tag.c.name, wanted.text))
        columns = (t.repository.c.name, t.expert.c.task, t.expert.c.position)
        found.append(or_(tagged, *(_has(column, wanted.text) for column in columns)))
    if wanted.yanked is not None:
        empty = t.manifest.c.yanked_at.is_(None)
        found.append(~empty if wanted.yanked else empty)
    return found


def _has(column: ColumnElement[str], text: str) -> ColumnElement[bool]:
    """Whether `text` stands anywhere in a column; nothing in it is a pattern."""
    return column.icontains(text, autoescape=True)


def _tag_of_manifest() -> ColumnElement[bool]:
    return and_(t.tag.c.manifest_id == t.manifest.c.id, t.tag.c.repo_id == t.manifest.c.repo_id)


def _weights_of_backbone() -> ScalarSelect[str]:
    """Digest of the manifest that the tag of weights names, where it is about the backbone's manifest."""
    weights = t.manifest.alias("weights")
    return (
        select(weights.c.digest)
        .join(t.tag, and_(t.tag.c.repo_id == weights.c.repo_id, t.tag.c.manifest_id == weights.c.id))
        .where(
            weights.c.repo_id == t.manifest.c.repo_id,
            weights.c.subject_digest == t.manifest.c.digest,
            weights.c.artifact_type == WEIGHTS_TYPE,
            t.tag.c.name == WEIGHTS_TAG,
        )
        .correlate(t.manifest)
        .scalar_subquery()
    )


def _backbone(row: Mapping[Any, Any]) -> BackboneRow:
    facts = {key: row[key] for key in ("fingerprint", "architecture", "n_tensors", "n_params")}
    return BackboneRow(
        repository=row["repository"],
        manifest_id=row["manifest_id"],
        manifest_digest=row["digest"],
        manifest_nbytes=row["body_nbytes"],
        facts=BackboneFacts(**facts),
        n_experts=row["n_experts"],
        weights_digest=row["weights_digest"],
    )


def _expert(row: Mapping[Any, Any]) -> ExpertRow:
    facts = {key: row[key] for key in _EXPERT_FACTS}
    return ExpertRow(
        repository=row["repository"],
        tag=row["tag"],
        manifest_digest=row["digest"],
        backbone_digest=row["backbone_digest"],
        facts=ExpertFacts(encodings=json.loads(row["encodings"]), **facts),
        pushed_by=row["pushed_by"],
        pushed_at=row["pushed_at"],
        yanked_at=row["yanked_at"],
        yank_reason=row["yank_reason"],
    )

"""Queries about namespaces and repositories."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, func, insert, select, update

from obm_registry.catalog import tables as t
from obm_registry.catalog.rows import Namespace, Repository

DEFAULT_IMMUTABLE_TAGS = "*-v[0-9]*"  # a version is a version; `task` alone is the alias that moves
DEFAULT_SUBJECT_POLICY = "require"

_NAMESPACE = (
    t.namespace.c.id,
    t.namespace.c.name,
    t.namespace.c.quota_bytes,
    t.namespace.c.subject_policy,
    t.namespace.c.immutable_tags,
    t.namespace.c.visibility,
)


@dataclass(frozen=True, slots=True)
class Names:
    """Namespaces and repositories, within one transaction."""

    connection: Connection

    def repository(self, name: str) -> Repository | None:
        """The repository called `name`, with its namespace."""
        query = (
            select(t.repository.c.id.label("repo_id"), t.repository.c.name.label("repo_name"), *_NAMESPACE)
            .join(t.namespace, t.namespace.c.id == t.repository.c.namespace_id)
            .where(t.repository.c.name == name)
        )
        row = self.connection.execute(query).mappings().first()
        return Repository(id=row["repo_id"], name=row["repo_name"], namespace=_namespace(row)) if row else None

    def ensure_repository(self, name: str, namespace: str, now: int) -> Repository:
        """The repository called `name`, made when it is not there yet."""
        found = self.repository(name)
        if found is not None:
            return found
        owner = self.ensure_namespace(namespace, now)
        values = {"namespace_id": owner.id, "name": name, "created_at": now}
        made = insert(t.repository).values(values).returning(t.repository.c.id)
        return Repository(id=self.connection.execute(made).scalar_one(), name=name, namespace=owner)

    def namespace(self, name: str) -> Namespace | None:
        """The namespace called `name`."""
        query = select(*_NAMESPACE).where(t.namespace.c.name == name)
        row = self.connection.execute(query).mappings().first()
        return _namespace(row) if row else None

    def ensure_namespace(self, name: str, now: int) -> Namespace:
        """The namespace called `name`, made with default rules when it is not there yet."""
        found = self.namespace(name)
        if found is not None:
            return found
        values = {
            "name": name,
            "subject_policy": DEFAULT_SUBJECT_POLICY,
            "immutable_tags": DEFAULT_IMMUTABLE_TAGS,
            "created_at": now,
        }
        made = insert(t.namespace).values(values).returning(*_NAMESPACE)
        return _namespace(self.connection.execute(made).mappings().one())

    def set_rules(self, namespace: Namespace) -> None:
        """Record the rules of a namespace that is there."""
        values = {
            "quota_bytes": namespace.quota_nbytes,
            "subject_policy": namespace.subject_policy,
            "immutable_tags": " ".join(namespace.immutable_tags),
            "visibility": namespace.visibility,
        }
        self.connection.execute(update(t.namespace).where(t.namespace.c.id == namespace.id).values(values))

    def repositories(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names of repositories in order, those behind `after`, at most `limit`."""
        query = (
            select(t.repository.c.name).where(t.repository.c.name > after).order_by(t.repository.c.name).limit(limit)
        )
        return list(self.connection.scalars(query))

    def used_nbytes(self, namespace: Namespace) -> int:
        """Bytes of the distinct blobs and of the manifests in the repositories of a namespace."""
        own = select(t.repository.c.id).where(t.repository.c.namespace_id == namespace.id)
        linked = select(t.repo_blob.c.blob_id).where(t.repo_blob.c.repo_id.in_(own))
        blobs = select(func.coalesce(func.sum(t.blob.c.size), 0)).where(t.blob.c.id.in_(linked))
        bodies = select(func.coalesce(func.sum(func.length(t.manifest.c.body)), 0)).where(t.manifest.c.repo_id.in_(own))
        return int(self.connection.scalar(blobs) or 0) + int(self.connection.scalar(bodies) or 0)


def _namespace(row: RowMapping) -> Namespace:
    return Namespace(
        id=row["id"],
        name=row["name"],
        quota_nbytes=row["quota_bytes"],
        subject_policy=row["subject_policy"],
        immutable_tags=tuple(row["immutable_tags"].split()),
        visibility=row["visibility"],
    )

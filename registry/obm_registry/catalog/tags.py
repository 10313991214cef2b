"""Queries about tags and their history."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from obm_registry.catalog import tables as t
from obm_registry.catalog.rows import TagEvent


@dataclass(frozen=True, slots=True)
class Tags:
    """Tags of repositories, within one transaction."""

    connection: Connection

    def digest(self, repo_id: int, name: str) -> str | None:
        """Digest of the manifest that the tag names, or None without such a tag."""
        query = (
            select(t.manifest.c.digest)
            .join(t.tag, t.tag.c.manifest_id == t.manifest.c.id)
            .where(t.tag.c.repo_id == repo_id, t.tag.c.name == name)
        )
        return self.connection.scalar(query)

    def names(self, repo_id: int, *, after: str = "", limit: int = 1000) -> list[str]:
        """Tag names in order, those behind `after`, at most `limit`."""
        query = (
            select(t.tag.c.name)
            .where(t.tag.c.repo_id == repo_id, t.tag.c.name > after)
            .order_by(t.tag.c.name)
            .limit(limit)
        )
        return list(self.connection.scalars(query))

    def names_of(self, manifest_id: int) -> list[str]:
        """The tags that name a manifest, in order."""
        query = select(t.tag.c.name).where(t.tag.c.manifest_id == manifest_id).order_by(t.tag.c.name)
        return list(self.connection.scalars(query))

    def point(self, repo_id: int, name: str, manifest_id: int, actor: str, now: int) -> None:
        """Make the tag name the manifest, whatever it named before."""
        where = (t.tag.c.repo_id == repo_id, t.tag.c.name == name)
        values = {"manifest_id": manifest_id, "updated_at": now, "updated_by": actor}
        moved = self.connection.execute(update(t.tag).where(*where).values(rev=t.tag.c.rev + 1, **values))
        if moved.rowcount == 0:
            new = {"repo_id": repo_id, "name": name, "rev": 1, **values}
            self.connection.execute(insert(t.tag).values(new))

    def delete(self, repo_id: int, name: str) -> None:
        """Remove a tag."""
        self.connection.execute(delete(t.tag).where(t.tag.c.repo_id == repo_id, t.tag.c.name == name))

    def record(self, repo_id: int, event: TagEvent) -> None:
        """Write one move into the history."""
        values = {
            "repo_id": repo_id,
            "name": event.name,
            "old_digest": event.old_digest,
            "new_digest": event.new_digest,
            "actor": event.actor,
            "at": event.at,
        }
        self.connection.execute(insert(t.tag_event).values(values))

    def history(self, repo_id: int, name: str | None = None) -> list[TagEvent]:
        """The moves of one tag, or of all tags of the repository, the latest first."""
        columns = (c for c in t.tag_event.c if c.name not in ("id", "repo_id"))
        query = select(*columns).where(t.tag_event.c.repo_id == repo_id)
        if name is not None:
            query = query.where(t.tag_event.c.name == name)
        rows = self.connection.execute(query.order_by(t.tag_event.c.id.desc()))
        return [TagEvent(**row._mapping) for row in rows]

    def first_digest(self, repo_id: int, name: str) -> str | None:
        """The digest that the tag named first, ever."""
        first = select(func.min(t.tag_event.c.id)).where(
            t.tag_event.c.repo_id == repo_id,
            t.tag_event.c.name == name,
            t.tag_event.c.new_digest.is_not(None),
        )
        return self.connection.scalar(
            select(t.tag_event.c.new_digest).where(t.tag_event.c.id == first.scalar_subquery())
        )

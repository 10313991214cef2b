"""Queries about blobs, the links that let a repository read them, and uploads under way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, exists, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from obm_registry.catalog import tables as t
from obm_registry.catalog.rows import Blob, Upload

LIVE = "live"
DELETING = "deleting"

_BLOB = (t.blob.c.id, t.blob.c.digest, t.blob.c.size, t.blob.c.storage_key, t.blob.c.touched_at)


@dataclass(frozen=True, slots=True)
class Blobs:
    """Blobs, links and uploads, within one transaction."""

    connection: Connection

    def live(self, digest: str) -> Blob | None:
        """The live blob with this digest, in whatever repository."""
        return self._one(t.blob.c.digest == digest)

    def linked(self, repo_id: int, digest: str) -> Blob | None:
        """The live blob with this digest that the repository may read."""
        return self._one(t.blob.c.digest == digest, _linked_to(repo_id))

    def linked_many(self, repo_id: int, digests: Iterable[str]) -> dict[str, Blob]:
        """Those of `digests` that are live and that the repository may read."""
        found = (self.linked(repo_id, digest) for digest in set(digests))
        return {blob.digest: blob for blob in found if blob is not None}

    def _one(self, *conditions: ColumnElement[bool]) -> Blob | None:
        query = select(*_BLOB).where(t.blob.c.state == LIVE, *conditions)
        row = self.connection.execute(query).first()
        return Blob(**row._mapping) if row else None

    def insert(self, digest: str, size: int, storage_key: str, now: int) -> int:
        """Record a stored object as live; its key."""
        values = {
            "digest": digest,
            "size": size,
            "state": LIVE,
            "storage_key": storage_key,
            "created_at": now,
            "touched_at": now,
        }
        key: int = self.connection.execute(insert(t.blob).values(values).returning(t.blob.c.id)).scalar_one()
        return key

    def store_anew(self, blob_id: int, storage_key: str) -> None:
        """Record that the bytes of a live blob are another object from now on."""
        self.connection.execute(update(t.blob).where(t.blob.c.id == blob_id).values(storage_key=storage_key))

    def link(self, repo_id: int, blob_id: int, origin: str, now: int) -> None:
        """Let the repository read the blob; nothing happens when it may already."""
        there = select(t.repo_blob.c.blob_id).where(t.repo_blob.c.repo_id == repo_id, t.repo_blob.c.blob_id == blob_id)
        if self.connection.execute(there).first() is None:
            values = {"repo_id": repo_id, "blob_id": blob_id, "origin": origin, "linked_at": now}
            self.connection.execute(insert(t.repo_blob).values(values))

    def unlink(self, repo_id: int, blob_id: int) -> None:
        """Take the repository's right to read the blob away."""
        self.connection.execute(
            delete(t.repo_blob).where(t.repo_blob.c.repo_id == repo_id, t.repo_blob.c.blob_id == blob_id)
        )

    def touch(self, blob_ids: Iterable[int], now: int) -> None:
        """Note that the blobs are about to be used."""
        self.connection.execute(update(t.blob).where(t.blob.c.id.in_(tuple(blob_ids))).values(touched_at=now))

    def is_used_in(self, repo_id: int, blob_id: int) -> bool:
        """Whether a manifest of the repository names the blob."""
        query = (
            select(t.manifest.c.id)
            .join(t.manifest_blob, t.manifest_blob.c.manifest_id == t.manifest.c.id)
            .where(t.manifest.c.repo_id == repo_id, t.manifest_blob.c.blob_id == blob_id)
            .limit(1)
        )
        return self.connection.execute(query).first() is not None

    # --- collection -----------------------------------------------------------------------------------------

    def unused(self, touched_before: int, limit: int | None = None) -> list[Blob]:
        """Live blobs that no manifest names and nobody touched lately, the oldest first."""
        query = (
            select(*_BLOB)
            .where(t.blob.c.state == LIVE, t.blob.c.touched_at < touched_before, ~_named())
            .order_by(t.blob.c.touched_at, t.blob.c.id)
            .limit(limit)
        )
        return [Blob(**row._mapping) for row in self.connection.execute(query)]

    def condemn(self, blob_id: int, touched_before: int) -> bool:
        """First phase of deletion: take all links away and mark the blob, unless somebody uses it by now."""
        query = select(t.blob.c.id).where(
            t.blob.c.id == blob_id, t.blob.c.state == LIVE, t.blob.c.touched_at < touched_before, ~_named()
        )
        if self.connection.execute(query).first() is None:
            return False
        self.connection.execute(delete(t.repo_blob).where(t.repo_blob.c.blob_id == blob_id))
        self.connection.execute(update(t.blob).where(t.blob.c.id == blob_id).values(state=DELETING))
        return True

    def condemned(self) -> list[Blob]:
        """Blobs between the two phases of deletion."""
        query = select(*_BLOB).where(t.blob.c.state == DELETING).order_by(t.blob.c.id)
        return [Blob(**row._mapping) for row in self.connection.execute(query)]

    def forget(self, blob_id: int) -> None:
        """Second phase of deletion: the object is gone, and now its row goes."""
        self.connection.execute(delete(t.blob).where(t.blob.c.id == blob_id, t.blob.c.state == DELETING))

    def all_live(self) -> list[Blob]:
        """Every live blob, by digest."""
        query = select(*_BLOB).where(t.blob.c.state == LIVE).order_by(t.blob.c.digest)
        return [Blob(**row._mapping) for row in self.connection.execute(query)]

    def known_keys(self) -> set[str]:
        """Storage keys that a blob or an upload owns."""
        keys = set(self.connection.scalars(select(t.blob.c.storage_key)))
        return keys | set(self.connection.scalars(select(t.upload.c.storage_key)))

    # --- uploads --------------------------------------------------------------------------------------------

    def begin_upload(
        self, storage_key: str, repo_id: int, now: int, *, session: str | None = None, algorithm: str | None = None
    ) -> None:
        """Reserve a storage key for bytes that are about to arrive, in one go or over several calls."""
        values = {
            "storage_key": storage_key,
            "repo_id": repo_id,
            "touched_at": now,
            "session": session,
            "algorithm": algorithm,
        }
        self.connection.execute(insert(t.upload).values(values))

    def upload(self, repo_id: int, session: str) -> Upload | None:
        """The upload of the repository with this session name."""
        columns = (t.upload.c[name] for name in ("session", "repo_id", "storage_key", "algorithm", "received"))
        query = select(*columns).where(t.upload.c.repo_id == repo_id, t.upload.c.session == session)
        row = self.connection.execute(query).first()
        return Upload(**row._mapping) if row else None

    def note_received(self, storage_key: str, before: int, received: int, now: int) -> bool:
        """Record how far an upload has come; False when it is gone or has come elsewhere meanwhile."""
        where = (t.upload.c.storage_key == storage_key, t.upload.c.received == before)
        result = self.connection.execute(update(t.upload).where(*where).values(received=received, touched_at=now))
        return result.rowcount == 1

    def end_upload(self, storage_key: str) -> bool:
        """Give the reservation up; False when a collection has taken it already."""
        result = self.connection.execute(delete(t.upload).where(t.upload.c.storage_key == storage_key))
        return result.rowcount == 1

    def stale_uploads(self, touched_before: int) -> list[str]:
        """Storage keys of uploads that have been quiet for long."""
        return list(
            self.connection.scalars(select(t.upload.c.storage_key).where(t.upload.c.touched_at < touched_before))
        )


def _linked_to(repo_id: int) -> ColumnElement[bool]:
    return exists().where(t.repo_blob.c.blob_id == t.blob.c.id, t.repo_blob.c.repo_id == repo_id)


def _named() -> ColumnElement[bool]:
    return exists().where(t.manifest_blob.c.blob_id == t.blob.c.id)

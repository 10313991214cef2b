"""The audit log: lines that are only ever added, each holding the hash of the one before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from obm_registry.catalog import tables as t
from obm_registry.catalog.rows import AuditEntry


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit log, within one transaction."""

    connection: Connection

    def record(self, actor: str, action: str, subject: str, now: int, detail: str = "") -> None:
        """Add a line; the write lock of the transaction keeps the chain in one piece."""
        previous = self.connection.scalar(select(t.audit.c.hash).order_by(t.audit.c.id.desc()).limit(1)) or ""
        line = {"at": now, "actor": actor, "action": action, "subject": subject, "detail": detail}
        line["previous"] = previous
        self.connection.execute(insert(t.audit).values(**line, hash=line_hash(line)))

    def page(self, *, after: int = 0, limit: int = 1000) -> list[AuditEntry]:
        """Lines with keys above `after`, in the order in which they were written."""
        query = select(t.audit).where(t.audit.c.id > after).order_by(t.audit.c.id).limit(limit)
        return [AuditEntry(**row._mapping) for row in self.connection.execute(query)]


def line_hash(line: dict[str, object]) -> str:
    """SHA-256 over the fields of a line without its key and its own hash, 64 hexadecimal digits."""
    fields = [line[key] for key in ("at", "actor", "action", "subject", "detail", "previous")]
    return hashlib.sha256(json.dumps(fields, separators=(",", ":")).encode()).hexdigest()

"""The catalog: where a use case gets a transaction, and all queries in it.

Never holds a transaction open on its own account: hashing, parsing and object stores come before or after.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, text

from obm_registry.catalog.access import Access
from obm_registry.catalog.audit import Audit
from obm_registry.catalog.blobs import Blobs
from obm_registry.catalog.database import open_sqlite, transaction
from obm_registry.catalog.lineage import Lineage
from obm_registry.catalog.manifests import Manifests
from obm_registry.catalog.names import Names
from obm_registry.catalog.tags import Tags

FILE_NAME = "registry.sqlite3"  # of a catalog that was given no other place


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One transaction, and the queries that belong to each kind of row."""

    names: Names
    blobs: Blobs
    manifests: Manifests
    tags: Tags
    lineage: Lineage
    access: Access
    audit: Audit
    connection: Connection

    def defects(self) -> list[str]:
        """What the database itself finds wrong: broken pages and dangling foreign keys."""
        found = [row[0] for row in self.connection.execute(text("PRAGMA integrity_check")) if row[0] != "ok"]
        dangling = self.connection.execute(text("PRAGMA foreign_key_check"))
        return found + [f"row {row[1]} of {row[0]} refers to a missing row of {row[2]}" for row in dangling]


class Catalog:
    """The rows of one registry.

    Args:
        engine: from `open_sqlite`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one state of the catalog and changes nothing."""
        with transaction(self._engine, writes=False) as connection:
            yield _session(connection)

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that holds the write lock: committed when the block ends well, else undone.

        Raises:
            RegistryError: `busy`, `disk_full`, `in_use` or `io` for what the database refuses.
        """
        with transaction(self._engine, writes=True) as connection:
            yield _session(connection)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def open_catalog(path: Path) -> Catalog:
    """Open or create the catalog in an SQLite file.

    Raises:
        RegistryError: `io`, `busy` or `disk_full`.
    """
    return Catalog(open_sqlite(path))


def _session(connection: Connection) -> Session:
    return Session(
        names=Names(connection),
        blobs=Blobs(connection),
        manifests=Manifests(connection),
        tags=Tags(connection),
        lineage=Lineage(connection),
        access=Access(connection),
        audit=Audit(connection),
        connection=connection,
    )

"""Open the database of a catalog: connections, their settings, transactions and migrations.

Never states a query of its own about artifacts. SQLite: WAL, so that readers do not wait; writers begin
IMMEDIATE, because a transaction that reads first and writes later fails under concurrency; synchronous FULL,
so that a commit survives a power cut.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc, inspect, text
from sqlalchemy.engine import URL

from obm_format.errors import RegistryError

HEAD = "0002"  # the newest migration; a database that has it already needs no Alembic
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 60.0

_WRITES = "obm_writes"


def open_sqlite(path: Path) -> Engine:
    """Open or create the database file and bring its tables up to date.

    Args:
        path: the file; its folder exists and is on a local disk.

    Returns:
        An engine whose connections are set up; use `transaction` to work with it.

    Raises:
        RegistryError: `io` when the file cannot be opened or is no database, `busy` when it stays locked.
    """
    url = URL.create("sqlite", database=str(path))
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    try:
        with database_errors(str(path)):
            _enter_wal(engine)
            migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextlib.contextmanager
def transaction(engine: Engine, *, writes: bool) -> Iterator[Connection]:
    """One transaction: committed when the block ends well, else rolled back.

    Args:
        engine: from `open_sqlite`.
        writes: take the write lock from the start.

    Raises:
        RegistryError: `busy`, `disk_full`, `in_use` or `io` for what the database refuses.
    """
    with database_errors("catalog"), engine.connect() as connection:
        connection = connection.execution_options(**{_WRITES: writes})
        with connection.begin():
            yield connection


@contextlib.contextmanager
def database_errors(where: str) -> Iterator[None]:
    """Turn the database's errors into ours."""
    try:
        yield
    except exc.IntegrityError as error:
        if "FOREIGN KEY" in str(error.orig):
            raise RegistryError("in_use", "other rows still refer to this one", where=where) from error
        raise
    except (exc.DatabaseError, sqlite3.DatabaseError) as error:
        detail = str(getattr(error, "orig", error))
        if "locked" in detail or "busy" in detail:
            raise RegistryError(
                "busy", "the catalog stayed locked", where=where, got=detail, hint="try again in a moment"
            ) from error
        if "full" in detail:
            raise RegistryError(
                "disk_full",
                "no space is left on the device",
                where=where,
                hint="free some space and try again",
            ) from error
        raise RegistryError("io", f"the catalog cannot be used: {detail}", where=where) from error


def migrate(engine: Engine) -> None:
    """Bring the tables to the newest migration; one process does it, the others wait for it.

    Raises:
        RegistryError: `io` when the database was made by a newer version.
    """
    with transaction(engine, writes=False) as connection:
        if _version(connection) == HEAD:
            return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with transaction(engine, writes=True) as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise RegistryError(
                "io",
                f"the catalog was made by another version: {error}",
                where=str(engine.url.database),
                hint="use the version of obm that made it, or a newer one",
            ) from error


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _set_up(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: `_begin` does
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _enter_wal(engine: Engine) -> None:
    """Switch the file to WAL; SQLite does not wait by itself where two processes do this at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        raw: Any = engine.raw_connection()
        try:
            raw.driver_connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        finally:
            raw.close()

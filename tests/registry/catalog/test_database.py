"""The catalog's database: migrations, settings, transactions."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from obm_format.errors import RegistryError
from obm_registry.catalog.database import HEAD, MIGRATIONS, open_sqlite, transaction
from obm_registry.catalog.store import open_catalog
from obm_registry.catalog.tables import metadata


def test_migrations_make_exactly_the_tables(tmp_path: Path) -> None:
    engine = open_sqlite(tmp_path / "db")
    with transaction(engine, writes=False) as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_head_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [HEAD]


def test_settings_are_those_that_keep_commits(tmp_path: Path) -> None:
    engine = open_sqlite(tmp_path / "db")
    with transaction(engine, writes=True) as connection:
        found = {
            key: connection.execute(text(f"PRAGMA {key}")).scalar()
            for key in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    engine.dispose()


def test_write_that_raises_changes_nothing(tmp_path: Path) -> None:
    catalog = open_catalog(tmp_path / "db")

    def half_done() -> None:
        with catalog.write() as session:
            session.names.ensure_repository("a/b", "a", 1)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        half_done()
    with catalog.read() as session:
        assert session.names.repositories() == []
    catalog.close()


def test_write_holds_the_lock_from_its_start(tmp_path: Path) -> None:
    catalog = open_catalog(tmp_path / "db")
    other = sqlite3.connect(tmp_path / "db", timeout=0)
    with catalog.write(), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    other.execute("BEGIN IMMEDIATE")
    other.close()
    catalog.close()


def test_foreign_keys_keep_referenced_rows(tmp_path: Path) -> None:
    catalog = open_catalog(tmp_path / "db")
    with catalog.write() as session:
        repo = session.names.ensure_repository("a/b", "a", 1)
        blob = session.blobs.insert("sha256:" + "0" * 64, 3, "k", 1)
        session.blobs.link(repo.id, blob, "upload", 1)
    with pytest.raises(RegistryError) as caught, catalog.write() as session:
        session.connection.execute(text("DELETE FROM blob"))
    assert caught.value.reason == "in_use"
    catalog.close()


def test_one_live_blob_per_digest_beside_any_number_of_condemned_ones(tmp_path: Path) -> None:
    catalog = open_catalog(tmp_path / "db")
    digest = "sha256:" + "0" * 64
    with catalog.write() as session:
        first = session.blobs.insert(digest, 3, "k1", 1)
        assert session.blobs.condemn(first, touched_before=2)
        second = session.blobs.insert(digest, 3, "k2", 2)
        live = session.blobs.live(digest)
        assert live is not None
        assert live.id == second
        assert [blob.id for blob in session.blobs.condemned()] == [first]
    catalog.close()


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(RegistryError) as caught:
        open_catalog(tmp_path / "db")
    assert caught.value.reason == "io"


def test_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    open_catalog(tmp_path / "db").close()
    with sqlite3.connect(tmp_path / "db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(RegistryError) as caught:
        open_catalog(tmp_path / "db")
    assert caught.value.reason == "io"
    assert "version" in str(caught.value)


def test_database_of_the_version_before_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = command.upgrade
    monkeypatch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0001"))
    engine = open_sqlite(tmp_path / "db")
    with transaction(engine, writes=True) as connection:
        for line in (
            "INSERT INTO namespace VALUES (1, 'acme', NULL, 'require', '', 5)",
            "INSERT INTO repository VALUES (1, 1, 'acme/x', 5)",
            "INSERT INTO upload VALUES ('k', 1, 5)",
        ):
            connection.execute(text(line))
    engine.dispose()
    monkeypatch.undo()
    catalog = open_catalog(tmp_path / "db")
    with catalog.read() as session:
        found = session.names.repository("acme/x")
        assert found is not None
        assert found.namespace.visibility == "public"
        assert session.blobs.stale_uploads(6) == ["k"]
        assert compare_metadata(MigrationContext.configure(session.connection), metadata) == []
    catalog.close()


def _open_and_write(path: Path, name: str) -> None:
    catalog = open_catalog(path)
    for i in range(5):
        with catalog.write() as session:
            session.names.ensure_repository(f"{name}/r{i}", name, 1)
    catalog.close()


def test_many_processes_open_a_new_catalog_at_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_open_and_write, args=(tmp_path / "db", f"n{i}")) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    catalog = open_catalog(tmp_path / "db")
    with catalog.read() as session:
        assert len(session.names.repositories()) == 15
    catalog.close()

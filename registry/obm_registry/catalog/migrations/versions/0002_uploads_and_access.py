"""Adds uploads that go on later, principals with tokens, what a namespace shows to strangers, and the audit log.

Never edited once released: later changes are later migrations.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add columns to the tables that are there, then make the new ones."""
    _upload()
    _namespace()
    _principal()
    _member()
    _token()
    _audit()


def _upload() -> None:
    # plain ALTER TABLE: SQLite would otherwise make the table anew, which foreign keys forbid once there are rows
    op.add_column("upload", sa.Column("session", sa.String(length=32), nullable=True))
    op.add_column("upload", sa.Column("algorithm", sa.String(length=8), nullable=True))
    op.add_column("upload", sa.Column("received", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("uq_upload_session", "upload", ["session"], unique=True)


def _namespace() -> None:
    op.execute(
        "ALTER TABLE namespace ADD COLUMN visibility VARCHAR(8) DEFAULT 'public' NOT NULL "
        "CONSTRAINT ck_namespace_visibility CHECK (visibility IN ('public', 'private'))"
    )


def _principal() -> None:
    op.create_table(
        "principal",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_principal")),
        sa.UniqueConstraint("name", name=op.f("uq_principal_name")),
    )


def _member() -> None:
    op.create_table(
        "member",
        sa.Column("principal_id", _ID, nullable=False),
        sa.Column("namespace", sa.String(length=229), nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.CheckConstraint("role IN ('reader', 'writer', 'maintainer', 'admin')", name=op.f("ck_member_role")),
        sa.ForeignKeyConstraint(
            ["principal_id"], ["principal.id"], name=op.f("fk_member_principal_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("principal_id", "namespace", name=op.f("pk_member")),
    )
    op.create_index(op.f("ix_member_namespace"), "member", ["namespace"], unique=False)


def _token() -> None:
    op.create_table(
        "token",
        sa.Column("id", _ID, nullable=False),
        sa.Column("principal_id", _ID, nullable=False),
        sa.Column("public_id", sa.String(length=16), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["principal_id"], ["principal.id"], name=op.f("fk_token_principal_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token")),
        sa.UniqueConstraint("public_id", name=op.f("uq_token_public_id")),
    )
    op.create_index(op.f("ix_token_principal_id"), "token", ["principal_id"], unique=False)


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", _ID, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_no_{event.lower()} BEFORE {event} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is only written to'); END"
        )

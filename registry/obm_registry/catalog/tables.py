"""The tables of the catalog, as SQLAlchemy Core objects.

Never queries. Foreign keys are RESTRICT wherever bytes or lineage would be lost. Times are milliseconds since
1970, UTC. Migrations make exactly these tables (a test compares).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in an INTEGER PRIMARY KEY

namespace = Table(
    "namespace",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", String(229), nullable=False, unique=True),
    Column("quota_bytes", BigInteger),
    Column("subject_policy", String(16), nullable=False),
    Column("immutable_tags", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # whether who has no token may pull, where the server lets such callers in at all
    Column("visibility", String(8), nullable=False, server_default="public"),
    CheckConstraint("subject_policy IN ('require', 'warn', 'accept')", name="subject_policy"),
    CheckConstraint("visibility IN ('public', 'private')", name="visibility"),
)

repository = Table(
    "repository",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("namespace_id", ForeignKey("namespace.id", ondelete="RESTRICT"), nullable=False, index=True),
    Column("name", String(229), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
)

blob = Table(
    "blob",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("digest", String(136), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("state", String(8), nullable=False),
    Column("storage_key", String(64), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("touched_at", BigInteger, nullable=False),
    CheckConstraint("size >= 0", name="size"),
    CheckConstraint("state IN ('live', 'deleting')", name="state"),
    Index("ix_blob_state_touched_at", "state", "touched_at"),
)
# one live object per digest; an object that is being deleted keeps its row beside the new one
Index(
    "uq_blob_live_digest",
    blob.c.digest,
    unique=True,
    sqlite_where=text("state = 'live'"),
    postgresql_where=text("state = 'live'"),
)

repo_blob = Table(
    "repo_blob",
    metadata,
    Column("repo_id", ForeignKey("repository.id", ondelete="CASCADE"), nullable=False),
    Column("blob_id", ForeignKey("blob.id", ondelete="RESTRICT"), nullable=False, index=True),
    Column("origin", String(8), nullable=False),
    Column("linked_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("repo_id", "blob_id"),
    CheckConstraint("origin IN ('upload', 'mount')", name="origin"),
)

manifest = Table(
    "manifest",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("repo_id", ForeignKey("repository.id", ondelete="RESTRICT"), nullable=False),
    Column("digest", String(136), nullable=False),
    Column("media_type", Text, nullable=False),
    Column("artifact_type", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("subject_digest", String(136)),
    Column("pushed_by", Text, nullable=False),
    Column("pushed_at", BigInteger, nullable=False),
    Column("yanked_at", BigInteger),
    Column("yank_reason", Text),
    UniqueConstraint("repo_id", "digest"),
    UniqueConstraint("repo_id", "id"),
    Index("ix_manifest_repo_id_subject_digest", "repo_id", "subject_digest", "artifact_type", "id"),
)

manifest_blob = Table(
    "manifest_blob",
    metadata,
    Column("manifest_id", ForeignKey("manifest.id", ondelete="CASCADE"), nullable=False),
    Column("role", String(8), nullable=False),
    Column("ord", Integer, nullable=False),
    Column("blob_id", ForeignKey("blob.id", ondelete="RESTRICT"), nullable=False, index=True),
    PrimaryKeyConstraint("manifest_id", "role", "ord"),
    CheckConstraint("role IN ('config', 'layer')", name="role"),
)

manifest_child = Table(
    "manifest_child",
    metadata,
    Column("parent_id", ForeignKey("manifest.id", ondelete="CASCADE"), nullable=False),
    Column("ord", Integer, nullable=False),
    Column("child_id", ForeignKey("manifest.id", ondelete="RESTRICT"), nullable=False, index=True),
    PrimaryKeyConstraint("parent_id", "ord"),
)

tag = Table(
    "tag",
    metadata,
    Column("repo_id", _Id, nullable=False),
    Column("name", String(128), nullable=False),
    Column("manifest_id", _Id, nullable=False),
    Column("rev", Integer, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("updated_by", Text, nullable=False),
    PrimaryKeyConstraint("repo_id", "name"),
    # composite: a tag cannot point into another repository
    ForeignKeyConstraint(["repo_id", "manifest_id"], ["manifest.repo_id", "manifest.id"], ondelete="RESTRICT"),
    Index("ix_tag_repo_id_manifest_id", "repo_id", "manifest_id"),
)

tag_event = Table(
    "tag_event",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("repo_id", ForeignKey("repository.id", ondelete="CASCADE"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("old_digest", String(136)),
    Column("new_digest", String(136)),
    Column("actor", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("ix_tag_event_repo_id_name", "repo_id", "name", "id"),
)

upload = Table(
    "upload",
    metadata,
    Column("storage_key", String(64), primary_key=True),
    Column("repo_id", ForeignKey("repository.id", ondelete="CASCADE"), nullable=False),
    Column("touched_at", BigInteger, nullable=False, index=True),
    # set for uploads that go on over several calls
    Column("session", String(32)),
    Column("algorithm", String(8)),
    Column("received", BigInteger, nullable=False, server_default="0"),
    Index("uq_upload_session", "session", unique=True),
)

backbone = Table(
    "backbone",
    metadata,
    Column("manifest_id", ForeignKey("manifest.id", ondelete="CASCADE"), primary_key=True),
    Column("fingerprint", String(64), nullable=False, index=True),
    Column("architecture", Text, nullable=False),
    Column("n_tensors", BigInteger, nullable=False),
    Column("n_params", BigInteger, nullable=False),
)

expert = Table(
    "expert",
    metadata,
    Column("manifest_id", ForeignKey("manifest.id", ondelete="CASCADE"), primary_key=True),
    # empty only where the namespace's policy accepted an expert without its backbone
    Column("backbone_id", ForeignKey("backbone.manifest_id", ondelete="RESTRICT")),
    Column("artifact_id", String(80), nullable=False, index=True),
    Column("fingerprint", String(64), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("task", Text, nullable=False),
    Column("position", Text, nullable=False),
    Column("encodings", Text, nullable=False),
    Column("nbytes", BigInteger, nullable=False),
    Column("n_tensors", BigInteger, nullable=False),
    Column("alpha_min", Float),
    Column("alpha_mean", Float),
    Column("alpha_max", Float),
    Index("ix_expert_backbone_id_task", "backbone_id", "task"),
)

principal = Table(
    "principal",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
)

member = Table(
    "member",
    metadata,
    Column("principal_id", ForeignKey("principal.id", ondelete="CASCADE"), nullable=False),
    Column("namespace", String(229), nullable=False, index=True),  # "*" for all of them
    Column("role", String(10), nullable=False),
    PrimaryKeyConstraint("principal_id", "namespace"),
    CheckConstraint("role IN ('reader', 'writer', 'maintainer', 'admin')", name="role"),
)

token = Table(
    "token",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("principal_id", ForeignKey("principal.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("public_id", String(16), nullable=False, unique=True),
    Column("secret_sha256", String(64), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
)

# rows are chained by hashes; triggers refuse to change or delete one
audit = Table(
    "audit",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

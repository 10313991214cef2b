"""Makes the first tables of the catalog: names, blobs, manifests, tags, backbones and experts.

Never edited once released: later changes are later migrations.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables; each refers only to those before it."""
    _namespace()
    _repository()
    _blob()
    _repo_blob()
    _upload()
    _manifest()
    _manifest_blob()
    _manifest_child()
    _tag()
    _tag_event()
    _backbone()
    _expert()


def _namespace() -> None:
    op.create_table(
        "namespace",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.String(length=229), nullable=False),
        sa.Column("quota_bytes", sa.BigInteger(), nullable=True),
        sa.Column("subject_policy", sa.String(length=16), nullable=False),
        sa.Column("immutable_tags", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("subject_policy IN ('require', 'warn', 'accept')", name=op.f("ck_namespace_subject_policy")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_namespace")),
        sa.UniqueConstraint("name", name=op.f("uq_namespace_name")),
    )


def _repository() -> None:
    op.create_table(
        "repository",
        sa.Column("id", _ID, nullable=False),
        sa.Column("namespace_id", _ID, nullable=False),
        sa.Column("name", sa.String(length=229), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace_id"], ["namespace.id"], name=op.f("fk_repository_namespace_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repository")),
        sa.UniqueConstraint("name", name=op.f("uq_repository_name")),
    )
    op.create_index(op.f("ix_repository_namespace_id"), "repository", ["namespace_id"], unique=False)


def _blob() -> None:
    op.create_table(
        "blob",
        sa.Column("id", _ID, nullable=False),
        sa.Column("digest", sa.String(length=136), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("storage_key", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("touched_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('live', 'deleting')", name=op.f("ck_blob_state")),
        sa.CheckConstraint("size >= 0", name=op.f("ck_blob_size")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blob")),
        sa.UniqueConstraint("storage_key", name=op.f("uq_blob_storage_key")),
    )
    op.create_index("ix_blob_state_touched_at", "blob", ["state", "touched_at"], unique=False)
    op.create_index(
        "uq_blob_live_digest",
        "blob",
        ["digest"],
        unique=True,
        sqlite_where=sa.text("state = 'live'"),
        postgresql_where=sa.text("state = 'live'"),
    )


def _repo_blob() -> None:
    op.create_table(
        "repo_blob",
        sa.Column("repo_id", _ID, nullable=False),
        sa.Column("blob_id", _ID, nullable=False),
        sa.Column("origin", sa.String(length=8), nullable=False),
        sa.Column("linked_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("origin IN ('upload', 'mount')", name=op.f("ck_repo_blob_origin")),
        sa.ForeignKeyConstraint(["blob_id"], ["blob.id"], name=op.f("fk_repo_blob_blob_id"), ondelete="RESTRICT"),
        sa.ForeignKeyConstraint(["repo_id"], ["repository.id"], name=op.f("fk_repo_blob_repo_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("repo_id", "blob_id", name=op.f("pk_repo_blob")),
    )
    op.create_index(op.f("ix_repo_blob_blob_id"), "repo_blob", ["blob_id"], unique=False)


def _upload() -> None:
    op.create_table(
        "upload",
        sa.Column("storage_key", sa.String(length=64), nullable=False),
        sa.Column("repo_id", _ID, nullable=False),
        sa.Column("touched_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repository.id"], name=op.f("fk_upload_repo_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("storage_key", name=op.f("pk_upload")),
    )
    op.create_index(op.f("ix_upload_touched_at"), "upload", ["touched_at"], unique=False)


def _manifest() -> None:
    op.create_table(
        "manifest",
        sa.Column("id", _ID, nullable=False),
        sa.Column("repo_id", _ID, nullable=False),
        sa.Column("digest", sa.String(length=136), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("artifact_type", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("subject_digest", sa.String(length=136), nullable=True),
        sa.Column("pushed_by", sa.Text(), nullable=False),
        sa.Column("pushed_at", sa.BigInteger(), nullable=False),
        sa.Column("yanked_at", sa.BigInteger(), nullable=True),
        sa.Column("yank_reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["repo_id"], ["repository.id"], name=op.f("fk_manifest_repo_id"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_manifest")),
        sa.UniqueConstraint("repo_id", "digest", name=op.f("uq_manifest_repo_id_digest")),
        sa.UniqueConstraint("repo_id", "id", name=op.f("uq_manifest_repo_id_id")),
    )
    op.create_index(
        "ix_manifest_repo_id_subject_digest",
        "manifest",
        ["repo_id", "subject_digest", "artifact_type", "id"],
        unique=False,
    )


def _manifest_blob() -> None:
    op.create_table(
        "manifest_blob",
        sa.Column("manifest_id", _ID, nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.Column("ord", sa.Integer(), nullable=False),
        sa.Column("blob_id", _ID, nullable=False),
        sa.CheckConstraint("role IN ('config', 'layer')", name=op.f("ck_manifest_blob_role")),
        sa.ForeignKeyConstraint(["blob_id"], ["blob.id"], name=op.f("fk_manifest_blob_blob_id"), ondelete="RESTRICT"),
        sa.ForeignKeyConstraint(
            ["manifest_id"], ["manifest.id"], name=op.f("fk_manifest_blob_manifest_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("manifest_id", "role", "ord", name=op.f("pk_manifest_blob")),
    )
    op.create_index(op.f("ix_manifest_blob_blob_id"), "manifest_blob", ["blob_id"], unique=False)


def _manifest_child() -> None:
    op.create_table(
        "manifest_child",
        sa.Column("parent_id", _ID, nullable=False),
        sa.Column("ord", sa.Integer(), nullable=False),
        sa.Column("child_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["child_id"], ["manifest.id"], name=op.f("fk_manifest_child_child_id"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["manifest.id"], name=op.f("fk_manifest_child_parent_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("parent_id", "ord", name=op.f("pk_manifest_child")),
    )
    op.create_index(op.f("ix_manifest_child_child_id"), "manifest_child", ["child_id"], unique=False)


def _tag() -> None:
    op.create_table(
        "tag",
        sa.Column("repo_id", _ID, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("manifest_id", _ID, nullable=False),
        sa.Column("rev", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["repo_id", "manifest_id"],
            ["manifest.repo_id", "manifest.id"],
            name=op.f("fk_tag_repo_id_manifest_id"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("repo_id", "name", name=op.f("pk_tag")),
    )
    op.create_index("ix_tag_repo_id_manifest_id", "tag", ["repo_id", "manifest_id"], unique=False)


def _tag_event() -> None:
    op.create_table(
        "tag_event",
        sa.Column("id", _ID, nullable=False),
        sa.Column("repo_id", _ID, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("old_digest", sa.String(length=136), nullable=True),
        sa.Column("new_digest", sa.String(length=136), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repository.id"], name=op.f("fk_tag_event_repo_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tag_event")),
    )
    op.create_index("ix_tag_event_repo_id_name", "tag_event", ["repo_id", "name", "id"], unique=False)


def _backbone() -> None:
    op.create_table(
        "backbone",
        sa.Column("manifest_id", _ID, nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("n_tensors", sa.BigInteger(), nullable=False),
        sa.Column("n_params", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["manifest_id"], ["manifest.id"], name=op.f("fk_backbone_manifest_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("manifest_id", name=op.f("pk_backbone")),
    )
    op.create_index(op.f("ix_backbone_fingerprint"), "backbone", ["fingerprint"], unique=False)


def _expert() -> None:
    op.create_table(
        "expert",
        sa.Column("manifest_id", _ID, nullable=False),
        sa.Column("backbone_id", _ID, nullable=True),
        sa.Column("artifact_id", sa.String(length=80), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("position", sa.Text(), nullable=False),
        sa.Column("encodings", sa.Text(), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("n_tensors", sa.BigInteger(), nullable=False),
        sa.Column("alpha_min", sa.Float(), nullable=True),
        sa.Column("alpha_mean", sa.Float(), nullable=True),
        sa.Column("alpha_max", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["backbone_id"], ["backbone.manifest_id"], name=op.f("fk_expert_backbone_id"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["manifest_id"], ["manifest.id"], name=op.f("fk_expert_manifest_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("manifest_id", name=op.f("pk_expert")),
    )
    op.create_index(op.f("ix_expert_artifact_id"), "expert", ["artifact_id"], unique=False)
    op.create_index("ix_expert_backbone_id_task", "expert", ["backbone_id", "task"], unique=False)
    op.create_index(op.f("ix_expert_fingerprint"), "expert", ["fingerprint"], unique=False)

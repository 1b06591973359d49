"""Attestation in depth: IMA policy of a baseline, claims of a boot"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _ima() -> None:
    op.add_column("baselines", sa.Column("ima_section", sa.LargeBinary(), nullable=True))
    op.create_table(
        "boot_claims",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("claims", sa.LargeBinary(), nullable=False),
        sa.Column("recorded_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name=op.f("fk_boot_claims_node")),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_boot_claims")),
    )


def _without_ima() -> None:
    op.drop_table("boot_claims")
    with op.batch_alter_table("baselines", schema=None) as batch_op:
        batch_op.drop_column("ima_section")


def _evidence() -> None:
    op.create_table(
        "evidence",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("until", sa.Float(), nullable=True),
        sa.Column("reset", sa.BigInteger(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("facts", sa.LargeBinary(), nullable=False),
        sa.Column("event_log_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("ima_log_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("policy_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evidence")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_evidence_node_kind_id"), "evidence", ["node", "kind", "id"])
    for column in ("at", "event_log_sha256", "ima_log_sha256", "policy_sha256"):
        op.create_index(op.f(f"ix_evidence_{column}"), "evidence", [column])
    op.create_table(
        "evidence_blobs",
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.Column("used_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_evidence_blobs")),
    )


def _escrow() -> None:
    op.create_table(
        "escrow_keys",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("ak_name", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("share", sa.LargeBinary(), nullable=False),
        sa.Column("least_tier", sa.Text(), nullable=False),
        sa.Column("put_at", sa.Float(), nullable=False),
        sa.Column("put_by", sa.Text(), nullable=False),
        sa.Column("releases", sa.Integer(), nullable=False),
        sa.Column("released_at", sa.Float(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.Column("revoked_by", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name=op.f("fk_escrow_keys_node")),
        sa.PrimaryKeyConstraint("node", "name", name=op.f("pk_escrow_keys")),
    )


def _identity() -> None:
    for table in ("nodes", "enrolments"):
        op.add_column(table, sa.Column("tpm", sa.Text(), nullable=False, server_default="{}"))
    op.create_table(
        "revoked_keys",
        sa.Column("ak_name", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("certificate_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=False),
        sa.Column("revoked_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("ak_name", name=op.f("pk_revoked_keys")),
    )
    op.create_index(op.f("ix_revoked_keys_node"), "revoked_keys", ["node"])


def _without_identity() -> None:
    op.drop_table("revoked_keys")
    for table in ("nodes", "enrolments"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column("tpm")


def _references() -> None:
    op.add_column("sites", sa.Column("announced", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "reference_values",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("withdrawn_at", sa.Float(), nullable=True),
        sa.Column("withdrawn_by", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["site"], ["sites.site"], name=op.f("fk_reference_values_site")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reference_values")),
        sqlite_autoincrement=True,
    )
    columns = ["site", "withdrawn_at", "id"]
    op.create_index(op.f("ix_reference_values_site_withdrawn_at_id"), "reference_values", columns)


def _without_references() -> None:
    op.drop_table("reference_values")
    with op.batch_alter_table("sites", schema=None) as batch_op:
        batch_op.drop_column("announced")


def upgrade() -> None:
    """Each part adds its own tables; none depends on another."""
    _ima()
    _evidence()
    _escrow()
    _identity()
    _references()


def downgrade() -> None:
    _without_references()
    _without_identity()
    op.drop_table("escrow_keys")
    op.drop_table("evidence_blobs")
    op.drop_table("evidence")
    _without_ima()

"""Grants and break-glass codes"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _row_id() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "grants",
        sa.Column("id", _row_id(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("starts", sa.Float(), nullable=False),
        sa.Column("ends", sa.Float(), nullable=False),
        sa.Column("requested_at", sa.Float(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("approved_at", sa.Float(), nullable=True),
        sa.Column("approved_by", sa.Text(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.Column("revoked_by", sa.Text(), nullable=True),
        sa.Column("revoke_reason", sa.Text(), nullable=True),
        sa.Column("use", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name=op.f("fk_grants_node")),
        sa.ForeignKeyConstraint(["site"], ["sites.site"], name=op.f("fk_grants_site")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_grants_node_ends"), "grants", ["node", "ends"])
    op.create_index(op.f("ix_grants_site_id"), "grants", ["site", "id"])
    op.create_table(
        "break_glass_codes",
        sa.Column("id", _row_id(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("used_at", sa.Float(), nullable=True),
        sa.Column("noted_at", sa.Float(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.Column("revoked_by", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name=op.f("fk_break_glass_codes_node")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_break_glass_codes")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_break_glass_codes_node"), "break_glass_codes", ["node"])


def downgrade() -> None:
    op.drop_table("break_glass_codes")
    op.drop_table("grants")

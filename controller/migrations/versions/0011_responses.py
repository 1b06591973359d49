"""Response rules, suppressions, fences and incidents that come again"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "response_policies",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("set_at", sa.Float(), nullable=False),
        sa.Column("set_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_response_policies")),
    )
    row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "response_hits",
        sa.Column("id", row_id, nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_response_hits")),
    )
    op.create_index(op.f("ix_response_hits_rule_site_at"), "response_hits", ["rule", "site", "at"])
    op.create_table(
        "suppressions",
        sa.Column("id", row_id, nullable=False),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("acts", sa.Boolean(), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("ended_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_suppressions")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_suppressions_until"), "suppressions", ["until"])
    op.add_column("holds", sa.Column("fence_only", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("incidents", sa.Column("reopened", sa.Integer(), server_default="0", nullable=False))
    op.add_column("incidents", sa.Column("quiet", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    op.drop_column("incidents", "quiet")
    op.drop_column("incidents", "reopened")
    op.drop_column("holds", "fence_only")
    op.drop_table("suppressions")
    op.drop_table("response_hits")
    op.drop_table("response_policies")

"""Several controllers: who holds a session, whose keys these are, when the database was put back"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("session_holder", sa.Text(), server_default="", nullable=False))
    op.add_column("nodes", sa.Column("session_epoch", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index(op.f("ix_nodes_session_holder"), "nodes", ["session_holder"])
    op.create_table(
        "controllers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.Column("addresses", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_controllers")),
    )
    op.create_table(
        "controller_keys",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_controller_keys")),
    )
    op.create_table(
        "restores",
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("backup_at", sa.Float(), nullable=False),
        sa.Column("confirmed_at", sa.Float(), nullable=True),
        sa.Column("confirmed_by", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("at", name=op.f("pk_restores")),
    )


def downgrade() -> None:
    op.drop_table("restores")
    op.drop_table("controller_keys")
    op.drop_table("controllers")
    op.drop_index(op.f("ix_nodes_session_holder"), table_name="nodes")
    op.drop_column("nodes", "session_epoch")
    op.drop_column("nodes", "session_holder")

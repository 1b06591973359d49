"""Plans and rollouts"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def _row_id() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "plans",
        sa.Column("id", _row_id(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "rollouts",
        sa.Column("id", _row_id(), nullable=False),
        sa.Column("plan", _row_id(), nullable=False),
        sa.Column("baseline", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        *(
            sa.Column(n, sa.Text(), nullable=False)
            for n in ("sha256", "selector", "terms", "reason", "state", "why")
        ),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("wave_since", sa.Float(), nullable=True),
        sa.Column("requested_at", sa.Float(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("approved_at", sa.Float(), nullable=True),
        sa.Column("approved_by", sa.Text(), nullable=True),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["plan"], ["plans.id"], name=op.f("fk_rollouts_plan")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_rollouts_state_id"), "rollouts", ["state", "id"])
    op.create_table(
        "rollout_nodes",
        sa.Column("rollout", _row_id(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("progress", sa.Text(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("before_name", sa.Text(), nullable=True),
        sa.Column("before_version", sa.BigInteger(), nullable=True),
        sa.Column("active", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"], name=op.f("fk_rollout_nodes_rollout")),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name=op.f("fk_rollout_nodes_node")),
        sa.PrimaryKeyConstraint("rollout", "node", name=op.f("pk_rollout_nodes")),
    )
    active = sa.text("active = 1")
    op.create_index(
        "uq_rollout_nodes_active",
        "rollout_nodes",
        ["node"],
        unique=True,
        sqlite_where=active,
        postgresql_where=active,
    )
    op.create_index(op.f("ix_rollout_nodes_rollout_progress"), "rollout_nodes", ["rollout", "progress"])


def downgrade() -> None:
    for table in ("rollout_nodes", "rollouts", "plans"):
        op.drop_table(table)

"""Labels, and a baseline of a node's own"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_NEW = ("baseline_name", "baseline_version", "baseline_since", "labels", "reported_baseline", "agent_version")


def upgrade() -> None:
    for column in (
        sa.Column("baseline_name", sa.Text(), nullable=True),
        sa.Column("baseline_version", sa.BigInteger(), nullable=True),
        sa.Column("baseline_since", sa.Float(), nullable=True),
        sa.Column("labels", sa.Text(), nullable=False, server_default="{}"),
        sa.Column("reported_baseline", sa.Text(), nullable=False, server_default=""),
        sa.Column("agent_version", sa.Text(), nullable=False, server_default=""),
    ):
        op.add_column("nodes", column)
    op.create_table(
        "node_labels",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name=op.f("fk_node_labels_node")),
        sa.PrimaryKeyConstraint("node", "key", name=op.f("pk_node_labels")),
    )
    op.create_index(op.f("ix_node_labels_key_value_node"), "node_labels", ["key", "value", "node"])


def downgrade() -> None:
    op.drop_table("node_labels")
    with op.batch_alter_table("nodes", schema=None) as batch_op:
        for name in reversed(_NEW):
            batch_op.drop_column(name)

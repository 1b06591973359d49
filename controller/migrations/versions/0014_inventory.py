"""Inventory: what nodes say they consist of, now and before"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from controller.store.schema.base import RowId

revision = "0014"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "inventories",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("left_out", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name=op.f("fk_inventories_node")),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_inventories")),
    )
    op.create_table(
        "inventory_items",
        sa.Column("id", RowId, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inventory_items")),
        sa.UniqueConstraint("kind", "name", "value", name=op.f("uq_inventory_items_kind_name_value")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "inventory_facts",
        sa.Column("id", RowId, nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("item", RowId, nullable=False),
        sa.Column("seen_from", sa.Float(), nullable=False),
        sa.Column("seen_until", sa.Float(), nullable=True),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name=op.f("fk_inventory_facts_node")),
        sa.ForeignKeyConstraint(["item"], ["inventory_items.id"], name=op.f("fk_inventory_facts_item")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inventory_facts")),
        sqlite_autoincrement=True,
    )
    for columns in (["node", "changed_at", "id"], ["item", "seen_until", "node"], ["seen_until"]):
        op.create_index(op.f(f"ix_inventory_facts_{'_'.join(columns)}"), "inventory_facts", columns)


def downgrade() -> None:
    for table in ("inventory_facts", "inventory_items", "inventories"):
        op.drop_table(table)

"""What nodes say they consist of, now and before. See `controller.store.schema`."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from controller.store.schema.base import RowId, metadata

inventories = Table(
    "inventories",
    metadata,
    Column("node", Text, ForeignKey("nodes.node"), primary_key=True),
    Column("sha256", LargeBinary, nullable=False),
    Column("since", Float, nullable=False),
    Column("left_out", BigInteger, nullable=False),
)

# A fleet has the same packages many times over: what is said is kept once.
inventory_items = Table(
    "inventory_items",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("value", Text, nullable=False),
    UniqueConstraint("kind", "name", "value"),
    sqlite_autoincrement=True,
)

inventory_facts = Table(
    "inventory_facts",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("node", Text, ForeignKey("nodes.node"), nullable=False),
    Column("item", RowId, ForeignKey("inventory_items.id"), nullable=False),
    Column("seen_from", Float, nullable=False),
    Column("seen_until", Float),
    Column("changed_at", Float, nullable=False),
    Index(None, "node", "changed_at", "id"),
    Index(None, "item", "seen_until", "node"),
    Index(None, "seen_until"),
    sqlite_autoincrement=True,
)

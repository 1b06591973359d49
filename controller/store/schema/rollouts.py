"""Plans, rollouts and how far their nodes are. See `controller.store.schema`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, Table, Text, text

from controller.store.schema.base import RowId, metadata

plans = Table(
    "plans",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("document", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", Text, nullable=False),
    sqlite_autoincrement=True,
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("plan", RowId, ForeignKey("plans.id"), nullable=False),
    Column("baseline", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("selector", Text, nullable=False),
    Column("terms", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("wave", Integer, nullable=False),
    Column("wave_since", Float),
    Column("requested_at", Float, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("approved_at", Float),
    Column("approved_by", Text),
    Column("ended_at", Float),
    Index(None, "state", "id"),
    sqlite_autoincrement=True,
)

rollout_nodes = Table(
    "rollout_nodes",
    metadata,
    Column("rollout", RowId, ForeignKey("rollouts.id"), primary_key=True),
    Column("node", Text, ForeignKey("nodes.node"), primary_key=True),
    Column("wave", Integer, nullable=False),
    Column("progress", Text, nullable=False),
    Column("since", Float, nullable=False),
    Column("detail", Text, nullable=False),
    # Its own choice from before; NULL: it had none.
    Column("before_name", Text),
    Column("before_version", BigInteger),
    Column("active", Integer, nullable=False),
    # A node is in one rollout at a time.
    Index("uq_rollout_nodes_active", "node", unique=True, sqlite_where=text("active = 1"),
          postgresql_where=text("active = 1")),
    Index(None, "rollout", "progress"),
)  # fmt: skip

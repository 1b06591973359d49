"""What happened and what was done about it. See `controller.store.schema`."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from controller.store.schema.base import RowId, metadata

incidents = Table(
    "incidents",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("findings", Text, nullable=False),
    Column("done", Text, nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("closed_at", Float),
    Column("closed_by", Text),
    Column("reopened", Integer, nullable=False, server_default="0"),
    # Told once that it comes and goes: the next word is when it has stayed away.
    Column("quiet", Boolean, nullable=False, server_default=false()),
    Index(None, "state", "id"),
    sqlite_autoincrement=True,
)

incident_nodes = Table(
    "incident_nodes",
    metadata,
    Column("incident", RowId, ForeignKey("incidents.id"), primary_key=True),
    Column("node", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("since", Float, nullable=False),
    Column("active", Boolean, nullable=False),
    Index(None, "node", "active"),
    Index(None, "key", "since"),
    Index(None, "key", "incident"),
    Index(None, "incident", "active"),
)

holds = Table(
    "holds",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("node", Text, ForeignKey("nodes.node")),
    Column("site", Text, ForeignKey("sites.site"), nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("automatic", Boolean, nullable=False),
    Column("fence_only", Boolean, nullable=False, server_default=false()),
    Column("incident", RowId, ForeignKey("incidents.id")),
    Column("placed_at", Float, nullable=False),
    Column("released_at", Float),
    Column("released_by", Text),
    Column("release_reason", Text),
    Index("uq_holds_active_node", "node", unique=True, sqlite_where=text("released_at IS NULL"),
          postgresql_where=text("released_at IS NULL")),
    Index("uq_holds_active_site", "site", unique=True,
          sqlite_where=text("released_at IS NULL AND node IS NULL"),
          postgresql_where=text("released_at IS NULL AND node IS NULL")),
    Index(None, "site", "released_at"),
    Index(None, "automatic", "placed_at"),
    sqlite_autoincrement=True,
)  # fmt: skip

response_policies = Table(
    "response_policies",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False),
    Column("set_at", Float, nullable=False),
    Column("set_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
)

response_hits = Table(
    "response_hits",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("rule", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("at", Float, nullable=False),
    Index(None, "rule", "site", "at"),
)

suppressions = Table(
    "suppressions",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("selector", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("acts", Boolean, nullable=False),
    Column("until", Float, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("ended_at", Float),
    Column("ended_by", Text),
    Index(None, "until"),
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("at", Float, nullable=False),
    Column("stored_at", Float, nullable=False),
    Column("source", Text, nullable=False),
    Column("node", Text),
    Column("site", Text),
    Column("seq", BigInteger),
    Column("kind", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("summary", Text, nullable=False),
    Column("detail", Text, nullable=False),
    # An agent that lost its state counts from the beginning again: `at` tells its new events from its old ones.
    UniqueConstraint("node", "seq", "at"),
    Index(None, "site", "id"),
    Index(None, "node", "kind", "id"),
    sqlite_autoincrement=True,
)

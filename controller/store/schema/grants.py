"""Who may come for a while. See `controller.store.schema`."""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Index, LargeBinary, Table, Text

from controller.store.schema.base import RowId, metadata

grants = Table(
    "grants",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("node", Text, ForeignKey("nodes.node"), nullable=False),
    Column("site", Text, ForeignKey("sites.site"), nullable=False),
    Column("content", Text, nullable=False),
    Column("starts", Float, nullable=False),
    Column("ends", Float, nullable=False),
    Column("requested_at", Float, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("approved_at", Float),
    Column("approved_by", Text),
    Column("revoked_at", Float),
    Column("revoked_by", Text),
    Column("revoke_reason", Text),
    Column("use", Text, nullable=False),
    Index(None, "node", "ends"),
    Index(None, "site", "id"),
    sqlite_autoincrement=True,
)

break_glass_codes = Table(
    "break_glass_codes",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("node", Text, ForeignKey("nodes.node"), nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("used_at", Float),
    Column("noted_at", Float),
    Column("revoked_at", Float),
    Column("revoked_by", Text),
    Index(None, "node"),
    sqlite_autoincrement=True,
)

"""What nodes proved, and what they are held to. See `controller.store.schema`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, LargeBinary, Table, Text

from controller.store.schema.base import RowId, metadata

boot_references = Table(
    "boot_references",
    metadata,
    Column("node", Text, ForeignKey("nodes.node"), primary_key=True),
    Column("reference", LargeBinary),
    Column("accepted_at", Float),
    Column("candidate", LargeBinary),
)

boot_claims = Table(
    "boot_claims",
    metadata,
    Column("node", Text, ForeignKey("nodes.node"), primary_key=True),
    Column("claims", LargeBinary, nullable=False),
    Column("recorded_at", Float, nullable=False),
)

evidence = Table(
    "evidence",
    metadata,
    Column("id", RowId, primary_key=True),
    # No foreign key: evidence outlives its node.
    Column("node", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("until", Float),
    Column("reset", BigInteger, nullable=False),
    Column("tier", Text, nullable=False),
    Column("facts", LargeBinary, nullable=False),
    Column("event_log_sha256", LargeBinary, nullable=False),
    Column("ima_log_sha256", LargeBinary, nullable=False),
    Column("policy_sha256", LargeBinary, nullable=False),
    Column("packed", LargeBinary, nullable=False),
    Index(None, "node", "kind", "id"),
    Index(None, "at"),
    Index(None, "event_log_sha256"),
    Index(None, "ima_log_sha256"),
    Index(None, "policy_sha256"),
    sqlite_autoincrement=True,
)

evidence_blobs = Table(
    "evidence_blobs",
    metadata,
    Column("sha256", LargeBinary, primary_key=True),
    Column("packed", LargeBinary, nullable=False),
    Column("used_at", Float, nullable=False),
)

escrow_keys = Table(
    "escrow_keys",
    metadata,
    Column("node", Text, ForeignKey("nodes.node"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("ak_name", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("share", LargeBinary, nullable=False),
    Column("least_tier", Text, nullable=False),
    Column("put_at", Float, nullable=False),
    Column("put_by", Text, nullable=False),
    Column("releases", Integer, nullable=False),
    Column("released_at", Float),
    Column("revoked_at", Float),
    Column("revoked_by", Text),
)

reference_values = Table(
    "reference_values",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("site", Text, ForeignKey("sites.site"), nullable=False),
    Column("document", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("withdrawn_at", Float),
    Column("withdrawn_by", Text),
    Index(None, "site", "withdrawn_at", "id"),
    sqlite_autoincrement=True,
)

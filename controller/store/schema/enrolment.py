"""Who came, who is expected, whose keys are void. See `controller.store.schema`."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, LargeBinary, Table, Text

from controller.store.schema.base import RowId, metadata

enrolments = Table(
    "enrolments",
    metadata,
    Column("enrolment", Text, primary_key=True),
    Column("node", Text, nullable=False),
    Column("site", Text),
    Column("ek_id", Text, nullable=False),
    Column("ek_public", LargeBinary, nullable=False),
    Column("ak_public", LargeBinary, nullable=False),
    Column("ak_name", Text, nullable=False),
    Column("ek_trust", Text, nullable=False),
    Column("csr", LargeBinary, nullable=False),
    Column("token_sha256", LargeBinary),
    Column("secret", LargeBinary, nullable=False),
    Column("wrong_proofs", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("replaces", Boolean, nullable=False),
    Column("note", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("decided_at", Float),
    Column("decided_by", Text),
    Column("tpm", Text, nullable=False, server_default="{}"),
    Index(None, "state", "created_at"),
    Index(None, "node"),
)

revoked_keys = Table(
    "revoked_keys",
    metadata,
    Column("ak_name", Text, primary_key=True),
    Column("node", Text, nullable=False),
    Column("certificate_sha256", LargeBinary),
    Column("revoked_at", Float, nullable=False),
    Column("revoked_by", Text, nullable=False),
    Index(None, "node"),
)

preregistrations = Table(
    "preregistrations",
    metadata,
    Column("ek_id", Text, primary_key=True),
    Column("node", Text, unique=True),
    Column("site", Text, ForeignKey("sites.site"), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("used_at", Float),
)

enrol_tokens = Table(
    "enrol_tokens",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("token_sha256", LargeBinary, nullable=False, unique=True),
    Column("node", Text),
    Column("site", Text, ForeignKey("sites.site"), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
    Column("used_by", Text),
)

"""Who may ask, and what was done. See `controller.store.schema`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, LargeBinary, Table, Text

from controller.store.schema.base import metadata

users = Table(
    "users",
    metadata,
    Column("name", Text, primary_key=True),
    Column("rights", Text, nullable=False),
    Column("password", Text),
    Column("totp_secret", LargeBinary),
    Column("totp_step", BigInteger, nullable=False),
    Column("setup_sha256", LargeBinary),
    Column("setup_expires_at", Float),
    Column("created_at", Float, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("disabled_at", Float),
    Column("disabled_by", Text),
    Column("last_login_at", Float),
)

recovery_codes = Table(
    "recovery_codes",
    metadata,
    Column("user", Text, ForeignKey("users.name"), primary_key=True),
    Column("sha256", LargeBinary, primary_key=True),
    Column("used_at", Float),
)

login_attempts = Table(
    "login_attempts",
    metadata,
    # Of whoever was tried, whether there is such a user or not: the answers must not differ.
    Column("name", Text, primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("failed_at", Float, nullable=False),
    Index(None, "failed_at"),
)

login_nonces = Table(
    "login_nonces",
    metadata,
    Column("sha256", LargeBinary, primary_key=True),
    Column("expires_at", Float, nullable=False),
    Index(None, "expires_at"),
)

api_sessions = Table(
    "api_sessions",
    metadata,
    Column("token_sha256", LargeBinary, primary_key=True),
    Column("person", Text, nullable=False),
    # Of somebody whom an issuer vouches for; NULL for a local user, whose rights are read with every request.
    Column("groups", Text),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index(None, "person", "created_at"),
    Index(None, "expires_at"),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("name", Text, primary_key=True),
    Column("token_sha256", LargeBinary, nullable=False, unique=True),
    Column("rights", Text, nullable=False),
    # Whose it is; NULL: a service account.
    Column("user", Text, ForeignKey("users.name")),
    # Where two persons are wanted, it is this one.
    Column("counts_as", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", Text),
    Column("expires_at", Float),
    Column("used_at", Float),
    Column("revoked_at", Float),
    Column("revoked_by", Text),
)

answers_kept = Table(
    "answers_kept",
    metadata,
    Column("account", Text, primary_key=True),
    Column("key_sha256", LargeBinary, primary_key=True),
    Column("request_sha256", LargeBinary, nullable=False),
    Column("holder", Text, nullable=False),
    Column("begun_at", Float, nullable=False),
    Column("held_at", Float, nullable=False),
    Column("acted", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    # Sealed; NULL until it was given.
    Column("answer", LargeBinary),
    Index(None, "begun_at"),
)

audit = Table(
    "audit",
    metadata,
    # Given by the code, without gaps: a sequence leaves one wherever a transaction is rolled back.
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("actor", Text, nullable=False),
    Column("act", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("leaf", LargeBinary, nullable=False),
)

audit_nodes = Table(
    "audit_nodes",
    metadata,
    # Inner nodes of the Merkle tree over `audit.leaf`, whole ones only; level 1 is over two leaves.
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
)

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("note", Text, nullable=False),
    Column("at", Float, nullable=False),
)

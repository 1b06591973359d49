"""The tables. Names and constraints only; what may be done with them is in the files beside.

Relies on UNIQUE constraints, not on reading first, for everything that must exist once: node id, EK, AK and
certificate (one row binds all four), one active hold for each target, one event for each (node, seq, at).
What is only read together with its row is one JSON document in it (`state`, `policy`); what is searched for is
a column. Times are seconds since 1970.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

RowId = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite counts up by itself only for the type INTEGER."""

sites = Table(
    "sites",
    metadata,
    Column("site", Text, primary_key=True),
    Column("policy", Text, nullable=False),
    Column("interval_s", Float, nullable=False),
    Column("baseline_name", Text),
    Column("baseline_version", BigInteger),
    Column("created_at", Float, nullable=False),
    Column("announced", Text, nullable=False, server_default=""),
)

nodes = Table(
    "nodes",
    metadata,
    Column("node", Text, primary_key=True),
    Column("site", Text, ForeignKey("sites.site"), nullable=False),
    Column("ek_id", Text, nullable=False, unique=True),
    Column("ek_public", LargeBinary, nullable=False),
    Column("ak_public", LargeBinary, nullable=False),
    Column("ak_name", Text, nullable=False, unique=True),
    Column("ek_trust", Text, nullable=False),
    Column("certificate_sha256", LargeBinary, unique=True),
    Column("next_certificate_sha256", LargeBinary, unique=True),
    Column("certificate_not_after", Float, nullable=False),
    Column("approved_at", Float, nullable=False),
    Column("approved_by", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("standing", Text, nullable=False),
    Column("standing_since", Float, nullable=False),
    Column("last_report_at", Float),
    Column("last_drift_at", Float),
    Column("connected", Boolean, nullable=False),
    Column("directive_number", BigInteger, nullable=False),
    Column("directive_issued_at", Float, nullable=False),
    Column("directive_due", Boolean, nullable=False),
    Column("wanted_posture", Text, nullable=False),
    Column("tpm", Text, nullable=False, server_default="{}"),
    Column("state", Text, nullable=False),
    Index(None, "site", "node"),
    Index(None, "standing", "last_report_at"),
)

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

baselines = Table(
    "baselines",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("sha256", Text, nullable=False),
    Column("summary", Text, nullable=False),
    Column("boot_section", LargeBinary, nullable=False),
    Column("ima_section", LargeBinary),
    Column("pushed_at", Float, nullable=False),
    Column("pushed_by", Text, nullable=False),
)

trust_files = Table(
    "trust_files",
    metadata,
    Column("path", Text, primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("name", Text, primary_key=True),
    Column("token_sha256", LargeBinary, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
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

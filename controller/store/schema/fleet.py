"""Sites and nodes. See `controller.store.schema`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, LargeBinary, Table, Text

from controller.store.schema.base import metadata

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
    # Chosen for this node; NULL: the site's.
    Column("baseline_name", Text),
    Column("baseline_version", BigInteger),
    Column("baseline_since", Float),
    Column("labels", Text, nullable=False, server_default="{}"),
    # As reported, so that nodes can be chosen by them.
    Column("reported_baseline", Text, nullable=False, server_default=""),
    Column("agent_version", Text, nullable=False, server_default=""),
    Column("tpm", Text, nullable=False, server_default="{}"),
    # The controller whose socket it is, and which of the node's sessions: a late close ends no later one.
    Column("session_holder", Text, nullable=False, server_default=""),
    Column("session_epoch", BigInteger, nullable=False, server_default="0"),
    Column("state", Text, nullable=False),
    # Each with all that a page in its order is told by (store.selecting).
    Index(None, "site", "standing", "node"),
    Index(None, "standing", "node", "site"),
    Index(None, "standing", "last_report_at", "node", "site"),
    Index(None, "standing", "standing_since", "node", "site"),
    Index(None, "site", "last_drift_at"),
    Index(None, "session_holder", "directive_due", "connected"),
)

node_labels = Table(
    "node_labels",
    metadata,
    Column("node", Text, ForeignKey("nodes.node"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Index(None, "key", "value", "node"),
)

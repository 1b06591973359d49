"""The first tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _api_tokens() -> None:
    op.create_table(
        "api_tokens",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_api_tokens")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_api_tokens_token_sha256")),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )


def _baselines() -> None:
    op.create_table(
        "baselines",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("boot_section", sa.LargeBinary(), nullable=False),
        sa.Column("pushed_at", sa.Float(), nullable=False),
        sa.Column("pushed_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_baselines")),
    )


def _enrolments() -> None:
    op.create_table(
        "enrolments",
        sa.Column("enrolment", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=True),
        sa.Column("ek_id", sa.Text(), nullable=False),
        sa.Column("ek_public", sa.LargeBinary(), nullable=False),
        sa.Column("ak_public", sa.LargeBinary(), nullable=False),
        sa.Column("ak_name", sa.Text(), nullable=False),
        sa.Column("ek_trust", sa.Text(), nullable=False),
        sa.Column("csr", sa.LargeBinary(), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("wrong_proofs", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("replaces", sa.Boolean(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("decided_at", sa.Float(), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("enrolment", name=op.f("pk_enrolments")),
    )
    with op.batch_alter_table("enrolments", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_enrolments_node"), ["node"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_enrolments_state_created_at"), ["state", "created_at"], unique=False
        )


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("stored_at", sa.Float(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("site", sa.Text(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("node", "seq", "at", name=op.f("uq_events_node_seq_at")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_events_node_kind_id"), ["node", "kind", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_events_site_id"), ["site", "id"], unique=False)


def _incidents() -> None:
    op.create_table(
        "incidents",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("findings", sa.Text(), nullable=False),
        sa.Column("done", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.Column("closed_at", sa.Float(), nullable=True),
        sa.Column("closed_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incidents")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("incidents", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_incidents_state_id"), ["state", "id"], unique=False)


def _sites() -> None:
    op.create_table(
        "sites",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("interval_s", sa.Float(), nullable=False),
        sa.Column("baseline_name", sa.Text(), nullable=True),
        sa.Column("baseline_version", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("site", name=op.f("pk_sites")),
    )


def _trust_files() -> None:
    op.create_table(
        "trust_files",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_trust_files")),
    )


def _enrol_tokens() -> None:
    op.create_table(
        "enrol_tokens",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("used_at", sa.Float(), nullable=True),
        sa.Column("used_by", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["site"], ["sites.site"], name=op.f("fk_enrol_tokens_site")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrol_tokens")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_enrol_tokens_token_sha256")),
    )


def _incident_nodes() -> None:
    op.create_table(
        "incident_nodes",
        sa.Column("incident", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["incident"], ["incidents.id"], name=op.f("fk_incident_nodes_incident")),
        sa.PrimaryKeyConstraint("incident", "node", "key", name=op.f("pk_incident_nodes")),
    )
    with op.batch_alter_table("incident_nodes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_incident_nodes_key_since"), ["key", "since"], unique=False)
        batch_op.create_index(batch_op.f("ix_incident_nodes_node_active"), ["node", "active"], unique=False)


def _nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("ek_id", sa.Text(), nullable=False),
        sa.Column("ek_public", sa.LargeBinary(), nullable=False),
        sa.Column("ak_public", sa.LargeBinary(), nullable=False),
        sa.Column("ak_name", sa.Text(), nullable=False),
        sa.Column("ek_trust", sa.Text(), nullable=False),
        sa.Column("certificate_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("next_certificate_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("certificate_not_after", sa.Float(), nullable=False),
        sa.Column("approved_at", sa.Float(), nullable=False),
        sa.Column("approved_by", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("standing", sa.Text(), nullable=False),
        sa.Column("standing_since", sa.Float(), nullable=False),
        sa.Column("last_report_at", sa.Float(), nullable=True),
        sa.Column("last_drift_at", sa.Float(), nullable=True),
        sa.Column("connected", sa.Boolean(), nullable=False),
        sa.Column("directive_number", sa.BigInteger(), nullable=False),
        sa.Column("directive_issued_at", sa.Float(), nullable=False),
        sa.Column("directive_due", sa.Boolean(), nullable=False),
        sa.Column("wanted_posture", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["site"], ["sites.site"], name=op.f("fk_nodes_site")),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_nodes")),
        sa.UniqueConstraint("ak_name", name=op.f("uq_nodes_ak_name")),
        sa.UniqueConstraint("certificate_sha256", name=op.f("uq_nodes_certificate_sha256")),
        sa.UniqueConstraint("ek_id", name=op.f("uq_nodes_ek_id")),
        sa.UniqueConstraint("next_certificate_sha256", name=op.f("uq_nodes_next_certificate_sha256")),
    )
    with op.batch_alter_table("nodes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_nodes_site_node"), ["site", "node"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_nodes_standing_last_report_at"), ["standing", "last_report_at"], unique=False
        )


def _preregistrations() -> None:
    op.create_table(
        "preregistrations",
        sa.Column("ek_id", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("used_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["site"], ["sites.site"], name=op.f("fk_preregistrations_site")),
        sa.PrimaryKeyConstraint("ek_id", name=op.f("pk_preregistrations")),
        sa.UniqueConstraint("node", name=op.f("uq_preregistrations_node")),
    )


def _boot_references() -> None:
    op.create_table(
        "boot_references",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("reference", sa.LargeBinary(), nullable=True),
        sa.Column("accepted_at", sa.Float(), nullable=True),
        sa.Column("candidate", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name=op.f("fk_boot_references_node")),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_boot_references")),
    )


def _holds() -> None:
    op.create_table(
        "holds",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("automatic", sa.Boolean(), nullable=False),
        sa.Column("incident", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("placed_at", sa.Float(), nullable=False),
        sa.Column("released_at", sa.Float(), nullable=True),
        sa.Column("released_by", sa.Text(), nullable=True),
        sa.Column("release_reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["incident"], ["incidents.id"], name=op.f("fk_holds_incident")),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name=op.f("fk_holds_node")),
        sa.ForeignKeyConstraint(["site"], ["sites.site"], name=op.f("fk_holds_site")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("holds", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_holds_automatic_placed_at"), ["automatic", "placed_at"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_holds_site_released_at"), ["site", "released_at"], unique=False)
        batch_op.create_index(
            "uq_holds_active_node",
            ["node"],
            unique=True,
            sqlite_where=sa.text("released_at IS NULL"),
            postgresql_where=sa.text("released_at IS NULL"),
        )
        batch_op.create_index(
            "uq_holds_active_site",
            ["site"],
            unique=True,
            sqlite_where=sa.text("released_at IS NULL AND node IS NULL"),
            postgresql_where=sa.text("released_at IS NULL AND node IS NULL"),
        )


def upgrade() -> None:
    """Tables in the order of their foreign keys."""
    _api_tokens()
    _audit()
    _baselines()
    _enrolments()
    _events()
    _incidents()
    _sites()
    _trust_files()
    _enrol_tokens()
    _incident_nodes()
    _nodes()
    _preregistrations()
    _boot_references()
    _holds()


def downgrade() -> None:
    with op.batch_alter_table("holds", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_holds_active_site",
            sqlite_where=sa.text("released_at IS NULL AND node IS NULL"),
            postgresql_where=sa.text("released_at IS NULL AND node IS NULL"),
        )
        batch_op.drop_index(
            "uq_holds_active_node",
            sqlite_where=sa.text("released_at IS NULL"),
            postgresql_where=sa.text("released_at IS NULL"),
        )
        batch_op.drop_index(batch_op.f("ix_holds_site_released_at"))
        batch_op.drop_index(batch_op.f("ix_holds_automatic_placed_at"))

    op.drop_table("holds")
    op.drop_table("boot_references")
    op.drop_table("preregistrations")
    with op.batch_alter_table("nodes", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_nodes_standing_last_report_at"))
        batch_op.drop_index(batch_op.f("ix_nodes_site_node"))

    op.drop_table("nodes")
    with op.batch_alter_table("incident_nodes", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_incident_nodes_node_active"))
        batch_op.drop_index(batch_op.f("ix_incident_nodes_key_since"))

    op.drop_table("incident_nodes")
    op.drop_table("enrol_tokens")
    op.drop_table("trust_files")
    op.drop_table("sites")
    with op.batch_alter_table("incidents", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_incidents_state_id"))

    op.drop_table("incidents")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_events_site_id"))
        batch_op.drop_index(batch_op.f("ix_events_node_kind_id"))

    op.drop_table("events")
    with op.batch_alter_table("enrolments", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_enrolments_state_created_at"))
        batch_op.drop_index(batch_op.f("ix_enrolments_node"))

    op.drop_table("enrolments")
    op.drop_table("baselines")
    op.drop_table("audit")
    op.drop_table("api_tokens")

"""Indexes for what is looked up with every report of a large fleet"""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_INDEXES = (
    ("incident_nodes", ("key", "incident")),
    ("incident_nodes", ("incident", "active")),
    ("nodes", ("site", "last_drift_at")),
    ("nodes", ("site", "standing")),
    ("nodes", ("standing", "node")),
    ("nodes", ("session_holder", "directive_due", "connected")),
)


def _name(table: str, columns: tuple[str, ...]) -> str:
    return f"ix_{table}_{'_'.join(columns)}"


def upgrade() -> None:
    """Add them."""
    for table, columns in _INDEXES:
        op.create_index(op.f(_name(table, columns)), table, list(columns))
    op.drop_index(op.f("ix_nodes_session_holder"), "nodes")


def downgrade() -> None:
    """Drop them."""
    op.create_index(op.f("ix_nodes_session_holder"), "nodes", ["session_holder"])
    for table, columns in _INDEXES:
        op.drop_index(op.f(_name(table, columns)), table)

"""Indexes for what is looked up with every report of a large fleet"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_INDEXES = (
    ("incident_nodes", ("key", "incident")),
    ("incident_nodes", ("incident", "active")),
    ("nodes", ("site", "last_drift_at")),
)


def _name(table: str, columns: tuple[str, ...]) -> str:
    return f"ix_{table}_{'_'.join(columns)}"


def upgrade() -> None:
    """Add them."""
    for table, columns in _INDEXES:
        op.create_index(op.f(_name(table, columns)), table, list(columns))


def downgrade() -> None:
    """Drop them."""
    for table, columns in _INDEXES:
        op.drop_index(op.f(_name(table, columns)), table)

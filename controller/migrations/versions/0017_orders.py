"""Indexes by which nodes are listed in each order: they hold all that a page is told by"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_NEW = (
    ("site", "standing", "node"),
    ("standing", "node", "site"),
    ("standing", "last_report_at", "node", "site"),
    ("standing", "standing_since", "node", "site"),
)
_OLD = (("site", "node"), ("site", "standing"), ("standing", "node"), ("standing", "last_report_at"))
"""What they are for, one of the new is for as well: a controller of the version before goes on as quickly."""


def _name(columns: tuple[str, ...]) -> str:
    return f"ix_nodes_{'_'.join(columns)}"


def upgrade() -> None:
    """Add them, and then drop the old: so many that each report writes to as before."""
    for columns in _NEW:
        op.create_index(op.f(_name(columns)), "nodes", list(columns))
    for columns in _OLD:
        op.drop_index(op.f(_name(columns)), "nodes")


def downgrade() -> None:
    """Put the old ones back."""
    for columns in _OLD:
        op.create_index(op.f(_name(columns)), "nodes", list(columns))
    for columns in _NEW:
        op.drop_index(op.f(_name(columns)), "nodes")

"""Attestation in depth: IMA policy of a baseline, claims of a boot"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _ima() -> None:
    op.add_column("baselines", sa.Column("ima_section", sa.LargeBinary(), nullable=True))
    op.create_table(
        "boot_claims",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("claims", sa.LargeBinary(), nullable=False),
        sa.Column("recorded_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["node"], ["nodes.node"], name=op.f("fk_boot_claims_node")),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_boot_claims")),
    )


def _without_ima() -> None:
    op.drop_table("boot_claims")
    with op.batch_alter_table("baselines", schema=None) as batch_op:
        batch_op.drop_column("ima_section")


def upgrade() -> None:
    """Each part adds its own tables; none depends on another."""
    _ima()


def downgrade() -> None:
    _without_ima()

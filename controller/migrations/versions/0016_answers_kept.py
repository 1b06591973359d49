"""Answers that are kept by Idempotency-Key"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "answers_kept",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("key_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("begun_at", sa.Float(), nullable=False),
        sa.Column("held_at", sa.Float(), nullable=False),
        sa.Column("acted", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("account", "key_sha256", name=op.f("pk_answers_kept")),
    )
    op.create_index(op.f("ix_answers_kept_begun_at"), "answers_kept", ["begun_at"])


def downgrade() -> None:
    op.drop_table("answers_kept")

"""People: users, sessions, rights over sites; tokens that are revoked and not forgotten"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def _users() -> None:
    op.create_table(
        "users",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("rights", sa.Text(), nullable=False),
        sa.Column("password", sa.Text(), nullable=True),
        sa.Column("totp_secret", sa.LargeBinary(), nullable=True),
        sa.Column("totp_step", sa.BigInteger(), nullable=False),
        sa.Column("setup_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("setup_expires_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("disabled_at", sa.Float(), nullable=True),
        sa.Column("disabled_by", sa.Text(), nullable=True),
        sa.Column("last_login_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_users")),
    )
    op.create_table(
        "recovery_codes",
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("used_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["user"], ["users.name"], name=op.f("fk_recovery_codes_user")),
        sa.PrimaryKeyConstraint("user", "sha256", name=op.f("pk_recovery_codes")),
    )


def _logins() -> None:
    op.create_table(
        "login_attempts",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_login_attempts")),
    )
    op.create_index(op.f("ix_login_attempts_failed_at"), "login_attempts", ["failed_at"])
    op.create_table(
        "login_nonces",
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_login_nonces")),
    )
    op.create_index(op.f("ix_login_nonces_expires_at"), "login_nonces", ["expires_at"])
    op.create_table(
        "api_sessions",
        sa.Column("token_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("groups", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("token_sha256", name=op.f("pk_api_sessions")),
    )
    op.create_index(op.f("ix_api_sessions_person_created_at"), "api_sessions", ["person", "created_at"])
    op.create_index(op.f("ix_api_sessions_expires_at"), "api_sessions", ["expires_at"])


def _tokens() -> None:
    """Tokens from before keep what they could: their role, for the whole fleet; each counts as itself."""
    with op.batch_alter_table("api_tokens", schema=None) as batch_op:
        batch_op.add_column(sa.Column("rights", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("user", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("counts_as", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("created_by", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("used_at", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("revoked_at", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("revoked_by", sa.Text(), nullable=True))
    op.execute(
        "UPDATE api_tokens SET counts_as = name, "
        """rights = '[{"role":"' || role || '","sites":"all"}]'"""
    )
    with op.batch_alter_table("api_tokens", schema=None) as batch_op:
        batch_op.alter_column("rights", existing_type=sa.Text(), nullable=False)
        batch_op.alter_column("counts_as", existing_type=sa.Text(), nullable=False)
        batch_op.create_foreign_key(op.f("fk_api_tokens_user"), "users", ["user"], ["name"])
        batch_op.drop_column("role")


def upgrade() -> None:
    _users()
    _logins()
    _tokens()


def downgrade() -> None:
    """Only for a trial: rights over single sites become none at all, and revoked tokens go."""
    op.execute("DELETE FROM api_tokens WHERE revoked_at IS NOT NULL")
    op.execute(
        """DELETE FROM api_tokens WHERE rights NOT IN ('[{"role":"admin","sites":"all"}]', '[{"role":"viewer","sites":"all"}]')"""
    )
    with op.batch_alter_table("api_tokens", schema=None) as batch_op:
        batch_op.add_column(sa.Column("role", sa.Text(), nullable=True))
    op.execute(
        """UPDATE api_tokens SET role = CASE WHEN rights LIKE '%"admin"%' THEN 'admin' ELSE 'viewer' END"""
    )
    with op.batch_alter_table("api_tokens", schema=None) as batch_op:
        batch_op.alter_column("role", existing_type=sa.Text(), nullable=False)
        batch_op.drop_constraint(op.f("fk_api_tokens_user"), type_="foreignkey")
        for column in ("rights", "user", "counts_as", "created_by", "used_at", "revoked_at", "revoked_by"):
            batch_op.drop_column(column)
    for table in ("api_sessions", "login_nonces", "login_attempts", "recovery_codes", "users"):
        op.drop_table(table)

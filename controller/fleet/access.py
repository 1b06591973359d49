"""Use cases of admin tokens."""

from __future__ import annotations

from contract.errors import Rejected
from contract.names import checked_name
from controller.records import ApiTokenView, Role
from controller.store import Transaction, access, audit


def add(
    tx: Transaction,
    name: str,
    role: Role,
    token_sha256: bytes,
    *,
    expires_at: float | None,
    actor: str,
    now: float,
) -> ApiTokenView:
    """See Fleet.add_api_token."""
    checked_name(name, "token")
    if access.by_name(tx, name) is not None or access.by_sha256(tx, token_sha256) is not None:
        raise Rejected("token.exists", name)
    access.add(tx, name, role, token_sha256, expires_at=expires_at, now=now)
    audit.note(tx, actor=actor, act="token.added", target=name, reason=f"role {role}", now=now)
    return ApiTokenView(name=name, role=role, created_at=now, expires_at=expires_at)


def find(tx: Transaction, token_sha256: bytes, *, now: float) -> ApiTokenView | None:
    """See Fleet.api_token."""
    found = access.by_sha256(tx, token_sha256)
    if found is None or (found.expires_at is not None and found.expires_at <= now):
        return None
    return found


def list_(tx: Transaction) -> list[ApiTokenView]:
    """See Fleet.list_api_tokens."""
    return access.all_(tx)


def revoke(tx: Transaction, name: str, *, actor: str, now: float) -> None:
    """See Fleet.revoke_api_token."""
    if not access.remove(tx, name):
        raise Rejected("token.unknown", name)
    audit.note(tx, actor=actor, act="token.revoked", target=name, reason="", now=now)

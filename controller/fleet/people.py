"""Who may ask: tokens and people, over one store; one transaction each. See `controller.fleet` for what every use case keeps to."""

from __future__ import annotations

from collections.abc import Sequence

from controller.fleet import tokens
from controller.people_records import ApiTokenView
from controller.permissions import Person, Right, Scope
from controller.store import Store


class People:
    """Tokens and people."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def whose(self, token_sha256: bytes, *, now: float) -> Person | None:
        """Who comes with this token; None when it is unknown, expired or revoked."""
        return await self._store.run(lambda tx: tokens.find(tx, token_sha256, now=now))

    async def add_token(
        self,
        name: str,
        rights: Sequence[Right],
        token_sha256: bytes,
        *,
        by: Person,
        own: bool = False,
        expires_at: float | None,
        now: float,
    ) -> ApiTokenView:
        """Make a token; `own`: of the person's own, else a service account, which belongs to nobody. Raises Rejected
        `rights.beyond`, `token.exists`, `user.exists`, `token.nobodys`, `name.invalid`."""
        return await self._store.run(
            lambda tx: tokens.add(
                tx, name, rights, token_sha256, by=by, own=own, expires_at=expires_at, now=now
            )
        )

    async def list_tokens(self, *, scope: Scope) -> list[ApiTokenView]:
        """By name: those that reach no further than the scope, without revoked ones."""
        return await self._store.run(lambda tx: tokens.list_(tx, scope))

    async def set_token_rights(
        self, name: str, rights: Sequence[Right], *, by: Person, reason: str, now: float
    ) -> ApiTokenView:
        """Give a token other rights. Raises Rejected `token.unknown`, `rights.beyond`, `people.last-admin`,
        `reason.missing`."""
        return await self._store.run(
            lambda tx: tokens.set_rights(tx, name, rights, by=by, reason=reason, now=now)
        )

    async def renew_token(
        self, name: str, token_sha256: bytes, *, by: Person, expires_at: float | None, now: float
    ) -> ApiTokenView:
        """Put a new secret in a token's place. Raises Rejected `token.unknown`."""
        return await self._store.run(
            lambda tx: tokens.renew(tx, name, token_sha256, by=by, expires_at=expires_at, now=now)
        )

    async def revoke_token(self, name: str, *, by: Person, now: float) -> None:
        """Make a token worthless at once. Raises Rejected `token.unknown`, `people.last-admin`."""
        await self._store.run(lambda tx: tokens.revoke(tx, name, by=by, now=now))

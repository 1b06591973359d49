"""Who may ask: tokens and people, over one store; one transaction each. See `controller.fleet` for what every use case keeps to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from controller.fleet import logins, tokens, users
from controller.people_records import ApiTokenView, UserView
from controller.permissions import Person, Right, Scope
from controller.store import Store, Transaction

RightsOf = Callable[[Sequence[str]], tuple[Right, ...]]
"""What the configuration gives to groups that an issuer names."""


def nobody(groups: Sequence[str]) -> tuple[Right, ...]:
    """Give nothing to any group."""
    return ()


class People:
    """Tokens and people."""

    def __init__(self, store: Store, rights_of: RightsOf = nobody) -> None:
        """`rights_of` is asked with every request: what the configuration says holds at once."""
        self._store = store
        self._rights_of = rights_of

    async def whose(self, token_sha256: bytes, *, now: float) -> Person | None:
        """Who comes with this token; None when it is unknown, expired or revoked, or its person is disabled."""

        def find(tx: Transaction) -> Person | None:
            token = tokens.find(tx, token_sha256, now=now)
            return token or logins.find(tx, token_sha256, self._rights_of, now)

        return await self._store.run(find)

    # -- tokens --------------------------------------------------------------------------------------------

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
        `rights.beyond`, `token.exists`, `token.too-many`, `user.exists`, `token.nobodys`, `name.invalid`."""
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
        """Put a new secret in a token's place. Raises Rejected `token.unknown`, `token.anothers`."""
        return await self._store.run(
            lambda tx: tokens.renew(tx, name, token_sha256, by=by, expires_at=expires_at, now=now)
        )

    async def revoke_token(self, name: str, *, by: Person, now: float) -> None:
        """Make a token worthless at once. Raises Rejected `token.unknown`, `people.last-admin`."""
        await self._store.run(lambda tx: tokens.revoke(tx, name, by=by, now=now))

    # -- people --------------------------------------------------------------------------------------------

    async def add_user(
        self,
        name: str,
        rights: Sequence[Right],
        setup_sha256: bytes,
        *,
        by: Person,
        setup_expires_at: float,
        now: float,
    ) -> UserView:
        """Make a person, who is set up with a code that is good once. Raises Rejected as `add_token`."""
        return await self._store.run(
            lambda tx: users.add(
                tx, name, rights, setup_sha256, by=by, setup_expires_at=setup_expires_at, now=now
            )
        )

    async def list_users(self, *, scope: Scope, now: float) -> list[UserView]:
        """By name: those whose rights reach no further than the scope."""
        return await self._store.run(lambda tx: users.list_(tx, scope, now))

    async def set_user_rights(
        self, name: str, rights: Sequence[Right], *, by: Person, reason: str, now: float
    ) -> UserView:
        """Give a person other rights; they hold with the next request. Raises Rejected `user.unknown`, `rights.beyond`,
        `people.last-admin`, `reason.missing`."""
        return await self._store.run(
            lambda tx: users.set_rights(tx, name, rights, by=by, reason=reason, now=now)
        )

    async def disable_user(self, name: str, *, by: Person, reason: str, now: float) -> UserView:
        """End every session and every token of a person's own. Raises Rejected `user.unknown`, `user.decided`,
        `people.last-admin`, `reason.missing`."""
        return await self._store.run(lambda tx: users.disable(tx, name, by=by, reason=reason, now=now))

    async def enable_user(self, name: str, *, by: Person, reason: str, now: float) -> UserView:
        """Let a disabled person log in again. Raises Rejected `user.unknown`, `user.decided`, `reason.missing`."""
        return await self._store.run(lambda tx: users.enable(tx, name, by=by, reason=reason, now=now))

    async def reset_user(
        self,
        name: str,
        setup_sha256: bytes,
        *,
        by: Person,
        reason: str,
        setup_expires_at: float,
        now: float,
    ) -> UserView:
        """Forget password, codes and sessions; the person is set up anew. Raises Rejected `user.unknown`,
        `people.last-admin`, `reason.missing`."""
        return await self._store.run(
            lambda tx: users.reset(
                tx, name, setup_sha256, by=by, reason=reason, setup_expires_at=setup_expires_at, now=now
            )
        )

    async def end_sessions(self, name: str, *, by: Person, reason: str, now: float) -> int:
        """End every session of a person, also of one whom an issuer vouches for; returns how many. Raises Rejected
        `reason.missing`."""
        return await self._store.run(
            lambda tx: logins.end_sessions(tx, name, actor=by.name, reason=reason, now=now)
        )

    async def unlock_user(self, name: str, *, by: Person, reason: str, now: float) -> UserView:
        """Forget wrong tries. Raises Rejected `user.unknown`, `reason.missing`."""
        return await self._store.run(lambda tx: users.unlock(tx, name, by=by, reason=reason, now=now))

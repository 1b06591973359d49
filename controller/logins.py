"""Logging in by password and code: what is slow runs beside the loop, a few at a time, between two transactions.

Refuses to do: say which of name, password and code was wrong; hash for more than MAX_WAITING at once; log or return what
was typed. Relies on: `controller.fleet.logins` for every decision, `controller.lockout` for how many tries there are.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from typing import Final, TypeVar

from contract.errors import Rejected
from contract.grant import new_code
from controller import passwords, totp
from controller.fleet import logins
from controller.fleet.logins import Begun
from controller.people_records import LoggedIn, SetUp
from controller.permissions import Person
from controller.store import Store

T = TypeVar("T")

SESSION_PREFIX: Final = "rfs_"
SETUP_PREFIX: Final = "rfu_"
AT_ONCE: Final = 2
"""Each takes 64 MiB and a core."""
MAX_WAITING: Final = 64
RECOVERY_CODES: Final = 10


def digest_of(token: str) -> bytes:
    """Return what is stored of a token of 256 random bits."""
    return hashlib.sha256(token.encode()).digest()


def new_session_token() -> str:
    """Return a new token of a session: 256 random bits."""
    return SESSION_PREFIX + secrets.token_urlsafe(32)


def new_setup_code() -> str:
    """Return a code with which a person is set up, once."""
    return SETUP_PREFIX + secrets.token_urlsafe(32)


class Logins:
    """Logging in over one store."""

    def __init__(self, store: Store, key: bytes, *, issuer: str, session_s: float) -> None:
        """`key` seals the secrets of one-time codes; `issuer` is what authenticators show."""
        self._store = store
        self._key = key
        self._issuer = issuer
        self._session_s = session_s
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def log_in(self, name: str, password: str, code: str, *, now: float) -> LoggedIn:
        """Begin a session. Raises Rejected `login.refused`, `login.locked`, `login.busy`."""
        begun, right = await self._compared(name, password, now)
        token = new_session_token()
        person = await self._store.run(
            lambda tx: logins.finish(
                tx,
                name,
                begun,
                code,
                digest_of(token),
                right_password=right,
                step_of=self._step_of(now),
                expires_at=now + self._session_s,
                now=now,
            )
        )
        return self._logged_in(token, person, now)

    async def log_out(self, token_sha256: bytes, person: Person, *, now: float) -> None:
        """End a session. Raises Rejected `login.none`."""
        await self._store.run(lambda tx: logins.log_out(tx, token_sha256, person, now))

    async def offer(self, name: str, setup: str, *, now: float) -> SetUp:
        """Make the secret that an authenticator is given; it counts once its first code has come back. Raises Rejected
        `login.setup`."""
        secret = totp.new_secret()
        kept = totp.sealed(self._key, name, secret)
        await self._store.run(lambda tx: logins.offer(tx, name, digest_of(setup), kept, now))
        return SetUp(secret=totp.shown(secret), uri=totp.uri(secret, user=name, issuer=self._issuer))

    async def set_up(self, name: str, setup: str, password: str, code: str, *, now: float) -> LoggedIn:
        """Take password and first code, and begin a session. Raises Rejected `login.setup`, `login.code`, `password.*`,
        `login.busy`."""
        passwords.check_new(password, user=name)
        step_of, known = self._step_of(now), digest_of(setup)
        await self._store.run(
            lambda tx: logins.check_setup(tx, name, known, code=code, step_of=step_of, now=now)
        )
        kept = await self._slowly(lambda: passwords.hashed(password))
        token = new_session_token()
        recovery = [new_code() for _ in range(RECOVERY_CODES)]
        person = await self._store.run(
            lambda tx: logins.set_up(
                tx,
                name,
                known,
                code=code,
                password=kept,
                recovery=recovery,
                token_sha256=digest_of(token),
                step_of=step_of,
                expires_at=now + self._session_s,
                now=now,
            )
        )
        return self._logged_in(token, person, now, recovery)

    async def set_password(self, name: str, password: str, code: str, new: str, *, now: float) -> None:
        """Replace one's own password; every session ends. Raises Rejected `login.refused`, `login.locked`, `password.*`,
        `login.busy`."""
        passwords.check_new(new, user=name)
        begun, right = await self._compared(name, password, now)
        kept = await self._slowly(lambda: passwords.hashed(new))
        await self._store.run(
            lambda tx: logins.set_password(
                tx, name, begun, code, kept, right_password=right, step_of=self._step_of(now), now=now
            )
        )

    async def _compared(self, name: str, password: str, now: float) -> tuple[Begun, bool]:
        """Count a try, then compare: nobody's password takes as long as somebody's."""
        if self._waiting >= MAX_WAITING:
            raise Rejected("login.busy", "too many log in at this moment; try again")
        begun = await self._store.run(lambda tx: logins.begin(tx, name, now))
        return begun, await self._slowly(lambda: passwords.matches(password, begun.password))

    async def _slowly(self, work: Callable[[], T]) -> T:
        if self._waiting >= MAX_WAITING:
            raise Rejected("login.busy", "too many log in at this moment; try again")
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1

    def _step_of(self, now: float) -> logins.CodeStep:
        return lambda user, stored, code, after: totp.step_of(
            totp.opened(self._key, user, stored), code, now, after=after
        )

    def _logged_in(
        self, token: str, person: Person, now: float, recovery: list[str] | None = None
    ) -> LoggedIn:
        return LoggedIn(
            token=token,
            name=person.name,
            rights=person.rights,
            expires_at=now + self._session_s,
            recovery_codes=recovery or [],
        )

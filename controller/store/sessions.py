"""Rows of people's sessions and of the nonces of logins that an issuer vouches for."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import delete, func, insert, select

from controller.records import Record
from controller.store import Transaction
from controller.store.schema import api_sessions, login_nonces

MAX_SESSIONS = 32
"""Of one person; the oldest goes."""
MAX_NONCES = 10_000
_decode_groups = msgspec.json.Decoder(list[str]).decode


class SessionRow(Record, frozen=True, kw_only=True):
    """A session."""

    person: str
    groups: list[str] | None
    """As the issuer said; None for a local user."""
    created_at: float
    expires_at: float


def add(
    tx: Transaction,
    token_sha256: bytes,
    person: str,
    *,
    groups: Sequence[str] | None,
    expires_at: float,
    now: float,
) -> None:
    """Begin a session; what has ended long since goes, and of too many the oldest."""
    tx.execute(delete(api_sessions).where(api_sessions.c.expires_at <= now))
    of_person = select(api_sessions.c.token_sha256).where(api_sessions.c.person == person)
    beyond = of_person.order_by(api_sessions.c.created_at.desc()).offset(MAX_SESSIONS - 1).limit(MAX_SESSIONS)
    old = tx.execute(beyond).scalars().all()
    tx.execute(delete(api_sessions).where(api_sessions.c.token_sha256.in_(old)))
    tx.execute(
        insert(api_sessions).values(
            token_sha256=token_sha256,
            person=person,
            groups=None if groups is None else msgspec.json.encode(list(groups)).decode(),
            created_at=now,
            expires_at=expires_at,
        )
    )


def find(tx: Transaction, token_sha256: bytes, now: float) -> SessionRow | None:
    """The session of this token, if it has not ended."""
    row = tx.execute(
        select(
            api_sessions.c.person, api_sessions.c.groups, api_sessions.c.created_at, api_sessions.c.expires_at
        ).where(api_sessions.c.token_sha256 == token_sha256, api_sessions.c.expires_at > now)
    ).first()
    if row is None:
        return None
    groups = None if row.groups is None else _decode_groups(row.groups)
    return SessionRow(person=row.person, groups=groups, created_at=row.created_at, expires_at=row.expires_at)


def end(tx: Transaction, token_sha256: bytes) -> bool:
    """End one; False where there is none."""
    return tx.execute(delete(api_sessions).where(api_sessions.c.token_sha256 == token_sha256)).rowcount == 1


def end_all(tx: Transaction, person: str) -> int:
    """End all of a person."""
    return tx.execute(delete(api_sessions).where(api_sessions.c.person == person)).rowcount


def add_nonce(tx: Transaction, sha256: bytes, *, expires_at: float, now: float) -> bool:
    """Note a nonce that was given out; False where too many are."""
    tx.execute(delete(login_nonces).where(login_nonces.c.expires_at <= now))
    if tx.execute(select(func.count()).select_from(login_nonces)).scalar_one() >= MAX_NONCES:
        return False
    tx.execute(insert(login_nonces).values(sha256=sha256, expires_at=expires_at))
    return True


def use_nonce(tx: Transaction, sha256: bytes, now: float) -> bool:
    """Use a nonce up; False where it was never given out, has ended, or somebody was first."""
    done = tx.execute(
        delete(login_nonces).where(login_nonces.c.sha256 == sha256, login_nonces.c.expires_at > now)
    )
    return done.rowcount == 1

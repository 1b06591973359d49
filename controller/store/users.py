"""Rows of people who log in here, of their sessions, and of wrong tries by name."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from controller.lockout import FORGOTTEN_AFTER_S
from controller.permissions import Right
from controller.records import Record
from controller.store import Transaction
from controller.store.schema import login_attempts, recovery_codes, users

MAX_TRIED_NAMES = 100_000
"""Names that somebody has tried of late; past it only names of users are counted."""
_decode_rights = msgspec.json.Decoder(tuple[Right, ...]).decode
_encode = msgspec.json.encode


class UserRow(Record, frozen=True, kw_only=True):
    """A person who logs in here."""

    name: str
    rights: tuple[Right, ...]
    password: str | None
    """PHC string; None until it is set up."""
    totp_secret: bytes | None
    """Sealed."""
    totp_step: int
    """The last one used."""
    setup_sha256: bytes | None
    setup_expires_at: float | None
    created_at: float
    created_by: str
    disabled_at: float | None
    disabled_by: str | None
    last_login_at: float | None

    @property
    def active(self) -> bool:
        """Whether this person can log in."""
        return self.disabled_at is None and self.password is not None


def _row(row: Row[tuple[object, ...]]) -> UserRow:
    values = dict(row._mapping)
    values["rights"] = _decode_rights(values["rights"])
    return UserRow(**values)


def exists(tx: Transaction, name: str) -> bool:
    """Whether there is such a user, also a disabled one."""
    return tx.execute(select(users.c.name).where(users.c.name == name)).first() is not None


def load(tx: Transaction, name: str, *, lock: bool = False) -> UserRow | None:
    """One user."""
    statement = select(*users.c).where(users.c.name == name)
    row = tx.execute(statement.with_for_update() if lock else statement).first()
    return None if row is None else _row(row)


def all_(tx: Transaction) -> list[UserRow]:
    """By name."""
    return [_row(row) for row in tx.execute(select(*users.c).order_by(users.c.name))]


def add(
    tx: Transaction,
    name: str,
    rights: Sequence[Right],
    *,
    setup_sha256: bytes,
    setup_expires_at: float,
    actor: str,
    now: float,
) -> None:
    """Raises the database's own integrity error when the name is taken."""
    tx.execute(
        insert(users).values(
            name=name,
            rights=_encode(rights).decode(),
            totp_step=0,
            setup_sha256=setup_sha256,
            setup_expires_at=setup_expires_at,
            created_at=now,
            created_by=actor,
        )
    )


def change(tx: Transaction, name: str, **values: object) -> None:
    """Write columns by name."""
    tx.execute(update(users).where(users.c.name == name).values(values))


def set_rights(tx: Transaction, name: str, rights: Sequence[Right]) -> None:
    """Give a user other rights."""
    change(tx, name, rights=_encode(rights).decode())


def use_step(tx: Transaction, name: str, step: int) -> bool:
    """Use up a one-time code and all before it; False where somebody was first."""
    done = tx.execute(
        update(users).where(users.c.name == name, users.c.totp_step < step).values(totp_step=step)
    )
    return done.rowcount == 1


# -- recovery codes --------------------------------------------------------------------------------------


def set_recovery_codes(tx: Transaction, name: str, digests: Sequence[bytes]) -> None:
    """Replace all of a user."""
    tx.execute(delete(recovery_codes).where(recovery_codes.c.user == name))
    if digests:
        tx.execute(insert(recovery_codes), [{"user": name, "sha256": digest} for digest in digests])


def use_recovery_code(tx: Transaction, name: str, sha256: bytes, now: float) -> bool:
    """Use one up; False where there is none, or it was used."""
    done = tx.execute(
        update(recovery_codes)
        .where(
            recovery_codes.c.user == name,
            recovery_codes.c.sha256 == sha256,
            recovery_codes.c.used_at.is_(None),
        )
        .values(used_at=now)
    )
    return done.rowcount == 1


def recovery_codes_left(tx: Transaction) -> dict[str, int]:
    """Unused ones by user."""
    unused = select(recovery_codes.c.user, func.count()).where(recovery_codes.c.used_at.is_(None))
    return {row[0]: row[1] for row in tx.execute(unused.group_by(recovery_codes.c.user))}


# -- wrong tries -----------------------------------------------------------------------------------------


def tries(tx: Transaction, name: str, now: float, *, most: int = MAX_TRIED_NAMES) -> tuple[int, float] | None:
    """Return failures and time of the last for a name, locked until this transaction ends: one try is looked at after the other.

    None: `most` names are on record, and this one is no user's.
    """
    stale = login_attempts.c.failed_at < now - FORGOTTEN_AFTER_S
    tx.execute(delete(login_attempts).where(stale))
    make = postgresql_insert if tx.dialect.name == "postgresql" else sqlite_insert
    counted = tx.execute(select(func.count()).select_from(login_attempts)).scalar_one()
    if counted < most or exists(tx, name):
        blank = make(login_attempts).values(name=name, failures=0, failed_at=now)
        tx.execute(blank.on_conflict_do_nothing(index_elements=["name"]))
    of_name = select(login_attempts.c.failures, login_attempts.c.failed_at)
    row = tx.execute(of_name.where(login_attempts.c.name == name).with_for_update()).first()
    return None if row is None else (row.failures, row.failed_at)


def note_try(tx: Transaction, name: str, failures: int, now: float) -> None:
    """Count a try as failed, before anything of it is looked at."""
    tx.execute(
        update(login_attempts).where(login_attempts.c.name == name).values(failures=failures, failed_at=now)
    )


def forget_tries(tx: Transaction, name: str) -> None:
    """It was the right person, or somebody vouches for them."""
    tx.execute(delete(login_attempts).where(login_attempts.c.name == name))


def tries_of_all(tx: Transaction) -> dict[str, tuple[int, float]]:
    """Failures and time of the last, by name of a user."""
    known = login_attempts.join(users, users.c.name == login_attempts.c.name)
    rows = tx.execute(
        select(login_attempts.c.name, login_attempts.c.failures, login_attempts.c.failed_at).select_from(
            known
        )
    )
    return {row[0]: (row[1], row[2]) for row in rows}

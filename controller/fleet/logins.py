"""Use cases of logging in: the parts that are one transaction each. What is slow (passwords) happens between them.

1. A try is counted as failed before anything of it is looked at (`begin`): however many come at once, at however many
   controllers, no more than the limit are looked at. The right one is forgiven (`finish`).
2. One answer for a wrong name, password or code, and for a name that nobody has: `login.refused`.
3. A code is used up in the transaction that lets somebody in, and only where the password was right; it is good once.
4. What was compared with the password must still be what is stored: a reset meanwhile wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from hashlib import sha256

from contract.errors import Rejected
from contract.grant import plain_code
from controller import lockout
from controller.fleet import acts
from controller.permissions import Person, Right
from controller.records import Record
from controller.store import Refused, Transaction, events, sessions
from controller.store import users as rows
from controller.store.users import UserRow

CodeStep = Callable[[str, bytes, str, int], int | None]
"""Given user, sealed secret, code and the last step used: the step that the code belongs to."""
_BY_CLOCK = re.compile(r"[0-9]{6}", re.ASCII)
_REFUSED = "wrong name, password or code"


class Begun(Record, frozen=True, kw_only=True):
    """A try that may be looked at."""

    password: str | None
    """What is kept of the user's; None where there is no such user, or one who cannot log in."""


def begin(tx: Transaction, name: str, now: float) -> Begun | Refused:
    """Count a try (1). Raises Rejected `login.locked`."""
    counted = rows.tries(tx, name, now)
    if counted is not None:
        failures, failed_at = counted
        left = lockout.left_s(failures, failed_at, now)
        if left > 0:
            return Refused(Rejected("login.locked", f"too many wrong tries; wait {left:.0f} s"))
        rows.note_try(tx, name, failures + 1, now)
        if failures + 1 == lockout.FREE_TRIES and rows.exists(tx, name):
            _tell_locked(tx, name, now)
    row = rows.load(tx, name)
    return Begun(password=row.password if row is not None and row.active else None)


def finish(
    tx: Transaction,
    name: str,
    begun: Begun,
    code: str,
    token_sha256: bytes,
    *,
    right_password: bool,
    step_of: CodeStep,
    expires_at: float,
    now: float,
) -> Person | Refused:
    """Let somebody in. Raises Rejected `login.refused`."""
    row = rows.load(tx, name, lock=True)
    if row is None or not _is(row, begun, right_password) or not _uses_code(tx, row, code, step_of, now):
        return Refused(Rejected("login.refused", _REFUSED))
    return let_in(tx, row, token_sha256, expires_at=expires_at, now=now)


def let_in(tx: Transaction, row: UserRow, token_sha256: bytes, *, expires_at: float, now: float) -> Person:
    """Begin a session of a user who has shown who they are."""
    rows.forget_tries(tx, row.name)
    rows.change(tx, row.name, last_login_at=now)
    sessions.add(tx, token_sha256, row.name, groups=None, expires_at=expires_at, now=now)
    acts.record(
        tx,
        "login",
        f"{row.name} logged in",
        actor=row.name,
        target=row.name,
        reason="password and code",
        now=now,
    )
    return Person(row.name, row.rights, user=row.name)


def ask(tx: Transaction, nonce_sha256: bytes, *, expires_at: float, now: float) -> None:
    """Note a nonce that is given out for a login on an issuer's word. Raises Rejected `login.busy`."""
    if not sessions.add_nonce(tx, nonce_sha256, expires_at=expires_at, now=now):
        raise Rejected("login.busy", "too many log in at this moment; try again")


def let_in_vouched(
    tx: Transaction,
    name: str,
    groups: Sequence[str],
    nonce_sha256: bytes,
    token_sha256: bytes,
    *,
    rights: Sequence[Right],
    expires_at: float,
    now: float,
) -> Refused | None:
    """Begin a session of somebody whom an issuer vouches for; the nonce is used up, whatever comes of it. Raises Rejected
    `oidc.nonce`, `login.no-rights`."""
    if not sessions.use_nonce(tx, nonce_sha256, now):
        return Refused(Rejected("oidc.nonce", "not one of ours, used, or too old: log in again"))
    if not rights:
        return Refused(Rejected("login.no-rights", f"{name} is in no group that has any right here"))
    sessions.add(tx, token_sha256, name, groups=groups, expires_at=expires_at, now=now)
    why = f"vouched for by the issuer, with groups {', '.join(groups)}"[: acts.MAX_REASON_CHARS]
    acts.record(tx, "login", f"{name} logged in", actor=name, target=name, reason=why, now=now)
    return None


def end_sessions(tx: Transaction, name: str, *, actor: str, reason: str, now: float) -> int:
    """End every session of a person, local or vouched for; return how many there were."""
    why = acts.checked_reason(reason)
    ended = sessions.end_all(tx, name)
    what = f"{ended} sessions of {name} ended by {actor}"
    acts.record(tx, "user.sessions-ended", what[:2048], actor=actor, target=name, reason=why, now=now)
    return ended


def find(
    tx: Transaction, token_sha256: bytes, rights_of: Callable[[Sequence[str]], tuple[Right, ...]], now: float
) -> Person | None:
    """Return whose session this is; None when there is none. Rights are those of this moment."""
    session = sessions.find(tx, token_sha256, now)
    if session is None:
        return None
    if session.groups is not None:
        rights = rights_of(session.groups)
        return Person(session.person, rights) if rights else None
    row = rows.load(tx, session.person)
    if row is None or not row.active:
        return None
    return Person(row.name, row.rights, user=row.name)


def log_out(tx: Transaction, token_sha256: bytes, person: Person, now: float) -> None:
    """End a session. Raises Rejected `login.none` for a token that is none."""
    if not sessions.end(tx, token_sha256):
        raise Rejected("login.none", "this is no session; tokens are revoked")
    acts.record(
        tx, "logout", f"{person.name} logged out", actor=person.name, target=person.name, reason="", now=now
    )


# -- the first time, and a new password ------------------------------------------------------------------


def offer(tx: Transaction, name: str, setup_sha256: bytes, totp_secret: bytes, now: float) -> None:
    """Keep a (sealed) secret until its first code comes back. Raises Rejected `login.setup`."""
    _invited(tx, name, setup_sha256, now)
    rows.change(tx, name, totp_secret=totp_secret, totp_step=0)


def check_setup(
    tx: Transaction, name: str, setup_sha256: bytes, *, code: str, step_of: CodeStep, now: float
) -> None:
    """Before anything slow: raises Rejected `login.setup`, `login.code`."""
    row = _invited(tx, name, setup_sha256, now)
    if row.totp_secret is None or step_of(name, row.totp_secret, code, row.totp_step) is None:
        raise Rejected("login.code", "not a code of this moment; is the clock of your authenticator right?")


def set_up(
    tx: Transaction,
    name: str,
    setup_sha256: bytes,
    *,
    code: str,
    password: str,
    recovery: Sequence[str],
    token_sha256: bytes,
    step_of: CodeStep,
    expires_at: float,
    now: float,
) -> Person:
    """Take a (hashed) password and the first code, and log in. Raises Rejected `login.setup`, `login.code`."""
    row = _invited(tx, name, setup_sha256, now)
    step = None if row.totp_secret is None else step_of(name, row.totp_secret, code, row.totp_step)
    if step is None or not rows.use_step(tx, name, step):
        raise Rejected("login.code", "not a code of this moment; is the clock of your authenticator right?")
    rows.change(tx, name, password=password, setup_sha256=None, setup_expires_at=None)
    rows.set_recovery_codes(tx, name, [recovery_digest(each) for each in recovery])
    return let_in(tx, row, token_sha256, expires_at=expires_at, now=now)


def set_password(
    tx: Transaction,
    name: str,
    begun: Begun,
    code: str,
    password: str,
    *,
    right_password: bool,
    step_of: CodeStep,
    now: float,
) -> Refused | None:
    """Replace one's own (hashed) password; every session ends. Raises Rejected `login.refused`."""
    row = rows.load(tx, name, lock=True)
    if row is None or not _is(row, begun, right_password) or not _uses_code(tx, row, code, step_of, now):
        return Refused(Rejected("login.refused", _REFUSED))
    rows.change(tx, name, password=password)
    rows.forget_tries(tx, name)
    sessions.end_all(tx, name)
    acts.record(
        tx, "user.password", f"{name} has a new password", actor=name, target=name, reason="", now=now
    )
    return None


def recovery_digest(code: str) -> bytes:
    """Return what is kept of a recovery code: 100 random bits need no slow hash. Of what is no code it is nobody's."""
    return sha256((plain_code(code) or "").encode()).digest()


# -- inside ----------------------------------------------------------------------------------------------


def _is(row: UserRow, begun: Begun, right_password: bool) -> bool:
    """Whether it is this user, and what was compared is still what is stored (4)."""
    return row.active and right_password and row.password == begun.password


def _uses_code(tx: Transaction, row: UserRow, code: str, step_of: CodeStep, now: float) -> bool:
    """Use a code up (3); False where it is none, or was used."""
    if _BY_CLOCK.fullmatch(code) is not None:
        step = None
        if row.totp_secret is not None:
            step = step_of(row.name, row.totp_secret, code, row.totp_step)
        return step is not None and rows.use_step(tx, row.name, step)
    if not rows.use_recovery_code(tx, row.name, recovery_digest(code), now):
        return False
    text = f"{row.name} used a recovery code in place of a code"
    events.add(tx, "login.recovery-code", "warning", text, now=now)
    return True


def _invited(tx: Transaction, name: str, setup_sha256: bytes, now: float) -> UserRow:
    row = rows.load(tx, name, lock=True)
    if (
        row is None
        or row.disabled_at is not None
        or row.setup_sha256 != setup_sha256
        or (row.setup_expires_at or 0.0) <= now
    ):
        raise Rejected("login.setup", "unknown, used or expired; ask whoever gave you the code for another")
    return row


def _tell_locked(tx: Transaction, name: str, now: float) -> None:
    events.add(
        tx,
        "login.locked",
        "warning",
        f"{lockout.FREE_TRIES} wrong tries to log in as {name}: further ones must wait",
        now=now,
    )

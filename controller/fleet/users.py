"""Use cases of people who log in here: made, changed, disabled and reset by others. What they do themselves is in `logins`.

The rules of `controller.fleet.tokens` hold for people as well: nobody gives what they have not, touches who reaches further
than they do, or ends the last who manages everybody. A user is never deleted, so that a name always means one person; and nobody but
that person ever knows the password: whoever makes or resets a user gets a code that is good once.
"""

from __future__ import annotations

from collections.abc import Sequence

from contract.errors import Rejected
from controller import lockout
from controller.fleet import acts, tokens
from controller.people_records import UserState, UserView
from controller.permissions import Person, Right, Scope, beyond, scope_of_all
from controller.store import Transaction, sessions
from controller.store import users as rows
from controller.store.users import UserRow


def add(
    tx: Transaction,
    name: str,
    rights: Sequence[Right],
    setup_sha256: bytes,
    *,
    by: Person,
    setup_expires_at: float,
    now: float,
) -> UserView:
    """See People.add_user."""
    tokens.lock(tx)
    tokens.check_free(tx, name, "user")
    tokens.check_giving(by, rights)
    rows.add(
        tx,
        name,
        rights,
        setup_sha256=setup_sha256,
        setup_expires_at=setup_expires_at,
        actor=by.name,
        now=now,
    )
    told = tokens.told(rights)
    tokens.tell(tx, "user.added", f"user {name} ({told}) made", name, by=by, reason=told, now=now)
    return _view_of(tx, name, now)


def list_(tx: Transaction, scope: Scope, now: float) -> list[UserView]:
    """See People.list_users."""
    return _views(tx, [row for row in rows.all_(tx) if scope.covers(scope_of_all(row.rights))], now)


def set_rights(
    tx: Transaction, name: str, rights: Sequence[Right], *, by: Person, reason: str, now: float
) -> UserView:
    """See People.set_user_rights."""
    why = acts.checked_reason(reason)
    before = _mine(tx, name, by)
    tokens.check_giving(by, rights)
    rows.set_rights(tx, name, rights)
    tokens.check_admin_left(tx, before.rights, now)
    told = tokens.told(rights)
    what = f"rights of user {name} are now {told}"
    tokens.tell(tx, "user.rights", what, name, by=by, reason=f"{told}: {why}", now=now)
    return _view_of(tx, name, now)


def disable(tx: Transaction, name: str, *, by: Person, reason: str, now: float) -> UserView:
    """See People.disable_user."""
    why = acts.checked_reason(reason)
    before = _mine(tx, name, by)
    if before.disabled_at is not None:
        raise Rejected("user.decided", f"{name} is disabled already")
    rows.change(tx, name, disabled_at=now, disabled_by=by.name)
    sessions.end_all(tx, name)
    tokens.check_admin_left(tx, before.rights, now)
    tokens.tell(tx, "user.disabled", f"user {name} disabled", name, by=by, reason=why, now=now)
    return _view_of(tx, name, now)


def enable(tx: Transaction, name: str, *, by: Person, reason: str, now: float) -> UserView:
    """See People.enable_user."""
    why = acts.checked_reason(reason)
    if _mine(tx, name, by).disabled_at is None:
        raise Rejected("user.decided", f"{name} is not disabled")
    rows.change(tx, name, disabled_at=None, disabled_by=None)
    tokens.tell(tx, "user.enabled", f"user {name} enabled again", name, by=by, reason=why, now=now)
    return _view_of(tx, name, now)


def reset(
    tx: Transaction,
    name: str,
    setup_sha256: bytes,
    *,
    by: Person,
    reason: str,
    setup_expires_at: float,
    now: float,
) -> UserView:
    """See People.reset_user."""
    why = acts.checked_reason(reason)
    before = _mine(tx, name, by)
    rows.change(
        tx,
        name,
        password=None,
        totp_secret=None,
        setup_sha256=setup_sha256,
        setup_expires_at=setup_expires_at,
    )
    rows.set_recovery_codes(tx, name, [])
    rows.forget_tries(tx, name)
    sessions.end_all(tx, name)
    tokens.check_admin_left(tx, before.rights, now)
    tokens.tell(tx, "user.reset", f"user {name} reset", name, by=by, reason=why, now=now)
    return _view_of(tx, name, now)


def unlock(tx: Transaction, name: str, *, by: Person, reason: str, now: float) -> UserView:
    """See People.unlock_user."""
    why = acts.checked_reason(reason)
    _mine(tx, name, by)
    rows.forget_tries(tx, name)
    tokens.tell(
        tx, "user.unlocked", f"wrong tries of user {name} forgotten", name, by=by, reason=why, now=now
    )
    return _view_of(tx, name, now)


def _mine(tx: Transaction, name: str, by: Person) -> UserRow:
    """Return a user whom `by` could have made; nobody else changes people meanwhile."""
    tokens.lock(tx)
    row = rows.load(tx, name, lock=True)
    if row is None or beyond(by.rights, row.rights):
        raise Rejected("user.unknown", name)
    return row


def _view_of(tx: Transaction, name: str, now: float) -> UserView:
    row = rows.load(tx, name)
    if row is None:
        raise Rejected("user.unknown", name)
    return _views(tx, [row], now)[0]


def _views(tx: Transaction, of: Sequence[UserRow], now: float) -> list[UserView]:
    left, tried = rows.recovery_codes_left(tx), rows.tries_of_all(tx)
    return [
        UserView(
            name=row.name,
            rights=row.rights,
            state=_state(row),
            wait_s=lockout.left_s(*tried[row.name], now) if row.name in tried else 0.0,
            recovery_codes=left.get(row.name, 0),
            created_at=row.created_at,
            created_by=row.created_by,
            last_login_at=row.last_login_at,
        )
        for row in of
    ]


def _state(row: UserRow) -> UserState:
    if row.disabled_at is not None:
        return "disabled"
    return "invited" if row.password is None else "active"

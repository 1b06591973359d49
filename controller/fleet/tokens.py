"""Use cases of API tokens: who may make which, and whose a token is.

1. Nobody gives what they have not, neither a permission nor a site (`rights.beyond`). That holds for a new token, for
   other rights of one, and for a new secret of one, which is as good as the token.
2. A token is touched only by who could have made it; to everybody else it does not exist.
3. Somebody who manages everybody is always left (`people.last-admin`).
4. A name is given once: what the trail says of a token is true of one token. Where two persons are wanted a token counts as
   whoever made it; what was made on the controller's own machine counts as itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from contract.errors import Rejected
from contract.names import checked_name
from controller.fleet import acts
from controller.people_records import ApiTokenView
from controller.permissions import ON_THE_MACHINE, Person, Right, Scope, beyond, is_admin, scope_of_all
from controller.store import Transaction, audit, users
from controller.store import tokens as rows
from controller.store.tokens import TokenRow

RESERVED = frozenset({"controller", "init", "nobody", "all"})
"""Names that stand in the trail for something else."""


def add(
    tx: Transaction,
    name: str,
    rights: Sequence[Right],
    token_sha256: bytes,
    *,
    by: Person,
    own: bool,
    expires_at: float | None,
    now: float,
) -> ApiTokenView:
    """See People.add_token."""
    rows.lock_people(tx)
    check_free(tx, name, "token")
    check_giving(by, rights)  # 1
    if own and by.user is None:
        raise Rejected("token.nobodys", "only who has logged in here by name has tokens of their own")
    if rows.by_sha256(tx, token_sha256) is not None:
        raise Rejected("token.exists", name)
    rows.add(
        tx,
        name,
        rights,
        token_sha256,
        user=by.user if own else None,
        counts_as=name if by.name == ON_THE_MACHINE.name else person_behind(tx, by.name),  # 4
        created_by=by.name,
        expires_at=expires_at,
        now=now,
    )
    audit.note(tx, actor=by.name, act="token.added", target=name, reason=told(rights), now=now)
    return _view(_known(tx, name))


def find(tx: Transaction, token_sha256: bytes, *, now: float) -> Person | None:
    """Return who comes with this token; None when it is unknown, expired or revoked."""
    found = rows.by_sha256(tx, token_sha256)
    if found is None or not _alive(found, now):
        return None
    rows.note_use(tx, found, now)
    return Person(found.name, found.rights)


def list_(tx: Transaction, scope: Scope) -> list[ApiTokenView]:
    """See People.list_tokens."""
    return [_view(row) for row in rows.all_(tx) if scope.covers(scope_of_all(row.rights))]


def set_rights(
    tx: Transaction, name: str, rights: Sequence[Right], *, by: Person, reason: str, now: float
) -> ApiTokenView:
    """See People.set_token_rights."""
    why = acts.checked_reason(reason)
    before = _mine(tx, name, by)
    check_giving(by, rights)
    rows.set_rights(tx, name, rights)
    check_admin_left(tx, before.rights, now)
    audit.note(tx, actor=by.name, act="token.rights", target=name, reason=f"{told(rights)}: {why}", now=now)
    return _view(_known(tx, name))


def renew(
    tx: Transaction, name: str, token_sha256: bytes, *, by: Person, expires_at: float | None, now: float
) -> ApiTokenView:
    """See People.renew_token."""
    _mine(tx, name, by)
    rows.renew(tx, name, token_sha256, expires_at)
    audit.note(tx, actor=by.name, act="token.renewed", target=name, reason="", now=now)
    return _view(_known(tx, name))


def revoke(tx: Transaction, name: str, *, by: Person, now: float) -> None:
    """See People.revoke_token."""
    before = _mine(tx, name, by)
    rows.revoke(tx, name, actor=by.name, now=now)
    check_admin_left(tx, before.rights, now)
    audit.note(tx, actor=by.name, act="token.revoked", target=name, reason="", now=now)


# -- for people as well ----------------------------------------------------------------------------------


def check_giving(by: Person, rights: Sequence[Right]) -> None:
    """Raise Rejected `rights.beyond` where `by` would give what they have not."""
    over = beyond(by.rights, rights)
    if over:
        raise Rejected("rights.beyond", f"nobody gives what they have not: {over}")


def check_free(tx: Transaction, name: str, what: str) -> None:
    """Raise Rejected `name.invalid`, `token.exists`, `user.exists` where a name may not be given."""
    checked_name(name, what)
    if name in RESERVED:
        raise Rejected("name.invalid", f"{name!r} stands for something else")
    if rows.by_name(tx, name) is not None:
        raise Rejected("token.exists", f"{name}; names are not given twice, also not of revoked ones")
    if users.exists(tx, name):
        raise Rejected("user.exists", name)


def check_admin_left(tx: Transaction, before: Sequence[Right], now: float) -> None:
    """Raise Rejected `people.last-admin` where `before` managed everybody and nobody is left who does."""
    if is_admin(before) and not any(is_admin(row.rights) and _alive(row, now) for row in rows.all_(tx)):
        raise Rejected("people.last-admin", "nobody would be left who manages everybody; make another first")


def person_behind(tx: Transaction, actor: str) -> str:
    """Return whom an actor counts as where two persons are wanted."""
    token = rows.by_name(tx, actor)
    return actor if token is None else token.counts_as


def told(rights: Sequence[Right]) -> str:
    """Return rights as the trail has them."""
    return " ".join(str(right) for right in rights)[: acts.MAX_REASON_CHARS]


# -- inside ----------------------------------------------------------------------------------------------


def _mine(tx: Transaction, name: str, by: Person) -> TokenRow:
    """Return a token that `by` could have made (2); nobody else changes people meanwhile."""
    rows.lock_people(tx)
    row = rows.by_name(tx, name)
    if row is None or row.revoked_at is not None or beyond(by.rights, row.rights):
        raise Rejected("token.unknown", name)
    return row


def _known(tx: Transaction, name: str) -> TokenRow:
    row = rows.by_name(tx, name)
    if row is None:
        raise Rejected("token.unknown", name)
    return row


def _alive(row: TokenRow, now: float) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > now)


def _view(row: TokenRow) -> ApiTokenView:
    return msgspec.convert(row, ApiTokenView, from_attributes=True)

"""Use cases of API tokens: who may make which, and whose a token is.

1. Nobody gives what they have not, neither a permission nor a site (`rights.beyond`). That holds for a new token, for
   other rights of one, and for a new secret of one, which is as good as the token.
2. A token is touched only by who could have made it; to everybody else it does not exist.
3. Somebody who manages everybody is always left (`people.last-admin`).
4. A name is given once: what the trail says of a token is true of one token. Where two persons are wanted a token counts as
   whoever made it; what was made on the controller's own machine counts as itself. So nobody else gets a new secret of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from contract.errors import Rejected
from contract.names import checked_name
from controller.fleet import acts
from controller.people_records import ApiTokenView
from controller.permissions import ON_THE_MACHINE, Person, Right, Scope, beyond, is_admin, scope_of_all
from controller.store import Transaction, users
from controller.store import tokens as rows
from controller.store.tokens import TokenRow

MAX_MADE = 500
"""Tokens that one has made and that are not revoked."""
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
    if rows.count_made(tx, by.name) >= MAX_MADE and by is not ON_THE_MACHINE:
        raise Rejected("token.too-many", f"{by.name} has made {MAX_MADE}; revoke some first")
    rows.add(
        tx,
        name,
        rights,
        token_sha256,
        user=by.user if own else None,
        counts_as=name if by is ON_THE_MACHINE else person_behind(tx, by.name),  # 4
        created_by=by.name,
        expires_at=expires_at,
        now=now,
    )
    tell(tx, "token.added", f"token {name} made", name, by=by, reason=told(rights), now=now)
    return _view(_known(tx, name))


def find(tx: Transaction, token_sha256: bytes, *, now: float) -> Person | None:
    """Return who comes with this token; None when it is unknown, expired or revoked."""
    row = rows.by_sha256(tx, token_sha256)
    person = None if row is None else find_person(tx, row, now)
    if row is not None and person is not None:
        rows.note_use(tx, row, now)
    return person


def find_person(tx: Transaction, row: TokenRow, now: float) -> Person | None:
    """Return who comes with a token; None where it is worth nothing now.

    A person's own token is worth no more than the person: nothing once they are disabled, or once it could do what they cannot.
    """
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
        return None
    if row.user is not None:
        owner = users.load(tx, row.user)
        if owner is None or not owner.active or beyond(owner.rights, row.rights):
            return None
    return Person(row.name, row.rights)


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
    what = f"rights of token {name} are now {told(rights)}"
    tell(tx, "token.rights", what, name, by=by, reason=f"{told(rights)}: {why}", now=now)
    return _view(_known(tx, name))


def renew(
    tx: Transaction, name: str, token_sha256: bytes, *, by: Person, expires_at: float | None, now: float
) -> ApiTokenView:
    """See People.renew_token."""
    row = _mine(tx, name, by)
    if by is not ON_THE_MACHINE and person_behind(tx, by.name) != row.counts_as:  # 4
        raise Rejected("token.anothers", f"it counts as {row.counts_as}; revoke it and make one of yours")
    rows.renew(tx, name, token_sha256, expires_at)
    tell(tx, "token.renewed", f"token {name} has a new secret", name, by=by, now=now)
    return _view(_known(tx, name))


def revoke(tx: Transaction, name: str, *, by: Person, now: float) -> None:
    """See People.revoke_token."""
    before = _mine(tx, name, by)
    rows.revoke(tx, name, actor=by.name, now=now)
    check_admin_left(tx, before.rights, now)
    tell(tx, "token.revoked", f"token {name} revoked", name, by=by, now=now)


# -- for people as well ----------------------------------------------------------------------------------


def lock(tx: Transaction) -> None:
    """Until this transaction ends nobody else changes people or tokens."""
    rows.lock_people(tx)


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
    if not is_admin(before):
        return
    left = [row.rights for row in rows.all_(tx) if find_person(tx, row, now) is not None]
    left += [row.rights for row in users.all_(tx) if row.active]
    if not any(map(is_admin, left)):
        raise Rejected("people.last-admin", "nobody would be left who manages everybody; make another first")


def person_behind(tx: Transaction, actor: str) -> str:
    """Return whom an actor counts as where two persons are wanted."""
    token = rows.by_name(tx, actor)
    return actor if token is None else token.counts_as


def told(rights: Sequence[Right]) -> str:
    """Return rights as the trail has them."""
    return " ".join(str(right) for right in rights)[: acts.MAX_REASON_CHARS]


def tell(
    tx: Transaction, kind: str, what: str, target: str, *, by: Person, reason: str = "", now: float
) -> None:
    """Write an act on people or tokens down."""
    text = f"{what} by {by.name}"[:2048]
    reason = reason[: acts.MAX_REASON_CHARS]
    acts.record(tx, kind, text, actor=by.name, target=target, reason=reason, now=now, severity="warning")


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


def _view(row: TokenRow) -> ApiTokenView:
    return msgspec.convert(row, ApiTokenView, from_attributes=True)

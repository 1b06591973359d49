"""Rows of enrolments, expected EKs and one-use tokens."""

from __future__ import annotations

from typing import get_args

from sqlalchemy import Row, func, insert, select, update

from controller import tpmrecord
from controller.enrolment_records import EnrolmentState, EnrolmentView, EnrolTokenView, PreregistrationView
from controller.permissions import EVERYWHERE, Scope
from controller.records import EkTrust, Record
from controller.store import Transaction
from controller.store.schema import enrol_tokens, enrolments, preregistrations, revoked_keys
from controller.store.scoped import within

STATES: frozenset[str] = frozenset(get_args(EnrolmentState))
OPEN_STATES = ("begun", "proved")


class EnrolmentRow(Record, frozen=True, kw_only=True):
    """An enrolment with what must not be shown."""

    enrolment: str
    node: str
    site: str | None
    ek_id: str
    ek_public: bytes
    ak_public: bytes
    ak_name: str
    ek_trust: EkTrust
    csr: bytes
    token_sha256: bytes | None
    secret: bytes
    wrong_proofs: int
    state: EnrolmentState
    replaces: bool
    note: str
    created_at: float
    decided_at: float | None
    decided_by: str | None
    tpm: str = "{}"
    """JSON of a TpmRecord."""

    def view(self) -> EnrolmentView:
        """Without secrets."""
        tpm = tpmrecord.read(self.tpm)
        return EnrolmentView(
            enrolment=self.enrolment,
            node=self.node,
            site=self.site,
            ek_id=self.ek_id,
            ek_trust=self.ek_trust,
            tpm_kind=tpm.kind,
            tpm=tpm,
            state=self.state,
            note=self.note,
            created_at=self.created_at,
            decided_at=self.decided_at,
            decided_by=self.decided_by,
            approve_with=self._approve_with(),
        )

    def _approve_with(self) -> str:
        if self.state != "proved":
            return ""
        options = ("" if self.site else " --site SITE") + (" --replace" if self.replaces else "")
        return f"ringfence enrolments approve {self.enrolment}{options}"


def _row(row: Row[tuple[object, ...]]) -> EnrolmentRow:
    return EnrolmentRow(**row._mapping)


def add(tx: Transaction, row: EnrolmentRow) -> None:
    """Add one."""
    tx.execute(
        insert(enrolments).values({name: getattr(row, name) for name in EnrolmentRow.__struct_fields__})
    )


def load(tx: Transaction, enrolment: str) -> EnrolmentRow | None:
    """One, locked until this transaction ends."""
    row = tx.execute(
        select(*enrolments.c).where(enrolments.c.enrolment == enrolment).with_for_update()
    ).first()
    return None if row is None else _row(row)


def change(tx: Transaction, enrolment: str, **values: object) -> None:
    """Write columns by name."""
    tx.execute(update(enrolments).where(enrolments.c.enrolment == enrolment).values(**values))


def count_open(tx: Transaction, *, states: tuple[str, ...] = OPEN_STATES, scope: Scope = EVERYWHERE) -> int:
    """Enrolments that wait for something."""
    waiting = select(func.count()).select_from(enrolments).where(enrolments.c.state.in_(states))
    return int(tx.execute(waiting.where(within(scope, enrolments.c.site))).scalar_one())


def expire(tx: Transaction, *, begun_before: float, proved_before: float) -> None:
    """Close what has waited for too long, and forget its secret."""
    for state, before in (("begun", begun_before), ("proved", proved_before)):
        tx.execute(
            update(enrolments)
            .where(enrolments.c.state == state, enrolments.c.created_at < before)
            .values(state="expired", secret=b"", note="expired")
        )


def supersede(tx: Transaction, *, node: str, ek_id: str, without: str) -> None:
    """An enrolment of the same TPM for the same id makes its older open ones void."""
    tx.execute(
        update(enrolments)
        .where(
            enrolments.c.state.in_(OPEN_STATES),
            enrolments.c.node == node,
            enrolments.c.ek_id == ek_id,
            enrolments.c.enrolment != without,
        )
        .values(state="expired", secret=b"", note="the same TPM began again")
    )


def page(
    tx: Transaction, *, state: str | None, scope: Scope, before: str | None, limit: int
) -> list[EnrolmentView]:
    """Newest first: ids begin with the time."""
    statement = select(*enrolments.c).order_by(enrolments.c.enrolment.desc()).limit(limit)
    statement = statement.where(within(scope, enrolments.c.site))
    if state is not None:
        statement = statement.where(enrolments.c.state == state)
    if before is not None:
        statement = statement.where(enrolments.c.enrolment < before)
    return [_row(row).view() for row in tx.execute(statement)]


# -- revoked keys ----------------------------------------------------------------------------------------


def revoke_key(
    tx: Transaction, ak_name: str, *, node: str, certificate_sha256: bytes | None, by: str, now: float
) -> None:
    """Note that an AK was replaced. Raises the database's own integrity error when it is noted already."""
    tx.execute(
        insert(revoked_keys).values(
            ak_name=ak_name, node=node, certificate_sha256=certificate_sha256, revoked_at=now, revoked_by=by
        )
    )


def is_revoked(tx: Transaction, ak_name: str) -> bool:
    """Whether this AK was replaced."""
    row = tx.execute(select(revoked_keys.c.ak_name).where(revoked_keys.c.ak_name == ak_name)).first()
    return row is not None


# -- expected EKs ----------------------------------------------------------------------------------------


def _expected(row: Row[tuple[object, ...]]) -> PreregistrationView:
    return PreregistrationView(**row._mapping)


def expected_by_ek(tx: Transaction, ek_id: str) -> PreregistrationView | None:
    """Whether this EK is expected."""
    row = tx.execute(select(*preregistrations.c).where(preregistrations.c.ek_id == ek_id)).first()
    return None if row is None else _expected(row)


def expected_by_node(tx: Transaction, node: str) -> PreregistrationView | None:
    """Whom this id is reserved for."""
    row = tx.execute(select(*preregistrations.c).where(preregistrations.c.node == node)).first()
    return None if row is None else _expected(row)


def expect(tx: Transaction, ek_id: str, *, node: str | None, site: str, actor: str, now: float) -> None:
    """Raises the database's own integrity error when EK or id are expected already."""
    tx.execute(
        insert(preregistrations).values(ek_id=ek_id, node=node, site=site, created_at=now, created_by=actor)
    )


def set_expected_used(tx: Transaction, ek_id: str, now: float) -> None:
    """It has come."""
    tx.execute(update(preregistrations).where(preregistrations.c.ek_id == ek_id).values(used_at=now))


def expected_eks(tx: Transaction) -> frozenset[str]:
    """All expected EKs."""
    return frozenset(tx.execute(select(preregistrations.c.ek_id)).scalars())


def expected_page(
    tx: Transaction, *, scope: Scope, after: str | None, limit: int
) -> list[PreregistrationView]:
    """By EK id, after the cursor."""
    statement = select(*preregistrations.c).order_by(preregistrations.c.ek_id).limit(limit)
    statement = statement.where(within(scope, preregistrations.c.site))
    if after is not None:
        statement = statement.where(preregistrations.c.ek_id > after)
    return [_expected(row) for row in tx.execute(statement)]


# -- tokens ----------------------------------------------------------------------------------------------

_TOKEN = [column for column in enrol_tokens.c if column.name != "token_sha256"]


def add_token(
    tx: Transaction,
    token_sha256: bytes,
    *,
    node: str | None,
    site: str,
    expires_at: float,
    actor: str,
    now: float,
) -> EnrolTokenView:
    """Add a token by its SHA-256."""
    row = tx.execute(
        insert(enrol_tokens)
        .values(
            token_sha256=token_sha256,
            node=node,
            site=site,
            created_at=now,
            created_by=actor,
            expires_at=expires_at,
        )
        .returning(*_TOKEN)
    ).one()
    return EnrolTokenView(**row._mapping)


def token(tx: Transaction, token_sha256: bytes) -> EnrolTokenView | None:
    """The token of this SHA-256, used or not."""
    row = tx.execute(select(*_TOKEN).where(enrol_tokens.c.token_sha256 == token_sha256)).first()
    return None if row is None else EnrolTokenView(**row._mapping)


def use_token(tx: Transaction, token: int, node: str, now: float) -> bool:
    """Use it up; False when somebody else was first."""
    done = tx.execute(
        update(enrol_tokens)
        .where(enrol_tokens.c.id == token, enrol_tokens.c.used_at.is_(None))
        .values(used_at=now, used_by=node)
    )
    return done.rowcount == 1

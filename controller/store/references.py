"""Rows of announced reference values. A site's row holds the spans of its sets, for every report reads them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Row, insert, select, update

from contract.references import ReferenceSet, spans_text
from controller.permissions import Scope
from controller.reference_records import ReferenceView
from controller.store import Transaction
from controller.store.schema import reference_values, sites
from controller.store.scoped import within

_decode_set = msgspec.json.Decoder(ReferenceSet).decode
_encode = msgspec.json.encode


def add(tx: Transaction, one: ReferenceSet, *, reason: str, actor: str, now: float) -> int:
    """Add a set and return its number; the caller settles the site."""
    return int(
        tx.execute(
            insert(reference_values)
            .values(
                site=one.site, document=_encode(one).decode(), reason=reason, created_at=now, created_by=actor
            )
            .returning(reference_values.c.id)
        ).scalar_one()
    )


def withdraw(tx: Transaction, number: int, *, actor: str, now: float) -> None:
    """Mark a set; the caller settles the site."""
    tx.execute(
        update(reference_values)
        .where(reference_values.c.id == number)
        .values(withdrawn_at=now, withdrawn_by=actor)
    )


def lock_site(tx: Transaction, site: str) -> None:
    """Two controllers that change a site's sets at once wait for each other here, before either reads."""
    tx.execute(select(sites.c.site).where(sites.c.site == site).with_for_update())


def settle(tx: Transaction, site: str) -> None:
    """Write the spans of a site's sets into its row."""
    spans = [(view.id, view.reference.valid_from, view.reference.valid_until) for view in of_site(tx, site)]
    tx.execute(update(sites).where(sites.c.site == site).values(announced=spans_text(spans)))


def _view(row: Row[tuple[object, ...]]) -> ReferenceView:
    values = dict(row._mapping)
    del values["site"]
    return ReferenceView(reference=_decode_set(values.pop("document")), **values)


def of_site(tx: Transaction, site: str) -> list[ReferenceView]:
    """The sets of a site that are not withdrawn, oldest first."""
    rows = tx.execute(
        select(*reference_values.c)
        .where(reference_values.c.site == site, reference_values.c.withdrawn_at.is_(None))
        .order_by(reference_values.c.id)
    )
    return [_view(row) for row in rows]


def load(tx: Transaction, number: int) -> ReferenceView | None:
    """One set."""
    row = tx.execute(select(*reference_values.c).where(reference_values.c.id == number)).first()
    return None if row is None else _view(row)


def page(
    tx: Transaction, *, scope: Scope, withdrawn: bool, before: int | None, limit: int
) -> Sequence[ReferenceView]:
    """Newest first, numbers below `before`; with `withdrawn`, those too."""
    statement = select(*reference_values.c).order_by(reference_values.c.id.desc()).limit(limit)
    statement = statement.where(within(scope, reference_values.c.site))
    if not withdrawn:
        statement = statement.where(reference_values.c.withdrawn_at.is_(None))
    if before is not None:
        statement = statement.where(reference_values.c.id < before)
    return [_view(row) for row in tx.execute(statement)]

"""Rows of incidents, and which node is in which for which suspicion."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
from sqlalchemy import ColumnElement, Row, bindparam, exists, func, insert, or_, select, true, update

from contract.messages import Finding, Severity
from controller.permissions import Reach, Scope
from controller.records import IncidentKind, IncidentState, IncidentView
from controller.store import Transaction
from controller.store.places import placed
from controller.store.schema import incident_nodes, incidents, nodes
from controller.store.scoped import within

SHOWN_NODES = 100
_decode_findings = msgspec.json.Decoder(list[Finding]).decode
_decode_done = msgspec.json.Decoder(list[str]).decode
_encode = msgspec.json.encode


_HAD = (
    select(incident_nodes.c.node)
    .where(
        incident_nodes.c.key == bindparam("of_key"),
        incident_nodes.c.since > bindparam("after"),
        incident_nodes.c.node != bindparam("but_not"),
    )
    .limit(bindparam("most"))
    .subquery()
)
_OTHERS = select(func.count(_HAD.c.node.distinct()))


def others(
    tx: Transaction, keys: Collection[str], *, without: str, since: float, limit: int
) -> dict[str, int]:
    """Count, by key, the other nodes that had it after `since`, in whatever incident; up to `limit`."""
    values = {"after": since, "but_not": without, "most": limit}
    return {key: int(tx.execute(_OTHERS, {"of_key": key, **values}).scalar_one()) for key in keys}


def showing(
    tx: Transaction, keys: Collection[str], *, without: str = "", incident: int | None = None
) -> dict[str, int]:
    """Count, by key, the nodes that show it now, or that have shown it in one incident; `without` is left out."""
    where = [incident_nodes.c.key.in_(keys), incident_nodes.c.node != without]
    where.append(
        incident_nodes.c.active.is_(True) if incident is None else incident_nodes.c.incident == incident
    )
    rows = tx.execute(
        select(incident_nodes.c.key, func.count(incident_nodes.c.node.distinct()))
        .where(*where)
        .group_by(incident_nodes.c.key)
    )
    return {row[0]: row[1] for row in rows}


# Backwards over (key, incident): the newest is nearly always the one, however many nodes are in it.
_STANDING = (
    select(incident_nodes.c.incident)
    .join(incidents, incidents.c.id == incident_nodes.c.incident)
    .where(
        incident_nodes.c.key == bindparam("of_key"),
        or_(
            incidents.c.state.in_(("open", "needs-person")),
            (incidents.c.state == "resolved") & (incidents.c.updated_at > bindparam("after")),
        ),
    )
    .order_by(incident_nodes.c.incident.desc())
    .limit(1)
)


def standing_for(tx: Transaction, keys: Collection[str], *, reopened_since: float) -> dict[str, int]:
    """Return, by key, the newest incident that is open for it, or that was resolved after `reopened_since`."""
    found = {
        key: tx.execute(_STANDING, {"of_key": key, "after": reopened_since}).scalar_one_or_none()
        for key in keys
    }
    return {key: incident for key, incident in found.items() if incident is not None}


def open_(
    tx: Transaction, *, kind: IncidentKind, severity: Severity, site: str, title: str, now: float
) -> int:
    """Add an incident and return its id."""
    return int(
        tx.execute(
            insert(incidents)
            .values(
                kind=kind,
                severity=severity,
                state="open",
                site=site,
                title=title,
                findings="[]",
                done="[]",
                opened_at=now,
                updated_at=now,
            )
            .returning(incidents.c.id)
        ).scalar_one()
    )


def attach(tx: Transaction, incident: int, node: str, keys: dict[str, bool], now: float) -> None:
    """Put a node into an incident for these keys; the value says whether the suspicion lasts."""
    there = {
        row[0]
        for row in tx.execute(
            select(incident_nodes.c.key).where(
                incident_nodes.c.incident == incident,
                incident_nodes.c.node == node,
                incident_nodes.c.key.in_(list(keys)),
            )
        )
    }
    for key, active in keys.items():
        if key in there:
            tx.execute(
                update(incident_nodes)
                .where(
                    incident_nodes.c.incident == incident,
                    incident_nodes.c.node == node,
                    incident_nodes.c.key == key,
                )
                .values(active=active, since=now)
            )
        else:
            tx.execute(
                insert(incident_nodes).values(incident=incident, node=node, key=key, since=now, active=active)
            )


def withdraw(tx: Transaction, node: str, keys: Sequence[str]) -> list[int]:
    """A node no longer shows these; return the incidents it was in for them."""
    where = (
        incident_nodes.c.node == node,
        incident_nodes.c.active.is_(True),
        incident_nodes.c.key.in_(keys),
    )
    touched = sorted({row[0] for row in tx.execute(select(incident_nodes.c.incident).where(*where))})
    if touched:
        tx.execute(update(incident_nodes).where(*where).values(active=False))
    return touched


def still_active(tx: Transaction, incident: int) -> bool:
    """Whether any node still shows any of its suspicions."""
    return (
        tx.execute(
            select(incident_nodes.c.node)
            .where(incident_nodes.c.incident == incident, incident_nodes.c.active.is_(True))
            .limit(1)
        ).first()
        is not None
    )


def active(tx: Transaction, incident: int) -> list[tuple[str, str]]:
    """Return the nodes that an incident is about still, each with a suspicion."""
    rows = tx.execute(
        select(incident_nodes.c.node, incident_nodes.c.key)
        .where(incident_nodes.c.incident == incident, incident_nodes.c.active.is_(True))
        .order_by(incident_nodes.c.node, incident_nodes.c.key)
    )
    return [(row[0], row[1]) for row in rows]


def active_of_node(tx: Transaction, node: str) -> list[tuple[str, int]]:
    """Return the suspicions that a node shows still, each with its incident."""
    rows = tx.execute(
        select(incident_nodes.c.key, incident_nodes.c.incident)
        .where(incident_nodes.c.node == node, incident_nodes.c.active.is_(True))
        .order_by(incident_nodes.c.key)
    )
    return [(row[0], row[1]) for row in rows]


def change(
    tx: Transaction,
    incident: int,
    *,
    state: IncidentState,
    findings: list[Finding],
    done: list[str],
    now: float,
    severity: Severity | None = None,
    closed_by: str | None = None,
) -> None:
    """Write an incident's new state; `closed_by` closes it."""
    values: dict[str, object] = {
        "state": state,
        "findings": _encode(findings).decode(),
        "done": _encode(done).decode(),
        "updated_at": now,
        "closed_at": now if state in {"closed", "resolved"} else None,
        "closed_by": closed_by,
    }
    if severity is not None:
        values["severity"] = severity
    tx.execute(update(incidents).where(incidents.c.id == incident).values(values))


def flap(tx: Transaction, incident: int, *, reopened: int, quiet: bool) -> None:
    """Write how often an incident came again, and whether that is told."""
    tx.execute(update(incidents).where(incidents.c.id == incident).values(reopened=reopened, quiet=quiet))


def calm(tx: Transaction, *, before: float) -> list[tuple[int, str, str]]:
    """End the quiet of incidents that were resolved before then; return each with its site and title."""
    where = (
        incidents.c.state == "resolved",
        incidents.c.quiet.is_(True),
        incidents.c.updated_at <= before,
    )
    found = tx.execute(select(incidents.c.id, incidents.c.site, incidents.c.title).where(*where)).all()
    if found:
        tx.execute(update(incidents).where(incidents.c.id.in_([row.id for row in found])).values(quiet=False))
    return [(row.id, row.site, row.title) for row in found]


def _view(row: Row[tuple[object, ...]], names: list[str], total: int) -> IncidentView:
    values = dict(row._mapping)
    values["findings"] = _decode_findings(values["findings"])
    values["done"] = _decode_done(values["done"])
    return IncidentView(**values, nodes=names, nodes_total=total)


def _with_nodes(tx: Transaction, row: Row[tuple[object, ...]]) -> IncidentView:
    of = incident_nodes.c.incident == row._mapping["id"]
    total = tx.execute(select(func.count(incident_nodes.c.node.distinct())).where(of)).scalar_one()
    names = tx.execute(
        select(incident_nodes.c.node).where(of).distinct().order_by(incident_nodes.c.node).limit(SHOWN_NODES)
    )
    return _view(row, [name[0] for name in names], int(total))


_BY_ID = select(*incidents.c).where(incidents.c.id == bindparam("number"))


def load(tx: Transaction, incident: int) -> IncidentView | None:
    """One incident with its nodes, for people: counting them costs as much as there are."""
    row = tx.execute(_BY_ID, {"number": incident}).first()
    return None if row is None else _with_nodes(tx, row)


def bare(tx: Transaction, incident: int) -> IncidentView | None:
    """One incident without its nodes, for what happens with every report."""
    row = tx.execute(_BY_ID, {"number": incident}).first()
    return None if row is None else _view(row, [], 0)


def _reaches(scope: Scope) -> ColumnElement[bool]:
    """That an incident began at a site in scope, or is about a node in scope."""
    if scope.everywhere:
        return true()
    about = incident_nodes.join(nodes, nodes.c.node == incident_nodes.c.node)
    inside = exists(incident_nodes.c.node).select_from(about)
    of_these = inside.where(
        incident_nodes.c.incident == incidents.c.id, within(scope, nodes.c.site, nodes.c.node)
    )
    return or_(within(scope, incidents.c.site), of_these)


def reach(tx: Transaction, incident: int) -> Reach | None:
    """What an incident is about: its nodes, and where it has none any more the site where it began. None: there is none such."""
    began = tx.execute(select(incidents.c.site).where(incidents.c.id == incident)).scalar_one_or_none()
    if began is None:
        return None
    about = select(nodes.c.site, nodes.c.labels).where(
        nodes.c.node.in_(select(incident_nodes.c.node).where(incident_nodes.c.incident == incident))
    )
    found = tuple(placed(row.site, row.labels) for row in tx.execute(about))
    return Reach(nodes=found) if found else Reach(frozenset({began}))


def members(tx: Transaction, incident: int, scope: Scope) -> list[tuple[str, str, str]]:
    """Return node, its site and its suspicion for every node in scope that an incident is or was about."""
    about = incident_nodes.join(nodes, nodes.c.node == incident_nodes.c.node)
    statement = select(incident_nodes.c.node, nodes.c.site, incident_nodes.c.key).select_from(about)
    of_these = statement.where(
        incident_nodes.c.incident == incident, within(scope, nodes.c.site, nodes.c.node)
    )
    rows = tx.execute(of_these.order_by(incident_nodes.c.node, incident_nodes.c.key))
    return [(row[0], row[1], row[2]) for row in rows]


def page(
    tx: Transaction, *, state: str | None, scope: Scope, before: int | None, limit: int
) -> list[IncidentView]:
    """Newest first, ids below `before`."""
    statement = select(*incidents.c).where(_reaches(scope)).order_by(incidents.c.id.desc()).limit(limit)
    if state is not None:
        statement = statement.where(incidents.c.state == state)
    if before is not None:
        statement = statement.where(incidents.c.id < before)
    return [_with_nodes(tx, row) for row in tx.execute(statement)]


def count_by_state(tx: Transaction, scope: Scope) -> dict[str, int]:
    """Incidents by state."""
    counted = select(incidents.c.state, func.count()).where(_reaches(scope)).group_by(incidents.c.state)
    rows = tx.execute(counted)
    return {row[0]: row[1] for row in rows}

"""Rows of plans and rollouts, and the facts that a rollout is decided on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct
from sqlalchemy import Row, bindparam, exists, func, insert, not_, select, update

from contract.messages import BaselineRef
from controller.permissions import Scope
from controller.records import Record
from controller.rollout import Moved
from controller.rollout_records import NodeFacts, PlanView, Progress, RolloutNode, RolloutState, Terms
from controller.store import Transaction
from controller.store.hot import Prepared
from controller.store.schema import nodes, plans, rollout_nodes, rollouts
from controller.store.scoped import chunked, within

_decode_plan = msgspec.json.Decoder(PlanView).decode
_decode_terms = msgspec.json.Decoder(Terms).decode
_CHUNK = 500


class RolloutRow(Record, frozen=True, kw_only=True):
    """One rollout as it is stored."""

    id: int
    plan: int
    baseline: str
    version: int
    sha256: str
    selector: str
    terms: Terms
    reason: str
    state: RolloutState
    why: str
    wave: int
    wave_since: float | None
    requested_at: float
    requested_by: str
    approved_at: float | None
    approved_by: str | None
    ended_at: float | None


def _row(row: Row[tuple[object, ...]]) -> RolloutRow:
    values = dict(row._mapping)
    values["terms"] = _decode_terms(values["terms"])
    return RolloutRow(**values)


# -- plans -----------------------------------------------------------------------------------------------


def add_plan(tx: Transaction, plan: PlanView) -> PlanView:
    """Store a plan; returns it with its id."""
    made = tx.execute(
        insert(plans)
        .values(
            document=msgspec.json.encode(plan).decode(),
            created_at=plan.created_at,
            created_by=plan.created_by,
        )
        .returning(plans.c.id)
    )
    return msgspec.structs.replace(plan, id=int(made.scalar_one()))


def plan(tx: Transaction, number: int) -> PlanView | None:
    """One plan."""
    row = tx.execute(select(plans.c.id, plans.c.document).where(plans.c.id == number)).first()
    return None if row is None else msgspec.structs.replace(_decode_plan(row.document), id=row.id)


# -- rollouts --------------------------------------------------------------------------------------------


def add(tx: Transaction, row: RolloutRow, waves: Mapping[str, int]) -> int:
    """Store a rollout and its nodes. Raises the database's own integrity error when a node is in another."""
    values = {name: getattr(row, name) for name in row.__struct_fields__ if name != "id"}
    values["terms"] = msgspec.json.encode(row.terms).decode()
    made = tx.execute(insert(rollouts).values(values).returning(rollouts.c.id))
    number = int(made.scalar_one())
    of_nodes = [
        {
            "rollout": number,
            "node": node,
            "wave": wave,
            "progress": "waiting",
            "since": row.requested_at,
            "detail": "",
            "active": 1,
        }
        for node, wave in waves.items()
    ]
    for begin in range(0, len(of_nodes), _CHUNK):
        tx.execute(insert(rollout_nodes), of_nodes[begin : begin + _CHUNK])
    return number


def load(tx: Transaction, number: int, *, lock: bool = False) -> RolloutRow | None:
    """One rollout."""
    statement = select(*rollouts.c).where(rollouts.c.id == number)
    row = tx.execute(statement.with_for_update() if lock else statement).first()
    return None if row is None else _row(row)


def ids_in(tx: Transaction, state: RolloutState) -> list[int]:
    """Rollouts in this state."""
    return list(
        tx.execute(select(rollouts.c.id).where(rollouts.c.state == state).order_by(rollouts.c.id)).scalars()
    )


def page(
    tx: Transaction, *, scope: Scope, state: str | None, before: int | None, limit: int
) -> list[RolloutRow]:
    """Newest first: those whose nodes are all in scope."""
    about = rollout_nodes.join(nodes, nodes.c.node == rollout_nodes.c.node)
    outside = exists(rollout_nodes.c.node).select_from(about)
    of_others = outside.where(
        rollout_nodes.c.rollout == rollouts.c.id, not_(within(scope, nodes.c.site, nodes.c.node))
    )
    statement = select(*rollouts.c).order_by(rollouts.c.id.desc()).limit(limit)
    if not scope.everywhere:
        statement = statement.where(not_(of_others))
    if state is not None:
        statement = statement.where(rollouts.c.state == state)
    if before is not None:
        statement = statement.where(rollouts.c.id < before)
    return [_row(row) for row in tx.execute(statement)]


def change(tx: Transaction, number: int, **values: object) -> None:
    """Write columns of a rollout."""
    tx.execute(update(rollouts).where(rollouts.c.id == number).values(values))


# -- nodes of a rollout ----------------------------------------------------------------------------------


class _Held(Struct, frozen=True):
    """The little of a node's state that a rollout is decided on; each step reads it of every node in it."""

    baseline: BaselineRef | None = None
    pending: BaselineRef | None = None
    drifts: list[msgspec.Raw] = []


_PLAIN = ("node", "site", "wave", "progress", "since", "standing", "tier", "last_report_at")
_decode_held = msgspec.json.Decoder(_Held).decode
_FACTS = Prepared(
    select(
        rollout_nodes.c.node,
        nodes.c.site,
        rollout_nodes.c.wave,
        rollout_nodes.c.progress,
        rollout_nodes.c.since,
        nodes.c.standing,
        nodes.c.tier,
        nodes.c.last_report_at,
        nodes.c.state,
    )
    .join(nodes, nodes.c.node == rollout_nodes.c.node)
    .where(rollout_nodes.c.rollout == bindparam("of_rollout"))
    .order_by(rollout_nodes.c.node)
)


def facts(tx: Transaction, number: int, sha256: str) -> list[NodeFacts]:
    """What is known of the nodes of a rollout whose baseline has this hash."""
    out = []
    for *plain, text in _FACTS.all(tx, {"of_rollout": number}):
        state = _decode_held(text)  # type: ignore[arg-type]
        held = state.baseline
        out.append(
            NodeFacts(
                **dict(zip(_PLAIN, plain, strict=True)),  # type: ignore[arg-type]
                holds=held is not None and held.sha256.hex() == sha256 and state.pending is None,
                drifts=len(state.drifts),
            )
        )
    return out


def names_of(tx: Transaction, number: int) -> list[str]:
    """Its nodes, by name."""
    of_it = select(rollout_nodes.c.node).where(rollout_nodes.c.rollout == number)
    return list(tx.execute(of_it.order_by(rollout_nodes.c.node)).scalars())


def node_page(tx: Transaction, number: int, *, after: str | None, limit: int) -> list[RolloutNode]:
    """How far each node is, by name."""
    statement = (
        select(
            rollout_nodes.c.node,
            nodes.c.site,
            *(rollout_nodes.c[name] for name in ("wave", "progress", "since", "detail")),
        )
        .join(nodes, nodes.c.node == rollout_nodes.c.node)
        .where(rollout_nodes.c.rollout == number)
        .order_by(rollout_nodes.c.node)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(rollout_nodes.c.node > after)
    return [RolloutNode(**row._mapping) for row in tx.execute(statement)]


def counts(tx: Transaction, number: int) -> dict[Progress, int]:
    """Nodes by progress."""
    rows = tx.execute(
        select(rollout_nodes.c.progress, func.count())
        .where(rollout_nodes.c.rollout == number)
        .group_by(rollout_nodes.c.progress)
    )
    return {row[0]: row[1] for row in rows}


def last_wave(tx: Transaction, number: int) -> int:
    """The number of its last wave."""
    statement = select(func.max(rollout_nodes.c.wave)).where(rollout_nodes.c.rollout == number)
    return int(tx.execute(statement).scalar_one() or 0)


def active_of(tx: Transaction, names: Sequence[str]) -> dict[str, int]:
    """Which of these nodes are in a rollout that has not ended, and in which."""
    out: dict[str, int] = {}
    for begin in range(0, len(names), _CHUNK):
        rows = tx.execute(
            select(rollout_nodes.c.node, rollout_nodes.c.rollout).where(
                rollout_nodes.c.active == 1, rollout_nodes.c.node.in_(names[begin : begin + _CHUNK])
            )
        )
        out |= {row.node: row.rollout for row in rows}
    return out


_MOVE = Prepared(
    update(rollout_nodes)
    .where(rollout_nodes.c.rollout == bindparam("of_rollout"), rollout_nodes.c.node == bindparam("of_node"))
    .values(progress=bindparam("to_progress"), detail=bindparam("to_detail"), since=bindparam("to_since"))
)


def move(tx: Transaction, number: int, moved: Sequence[Moved], now: float) -> None:
    """Write new progress of nodes."""
    _MOVE.run_each(
        tx,
        [
            {
                "of_rollout": number,
                "of_node": each.node,
                "to_progress": each.progress,
                "to_detail": each.detail[:2048],
                "to_since": now,
            }
            for each in moved
        ],
    )


def remember(tx: Transaction, number: int, names: Sequence[str]) -> None:
    """Keep what these nodes have chosen for themselves so far."""
    own = nodes.c.node == rollout_nodes.c.node
    for some in chunked(names):
        tx.execute(
            update(rollout_nodes)
            .where(rollout_nodes.c.rollout == number, rollout_nodes.c.node.in_(some))
            .values(
                before_name=select(nodes.c.baseline_name).where(own).scalar_subquery(),
                before_version=select(nodes.c.baseline_version).where(own).scalar_subquery(),
            )
        )


def before(tx: Transaction, number: int, names: Sequence[str]) -> dict[str, tuple[str, int] | None]:
    """What these nodes had chosen for themselves before."""
    chosen = select(rollout_nodes.c.node, rollout_nodes.c.before_name, rollout_nodes.c.before_version)
    return {
        row.node: None if row.before_name is None else (row.before_name, row.before_version)
        for some in chunked(names)
        for row in tx.execute(chosen.where(rollout_nodes.c.rollout == number, rollout_nodes.c.node.in_(some)))
    }


def end(tx: Transaction, number: int) -> None:
    """Let its nodes be in another rollout."""
    tx.execute(update(rollout_nodes).where(rollout_nodes.c.rollout == number).values(active=0))

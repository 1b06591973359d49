"""Rows of nodes: the hot path is one SELECT and one UPDATE, both prepared once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import msgspec
from sqlalchemy import ColumnElement, and_, bindparam, exists, func, insert, or_, select, update

from contract.directive import WantedBaseline
from contract.messages import BaselineRef, Posture, Tier
from controller.policy import SitePolicy
from controller.records import EkTrust, Record, Standing
from controller.store import Transaction, neighbours, notices
from controller.store.counting import added
from controller.store.hot import Prepared
from controller.store.schema import baselines, boot_references, holds, nodes, sites
from controller.store.scoped import chunked
from controller.store.state import NodeState

decode_state = msgspec.json.Decoder(NodeState).decode
_decode_policy = msgspec.json.Decoder(SitePolicy).decode
_encode = msgspec.json.encode


@lru_cache(maxsize=1024)
def policy_of(text: str) -> SitePolicy:
    """Decode a stored policy; the same text gives the same object."""
    return _decode_policy(text)


class NodeRow(Record, frozen=True, kw_only=True):
    """A node with what its site adds."""

    node: str
    site: str
    ek_id: str
    ek_public: bytes
    ak_public: bytes
    ak_name: str
    ek_trust: EkTrust
    certificate_sha256: bytes | None
    """None until it is handed out."""
    next_certificate_sha256: bytes | None
    certificate_not_after: float
    approved_at: float
    approved_by: str
    tier: Tier
    standing: Standing
    standing_since: float
    last_report_at: float | None
    last_drift_at: float | None
    connected: bool
    directive_number: int
    directive_issued_at: float
    directive_due: bool
    wanted_posture: Posture
    baseline_name: str | None
    baseline_version: int | None
    """Chosen for this node alone; None: the site's is in force."""
    baseline_since: float | None
    labels: str
    """JSON of a mapping, as it is shown."""
    reported_baseline: str
    agent_version: str
    tpm: str
    """JSON of a TpmRecord: read where people look at the node, not with every report."""
    session_holder: str
    session_epoch: int
    state: NodeState
    policy: SitePolicy
    reference_at: float | None
    """When its boot reference was accepted; None while it has none."""
    baseline: WantedBaseline | None
    """Chosen for the node, else for its site."""
    announced: str
    """Spans of the sets of reference values announced for the site (store.references); empty for most."""


FROM = (
    nodes.join(sites, sites.c.site == nodes.c.site)
    .outerjoin(boot_references, boot_references.c.node == nodes.c.node)
    .outerjoin(
        baselines,
        and_(
            baselines.c.name == func.coalesce(nodes.c.baseline_name, sites.c.baseline_name),
            baselines.c.version == func.coalesce(nodes.c.baseline_version, sites.c.baseline_version),
        ),
    )
)
_SELECT = select(
    *nodes.c,
    sites.c.policy,
    baselines.c.name,
    baselines.c.version,
    sites.c.announced,
    boot_references.c.accepted_at,
    baselines.c.sha256,
).select_from(FROM)
_BY_NAME = _SELECT.where(nodes.c.node == bindparam("wanted_node"))
_LOAD = Prepared(_BY_NAME)
# One row, one writer at a time, also with several controllers; SQLite has one writer anyway.
_LOAD_LOCKED = Prepared(_BY_NAME.with_for_update(of=nodes))
_OF_SITE = _SELECT.where(nodes.c.site == bindparam("wanted_site")).order_by(nodes.c.node)

_HOT = (
    "tier",
    "standing",
    "standing_since",
    "last_report_at",
    "last_drift_at",
    "directive_number",
    "directive_issued_at",
    "directive_due",
    "reported_baseline",
    "agent_version",
    "state",
)
_SELDOM = frozenset({"standing", "standing_since", "last_drift_at", "directive_due"})
"""Left out of most reports' UPDATE: SQLite writes every index of a column that is set, whether or not it differs."""


def _writing(columns: Iterable[str]) -> Prepared:
    written: dict[str, object] = {name: bindparam("to_" + name) for name in columns}
    return Prepared(update(nodes).where(nodes.c.node == bindparam("of_node")).values(written))


_WRITE = _writing(_HOT)
_WRITE_STEADY = _writing(name for name in _HOT if name not in _SELDOM)
_STAND = _writing(("standing", "standing_since"))


def _row(row: Sequence[object]) -> NodeRow:
    (*plain, state, policy, name, version, announced, reference_at, sha256) = row
    chosen = None
    if name is not None:
        chosen = WantedBaseline(name=name, version=version, sha256=sha256)  # type: ignore[arg-type]
    values = dict(zip(_PLAIN, plain, strict=True))
    for name in ("connected", "directive_due"):
        values[name] = bool(values[name])
    return NodeRow(
        **values,  # type: ignore[arg-type]
        baseline=chosen,
        state=decode_state(state),  # type: ignore[arg-type]
        policy=policy_of(str(policy)),
        reference_at=reference_at,  # type: ignore[arg-type]
        announced=announced,  # type: ignore[arg-type]
    )


_PLAIN = tuple(column.name for column in nodes.c)[:-1]


def reported_name(reported: BaselineRef | None) -> str:
    """Return a reported baseline as selectors name it."""
    return "" if reported is None else f"{reported.name}/{reported.version}"


def load(tx: Transaction, node: str, *, lock: bool = False) -> NodeRow | None:
    """Read one node; with `lock`, nobody else changes it until this transaction ends."""
    row = (_LOAD_LOCKED if lock else _LOAD).first(tx, {"wanted_node": node})
    return None if row is None else _row(row)


def of_site(tx: Transaction, site: str) -> list[NodeRow]:
    """All nodes of a site, by name."""
    return [_row(row) for row in tx.execute(_OF_SITE, {"wanted_site": site})]


def every(tx: Transaction) -> list[NodeRow]:
    """All nodes, by name: for what is done once."""
    return [_row(row) for row in tx.execute(_SELECT.order_by(nodes.c.node))]


def rows_of(
    tx: Transaction, where: ColumnElement[bool], order: Sequence[ColumnElement[object]], limit: int
) -> list[NodeRow]:
    """Nodes under a condition, in an order: their names first, for whole rows of a large fleet are too much to sort."""
    names = tx.execute(select(nodes.c.node).where(where).order_by(*order).limit(limit)).scalars().all()
    found = {
        row.node: row
        for some in chunked(names)
        for row in map(_row, tx.execute(_SELECT.where(nodes.c.node.in_(some))))
    }
    return [found[name] for name in names if name in found]


def write(
    tx: Transaction,
    before: NodeRow,
    *,
    tier: Tier,
    standing: Standing,
    standing_since: float,
    last_report_at: float | None,
    last_drift_at: float | None,
    directive: tuple[int, float, bool],
    state: NodeState,
) -> None:
    """Write what a report changed. `before`: the row as it stands now, locked. `directive`: number, issued at, still due."""
    if state.addresses != before.state.addresses:
        neighbours.changed(tx)
    number, issued_at, due = directive
    values: dict[str, object] = {
        "of_node": before.node,
        "to_tier": tier,
        "to_last_report_at": last_report_at,
        "to_directive_number": number,
        "to_directive_issued_at": issued_at,
        "to_reported_baseline": reported_name(state.baseline),
        "to_agent_version": state.agent_version,
        "to_state": _encode(state).decode(),
    }
    seldom = (standing, standing_since, last_drift_at, due)
    if seldom == (before.standing, before.standing_since, before.last_drift_at, before.directive_due):
        _WRITE_STEADY.run(tx, values)
        return
    values |= {
        "to_standing": standing,
        "to_standing_since": standing_since,
        "to_last_drift_at": last_drift_at,
        "to_directive_due": due,
    }
    _WRITE.run(tx, values)


def bound(tx: Transaction, *, node: str, ek_id: str, ak_name: str) -> list[tuple[str, str, str]]:
    """Return (node, EK id, AK name) of every node that has any of the three."""
    rows = tx.execute(
        select(nodes.c.node, nodes.c.ek_id, nodes.c.ak_name).where(
            or_(nodes.c.node == node, nodes.c.ek_id == ek_id, nodes.c.ak_name == ak_name)
        )
    )
    return [(row[0], row[1], row[2]) for row in rows]


def add(
    tx: Transaction,
    *,
    node: str,
    site: str,
    ek_id: str,
    ek_public: bytes,
    ak_public: bytes,
    ak_name: str,
    ek_trust: EkTrust,
    approved_by: str,
    now: float,
    tpm: str = "{}",
) -> None:
    """Bind id, EK and AK in one row; the certificate follows when it is handed out. Raises the database's own integrity error when any is taken."""
    tx.execute(
        insert(nodes).values(
            node=node,
            site=site,
            ek_id=ek_id,
            ek_public=ek_public,
            ak_public=ak_public,
            ak_name=ak_name,
            ek_trust=ek_trust,
            certificate_not_after=0.0,
            approved_at=now,
            approved_by=approved_by,
            tier="none",
            standing="unreachable",
            standing_since=now,
            connected=False,
            directive_number=0,
            directive_issued_at=0.0,
            directive_due=True,
            wanted_posture=_posture_of_new(tx, site),
            tpm=tpm,
            state=_encode(NodeState()).decode(),
        )
    )
    added(tx)
    neighbours.changed(tx)


def _posture_of_new(tx: Transaction, site: str) -> str:
    held = tx.execute(
        select(exists().where(holds.c.site == site, holds.c.node.is_(None), holds.c.released_at.is_(None)))
    )
    return "isolated" if held.scalar_one() else "normal"


def replace_ak(tx: Transaction, node: str, *, ak_public: bytes, ak_name: str) -> None:
    """Same TPM, new AK: no certificate that was given out before is good any more.

    The TPM's counters stay on record: they are the TPM's, not the key's. So does the boot reference: what boots
    after the disk was replaced is held against what booted before.
    """
    tx.execute(
        update(nodes)
        .where(nodes.c.node == node)
        .values(
            ak_public=ak_public,
            ak_name=ak_name,
            certificate_sha256=None,
            next_certificate_sha256=None,
            certificate_not_after=0.0,
            directive_due=True,
        )
    )


def set_tpm(tx: Transaction, node: str, tpm: str) -> None:
    """Write down what the latest enrolment proved of the TPM (JSON of a TpmRecord)."""
    tx.execute(update(nodes).where(nodes.c.node == node).values(tpm=tpm))


def set_certificates(
    tx: Transaction, node: str, *, current: bytes | None, following: bytes | None, not_after: float
) -> None:
    """Note which client certificates are good."""
    tx.execute(
        update(nodes)
        .where(nodes.c.node == node)
        .values(
            certificate_sha256=current, next_certificate_sha256=following, certificate_not_after=not_after
        )
    )


def set_state(tx: Transaction, node: str, state: NodeState) -> None:
    """Replace the state document alone."""
    tx.execute(update(nodes).where(nodes.c.node == node).values(state=_encode(state).decode()))


def _update(tx: Transaction, names: Sequence[str], values: Mapping[str, object]) -> None:
    for some in chunked(names):
        tx.execute(update(nodes).where(nodes.c.node.in_(some)).values(values))


def set_posture(
    tx: Transaction, names: Sequence[str], wanted: Posture, standing: Standing | None, now: float
) -> None:
    """Want another posture of these nodes: their directive is due. `standing` None leaves it as it is."""
    values: dict[str, object] = {"wanted_posture": wanted, "directive_due": True}
    if standing is not None:
        values |= {"standing": standing, "standing_since": now}
    notices.due(tx, names)
    _update(tx, names, values)


def set_due(tx: Transaction, names: Sequence[str]) -> None:
    """The directive of these nodes must be written anew."""
    notices.due(tx, names)
    _update(tx, names, {"directive_due": True})


def set_standing(tx: Transaction, node: str, standing: Standing, now: float) -> None:
    """The sweep found another standing."""
    _STAND.run(tx, {"of_node": node, "to_standing": standing, "to_standing_since": now})


def silent(
    tx: Transaction, *, now: float, started: float, intervals: Mapping[Standing, float], limit: int
) -> list[str]:
    """Names of nodes of these standings that have been silent for so many intervals, all of them while this controller (up since `started`)
    was listening: at most `limit` of each standing, the longest silent, sorted."""
    shortest = tx.execute(select(func.min(sites.c.interval_s))).scalar()
    if shortest is None:
        return []
    found: list[str] = []
    for stands, bound in intervals.items():
        silence = bound * sites.c.interval_s
        # The first bound is a plain number, so that an index finds the few: the second alone has every node's row read.
        statement = (
            select(nodes.c.node)
            .join(sites, sites.c.site == nodes.c.site)
            .where(
                nodes.c.standing == stands,
                nodes.c.last_report_at <= now - bound * shortest,
                nodes.c.last_report_at <= now - silence,
                silence <= now - started,
            )
            .order_by(nodes.c.last_report_at)
            .limit(limit)
        )
        found += tx.execute(statement).scalars()
    return sorted(found)


def forget_own_baseline(tx: Transaction, names: Sequence[str]) -> None:
    """Their site's choice is in force again; what they are told does not change, so nothing is due."""
    _update(tx, names, {"baseline_name": None, "baseline_version": None})

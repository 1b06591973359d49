"""Use cases of keys in escrow: put, list, revoke, and release after a good attestation.

A release answers a request that came inside a report, so the quote over a fresh nonce vouches for who asks, in which
boot, and for which ephemeral key. The decision is made on the node's row as that very report left it. Every release
and every refusal is an event and a line of the audit trail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from contract.errors import Rejected
from contract.escrow import answer, check_sealed
from contract.messages import KeyRefused, KeyReleased, KeyWanted, Tier
from contract.names import checked_name
from contract.quote import Counters
from controller.escrow_records import KeyState, KeyView, NewKey, SealingView
from controller.fleet import acts
from controller.fleet.paging import cut
from controller.records import Page
from controller.store import Store, Transaction, nodes
from controller.store import escrow as rows
from controller.store.escrow import KeyRow
from controller.store.nodes import NodeRow

MAX_KEYS_PER_NODE = 64
ASKS_PER_WINDOW = 8
WINDOW_S = 60.0
_GOOD: dict[str, frozenset[Tier]] = {
    "affirming": frozenset({"affirming"}),
    "warning": frozenset({"affirming", "warning"}),
}


def sealing(tx: Transaction, node: str) -> SealingView:
    """See Escrow.sealing."""
    row = _node(tx, node)
    return SealingView(
        node=row.node,
        ek_public=row.ek_public,
        ak_public=row.ak_public,
        ek_id=row.ek_id,
        ak_name=row.ak_name,
        ek_trust=row.ek_trust,
    )


def put(tx: Transaction, node: str, name: str, new: NewKey, *, actor: str, now: float) -> KeyView:
    """See Escrow.put."""
    row = _node(tx, node, lock=True)
    reason = acts.checked_reason(new.reason)
    checked_name(name, "key")
    check_sealed(new.sealed, new.share)
    if new.ak_name != row.ak_name:
        raise Rejected("key.stale", f"sealed to another attestation key than {node} has now; seal it again")
    before = rows.get(tx, node, name)
    if before is None and len(rows.of_node(tx, node)) >= MAX_KEYS_PER_NODE:
        raise Rejected("key.too-many", f"{node} has {MAX_KEYS_PER_NODE} keys in escrow")
    version = 1 if before is None else before.version + 1
    rows.put(
        tx,
        node=node,
        name=name,
        version=version,
        ak_name=new.ak_name,
        sealed=new.sealed,
        share=new.share,
        least_tier=new.least_tier,
        actor=actor,
        now=now,
    )
    what = f"version {version} put in escrow"
    _tell(tx, "key.put", what, row, name, actor=actor, reason=reason, now=now)
    return _view(_key(tx, node, name), row)


def listed(tx: Transaction, node: str, *, after: str | None, limit: int) -> Page[KeyView]:
    """See Escrow.listed."""
    row = _node(tx, node)
    keys = [key for key in rows.of_node(tx, node) if after is None or key.name > after]
    return cut([_view(key, row) for key in keys[: limit + 1]], limit, lambda view: view.name)


def revoke(tx: Transaction, node: str, name: str, *, actor: str, reason: str, now: float) -> KeyView:
    """See Escrow.revoke."""
    row = _node(tx, node, lock=True)
    why = acts.checked_reason(reason)
    if _key(tx, node, name).revoked_at is not None:
        raise Rejected("key.decided", f"{name} of {node} is revoked already")
    rows.revoke(tx, node, name, actor=actor, now=now)
    _tell(tx, "key.revoked", f"revoked by {actor}", row, name, actor=actor, reason=why, now=now)
    return _view(_key(tx, node, name), row)


def release(
    tx: Transaction, node: str, wanted: KeyWanted, counters: Counters, *, now: float
) -> KeyReleased | KeyRefused:
    """Release one key, or say why not.

    1. a key of this name is held for this node (`key.unknown`), and is not revoked (`key.revoked`)
    2. what the node's row says is what the report that asks has left: this boot, this quote (`key.not-attested`)
    3. its tier is good enough for the key (`key.not-affirming`)
    4. the node is neither isolated nor to be (`key.isolated`)
    5. the key is sealed to the AK that the node has now (`key.stale`)
    6. the request's ephemeral key makes a secret (`escrow.ephemeral`)
    """
    row = _node(tx, node, lock=True)
    try:
        key = _releasable(tx, row, wanted.name, counters)
        released = answer(key.content(), key.share, wanted, node=node)  # 6
    except Rejected as refused:
        what = f"refused: {refused.code}"
        _tell(tx, "key.refused", what, row, wanted.name, actor=f"node {node}", reason=str(refused), now=now)
        return KeyRefused(name=wanted.name, code=refused.code, detail=refused.detail)
    rows.released(tx, key, now)
    why = f"{row.tier} in boot {counters.reset} ({row.state.boot_id})"
    what = f"version {key.version} released"
    _tell(tx, "key.released", what, row, wanted.name, actor=f"node {node}", reason=why, now=now)
    return released


def _releasable(tx: Transaction, row: NodeRow, name: str, counters: Counters) -> KeyRow:
    key = _key(tx, row.node, name)  # 1
    if key.revoked_at is not None:
        raise Rejected("key.revoked", name)
    if (
        row.state.counters != counters or row.state.boot is None or row.state.boot.reset != counters.reset
    ):  # 2
        raise Rejected("key.not-attested", "the report that asks is not the one accepted last")
    if row.tier not in _GOOD[key.least_tier]:  # 3
        raise Rejected("key.not-affirming", f"wanted {key.least_tier}, this boot is {row.tier}")
    if row.wanted_posture == "isolated" or row.state.posture == "isolated":  # 4
        raise Rejected("key.isolated", "an isolated node gets no key")
    if key.ak_name != row.ak_name:  # 5
        raise Rejected("key.stale", "sealed to an attestation key that the node had before; put it again")
    return key


class Escrow:
    """Keys in escrow over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked: dict[str, deque[float]] = {}

    async def sealing(self, node: str) -> SealingView:
        """What a key for this node must be sealed to. Raises Rejected `node.unknown`."""
        return await self._store.run(lambda tx: sealing(tx, node))

    async def put(self, node: str, name: str, new: NewKey, *, actor: str, now: float) -> KeyView:
        """Take a sealed key; one of the same name is replaced. Raises Rejected `node.unknown`, `name.invalid`,
        `key.stale`, `key.too-many`, `escrow.size`, `reason.missing`."""
        return await self._store.run(lambda tx: put(tx, node, name, new, actor=actor, now=now))

    async def listed(self, node: str, *, after: str | None = None, limit: int = 100) -> Page[KeyView]:
        """Keys of a node by name. Raises Rejected `node.unknown`."""
        return await self._store.run(lambda tx: listed(tx, node, after=after, limit=limit))

    async def revoke(self, node: str, name: str, *, actor: str, reason: str, now: float) -> KeyView:
        """Make a key unopenable for good. Raises Rejected `node.unknown`, `key.unknown`, `key.decided`, `reason.missing`."""
        return await self._store.run(lambda tx: revoke(tx, node, name, actor=actor, reason=reason, now=now))

    async def release(
        self, node: str, wanted: Sequence[KeyWanted], counters: Counters, *, now: float
    ) -> list[KeyReleased | KeyRefused]:
        """Answer the requests of one report that was verified and stored; one answer each.

        A node that asks too often is refused without being looked up or written down (`key.too-often`): a suspect
        must not fill the audit trail.
        """
        answers: list[KeyReleased | KeyRefused] = []
        for one in wanted:
            if self._too_often(node, now):
                detail = f"more than {ASKS_PER_WINDOW} in {WINDOW_S:g} s"
                answers.append(KeyRefused(name=one.name, code="key.too-often", detail=detail))
                continue
            answers.append(await self._release(node, one, counters, now))
        return answers

    async def _release(
        self, node: str, wanted: KeyWanted, counters: Counters, now: float
    ) -> KeyReleased | KeyRefused:
        return await self._store.run(lambda tx: release(tx, node, wanted, counters, now=now))

    def _too_often(self, node: str, now: float) -> bool:
        asked = self._asked.setdefault(node, deque(maxlen=ASKS_PER_WINDOW))
        if len(asked) == ASKS_PER_WINDOW and now - asked[0] < WINDOW_S:
            return True
        asked.append(now)
        return False


def _node(tx: Transaction, node: str, *, lock: bool = False) -> NodeRow:
    row = nodes.load(tx, node, lock=lock)
    if row is None:
        raise Rejected("node.unknown", node[:63])
    return row


def _key(tx: Transaction, node: str, name: str) -> KeyRow:
    row = rows.get(tx, node, name)
    if row is None:
        raise Rejected("key.unknown", f"{node} has no key {name[:63]}")
    return row


def _view(key: KeyRow, row: NodeRow) -> KeyView:
    state: KeyState = "held"
    if key.revoked_at is not None:
        state = "revoked"
    elif key.ak_name != row.ak_name:
        state = "stale"
    return KeyView(
        node=key.node,
        name=key.name,
        version=key.version,
        least_tier=key.least_tier,
        state=state,
        put_at=key.put_at,
        put_by=key.put_by,
        releases=key.releases,
        released_at=key.released_at,
        revoked_at=key.revoked_at,
        revoked_by=key.revoked_by,
    )


def _tell(
    tx: Transaction, kind: str, what: str, row: NodeRow, name: str, *, actor: str, reason: str, now: float
) -> None:
    acts.record(
        tx,
        kind,
        f"{row.node}: key {name} {what}",
        actor=actor,
        target=f"node {row.node} key {name}",
        reason=reason,
        now=now,
        severity="warning" if kind in {"key.refused", "key.revoked"} else "info",
        node=row.node,
        site=row.site,
    )

"""Use cases of plans: what a baseline would change, on which nodes, before anything is sent.

A plan is what was true when it was made. A rollout names it and is refused when the world has moved too far since
(`check_fresh`), so that nobody carries out what nobody has read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from contract.errors import Rejected
from contract.sockets import SocketReport
from controller.baselinediff import changes
from controller.foretelling import Asked, Foretelling
from controller.permissions import Scope
from controller.records import BaselineView, Record
from controller.rollout_records import MAX_PLANNED, Impact, NewPlan, PlanGroup, PlanView, SectionChange
from controller.selector import Selector, parse_selector
from controller.store import Transaction, nodes, selecting
from controller.store import rollouts as rows
from controller.store import sites as baselines
from controller.store.nodes import NodeRow

MAX_AGE_S: Final = 24 * 3600.0
ASKED_AT_ONCE: Final = 100
MAX_ASKED: Final = 2000
ASKING_S: Final = 15.0
"""Then no more are asked: a person waits."""
MOVED_SHARE: Final = 0.05
"""So large a share of the planned nodes may have come, gone or changed their baseline since."""


class Gathered(Record, frozen=True, kw_only=True):
    """What a plan is made of: read in one transaction, thought about outside of any."""

    wanted: BaselineView
    selector: Selector
    scope: Scope
    nodes: list[NodeRow]
    documents: dict[str, bytes]
    """Signed baselines by name/version."""
    in_rollout: dict[str, int]


def gather(tx: Transaction, new: NewPlan, scope: Scope) -> Gathered:
    """Read what is wanted to know. Raises Rejected `selector.*`, `baseline.unknown`, `plan.nobody`, `plan.too-many`."""
    selector = parse_selector(new.selector)
    wanted = baselines.baseline(tx, new.baseline, new.version)
    if wanted is None:
        raise Rejected(
            "baseline.unknown", new.baseline if new.version is None else f"{new.baseline} {new.version}"
        )
    chosen = selecting.meant(tx, selector, scope, MAX_PLANNED + 1)
    if not chosen:
        raise Rejected("plan.nobody", f"no node is meant by {selector}")
    if len(chosen) > MAX_PLANNED:
        raise Rejected("plan.too-many", f"more than {MAX_PLANNED} nodes")
    held = {(wanted.name, wanted.version, wanted.sha256)}
    held |= {(b.name, b.version, b.sha256.hex()) for row in chosen if (b := row.state.baseline) is not None}
    documents = {}
    for name, version, sha256 in held:
        content = baselines.trust_file(tx, f"targets/{name}/{sha256}.{version}.toml")
        if content is not None:
            documents[f"{name}/{version}"] = content
    in_rollout = rows.active_of(tx, [row.node for row in chosen])
    return Gathered(
        wanted=wanted,
        selector=selector,
        scope=scope,
        nodes=chosen,
        documents=documents,
        in_rollout=in_rollout,
    )


def think(found: Gathered, *, actor: str, now: float) -> PlanView:
    """Return the plan, without an id. Takes seconds where baselines are large: not for the store's thread."""
    wanted = found.wanted
    target = f"{wanted.name}/{wanted.version}"
    already, refused, groups = [], {}, dict[str, list[str]]()
    for row in found.nodes:
        here = row.state.baseline
        if here is not None and here.sha256.hex() == wanted.sha256:
            already.append(row.node)
        elif here is not None and here.name == wanted.name and here.version > wanted.version:
            refused[row.node] = f"holds {here.name}/{here.version}, and no node goes back"
        else:
            groups.setdefault(nodes.reported_name(here), []).append(row.node)
    changing = [row for row in found.nodes if row.node not in refused and row.node not in set(already)]
    return PlanView(
        id=0,
        baseline=wanted.name,
        version=wanted.version,
        sha256=wanted.sha256,
        selector=str(found.selector),
        scope=found.scope,
        nodes=len(changing),
        sites=sorted({row.site for row in changing}),
        groups=[
            PlanGroup(before=before, nodes=names, changes=_changes(found.documents, before, target))
            for before, names in sorted(groups.items())
        ],
        already=already,
        refused=refused,
        away=[row.node for row in changing if row.standing == "unreachable"],
        not_healthy=[
            row.node for row in changing if row.standing in ("untrusted", "isolated") or row.state.drifts
        ],
        in_rollout={name: number for name, number in found.in_rollout.items() if name not in set(already)},
        created_at=now,
        created_by=actor,
    )


Ask = Callable[[Sequence[str]], Awaitable[Mapping[str, SocketReport | str]]]
"""Given nodes, what each tells of its connections, or in words why it tells nothing."""


async def nobody_tells(names: Sequence[str]) -> Mapping[str, SocketReport | str]:
    """As where no session is held here."""
    return dict.fromkeys(names, "nobody was asked")


async def foretell(found: Gathered, plan: PlanView, ask: Ask) -> Impact:
    """Ask the nodes that would change, some at a time, and say what would become of what they have open."""
    before = {name: group.before for group in plan.groups for name in group.nodes}
    asked = [
        Asked(
            node=row.node,
            site=row.site,
            before=before[row.node],
            posture=row.state.posture or "normal",
            interval_s=row.policy.interval_s,
        )
        for row in found.nodes
        if row.node in before
    ]
    after = f"{plan.baseline}/{plan.version}"
    foretelling = await asyncio.to_thread(Foretelling, found.documents, after)
    until = asyncio.get_running_loop().time() + ASKING_S
    for begin in range(0, len(asked), ASKED_AT_ONCE):
        some = asked[begin : begin + ASKED_AT_ONCE]
        names = [one.node for one in some]
        said: Mapping[str, SocketReport | str] = dict.fromkeys(names, "too many nodes to ask all of them")
        if begin < MAX_ASKED and asyncio.get_running_loop().time() < until:
            said = await ask(names)
        await asyncio.to_thread(_take, foretelling, some, said)
    return await asyncio.to_thread(foretelling.impact)


def _take(foretelling: Foretelling, asked: Sequence[Asked], said: Mapping[str, SocketReport | str]) -> None:
    for one in asked:
        foretelling.told(one, said.get(one.node, "it was not asked"))


def _changes(documents: Mapping[str, bytes], before: str, after: str) -> list[SectionChange]:
    return changes(documents.get(before, b""), documents[after])


def check_fresh(tx: Transaction, plan: PlanView, now: float) -> list[NodeRow]:
    """Return the nodes that the plan is about, as they are now.

    Raises Rejected `plan.changed`: it is older than a day, its baseline is no longer offered with this content, or more than a
    twentieth of its nodes (and more than one) came, went or hold another baseline than when it was made.
    """
    if not 0 <= now - plan.created_at <= MAX_AGE_S:
        raise Rejected("plan.changed", "it is older than a day; make a new one")
    offered = baselines.baseline(tx, plan.baseline, plan.version)
    if offered is None or offered.sha256 != plan.sha256:
        raise Rejected("plan.changed", "its baseline is no longer offered")
    before = {name: group.before for group in plan.groups for name in group.nodes}
    selector = parse_selector(plan.selector)
    now_there = selecting.meant(tx, selector, plan.scope, MAX_PLANNED + 1)
    known = {*before, *plan.already, *plan.refused}
    here = {row.node: row for row in now_there}
    moved = known ^ here.keys()
    moved |= {
        name
        for name, was in before.items()
        if name in here and nodes.reported_name(here[name].state.baseline) != was
    }
    if len(moved) > max(1, MOVED_SHARE * len(known)):
        shown = ", ".join(sorted(moved)[:5]) + (", ..." if len(moved) > 5 else "")
        raise Rejected(
            "plan.changed", f"{len(moved)} nodes are others than planned ({shown}); make a new one"
        )
    return [here[name] for name in before if name in here and name not in moved]

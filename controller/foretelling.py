"""What a baseline would do to the connections that nodes have open now, and to their way to the controller. Pure.

Takes signed baselines and what nodes told of their sockets (`contract.sockets`). What is not known is said to be not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from contract.baseline import Head, parse_baseline, section
from contract.errors import Rejected
from contract.firewall import Section
from contract.foretell import Fate, Foretold
from contract.messages import Posture
from contract.sockets import Connection, SocketReport
from controller.rollout_records import Impact, NodeImpact, SocketFate, Unknown

MAX_SHOWN: Final = 20
"""Connections and services of one node."""
MAX_NODES: Final = 500
"""Nodes that are shown one by one."""
MAX_UNKNOWN: Final = 100
CONFIRM_S: Final = 30.0
"""So long an agent waits for an answer under new rules before it takes the last ones back, unless it is configured otherwise."""


class Rules(Struct, frozen=True, kw_only=True):
    """What a baseline says of connections."""

    head: Head
    firewall: Section

    @property
    def enforced(self) -> bool:
        """Whether its rules are in force, and not only looked at."""
        return (self.firewall.mode or self.head.mode) == "enforce"


class Asked(Struct, frozen=True, kw_only=True):
    """One node that would change."""

    node: str
    site: str
    before: str
    """The baseline that it holds, as name/version; empty: none."""
    posture: Posture
    interval_s: float


def rules_of(content: bytes) -> Rules:
    """Return the rules of a signed baseline; without `[firewall]` the controller is all that is let through. Raises Rejected."""
    baseline = parse_baseline(content)
    there = "firewall" in baseline.sections
    return Rules(head=baseline.head, firewall=section(baseline, "firewall", Section) if there else Section())


class Foretelling:
    """One baseline against many nodes; what they tell comes in as it comes."""

    def __init__(self, documents: Mapping[str, bytes], after: str) -> None:
        """`documents` by name/version. Raises Rejected where `after` cannot be read; others are then not compared with."""
        self._rules: dict[str, Rules] = {after: rules_of(documents[after])}
        for name, content in documents.items():
            try:
                self._rules[name] = rules_of(content)
            except (
                Rejected
            ):  # signed by people of another version: the nodes that hold it still tell what is open
                continue
        self._after = after
        self._made: dict[tuple[str, Posture], Foretold] = {}
        self._nodes: list[NodeImpact] = []
        self._unknown: dict[str, list[str]] = {}
        self._isolated: dict[str, str] = {}
        self._known = 0

    def told(self, node: Asked, said: SocketReport | str) -> None:
        """Take what a node told, or in words why it told nothing."""
        wanted = self._rules[self._after]
        isolates = self._isolates(wanted, node)
        if isolates:
            self._isolated[node.node] = isolates
        if isinstance(said, str):
            self._unknown.setdefault(said, []).append(node.node)
            return
        self._known += 1
        found = self._on(node, said, wanted)
        if found.controller == "cut" and not isolates:
            limit_s = wanted.head.offline.isolate_after_s
            if limit_s is not None and limit_s <= CONFIRM_S:
                self._isolated[node.node] = (
                    f"it loses the controller, and isolates itself after {limit_s:g} s"
                )
        self._nodes.append(found)

    def impact(self) -> Impact:
        """Return all of it."""
        cut = [one for one in self._nodes if one.cut]
        told = [one for one in self._nodes if one.cut or one.unsure or one.closed or one.controller != "kept"]
        told.sort(key=lambda one: (one.controller != "cut", -one.cut, -one.unsure, one.node))
        return Impact(
            known=self._known,
            unknown=[
                Unknown(why=why, count=len(names), nodes=sorted(names)[:MAX_UNKNOWN])
                for why, names in sorted(self._unknown.items())
            ],
            cut=sum(one.cut for one in cut),
            cut_nodes=len(cut),
            cut_sites=sorted({one.site for one in cut}),
            unsure=sum(one.unsure for one in self._nodes),
            not_looked_at=sum(one.not_looked_at for one in self._nodes),
            lose_controller=sorted(one.node for one in self._nodes if one.controller == "cut"),
            would_isolate=dict(sorted(self._isolated.items())),
            nodes=told[:MAX_NODES],
            nodes_left_out=max(0, len(told) - MAX_NODES),
        )

    def _on(self, node: Asked, said: SocketReport, wanted: Rules) -> NodeImpact:
        held = self._rules.get(node.before)
        unchanged = held is not None and held.firewall == wanted.firewall and held.enforced == wanted.enforced
        if unchanged or not wanted.enforced:
            return _nothing(node, said)
        after = self._of(self._after, node.posture)
        before = self._of(node.before, node.posture) if held is not None and held.enforced else None
        fates = [(one, _fate(one, said, before, after)) for one in said.connections]
        bad = [(one, fate) for one, fate in fates if fate.verdict != "kept"]
        bad.sort(key=lambda each: (each[1].verdict != "cut", each[0]))
        return NodeImpact(
            node=node.node,
            site=node.site,
            looked_at=len(fates),
            not_looked_at=said.connections_left_out,
            cut=sum(fate.verdict == "cut" for _, fate in fates),
            unsure=sum(fate.verdict == "unsure" for _, fate in fates),
            shown=[_shown(one, fate) for one, fate in bad[:MAX_SHOWN]],
            closed=_closed(said, before, after),
            controller=after.loses_controller(said.controller),
        )

    def _of(self, name: str, posture: Posture) -> Foretold:
        made = self._made.get((name, posture))
        if made is None:
            made = self._made[name, posture] = Foretold(self._rules[name].firewall, posture)
        return made

    def _isolates(self, wanted: Rules, node: Asked) -> str:
        held, limit_s = self._rules.get(node.before), wanted.head.offline.isolate_after_s
        as_now = held is not None and held.head.offline == wanted.head.offline
        if as_now or limit_s is None or limit_s >= node.interval_s:
            return ""
        return f"isolates itself after {limit_s:g} s of silence, and reports every {node.interval_s:g} s"


def _nothing(node: Asked, said: SocketReport) -> NodeImpact:
    return NodeImpact(
        node=node.node,
        site=node.site,
        looked_at=len(said.connections),
        not_looked_at=said.connections_left_out,
        cut=0,
        unsure=0,
        shown=[],
        closed=[],
        controller="kept",
    )


def _fate(one: Connection, said: SocketReport, before: Foretold | None, after: Foretold) -> Fate:
    fate = after.fate(one, said.controller)
    if fate.verdict == "cut" and before is not None and before.fate(one, said.controller).verdict == "cut":
        return Fate("unsure", "the rules in force do not name it either: a grant, or it is on its way out")
    return fate


def _closed(said: SocketReport, before: Foretold | None, after: Foretold) -> list[str]:
    """Return services that somebody may ask for now and nobody then."""
    found: Iterable[str] = (
        f"{one.protocol}/{one.port} {one.program}".strip()
        for one in said.listening
        if not after.serves(one) and (before is None or before.serves(one))
    )
    closed: Sequence[str] = sorted(set(found))
    return [
        *closed[:MAX_SHOWN],
        *([f"and {len(closed) - MAX_SHOWN} more"] if len(closed) > MAX_SHOWN else []),
    ]


def _shown(one: Connection, fate: Fate) -> SocketFate:
    unit = next((part for part in reversed(one.cgroup.split("/")) if part.endswith(".service")), "")
    return SocketFate(
        protocol=one.protocol,
        begun=one.begun,
        local_port=one.local_port,
        peer=one.peer,
        peer_port=one.peer_port,
        program=one.program,
        unit=unit,
        verdict=fate.verdict,
        why=fate.why,
    )

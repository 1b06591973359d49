"""Plans and rollouts as types: what the API takes and shows. Immutable structs, as in `controller.records`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from contract.messages import Name, Tier
from controller.permissions import EVERYWHERE, Scope
from controller.records import Record, Standing, Strict

RolloutState = Literal["requested", "running", "paused", "halted", "done", "aborted"]
Progress = Literal["waiting", "sent", "away", "proved", "failed", "withdrawn"]
"""Of one node: not its turn yet; chosen for it; chosen while it cannot be reached; evidence says that it holds it and does not
drift; it does not hold it, or is worse off with it; the choice was taken back before it took it."""
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
ClockTime = Annotated[str, Meta(pattern=r"\A([01][0-9]|2[0-3]):[0-5][0-9]\Z")]

MAX_PLANNED = 100_000


class Wave(Strict, frozen=True, kw_only=True):
    """How far a rollout goes before it waits for proof: exactly one of these. Each wave holds those before it."""

    nodes: Annotated[int, Meta(ge=1, le=MAX_PLANNED)] | None = None
    """So many nodes in all."""
    percent: Annotated[float, Meta(gt=0, le=100)] | None = None
    """So many of a hundred nodes in all."""
    sites: Annotated[list[Name], Meta(min_length=1, max_length=1000)] | None = None
    """Every node of these sites."""


class Window(Strict, frozen=True, kw_only=True):
    """When nodes may be changed, by the clock of a time zone. It may end on the next day."""

    days: Annotated[list[Day], Meta(min_length=1, max_length=7)]
    """Days on which it begins."""
    begins: ClockTime
    ends: ClockTime
    zone: Annotated[str, Meta(min_length=1, max_length=64)] = "UTC"
    """As in `Europe/Paris`."""


class Terms(Strict, frozen=True, kw_only=True):
    """How a rollout proceeds. The defaults are careful ones."""

    waves: Annotated[tuple[Wave, ...], Meta(max_length=32)] = (
        Wave(nodes=1),
        Wave(percent=10.0),
        Wave(percent=50.0),
    )
    """After the last of them come all that are left."""
    soak_s: Annotated[float, Meta(ge=0, le=30 * 86400)] = 600.0
    """How long every node of a wave must hold it without drift before the next wave begins."""
    deadline_s: Annotated[float, Meta(ge=1, le=86400)] = 1800.0
    """How long a node that reports may take to prove it."""
    max_failures: Annotated[int, Meta(ge=0, le=MAX_PLANNED)] = 0
    """One more than that halts the rollout."""
    per_site: Annotated[int, Meta(ge=0, le=MAX_PLANNED)] = 0
    """At most so many nodes of a site on their way at once; 0: no bound but the wave."""
    windows: Annotated[tuple[Window, ...], Meta(max_length=16)] = ()
    """Nodes are changed only within one of these; none: at any time."""


class NewPlan(Strict, frozen=True, kw_only=True):
    """What is planned: a signed baseline for the nodes that are meant."""

    baseline: Name
    version: Annotated[int, Meta(ge=1)] | None = None
    """None: the newest."""
    selector: Annotated[str, Meta(min_length=1, max_length=2048)]


class SectionChange(Record, frozen=True, kw_only=True):
    """What differs in one section between two baselines, as `key: before -> after`, at most a few dozen lines."""

    section: str
    change: Literal["added", "removed", "changed"]
    lines: list[str]


class PlanGroup(Record, frozen=True, kw_only=True):
    """Nodes that hold the same baseline now and so change in the same way."""

    before: str
    """As name/version; empty: none."""
    nodes: list[str]
    changes: list[SectionChange]


class SocketFate(Record, frozen=True, kw_only=True):
    """What would become of one open connection."""

    protocol: str
    begun: Literal["here", "there"]
    """`there`: by the peer."""
    local_port: int
    peer: str
    peer_port: int
    program: str
    unit: str
    """Of systemd; empty: none, or not known."""
    verdict: Literal["kept", "cut", "unsure"]
    why: str


class NodeImpact(Record, frozen=True, kw_only=True):
    """What the rules would do to one node's connections."""

    node: str
    site: str
    looked_at: int
    not_looked_at: int
    """The node has more open than it tells."""
    cut: int
    unsure: int
    """Only the node itself could say."""
    shown: list[SocketFate]
    """Those that are cut or unsure, the first few."""
    closed: list[str]
    """Services that somebody may ask for now and nobody then."""
    controller: Literal["kept", "cut", "unsure"]
    """Its way to the controller."""


class Unknown(Record, frozen=True, kw_only=True):
    """Nodes whose connections are not known, and why."""

    why: str
    count: int
    nodes: list[str]
    """The first of them."""


class Impact(Record, frozen=True, kw_only=True):
    """What the rules would do to connections that are open at this moment, by the nodes' own word."""

    known: int
    """Nodes that told."""
    unknown: list[Unknown]
    cut: int
    cut_nodes: int
    cut_sites: list[str]
    unsure: int
    not_looked_at: int
    lose_controller: list[str]
    """They take the last rules back by themselves, and refuse this baseline."""
    would_isolate: dict[str, str]
    """Nodes that would isolate themselves, and why."""
    nodes: list[NodeImpact]
    """Those to which anything happens, the worst first."""
    nodes_left_out: int


class PlanView(Record, frozen=True, kw_only=True):
    """What would happen, before it does."""

    id: int
    baseline: str
    version: int
    sha256: str
    selector: str
    scope: Scope = EVERYWHERE
    """Of whoever made it: the selector means nodes in it."""
    nodes: int
    sites: list[str]
    groups: list[PlanGroup]
    already: list[str]
    """They hold it."""
    refused: dict[str, str]
    """Nodes that could not take it, and why: left out."""
    away: list[str]
    """They cannot be reached now, and catch up when they can."""
    not_healthy: list[str]
    """They drift, are isolated or are not trusted: whether it helps or hurts will not be seen well."""
    in_rollout: dict[str, int]
    """They are in a rollout that has not ended."""
    created_at: float
    created_by: str
    impact: Impact | None = None
    """None: of a plan from before this was looked at."""


class NewRollout(Strict, frozen=True, kw_only=True):
    """Carry out a plan."""

    plan: Annotated[int, Meta(ge=1, le=2**53)]
    terms: Terms = Terms()
    reason: Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"\S")]


class RolloutNode(Record, frozen=True, kw_only=True):
    """How far one node is."""

    node: str
    site: str
    wave: int
    """From 1."""
    progress: Progress
    since: float
    detail: str


class RolloutView(Record, frozen=True, kw_only=True):
    """A rollout, and its nodes counted by progress."""

    id: int
    plan: int
    baseline: str
    version: int
    selector: str
    state: RolloutState
    why: str
    """Of the state: the reason that a person gave, or what halted it."""
    terms: Terms
    wave: int
    waves: int
    wave_since: float | None
    counts: dict[Progress, int]
    window_open: bool
    requested_at: float
    requested_by: str
    reason: str
    approved_by: str | None
    ended_at: float | None


class NodeFacts(Record, frozen=True, kw_only=True):
    """What is known of a node of a rollout, for the decision."""

    node: str
    site: str
    wave: int
    progress: Progress
    since: float
    holds: bool
    """Evidence says that the wanted baseline is in force and confirmed."""
    standing: Standing
    tier: Tier
    drifts: int
    last_report_at: float | None

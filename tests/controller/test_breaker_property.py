"""Never more isolated than the breaker allows, whatever the order of events: the pure judge, and the real fleet."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from contract.errors import Rejected
from contract.messages import Finding
from controller.breaker import node_budget, window_start
from controller.judge import Appraisal, FleetFacts, appraise, appraise_rejection, decide
from controller.permissions import EVERYWHERE
from controller.policy import BreakerLimits, DriftingNodes, FleetSettings, SitePolicy
from controller.store import Store
from tests.parts.fleets import ACTOR, T0, FleetLab, drift, evidence, finding
from tests.parts.sqlite import ready_sqlite

POLICY = SitePolicy(drifting_nodes=DriftingNodes(count=2, window_s=300))
SITES, NODES = 4, 4


class Step(Struct, frozen=True):
    """One thing that happens, some seconds after the one before."""

    what: Literal["good", "bad", "drift", "refused", "release", "isolate", "isolate-site"]
    site: int
    node: int
    value: int
    after_s: float

    @property
    def name(self) -> str:
        """The node it happens to."""
        return f"s{self.site}-{self.node}"


STEPS = st.lists(
    st.builds(
        Step,
        what=st.sampled_from(
            ["bad", "bad", "bad", "good", "drift", "refused", "release", "isolate", "isolate-site"]
        ),
        site=st.integers(0, SITES - 1),
        node=st.integers(0, NODES - 1),
        value=st.integers(0, 30),
        # Clocks jump back as well.
        after_s=st.sampled_from([0.0, 1.0, 60.0, 299.0, 599.0, 600.0, 601.0, 7200.0, -60.0]),
    ),
    max_size=60,
)
LIMITS = st.builds(
    BreakerLimits,
    nodes=st.integers(0, 4),
    fleet_fraction=st.sampled_from([0.0, 0.02, 0.3]),
    sites=st.integers(0, 2),
    window_s=st.just(600.0),
    same_value_nodes=st.integers(1, 3),
)

STORM = [
    Step(what="bad", site=n % SITES, node=n // SITES, value=n, after_s=1.0) for n in range(SITES * NODES)
]
"""Every node compromised in its own way within seconds: what the breaker is for."""
TIGHT = BreakerLimits(nodes=2, fleet_fraction=0.0, sites=1, window_s=600.0, same_value_nodes=3)


def _appraisal(step: Step) -> Appraisal:
    if step.what == "refused":
        return appraise_rejection(Rejected(f"quote.code{step.value}"), "affirming")
    findings: Sequence[Finding] = [finding(f"{step.value:04}")] if step.what == "bad" else ()
    drifts = [drift("key", str(step.value))] if step.what == "drift" else ()
    return appraise(findings, drifts, posture="normal", wanted_posture="normal", obeyed=False)


def _check(limits: BreakerLimits, fleet_nodes: int, placed: Sequence[float], budget: int) -> None:
    """In no window of the breaker's length, wherever it begins, was more placed than allowed."""
    for start in placed:
        inside = [at for at in placed if start <= at < start + limits.window_s]
        assert len(inside) <= budget


class Model:
    """A fleet in memory, keeping just what the facts are made of."""

    def __init__(self, limits: BreakerLimits) -> None:
        self.limits = limits
        self.nodes: list[tuple[str, float]] = []
        self.sites: list[tuple[int, float]] = []
        self.held_nodes: set[str] = set()
        self.held_sites: set[int] = set()
        self.known: dict[str, set[str]] = {}
        self.seen: dict[str, set[str]] = {}

    def do(self, step: Step, now: float) -> None:
        """Let one thing happen."""
        if step.what == "release":
            self.held_nodes.discard(step.name)
            self.held_sites.discard(step.site)
        elif step.what == "isolate":
            self.held_nodes.add(step.name)
        elif step.what == "isolate-site":
            self.held_sites.add(step.site)
        else:
            self._judge(step, _appraisal(step), now)

    def _judge(self, step: Step, appraisal: Appraisal, now: float) -> None:
        since = window_start(self.limits, now)
        keys = {s.key for s in appraisal.suspicions}
        facts = FleetFacts(
            fleet_nodes=SITES * NODES,
            node_holds_in_window=sum(at > since for _, at in self.nodes),
            site_holds_in_window=sum(at > since for _, at in self.sites),
            node_held=step.name in self.held_nodes,
            site_held=step.site in self.held_sites,
            others={key: len(self.seen.get(key, set()) - {step.name}) for key in keys},
            drifting_others=step.value % 3,
        )
        decision = decide(appraisal, self.known.get(step.name, set()), POLICY, self.limits, facts)
        if decision.hold_node:
            assert step.name not in self.held_nodes
            self.nodes.append((step.name, now))
            self.held_nodes.add(step.name)
        if decision.hold_site:
            assert step.site not in self.held_sites
            self.sites.append((step.site, now))
            self.held_sites.add(step.site)
        self.known[step.name] = keys
        for key in keys:
            self.seen.setdefault(key, set()).add(step.name)


@given(steps=STEPS, limits=LIMITS)
@example(steps=STORM, limits=TIGHT)
@settings(max_examples=300, deadline=None)
def test_c17_never_more_isolated_than_the_breaker_allows(steps: list[Step], limits: BreakerLimits) -> None:
    model, now = Model(limits), T0
    for step in steps:
        now += step.after_s
        model.do(step, now)
        _check(limits, SITES * NODES, [at for _, at in model.nodes], node_budget(limits, SITES * NODES))
        _check(limits, SITES * NODES, [at for _, at in model.sites], limits.sites)


async def _play(url: str, steps: list[Step], limits: BreakerLimits) -> None:
    store = Store(url)
    try:
        lab = FleetLab(store, FleetSettings(breaker=limits))
        for site in range(SITES):
            await lab.site(f"s{site}", POLICY)
        names = [f"s{site}-{node}" for site, node in itertools.product(range(SITES), range(NODES))]
        await asyncio.gather(*(lab.enrol(name, site=name[:2]) for name in names))
        now = T0
        for number, step in enumerate(steps):
            now += step.after_s
            await _do(lab, step, number, now)
        holds = (await lab.fleet.list_holds(scope=EVERYWHERE, active=False, limit=500)).items
        automatic = [hold for hold in holds if hold.automatic]
        _check(
            limits, len(names), [h.placed_at for h in automatic if h.node], node_budget(limits, len(names))
        )
        _check(limits, len(names), [h.placed_at for h in automatic if not h.node], limits.sites)
        active = {h.node for h in holds if h.released_at is None and h.node}
        active_sites = {h.site for h in holds if h.released_at is None and not h.node}
        for view in (await lab.fleet.list_nodes(scope=EVERYWHERE, limit=500)).items:
            held = view.node in active or view.site in active_sites
            assert (view.standing == "isolated") == held
            assert (view.wanted_posture == "isolated") == held
            assert (await lab.fleet.directive_for(view.node, now=now)).posture == view.wanted_posture
    finally:
        store.close()


async def _do(lab: FleetLab, step: Step, number: int, now: float) -> None:
    fleet, name, site = lab.fleet, step.name, f"s{step.site}"
    try:
        if step.what == "release":
            await fleet.release_node(name, actor=ACTOR, reason="test", now=now)
        elif step.what == "isolate":
            await fleet.isolate_node(name, actor=ACTOR, reason="test", now=now)
        elif step.what == "isolate-site":
            await fleet.isolate_site(site, actor=ACTOR, reason="test", now=now)
        elif step.what == "refused":
            await fleet.reject_evidence(name, Rejected(f"quote.code{step.value}"), now=now)
        else:
            findings = [finding(f"{step.value:04}")] if step.what == "bad" else ()
            drifts = [drift("key", str(step.value))] if step.what == "drift" else ()
            said = evidence(name, number=number, now=now, findings=findings, drifts=drifts)
            await fleet.take_report(name, said, now=now)
    except Rejected as rejected:
        assert rejected.code in {"hold.exists", "hold.none"}


@given(steps=STEPS, limits=LIMITS)
@example(steps=STORM, limits=TIGHT)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_c17_the_real_fleet_never_isolates_more_than_the_breaker_allows(
    tmp_path: Path, steps: list[Step], limits: BreakerLimits
) -> None:
    path = tmp_path / "fleet.db"
    for stale in tmp_path.glob("fleet.db*"):
        stale.unlink()
    shutil.copy(ready_sqlite(), path)
    asyncio.run(_play(f"sqlite:///{path}", steps, limits))

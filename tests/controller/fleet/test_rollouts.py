"""Plans and rollouts over both databases: nothing is sent that was not planned and approved; a bad canary stops it."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from contract.errors import Rejected
from contract.messages import BaselineRef, Event
from controller.permissions import EVERYWHERE
from controller.policy import SitePolicy
from controller.records import NewBaseline, TrustChange
from controller.rollout_records import NewPlan, NewRollout, PlanView, RolloutView, Terms, Wave, Window
from tests.parts.fleets import ACTOR, T0, FleetLab, drift
from tests.parts.signing import minimal_baseline

TERMS = Terms(waves=(Wave(nodes=1), Wave(percent=50.0)), soak_s=60.0, deadline_s=300.0)
NODES = [f"factory-{n}" for n in range(4)]


def document(version: int) -> bytes:
    return minimal_baseline(version=version, extra=f'[sysctl.values]\n"kernel.sysrq" = "{version}"\n')


def ref(version: int) -> BaselineRef:
    return BaselineRef(name="factory", version=version, sha256=hashlib.sha256(document(version)).digest())


async def push(lab: FleetLab, version: int) -> None:
    sha256 = ref(version).sha256.hex()

    def change(files: dict[str, bytes]) -> TrustChange:
        new = NewBaseline(name="factory", version=version, sha256=sha256, summary="s")
        return TrustChange(
            files={**files, f"targets/factory/{sha256}.{version}.toml": document(version)}, baselines=[new]
        )

    await lab.fleet.change_trust(change, actor=ACTOR, now=T0)


@pytest.fixture
async def fleet(lab: FleetLab) -> FleetLab:
    """Four nodes that hold factory/1; factory/2 is signed."""
    await lab.site("factory", SitePolicy(isolate_node_on=(), isolate_site_on=()))
    for version in (1, 2):
        await push(lab, version)
    await lab.fleet.assign_baseline("factory", "factory", 1, actor=ACTOR, reason="first", now=T0)
    for name in NODES:
        await lab.enrol(name)
        await lab.report(name, now=T0, baseline=ref(1))
    return lab


async def planned(lab: FleetLab, selector: str = "site=factory", now: float = T0) -> PlanView:
    return await lab.fleet.make_plan(
        NewPlan(baseline="factory", version=2, selector=selector), scope=EVERYWHERE, actor="ann", now=now
    )


async def begun(lab: FleetLab, terms: Terms = TERMS, now: float = T0) -> RolloutView:
    plan = await planned(lab, now=now)
    asked = await lab.fleet.request_rollout(
        NewRollout(plan=plan.id, terms=terms, reason="new rule"), actor="ann", now=now
    )
    return await lab.fleet.approve_rollout(asked.id, actor="bob", reason="read it", now=now)


async def wanted(lab: FleetLab) -> dict[str, int]:
    """The version that the next directive of each node names."""
    out = {}
    for view in (await lab.fleet.list_nodes(scope=EVERYWHERE)).items:
        directive = await lab.fleet.directive_for(view.node, now=T0)
        out[view.node] = directive.baseline.version if directive.baseline else 0
    return out


async def test_a_plan_says_what_changes_where_and_sends_nothing(fleet: FleetLab) -> None:
    await fleet.report("factory-3", now=T0 + 1, baseline=ref(2))
    await fleet.report("factory-2", now=T0 + 1, baseline=ref(1), drifts=[drift("k", "0")])
    plan = await planned(fleet, now=T0 + 1)
    assert (plan.nodes, plan.sites, plan.already) == (3, ["factory"], ["factory-3"])
    assert [(g.before, g.nodes) for g in plan.groups] == [("factory/1", NODES[:3])]
    [change] = plan.groups[0].changes
    assert (change.section, change.lines) == ("sysctl", ['  values.kernel.sysrq: "1" -> "2"'])
    assert plan.not_healthy == ["factory-2"]
    assert set((await wanted(fleet)).values()) == {1}
    assert await fleet.fleet.plan(plan.id) == plan


async def test_a_baseline_is_named_alike_as_reported_and_as_wanted(fleet: FleetLab) -> None:
    await fleet.report("factory-0", now=T0 + 1, baseline=ref(1), pending=ref(2))
    detail = await fleet.fleet.node("factory-0")
    shown, wanted = detail.summary.baseline, detail.summary.wanted_baseline
    assert shown is not None and wanted is not None and detail.pending is not None
    assert (shown.name, shown.version, shown.sha256) == (wanted.name, wanted.version, wanted.sha256)
    assert detail.pending.sha256 == ref(2).sha256.hex()


async def test_c16_a_plan_for_nobody_or_for_nothing_named_is_refused(fleet: FleetLab) -> None:
    for selector, code in (
        ("site=nowhere", "plan.nobody"),
        (" ", "selector.empty"),
        ("*", "selector.malformed"),
    ):
        with pytest.raises(Rejected) as caught:
            await planned(fleet, selector)
        assert caught.value.code == code


async def test_who_asks_cannot_approve_and_nothing_is_sent_before(fleet: FleetLab) -> None:
    plan = await planned(fleet)
    asked = await fleet.fleet.request_rollout(NewRollout(plan=plan.id, reason="x"), actor="ann", now=T0)
    assert await fleet.fleet.advance_rollouts(now=T0 + 1) == []
    with pytest.raises(Rejected, match=r"rollout\.same-person"):
        await fleet.fleet.approve_rollout(asked.id, actor="ann", reason="me", now=T0)
    await fleet.fleet.approve_rollout(asked.id, actor="bob", reason="read", now=T0)
    with pytest.raises(Rejected, match=r"rollout\.decided"):
        await fleet.fleet.approve_rollout(asked.id, actor="eve", reason="again", now=T0)


async def test_waves_go_on_by_evidence_until_the_site_itself_follows(fleet: FleetLab) -> None:
    rollout = await begun(fleet)
    reached: list[str] = []
    now = T0
    for expected in (1, 1, 2):
        sent = await fleet.fleet.advance_rollouts(now=now)
        assert len(sent) == expected
        assert await fleet.fleet.advance_rollouts(now=now + 1) == [], "sent is not proved"
        reached += sent
        now += 10
        for name in sent:
            await fleet.report(name, now=now, baseline=ref(2))
        assert await fleet.fleet.advance_rollouts(now=now + 1) == [], "it soaks"
        now += 70
        for name in NODES:
            await fleet.report(name, now=now, baseline=ref(2 if name in reached else 1))
    await fleet.fleet.advance_rollouts(now=now)
    view = await fleet.fleet.rollout(rollout.id, now=now)
    assert (view.state, view.counts) == ("done", {"proved": 4})
    site = await fleet.fleet.site("factory")
    assert site.baseline is not None and site.baseline.version == 2
    assert not any(v.own_baseline for v in (await fleet.fleet.list_nodes(scope=EVERYWHERE)).items)
    assert set((await wanted(fleet)).values()) == {2}


@pytest.mark.parametrize("how", ["drift", "reverted", "refused", "untrusted"])
async def test_a_bad_canary_halts_the_rollout_and_nobody_else_gets_it(fleet: FleetLab, how: str) -> None:
    rollout = await begun(fleet)
    [canary] = await fleet.fleet.advance_rollouts(now=T0)
    if how == "drift":
        await fleet.report(canary, now=T0 + 10, baseline=ref(2))
        await fleet.fleet.advance_rollouts(now=T0 + 11)
        await fleet.report(canary, now=T0 + 20, baseline=ref(2), drifts=[drift("k", "0")])
    elif how == "untrusted":
        await fleet.report(canary, now=T0 + 10, baseline=ref(2))
        await fleet.fleet.advance_rollouts(now=T0 + 11)
        await fleet.fleet.reject_evidence(canary, Rejected("quote.signature"), now=T0 + 20)
    else:
        event = Event(
            seq=1, at=T0, kind=f"baseline.{how}", severity="warning", summary="no report went through",
            detail={"sha256": ref(2).sha256.hex(), "code": "baseline.no-confirmation"},
        )  # fmt: skip
        await fleet.report(canary, now=T0 + 20, baseline=ref(1), events=[event])
    affected = await fleet.fleet.advance_rollouts(now=T0 + 21)
    view = await fleet.fleet.rollout(rollout.id, now=T0 + 21)
    assert view.state == "halted" and canary in view.why
    assert affected == ([canary] if how in ("reverted", "refused") else [])
    for later in (100, 1000, 100_000):
        assert await fleet.fleet.advance_rollouts(now=T0 + later) == []
    assert [name for name, version in (await wanted(fleet)).items() if version == 2] == (
        [canary] if how in ("drift", "untrusted") else []
    )
    kinds = [event.kind for event in await fleet.fleet.list_events(scope=EVERYWHERE, limit=500)]
    assert "rollout.halted" in kinds


async def test_a_halted_one_goes_on_without_the_failed_when_a_person_says_so(fleet: FleetLab) -> None:
    rollout = await begun(fleet)
    [canary] = await fleet.fleet.advance_rollouts(now=T0)
    await fleet.report(canary, now=T0 + 400, baseline=ref(1))
    assert await fleet.fleet.advance_rollouts(now=T0 + 401) == [canary]
    assert (await wanted(fleet))[canary] == 1
    await fleet.fleet.resume_rollout(rollout.id, actor="bob", reason="its disk was full", now=T0 + 500)
    [second] = await fleet.fleet.advance_rollouts(now=T0 + 500)
    assert second != canary


async def test_abort_gives_back_what_was_not_taken_and_no_node_goes_back(fleet: FleetLab) -> None:
    rollout = await begun(fleet, Terms(waves=(), soak_s=0.0))
    sent = await fleet.fleet.advance_rollouts(now=T0)
    assert sorted(sent) == NODES
    await fleet.report(NODES[0], now=T0 + 1, baseline=ref(2))
    view, affected = await fleet.fleet.abort_rollout(rollout.id, actor="ann", reason="stop", now=T0 + 2)
    assert view.state == "aborted"
    assert sorted(affected) == NODES[1:]
    assert await wanted(fleet) == {NODES[0]: 2, **dict.fromkeys(NODES[1:], 1)}
    with pytest.raises(Rejected, match=r"rollout\.decided"):
        await fleet.fleet.abort_rollout(rollout.id, actor="ann", reason="again", now=T0 + 3)
    again = await begun(fleet, now=T0 + 10)
    assert again.state == "running", "its nodes may be in another one now"


async def test_pause_and_resume(fleet: FleetLab) -> None:
    rollout = await begun(fleet)
    await fleet.fleet.pause_rollout(rollout.id, actor="ann", reason="lunch", now=T0)
    assert await fleet.fleet.advance_rollouts(now=T0) == []
    await fleet.fleet.resume_rollout(rollout.id, actor="ann", reason="back", now=T0)
    assert len(await fleet.fleet.advance_rollouts(now=T0)) == 1


async def test_a_node_is_in_one_rollout_at_a_time(fleet: FleetLab) -> None:
    plans = [await planned(fleet) for _ in range(4)]
    asked = await asyncio.gather(
        *(fleet.fleet.request_rollout(NewRollout(plan=p.id, reason="x"), actor="ann", now=T0) for p in plans),
        return_exceptions=True,
    )
    refused = [each for each in asked if isinstance(each, Rejected)]
    assert len(refused) == 3 and {each.code for each in refused} == {"rollout.exists"}


async def test_a_plan_that_the_world_has_left_behind_is_refused(fleet: FleetLab) -> None:
    plan = await planned(fleet)
    with pytest.raises(Rejected, match=r"plan\.changed"):
        await fleet.fleet.request_rollout(
            NewRollout(plan=plan.id, reason="x"), actor="ann", now=T0 + 25 * 3600
        )
    for name in ("factory-8", "factory-9"):
        await fleet.enrol(name)
    with pytest.raises(Rejected, match=r"plan\.changed.*factory-8"):
        await fleet.fleet.request_rollout(NewRollout(plan=plan.id, reason="x"), actor="ann", now=T0)
    with pytest.raises(Rejected, match=r"plan\.unknown"):
        await fleet.fleet.request_rollout(NewRollout(plan=99, reason="x"), actor="ann", now=T0)


async def test_waves_and_windows_that_cannot_be_meant_are_refused(fleet: FleetLab) -> None:
    plan = await planned(fleet)
    bad = (
        (Terms(waves=(Wave(),)), "rollout.wave"),
        (Terms(waves=(Wave(nodes=1, percent=5.0),)), "rollout.wave"),
        (Terms(windows=(Window(days=["mon"], begins="01:00", ends="02:00", zone="X/Y"),)), "window.zone"),
    )
    for terms, code in bad:
        with pytest.raises(Rejected) as caught:
            await fleet.fleet.request_rollout(
                NewRollout(plan=plan.id, terms=terms, reason="x"), actor="ann", now=T0
            )
        assert caught.value.code == code


async def test_two_controllers_step_one_rollout_as_one(fleet: FleetLab) -> None:
    await begun(fleet)
    steps = await asyncio.gather(*(fleet.fleet.advance_rollouts(now=T0) for _ in range(8)))
    assert sorted(map(len, steps)) == [0] * 7 + [1]


async def test_every_act_on_a_rollout_is_in_the_audit_log(fleet: FleetLab) -> None:
    rollout = await begun(fleet)
    await fleet.fleet.abort_rollout(rollout.id, actor="eve", reason="no", now=T0)
    acts = [(a.actor, a.act) for a in await fleet.fleet.list_audit(limit=500) if a.act.startswith("rollout.")]
    assert acts == [("ann", "rollout.requested"), ("bob", "rollout.approved"), ("eve", "rollout.aborted")]

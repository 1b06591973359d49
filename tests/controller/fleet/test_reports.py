"""What evidence leads to: tiers, incidents, isolation, directives; on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from contract.errors import Rejected
from controller.permissions import EVERYWHERE
from controller.policy import BreakerLimits, DriftingNodes, FleetSettings, SitePolicy
from controller.records import NewBaseline, TrustChange
from controller.store import Store
from tests.parts.fleets import ACTOR, T0, FleetLab, digest, drift, event, evidence, finding

CALM = SitePolicy(isolate_site_on=())


async def _kinds(lab: FleetLab) -> list[str]:
    return [e.kind for e in await lab.fleet.list_events(scope=EVERYWHERE, limit=500)]


async def test_good_evidence_makes_a_node_healthy_and_learns_its_boot(lab: FleetLab) -> None:
    await lab.site()
    await lab.enrol("cam-1")
    outcome = await lab.fleet.take_report("cam-1", evidence("cam-1", reference=b"boot A"), now=T0)
    assert (outcome.tier, outcome.findings, outcome.affected) == ("affirming", [], [])
    assert outcome.directive is not None
    assert (outcome.directive.number, outcome.directive.posture) == (1, "normal")
    detail = await lab.fleet.node("cam-1")
    assert (detail.summary.standing, detail.boot_reference_at) == ("healthy", T0)
    session = await lab.fleet.session("cam-1")
    assert await lab.fleet.boot_reference("cam-1") == b"boot A"
    assert session.counters is not None
    assert session.counters.firmware_version == 2**63 + 1
    assert "boot.reference-learned" in await _kinds(lab)


async def test_the_first_boot_is_no_reference_when_it_is_not_trusted(lab: FleetLab) -> None:
    await lab.site("factory", CALM)
    await lab.enrol("cam-1")
    bad = evidence("cam-1", findings=[finding("1234")], reference=b"boot X")
    await lab.fleet.take_report("cam-1", bad, now=T0)
    assert await lab.fleet.boot_reference("cam-1") is None


async def test_another_boot_isolates_node_and_site_and_neighbours_fence_the_suspect(lab: FleetLab) -> None:
    names = await lab.populate(3)
    await lab.populate(2, site="shop")
    outcome = await lab.report(
        "factory-1", findings=[finding("1234")], reset=2, addresses=["10.0.0.2", "10.0.0.99"], now=T0 + 60
    )
    assert outcome.tier == "contraindicated"
    assert outcome.affected == ["factory-2", "factory-3"]
    assert outcome.directive is not None
    assert outcome.directive.posture == "isolated"
    assert [r.name for r in outcome.directive.responses] == ["isolate"]
    assert await lab.held() == ({"factory-1"}, {"factory"})
    directives = await lab.fleet.directives_for(outcome.affected, now=T0 + 60)
    for node in names[1:]:
        assert directives[node].posture == "isolated"
        [fence] = [r for r in directives[node].responses if r.name == "fence"]
        assert fence.addresses == ["10.0.0.1", "fd00::1"]
    assert (await lab.fleet.directive_for("shop-1", now=T0 + 60)).posture == "normal"
    [incident] = (await lab.fleet.list_incidents(scope=EVERYWHERE)).items
    assert (incident.kind, incident.severity, incident.state) == ("untrusted", "critical", "open")
    assert "PCR 9 event 41" in incident.title
    assert [line.partition(":")[0] for line in incident.done] == [
        "node factory-1 isolated",
        "site factory isolated",
    ]
    kinds = await _kinds(lab)
    assert "node.isolated" in kinds
    assert "site.isolated" in kinds
    assert {n.standing for n in (await lab.fleet.list_nodes(scope=EVERYWHERE, site="factory")).items} == {
        "isolated"
    }


async def test_release_is_an_act_and_everything_is_healthy_again(lab: FleetLab) -> None:
    names = await lab.populate(3)
    await lab.report("factory-1", findings=[finding("1234")], reset=2, reference=b"boot B")
    with pytest.raises(Rejected, match=r"reason\.missing"):
        await lab.fleet.release_site("factory", actor="ann", reason="  ", now=T0)
    site = await lab.fleet.release_site("factory", actor="ann", reason="seen on site", now=T0)
    assert sorted(site.affected) == names
    assert (await lab.fleet.node("factory-1")).summary.standing == "isolated"
    await lab.fleet.release_node("factory-1", actor="ann", reason="kernel update", now=T0)
    assert (await lab.fleet.node("factory-1")).summary.standing == "untrusted"
    change = await lab.fleet.accept_boot("factory-1", actor="ann", reason="kernel update", now=T0)
    assert change.affected == ["factory-1"]
    assert await lab.fleet.boot_reference("factory-1") == b"boot B"
    assert (await lab.fleet.session("factory-1")).boot is None
    for node in names:
        outcome = await lab.report(node, reset=2)
        assert outcome.directive is not None
        assert (outcome.directive.posture, outcome.directive.responses) == ("normal", [])
    assert {n.standing for n in (await lab.fleet.list_nodes(scope=EVERYWHERE)).items} == {"healthy"}
    assert [i.state for i in (await lab.fleet.list_incidents(scope=EVERYWHERE)).items] == ["resolved"]
    audit = await lab.fleet.list_audit(limit=500)
    assert [a.act for a in audit if a.actor == "ann"] == ["released", "released", "boot.accepted"]


async def test_a_release_stands_against_what_was_known_and_falls_to_what_is_new(lab: FleetLab) -> None:
    await lab.populate(2, policy=CALM)
    await lab.report("factory-1", findings=[finding("1234")])
    await lab.fleet.release_node("factory-1", actor="ann", reason="looked at it", now=T0)
    await lab.report("factory-1", findings=[finding("1234")])
    assert await lab.held() == (set(), set())
    await lab.report("factory-1", findings=[finding("1234"), finding("5678", pcr=4)])
    assert await lab.held() == ({"factory-1"}, set())


async def test_good_evidence_alone_never_releases(lab: FleetLab) -> None:
    await lab.populate(1, policy=CALM)
    await lab.report("factory-1", findings=[finding("1234")])
    outcome = await lab.report("factory-1", posture="isolated")
    assert outcome.tier == "affirming"
    assert (await lab.fleet.node("factory-1")).summary.standing == "isolated"


async def test_c07_evidence_that_does_not_verify_is_a_recorded_failure(lab: FleetLab) -> None:
    await lab.populate(2)
    outcome = await lab.fleet.reject_evidence(
        "factory-1", Rejected("quote.signature", "not this key's"), now=T0 + 1
    )
    assert outcome.tier == "contraindicated"
    assert outcome.directive is not None
    assert outcome.directive.posture == "isolated"
    assert await lab.held() == ({"factory-1"}, {"factory"})
    [rejected] = [
        e for e in await lab.fleet.list_events(scope=EVERYWHERE, limit=500) if e.kind == "evidence.rejected"
    ]
    assert (rejected.node, rejected.severity, rejected.detail["code"]) == (
        "factory-1",
        "critical",
        "quote.signature",
    )
    assert (await lab.fleet.node("factory-1")).summary.last_report_at == T0


async def test_c07_a_failure_of_our_own_takes_trust_away_and_isolates_nobody(lab: FleetLab) -> None:
    await lab.populate(2)
    outcome = await lab.fleet.reject_evidence(
        "factory-1", Rejected("verification.failed", "a fault of the controller"), now=T0 + 1
    )
    assert outcome.tier == "contraindicated"
    assert await lab.held() == (set(), set())
    assert (await lab.fleet.node("factory-1")).summary.standing == "untrusted"
    assert (await lab.fleet.node("factory-2")).summary.standing == "healthy"
    good = await lab.report("factory-1", now=T0 + 2)
    assert good.tier == "affirming"


async def test_c07_the_first_evidence_ever_that_fails_makes_no_health(lab: FleetLab) -> None:
    await lab.site()
    await lab.enrol("cam-1")
    await lab.fleet.reject_evidence("cam-1", Rejected("nonce.expired", "late"), now=T0)
    view = (await lab.fleet.node("cam-1")).summary
    assert (view.tier, view.standing) == ("none", "unreachable")


async def test_a_late_nonce_is_no_compromise(lab: FleetLab) -> None:
    await lab.populate(1)
    outcome = await lab.fleet.reject_evidence("factory-1", Rejected("nonce.expired", "4 s ago"), now=T0 + 1)
    assert outcome.tier == "affirming"
    assert await lab.held() == (set(), set())


async def test_c17_one_update_on_many_nodes_is_one_incident_and_the_breaker_holds(
    open_store: Callable[[], Store],
) -> None:
    settings = FleetSettings(breaker=BreakerLimits(nodes=30, sites=1))
    lab = FleetLab(open_store(), settings)
    nodes: list[str] = []
    for site in range(8):
        await lab.site(f"s{site}")
        nodes += [f"s{site}-{n}" for n in range(5)]
    await asyncio.gather(*(lab.enrol(node, site=node[:2]) for node in nodes))
    await asyncio.gather(*(lab.report(node) for node in nodes))
    # The same new kernel, after different old ones.
    for n, node in enumerate(nodes):
        await lab.report(node, findings=[finding("1234", wanted=f"old{n % 3}")], reset=2, now=T0 + 60)
    held_nodes, held_sites = await lab.held()
    assert held_nodes == {"s0-0", "s0-1"}
    assert held_sites == {"s0"}
    [incident] = (await lab.fleet.list_incidents(scope=EVERYWHERE)).items
    assert (incident.state, incident.nodes_total) == ("needs-person", 40)
    assert any("update nobody told us about" in line for line in incident.done)
    assert (await _kinds(lab)).count("isolation.recommended") == 1


async def test_c17_different_faults_on_many_nodes_stop_at_the_breaker(lab: FleetLab) -> None:
    names = await lab.populate(6, policy=CALM)
    for n, node in enumerate(names):
        await lab.report(node, findings=[finding(f"{n:04}")], reset=2, now=T0 + 60 + n)
    assert await lab.held() == ({"factory-1", "factory-2", "factory-3"}, set())
    states = [i.state for i in (await lab.fleet.list_incidents(scope=EVERYWHERE)).items]
    assert states == ["needs-person"] * 3 + ["open"] * 3
    await lab.report(names[5], findings=[finding("9999")], reset=2, now=T0 + 60 + 601)
    assert (await lab.held())[0] == {"factory-1", "factory-2", "factory-3", "factory-6"}


async def test_c17_two_controllers_share_one_breaker(open_store: Callable[[], Store]) -> None:
    one, two = FleetLab(open_store()), FleetLab(open_store())
    names = await one.populate(12, policy=CALM)
    await asyncio.gather(
        *(
            (one, two)[n % 2].fleet.take_report(
                node, evidence(node, findings=[finding(f"{n:04}")], reset=2), now=T0 + 60
            )
            for n, node in enumerate(names)
        )
    )
    assert len((await one.held())[0]) == 3


async def test_a_persons_isolation_is_neither_braked_nor_counted(lab: FleetLab) -> None:
    names = await lab.populate(6, policy=CALM)
    for node in names[:5]:
        await lab.fleet.isolate_node(node, actor="ann", reason="drill", now=T0)
    with pytest.raises(Rejected, match=r"hold\.exists"):
        await lab.fleet.isolate_node(names[0], actor="ann", reason="drill", now=T0)
    await lab.report(names[5], findings=[finding("1234")])
    assert (await lab.held())[0] == set(names)


async def test_c16_no_target_is_never_all(lab: FleetLab) -> None:
    await lab.populate(2)
    for target in ("", "*", "all", "factory-1,factory-2"):
        with pytest.raises(Rejected, match=r"node\.unknown"):
            await lab.fleet.isolate_node(target, actor="ann", reason="x", now=T0)
        with pytest.raises(Rejected, match=r"site\.unknown"):
            await lab.fleet.isolate_site(target, actor="ann", reason="x", now=T0)
    assert await lab.fleet.directives_for([], now=T0) == {}
    assert await lab.held() == (set(), set())


async def test_drift_is_a_warning_an_incident_and_withdraws_itself(lab: FleetLab) -> None:
    await lab.populate(1)
    first = await lab.report("factory-1", drifts=[drift("net.ipv4.ip_forward", "1")])
    assert (first.tier, (await lab.fleet.node("factory-1")).summary.standing) == ("warning", "healthy")
    again = await lab.report("factory-1", drifts=[drift("net.ipv4.ip_forward", "1")])
    assert again.tier == "warning"
    [incident] = (await lab.fleet.list_incidents(scope=EVERYWHERE)).items
    assert (incident.kind, incident.state) == ("drift", "open")
    await lab.report("factory-1")
    assert [i.state for i in (await lab.fleet.list_incidents(scope=EVERYWHERE)).items] == ["resolved"]
    assert await lab.held() == (set(), set())


async def test_what_the_node_repaired_is_an_incident_with_its_culprit(lab: FleetLab) -> None:
    await lab.populate(1)
    flushed = drift(
        "table inet ringfence", "missing", section="firewall", repaired=True, culprit="nft (pid 42, uid 0)"
    )
    outcome = await lab.report("factory-1", drifts=[flushed])
    assert outcome.tier == "affirming"
    [incident] = (await lab.fleet.list_incidents(scope=EVERYWHERE)).items
    assert incident.state == "resolved"
    assert "nft (pid 42, uid 0)" in incident.title
    await lab.report("factory-1", drifts=[flushed], now=T0 + 30)
    assert len((await lab.fleet.list_incidents(scope=EVERYWHERE)).items) == 1


async def test_k_drifting_nodes_isolate_their_site_but_one_update_does_not(lab: FleetLab) -> None:
    policy = SitePolicy(drifting_nodes=DriftingNodes(count=3, window_s=300))
    await lab.populate(4, policy=policy)
    await lab.populate(4, policy=policy, site="shop")
    for n in range(1, 5):
        await lab.report(f"shop-{n}", drifts=[drift("kernel.version", "6.2")], now=T0 + n)
    assert await lab.held() == (set(), set())
    for n in range(1, 4):
        await lab.report(f"factory-{n}", drifts=[drift(f"key-{n}", f"value-{n}")], now=T0 + n)
    assert await lab.held() == (set(), {"factory"})


async def test_c02_numbers_are_above_what_the_node_remembers(lab: FleetLab) -> None:
    await lab.populate(1)
    outcome = await lab.report("factory-1", directive_number=5000)
    assert outcome.directive is not None
    assert outcome.directive.number == 5001
    assert (await lab.fleet.directive_for("factory-1", now=T0)).number == 5002
    assert (await lab.report("factory-1", directive_number=5002)).directive is None


async def test_a_node_that_refuses_its_directive_gets_it_once_an_interval(lab: FleetLab) -> None:
    await lab.populate(1)
    await lab.fleet.isolate_node("factory-1", actor="ann", reason="drill", now=T0)
    made = [
        (await lab.report("factory-1", directive_number=1, now=T0 + s)).directive for s in range(0, 60, 5)
    ]
    assert [n for n, directive in enumerate(made) if directive] == [0, 6]


async def test_a_node_that_says_it_obeyed_but_shows_another_posture_is_noticed(lab: FleetLab) -> None:
    await lab.populate(1)
    await lab.fleet.isolate_node("factory-1", actor="ann", reason="drill", now=T0)
    await lab.report("factory-1", now=T0)
    outcome = await lab.report("factory-1", posture="normal", now=T0 + 120)
    assert [f.code for f in outcome.findings] == ["posture.differs"]


async def test_a_node_that_isolated_itself_is_shown_and_a_person_releases_it(lab: FleetLab) -> None:
    await lab.populate(2)
    with pytest.raises(Rejected, match=r"hold\.none"):
        await lab.fleet.release_node("factory-1", actor="ann", reason="the uplink is back", now=T0)
    outcome = await lab.report("factory-1", posture="isolated", directive_number=1, now=T0 + 120)
    assert [f.code for f in outcome.findings] == ["posture.differs"]
    assert "isolated itself" in outcome.findings[0].detail
    shown = (await lab.fleet.node("factory-1")).summary
    assert (shown.posture, shown.wanted_posture, shown.tier) == ("isolated", "normal", "warning")
    before = await lab.fleet.directive_for("factory-1", now=T0 + 120)
    assert (before.posture, before.release) == ("normal", 0), (
        "what is said to whoever comes back releases nobody"
    )
    with pytest.raises(Rejected, match=r"hold\.none"):
        await lab.fleet.release_site("factory", actor="ann", reason="the uplink is back", now=T0 + 120)
    change = await lab.fleet.release_node("factory-1", actor="ann", reason="the uplink is back", now=T0 + 120)
    assert change.affected == ["factory-1"]
    told = await lab.fleet.directive_for("factory-1", now=T0 + 120)
    assert (told.posture, told.release, told.number) == ("normal", before.number + 1, before.number + 1)
    again = await lab.fleet.directive_for("factory-1", now=T0 + 121)
    assert (again.number, again.release) == (told.number + 1, told.release), "the same release, said again"
    assert (await lab.fleet.directive_for("factory-2", now=T0 + 121)).release == 0
    await lab.report("factory-1", now=T0 + 130)
    after = await lab.fleet.directive_for("factory-1", now=T0 + 200)
    assert after.release == 0, "obeyed: over"
    audit = await lab.fleet.list_audit(limit=500)
    assert [(a.actor, a.reason) for a in audit if a.act == "released"] == [("ann", "the uplink is back")]
    assert "node.released" in await _kinds(lab)


async def test_a_release_of_a_node_from_itself_waits_for_the_isolation_of_its_site(lab: FleetLab) -> None:
    await lab.populate(1)
    await lab.report("factory-1", posture="isolated")
    await lab.fleet.release_node("factory-1", actor="ann", reason="looked at it", now=T0)
    await lab.fleet.isolate_site("factory", actor="ann", reason="drill", now=T0)
    assert (await lab.fleet.directive_for("factory-1", now=T0)).release == 0
    with pytest.raises(Rejected, match=r"hold\.none"):
        await lab.fleet.release_node("factory-1", actor="ann", reason="drill", now=T0)


async def test_events_are_stored_once_in_order_and_a_lost_state_loses_none(lab: FleetLab) -> None:
    await lab.populate(1)
    first = await lab.report("factory-1", events=[event(1), event(2)])
    assert first.events_acked == 2
    again = await lab.report("factory-1", events=[event(1), event(2), event(3)])
    assert again.events_acked == 3
    assert (await lab.report("factory-1")).events_acked == 0
    anew = await lab.report("factory-1", events=[event(1, at=T0 + 500, kind="agent.state-lost")])
    assert anew.events_acked == 1
    stored = [e for e in await lab.fleet.list_events(scope=EVERYWHERE, limit=500) if e.source == "agent"]
    assert [(e.seq, e.kind) for e in stored] == [
        (1, "firewall.healed"),
        (2, "firewall.healed"),
        (3, "firewall.healed"),
        (1, "agent.state-lost"),
    ]
    down = await lab.fleet.list_events(scope=EVERYWHERE, limit=3, newest_first=True)
    assert [e.id for e in down] == sorted((e.id for e in down), reverse=True)
    assert (await lab.fleet.counts(scope=EVERYWHERE)).last_event == down[0].id


async def test_baselines_are_pushed_whole_assigned_forward_and_carried_by_directives(lab: FleetLab) -> None:
    await lab.populate(2)

    def push(version: int, content: str) -> TrustChange:
        new = NewBaseline(
            name="factory",
            version=version,
            sha256=digest(content).hex(),
            summary=content,
            boot_section=b'{"pcrs":[0,4]}',
            ima_section=b'{"mode":"observe"}',
        )
        return TrustChange(files={"targets.json": content.encode()}, baselines=[new])

    for version in (1, 2):
        await lab.fleet.change_trust(lambda _, v=version: push(v, f"v{v}"), actor=ACTOR, now=T0)
    assert await lab.fleet.trust_file("targets.json") == b"v2"
    with pytest.raises(Rejected, match=r"baseline\.changed"):
        await lab.fleet.change_trust(lambda _: push(2, "other"), actor=ACTOR, now=T0)
    assert await lab.fleet.trust_file("targets.json") == b"v2"
    change = await lab.fleet.assign_baseline("factory", "factory", None, actor=ACTOR, reason="new", now=T0)
    assert change.affected == ["factory-1", "factory-2"]
    outcome = await lab.report("factory-1")
    assert outcome.directive is not None
    assert outcome.directive.baseline is not None
    assert outcome.session.baseline == outcome.directive.baseline and outcome.session.baseline.version == 2
    sections = await lab.fleet.sections("factory", 2)
    assert (sections.boot, sections.ima) == (b'{"pcrs":[0,4]}', b'{"mode":"observe"}')
    with pytest.raises(Rejected, match=r"baseline\.older"):
        await lab.fleet.assign_baseline("factory", "factory", 1, actor=ACTOR, reason="back", now=T0)
    [one, two] = (await lab.fleet.list_baselines(scope=EVERYWHERE)).items
    assert (one.sites, two.sites) == ([], ["factory"])
    late = await lab.report("factory-1", now=T0 + 600)
    assert [f.code for f in late.findings] == ["baseline.differs"]


async def test_lists_come_in_pages_that_miss_nothing(lab: FleetLab) -> None:
    names = await lab.populate(7)
    seen: list[str] = []
    after = None
    while True:
        page = await lab.fleet.list_nodes(scope=EVERYWHERE, after=after, limit=3)
        seen += [n.node for n in page.items]
        after = page.next
        if after is None:
            break
    assert seen == names
    with pytest.raises(Rejected, match=r"cursor\.invalid"):
        await lab.fleet.list_holds(scope=EVERYWHERE, after="1; DROP TABLE holds")

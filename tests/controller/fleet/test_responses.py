"""What response rules, suppressions and flapping lead to; on both databases."""

from __future__ import annotations

import pytest

from contract.errors import Rejected
from controller.permissions import EVERYWHERE
from controller.policy import SitePolicy
from controller.records import IncidentView
from controller.response_records import NewResponses, NewSuppression, SuppressionView, Undo
from tests.parts.fleets import ACTOR, T0, FleetLab, drift, event, finding

OPEN_POLICY = SitePolicy(isolate_node_on=(), isolate_site_on=())
USB_TWICE = """
[[rule]]
name = "usb-twice"
when = { event = "usb.refused", count = 2, within_s = 3600 }
where = "line in (3,4)"
then = ["fence", "alert"]
stage = "act"
"""
TAMPER = """
[[rule]]
name = "tamper"
when = { drift = "firewall", nodes = 3, within_s = 600 }
then = ["isolate-site"]
stage = "act"
"""


async def _rules(lab: FleetLab, document: str, *, replaces: int = 0) -> None:
    new = NewResponses(document=document, replaces=replaces, reason="test")
    await lab.fleet.set_responses(new, actor=ACTOR, now=T0)


async def _kinds(lab: FleetLab) -> list[str]:
    return [e.kind for e in await lab.fleet.list_events(scope=EVERYWHERE, limit=500)]


async def _only(lab: FleetLab) -> IncidentView:
    [incident] = (await lab.fleet.list_incidents(scope=EVERYWHERE)).items
    return incident


async def _suppress(lab: FleetLab, kind: str, *, acts: bool = False, for_s: float = 3600) -> SuppressionView:
    new = NewSuppression(selector="site=factory", kind=kind, until=T0 + for_s, acts=acts, reason="works")
    return await lab.fleet.suppress(new, scope=EVERYWHERE, actor=ACTOR, now=T0)


async def test_usb_refused_twice_fences_and_alerts_where_the_rule_says(lab: FleetLab) -> None:
    await lab.populate(3, policy=OPEN_POLICY)
    await _rules(lab, USB_TWICE)
    await lab.fleet.set_labels("factory-1", {"line": "3"}, actor=ACTOR, reason="test", now=T0)
    first = [event(1, kind="usb.refused")]
    for now in (T0 + 1, T0 + 2):  # the same event again is no second one
        await lab.report("factory-1", events=first, addresses=["10.0.0.1"], now=now)
    await lab.report(
        "factory-2", events=[event(n, kind="usb.refused") for n in (1, 2)], addresses=["10.0.0.2"]
    )
    assert await lab.held() == (set(), set())
    outcome = await lab.report(
        "factory-1", events=[*first, event(2, kind="usb.refused")], addresses=["10.0.0.1"], now=T0 + 60
    )
    assert outcome.affected == ["factory-2", "factory-3"]
    detail = await lab.fleet.node("factory-1")
    assert (detail.summary.standing, detail.summary.wanted_posture) == ("healthy", "normal")
    [hold] = detail.holds
    assert (hold.fence_only, hold.automatic) == (True, True)
    directives = await lab.fleet.directives_for(["factory-1", "factory-2"], now=T0 + 60)
    assert (directives["factory-1"].posture, directives["factory-1"].responses) == ("normal", [])
    assert directives["factory-2"].posture == "normal"
    assert [(r.name, r.addresses) for r in directives["factory-2"].responses] == [("fence", ["10.0.0.1"])]
    kinds = await _kinds(lab)
    assert kinds.count("response.alert") == kinds.count("node.fenced") == 1
    incident = await _only(lab)
    assert (incident.kind, incident.state, incident.nodes) == ("event", "open", ["factory-1"])
    # A person may isolate what is fenced; the release takes back both.
    await lab.fleet.isolate_node("factory-1", actor=ACTOR, reason="look", now=T0 + 70)
    assert (await lab.fleet.directive_for("factory-1", now=T0 + 70)).posture == "isolated"
    await lab.fleet.release_node("factory-1", actor=ACTOR, reason="fine", now=T0 + 80)
    assert (await lab.fleet.directive_for("factory-2", now=T0 + 80)).responses == []


async def test_every_automatic_act_says_why_from_what_and_how_to_undo_it(lab: FleetLab) -> None:
    await lab.populate(2)
    await lab.report("factory-1", findings=[finding("1234")], number=7, reset=2)
    incident = await _only(lab)
    holds = (await lab.fleet.list_holds(scope=EVERYWHERE)).items
    assert len(incident.done) == len(holds) == 2
    for text in (*incident.done, *(hold.reason for hold in holds)):
        assert "PCR 9 event 41" in text
        assert "the policy of the site" in text
        assert "report 7 of boot boot-2" in text
        assert "undo: ringfence release --" in text
    assert {f"incident {incident.id}" in hold.reason for hold in holds} == {True}
    await lab.fleet.reject_evidence("factory-2", Rejected("quote.signature", "x"), now=T0)
    rejected = next(
        e for e in await lab.fleet.list_events(scope=EVERYWHERE, limit=500) if e.kind == "evidence.rejected"
    )
    hold = next(h for h in (await lab.fleet.list_holds(scope=EVERYWHERE)).items if h.node == "factory-2")
    assert f"event {rejected.id}" in hold.reason
    assert "--node factory-2" in hold.reason


async def test_three_nodes_that_drift_in_one_section_isolate_the_site(lab: FleetLab) -> None:
    names = await lab.populate(4, policy=OPEN_POLICY)
    await _rules(lab, TAMPER)
    for n, name in enumerate(names):
        section = "firewall" if n else "sysctl"
        await lab.report(name, drifts=[drift("rule", str(n), section=section)], now=T0 + n)
        assert await lab.held() == (set(), {"factory"} if n == 3 else set())
    [hold] = (await lab.fleet.list_holds(scope=EVERYWHERE)).items
    assert "rule tamper" in hold.reason


async def test_what_was_counted_too_long_ago_counts_no_more(lab: FleetLab) -> None:
    names = await lab.populate(3, policy=OPEN_POLICY)
    await _rules(lab, TAMPER)
    for n, name in enumerate(names):
        await lab.report(name, drifts=[drift("rule", str(n), section="firewall")], now=T0 + 400 * n)
    assert await lab.held() == (set(), set())


async def test_c15_rules_have_versions_and_nobody_overwrites_what_he_has_not_seen(lab: FleetLab) -> None:
    await lab.site()
    assert (await lab.fleet.responses()).version == 0
    await _rules(lab, TAMPER)
    await _rules(lab, USB_TWICE, replaces=1)
    with pytest.raises(Rejected, match=r"response\.changed"):
        await _rules(lab, TAMPER, replaces=1)
    with pytest.raises(Rejected, match=r"response\.key"):
        await _rules(lab, '[[rule]]\nname = "x"\n', replaces=2)
    assert (await lab.fleet.responses()).document == USB_TWICE
    await lab.fleet.undo_responses(Undo(replaces=2, reason="too harsh"), actor=ACTOR, now=T0)
    found = await lab.fleet.list_responses()
    assert [(v.version, v.document) for v in found.items] == [(3, TAMPER), (2, USB_TWICE), (1, TAMPER)]
    assert [a.act for a in await lab.fleet.list_audit(limit=500)].count("response.set") == 3


async def test_a_suppression_keeps_quiet_and_ends_by_itself(lab: FleetLab) -> None:
    await lab.populate(1)
    await _suppress(lab, "drift.sysctl", for_s=600)
    for now in (T0 + 1, T0 + 60):
        outcome = await lab.report("factory-1", drifts=[drift("a", "b")], now=now)
    assert outcome.tier == "warning"
    assert (await lab.fleet.list_incidents(scope=EVERYWHERE)).items == []
    await lab.report("factory-1", drifts=[drift("a", "b"), drift("c", "d", section="usb")], now=T0 + 120)
    assert (await _only(lab)).title.startswith("usb")
    await lab.report("factory-1", drifts=[drift("a", "b")], now=T0 + 601)
    assert [i.title for i in (await lab.fleet.list_incidents(scope=EVERYWHERE, state="open")).items] == [
        "sysctl: a"
    ]


@pytest.mark.parametrize("acts", [False, True])
async def test_a_suppression_stops_acts_only_where_it_says_so(lab: FleetLab, acts: bool) -> None:
    await lab.populate(1)
    made = await _suppress(lab, "boot.pcr", acts=acts)
    outcome = await lab.report("factory-1", findings=[finding("1234")], now=T0 + 1)
    assert outcome.tier == "contraindicated"
    assert await lab.held() == ((set(), set()) if acts else ({"factory-1"}, {"factory"}))
    # An act is never silent.
    assert len((await lab.fleet.list_incidents(scope=EVERYWHERE)).items) == (0 if acts else 1)
    if acts:
        await lab.fleet.end_suppression(made.id, actor=ACTOR, reason="done", now=T0 + 2)
        await lab.report("factory-1", findings=[finding("1234")], now=T0 + 3)
        assert await lab.held() == ({"factory-1"}, {"factory"})


async def test_no_suppression_hides_forged_evidence(lab: FleetLab) -> None:
    await lab.populate(1)
    await _suppress(lab, "untrusted", acts=True)
    await lab.fleet.reject_evidence("factory-1", Rejected("quote.signature", "x"), now=T0)
    assert await lab.held() == ({"factory-1"}, {"factory"})
    for kind in ("identity", "quote.signature", "quote.*", "evidence.rejected"):
        with pytest.raises(Rejected, match=r"suppression\.never"):
            await _suppress(lab, kind)


@pytest.mark.parametrize("for_s", [0.0, -1.0, 30 * 86400 + 1.0, float("inf"), float("nan")])
async def test_no_suppression_is_for_ever(lab: FleetLab, for_s: float) -> None:
    with pytest.raises(Rejected, match=r"suppression\.until"):
        await _suppress(lab, "drift", for_s=for_s)


async def test_what_flaps_is_one_incident_and_told_once(lab: FleetLab) -> None:
    await lab.populate(1, policy=OPEN_POLICY)
    now = T0
    for _ in range(5):
        await lab.report("factory-1", drifts=[drift("a", "b")], now=now + 10)
        await lab.report("factory-1", now=now + 20)
        now += 20
    incident = await _only(lab)
    assert (incident.state, incident.reopened, incident.quiet) == ("resolved", 4, True)
    kinds = await _kinds(lab)
    assert [kinds.count(f"incident.{what}") for what in ("opened", "reopened", "resolved")] == [1, 1, 1]
    await lab.fleet.sweep(now=now + 599)
    assert (await _kinds(lab)).count("incident.resolved") == 1
    for _ in range(2):
        await lab.fleet.sweep(now=now + 601)
    assert (await _kinds(lab)).count("incident.resolved") == 2


async def test_nothing_hides_behind_what_flaps(lab: FleetLab) -> None:
    await lab.populate(1, policy=OPEN_POLICY)
    for n in range(3):
        await lab.report("factory-1", drifts=[drift("a", "b")], now=T0 + 20 * n)
        await lab.report("factory-1", now=T0 + 20 * n + 10)
    assert (await _only(lab)).quiet
    await lab.report("factory-1", drifts=[drift("a", "b"), drift("x", "y")], now=T0 + 70)
    assert not (await _only(lab)).quiet
    assert (await _kinds(lab)).count("incident.reopened") == 2

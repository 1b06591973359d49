"""Updates over a fleet: announced beforehand, accepted after the fact, and what does not hide among them; both databases."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from contract import wire
from contract.boot import BootPolicy, Reference
from contract.errors import Rejected
from contract.references import ReferenceSet
from controller.permissions import EVERYWHERE
from controller.records import IncidentView, Outcome
from controller.reference_records import ReferenceView
from tests.contract.boots import COMMAND, INITRD, LINUX, QUESTION, Boot, kernel, secure, value
from tests.parts.fleets import ACTOR, T0, FleetLab, evidence, finding

STRICT = BootPolicy()
TONIGHT = T0 + 3600
_resets = itertools.count(10)


@pytest.fixture(scope="module")
def old() -> Boot:
    return secure()


@pytest.fixture(scope="module")
def new(old: Boot) -> Boot:
    return old.changed(kernel("new"))


async def fleet(lab: FleetLab, boot: Boot, nodes: int, site: str = "factory") -> list[str]:
    """Enrol nodes of a new site that have all booted the same."""
    await lab.site(site)
    names = [f"{site}-{n}" for n in range(1, nodes + 1)]
    for name in names:
        await lab.enrol(name, site=site)
        assert (await booted(lab, name, boot, STRICT)).tier == "affirming"
    return names


async def booted(lab: FleetLab, node: str, boot: Boot, policy: BootPolicy, now: float = T0) -> Outcome:
    """Report a boot as the session code does: judged by policy, accepted boot and what is announced."""
    stored = await lab.fleet.boot_reference(node)
    reference = boot.reference if stored is None else wire.decode(stored, Reference, max_bytes=2**21)
    expected = await lab.fleet.expected(node.rpartition("-")[0], now=now)
    judged = boot.weighed(policy, reference, expected)
    made = evidence(
        node,
        now=now,
        findings=judged.findings,
        reference=wire.encode(boot.reference),
        reset=next(_resets),
        directive_number=(await lab.fleet.node(node)).directive_number,
    )
    made = msgspec.structs.replace(made, announced=judged.announced, claims=wire.encode(boot.claims))
    return await lab.fleet.take_report(node, made, now=now)


def update(site: str = "factory", **changes: object) -> ReferenceSet:
    """Announce the new kernel for tonight."""
    values = {"kernel": [value("new file").hex(), value("new image").hex()]}
    return msgspec.structs.replace(ReferenceSet(site=site, values=values, valid_from=TONIGHT), **changes)  # type: ignore[arg-type]


async def incidents(lab: FleetLab) -> list[IncidentView]:
    return (await lab.fleet.list_incidents(scope=EVERYWHERE)).items


async def kinds(lab: FleetLab) -> list[str]:
    return [event.kind for event in await lab.fleet.list_events(scope=EVERYWHERE, limit=500)]


async def test_an_announced_update_makes_no_alarm_at_its_site_and_time(
    lab: FleetLab, old: Boot, new: Boot
) -> None:
    [node, other] = await fleet(lab, old, 2)
    [made] = await lab.fleet.announce(
        [update()], scope=EVERYWHERE, actor=ACTOR, reason="monthly update", now=T0
    )
    assert (made.id, made.created_by, made.reason) == (1, ACTOR, "monthly update")
    outcome = await booted(lab, node, new, QUESTION, TONIGHT)
    assert (outcome.tier, outcome.findings) == ("affirming", [])
    assert await incidents(lab) == []
    assert (await kinds(lab)).count("boot.announced") == 1
    # It is the accepted boot from now on, whatever becomes of the announcement.
    await lab.fleet.withdraw_reference(made.id, actor=ACTOR, reason="all done", now=TONIGHT)
    assert (await booted(lab, node, new, STRICT, TONIGHT + 60)).tier == "affirming"
    # And the kernel before it does not come back (l15).
    back = await booted(lab, node, old, QUESTION, TONIGHT + 120)
    assert "boot.rolled-back" in [f.code for f in back.findings]
    assert (await booted(lab, other, old, STRICT, TONIGHT + 120)).tier == "affirming"


async def test_too_early_or_elsewhere_it_is_not_announced(lab: FleetLab, old: Boot, new: Boot) -> None:
    await fleet(lab, old, 1)
    await fleet(lab, old, 1, "shop")
    await lab.fleet.announce([update()], scope=EVERYWHERE, actor=ACTOR, reason="monthly update", now=T0)
    assert (await booted(lab, "factory-1", new, QUESTION, TONIGHT - 1)).tier == "warning"
    assert (await booted(lab, "shop-1", new, QUESTION, TONIGHT)).tier == "warning"
    # The same node a moment later, judged again since what is announced has changed.
    assert (await booted(lab, "factory-1", new, QUESTION, TONIGHT)).tier == "affirming"
    [incident] = await incidents(lab)
    assert (incident.kind, incident.state, incident.nodes) == (
        "update",
        "needs-person",
        ["factory-1", "shop-1"],
    )


async def test_sessions_are_told_what_has_begun(lab: FleetLab, old: Boot) -> None:
    [node] = await fleet(lab, old, 1)
    assert (await lab.fleet.session(node)).announced == ""
    await lab.fleet.announce([update()], scope=EVERYWHERE, actor=ACTOR, reason="x", now=T0)
    spans = (await lab.fleet.session(node)).announced
    assert msgspec.json.decode(spans) == [[1, TONIGHT, None]]
    await lab.fleet.withdraw_reference(1, actor=ACTOR, reason="x", now=T0)
    assert (await lab.fleet.session(node)).announced == ""


async def test_c17_one_unannounced_update_on_many_nodes_is_one_question(
    lab: FleetLab, old: Boot, new: Boot
) -> None:
    names = await fleet(lab, old, 4) + await fleet(lab, old, 4, "shop")
    for node in names:
        assert (await booted(lab, node, new, QUESTION, T0 + 60)).tier == "warning"
    assert await lab.held() == (set(), set())
    [incident] = await incidents(lab)
    assert (incident.kind, incident.severity, incident.state) == ("update", "warning", "needs-person")
    assert incident.nodes_total == 8
    assert "kernel changed and nothing else" in incident.title
    assert sorted(incident.done) == sorted(
        f"accept it, or look at the nodes: found {value(name).hex()}; 7 other nodes report the same"
        for name in ("new file", "new image")
    )
    assert (await kinds(lab)).count("update.unannounced") == 1
    assert (await kinds(lab)).count("incident.opened") == 1
    accepted = await lab.fleet.accept_incident(
        incident.id, actor="ann", reason="kernel 6.1.0-19", now=T0 + 120
    )
    assert (accepted.affected, accepted.left) == (sorted(names), {})
    assert [v.reference.site for v in accepted.references] == ["factory", "shop"]
    for node in names:
        assert (await booted(lab, node, new, STRICT, T0 + 180)).tier == "affirming"
    assert [i.state for i in await incidents(lab)] == ["resolved"]
    # Nobody is asked about the next node of the site that gets it.
    await lab.enrol("shop-9", site="shop")
    await booted(lab, "shop-9", old, STRICT, T0 + 200)
    assert (await booted(lab, "shop-9", new, QUESTION, T0 + 240)).tier == "affirming"
    audit = [a.act for a in await lab.fleet.list_audit(limit=500) if a.actor == "ann"]
    assert audit.count("boot.accepted") == 8
    assert audit.count("reference.announced") == 2


async def test_c17_refused_updates_are_settled_by_accepting_as_well(
    lab: FleetLab, old: Boot, new: Boot
) -> None:
    names = await fleet(lab, old, 5)
    for node in names:
        assert (await booted(lab, node, new, STRICT, T0 + 60)).tier == "contraindicated"
    held, _ = await lab.held()
    assert len(held) == 2
    [incident] = await incidents(lab)
    assert (incident.kind, incident.nodes_total) == ("untrusted", 5)
    accepted = await lab.fleet.accept_incident(incident.id, actor="ann", reason="a kernel", now=T0 + 120)
    assert accepted.affected == names
    for node in names:
        found = (await booted(lab, node, new, STRICT, T0 + 180)).findings
        assert {f.code for f in found} <= {"posture.differs"}
    # Releasing is an act of its own.
    assert (await lab.held())[0] == held


async def test_c17_nobody_hides_behind_an_update_that_is_accepted(
    lab: FleetLab, old: Boot, new: Boot
) -> None:
    names = await fleet(lab, old, 4)
    own = new.changed({INITRD: value("an initrd of its own")})
    evil = new.changed(texts=dict.fromkeys((LINUX, COMMAND), ("quiet", "init=/bin/sh")))
    for node, boot in zip(names, (new, new, own, evil), strict=True):
        await booted(lab, node, boot, QUESTION, T0 + 60)
    [question] = [i for i in await incidents(lab) if i.kind == "update"]
    accepted = await lab.fleet.accept_incident(question.id, actor="ann", reason="a kernel", now=T0 + 120)
    assert accepted.affected == names[:2]
    assert list(accepted.left) == [names[2]]
    assert "no other node shows" in accepted.left[names[2]]
    again = await lab.fleet.accept_incident(
        question.id, own_values=True, actor="ann", reason="initrds are made on the node", now=T0 + 130
    )
    assert again.affected == [names[2]]
    assert "boot.pcr" in [f.code for f in (await lab.fleet.node(names[3])).findings]
    spread = {d for v in accepted.references for ds in v.reference.values.values() for d in ds}
    assert value("an initrd of its own").hex() not in spread


async def test_a_node_of_which_more_is_said_is_left_alone(lab: FleetLab, old: Boot, new: Boot) -> None:
    names = await fleet(lab, old, 3)
    for node in names[:2]:
        await booted(lab, node, new, QUESTION, T0 + 60)
    reference = wire.decode(await lab.fleet.boot_reference(names[2]) or b"", Reference, max_bytes=2**21)
    judged = new.weighed(QUESTION, reference)
    bad = evidence(
        names[2],
        findings=[*judged.findings, finding("1234", pcr=7)],
        reference=wire.encode(new.reference),
        reset=9,
    )
    await lab.fleet.take_report(names[2], bad, now=T0 + 60)
    [question] = [i for i in await incidents(lab) if i.kind == "update"]
    accepted = await lab.fleet.accept_incident(question.id, actor="ann", reason="a kernel", now=T0 + 120)
    assert accepted.affected == names[:2]
    assert accepted.left == {names[2]: "boot.pcr speaks against it as well; look at the node"}


async def test_what_cannot_be_accepted_is_refused(lab: FleetLab, old: Boot, new: Boot) -> None:
    [node] = await fleet(lab, old, 1)
    with pytest.raises(Rejected, match=r"incident\.unknown"):
        await lab.fleet.accept_incident(99, actor="ann", reason="x", now=T0)
    await lab.fleet.reject_evidence(node, Rejected("quote.signature", "x"), now=T0)
    [incident] = await incidents(lab)
    with pytest.raises(Rejected, match=r"incident\.none"):
        await lab.fleet.accept_incident(incident.id, actor="ann", reason="x", now=T0)
    with pytest.raises(Rejected, match=r"reason\.missing"):
        await lab.fleet.accept_incident(incident.id, actor="ann", reason=" ", now=T0)
    await lab.fleet.close_incident(incident.id, actor="ann", reason="x", now=T0)
    with pytest.raises(Rejected, match=r"incident\.closed"):
        await lab.fleet.accept_incident(incident.id, actor="ann", reason="x", now=T0)


async def test_announcing_is_an_act_with_a_reason_and_one_bad_set_does_not_fail_the_rest(
    lab: FleetLab,
) -> None:
    await lab.site()
    with pytest.raises(Rejected, match=r"reason\.missing"):
        await lab.fleet.announce([update()], scope=EVERYWHERE, actor=ACTOR, reason=" ", now=T0)
    many = [update(valid_from=TONIGHT + n) for n in range(3)]
    wanted = [many[0], update("nowhere"), *many[1:]]
    first, refused, *rest = await lab.fleet.announce(
        wanted, scope=EVERYWHERE, actor=ACTOR, reason="x", now=T0
    )
    assert isinstance(refused, Rejected) and refused.code == "site.unknown"
    made = [each.id for each in (first, *rest) if isinstance(each, ReferenceView)]
    found = (await lab.fleet.list_references(scope=EVERYWHERE, site="factory")).items
    assert len(made) == 3 and [v.id for v in found] == made[::-1]
    page = await lab.fleet.list_references(scope=EVERYWHERE, limit=2)
    assert page.next is not None
    assert len((await lab.fleet.list_references(scope=EVERYWHERE, limit=2, after=page.next)).items) == 1
    await lab.fleet.withdraw_reference(made[0], actor="bob", reason="wrong kernel", now=T0 + 5)
    with pytest.raises(Rejected, match=r"reference\.closed"):
        await lab.fleet.withdraw_reference(made[0], actor="bob", reason="again", now=T0 + 6)
    with pytest.raises(Rejected, match=r"reference\.unknown"):
        await lab.fleet.withdraw_reference(999, actor="bob", reason="x", now=T0)
    assert len((await lab.fleet.list_references(scope=EVERYWHERE)).items) == 2
    assert len((await lab.fleet.list_references(scope=EVERYWHERE, withdrawn=True)).items) == 3
    assert [a.act for a in await lab.fleet.list_audit(limit=500) if a.actor == "bob"] == [
        "reference.withdrawn"
    ]
    more = [update(valid_from=TONIGHT + n) for n in range(3, 258)]
    results = await lab.fleet.announce(more, scope=EVERYWHERE, actor=ACTOR, reason="x", now=T0)
    assert [isinstance(each, Rejected) and each.code for each in results][-2:] == [
        False,
        "reference.too-many",
    ]


async def test_a_reference_of_an_earlier_version_is_described_anew_with_the_next_good_boot(
    lab: FleetLab, old: Boot, new: Boot
) -> None:
    await lab.site()
    await lab.enrol("factory-1")
    bare = [msgspec.structs.replace(event, stage="", index=0) for event in old.reference.events]
    earlier = Reference(pcrs=old.reference.pcrs, events=bare)
    await lab.fleet.take_report("factory-1", evidence("factory-1", reference=wire.encode(earlier)), now=T0)
    assert (await lab.fleet.boot("factory-1")).reference == earlier
    assert (await booted(lab, "factory-1", old, QUESTION, T0 + 60)).tier == "affirming"
    view = await lab.fleet.boot("factory-1")
    assert (view.reference, view.accepted_at) == (old.reference, T0)
    assert "boot.unannounced" in [
        f.code for f in (await booted(lab, "factory-1", new, QUESTION, T0 + 120)).findings
    ]


async def test_the_boot_a_node_is_held_to_is_shown(lab: FleetLab, old: Boot, new: Boot) -> None:
    [node] = await fleet(lab, old, 1)
    view = await lab.fleet.boot(node)
    assert (view.accepted_at, view.is_last) == (T0, True)
    assert view.reference == old.reference
    assert view.claims == old.claims
    await booted(lab, node, new, QUESTION, T0 + 60)
    assert not (await lab.fleet.boot(node)).is_last
    await lab.enrol("factory-9")
    for name, code in (("factory-9", r"boot\.unknown"), ("nobody", r"node\.unknown")):
        with pytest.raises(Rejected, match=code):
            await lab.fleet.boot(name)

"""Updates of dbx, SBAT level and MOK lists over a fleet: one question, announced or accepted; both databases."""

from __future__ import annotations

import pytest

from contract.boot import BootPolicy, reference_from
from contract.references import ReferenceSet
from controller.permissions import EVERYWHERE
from tests.contract.boots import DBX, KERNEL_FILE, MOK_LIST, QUESTION, Boot, kernel, secure, value
from tests.contract.test_revocations import dbx, listed, measured
from tests.controller.fleet.test_references import booted, fleet, incidents
from tests.parts.fleets import ACTOR, T0, FleetLab

STRICT = BootPolicy()


@pytest.fixture(scope="module")
def old() -> Boot:
    return secure()


@pytest.fixture(scope="module")
def longer(old: Boot) -> Boot:
    return measured(old, DBX, dbx(old) + listed("a vulnerable loader"))


async def test_c17_one_unannounced_dbx_update_on_many_nodes_is_one_question(
    lab: FleetLab, old: Boot, longer: Boot
) -> None:
    names = await fleet(lab, old, 6)
    for node in names:
        assert (await booted(lab, node, longer, QUESTION, T0 + 60)).tier == "warning"
    assert await lab.held() == (set(), set())
    [incident] = await incidents(lab)
    assert (incident.kind, incident.state, incident.nodes_total) == ("update", "needs-person", 6)
    assert "the list dbx changed and nothing else" in incident.title
    accepted = await lab.fleet.accept_incident(incident.id, actor="ann", reason="dbx of May", now=T0 + 120)
    assert accepted.affected == names
    [announced] = accepted.references
    digest = next(event.sha256.hex() for event in longer.log.events if event.index == DBX)
    assert announced.reference.values == {"revocation": [digest]}
    await lab.enrol("factory-9", site="factory")
    await booted(lab, "factory-9", old, STRICT, T0 + 200)
    assert (await booted(lab, "factory-9", longer, STRICT, T0 + 240)).tier == "affirming"
    # And a node on which it goes back is refused by the list's own name (l14).
    back = await booted(lab, names[0], old, QUESTION, T0 + 300)
    found = [f for f in back.findings if f.code == "boot.rolled-back"]
    assert [f.event for f in found] == [DBX]
    assert back.tier == "contraindicated"


async def test_an_announced_dbx_update_makes_no_alarm(lab: FleetLab, old: Boot, longer: Boot) -> None:
    [node] = await fleet(lab, old, 1)
    digest = next(event.sha256.hex() for event in longer.log.events if event.index == DBX)
    one = ReferenceSet(site="factory", values={"revocation": [digest]}, valid_from=T0)
    await lab.fleet.announce([one], scope=EVERYWHERE, actor=ACTOR, reason="dbx of May", now=T0)
    assert (await booted(lab, node, longer, STRICT, T0 + 60)).tier == "affirming"
    assert await incidents(lab) == []


async def test_an_owners_key_that_is_accepted_on_some_nodes_is_expected_on_no_other(
    lab: FleetLab, old: Boot
) -> None:
    names = await fleet(lab, old, 3)
    owned = old.changed({MOK_LIST: value("another owner's keys")})
    for node in names[:2]:
        assert (await booted(lab, node, owned, QUESTION, T0 + 60)).tier == "contraindicated"
    [incident] = await incidents(lab)
    accepted = await lab.fleet.accept_incident(incident.id, actor="ann", reason="our key", now=T0 + 120)
    assert (accepted.affected, accepted.references) == (names[:2], [])
    assert (await booted(lab, names[2], owned, QUESTION, T0 + 180)).tier == "contraindicated"


async def test_what_a_run_time_pcr_is_said_to_hold_is_announced_nowhere(lab: FleetLab, old: Boot) -> None:
    policy = BootPolicy(unannounced="question", runtime_pcrs=[9])
    names = await fleet(lab, old, 2)
    new = old.changed(kernel("new")).over({**old.changed(kernel("new")).pcrs, 9: value("systemd")})
    new.reference = reference_from(new.log, new.pcrs, new.claims, runtime_pcrs=[9])
    for node in names:
        assert (await booted(lab, node, new, policy, T0 + 60)).tier == "warning"
    [incident] = await incidents(lab)
    accepted = await lab.fleet.accept_incident(incident.id, actor="ann", reason="a kernel", now=T0 + 120)
    assert accepted.affected == names
    [announced] = accepted.references
    assert announced.reference.values == {"kernel": [value("new image").hex()]}
    assert value("new file") in {e.sha256 for e in new.reference.events if e.index == KERNEL_FILE}

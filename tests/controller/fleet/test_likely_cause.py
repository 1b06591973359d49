"""What a person sees of a change: the likely cause, and on how many other nodes it stands; both databases."""

from __future__ import annotations

import msgspec
import pytest

from contract import wire
from contract.boot import Reference
from contract.errors import Rejected
from contract.messages import PackageChange
from contract.nodeword import NodeWord
from controller.permissions import EVERYWHERE
from controller.records import Outcome
from tests.contract.boots import QUESTION, Boot, kernel, secure, value
from tests.controller.fleet.test_references import fleet, incidents
from tests.parts.fleets import T0, FleetLab, drift, evidence

DAY_S = 86400.0


@pytest.fixture(scope="module")
def old() -> Boot:
    return secure()


@pytest.fixture(scope="module")
def new(old: Boot) -> Boot:
    return old.changed(kernel("new"))


async def updated(lab: FleetLab, node: str, boot: Boot, at: float) -> Outcome:
    """Report a new kernel whose package came at that time."""
    stored = await lab.fleet.boot_reference(node)
    reference = wire.decode(stored or b"", Reference, max_bytes=2**21)
    package = PackageChange(name="linux-image-amd64", after="6.1.82-1", at=at)
    judged = boot.weighed(QUESTION, reference, word=NodeWord(packages=[package]))
    made = evidence(
        node, now=T0 + 60, findings=judged.findings, reference=wire.encode(boot.reference), reset=9
    )
    return await lab.fleet.take_report(node, made, now=T0 + 60)


async def test_c17_a_person_sees_the_cause_and_how_many_others_report_the_same(
    lab: FleetLab, old: Boot, new: Boot
) -> None:
    names = await fleet(lab, old, 5)
    for n, node in enumerate(names[:4]):
        assert (await updated(lab, node, new, T0 + n * DAY_S)).tier == "warning"
    # Each node says in its own words when the package came: it is one new value all the same, said once.
    [incident] = await incidents(lab)
    view = await lab.fleet.incident(incident.id, scope=EVERYWHERE)
    assert (view.kind, view.nodes_total) == ("update", 4)
    assert [f.detail.rpartition("found ")[2] for f in view.findings] == [
        value("new file").hex(),
        value("new image").hex(),
    ]
    assert view.findings_nodes == [4, 4]
    assert "package 'linux-image-amd64' updated on 2023-11-14 to 6.1.82-1" in view.title
    detail = await lab.fleet.node(names[1])
    assert detail.findings_elsewhere == [3, 3]
    assert "updated on 2023-11-15 to 6.1.82-1 (the node's word)" in detail.findings[0].detail
    # What a node no longer shows counts no more on the others, and stays in the incident's own count.
    await lab.report(names[0], now=T0 + 120, reset=10)
    assert (await lab.fleet.node(names[1])).findings_elsewhere == [2, 2]
    assert (await lab.fleet.incident(incident.id, scope=EVERYWHERE)).findings_nodes == [4, 4]
    assert (await lab.fleet.node(names[4])).findings_elsewhere == []


async def test_drifts_and_refusals_are_counted_too(lab: FleetLab, old: Boot) -> None:
    names = await fleet(lab, old, 3)
    for node in names:
        await lab.report(node, now=T0 + 60, drifts=[drift("kernel.sysrq", "1"), drift(node, "0")])
    detail = await lab.fleet.node(names[0])
    assert detail.findings_elsewhere == [2, 0]
    for node in names[:2]:
        await lab.fleet.reject_evidence(node, Rejected("quote.signature", node), now=T0 + 70)
    assert (await lab.fleet.node(names[0])).findings_elsewhere == [1]
    for incident in await incidents(lab):
        view = await lab.fleet.incident(incident.id, scope=EVERYWHERE)
        assert len(view.findings_nodes) == len(view.findings)
        if view.kind == "untrusted":
            assert view.findings_nodes == [2, 2]


async def test_what_a_node_says_that_it_runs_is_shown(lab: FleetLab, old: Boot) -> None:
    [node] = await fleet(lab, old, 1)
    assert (await lab.fleet.node(node)).os_release == ""
    made = evidence(node, now=T0 + 60)
    body = msgspec.structs.replace(made.body, os_release="debian 12")
    await lab.fleet.take_report(node, msgspec.structs.replace(made, body=body), now=T0 + 60)
    assert (await lab.fleet.node(node)).os_release == "debian 12"

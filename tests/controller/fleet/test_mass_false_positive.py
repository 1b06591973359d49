"""One update nobody told us about, on 500 of 2,000 nodes: one incident, the breaker holds, one command resolves it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sqlalchemy import insert, select

from contract import wire
from contract.boot import BootPolicy
from contract.messages import Finding
from contract.references import NOTHING_EXPECTED
from controller.breaker import node_budget
from controller.permissions import EVERYWHERE
from controller.policy import BreakerLimits, SitePolicy
from controller.response_records import NewResponses
from controller.store import Transaction
from controller.store.schema import boot_references, nodes
from tests.contract.boots import kernel, secure
from tests.parts.fleets import ACTOR, T0, FleetLab, digest, evidence

FLEET, CHANGED, SITES = 2000, 500, 4
AT_ONCE = 50
HARSH = """
[[rule]]
name = "harsh"
when = { finding = "boot.*" }
then = ["isolate-node", "isolate-site", "alert"]
stage = "act"
"""


def _copy(tx: Transaction, first: str, of_site: int) -> None:
    """Make a site's other nodes like its first one; the hardware is each one's own."""
    row = dict(tx.execute(select(*nodes.c).where(nodes.c.node == first)).one()._mapping)
    boot = dict(tx.execute(select(*boot_references.c).where(boot_references.c.node == first)).one()._mapping)
    names = [f"{row['site']}-{n}" for n in range(2, of_site + 1)]
    own = [
        {
            "node": name,
            "ek_id": digest("ek", name).hex(),
            "ak_name": digest("ak", name).hex(),
            "certificate_sha256": digest("certificate", name),
        }
        for name in names
    ]
    tx.execute(insert(nodes), [row | each for each in own])
    tx.execute(insert(boot_references), [boot | {"node": name} for name in names])


async def _report(
    lab: FleetLab, names: Sequence[str], findings: Sequence[Finding], reference: bytes, *, now: float
) -> None:
    for begin in range(0, len(names), AT_ONCE):
        await asyncio.gather(
            *(
                lab.fleet.take_report(
                    name, evidence(name, findings=findings, reference=reference, reset=2, now=now), now=now
                )
                for name in names[begin : begin + AT_ONCE]
            )
        )


async def test_c17_one_update_on_500_of_2000_nodes_is_one_incident_and_one_command(lab: FleetLab) -> None:
    before = secure()
    after = before.changed(kernel("new"))
    for site in range(SITES):
        await lab.site(f"s{site}", SitePolicy())
        await lab.enrol(f"s{site}-1", site=f"s{site}")
        await lab.report(f"s{site}-1", reference=wire.encode(before.reference))
        await lab.store.run(lambda tx, s=site: _copy(tx, f"s{s}-1", FLEET // SITES))  # type: ignore[misc]
    await lab.fleet.set_responses(
        NewResponses(document=HARSH, replaces=0, reason="test"), actor=ACTOR, now=T0
    )
    changed = [f"s{n % SITES}-{n // SITES + 1}" for n in range(CHANGED)]
    judged = after.weighed(BootPolicy(), before.reference, NOTHING_EXPECTED)
    reference = wire.encode(after.reference)
    await _report(lab, changed, judged.findings, reference, now=T0 + 60)

    [incident] = (await lab.fleet.list_incidents(scope=EVERYWHERE)).items
    assert (incident.nodes_total, incident.state) == (CHANGED, "needs-person")
    automatic = [
        hold for hold in (await lab.fleet.list_holds(scope=EVERYWHERE, limit=500)).items if hold.automatic
    ]
    limits = BreakerLimits()
    assert sum(hold.node is not None for hold in automatic) <= node_budget(limits, FLEET)
    # The third node with the value is an update already, long before the budget of 40 is spent.
    assert sum(hold.node is not None for hold in automatic) == limits.same_value_nodes
    assert sum(hold.node is None for hold in automatic) <= limits.sites
    opened = [
        e for e in await lab.fleet.list_events(scope=EVERYWHERE, limit=500) if e.kind == "incident.opened"
    ]
    assert len(opened) == 1
    alerts = [
        e for e in await lab.fleet.list_events(scope=EVERYWHERE, limit=500) if e.kind == "response.alert"
    ]
    assert len(alerts) == limits.same_value_nodes

    accepted = await lab.fleet.accept_incident(
        incident.id, actor=ACTOR, reason="monthly update", now=T0 + 120
    )
    assert (len(accepted.affected), accepted.left) == (CHANGED, {})
    await _report(lab, changed, (), reference, now=T0 + 180)
    assert (await lab.fleet.incident(incident.id, scope=EVERYWHERE)).state == "resolved"

"""Two sites with one of everything each. All names of a site hold the site's name, so that any answer can be searched for them."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import select

from contract.grant import Access, CodeHash, Opening
from contract.inventory import Fact, Facts
from contract.messages import Drift
from contract.references import ReferenceSet
from controller.escrow_records import NewKey
from controller.grant_records import GrantRequest
from controller.permissions import EVERYWHERE, ON_THE_MACHINE, Right, Role
from controller.policy import SitePolicy
from controller.response_records import NewSuppression
from controller.rollout_records import NewPlan, NewRollout
from controller.store import Transaction
from controller.store.schema import metadata
from tests.controller.live import Live, answer_to
from tests.controller.test_escrow import sealed_body
from tests.parts.fleets import finish_of, issue, request
from tests.parts.simulator import Node

OWN, OTHER = "factory", "zurich"
_UNTOLD = {"used_at", "connected"}
"""Columns that reading writes."""


@dataclass
class Place:
    """A site, and what the parameters of a path may name in it."""

    site: str
    node: Node
    names: dict[str, str] = field(default_factory=dict)
    """By path parameter."""
    digest: str = ""
    """One that is announced here."""

    def path(self, path: str) -> str:
        """Fill in a route's path. A parameter that is not in `names` is a KeyError: say what it is in this world."""
        return path.format_map(self.names)


async def place(live: Live, site: str) -> Place:
    """Fill a site (made where it is not there)."""
    now = time.time()
    if site != OWN:
        await live.fleet.create_site(site, SitePolicy(), actor="tester", now=now)
    node = await live.node(f"{site}-1", site=site)
    drift = Drift(section="sysctl", key=f"{site}.key", wanted="1", found="2", since=now)
    await answer_to(node, node.report())
    await answer_to(node, node.report(drifts=[drift]))
    stock = Facts(facts=[Fact("package", "bash", "5.2"), Fact("hardware", "product", f"press of {site}")])
    await live.fleet.take_inventory(f"{site}-1", hashlib.sha256(site.encode()).digest(), stock, now=now)
    grant = await live.fleet.request_grant(_grant(f"{site}-1", now), actor=f"asker-{site}", now=now)
    digest = hashlib.sha256(site.encode()).hexdigest()
    wanted = ReferenceSet(site=site, values={"kernel": [digest]}, valid_from=now, note=f"kernel of {site}")
    [reference] = await live.fleet.announce(
        [wanted], scope=EVERYWHERE, actor=f"asker-{site}", reason="update", now=now
    )
    made: list[int] = []
    await live.fleet.issue_codes(
        f"{site}-1", 1, lambda ids: _hashes(ids, made), actor="tester", reason="safe", now=now
    )
    await live.token(f"bot-{site}", f"rfa_bot-{site}".ljust(47, "x"), Right(role="viewer", sites=(site,)))
    await live.services.people.add_user(
        f"user-of-{site}",
        [Right(role="viewer", sites=(site,))],
        hashlib.sha256(b"setup" + site.encode()).digest(),
        by=ON_THE_MACHINE,
        setup_expires_at=now + 3600,
        now=now,
    )
    plan = await live.fleet.make_plan(
        NewPlan(baseline="factory", selector=f"site={site}"), scope=EVERYWHERE, actor="tester", now=now
    )
    rollout = await live.fleet.request_rollout(
        NewRollout(plan=plan.id, reason=f"for {site}"), actor=f"asker-{site}", now=now
    )
    quiet = await live.fleet.suppress(
        NewSuppression(selector=f"site={site}", kind="update", until=now + 600, reason="known"),
        scope=EVERYWHERE,
        actor="tester",
        now=now,
    )
    key = msgspec.convert(sealed_body(node, f"{site}-key"), NewKey)
    await live.services.escrow.put(f"{site}-1", f"{site}-key", key, actor="tester", now=now)
    page = await live.fleet.list_incidents(scope=EVERYWHERE, site=site)
    return Place(
        site=site,
        node=node,
        digest=digest,
        names={
            "site": site,
            "node": f"{site}-1",
            "enrolment": await waiting(live, f"{site}-new", site),
            "incident": str(page.items[0].id),
            "grant": str(grant.id),
            "reference": str(reference.id),
            "plan": str(plan.id),
            "rollout": str(rollout.id),
            "suppression": str(quiet.id),
            "outlet": "none",
            "act": "1",
            "token": f"bot-{site}",
            "user": f"user-of-{site}",
            "evidence": "newest",
            "code": str(made[0]),
            "name": f"{site}-key",
        },
    )


async def waiting(live: Live, node: str, site: str | None) -> str:
    """An enrolment that waits for a person."""
    claim = request(node, site=site)
    enrolment = await live.fleet.begin_enrolment(claim, now=time.time())
    assert await live.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=time.time()) is None
    return enrolment


def _hashes(ids: list[int], made: list[int]) -> list[CodeHash]:
    made[:] = ids
    return [CodeHash(id=number, salt=b"s" * 16, hash=b"h" * 32) for number in ids]


def _grant(node: str, now: float) -> GrantRequest:
    opening = Opening(direction="in", protocol="tcp", ports=[22], peers=["198.51.100.1"])
    return GrantRequest(
        node=node,
        who=f"technician for {node}",
        company="Press Works",
        evidence="contract 4711",
        access=Access(openings=[opening]),
        ends=now + 3600,
        reason="drive replaced",
    )


async def token_of(live: Live, role: Role, site: str) -> dict[str, str]:
    """The header of a token with this role at this site alone."""
    secret = f"rfa_{role}-at-{site}".ljust(47, "x")
    return await live.token(f"{role}-at-{site}", secret, Right(role=role, sites=(site,)))


async def everything(live: Live) -> dict[str, list[object]]:
    """All rows of all tables, but for what reading writes."""

    def read(tx: Transaction) -> dict[str, list[object]]:
        return {
            table.name: sorted(
                repr(row) for row in tx.execute(select(*(c for c in table.c if c.name not in _UNTOLD)))
            )
            for table in metadata.sorted_tables
        }

    return await live.controller._store.run(read)

"""Grants and break-glass codes in the fleet: who may, what travels, what nodes tell; on both databases."""

from __future__ import annotations

import msgspec
import pytest

from contract.envelope import MAX_ENVELOPE_BYTES
from contract.errors import Rejected
from contract.grant import MAX_CODES, MAX_GRANTS, Access, CodeHash, Opening
from contract.messages import Event
from controller.grant_records import GrantRequest, GrantView
from controller.permissions import EVERYWHERE
from controller.policy import SitePolicy
from tests.parts.fleets import T0, FleetLab, evidence

NODE = "factory-1"


def wanted(
    node: str = NODE, *, starts: float | None = None, ends: float = T0 + 3600, peers: int = 1
) -> GrantRequest:
    """A request."""
    opening = Opening(
        direction="in", protocol="tcp", ports=[22], peers=[f"198.51.100.{n}" for n in range(1, peers + 1)]
    )
    return GrantRequest(
        node=node,
        who="A. Technician",
        company="Press Works",
        evidence="contract 4711",
        access=Access(openings=[opening]),
        starts=starts,
        ends=ends,
        reason="drive replaced",
    )


@pytest.fixture
async def fleet(lab: FleetLab) -> FleetLab:
    """A site with two nodes."""
    await lab.site("factory")
    for node in (NODE, "factory-2"):
        await lab.enrol(node)
    return lab


async def asked(lab: FleetLab, wanted_: GrantRequest | None = None, *, actor: str = "ops") -> GrantView:
    return await lab.fleet.request_grant(wanted_ or wanted(), actor=actor, now=T0)


async def approved(lab: FleetLab, wanted_: GrantRequest | None = None) -> GrantView:
    made = await asked(lab, wanted_)
    change = await lab.fleet.approve_grant(made.id, actor="boss", reason="planned", now=T0)
    assert change.affected == [made.node]
    return change.grant


async def travelling(lab: FleetLab, node: str = NODE, now: float = T0) -> list[int]:
    """Ids in the node's next directive."""
    return [grant.id for grant in (await lab.fleet.directive_for(node, now=now)).grants]


async def refusal(doing: object) -> str:
    with pytest.raises(Rejected) as refused:
        await doing  # type: ignore[misc]
    return refused.value.code


async def told(lab: FleetLab, kind: str, seq: int, node: str = NODE, at: float = T0, **detail: str) -> None:
    """The node reports one event."""
    event = Event(seq=seq, at=at, kind=kind, severity="warning", summary=kind, detail=detail)
    await lab.fleet.take_report(node, evidence(node, number=seq, now=T0, events=[event]), now=T0)


async def test_only_an_approved_grant_travels_to_its_node_and_until_its_end(fleet: FleetLab) -> None:
    made = await asked(fleet)
    assert (made.state, made.requested_by, made.starts) == ("requested", "ops", T0)
    assert await travelling(fleet) == []
    await fleet.fleet.approve_grant(made.id, actor="boss", reason="planned", now=T0)
    (grant,) = (await fleet.fleet.directive_for(NODE, now=T0)).grants
    assert (grant.who, grant.requested_by, grant.approved_by) == ("A. Technician", "ops", ["boss"])
    assert (grant.starts, grant.ends) == (T0, T0 + 3600)
    assert await travelling(fleet, "factory-2") == []
    assert await travelling(fleet, now=T0 + 3599) == [made.id]
    assert await travelling(fleet, now=T0 + 3600) == []


async def test_who_asked_does_not_approve_unless_the_site_says_so(fleet: FleetLab) -> None:
    made = await asked(fleet)
    alone = fleet.fleet.approve_grant(made.id, actor="ops", reason="mine", now=T0)
    assert await refusal(alone) == "grant.same-person"
    assert await travelling(fleet) == []
    policy = SitePolicy(grants_need_two_persons=False)
    await fleet.fleet.set_policy("factory", policy, actor="ops", reason="small site", now=T0)
    await fleet.fleet.approve_grant(made.id, actor="ops", reason="mine", now=T0)
    assert await travelling(fleet) == [made.id]


async def test_a_revoked_grant_leaves_and_nothing_is_decided_twice(fleet: FleetLab) -> None:
    made = await approved(fleet)
    again = fleet.fleet.approve_grant(made.id, actor="third", reason="again", now=T0)
    assert await refusal(again) == "grant.decided"
    change = await fleet.fleet.revoke_grant(made.id, actor="ops", reason="work done", now=T0 + 1)
    assert (change.grant.state, change.grant.revoked_by) == ("revoked", "ops")
    assert await travelling(fleet) == []
    once_more = fleet.fleet.revoke_grant(made.id, actor="ops", reason="work done", now=T0 + 1)
    assert await refusal(once_more) == "grant.decided"
    acts = [note.act for note in await fleet.fleet.list_audit(limit=100)]
    assert acts[-3:] == ["grant.requested", "grant.approved", "grant.revoked"]


async def test_what_cannot_be_is_refused(fleet: FleetLab) -> None:
    assert await refusal(asked(fleet, wanted("nobody"))) == "node.unknown"
    assert await refusal(asked(fleet, wanted(ends=T0))) == "grant.over"
    assert await refusal(asked(fleet, wanted(starts=T0 + 7200))) == "grant.invalid"
    assert await refusal(asked(fleet, wanted(ends=T0 + 91 * 86400))) == "grant.invalid"
    assert await refusal(fleet.fleet.approve_grant(99, actor="a", reason="b", now=T0)) == "grant.unknown"
    made = await asked(fleet)
    assert (
        await refusal(fleet.fleet.approve_grant(made.id, actor="boss", reason=" ", now=T0))
        == "reason.missing"
    )
    late = fleet.fleet.approve_grant(made.id, actor="boss", reason="late", now=T0 + 4000)
    assert await refusal(late) == "grant.over"
    assert (await fleet.fleet.grant(made.id, now=T0 + 4000)).state == "lapsed"


async def test_a_node_has_a_bounded_number_of_grants_and_the_largest_directive_fits(fleet: FleetLab) -> None:
    for _ in range(MAX_GRANTS):
        await approved(fleet, wanted(peers=16))
    assert await refusal(asked(fleet)) == "grant.too-many"
    directive = await fleet.fleet.directive_for(NODE, now=T0)
    assert len(directive.grants) == MAX_GRANTS
    assert len(msgspec.json.encode(directive)) * 4 / 3 < MAX_ENVELOPE_BYTES / 4


async def test_what_the_node_tells_is_shown_and_telling_it_twice_changes_nothing(fleet: FleetLab) -> None:
    made = await approved(fleet)
    grant = str(made.id)
    await told(fleet, "grant.opened", 1, grant=grant)
    await told(fleet, "grant.used", 2, at=T0 + 5, grant=grant, source="198.51.100.1")
    await told(fleet, "grant.used", 3, at=T0 + 9, grant=grant, source="198.51.100.1")
    view = await fleet.fleet.grant(made.id, now=T0)
    assert (view.state, view.use.used_at, view.use.sources) == ("open", T0 + 5, ["198.51.100.1"])
    await told(fleet, "grant.closed", 4, at=T0 + 60, grant=grant, why="ended", bytes="4096")
    view = await fleet.fleet.grant(made.id, now=T0 + 3600)
    assert (view.state, view.use.bytes_carried, view.use.closed_why) == ("ended", 4096, "ended")


async def test_c11_a_node_speaks_of_its_own_grants_only_and_nonsense_is_passed_over(fleet: FleetLab) -> None:
    made = await approved(fleet)
    await told(fleet, "grant.opened", 1, node="factory-2", grant=str(made.id))
    assert (await fleet.fleet.grant(made.id, now=T0)).use.opened_at is None
    for number, said in enumerate(("", "x", "9" * 40, "-1", "\u0661"), start=1):
        await told(fleet, "grant.opened", number, grant=said)
    await told(fleet, "grant.closed", 9, grant=str(made.id), bytes="9" * 40)
    assert (await fleet.fleet.grant(made.id, now=T0)).use.bytes_carried == 0


async def test_lists_by_node_site_and_state(fleet: FleetLab) -> None:
    first, second = await approved(fleet), await asked(fleet, wanted("factory-2"))
    await fleet.fleet.revoke_grant(first.id, actor="ops", reason="done", now=T0)
    page = await fleet.fleet.list_grants(scope=EVERYWHERE, now=T0)
    assert [view.id for view in page.items] == [second.id]
    page = await fleet.fleet.list_grants(scope=EVERYWHERE, ended=True, limit=1, now=T0)
    assert ([view.id for view in page.items], page.next) == ([second.id], str(second.id))
    page = await fleet.fleet.list_grants(scope=EVERYWHERE, ended=True, after=page.next, now=T0)
    assert [view.id for view in page.items] == [first.id]
    assert (await fleet.fleet.list_grants(scope=EVERYWHERE, site="nowhere", now=T0)).items == []
    assert [
        v.id for v in (await fleet.fleet.list_grants(scope=EVERYWHERE, node="factory-2", now=T0)).items
    ] == [second.id]


def hashes(ids: list[int]) -> list[CodeHash]:
    return [CodeHash(id=number, salt=bytes(16), hash=bytes([number % 256]) * 32) for number in ids]


async def issued(lab: FleetLab, count: int, node: str = NODE) -> None:
    await lab.fleet.issue_codes(node, count, hashes, actor="ops", reason="in the safe", now=T0)


async def listed(lab: FleetLab, now: float = T0) -> list[int]:
    return [code.id for code in (await lab.fleet.directive_for(NODE, now=now)).break_glass]


async def test_codes_travel_as_hashes_until_they_are_revoked_or_long_used(fleet: FleetLab) -> None:
    await issued(fleet, 3)
    first, second, third = await listed(fleet)
    assert (await fleet.fleet.directive_for("factory-2", now=T0)).break_glass == []
    await told(fleet, "break-glass.used", 1, at=T0 + 5, code=str(first))
    await fleet.fleet.revoke_code(NODE, third, actor="ops", reason="lost", now=T0)
    assert await listed(fleet) == [first, second], "what a used code has opened goes on"
    assert await listed(fleet, T0 + 9 * 86400) == [second]
    views = await fleet.fleet.list_codes(NODE)
    assert [(bool(v.used_at), bool(v.revoked_at)) for v in views] == [
        (True, False),
        (False, False),
        (False, True),
    ]


async def test_a02_a_code_that_is_used_a_second_time_is_an_alarm(fleet: FleetLab) -> None:
    await issued(fleet, 1)
    (code,) = await listed(fleet)
    for seq, at in ((1, T0 + 5), (2, T0 + 5)):
        await told(fleet, "break-glass.used", seq, at=at, code=str(code))
    kinds = [event.kind for event in await fleet.fleet.list_events(scope=EVERYWHERE, limit=500)]
    assert "break-glass.again" not in kinds, "told twice"
    await told(fleet, "break-glass.used", 3, at=T0 + 900, code=str(code))
    found = [
        e for e in await fleet.fleet.list_events(scope=EVERYWHERE, limit=500) if e.kind == "break-glass.again"
    ]
    assert [(event.severity, event.node) for event in found] == [("critical", NODE)]


async def test_codes_are_bounded_and_of_one_node(fleet: FleetLab) -> None:
    await issued(fleet, MAX_CODES)
    assert await refusal(issued(fleet, 1)) == "break-glass.too-many"
    assert await refusal(issued(fleet, 1, node="nobody")) == "node.unknown"
    (code, *_) = await listed(fleet)
    for node, number in (("factory-2", code), (NODE, 9999)):
        doing = fleet.fleet.revoke_code(node, number, actor="ops", reason="lost", now=T0)
        assert await refusal(doing) == "break-glass.unknown"
    await fleet.fleet.revoke_code(NODE, code, actor="ops", reason="lost", now=T0)
    again = fleet.fleet.revoke_code(NODE, code, actor="ops", reason="lost", now=T0)
    assert await refusal(again) == "break-glass.decided"
    await issued(fleet, 1)

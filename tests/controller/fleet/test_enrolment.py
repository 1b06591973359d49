"""Enrolment at the level of state: who gets which id, whatever is tried and in whatever order."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable

import msgspec
import pytest

from contract.errors import Rejected
from controller.enrolment_records import Admitted
from controller.permissions import EVERYWHERE
from controller.policy import FleetSettings, SitePolicy
from controller.records import IssuedCertificate, NodeIdentity
from controller.store import Store
from tests.parts.fleets import ACTOR, T0, FleetLab, evidence, finish_of, issue, request


async def _code(awaitable: object) -> str:
    with pytest.raises(Rejected) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value.code


async def _kinds(lab: FleetLab) -> list[str]:
    return [event.kind for event in await lab.fleet.list_events(scope=EVERYWHERE, limit=500)]


async def test_a_person_approves_and_the_node_is_in(lab: FleetLab) -> None:
    await lab.site()
    claim = request("cam-1")
    enrolment = await lab.fleet.begin_enrolment(claim, now=T0)
    assert await lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0) is None
    assert (await lab.fleet.counts(scope=EVERYWHERE)).enrolments_waiting == 1
    assert await _code(lab.fleet.node("cam-1")) == "node.unknown"
    view = await lab.fleet.approve(enrolment, actor=ACTOR, now=T0)
    assert (view.state, view.decided_by) == ("approved", ACTOR)
    admitted = await lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0)
    assert admitted is not None
    session = await lab.fleet.open_session("cam-1", admitted.certificate.sha256, now=T0)
    assert (session.ek_public, session.ak_public, session.site) == (
        claim.ek_public,
        claim.ak_public,
        "factory",
    )
    assert (await lab.fleet.node("cam-1")).summary.standing == "unreachable"


async def test_b03_a_wrong_proof_is_refused_and_five_end_the_enrolment(lab: FleetLab) -> None:
    await lab.site()
    claim = request("cam-1")
    enrolment = await lab.fleet.begin_enrolment(claim, now=T0)
    right = finish_of(enrolment, claim)
    for _ in range(5):
        wrong = finish_of(enrolment, claim, secret=b"\0" * 32)
        with pytest.raises(Rejected, match=r"enrolment\.proof") as caught:
            await lab.fleet.finish_enrolment(wrong, issue, now=T0)
        assert right.proof.hex() not in caught.value.detail
        assert claim.secret.hex() not in caught.value.detail
    assert await _code(lab.fleet.finish_enrolment(right, issue, now=T0)) == "enrolment.rejected"
    assert await _code(lab.fleet.approve(enrolment, actor=ACTOR, now=T0)) == "enrolment.decided"


async def test_b03_an_empty_secret_proves_nothing_once_it_was_forgotten(lab: FleetLab) -> None:
    await lab.site()
    claim = request("cam-1")
    enrolment = await lab.fleet.begin_enrolment(claim, now=T0)
    await lab.fleet.reject(enrolment, actor=ACTOR, reason="not ours", now=T0)
    forged = finish_of(enrolment, claim, secret=b"")
    assert await _code(lab.fleet.finish_enrolment(forged, issue, now=T0)) == "enrolment.rejected"


async def test_nothing_is_approved_before_the_tpm_has_answered(lab: FleetLab) -> None:
    await lab.site()
    enrolment = await lab.fleet.begin_enrolment(request("cam-1"), now=T0)
    assert await _code(lab.fleet.approve(enrolment, actor=ACTOR, now=T0)) == "enrolment.unproved"


async def test_b04_another_tpm_under_a_bound_id_is_refused_and_reported(lab: FleetLab) -> None:
    await lab.site()
    await lab.enrol("cam-1")
    claim = request("cam-1", tpm="thief")
    assert await _code(lab.fleet.begin_enrolment(claim, now=T0)) == "enrolment.identity-conflict"
    assert "enrolment.identity-conflict" in await _kinds(lab)
    [incident] = (await lab.fleet.list_incidents(scope=EVERYWHERE)).items
    assert (incident.kind, incident.state, incident.nodes) == ("identity", "open", ["cam-1"])
    assert (await lab.fleet.node("cam-1")).ek_id == request("cam-1").ek_id


async def test_b04_the_same_tpm_with_another_ak_waits_for_a_person_and_changes_nothing(lab: FleetLab) -> None:
    await lab.site()
    first = await lab.enrol("cam-1")
    claim = request("cam-1", ak="another")
    enrolment = await lab.fleet.begin_enrolment(claim, now=T0)
    assert await lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0) is None
    session = await lab.fleet.open_session("cam-1", first.certificate.sha256, now=T0)
    assert session.ak_public == request("cam-1").ak_public
    assert await _code(lab.fleet.approve(enrolment, actor=ACTOR, now=T0)) == "enrolment.identity-conflict"
    await lab.fleet.approve(enrolment, actor=ACTOR, now=T0, replace=True)
    again = await lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0)
    assert again is not None
    assert (
        await _code(lab.fleet.open_session("cam-1", first.certificate.sha256, now=T0))
        == "session.certificate"
    )
    session = await lab.fleet.open_session("cam-1", again.certificate.sha256, now=T0)
    assert session.ak_public == claim.ak_public


async def test_b04_the_ak_of_one_node_under_another_id_is_refused(lab: FleetLab) -> None:
    await lab.site()
    await lab.enrol("cam-1")
    claim = request("cam-2", tpm="other", ak="cam-1")
    assert await _code(lab.fleet.begin_enrolment(claim, now=T0)) == "enrolment.identity-conflict"


async def test_b04_b09_a_session_needs_the_certificate_that_is_bound(lab: FleetLab) -> None:
    await lab.site()
    one, two = await lab.enrol("cam-1"), await lab.enrol("cam-2")
    assert (
        await _code(lab.fleet.open_session("cam-1", two.certificate.sha256, now=T0)) == "session.certificate"
    )
    assert (
        await _code(lab.fleet.open_session("cam-3", one.certificate.sha256, now=T0)) == "session.unknown-node"
    )
    assert await _code(lab.fleet.check_certificate("cam-1", two.certificate.sha256)) == "session.certificate"
    assert "session.refused" in await _kinds(lab)
    await lab.fleet.check_certificate("cam-1", one.certificate.sha256)
    assert not (await lab.fleet.node("cam-1")).summary.connected


async def test_b04_a_node_that_was_approved_but_not_handed_a_certificate_opens_no_session(
    lab: FleetLab,
) -> None:
    await lab.site()
    claim = request("cam-1")
    enrolment = await lab.fleet.begin_enrolment(claim, now=T0)
    await lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0)
    await lab.fleet.approve(enrolment, actor=ACTOR, now=T0)
    assert await _code(lab.fleet.open_session("cam-1", b"", now=T0)) == "session.certificate"


async def test_b05_two_first_enrolments_of_one_id_at_once_leave_exactly_one(
    open_store: Callable[[], Store],
) -> None:
    """Two controllers on one database, eight claims for one id, all proved and on no list but by one token each."""
    one, two = FleetLab(open_store()), FleetLab(open_store())
    await one.site()
    claims = []
    for n in range(8):
        token = f"token-{n}"
        await one.fleet.new_enrol_token(
            hashlib.sha256(token.encode()).digest(),
            site="factory",
            node="cam-1",
            expires_at=T0 + 60,
            actor=ACTOR,
            now=T0,
        )
        claims.append(request("cam-1", tpm=f"tpm-{n}", token=token))
    labs = [one, two] * 4
    begun = await asyncio.gather(
        *(lab.fleet.begin_enrolment(claim, now=T0) for lab, claim in zip(labs, claims, strict=True))
    )
    results = await asyncio.gather(
        *(
            lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0)
            for lab, enrolment, claim in zip(labs, begun, claims, strict=True)
        ),
        return_exceptions=True,
    )
    admitted = [r for r in results if not isinstance(r, BaseException)]
    refused = [r.code for r in results if isinstance(r, Rejected)]
    assert len(admitted) == 1
    assert refused == ["enrolment.identity-conflict"] * 7
    assert [n.node for n in (await one.fleet.list_nodes(scope=EVERYWHERE)).items] == ["cam-1"]


async def test_b05_the_constraint_decides_where_both_looked_before_either_wrote(
    open_store: Callable[[], Store],
) -> None:
    one, two = FleetLab(open_store()), FleetLab(open_store())
    await one.site()
    claims = [request("cam-1", tpm=f"tpm-{n}", site=None) for n in range(2)]
    for claim in claims:
        await one.fleet.preregister(claim.ek_id, site="factory", node=None, actor=ACTOR, now=T0)
    begun = [await one.fleet.begin_enrolment(claim, now=T0) for claim in claims]
    written = threading.Event()

    def slow_issue(identity: NodeIdentity, csr: bytes) -> IssuedCertificate:
        written.set()
        time.sleep(0.5)  # the other one looks now, and on PostgreSQL sees nothing and writes as well
        return issue(identity, csr)

    async def second() -> object:
        await asyncio.to_thread(written.wait, 10)
        return await two.fleet.finish_enrolment(finish_of(begun[1], claims[1]), issue, now=T0)

    first, other = await asyncio.gather(
        one.fleet.finish_enrolment(finish_of(begun[0], claims[0]), slow_issue, now=T0),
        second(),
        return_exceptions=True,
    )
    assert isinstance(first, Admitted)
    assert isinstance(other, Rejected)
    assert other.code == "enrolment.identity-conflict"


async def test_b05_two_persons_approve_two_claims_for_one_id(open_store: Callable[[], Store]) -> None:
    one, two = FleetLab(open_store()), FleetLab(open_store())
    await one.site()
    claims = [request("cam-1", tpm=f"tpm-{n}") for n in range(2)]
    begun = [await one.fleet.begin_enrolment(claim, now=T0) for claim in claims]
    for enrolment, claim in zip(begun, claims, strict=True):
        await one.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0)
    results = await asyncio.gather(
        one.fleet.approve(begun[0], actor="ann", now=T0),
        two.fleet.approve(begun[1], actor="ben", now=T0),
        return_exceptions=True,
    )
    assert sorted(type(r).__name__ for r in results) == ["EnrolmentView", "Rejected"]
    assert [r.code for r in results if isinstance(r, Rejected)] == ["enrolment.identity-conflict"]


async def test_b06_a_claim_reserves_nothing(lab: FleetLab) -> None:
    await lab.site()
    early = request("cam-1", tpm="squatter")
    enrolment = await lab.fleet.begin_enrolment(early, now=T0)
    await lab.fleet.finish_enrolment(finish_of(enrolment, early), issue, now=T0)
    await lab.enrol("cam-1", now=T0 + 1)
    assert (await lab.fleet.node("cam-1")).ek_id == request("cam-1").ek_id
    assert await _code(lab.fleet.approve(enrolment, actor=ACTOR, now=T0)) == "enrolment.identity-conflict"


async def test_b06_an_id_reserved_for_an_ek_is_nobody_elses(lab: FleetLab) -> None:
    await lab.site()
    squatter = request("cam-1", tpm="squatter")
    before = await lab.fleet.begin_enrolment(squatter, now=T0)
    await lab.fleet.finish_enrolment(finish_of(before, squatter), issue, now=T0)
    real = request("cam-1", site=None)
    await lab.fleet.preregister(real.ek_id, site="factory", node="cam-1", actor=ACTOR, now=T0)
    assert await _code(lab.fleet.begin_enrolment(squatter, now=T0)) == "enrolment.reserved"
    assert await _code(lab.fleet.approve(before, actor=ACTOR, now=T0)) == "enrolment.reserved"
    elsewhere = request("cam-2", tpm="cam-1")
    assert await _code(lab.fleet.begin_enrolment(elsewhere, now=T0)) == "enrolment.reserved"
    enrolment = await lab.fleet.begin_enrolment(real, now=T0)
    admitted = await lab.fleet.finish_enrolment(finish_of(enrolment, real), issue, now=T0)
    assert admitted is not None
    assert admitted.newly
    assert (await lab.fleet.node("cam-1")).approved_by == "EK list"
    assert await lab.fleet.preregistered_eks() == {real.ek_id}


async def test_b12_one_tpm_under_two_ids_is_refused(lab: FleetLab) -> None:
    await lab.site()
    await lab.enrol("cam-1")
    assert (
        await _code(lab.fleet.begin_enrolment(request("cam-2", tpm="cam-1"), now=T0)) == "enrolment.ek-in-use"
    )


async def test_the_same_tpm_and_ak_may_come_back_and_the_old_certificate_is_void(lab: FleetLab) -> None:
    await lab.site()
    first = await lab.enrol("cam-1")
    await lab.report("cam-1")
    second = await lab.enrol("cam-1", now=T0 + 60)
    assert first.certificate.sha256 != second.certificate.sha256
    assert (
        await _code(lab.fleet.open_session("cam-1", first.certificate.sha256, now=T0))
        == "session.certificate"
    )
    session = await lab.fleet.open_session("cam-1", second.certificate.sha256, now=T0)
    assert session.counters is not None


async def test_a_token_is_good_once_for_its_node_until_it_expires(lab: FleetLab) -> None:
    await lab.site()

    async def token(text: str, node: str | None, expires: float) -> None:
        await lab.fleet.new_enrol_token(
            hashlib.sha256(text.encode()).digest(),
            site="factory",
            node=node,
            expires_at=expires,
            actor=ACTOR,
            now=T0,
        )

    await token("one", "cam-1", T0 + 60)
    assert await _code(lab.fleet.begin_enrolment(request("cam-2", token="one"), now=T0)) == "enrolment.token"
    claim = request("cam-1", site=None, token="one")
    assert await _code(lab.fleet.begin_enrolment(claim, now=T0 + 61)) == "enrolment.token"
    enrolment = await lab.fleet.begin_enrolment(claim, now=T0)
    assert await lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0)
    assert await lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0)
    assert await _code(lab.fleet.begin_enrolment(request("cam-3", token="one"), now=T0)) == "enrolment.token"


async def test_an_unverified_ek_needs_a_site_that_allows_it(lab: FleetLab) -> None:
    await lab.site()
    await lab.site("legacy", SitePolicy(require_tpm=False))
    claim = msgspec.structs.replace(request("cam-1"), ek_trust="unverified")
    assert await _code(lab.fleet.begin_enrolment(claim, now=T0)) == "enrolment.ek-untrusted"
    nowhere = msgspec.structs.replace(claim, site=None)
    enrolment = await lab.fleet.begin_enrolment(nowhere, now=T0)
    await lab.fleet.finish_enrolment(finish_of(enrolment, nowhere), issue, now=T0)
    assert await _code(lab.fleet.approve(enrolment, actor=ACTOR, now=T0)) == "site.missing"
    assert (
        await _code(lab.fleet.approve(enrolment, actor=ACTOR, now=T0, site="factory"))
        == "enrolment.ek-untrusted"
    )
    await lab.fleet.approve(enrolment, actor=ACTOR, now=T0, site="legacy")
    assert (await lab.fleet.node("cam-1")).summary.ek_trust == "unverified"


async def test_claims_that_nobody_proves_do_not_pile_up(open_store: Callable[[], Store]) -> None:
    lab = FleetLab(open_store(), FleetSettings(max_open_enrolments=3))
    await lab.site()
    for n in range(3):
        await lab.fleet.begin_enrolment(request(f"cam-{n}"), now=T0)
    assert await _code(lab.fleet.begin_enrolment(request("cam-9"), now=T0 + 1)) == "enrolment.too-many"
    await lab.fleet.begin_enrolment(request("cam-9"), now=T0 + 601)


async def test_knocking_a_thousand_times_is_written_down_once_a_minute(lab: FleetLab) -> None:
    await lab.site()
    await lab.enrol("cam-1")
    for n in range(50):
        claim = request("cam-1", tpm=f"thief-{n}")
        assert await _code(lab.fleet.begin_enrolment(claim, now=T0 + n)) == "enrolment.identity-conflict"
    assert (await _kinds(lab)).count("enrolment.identity-conflict") == 1
    assert len((await lab.fleet.list_incidents(scope=EVERYWHERE)).items) == 1


async def test_renewal_keeps_the_old_certificate_until_the_new_one_is_used(lab: FleetLab) -> None:
    await lab.site()
    first = await lab.enrol("cam-1")
    renewed = await lab.fleet.renew_certificate("cam-1", b"CSR 2", issue, now=T0)
    await lab.fleet.open_session("cam-1", first.certificate.sha256, now=T0)
    session = await lab.fleet.open_session("cam-1", renewed.sha256, now=T0)
    assert session.certificate_sha256 == renewed.sha256
    assert (
        await _code(lab.fleet.open_session("cam-1", first.certificate.sha256, now=T0))
        == "session.certificate"
    )
    await lab.fleet.take_report("cam-1", evidence("cam-1"), now=T0)

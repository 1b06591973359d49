"""A known TPM that comes with new keys: in without pain, and never in for somebody else."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from contract.devid import DevId
from contract.errors import Rejected
from controller.enrolment_records import Admitted, DevIds, EnrolmentRequest
from controller.permissions import EVERYWHERE
from controller.policy import SitePolicy
from controller.store import Store
from controller.tpmrecord import TpmRecord
from tests.parts.fleets import ACTOR, T0, FleetLab, evidence, finding, finish_of, issue, request


async def _code(awaitable: object) -> str:
    with pytest.raises(Rejected) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value.code


async def comes(
    lab: FleetLab, claim: EnrolmentRequest, *, now: float = T0 + 60
) -> tuple[str, Admitted | None]:
    """Begin and finish; the enrolment and what came of it."""
    enrolment = await lab.fleet.begin_enrolment(claim, now=now)
    return enrolment, await lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=now)


async def opens(lab: FleetLab, admitted: Admitted) -> bool:
    """Whether this certificate opens a session."""
    node, sha256 = admitted.identity.node, admitted.certificate.sha256
    try:
        await lab.fleet.open_session(node, sha256, now=T0)
    except Rejected as rejected:
        assert rejected.code == "session.certificate"
        return False
    return True


async def test_b04_new_keys_ask_a_person_once_and_say_with_which_command(lab: FleetLab) -> None:
    await lab.site()
    before = await lab.enrol("cam-1")
    claim = request("cam-1", ak="new disk")
    enrolment, admitted = await comes(lab, claim)
    assert admitted is None
    [waiting] = (await lab.fleet.list_enrolments(scope=EVERYWHERE, state="proved")).items
    assert waiting.note.startswith("same TPM, new keys")
    assert waiting.approve_with == f"ringfence enrolments approve {enrolment} --replace"
    [incident] = (await lab.fleet.list_incidents(scope=EVERYWHERE)).items
    assert (incident.kind, incident.nodes) == ("identity", ["cam-1"])
    assert waiting.approve_with in incident.findings[0].detail
    # Until then nothing has changed for the node as it was; asking again asks nobody again.
    assert await opens(lab, before)
    await lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0 + 70)
    assert len((await lab.fleet.list_incidents(scope=EVERYWHERE)).items) == 1

    await lab.fleet.approve(enrolment, actor=ACTOR, now=T0 + 80, replace=True)
    assert not await opens(lab, before)  # in the very transaction, before the new one is handed out
    after = await lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0 + 90)
    assert after is not None and await opens(lab, after)
    [incident] = (await lab.fleet.list_incidents(scope=EVERYWHERE)).items
    assert incident.state == "resolved"
    acts = [(line.act, line.actor) for line in await lab.fleet.list_audit(limit=100)]
    assert ("enrolment.keys-replaced", ACTOR) in acts


async def test_b04_a_rejected_question_leaves_the_node_as_it_was(lab: FleetLab) -> None:
    await lab.site()
    before = await lab.enrol("cam-1")
    claim = request("cam-1", ak="usb stick")
    enrolment, _ = await comes(lab, claim)
    await lab.fleet.reject(enrolment, actor=ACTOR, reason="nobody replaced a disk", now=T0 + 70)
    assert await opens(lab, before)
    assert (await lab.fleet.list_incidents(scope=EVERYWHERE)).items[0].state == "resolved"
    finish = lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0 + 80)
    assert await _code(finish) == "enrolment.rejected"


async def test_b04_new_keys_without_a_word_about_it_are_refused(lab: FleetLab) -> None:
    await lab.site()
    await lab.enrol("cam-1")
    enrolment, _ = await comes(lab, request("cam-1", ak="new disk"))
    code = await _code(lab.fleet.approve(enrolment, actor=ACTOR, now=T0 + 80))
    assert code == "enrolment.identity-conflict"


@pytest.mark.parametrize("by", ["policy", "list"])
async def test_new_keys_need_no_person_where_it_was_decided_beforehand(lab: FleetLab, by: str) -> None:
    await lab.site("factory", SitePolicy(reenrol="same-ek") if by == "policy" else None)
    claim = request("cam-1")
    if by == "list":
        await lab.fleet.preregister(claim.ek_id, site="factory", node="cam-1", actor=ACTOR, now=T0)
    before = await lab.enrol("cam-1")
    await lab.report("cam-1", reference=b"reference of the first boot")
    again = msgspec.structs.replace(request("cam-1", ak="new disk"), csr=b"CSR new")
    _, after = await comes(lab, again)
    assert after is not None and after.newly
    assert not await opens(lab, before)
    assert await opens(lab, after)
    session = await lab.fleet.session("cam-1")
    assert session.ak_public == again.ak_public
    assert session.counters is not None  # the TPM's, not the key's
    [line] = [x for x in await lab.fleet.list_audit(limit=100) if x.act == "enrolment.keys-replaced"]
    assert line.actor == {"policy": "site policy", "list": "EK list"}[by]
    assert (await lab.fleet.list_incidents(scope=EVERYWHERE)).items == []


async def test_an_ek_that_is_expected_as_any_node_does_not_answer_for_new_keys(lab: FleetLab) -> None:
    await lab.site()
    claim = request("cam-1")
    await lab.fleet.preregister(claim.ek_id, site="factory", node=None, actor=ACTOR, now=T0)
    await lab.enrol("cam-1")
    _, admitted = await comes(lab, request("cam-1", ak="new disk"))
    assert admitted is None


async def test_new_keys_keep_the_boot_reference_so_a_swapped_system_is_found(lab: FleetLab) -> None:
    await lab.site("factory", SitePolicy(reenrol="same-ek"))
    await lab.enrol("cam-1")
    await lab.report("cam-1", reference=b"reference of the first boot")
    held = (await lab.fleet.node("cam-1")).boot_reference_at
    assert held is not None
    await comes(lab, request("cam-1", ak="new disk"))
    assert (await lab.fleet.node("cam-1")).boot_reference_at == held
    outcome = await lab.report("cam-1", number=2, reset=2, findings=[finding("another kernel")])
    assert outcome.tier == "contraindicated"


async def test_b04_a_revoked_ak_does_not_come_back(lab: FleetLab) -> None:
    await lab.site("factory", SitePolicy(reenrol="same-ek"))
    await lab.enrol("cam-1")
    await comes(lab, request("cam-1", ak="new disk"))
    old_disk = request("cam-1")
    assert await _code(lab.fleet.begin_enrolment(old_disk, now=T0 + 99)) == "enrolment.ak-revoked"
    assert "enrolment.ak-revoked" in [
        event.kind for event in await lab.fleet.list_events(scope=EVERYWHERE, limit=500)
    ]
    # Nor under another name.
    elsewhere = request("cam-2", tpm="other", ak="cam-1")
    assert await _code(lab.fleet.begin_enrolment(elsewhere, now=T0 + 99)) == "enrolment.ak-revoked"


async def test_b04_an_ak_that_was_revoked_while_it_waited_is_refused(lab: FleetLab) -> None:
    await lab.site()
    await lab.enrol("cam-1")
    one, _ = await comes(lab, request("cam-1", ak="first disk"))
    await lab.fleet.approve(one, actor=ACTOR, now=T0 + 61, replace=True)
    two, _ = await comes(lab, request("cam-1", ak="second disk"), now=T0 + 62)
    await lab.fleet.approve(two, actor=ACTOR, now=T0 + 63, replace=True)
    assert await _code(lab.fleet.begin_enrolment(request("cam-1", ak="first disk"), now=T0 + 64)) == (
        "enrolment.ak-revoked"
    )


async def test_b12_another_tpm_with_a_cloned_disk_is_refused_whatever_the_policy(lab: FleetLab) -> None:
    """The clone shows the AK of the disk it was made from, or a new one of its own: the EK is another's either way."""
    await lab.site("factory", SitePolicy(reenrol="same-ek"))
    before = await lab.enrol("cam-1")
    for claim in (request("cam-1", tpm="clone", ak="cam-1"), request("cam-1", tpm="clone")):
        assert await _code(lab.fleet.begin_enrolment(claim, now=T0 + 60)) == "enrolment.identity-conflict"
    assert await opens(lab, before)


async def test_enrolling_anew_moves_no_node_to_another_site(lab: FleetLab) -> None:
    await lab.site("factory")
    await lab.site("lab", SitePolicy(require_tpm=False, reenrol="same-ek"))
    await lab.enrol("cam-1")
    enrolment, admitted = await comes(lab, request("cam-1", ak="new disk", site="lab"))
    assert admitted is None  # the policy that answers is that of the site the node is bound to
    view = await lab.fleet.approve(enrolment, actor=ACTOR, now=T0 + 70, site="lab", replace=True)
    assert view.site == "factory"
    assert (await lab.fleet.node("cam-1")).summary.site == "factory"


async def test_b07_a_site_that_requires_hardware_lets_no_virtual_tpm_in(
    open_store: Callable[[], Store],
) -> None:
    lab = FleetLab(open_store())
    await lab.site("factory", SitePolicy(require_hardware_tpm=True))

    def of(kind: str, trust: str = "certificate") -> EnrolmentRequest:
        record = TpmRecord(kind=kind)  # type: ignore[arg-type]
        return msgspec.structs.replace(request(f"cam-{kind}-{trust}"), tpm=record, ek_trust=trust)

    for kind, code in (
        ("virtual", "ek.virtual"),
        ("firmware", "ek.firmware"),
        ("unknown", "ek.kind-unknown"),
    ):
        assert await _code(lab.fleet.begin_enrolment(of(kind), now=T0)) == code
    await lab.fleet.begin_enrolment(of("hardware"), now=T0)
    await lab.fleet.begin_enrolment(of("unknown", "allow-list"), now=T0)
    assert await _code(lab.fleet.begin_enrolment(of("virtual", "allow-list"), now=T0)) == "ek.virtual"
    # Where the site is chosen by a person, it is the person who is told.
    nowhere = msgspec.structs.replace(of("virtual"), site=None)
    enrolment, _ = await comes(lab, nowhere, now=T0)
    assert await _code(lab.fleet.approve(enrolment, actor=ACTOR, now=T0, site="factory")) == "ek.virtual"


async def test_what_is_known_of_the_tpm_is_shown(lab: FleetLab) -> None:
    await lab.site()
    record = TpmRecord(kind="hardware", manufacturer="Infineon", model="SLB9670", notes=("ek.x: y",))
    claim = msgspec.structs.replace(request("cam-1"), tpm=record)
    enrolment = await lab.fleet.begin_enrolment(claim, now=T0)
    device = DevId(
        kind="idevid",
        serial="SN-1",
        subject="'CN=x'",
        issuer="'CN=y'",
        not_after=T0,
        root_sha256="",
        certificate_sha256="",
    )
    devids = DevIds(proved=(device,), refused=("devid.certificate-path: by nobody",))
    await lab.fleet.finish_enrolment(finish_of(enrolment, claim), issue, now=T0, devids=devids)
    view = await lab.fleet.approve(enrolment, actor=ACTOR, now=T0)
    assert (view.tpm_kind, view.tpm.model, view.tpm.devids[0].serial) == ("hardware", "SLB9670", "SN-1")
    shown = (await lab.fleet.node("cam-1")).tpm
    assert (shown.kind, shown.manufacturer, shown.devids) == ("hardware", "Infineon", (device,))
    assert shown.notes == ("ek.x: y", "devid.certificate-path: by nobody")
    assert "devid.refused" in [
        event.kind for event in await lab.fleet.list_events(scope=EVERYWHERE, limit=500)
    ]


async def test_b04_what_comes_over_a_session_from_before_is_nobodys_word(lab: FleetLab) -> None:
    """The session may be open at another controller, which does not know yet: neither praise nor blame, and no certificate."""
    await lab.site("factory", SitePolicy(reenrol="same-ek"))
    before = await lab.enrol("cam-1")
    await lab.report("cam-1")
    old = before.certificate.sha256
    _, after = await comes(lab, request("cam-1", ak="new disk"))
    assert after is not None
    for refused in (
        lab.fleet.take_report("cam-1", evidence("cam-1", number=9), now=T0 + 70, over=old),
        lab.fleet.reject_evidence("cam-1", Rejected("quote.signature"), now=T0 + 70, over=old),
        lab.fleet.renew_certificate("cam-1", b"CSR old", issue, now=T0 + 70, over=old),
    ):
        assert await _code(refused) == "session.certificate"
    node = await lab.fleet.node("cam-1")
    assert (node.summary.tier, node.certificate_sha256) == ("affirming", after.certificate.sha256.hex())
    good = after.certificate.sha256
    await lab.fleet.take_report("cam-1", evidence("cam-1", number=9), now=T0 + 71, over=good)

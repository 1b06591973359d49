"""Sessions over real TLS and WebSocket against a running controller: nonces, identity, broken evidence."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contract.binding import QUOTED_PCRS
from contract.errors import Rejected
from contract.messages import (
    METADATA_PATH,
    SESSION_PATH,
    Answer,
    Certificate,
    Challenge,
    Event,
    Order,
    Refused,
    Renew,
)
from contract.wire import decode, encode
from controller import nonces
from controller.nonces import Nonces
from tests.controller.live import EVENT_LOG, Live, answer_to, next_message, running
from tests.parts.simulator import Identity, Node, client_context, replayed
from tests.parts.softtpm import SoftTpm


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        yield controller


def codes(answer: object) -> list[str]:
    """Codes of an answer's findings."""
    assert isinstance(answer, Answer)
    return [finding.code for finding in answer.findings]


async def reported(node: Node, **changes: object) -> Answer:
    """One honest report."""
    answer = await answer_to(node, node.report(**changes))
    assert isinstance(answer, Answer), answer
    return answer


async def test_a_good_report_is_affirmed_and_its_events_are_stored_once(live: Live) -> None:
    node = await live.node("press-1")
    event = Event(seq=7, at=1.0, kind="firewall.healed", severity="warning", summary="healed", detail={})
    answer = await reported(node, events=[event])
    assert (answer.tier, answer.events_acked) == ("affirming", 7)
    await reported(node, events=[event])
    assert (await live.kinds("press-1")).count("firewall.healed") == 1
    detail = await live.fleet.node("press-1")
    assert detail.summary.connected and detail.summary.tier == "affirming"


async def test_the_firmware_log_travels_once_a_boot(live: Live) -> None:
    node = await live.node("press-1")
    assert node.log_wanted
    assert not (await reported(node)).event_log_wanted
    assert (await reported(node)).tier == "affirming"
    again = await live.again(node.identity)
    assert not again.log_wanted
    assert (await reported(again)).tier == "affirming"


async def test_a_changed_boot_without_its_log_is_asked_for_and_withholding_it_is_a_failure(
    live: Live,
) -> None:
    node = await live.node("press-1")
    await reported(node)
    node.pcrs = {**node.pcrs, 9: bytes(31) + b"\x01"}
    asked = await answer_to(node, node.report())
    assert isinstance(asked, Answer) and asked.event_log_wanted and asked.tier == "none"
    assert isinstance(await next_message(node), Challenge)
    node.log_wanted = False
    assert codes(await answer_to(node, node.report())) == ["boot.event-log-withheld"]


async def test_q01_q03_a_report_sent_twice_is_refused(live: Live) -> None:
    node = await live.node("press-1")
    report = node.report()
    assert (await answer_to(node, report)).tier == "affirming"  # type: ignore[attr-defined]
    assert codes(await answer_to(node, report)) == ["quote.nonce"]
    assert "evidence.rejected" in await live.kinds("press-1")


async def test_q03_one_nonce_in_two_requests_at_the_same_moment_is_good_for_one(live: Live) -> None:
    node = await live.node("press-1")
    assert node._socket is not None
    first, second = encode(node.report()), encode(node.report())
    await asyncio.gather(node._socket.send_bytes(first), node._socket.send_bytes(second))
    answers = [await next_message(node), await next_message(node)]
    assert [answer.tier for answer in answers] == ["affirming", "contraindicated"]  # type: ignore[attr-defined]
    assert codes(answers[1]) == ["quote.nonce"]


async def test_q02_nonce_of_another_node_is_refused(live: Live) -> None:
    one, two = await live.node("press-1"), await live.node("press-2")
    one.nonce, two.nonce = two.nonce, one.nonce
    assert codes(await answer_to(one, one.report())) == ["quote.nonce"]


async def test_q02_nonce_of_the_session_before_is_refused(live: Live) -> None:
    node = await live.node("press-1")
    old = node.nonce
    again = await live.again(node.identity)
    again.nonce = old
    assert codes(await answer_to(again, again.report())) == ["quote.nonce"]


async def test_q02_expired_nonce_is_refused_recorded_and_replaced(tmp_path: Path) -> None:
    async with running(tmp_path, interval_s=0.1) as live:
        node = await live.node("press-1")
        await asyncio.sleep(0.35)
        assert codes(await answer_to(node, node.report())) == ["nonce.expired"]
        rejected = [event for event in await live.events("press-1") if event.kind == "evidence.rejected"]
        assert rejected[0].detail["code"] == "nonce.expired"
        # Late is not forged: the next one will do, and nobody is isolated.
        assert (await reported(node)).tier == "affirming"


def test_q03_a_nonce_is_taken_out_of_use_before_anything_else() -> None:
    of_session = Nonces()
    value = of_session.issue(0.0, 10.0)
    assert of_session.consume(value, 1.0) == value
    with pytest.raises(Rejected) as refused:
        of_session.consume(None, 1.0)
    assert refused.value.code == "nonce.none"


def test_q02_an_expired_nonce_is_used_up_all_the_same() -> None:
    of_session = Nonces()
    value = of_session.issue(0.0, 10.0)
    for code in ("nonce.expired", "nonce.none"):
        with pytest.raises(Rejected) as refused:
            of_session.consume(value if code == "nonce.expired" else None, 10.0)
        assert refused.value.code == code


def test_q04_nonces_never_repeat_and_come_from_the_system_generator() -> None:
    of_session = Nonces()
    seen = {of_session.issue(0.0, 1.0) for _ in range(50_000)}
    assert len(seen) == 50_000 and {len(nonce) for nonce in seen} == {32}
    # Every bit of every byte is set about half the time (5 standard deviations of 50,000 throws: 560).
    for index in range(32):
        for bit in range(8):
            ones = sum(nonce[index] >> bit & 1 for nonce in seen)
            assert 24_440 < ones < 25_560
    assert nonces.secrets.token_bytes is __import__("secrets").token_bytes


async def test_q01_a_challenge_replaces_the_nonce_but_a_report_on_its_way_still_counts_once(
    live: Live,
) -> None:
    node = await live.node("press-1")
    await reported(node)
    under_way = encode(node.report())
    await live.services.sessions.challenge(["press-1"], time.time())
    challenge = await next_message(node)
    assert isinstance(challenge, Challenge)
    report_on_challenge = encode(node.report())
    assert (await answer_to(node, under_way)).tier == "affirming"  # type: ignore[attr-defined]
    assert (await answer_to(node, report_on_challenge)).tier == "affirming"  # type: ignore[attr-defined]
    assert codes(await answer_to(node, under_way)) == ["quote.nonce"]


async def test_q01_several_challenges_at_once_make_no_honest_report_a_forgery(live: Live) -> None:
    node = await live.node("press-1")
    await reported(node)
    under_way = [encode(node.report())]
    for _ in range(4):
        await live.services.sessions.challenge(["press-1"], time.time())
        assert isinstance(await next_message(node), Challenge)
        under_way.append(encode(node.report()))
    for report in under_way:
        assert (await answer_to(node, report)).tier == "affirming"  # type: ignore[attr-defined]


@pytest.mark.parametrize("what", ["body", "event_log", "pcrs", "certificate", "log-digest"])
async def test_q21_whatever_is_changed_after_the_quote_is_refused(live: Live, what: str) -> None:
    node = await live.node("press-1")
    report = node.report()
    if what == "certificate":
        node.certificate_sha256 = bytes(32)
        report = node.report()
    elif what == "body":
        report = msgspec.structs.replace(report, body=report.body.replace(b"press-1", b"press-2"))
    elif what == "event_log":
        report = msgspec.structs.replace(report, event_log=node.event_log + b"\0")
    elif what == "pcrs":
        report = msgspec.structs.replace(report, pcrs={**report.pcrs, 4: hashlib.sha256().digest()})
    else:
        other = msgspec.msgpack.decode(report.body)
        other["event_log_sha256"] = bytes(32)
        report = msgspec.structs.replace(report, body=msgspec.msgpack.encode(other), event_log=None)
    wanted = {
        "body": "report.other-node",
        "event_log": "eventlog.changed",
        "pcrs": "quote.pcr-digest",
        "certificate": "quote.nonce",
        "log-digest": "quote.nonce",
    }
    assert codes(await answer_to(node, report)) == [wanted[what]]


async def test_q21_body_changed_in_a_field_that_names_nobody_is_refused(live: Live) -> None:
    node = await live.node("press-1")
    report = node.report(uptime_s=1.0)
    body = msgspec.msgpack.decode(report.body)
    body["drifts"] = []
    body["uptime_s"] = 2.0
    report = msgspec.structs.replace(report, body=msgspec.msgpack.encode(body))
    assert codes(await answer_to(node, report)) == ["quote.nonce"]


async def test_b09_a_nodes_certificate_is_not_good_for_another_nodes_report(live: Live) -> None:
    one, two = await live.node("press-1"), await live.node("press-2")
    report = one.report(node="press-2")
    assert codes(await answer_to(one, report)) == ["report.other-node"]
    # A whole identity of two in the session of one: its TPM is not the one that is bound here.
    one.tpm, one.certificate_sha256 = two.tpm, one.certificate_sha256
    assert codes(await answer_to(one, one.report())) == ["quote.signature"]


async def test_b09_a_certificate_of_ours_that_is_not_bound_opens_nothing(live: Live) -> None:
    """A certificate for press-1 that the right authority issued but nobody bound: an old one, or a stolen signature."""
    node = await live.node("press-1", connect=False)
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = live.services.keys.issuer
    issued = issuer.issue_node(request(key), site="factory", node="press-1", now=time.time(), lifetime_s=3600)
    stolen = Identity("press-1", "factory", node.identity.ek, node.identity.ak, pem(key), issued.chain)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await live.again(stolen)
    assert refused.value.status == 403
    assert "session.refused" in await live.kinds("press-1")
    status, answer = await fetch(live, METADATA_PATH + "/1.root.json", client_context(live.ca, stolen))
    assert (status, answer.code) == (403, "session.certificate")


async def test_b10_no_client_certificate_opens_nothing(live: Live) -> None:
    for path in (
        SESSION_PATH,
        METADATA_PATH + "/timestamp.json",
        "/v1/targets/factory/" + "0" * 64 + ".1.toml",
    ):
        status, answer = await fetch(live, path, live.tls)
        assert (status, answer.code) == (401, "session.no-certificate")


async def test_b10_a_self_signed_client_certificate_does_not_pass_the_handshake(live: Live) -> None:
    node = await live.node("press-1", connect=False)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "press-1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = (
        builder.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    )
    uri = x509.UniformResourceIdentifier("ringfence:node:factory:press-1")
    builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    chain = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    forged = Identity("press-1", "factory", node.identity.ek, node.identity.ak, pem(key), chain)
    with pytest.raises(aiohttp.ClientError):
        await live.again(forged)
    assert not (await live.fleet.node("press-1")).summary.connected


async def test_b10_a_nodes_certificate_is_worth_nothing_on_the_admin_api(live: Live) -> None:
    node = await live.node("press-1", connect=False)
    status, answer = await live.call(
        "GET", "/api/v1/nodes", role=None, tls=client_context(live.ca, node.identity)
    )
    assert (status, answer["code"]) == (401, "token.missing")
    status, _ = await fetch(live, "/api/v1/nodes", client_context(live.ca, node.identity))
    assert status == 404


async def test_b10_the_servers_own_certificate_is_no_node(live: Live) -> None:
    keys = live.services.keys
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=live.ca)
    context.load_cert_chain(str(keys.server_certificate), str(keys.server_key))
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await fetch(live, SESSION_PATH, context)


async def test_one_session_for_a_node_the_newest_authenticated_one(live: Live) -> None:
    node = await live.node("press-1")
    again = await live.again(node.identity)
    with pytest.raises(ConnectionError, match="4001"):
        await next_message(node)
    assert (await reported(again)).tier == "affirming"
    assert len(live.services.sessions) == 1
    await asyncio.sleep(0.1)
    assert (await live.fleet.node("press-1")).summary.connected


async def test_orders_reach_connected_nodes_at_once(live: Live) -> None:
    node = await live.node("press-1")
    await reported(node)
    status, _ = await live.call("POST", "/api/v1/sites/factory/isolate", {"reason": "drill"})
    assert status == 200
    order = await next_message(node)
    assert isinstance(order, Order)
    node._obey(order.directive)
    assert node.posture == "isolated"


async def test_a_changed_boot_is_named_isolated_and_can_be_accepted(live: Live) -> None:
    node, neighbour = await live.node("press-1"), await live.node("press-2")
    await reported(node)
    await reported(neighbour)
    other = (EVENT_LOG.parent.parent / "cmdline-changed" / "eventlog.bin").read_bytes()
    changed = await live.again(node.identity)
    changed.event_log, changed.log_sha256, changed.pcrs = (
        other,
        hashlib.sha256(other).digest(),
        replayed(other),
    )
    changed.tpm = SoftTpm(node.identity.ek, node.identity.ak, resets=2)
    # The controller knows the old boot, so it has not asked for a log; it does now, and at once.
    asked = await answer_to(changed, changed.report())
    assert isinstance(asked, Answer) and asked.event_log_wanted
    assert isinstance(await next_message(changed), Challenge)
    answer = await reported(changed)
    assert answer.tier == "contraindicated"
    named = [finding for finding in answer.findings if finding.code == "boot.pcr"]
    assert named and named[0].pcr is not None and named[0].event is not None
    order = await next_message(neighbour)
    assert isinstance(order, Order)
    neighbour._obey(order.directive)
    assert neighbour.posture == "isolated" and changed.address in neighbour.fenced
    status, _ = await live.call("POST", "/api/v1/nodes/press-1/accept-boot", {"reason": "we changed it"})
    assert status == 200
    messages = [await next_message(changed), await next_message(changed)]
    assert {type(message) for message in messages} == {Order, Challenge}
    assert (await answer_to(changed, changed.report())).event_log_wanted  # type: ignore[attr-defined]
    assert isinstance(await next_message(changed), Challenge)
    # It has been told to isolate itself and says that it has.
    changed.posture = "isolated"
    assert "boot.pcr" not in codes(await reported(changed))


async def test_certificate_renewal_over_the_session(live: Live) -> None:
    node = await live.node("press-1")
    await reported(node)
    key = ec.generate_private_key(ec.SECP256R1())
    renewed = await answer_to(node, Renew(csr=request(key)))
    assert isinstance(renewed, Certificate)
    # The old one stays good until the new one is used.
    old = await live.again(node.identity)
    assert (await reported(old)).tier == "affirming"
    fresh = Identity("press-1", "factory", node.identity.ek, node.identity.ak, pem(key), renewed.chain, 100)
    session = await live.again(fresh)
    assert (await reported(session)).tier == "affirming"
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await live.again(node.identity)


@pytest.mark.parametrize(
    "frame", [b"", b"\xc1", b"\x81\xa4type\xa6report", b"\xff" * 1000, encode(Order(directive=b""))]
)
async def test_c07_a_frame_that_is_none_is_recorded_and_ends_the_session(live: Live, frame: bytes) -> None:
    node = await live.node("press-1")
    answer = await answer_to(node, frame)
    assert isinstance(answer, Refused) and answer.code == "message.malformed"
    with pytest.raises(ConnectionError):
        await next_message(node)
    assert "evidence.rejected" in await live.kinds("press-1")
    assert (await reported(await live.again(node.identity))).tier == "affirming"


async def test_c07_garbage_in_any_part_of_a_report_is_a_recorded_failure(live: Live) -> None:
    node = await live.node("press-1")
    for number, changes in enumerate(
        [
            {"quote": b""},
            {"quote": b"\xffTCG" + bytes(200)},
            {"signature": b"\0" * 70},
            {"body": b"\x80"},
            {"body": b"\xc1garbage"},
            {"pcrs": {23: bytes(32)}},
            {"pcrs": {pcr: bytes(32) for pcr in QUOTED_PCRS}},
        ]
    ):
        report = msgspec.structs.replace(node.report(), **changes)
        answer = await answer_to(node, report)
        assert isinstance(answer, Answer) and answer.tier in ("contraindicated", "warning"), (number, answer)
        events = [event for event in await live.events("press-1") if event.kind == "evidence.rejected"]
        assert len(events) == number + 1
    assert (await reported(node)).tier in ("affirming", "warning")


async def test_c07_a_fault_inside_verification_is_a_recorded_failure(
    live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    """The stored key is damaged in memory: verification breaks with an error that nobody foresaw."""
    node = await live.node("press-1")
    await reported(node)
    session = live.services.sessions._open["press-1"]
    session.appraiser._key = None  # type: ignore[assignment]
    answer = await answer_to(node, node.report())
    assert isinstance(answer, Answer)
    assert codes(answer) == ["verification.failed"] and answer.tier != "affirming"
    rejected = [event for event in await live.events("press-1") if event.kind == "evidence.rejected"]
    assert rejected[-1].detail["code"] == "verification.failed"
    assert "AttributeError" in caplog.text


async def test_c14_a_fault_shows_nothing_of_the_values_it_held(
    live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    node = await live.node("press-1")
    session = live.services.sessions._open["press-1"]
    secret = "s3cret-in-an-exception"

    class Broken:
        def __getattr__(self, name: str) -> object:
            raise ValueError(secret)

    session.appraiser._key = Broken()  # type: ignore[assignment]
    answer = await answer_to(node, node.report())
    assert secret not in str(answer) and secret not in caplog.text and "ValueError" in caplog.text
    assert all(secret not in str(event) for event in await live.events())


async def test_a_session_ends_with_its_certificate(live: Live) -> None:
    node = await live.node("press-1")
    await reported(node)
    session = live.services.sessions._open["press-1"]
    session.identity = type(session.identity)(
        site="factory", node="press-1", fingerprint=session.identity.fingerprint, not_after=time.time() - 1
    )
    answer = await answer_to(node, node.report())
    assert isinstance(answer, Refused) and answer.code == "certificate.expired"


def request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A CSR that names somebody else; the names in it are of no weight."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody-else")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.DER)


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


async def fetch(live: Live, path: str, tls: ssl.SSLContext) -> tuple[int, Refused]:
    """GET from the node listener; the answer is a refusal."""
    async with live.http.get(live.node_url + path, ssl=tls) as reply:
        content = await reply.read()
        return reply.status, decode(content, Refused, max_bytes=4096)

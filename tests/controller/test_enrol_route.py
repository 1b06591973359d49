"""Enrolment over the node listener: what strangers may say, and what they are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from contract.binding import enrolment_proof_message
from contract.enrolment import proof
from contract.messages import (
    ENROL_BEGIN_PATH,
    ENROL_FINISH_PATH,
    MAX_ENROL_BYTES,
    EnrolApproved,
    EnrolBegin,
    EnrolChallenge,
    EnrolFinish,
    EnrolPending,
    EnrolReply,
    Message,
    Refused,
)
from contract.wire import decode, encode
from controller.config import Limits
from controller.permissions import EVERYWHERE
from tests.controller.live import Live, running
from tests.controller.test_sessions import request
from tests.parts.simulator import ek_id, new_fleet
from tests.parts.softtpm import SoftTpm, new_scalar


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path, limits=Limits(failures_per_minute=1000)) as controller:
        yield controller


def machine() -> tuple[SoftTpm, str]:
    """A TPM and its EK id."""
    identity = new_fleet("factory", 1)[0]
    return SoftTpm(identity.ek, identity.ak), ek_id(identity)


def begin_of(tpm: SoftTpm, node: str = "press-1", **changes: object) -> EnrolBegin:
    """An honest first step."""
    csr = request(ec.generate_private_key(ec.SECP256R1()))
    fields = {
        "node": node,
        "site": "factory",
        "ek_public": tpm.ek_public,
        "ak_public": tpm.ak_public,
        "csr": csr,
    }
    return EnrolBegin(**{**fields, **changes})  # type: ignore[arg-type]


def finish_of(tpm: SoftTpm, begin: EnrolBegin, challenge: EnrolChallenge, **changes: bytes) -> EnrolFinish:
    """An honest second step."""
    secret = changes.get("secret") or tpm.activate(challenge.credential_blob, challenge.encrypted_secret)
    message = enrolment_proof_message(
        enrolment=challenge.enrolment,
        node=begin.node,
        ek_public=begin.ek_public,
        ak_public=begin.ak_public,
        csr=changes.get("csr", begin.csr),
    )
    return EnrolFinish(enrolment=challenge.enrolment, proof=proof(secret, message))


async def post(live: Live, path: str, message: Message | bytes) -> tuple[int, Message]:
    """One step."""
    body = message if isinstance(message, bytes) else encode(message)
    async with live.http.post(live.node_url + path, data=body, ssl=live.tls) as reply:
        content = await reply.read()
        return reply.status, decode(content, EnrolReply, max_bytes=MAX_ENROL_BYTES)  # type: ignore[arg-type]


async def refused(live: Live, path: str, message: Message | bytes) -> str:
    """The code of a refusal; its text must be short and of one line."""
    status, answer = await post(live, path, message)
    assert isinstance(answer, Refused) and status >= 400, answer
    assert len(answer.detail) <= 2048 and answer.detail.isprintable()
    return answer.code


async def test_a_person_lets_a_node_in(live: Live) -> None:
    tpm, ek = machine()
    _, token = await live.call("POST", "/api/v1/enrolment-tokens", {"site": "factory"})
    await live.fleet.preregister(ek, site="factory", node=None, actor="tester", now=0.0)
    begin = begin_of(tpm, token=token["token"])
    _, challenge = await post(live, ENROL_BEGIN_PATH, begin)
    assert isinstance(challenge, EnrolChallenge)
    _, approved = await post(live, ENROL_FINISH_PATH, finish_of(tpm, begin, challenge))
    assert isinstance(approved, EnrolApproved)
    assert approved.directive_key == live.services.keys.directive_public


async def test_an_unknown_tpm_is_refused_with_the_reason(live: Live) -> None:
    tpm, _ = machine()
    status, answer = await post(live, ENROL_BEGIN_PATH, begin_of(tpm))
    assert isinstance(answer, Refused) and status == 403
    assert answer.code == "enrolment.ek-untrusted" and answer.detail.startswith("ek.")


async def test_without_a_tpm_policy_a_person_must_approve(live: Live) -> None:
    body = {"policy": {"require_tpm": False}, "reason": "a lab"}
    assert (await live.call("PUT", "/api/v1/sites/factory/policy", body, headers={"If-Match": "*"}))[0] == 200
    tpm, _ = machine()
    begin = begin_of(tpm)
    _, challenge = await post(live, ENROL_BEGIN_PATH, begin)
    assert isinstance(challenge, EnrolChallenge)
    finish = finish_of(tpm, begin, challenge)
    _, pending = await post(live, ENROL_FINISH_PATH, finish)
    assert isinstance(pending, EnrolPending) and pending.retry_s == 0.05
    assert pending.waiting_for == "approval"
    status, _ = await live.call("POST", f"/api/v1/enrolments/{challenge.enrolment}/approve", {})
    assert status == 200
    _, approved = await post(live, ENROL_FINISH_PATH, finish)
    assert isinstance(approved, EnrolApproved) and approved.site == "factory"


async def test_nobody_is_let_in_before_there_is_a_root_of_trust_to_give(tmp_path: Path) -> None:
    async with running(tmp_path, push=False) as live:
        tpm, ek = machine()
        await live.fleet.preregister(ek, site="factory", node=None, actor="tester", now=0.0)
        begin = begin_of(tpm)
        _, challenge = await post(live, ENROL_BEGIN_PATH, begin)
        assert isinstance(challenge, EnrolChallenge)
        finish = finish_of(tpm, begin, challenge)
        for _ in range(2):
            _, pending = await post(live, ENROL_FINISH_PATH, finish)
            assert isinstance(pending, EnrolPending) and pending.waiting_for == "first-baseline"
        await live.push()
        _, approved = await post(live, ENROL_FINISH_PATH, finish)
        assert isinstance(approved, EnrolApproved) and approved.root_metadata


@pytest.mark.parametrize("secret", [b"\0" * 32, b"x"])
async def test_b03_a_wrong_activation_secret_is_refused_without_a_hint(live: Live, secret: bytes) -> None:
    tpm, ek = machine()
    await live.fleet.preregister(ek, site="factory", node=None, actor="tester", now=0.0)
    begin = begin_of(tpm)
    _, challenge = await post(live, ENROL_BEGIN_PATH, begin)
    assert isinstance(challenge, EnrolChallenge)
    true_secret = tpm.activate(challenge.credential_blob, challenge.encrypted_secret)
    status, answer = await post(live, ENROL_FINISH_PATH, finish_of(tpm, begin, challenge, secret=secret))
    assert isinstance(answer, Refused) and (status, answer.code) == (403, "enrolment.proof")
    assert true_secret.hex() not in answer.detail
    # Neither is a proof over another TLS key.
    other = request(ec.generate_private_key(ec.SECP256R1()))
    assert await refused(live, ENROL_FINISH_PATH, finish_of(tpm, begin, challenge, csr=other)) in (
        "enrolment.proof",
        "enrolment.rejected",
        "enrolment.unknown",
    )


@pytest.mark.parametrize(
    "name",
    ["a\nb", "<b>x</b>", "../x", "a" * 10_000, "a" * 64, "A", "", "a b", "x\0", "a/b", "é", "-a", "${x}"],
)
async def test_b11_hostile_node_and_site_names_are_refused(live: Live, name: str) -> None:
    tpm, _ = machine()
    fields = msgspec.to_builtins(begin_of(tpm), builtin_types=(bytes,))
    for key in ("node", "site"):
        body = msgspec.msgpack.encode({**fields, key: name})
        assert await refused(live, ENROL_BEGIN_PATH, body) == "message.malformed"
    assert (await live.fleet.list_enrolments(scope=EVERYWHERE)).items == []


async def test_b11_hostile_file_names_find_nothing(live: Live) -> None:
    node = await live.node("press-1", connect=False)
    from tests.parts.simulator import client_context

    tls = client_context(live.ca, node.identity)
    for path in (
        "/v1/metadata/..%2f..%2fcontroller.toml",
        "/v1/metadata/%2e%2e/keys/directive.key",
        "/v1/metadata/1.root.json%00",
        "/v1/targets/factory/..%2f..%2f..%2fkeys%2fdirective.key",
        "/v1/targets/%0a/x.toml",
        "/v1/metadata/" + "a" * 5000,
    ):
        async with live.http.get(live.node_url + path, ssl=tls) as reply:
            assert reply.status == 404, path


@pytest.mark.parametrize("kind", ["garbage", "rsa-1024", "broken-signature", "empty"])
async def test_a_csr_that_proves_nothing_is_refused(live: Live, kind: str) -> None:
    tpm, _ = machine()
    csr = {
        "garbage": b"\x30\x03\x02\x01\x00",
        "empty": b"",
        "rsa-1024": request(rsa.generate_private_key(65537, 1024)),  # type: ignore[arg-type]
        "broken-signature": request(ec.generate_private_key(ec.SECP256R1()))[:-8] + bytes(8),
    }[kind]
    code = await refused(live, ENROL_BEGIN_PATH, begin_of(tpm, csr=csr))
    assert code in ("csr.malformed", "csr.key", "csr.signature")


async def test_strangers_who_fail_too_often_must_wait(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(failures_per_minute=3)) as live:
        codes = [await refused(live, ENROL_BEGIN_PATH, b"\xc1") for _ in range(5)]
        assert codes == ["message.malformed"] * 3 + ["limit.failures"] * 2


async def test_b04_a_session_from_before_ends_when_new_keys_are_approved(live: Live) -> None:
    node = await live.node("press-1")
    await node.exchange(node.report())
    since = (await live.fleet.node("press-1")).summary.last_report_at
    disk = SoftTpm(node.identity.ek, new_scalar())
    begin = begin_of(disk)
    _, challenge = await post(live, ENROL_BEGIN_PATH, begin)
    assert isinstance(challenge, EnrolChallenge)
    finish = finish_of(disk, begin, challenge)
    _, pending = await post(live, ENROL_FINISH_PATH, finish)
    assert isinstance(pending, EnrolPending)
    await node.exchange(node.report())  # nothing has changed for it yet
    _, listed = await live.call("GET", "/api/v1/enrolments?state=proved")
    assert listed["items"][0]["approve_with"].endswith("--replace")  # type: ignore[index]
    path = f"/api/v1/enrolments/{challenge.enrolment}/approve"
    assert (await live.call("POST", path, {}))[0] == 409
    status, _ = await live.call("POST", path, {"replace": True})
    assert status == 200
    with pytest.raises((ConnectionError, RuntimeError)):
        await node.exchange(node.report())
        await node.exchange(node.report())
    shown = await live.fleet.node("press-1")
    assert shown.summary.tier != "contraindicated" and not shown.summary.connected
    assert since is not None
    _, approved = await post(live, ENROL_FINISH_PATH, finish)
    assert isinstance(approved, EnrolApproved)

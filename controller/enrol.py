"""Enrolment over plain HTTPS: first the challenge that only the right TPM can open, then the certificate.

Checks what needs no store (key attributes, EK certificate, CSR) and leaves the binding of id, EK, AK and
certificate to `controller.fleet`, which does it in one transaction. An answer never tells what was expected.
"""

from __future__ import annotations

import secrets
import time

from contract.binding import devid_qualifying_data
from contract.credential import make_credential
from contract.devid import check_devid
from contract.enrolment import NEVER_LISTED, SECRET_BYTES, check_ak, check_ek, check_identity, ek_digest
from contract.enrolment import EkTrust as FoundTrust
from contract.errors import Rejected
from contract.messages import (
    MAX_ENROL_BYTES,
    EnrolApproved,
    EnrolBegin,
    EnrolChallenge,
    EnrolFinish,
    EnrolPending,
)
from contract.tpmvendor import maker_of
from contract.wire import decode
from controller.authority import csr_key
from controller.enrolment_records import NO_DEVIDS, DevIds, EnrolmentRequest
from controller.issuing import Issuing
from controller.records import EkTrust
from controller.services import Services
from controller.tpmrecord import TpmRecord

UNTRUSTED = "enrolment.ek-untrusted"


async def begin(services: Services, untrusted: bytes) -> EnrolChallenge:
    """Open an enrolment.

    1. strict form (`message.malformed`), CSR signed by its own key (`csr.*`)
    2. AK attributes (`ak.*`; b02)
    3. EK attributes (`ek.attributes`), EK certificate or allow-list (b07, b08); where neither, the site's
       policy decides (`enrolment.ek-untrusted`, with the reason; b07: `ek.virtual` and its like where it demands hardware)
    4. id, EK and AK are free or the same as before (`enrolment.*`; b04, b06, b12)
    5. a fresh secret, encrypted so that only the TPM with both keys can open it (b01, b03)
    """
    now = time.time()
    message = decode(untrusted, EnrolBegin, max_bytes=MAX_ENROL_BYTES)  # 1
    csr_key(message.csr)
    facts = check_ak(message.ak_public)  # 2
    check_ek(message.ek_public)  # 3
    allowed = await services.fleet.preregistered_eks()
    trust: EkTrust = "unverified"
    tpm = TpmRecord()
    doubt: Rejected | None = None
    try:
        found = check_identity(
            message.ek_public,
            message.ek_certificate,
            services.device_trust.ek,
            allowed,
            now,
            ek_chain=message.ek_chain,
        )
    except Rejected as rejected:
        if rejected.code in NEVER_LISTED:  # no site's policy lets in what its own maker has revoked
            await services.fleet.refuse_enrolment(
                message.node, ek_digest(message.ek_public), rejected, now=now
            )
            raise
        doubt = rejected
    else:
        trust, tpm = found.source, _record_of(found)
    secret = secrets.token_bytes(SECRET_BYTES)
    request = EnrolmentRequest(
        node=message.node,
        site=message.site,
        ek_id=ek_digest(message.ek_public),
        ek_public=message.ek_public,
        ak_public=message.ak_public,
        ak_name=facts.name,
        csr=message.csr,
        ek_trust=trust,
        tpm=tpm,
        token=message.token,
        secret=secret,
    )
    try:
        enrolment = await services.fleet.begin_enrolment(request, now=now)  # 4
    except Rejected as rejected:
        if rejected.code == UNTRUSTED and doubt is not None:
            raise Rejected(UNTRUSTED, f"{doubt.code}: {doubt.detail}") from None
        raise
    blob, encrypted = make_credential(message.ek_public, facts.name, secret)  # 5
    services.bell.ring()
    return EnrolChallenge(enrolment=enrolment, credential_blob=blob, encrypted_secret=encrypted)


async def finish(services: Services, issuing: Issuing, untrusted: bytes) -> EnrolApproved | EnrolPending:
    """Check the proof and let the node in, where approved. Raises Rejected `enrolment.*` (b03, b05).

    Nobody is let in before the first baseline push: the node would get no root of trust, and take no baseline ever.
    """
    now = time.time()
    message = decode(untrusted, EnrolFinish, max_bytes=MAX_ENROL_BYTES)
    devids = await _devids(services, message, now) if message.devids else NO_DEVIDS
    root = services.signed_files.newest_root
    admitted = await services.fleet.finish_enrolment(
        message, issuing.issue(now), now=now, ready=bool(root), devids=devids
    )
    services.bell.ring()
    if admitted is None:
        return EnrolPending(
            retry_s=services.config.enrolment.retry_s, waiting_for="approval" if root else "first-baseline"
        )
    # A session that is open with what the node had before must not report over what it has now.
    await services.sessions.drop(admitted.identity.node)
    return EnrolApproved(
        node=admitted.identity.node,
        site=admitted.identity.site,
        chain=admitted.certificate.chain,
        directive_key=services.keys.directive_public,
        root_metadata=root,
    )


def _record_of(found: FoundTrust) -> TpmRecord:
    return TpmRecord(
        kind=found.kind,
        manufacturer=maker_of(found.manufacturer),
        model=found.model,
        firmware=found.firmware,
        root_sha256=found.root_sha256,
        notes=found.notes,
    )


async def _devids(services: Services, message: EnrolFinish, now: float) -> DevIds:
    """Check the device identities that came with a proof. One that fails is told of and not believed; it keeps nobody out."""
    keys = await services.fleet.enrolment_keys(message.enrolment)
    if keys is None:
        return NO_DEVIDS
    wanted = devid_qualifying_data(enrolment=message.enrolment, node=keys.node, ak_public=keys.ak_public)
    proved, refused = [], []
    for evidence in message.devids:
        try:
            found = check_devid(
                evidence,
                keys.ak_public,
                keys.ek_public,
                services.device_trust.devid,
                qualifying_data=wanted,
                now=now,
            )
            proved.append(found)
        except Rejected as rejected:
            refused.append(str(rejected)[:512])
    return DevIds(proved=tuple(proved), refused=tuple(refused))

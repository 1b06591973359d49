"""Enrolment: prove that EK, AK and TLS key live in this machine, then wait to be approved.

The node's keys are made once and kept, so an enrolment that was cut short goes on with the same ones. The
activated secret never travels: it is the key of an HMAC over everything that is being bound together.

Refuses: an answer of another kind than asked for; an approval for another node.
Relies on: `post` (agent.uplink) having verified the controller's certificate.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.config import AgentConfig
from agent.store import Enrolled, Keys, Store
from agent.tpm import AttestationBlobs, Tpm, TpmUnavailable
from contract import ekder
from contract.binding import devid_qualifying_data, enrolment_proof_message
from contract.errors import Rejected
from contract.messages import (
    ENROL_BEGIN_PATH,
    ENROL_FINISH_PATH,
    MAX_CHAIN_BYTES,
    DevIdEvidence,
    EnrolApproved,
    EnrolBegin,
    EnrolChallenge,
    EnrolFinish,
    EnrolPending,
    Message,
    Refused,
)

log = logging.getLogger("ringfence.enrol")

Post = Callable[[str, Message], Awaitable[EnrolChallenge | EnrolPending | EnrolApproved | Refused]]
"""(path, message) -> reply. Raises OSError to try again later, Rejected for a reply that is none."""

_MAX_TOKEN_CHARS = 128


class Identity(NamedTuple):
    """The client certificate's facts."""

    sha256: bytes
    """Of the leaf in DER: what reports are bound to."""
    not_before: float
    not_after: float

    def renew_at(self) -> float:
        """Return when to ask for a new one: two thirds into its life. Seconds since 1970."""
        return self.not_before + (self.not_after - self.not_before) * 2 / 3


def make_keys(tpm: Tpm) -> Keys:
    """Make TLS key (P-256) and AK. Raises TpmUnavailable."""
    blobs = tpm.create_ak()
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Keys(tls_key=pem, ak_private=blobs.private, ak_public=blobs.public)


def blobs_of(keys: Keys) -> AttestationBlobs:
    """Return the AK's blobs as the TPM takes them."""
    return AttestationBlobs(private=keys.ak_private, public=keys.ak_public)


def signing_request(keys: Keys, node: str) -> bytes:
    """Return a certificate signing request (PKCS #10, DER) for the TLS key."""
    key = serialization.load_pem_private_key(keys.tls_key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101  (made above, stored checksummed)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def identity_of(untrusted_chain: bytes, keys: Keys) -> Identity:
    """Return the facts of the leaf. Raises Rejected `certificate.malformed`, `certificate.other-key`."""
    try:
        leaf = x509.load_pem_x509_certificates(untrusted_chain)[0]
        public = leaf.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except (ValueError, IndexError) as error:
        raise Rejected("certificate.malformed", str(error)) from None
    own = serialization.load_pem_private_key(keys.tls_key, None).public_key()
    if public != own.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    ):
        raise Rejected("certificate.other-key", "the certificate is not for this node's TLS key")
    return Identity(
        sha256=leaf.fingerprint(hashes.SHA256()),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


async def enrol(
    config: AgentConfig,
    store: Store,
    tpm: Tpm,
    post: Post,
    *,
    waiting: Callable[[str], None] = lambda text: None,
) -> Enrolled:
    """Enrol, waiting for approval as long as it takes; the result is stored and returned.

    Raises Rejected (`enrol.*` or the controller's own code), TpmUnavailable, OSError to try again.
    """
    keys = await asyncio.to_thread(store.keys, lambda: make_keys(tpm))
    await asyncio.to_thread(tpm.use_ak, blobs_of(keys))
    finish = await _proof(config, tpm, post, keys, waiting)
    while True:
        reply = await post(ENROL_FINISH_PATH, finish)
        if isinstance(reply, EnrolPending):
            wanted = reply.waiting_for.replace("-", " ")
            waiting(f"proved; waiting for {wanted}, asking again in {reply.retry_s:g} s")
            await asyncio.sleep(reply.retry_s)
            continue
        if isinstance(reply, Refused):
            raise Rejected(reply.code, reply.detail)
        if not isinstance(reply, EnrolApproved) or reply.node != config.node:
            raise Rejected("enrol.unexpected", "the reply is no approval of this node")
        identity_of(reply.chain, keys)
        enrolled = Enrolled(
            site=reply.site,
            chain=reply.chain,
            directive_key=reply.directive_key,
            root_metadata=reply.root_metadata,
        )
        await asyncio.to_thread(store.save_enrolled, enrolled)
        return enrolled


async def _proof(
    config: AgentConfig, tpm: Tpm, post: Post, keys: Keys, waiting: Callable[[str], None]
) -> EnrolFinish:
    """Begin, have the TPM open the challenge, and return the proof. Raises as `enrol` does.

    The EK's id is said here, at the machine: what a controller was told of it over the network may be a stranger's.
    """
    from contract.enrolment import ek_digest, proof  # once in a node's life

    ek_public, ek_certificate = await asyncio.to_thread(tpm.endorsement)
    ek_id = f"the EK id of this machine is {ek_digest(ek_public)}"
    waiting(ek_id)
    ek_chain = await asyncio.to_thread(tpm.endorsement_chain)
    if config.tpm.ek_certificate:
        ek_certificate, ek_chain = _from_file(Path(config.tpm.ek_certificate), ek_chain)
    csr = signing_request(keys, config.node)
    begin = EnrolBegin(
        node=config.node,
        site=config.site,
        ek_public=ek_public,
        ak_public=keys.ak_public,
        ek_certificate=ek_certificate,
        ek_chain=ek_chain,
        csr=csr,
        token=_token(config),
    )
    challenge = await post(ENROL_BEGIN_PATH, begin)
    if isinstance(challenge, Refused):
        raise Rejected(challenge.code, f"{challenge.detail}; {ek_id}" if challenge.detail else ek_id)
    if not isinstance(challenge, EnrolChallenge):
        raise Rejected("enrol.unexpected", f"wanted enrol-challenge, found {type(challenge).__name__}")
    try:
        secret = await asyncio.to_thread(tpm.activate, challenge.credential_blob, challenge.encrypted_secret)
    except ValueError as error:
        raise Rejected("enrol.credential", str(error)) from None
    message = enrolment_proof_message(
        enrolment=challenge.enrolment,
        node=config.node,
        ek_public=ek_public,
        ak_public=keys.ak_public,
        csr=csr,
    )
    devids = await asyncio.to_thread(_devids, config, tpm, challenge.enrolment, keys)
    return EnrolFinish(enrolment=challenge.enrolment, proof=proof(secret, message), devids=devids)


def _from_file(path: Path, chain: bytes) -> tuple[bytes, bytes]:
    """Return the EK certificate of a file (DER, PEM, or what Intel's service answers) and what follows it before `chain`."""
    certificates = ekder.certificates_in(path.read_bytes())
    if not certificates:
        raise Rejected("ek.certificate-missing", f"{path}: no certificate in it")
    return certificates[0], (b"".join(certificates[1:]) + chain)[:MAX_CHAIN_BYTES]


def _devids(config: AgentConfig, tpm: Tpm, enrolment: str, keys: Keys) -> list[DevIdEvidence]:
    """Return what the TPM has of device identities; none of them is needed to enrol."""
    wanted = devid_qualifying_data(enrolment=enrolment, node=config.node, ak_public=keys.ak_public)
    try:
        further = [Path(name).read_bytes() for name in config.tpm.devid_certificates]
        return tpm.device_identities(wanted, further)
    except (TpmUnavailable, OSError) as error:
        log.warning("device identities: %s", error)
        return []


def _token(config: AgentConfig) -> str:
    if not config.token_file:
        return ""
    try:
        return Path(config.token_file).read_text().strip()[:_MAX_TOKEN_CHARS]
    except FileNotFoundError:  # used up and removed
        return ""

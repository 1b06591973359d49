"""Harnesses of the parsers of certificates, signed files, stored evidence and imported reference values."""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from datetime import UTC, datetime

import jwt
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from agent.firewall.granted import granted
from agent.firewall.section import Zone
from agent.firewall.tables import Table
from agent.grants import Bounds, bounded
from agent.probes.access import Network, Section
from contract import bundle, certnames, certpath, corim, ekder, references, trust
from contract.authenticode import authenticode_sha256, is_image
from contract.devid import DevIdTrust, check_devid
from contract.directive import PAYLOAD_TYPE
from contract.enrolment import check_identity
from contract.envelope import open_directive
from contract.errors import Rejected
from contract.grant import MAX_GRANT_S, Grant, plain_code
from contract.messages import MAX_BODY_BYTES, DevIdEvidence
from contract.result import Facts, result_of
from contract.resultkey import load_result_key, verify_result
from contract.wire import decode_json
from controller.repository import Repository
from tests.contract.forge import Case, Forger

_GOOD = Case("good-rsa")
_ROOTS = _GOOD.roots()
_NOW = 1.8e9
_SEED = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"directive").digest())
SIGNER = CryptoSigner(_SEED)
_ONLINE_KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"online").digest())
_ONLINE = CryptoSigner(_ONLINE_KEY)
_PUBLIC = _SEED.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)
_RESULT_KEY = ec.derive_private_key(7, ec.SECP256R1())
_FORGER = Forger("ecc256")
_BOUNDS = Bounds(
    Section(
        network=[
            Network(
                name=f"{direction}-{protocol}",
                direction=direction,
                zone="any",
                protocol=protocol,
                ports=["1-65535"],
                max_s=MAX_GRANT_S,
                reason="as wide as it gets",
            )
            for direction in ("in", "out")
            for protocol in ("tcp", "udp")
        ]
    ),
    {"any": Zone(addresses=["0.0.0.0/0", "::/0"])},
)
_RULE_TEXT = set("abcdefghijklmnopqrstuvwxyz0123456789_@{}=.:/,- \n\t")
_OUR_MARK = " & 0x0000ffff | "
_NO_DEVICES = DevIdTrust()


def _signed_root() -> bytes:
    root = Root(version=1, expires=datetime(2100, 1, 1, tzinfo=UTC), consistent_snapshot=True)
    for role in ("root", "timestamp", "snapshot", "targets"):
        root.add_key((SIGNER if role in ("root", "targets") else _ONLINE).public_key, role)
    signed = Metadata(root)
    signed.sign(SIGNER)
    return signed.to_bytes()


def _signed_targets() -> bytes:
    targets = Targets(version=1, expires=datetime(2100, 1, 1, tzinfo=UTC))
    targets.targets["factory/1.toml"] = TargetFile.from_data("factory/1.toml", b"x", ["sha256"])
    signed = Metadata(targets)
    signed.sign(SIGNER)
    return signed.to_bytes()


ROOT, TARGETS = _signed_root(), _signed_targets()
_ROOT = trust.trusted_root(ROOT, [])
_FACTS = Facts(
    node="press-1",
    site="s",
    kind="boot",
    at=_NOW,
    tier="affirming",
    verified=True,
    ek_trust="certificate",
    ek_sha256="ab" * 32,
    ak_name="cd" * 34,
    nonce=b"n" * 32,
    quote_sha256=b"q" * 32,
    signature_sha256=b"s" * 32,
    body_sha256=b"b" * 32,
    certificate_sha256=b"c" * 32,
    policy_sha256=b"p" * 32,
)
PAYLOAD = msgspec.json.encode(
    result_of(_FACTS, issuer="c", build="0", issued_at=_NOW, until=_NOW + 60, still_holds=True)
)
TOKEN = jwt.PyJWS().encode(PAYLOAD, _RESULT_KEY, algorithm="ES256").encode()


def certificate(raw: bytes) -> None:
    """An EK certificate with what stands behind it; then the same certificate as its own issuer and anchor."""
    with suppress(Rejected):
        check_identity(_GOOD.read("ek.tpm2b"), raw, _ROOTS, (), _NOW)
    for piece in ekder.certificates_in(raw):
        ekder.spki_of(piece)
        with suppress(Rejected):
            found = certpath.parse(piece, "ek")
            assert certnames.readable(found.subject).isprintable()
            with suppress(Rejected):
                certpath.check_path(
                    found,
                    [found],
                    certpath.Trust(certificates=[*_ROOTS, found]),
                    at=found.not_valid_before_utc,
                    area="ek",
                )
            with suppress(Rejected):
                check_identity(_as_ek(found), piece, [*_ROOTS, found], (), _NOW)


def _as_ek(found: x509.Certificate) -> bytes:
    """Return a TPM2B_PUBLIC with the certificate's key where it is RSA-2048, so that what comes behind is reached."""
    original = _GOOD.read("ek.tpm2b")
    numbers = getattr(found.public_key(), "public_numbers", lambda: None)()
    modulus = getattr(numbers, "n", 0).to_bytes(512, "big")[-256:]
    return original[:-256] + modulus


def device_identity(raw: bytes) -> None:
    """A TPMS_ATTEST of a certified key, well signed; then a certificate of a device key."""
    evidence = DevIdEvidence(
        certificate=raw, public=_FORGER.ak_public, attest=raw, signature=_FORGER.sign(raw)
    )
    keys = (_FORGER.ak_public, _FORGER.ek_public)
    check_devid(evidence, *keys, _NO_DEVICES, qualifying_data=b"q" * 32, now=_NOW)


def envelope(raw: bytes) -> None:
    """A directive's DSSE envelope; then the same bytes as a payload, well signed."""
    with suppress(Rejected):
        open_directive(raw, _PUBLIC, node="press-1", now=_NOW, highest_number=0)
    signed = Envelope(raw, PAYLOAD_TYPE, {})
    signed.sign(SIGNER)
    open_directive(msgspec.json.encode(signed.to_dict()), _PUBLIC, node="press-1", now=_NOW, highest_number=0)


def grant(raw: bytes) -> None:
    """A grant in JSON: what it opens under a wide bound, as text that nftables would load; then a code as it is typed."""
    with suppress(Rejected):
        plain_code(raw.decode("utf-8", "replace"))
        opened = bounded(decode_json(raw, Grant, max_bytes=MAX_BODY_BYTES), _BOUNDS)
        made = granted((opened,))
        text = Table(name="ringfence", sets=tuple(made.sets), chains=tuple(made.chains)).text()
        text += "".join(made.to_input + made.to_output)
        assert set(text.replace(_OUR_MARK, " ")) <= _RULE_TEXT, (
            "what came from outside stands in a rule as it came"
        )
    decode_json(raw, Grant, max_bytes=MAX_BODY_BYTES)


def root_metadata(raw: bytes) -> None:
    """root.json as it is; then signed anew, with our key for every role, and a targets file beside it."""
    with suppress(Rejected):
        trust.trusted_root(raw, [raw])
    with suppress(RepositoryError, ValueError, KeyError, TypeError, AttributeError):  # the harness's own work
        loaded: Metadata[Root] = Metadata.from_bytes(raw)
        loaded.sign(SIGNER)
        signed = loaded.to_bytes()
        with suppress(Rejected):
            root = trust.trusted_root(signed, [signed], now=_NOW)
            trust.signed_targets(root, signed)


def targets_metadata(raw: bytes) -> None:
    """targets.json signed by nobody, and a proof of one."""
    with suppress(Rejected):
        trust.signed_targets(_ROOT, raw)
    with suppress(Rejected):
        trust.targets_from_proof(ROOT, {}, raw)
    with suppress(RepositoryError, ValueError, KeyError, TypeError, AttributeError):
        loaded = Metadata.from_bytes(raw)
        loaded.sign(SIGNER)
        with suppress(Rejected):
            trust.signed_targets(_ROOT, loaded.to_bytes())


def repository(raw: bytes) -> None:
    """A pushed bundle of signed files; then the same bytes as its root and targets."""
    controller = Repository(_ONLINE_KEY)
    with suppress(Rejected):
        controller.accept(raw, {}, now=_NOW)
    packed = base64.b64encode(raw).decode()
    pushed = msgspec.json.encode({"root": [packed], "targets": packed, "files": {}})
    controller.accept(pushed, {}, now=_NOW)


def corim_file(raw: bytes) -> None:
    """A CoRIM of reference values; what is read can be written and read again."""
    found = corim.parse_corim(raw, site="s", stage="kernel", valid_from=1.0)
    assert corim.parse_corim(corim.encode_corim(found))


def reference_toml(raw: bytes) -> None:
    """Reference values as TOML; what is read can be written and read again."""
    found = references.parse_reference_toml(raw)
    assert references.parse_reference_toml(references.reference_toml(found).encode()) == found


def stored_evidence(raw: bytes) -> None:
    """Packed evidence, and the same bytes before packing."""
    for packed in (raw, bundle.compress(raw)):
        with suppress(Rejected):
            bundle.unpack(packed)
    with suppress(Rejected):
        bundle.policy_toml(bundle.read_policies(raw))
    bundle.extra_data(raw)


def result_token(raw: bytes) -> None:
    """An attestation result; then the same bytes as its payload, well signed."""
    with suppress(Rejected):
        load_result_key(raw)
    with suppress(Rejected):
        verify_result(raw, _RESULT_KEY.public_key(), now=None)
    token = jwt.PyJWS().encode(raw, _RESULT_KEY, algorithm="ES256")
    verify_result(token.encode(), _RESULT_KEY.public_key(), now=_NOW)


def boot_image(raw: bytes) -> None:
    """A PE image whose Authenticode digest is wanted."""
    is_image(raw)
    authenticode_sha256(raw)

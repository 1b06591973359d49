"""Part B of the attacks at the contract: AK attributes, EK certificates, credentials, possession."""

from __future__ import annotations

import hashlib
import hmac
import struct

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from contract import tpm
from contract.binding import enrolment_proof_message
from contract.enrolment import (
    check_ak,
    check_ek,
    check_identity,
    ek_digest,
    proof,
)
from contract.errors import Rejected
from tests.contract.forge import (
    AK_ATTRIBUTES,
    CASES,
    EK_ATTRIBUTES,
    EK_POLICY,
    RSASSA_SHA256,
    STORAGE,
    Case,
    Forger,
    rsa_public,
)
from tests.contract.vendor import DAY, NOW, Authority, usage

GOOD = Case("good-rsa")


def refused(code: str, call: object, *args: object, **named: object) -> Rejected:
    with pytest.raises(Rejected) as caught:
        call(*args, **named)  # type: ignore[operator]
    assert caught.value.code == code
    return caught.value


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize("name", CASES)
def test_recorded_keys_and_certificates_are_accepted(name: str) -> None:
    case = Case(name)
    facts = check_ak(case.read("ak.tpm2b"))
    assert facts.name == case.read("ak.name")
    assert (facts.algorithm, facts.hash) == ("rsa2048", "sha256")
    roots = case.roots()
    trust = check_identity(case.read("ek.tpm2b"), case.read("ek-cert.der"), roots, (), NOW.timestamp())
    assert (trust.source, trust.manufacturer, trust.model) == ("certificate", "id:00001014", "swtpm")
    assert trust.ek_sha256 == ek_digest(case.read("ek.tpm2b"))


def test_the_ek_id_is_the_digest_of_its_spki() -> None:
    certificate = x509.load_der_x509_certificate(GOOD.read("ek-cert.der"))
    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert ek_digest(GOOD.read("ek.tpm2b")) == hashlib.sha256(spki).hexdigest()


@pytest.mark.parametrize("kind", ["rsa2048", "rsa3072", "ecc256", "ecc384"])
def test_every_kind_of_ak_is_accepted(kind: str) -> None:
    forger = Forger(kind)
    assert check_ak(forger.ak_public).algorithm == kind


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        (AK_ATTRIBUTES & ~tpm.RESTRICTED, "restricted"),
        (AK_ATTRIBUTES & ~tpm.FIXED_TPM, "fixedTPM"),
        (AK_ATTRIBUTES & ~tpm.FIXED_PARENT, "fixedParent"),
        (AK_ATTRIBUTES & ~tpm.SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (AK_ATTRIBUTES & ~tpm.SIGN, "sign"),
        (AK_ATTRIBUTES | tpm.DECRYPT, "can decrypt"),
    ],
)
def test_b02_ak_without_its_attributes_is_rejected(
    rsa_key: rsa.RSAPrivateKey, attributes: int, said: str
) -> None:
    public = rsa_public(rsa_key, attributes, RSASSA_SHA256)
    assert said in refused("ak.attributes", check_ak, public).detail


@pytest.mark.parametrize(
    "scheme",
    [
        struct.pack(">HH", 0x10, 0x10),
        struct.pack(">HHH", 0x10, 0x14, 0x04),
        struct.pack(">HHH", 0x10, 0x16, 0x0B),
        struct.pack(">HHH", 0x10, 0x17, 0x0B),
    ],
    ids=["none", "rsassa-sha1", "rsapss", "oaep"],
)
def test_b02_ak_with_another_scheme_is_rejected(rsa_key: rsa.RSAPrivateKey, scheme: bytes) -> None:
    refused("ak.scheme", check_ak, rsa_public(rsa_key, AK_ATTRIBUTES, scheme))


def test_b02_reserved_attributes_are_rejected(rsa_key: rsa.RSAPrivateKey) -> None:
    refused("tpm.public", check_ak, rsa_public(rsa_key, AK_ATTRIBUTES | 1 << 31, RSASSA_SHA256))


def test_an_ek_must_be_a_restricted_storage_key(rsa_key: rsa.RSAPrivateKey) -> None:
    good = rsa_public(rsa_key, EK_ATTRIBUTES, STORAGE, EK_POLICY)
    assert check_ek(good).algorithm == "rsa2048"
    for bit in (tpm.FIXED_TPM, tpm.FIXED_PARENT, tpm.SENSITIVE_DATA_ORIGIN, tpm.RESTRICTED, tpm.DECRYPT):
        refused("ek.attributes", check_ek, rsa_public(rsa_key, EK_ATTRIBUTES & ~bit, STORAGE, EK_POLICY))
    refused("ek.attributes", check_ek, rsa_public(rsa_key, EK_ATTRIBUTES | tpm.SIGN, STORAGE, EK_POLICY))
    no_cipher = rsa_public(rsa_key, EK_ATTRIBUTES, struct.pack(">HH", 0x10, 0x10), EK_POLICY)
    refused("ek.attributes", check_ek, no_cipher)
    refused("ek.attributes", check_ek, GOOD.read("ak.tpm2b"))


def test_b03_the_proof_is_of_one_secret_and_one_enrolment() -> None:
    def message(**changed: object) -> bytes:
        fields = {"enrolment": "e1", "node": "press-1", "ek_public": b"ek", "ak_public": b"ak", "csr": b"csr"}
        return enrolment_proof_message(**{**fields, **changed})  # type: ignore[arg-type]

    right = proof(b"s" * 32, message())
    assert right == hmac.new(b"s" * 32, message(), hashlib.sha256).digest()
    others = [proof(b"t" * 32, message()), proof(b"", message())]
    for name, value in (
        ("enrolment", "e2"),
        ("node", "press-2"),
        ("ek_public", b"e"),
        ("ak_public", b"x"),
        ("csr", b""),
    ):
        others.append(proof(b"s" * 32, message(**{name: value})))
    others.append(proof(b"s" * 32, message(ek_public=b"eka", ak_public=b"k")))
    assert right not in others


@pytest.fixture(scope="module")
def vendor() -> Authority:
    return Authority()


def test_a_good_certificate_leads_to_the_root(vendor: Authority) -> None:
    trust = vendor.check(vendor.ek_certificate())
    assert trust.source == "certificate"
    assert trust.root_sha256 == vendor.root.fingerprint(hashes.SHA256()).hex()
    assert (trust.manufacturer, trust.model, trust.virtual) == ("id:49465800", "SLB9670", False)


@pytest.mark.parametrize("padding", [b"\xff" * 500, b"\0" * 3])
def test_what_the_vendor_left_behind_the_certificate_is_cut(vendor: Authority, padding: bytes) -> None:
    assert vendor.check(vendor.ek_certificate() + padding).source == "certificate"


def test_b07_expired_or_not_yet_valid_is_rejected(vendor: Authority) -> None:
    expired = vendor.ek_certificate(until=NOW - DAY)
    refused("ek.certificate-expired", vendor.check, expired)
    early = (NOW - 100 * DAY).timestamp()
    certificate = vendor.ek_certificate()
    roots = [vendor.root, vendor.issuer]
    refused("ek.certificate-expired", check_identity, vendor.ek_public, certificate, roots, (), early)
    old = vendor.ca("issuer", vendor.issuer_key, "root", vendor.root_key, until=NOW - DAY)
    refused("ek.certificate-expired", vendor.check, certificate, [vendor.root, old])


def test_b07_wrong_issuer_is_rejected(vendor: Authority) -> None:
    certificate = vendor.ek_certificate()
    stranger = Authority()
    refused("ek.certificate-path", vendor.check, certificate, [])
    refused("ek.certificate-path", vendor.check, certificate, [stranger.issuer, stranger.root])
    refused("ek.certificate-path", vendor.check, certificate, [vendor.root])
    # An intermediate alone is path material and no anchor.
    refused("ek.certificate-path", vendor.check, certificate, [vendor.issuer])
    forged = vendor.ek_certificate(signer=stranger.issuer_key)
    refused("ek.certificate-path", vendor.check, forged)


def test_b07_leaf_marked_ca_is_rejected(vendor: Authority) -> None:
    refused("ek.certificate-ca", vendor.check, vendor.ek_certificate(ca=True))


@pytest.mark.parametrize(
    "used_for", [usage(digital_signature=True), usage(key_agreement=True, key_cert_sign=True), usage()]
)
def test_b07_wrong_key_usage_is_rejected(vendor: Authority, used_for: x509.KeyUsage) -> None:
    refused("ek.certificate-usage", vendor.check, vendor.ek_certificate(used_for=used_for))


def test_b07_wrong_extended_usage_or_unknown_critical_extension_is_rejected(vendor: Authority) -> None:
    refused("ek.certificate-usage", vendor.check, vendor.ek_certificate(extended="1.3.6.1.5.5.7.3.1"))
    assert vendor.check(vendor.ek_certificate(extended=None))
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
    refused("ek.certificate-critical", vendor.check, vendor.ek_certificate(more=[(unknown, True)]))


def test_b07_key_unlike_the_ek_is_rejected(vendor: Authority) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    refused("ek.certificate-key", vendor.check, vendor.ek_certificate(key=other))
    certificate = Case("secureboot-on").read("ek-cert.der")
    roots = GOOD.roots()
    args = (GOOD.read("ek.tpm2b"), certificate, roots, (), NOW.timestamp())
    refused("ek.certificate-key", check_identity, *args)


def test_b07_issuer_that_may_not_issue_is_rejected(vendor: Authority) -> None:
    certificate = vendor.ek_certificate()
    key, root = vendor.issuer_key, vendor.root_key
    for issuer in (
        vendor.ca("issuer", key, "root", root, ca=False),
        vendor.ca("issuer", key, "root", root, may_sign=False),
    ):
        refused("ek.certificate-path", vendor.check, certificate, [vendor.root, issuer])
    short = vendor.ca("root", root, "root", root, path_length=0)
    refused("ek.certificate-path", vendor.check, certificate, [short, vendor.issuer])


def test_b07_virtual_tpm_where_hardware_is_required_is_rejected(vendor: Authority) -> None:
    refused("ek.virtual", vendor.check, vendor.ek_certificate(model="swtpm"), hardware_only=True)
    assert vendor.check(vendor.ek_certificate(), hardware_only=True)
    roots = GOOD.roots()
    args = (GOOD.read("ek.tpm2b"), GOOD.read("ek-cert.der"), roots, (), NOW.timestamp())
    refused("ek.virtual", check_identity, *args, hardware_only=True)


@pytest.mark.parametrize("broken", [b"", b"\x30", b"not DER", b"\x30\x82\x00\x05hello"])
def test_b08_certificate_that_is_not_strict_der_works_for_a_listed_ek(
    vendor: Authority, broken: bytes
) -> None:
    with pytest.raises(Rejected) as caught:
        vendor.check(broken)
    assert caught.value.code in ("ek.certificate-missing", "ek.certificate-malformed")
    listed = {ek_digest(vendor.ek_public)}
    trust = check_identity(vendor.ek_public, broken, [], listed, NOW.timestamp())
    assert (trust.source, trust.note) == ("allow-list", caught.value.code)
    with pytest.raises(Rejected):
        check_identity(GOOD.read("ek.tpm2b"), broken, [], listed, NOW.timestamp())


def test_b08_serial_number_with_a_needless_zero_works_for_a_listed_ek(vendor: Authority) -> None:
    der = vendor.ek_certificate()
    # Version [0] 2, then the serial number; one zero more in front of it, and all lengths around it.
    at = der.index(b"\xa0\x03\x02\x01\x02\x02") + 6
    tbs_size = int.from_bytes(der[6:8], "big") + 1
    inner = b"\x30\x82" + tbs_size.to_bytes(2, "big") + der[8 : at - 1] + b"\x02" + bytes([der[at] + 1])
    inner += b"\0" + der[at + 1 :]
    lax = b"\x30\x82" + len(inner).to_bytes(2, "big") + inner
    with pytest.raises(Rejected):
        vendor.check(lax)
    listed = {ek_digest(vendor.ek_public)}
    assert check_identity(vendor.ek_public, lax, [], listed, NOW.timestamp()).source == "allow-list"


def test_no_roots_and_no_list_trust_nothing() -> None:
    args = (GOOD.read("ek.tpm2b"), GOOD.read("ek-cert.der"), [], (), NOW.timestamp())
    refused("ek.certificate-path", check_identity, *args)

"""Device identities: a certificate counts only where its key was shown to live beside the AK."""

from __future__ import annotations

import struct

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import tpm
from contract.binding import devid_qualifying_data
from contract.certpath import Trust
from contract.devid import DevId, DevIdTrust, check_devid
from contract.errors import Rejected
from contract.messages import DevIdEvidence
from tests.contract.forge import Forger, ecc_public, sized
from tests.contract.vendor import DAY, DER, NOW, Authority, name, tlv, usage

MADE_IN_TPM = tpm.FIXED_TPM | tpm.FIXED_PARENT | tpm.SENSITIVE_DATA_ORIGIN | tpm.SIGN | 1 << 6
ANY_SCHEME = struct.pack(">HH", 0x10, 0x10)
ECDSA = struct.pack(">HHH", 0x10, 0x18, 0x0B)
HARDWARE = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")


class Device:
    """An AK, a device identity key beside it, and the maker who certifies it."""

    def __init__(self) -> None:
        self.ak = Forger("ecc256")
        self.maker = Authority()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.public = ecc_public(self.key, MADE_IN_TPM, ANY_SCHEME)
        self.trust = DevIdTrust(idevid=Trust(certificates=[self.maker.root, self.maker.issuer]))
        self.asked = devid_qualifying_data(enrolment="e1", node="press-1", ak_public=self.ak.ak_public)

    def certificate(self, **what: object) -> bytes:
        hardware = tlv(0x30, tlv(0x06, bytes.fromhex("2b06010401")) + tlv(0x04, b"SN-4711"))
        fields: dict[str, object] = {
            "key": self.key,
            "extended": None,
            "used_for": usage(digital_signature=True),
            "subject": name("device", (NameOID.SERIAL_NUMBER, "of the subject")),
            "names": [x509.OtherName(HARDWARE, hardware)],
        }
        return self.maker.ek_certificate(**{**fields, **what})  # type: ignore[arg-type]

    def attest(
        self, about: bytes, *, signer: bytes | None = None, kind: int = 0x8017, extra: bytes | None = None
    ) -> bytes:
        by = self.ak.attestation_key.qualified_name if signer is None else signer
        head = (
            struct.pack(">IH", 0xFF544347, kind) + sized(by) + sized(self.asked if extra is None else extra)
        )
        return head + struct.pack(">QIIBQ", 1, 1, 0, 1, 1) + sized(about) + sized(about)

    def evidence(self, **changed: object) -> DevIdEvidence:
        """Good where nothing is said."""
        attest = changed.pop("attest", None) or self.attest(tpm.name_of(self.public))
        fields: dict[str, object] = {
            "certificate": self.certificate(),
            "public": self.public,
            "attest": attest,
            "signature": self.ak.sign(attest),  # type: ignore[arg-type]
        }
        return DevIdEvidence(**{**fields, **changed})  # type: ignore[arg-type]

    def check(self, evidence: DevIdEvidence | None = None, trust: DevIdTrust | None = None) -> DevId:
        return check_devid(
            evidence or self.evidence(),
            self.ak.ak_public,
            self.ak.ek_public,
            trust or self.trust,
            qualifying_data=self.asked,
            now=NOW.timestamp(),
        )


@pytest.fixture(scope="module")
def device() -> Device:
    return Device()


def code_of(device: Device, evidence: DevIdEvidence, trust: DevIdTrust | None = None) -> str:
    with pytest.raises(Rejected) as caught:
        device.check(evidence, trust)
    return caught.value.code


def test_a_device_identity_names_the_device(device: Device) -> None:
    found = device.check()
    assert (found.kind, found.serial, found.hardware_type) == ("idevid", "SN-4711", "1.3.6.1.4.1")
    assert found.root_sha256 == device.maker.root.fingerprint(hashes.SHA256()).hex()
    plain = device.check(device.evidence(certificate=device.certificate(names=[])))
    assert (plain.serial, plain.hardware_type) == ("of the subject", "")


def test_the_owners_own_authority_makes_it_an_ldevid(device: Device) -> None:
    owner = Trust(certificates=[device.maker.root, device.maker.issuer])
    assert device.check(trust=DevIdTrust(ldevid=owner)).kind == "ldevid"
    other = Authority()
    both = DevIdTrust(idevid=Trust(certificates=[other.root]), ldevid=owner)
    assert device.check(trust=both).kind == "ldevid"


def test_the_maker_may_put_its_issuer_behind_the_certificate(device: Device) -> None:
    trust = DevIdTrust(idevid=Trust(certificates=[device.maker.root]))
    assert code_of(device, device.evidence(), trust) == "devid.certificate-path"
    longer = device.certificate() + device.maker.issuer.public_bytes(DER) + b"\xff" * 9
    assert device.check(device.evidence(certificate=longer), trust).kind == "idevid"


def test_a_restricted_key_may_certify_the_ak_instead(device: Device) -> None:
    public = ecc_public(device.key, MADE_IN_TPM | tpm.RESTRICTED, ECDSA)
    attest = device.attest(tpm.name_of(device.ak.ak_public), signer=b"\0\x0b" + bytes(32))
    r, s = decode_dss_signature(device.key.sign(attest, ec.ECDSA(hashes.SHA256())))
    signature = struct.pack(">HH", 0x18, 0x0B) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))
    fields = {"attest": attest, "signature": signature, "signer": "devid"}
    assert device.check(device.evidence(public=public, **fields)).kind == "idevid"
    # One that signs whatever it is given has said nothing by it.
    assert code_of(device, device.evidence(**fields)) == "devid.certify"


def bad(device: Device) -> dict[str, tuple[DevIdEvidence, str]]:
    e, name_ = device.evidence, tpm.name_of(device.public)
    stranger = Forger("ecc256")
    good = device.attest(name_)
    other = ecc_public(ec.generate_private_key(ec.SECP256R1()), MADE_IN_TPM, ANY_SCHEME)
    return {
        "signed by another key": (e(signature=stranger.sign(good)), "quote.signature"),
        "another key certified": (e(attest=device.attest(tpm.name_of(other))), "devid.certify"),
        "another enrolment": (e(attest=device.attest(name_, extra=bytes(32))), "devid.certify"),
        "another signer": (e(attest=device.attest(name_, signer=b"\0\x0b" + bytes(32))), "devid.certify"),
        "a quote": (e(attest=device.attest(name_, kind=0x8018)), "devid.certify"),
        "trailing": (e(attest=good + b"\0"), "devid.certify"),
        "cut": (e(attest=good[:-1]), "devid.certify"),
        "another public area": (e(public=other), "devid.certify"),
        "not of a TPM": (
            e(public=ecc_public(device.key, MADE_IN_TPM & ~tpm.SENSITIVE_DATA_ORIGIN, ANY_SCHEME)),
            "devid.attributes",
        ),
        "certificate of another key": (
            e(certificate=device.certificate(key=ec.generate_private_key(ec.SECP256R1()))),
            "devid.certificate-key",
        ),
        "no certificate": (e(certificate=b"\xff" * 8), "devid.certificate-missing"),
        "garbage": (e(certificate=b"garbage"), "devid.certificate-malformed"),
        "expired": (e(certificate=device.certificate(until=NOW - DAY)), "devid.certificate-expired"),
        "marked CA": (e(certificate=device.certificate(ca=True)), "devid.certificate-usage"),
        "for encryption": (
            e(certificate=device.certificate(used_for=usage(key_encipherment=True))),
            "devid.certificate-usage",
        ),
        "by a stranger": (e(certificate=device.certificate(signer=device.key)), "devid.certificate-path"),
        "nameless": (
            e(certificate=device.certificate(names=[], subject=name("x"))),
            "devid.certificate-name",
        ),
        "name malformed": (
            e(certificate=device.certificate(names=[x509.OtherName(HARDWARE, tlv(0x30, b"\x06\x01"))])),
            "devid.certificate-name",
        ),
    }


@pytest.mark.parametrize("case", sorted(bad(Device())))
def test_b01_a_device_identity_that_is_not_this_tpms_is_refused(device: Device, case: str) -> None:
    evidence, code = bad(device)[case]
    assert code_of(device, evidence) == code


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_stands_for_a_device_identity_is_refused_with_a_code(data: st.DataObject) -> None:
    device, good = WHOLE, WHOLE_EVIDENCE
    field = data.draw(st.sampled_from(["certificate", "public", "attest", "signature"]))
    value = bytearray(getattr(good, field))
    for _ in range(data.draw(st.integers(1, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    bent = bytes(value[: data.draw(st.integers(0, len(value)))])
    try:
        device.check(msgspec.structs.replace(good, **{field: bent}))
    except Rejected:
        pass
    else:
        assert bent == getattr(good, field) or field == "certificate"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=140))
def test_a_hardware_name_of_any_bytes_is_read_or_refused(value: bytes) -> None:
    device = WHOLE
    names = [x509.OtherName(HARDWARE, tlv(0x30, value))]
    try:
        found = device.check(device.evidence(certificate=device.certificate(names=names)))
    except Rejected as rejected:
        assert rejected.code.startswith("devid.")
    else:
        assert found.serial.isprintable() and len(found.serial) <= 64


WHOLE = Device()
WHOLE_EVIDENCE = WHOLE.evidence()

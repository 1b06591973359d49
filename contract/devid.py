"""Device identity keys: IDevID of the device's maker, LDevID of its owner (IEEE 802.1AR-2018; TCG TPM 2.0 Keys for Device
Identity and Attestation 1.00).

A certificate alone names a device somewhere. Here it counts only with proof that its very key lives in the TPM that holds the
AK (TPM2_Certify), over data that the controller chose. Which root it leads to says whether it is the maker's or the owner's:
the operator keeps the two apart. It fetches nothing. Relies on `contract.certpath`, and on the AK having been proved.
"""

from __future__ import annotations

from datetime import UTC, datetime
from struct import Struct as Layout
from typing import Final, Literal

from cryptography import x509
from cryptography.x509.oid import NameOID
from msgspec import Struct

from contract import ekder, tpm
from contract.certnames import readable
from contract.certpath import Path, Trust, check_path, fingerprint, parse, spki
from contract.ekcert import parsed_chain
from contract.errors import Rejected
from contract.messages import DevIdEvidence
from contract.quote import TPM_GENERATED, AttestationKey

AREA: Final = "devid"
ST_ATTEST_CERTIFY: Final = 0x8017
MAX_SERIAL_CHARS: Final = 64
_HARDWARE_MODULE_NAME = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")
_HEAD = Layout(">IH")
_CLOCK_BYTES: Final = 17 + 8  # TPMS_CLOCK_INFO and firmwareVersion
_MUST: Final = {
    "fixedTPM": tpm.FIXED_TPM,
    "fixedParent": tpm.FIXED_PARENT,
    "sensitiveDataOrigin": tpm.SENSITIVE_DATA_ORIGIN,
    "sign": tpm.SIGN,
}


class DevId(Struct, frozen=True, kw_only=True):
    """A device identity that was proved: its certificate leads to a configured root, its key lives beside the AK."""

    kind: Literal["idevid", "ldevid"]
    serial: str
    """The hardware's serial number where the certificate names one, else the subject's."""
    hardware_type: str = ""
    """Object identifier of the kind of hardware, dotted; empty where the certificate names none."""
    subject: str
    issuer: str
    not_after: float
    root_sha256: str
    certificate_sha256: str


class DevIdTrust(Struct, frozen=True, kw_only=True):
    """Whose device identities are believed."""

    idevid: Trust = Trust(certificates=())
    """Makers of devices."""
    ldevid: Trust = Trust(certificates=())
    """The owner's own authorities."""


def check_devid(
    evidence: DevIdEvidence,
    ak_public: bytes,
    ek_public: bytes,
    trust: DevIdTrust,
    *,
    qualifying_data: bytes,
    now: float,
) -> DevId:
    """Check one device identity of the TPM that holds AK and EK. `now` in seconds since 1970.

    1. the public area is that of a signing key that was made in a TPM and never leaves it (`devid.attributes`, `tpm.public`)
    2. over this enrolment, the AK certified that key; or the key certified the AK, and it is restricted, so that it cannot
       have been made to sign this (`devid.certify`, `quote.signature*`; TPM 2.0 Part 2, 10.12.3 and 10.12.8)
    3. the certificate is strict DER (`devid.certificate-*`), for that key (`devid.certificate-key`), for signatures and no CA
       (`devid.certificate-usage`)
    4. it leads to a root for device identities (see `contract.certpath`)
    5. it names the device (`devid.certificate-name`; 802.1AR, 8.6)
    """
    public = tpm.parse_public(evidence.public)
    lacks = [name for name, bit in _MUST.items() if not public.attributes & bit]
    if lacks or public.attributes & tpm.DECRYPT:  # 1
        raise Rejected("devid.attributes", f"not {', '.join(lacks)}" if lacks else "can decrypt")
    ak = tpm.parse_public(ak_public)
    if evidence.signer == "ak":  # 2
        by, about = AttestationKey.from_public(ak_public, ek_public), public.name
    elif public.attributes & tpm.RESTRICTED:
        by, about = AttestationKey(public.key, public.scheme_hash, b""), ak.name
    else:
        raise Rejected("devid.certify", "the key may sign anything, so what it says of the AK proves nothing")
    by.check_signature(evidence.signature, evidence.attest)
    _check_certify(evidence.attest, by.qualified_name, about, qualifying_data)
    pieces = ekder.certificates_in(evidence.certificate, AREA)
    if not pieces:
        raise Rejected("devid.certificate-missing", "no certificate came with the key")
    leaf = parse(pieces[0], AREA)  # 3
    if spki(leaf) != public.spki:
        raise Rejected("devid.certificate-key", "the certificate is for another key")
    _check_usage(leaf)
    helpers = parsed_chain(b"".join(pieces[1:]), AREA)
    kind, path = _path(leaf, helpers, trust, datetime.fromtimestamp(now, UTC))  # 4
    hardware_type, serial = _device(leaf)  # 5
    return DevId(
        kind=kind,
        serial=serial,
        hardware_type=hardware_type,
        subject=readable(leaf.subject),
        issuer=readable(leaf.issuer),
        not_after=leaf.not_valid_after_utc.timestamp(),
        root_sha256=path.root_sha256,
        certificate_sha256=fingerprint(leaf).hex(),
    )


def _check_certify(attest: bytes, by: bytes, about: bytes, qualifying_data: bytes) -> None:
    """Check a signed TPMS_ATTEST of TPM2_Certify: exact lengths, this signer where it is known, this question, this key."""
    if len(attest) < _HEAD.size:
        raise Rejected("devid.certify", f"{len(attest)} bytes are no TPMS_ATTEST")
    magic, kind = _HEAD.unpack_from(attest)
    if magic != TPM_GENERATED or kind != ST_ATTEST_CERTIFY:
        raise Rejected("devid.certify", f"magic {magic:#010x}, type {kind:#06x}: not what TPM2_Certify makes")
    signer, at = _sized(attest, _HEAD.size)
    extra, at = _sized(attest, at)
    certified, at = _sized(attest, at + _CLOCK_BYTES)
    _, at = _sized(attest, at)
    if at != len(attest):
        raise Rejected("devid.certify", f"{len(attest) - at} bytes too many")
    if by and signer != by:
        raise Rejected("devid.certify", "the qualified signer is not the AK of this enrolment")
    if extra != qualifying_data:
        raise Rejected("devid.certify", "certified for another enrolment")
    if certified != about:
        raise Rejected("devid.certify", "another key was certified")


def _sized(data: bytes, at: int) -> tuple[bytes, int]:
    end = at + 2 + int.from_bytes(data[at : at + 2], "big")
    if at + 2 > len(data) or end > len(data):
        raise Rejected("devid.certify", f"at byte {at}: cut short")
    return data[at + 2 : end], end


def _check_usage(leaf: x509.Certificate) -> None:
    for extension in leaf.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise Rejected("devid.certificate-usage", "the certificate is marked as a CA")
        if isinstance(value, x509.KeyUsage) and (not value.digital_signature or value.key_cert_sign):
            raise Rejected("devid.certificate-usage", "the key usage is not that of a device identity")


def _path(
    leaf: x509.Certificate, helpers: list[x509.Certificate], trust: DevIdTrust, at: datetime
) -> tuple[Literal["idevid", "ldevid"], Path]:
    try:
        return "idevid", check_path(leaf, helpers, trust.idevid, at=at, area=AREA)
    except Rejected as rejected:
        if rejected.code != "devid.certificate-path" or not trust.ldevid.certificates:
            raise
    return "ldevid", check_path(leaf, helpers, trust.ldevid, at=at, area=AREA)


def _device(leaf: x509.Certificate) -> tuple[str, str]:
    """Return hardware type and serial number (RFC 4108, 5: HardwareModuleName; 802.1AR, 8.6: serialNumber)."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = None
    for other in names.get_values_for_type(x509.OtherName) if names is not None else ():
        if other.type_id == _HARDWARE_MODULE_NAME:
            return _hardware(other.value)
    for attribute in leaf.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER):
        if isinstance(attribute.value, str) and attribute.value.strip():
            return "", _shown(attribute.value.encode())
    raise Rejected("devid.certificate-name", "neither a hardware module name nor a serial number")


def _hardware(der: bytes) -> tuple[str, str]:
    """Parse HardwareModuleName ::= SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING }, short lengths only."""
    kind_size = der[3] if len(der) > 4 and der[0] == 0x30 and der[1] == len(der) - 2 and der[2] == 0x06 else 0
    at = 4 + kind_size
    whole = (
        0 < kind_size < 0x80 and at + 2 < len(der) and der[at] == 0x04 and at + 2 + der[at + 1] == len(der)
    )
    if not whole or len(der) > 0x81:
        raise Rejected("devid.certificate-name", "the hardware module name is malformed")
    return _dotted(der[4:at]), _shown(der[at + 2 :])


def _dotted(der: bytes) -> str:
    """Decode an object identifier (X.690, 8.19)."""
    arcs: list[int] = []
    value = 0
    for byte in der:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(value)
            value = 0
    if der[-1] & 0x80:
        raise Rejected("devid.certificate-name", "the hardware type is no object identifier")
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


def _shown(serial: bytes) -> str:
    """Return a serial number as people write it: text where it is, else hexadecimal."""
    try:
        text = serial.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    return (text if text.isprintable() and text else serial.hex())[:MAX_SERIAL_CHARS]

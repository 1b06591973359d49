"""The EK certificate: what it must be, which device it names, and its path to a root (TCG EK Credential Profile 2.5).

Takes certificates as makers really ship them (`contract.ekder`) and refuses what is not strict DER, whoever signed it: two
parsers that read one certificate differently are an attack, and the list of expected EKs lets such a TPM in all the same.
It fetches nothing. It relies on `contract.certpath` for the path and on `contract.tpmvendor` for the kinds of TPMs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from msgspec import Struct

from contract import ekder, tpm
from contract.certpath import Trust, check_path, parse, spki
from contract.errors import Rejected
from contract.tpmvendor import TpmKind, kind_of

AREA: Final = "ek"
_EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
_MANUFACTURER = "2.23.133.2.1"
_MODEL = "2.23.133.2.2"
_VERSION = "2.23.133.2.3"
_MAX_ATTRIBUTE_CHARS: Final = 64


class CertifiedKey(Struct, frozen=True, kw_only=True):
    """What an EK certificate that passed every check says."""

    root_sha256: str
    manufacturer: str
    """As in the certificate: `id:` and eight hexadecimal digits; empty when it names none."""
    model: str
    firmware: str
    """TPM version as its maker wrote it."""
    kind: TpmKind
    notes: tuple[str, ...]
    """What was accepted although it is not as it should be: a code, a colon and the reason."""


def check_certificate(
    ek: tpm.Public, untrusted_certificate: bytes, untrusted_chain: bytes, trust: Trust, *, now: float
) -> CertifiedKey:
    """Check that a configured root vouches for this EK. `now` is in seconds since 1970.

    `untrusted_certificate` and `untrusted_chain` are what the node's NV holds; what follows the certificate, and the chain,
    are intermediates.

    1. a certificate is there, whole and strict DER (`ek.certificate-missing`, `-malformed`, `-trailing`, `-der`; b08)
    2. the key in it is the EK's (`ek.certificate-key`)
    3. not a CA (`ek.certificate-ca`); key usage fits the key type, extended usage is that of an EK certificate; where the
       maker left that out, the name says that it is a TPM's (`ek.certificate-usage`; profile 3.5)
    4. the path: dates, signatures, CAs, name constraints, critical extensions, revocation (see `contract.certpath`)
    """
    leaf, helpers = _shown(untrusted_certificate, untrusted_chain)  # 1
    if spki(leaf) != ek.spki:  # 2
        raise Rejected("ek.certificate-key", "the certificate is for another key than the node's EK")
    manufacturer, model, firmware = device_of(leaf)
    notes = check_leaf(leaf, rsa=ek.type == tpm.ALG_RSA, named=bool(manufacturer and model))  # 3
    path = check_path(leaf, helpers, trust, at=datetime.fromtimestamp(now, UTC), area=AREA)  # 4
    return CertifiedKey(
        root_sha256=path.root_sha256,
        manufacturer=manufacturer,
        model=model,
        firmware=firmware,
        kind=kind_of(manufacturer, model),
        notes=(*notes, *path.notes),
    )


def parsed_chain(untrusted: bytes, area: str = AREA) -> list[x509.Certificate]:
    """Return what can be used of a device's intermediates; what is malformed is no help and no harm."""
    try:
        pieces = ekder.certificates_in(untrusted, area)
    except Rejected:
        return []
    found: list[x509.Certificate] = []
    for piece in pieces:
        try:
            found.append(parse(piece, area))
        except Rejected:
            continue
    return found


def _shown(
    untrusted_certificate: bytes, untrusted_chain: bytes
) -> tuple[x509.Certificate, list[x509.Certificate]]:
    pieces = ekder.certificates_in(untrusted_certificate, AREA)
    if not pieces:
        raise Rejected("ek.certificate-missing", "the node showed no EK certificate")
    leaf = parse(pieces[0], AREA)
    return leaf, parsed_chain(b"".join(pieces[1:])) + parsed_chain(untrusted_chain)


def check_leaf(leaf: x509.Certificate, *, rsa: bool, named: bool) -> list[str]:
    """Check what the certificate is for and return notes (check 3 of `check_certificate`).

    `rsa` says of which type its key is, `named` that its alternative name is that of a TPM. Raises Rejected `ek.certificate-*`.
    """
    notes: list[str] = []
    constraints = _extension(leaf, x509.BasicConstraints)
    if isinstance(constraints, x509.BasicConstraints) and constraints.ca:
        raise Rejected("ek.certificate-ca", "the EK certificate is marked as a CA")
    usage = _extension(leaf, x509.KeyUsage)
    if not isinstance(usage, x509.KeyUsage):
        raise Rejected("ek.certificate-usage", "the EK certificate names no key usage")
    fits = usage.key_encipherment if rsa else usage.key_agreement
    if not fits or usage.key_cert_sign:
        raise Rejected("ek.certificate-usage", "the key usage is not that of an EK of this type")
    extended = _extension(leaf, x509.ExtendedKeyUsage)
    if isinstance(extended, x509.ExtendedKeyUsage) and _EK_USAGE not in extended:
        raise Rejected("ek.certificate-usage", "the extended key usage is not that of an EK certificate")
    if extended is None:
        # Else a maker's certificate for some web server would do, and its key would be no TPM's.
        if not named:
            raise Rejected(
                "ek.certificate-usage",
                "neither the extended key usage nor the name says that this is a TPM's",
            )
        notes.append(
            "ek.certificate-usage: no extended key usage; believed because the name is that of a TPM"
        )
    if leaf.serial_number <= 0:
        notes.append("ek.certificate-serial: the serial number is not positive (RFC 5280, 4.1.2.2)")
    return notes


def _extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.ExtensionType | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def device_of(leaf: x509.Certificate) -> tuple[str, str, str]:
    """Return manufacturer, model and version from the subject alternative name (profile 3.2.9)."""
    names = _extension(leaf, x509.SubjectAlternativeName)
    found = {_MANUFACTURER: "", _MODEL: "", _VERSION: ""}
    if isinstance(names, x509.SubjectAlternativeName):
        for directory in names.get_values_for_type(x509.DirectoryName):
            for attribute in directory:
                oid, value = attribute.oid.dotted_string, attribute.value
                if oid in found and isinstance(value, str):
                    found[oid] = "".join(c for c in value if c.isprintable())[:_MAX_ATTRIBUTE_CHARS]
    return found[_MANUFACTURER], found[_MODEL], found[_VERSION]

"""The EK certificate and its path to a configured root (TCG EK Credential Profile for TPM 2.0, version 2.5).

Checks the path itself, since web PKI verifiers want a host name and EK certificates have none. It fetches nothing:
no issuer, no revocation list. It relies on `cryptography` to parse DER and to check each signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from msgspec import Struct

from contract import tpm
from contract.errors import Rejected

MAX_CERTIFICATE_BYTES: Final = 8192
MAX_PATH: Final = 6
_EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
_MANUFACTURER = "2.23.133.2.1"
_MODEL = "2.23.133.2.2"
# TPM vendor ids (TCG Vendor ID Registry) and models of TPMs that are programs.
_VIRTUAL_MANUFACTURERS: Final = frozenset({"id:00001014", "id:4D534654", "id:474F4F47", "id:564D5700"})
_VIRTUAL_MODELS: Final = frozenset({"swtpm", "vtpm", "xCG fTPM vTPM"})
_KNOWN_CRITICAL: Final = frozenset(
    {
        x509.BasicConstraints.oid,
        x509.KeyUsage.oid,
        x509.ExtendedKeyUsage.oid,
        x509.SubjectAlternativeName.oid,
    }
)


class CertifiedKey(Struct, frozen=True, kw_only=True):
    """What an EK certificate that passed every check says."""

    root_sha256: str
    manufacturer: str
    """As in the certificate: `id:` and eight hexadecimal digits; empty when it names none."""
    model: str
    virtual: bool
    """The TPM is a program, as far as its maker says so."""


def trim(untrusted: bytes) -> bytes:
    """Cut what the vendor left behind the certificate in NV: the DER header says how long it is."""
    if len(untrusted) > 4 and untrusted[:2] == b"\x30\x82":
        end = 4 + int.from_bytes(untrusted[2:4], "big")
        if end <= len(untrusted):
            return untrusted[:end]
    return untrusted


def check_certificate(
    ek: tpm.Public, untrusted_certificate: bytes, roots: Sequence[x509.Certificate], *, now: float
) -> CertifiedKey:
    """Check that a configured root vouches for this EK. `now` is in seconds since 1970.

    `roots` holds trust anchors (self-issued) and, if wanted, intermediates, which are worth nothing without an anchor.

    1. DER, and the key in it is the EK's (`ek.certificate-malformed`, `ek.certificate-key`)
    2. version 3, not a CA, key usage fits the key type, EK certificate in the extended usage if there is one, no
       critical extension that is unknown (`ek.certificate-ca`, `ek.certificate-usage`; profile 3.5)
    3. every certificate of the path is in its dates (`ek.certificate-expired`; RFC 5280, 6.1.3)
    4. each is signed by the next, which is a CA that may sign certificates, within its path length; the last is a
       configured anchor (`ek.certificate-path`; RFC 5280, 6.1.4)
    """
    leaf = _parsed(untrusted_certificate)
    if _spki(leaf) != ek.spki:  # 1
        raise Rejected("ek.certificate-key", "the certificate is for another key than the node's EK")
    _check_leaf(leaf, ek)  # 2
    at = datetime.fromtimestamp(now, UTC)
    _check_dates(leaf, at)  # 3
    root = _path(leaf, list(roots), at)  # 3, 4
    manufacturer, model = _device(leaf)
    return CertifiedKey(
        root_sha256=tpm.digest(tpm.ALG_SHA256, root.public_bytes(serialization.Encoding.DER)).hex(),
        manufacturer=manufacturer,
        model=model,
        virtual=manufacturer in _VIRTUAL_MANUFACTURERS or model in _VIRTUAL_MODELS,
    )


def _parsed(untrusted: bytes) -> x509.Certificate:
    if not untrusted:
        raise Rejected("ek.certificate-missing", "the node showed no EK certificate")
    if len(untrusted) > MAX_CERTIFICATE_BYTES:
        raise Rejected("ek.certificate-malformed", f"{len(untrusted)} bytes, at most {MAX_CERTIFICATE_BYTES}")
    try:
        certificate = x509.load_der_x509_certificate(trim(untrusted))
        # Extensions, names and the key are parsed on first use: all of it here, so that nothing behind can fail.
        _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key()
        _device(certificate)
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion) as error:
        raise Rejected("ek.certificate-malformed", f"not strict DER of a certificate: {error}") from None
    return certificate


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.ExtensionType | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _check_leaf(leaf: x509.Certificate, ek: tpm.Public) -> None:
    constraints = _extension(leaf, x509.BasicConstraints)
    if isinstance(constraints, x509.BasicConstraints) and constraints.ca:
        raise Rejected("ek.certificate-ca", "the EK certificate is marked as a CA")
    usage = _extension(leaf, x509.KeyUsage)
    if not isinstance(usage, x509.KeyUsage):
        raise Rejected("ek.certificate-usage", "the EK certificate names no key usage")
    fits = usage.key_encipherment if ek.type == tpm.ALG_RSA else usage.key_agreement
    if not fits or usage.key_cert_sign:
        raise Rejected("ek.certificate-usage", "the key usage is not that of an EK of this type")
    extended = _extension(leaf, x509.ExtendedKeyUsage)
    if isinstance(extended, x509.ExtendedKeyUsage) and _EK_USAGE not in extended:
        raise Rejected("ek.certificate-usage", "the extended key usage is not that of an EK certificate")
    _check_critical(leaf)


def _check_critical(certificate: x509.Certificate) -> None:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _KNOWN_CRITICAL:
            raise Rejected(
                "ek.certificate-usage", f"unknown critical extension {extension.oid.dotted_string}"
            )


def _check_dates(certificate: x509.Certificate, at: datetime) -> None:
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise Rejected(
            "ek.certificate-expired",
            f"{certificate.subject.rfc4514_string()[:100]!r} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} "
            f"to {certificate.not_valid_after_utc:%Y-%m-%d}",
        )


def _path(leaf: x509.Certificate, known: list[x509.Certificate], at: datetime) -> x509.Certificate:
    """Walk up from the leaf; at each step take the one known certificate that signed the step before."""
    current = leaf
    for depth in range(MAX_PATH):
        issuer = next((c for c in known if _signed(current, c)), None)
        if issuer is None:
            name = current.issuer.rfc4514_string()[:100]
            raise Rejected("ek.certificate-path", f"no configured certificate of {name!r} signed it")
        _check_dates(issuer, at)
        _check_issuer(issuer, depth)
        if issuer.subject == issuer.issuer:
            return issuer
        current = issuer
    raise Rejected("ek.certificate-path", f"more than {MAX_PATH} certificates to a root")


def _signed(child: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_issuer(issuer: x509.Certificate, below: int) -> None:
    name = issuer.subject.rfc4514_string()[:100]
    constraints = _extension(issuer, x509.BasicConstraints)
    if not isinstance(constraints, x509.BasicConstraints) or not constraints.ca:
        raise Rejected("ek.certificate-path", f"{name!r} is no CA")
    if constraints.path_length is not None and constraints.path_length < below:
        raise Rejected("ek.certificate-path", f"{name!r} allows {constraints.path_length} CAs below it")
    usage = _extension(issuer, x509.KeyUsage)
    if isinstance(usage, x509.KeyUsage) and not usage.key_cert_sign:
        raise Rejected("ek.certificate-path", f"{name!r} may not sign certificates")
    _check_critical(issuer)


def _device(leaf: x509.Certificate) -> tuple[str, str]:
    """Return manufacturer and model from the subject alternative name (profile 3.2.9)."""
    names = _extension(leaf, x509.SubjectAlternativeName)
    found = {_MANUFACTURER: "", _MODEL: ""}
    if isinstance(names, x509.SubjectAlternativeName):
        for directory in names.get_values_for_type(x509.DirectoryName):
            for attribute in directory:
                if attribute.oid.dotted_string in found and isinstance(attribute.value, str):
                    found[attribute.oid.dotted_string] = attribute.value[:64]
    return found[_MANUFACTURER], found[_MODEL]

"""The controller's own certificate authorities: one for its servers, one after another for the nodes.

Pure: bytes and `now` in, certificates out; `controller.keys` keeps the files. Two authorities with two trades:
the server authority is what agents and admins pin, the node authority is trusted by the node listener alone,
so a node's certificate is worth nothing as a server and nothing to an admin. A new node authority is made
before the old one ends and both are trusted while they overlap, so no node ever has to learn anything.

Refuses: a request that is not signed by its own key, weak keys, and every name in a request. The names in a
certificate are ours (RFC 5280, clause 4.2.1.6), never the applicant's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from contract.errors import Rejected
from contract.names import checked_name
from controller.records import IssuedCertificate

NODE_URI_PREFIX = "ringfence:node:"
MAX_CSR_BYTES = 8192
CLOCK_SKEW_S = 300.0
"""How far behind ours a node's clock may be when it first uses its certificate."""
SERVER_CA_LIFETIME_S = 10 * 365 * 86400.0
NODE_CA_LIFETIME_S = 2 * 365 * 86400.0
SERVER_LIFETIME_S = 397 * 86400.0
RENEW_AT = 2 / 3
"""The part of a lifetime after which a successor is made."""

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class CertifiedNode:
    """What a verified node certificate says."""

    site: str
    node: str
    fingerprint: bytes
    """SHA-256 of the DER certificate: 32 bytes."""
    not_after: float


@dataclass(frozen=True, slots=True)
class Authority:
    """One certificate authority: P-256, path length 0."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, name: str, now: float, lifetime_s: float) -> Authority:
        """Make a self-signed authority called `name`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        certificate = (
            _builder(subject, subject, key.public_key(), now, lifetime_s)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def due(self, now: float) -> bool:
        """Whether a successor must be made: RENEW_AT of the lifetime is over."""
        return certificate_due(self.certificate, now)

    def issue_node(
        self, untrusted_csr: bytes, *, site: str, node: str, now: float, lifetime_s: float
    ) -> IssuedCertificate:
        """Certify the key of a PKCS #10 request (RFC 2986, DER) for `node` of `site` as a TLS client.

        Raises Rejected: `csr.malformed`, `csr.key`, `csr.signature`, `name.invalid`.
        """
        key = csr_key(untrusted_csr)
        checked_name(site, "site")
        checked_name(node, "node")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
        uri = x509.UniformResourceIdentifier(f"{NODE_URI_PREFIX}{site}:{node}")
        not_after = min(now + lifetime_s, self.certificate.not_valid_after_utc.timestamp())
        certificate = (
            _builder(subject, self.certificate.subject, key, now, not_after - now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
            .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(self._authority_key_identifier(), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return IssuedCertificate(
            chain=certificate.public_bytes(serialization.Encoding.PEM),
            sha256=certificate.fingerprint(hashes.SHA256()),
            not_after=certificate.not_valid_after_utc.timestamp(),
        )

    def issue_server(
        self, names: Sequence[str], now: float
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Make a key and a TLS server certificate for DNS names and IP addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Ringfence controller")])
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), now, SERVER_LIFETIME_S)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(self._authority_key_identifier(), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate, key

    def _authority_key_identifier(self) -> x509.AuthorityKeyIdentifier:
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def certificate_due(certificate: x509.Certificate, now: float) -> bool:
    """Whether RENEW_AT of the certificate's lifetime is over."""
    begin = certificate.not_valid_before_utc.timestamp()
    end = certificate.not_valid_after_utc.timestamp()
    return now >= begin + (end - begin) * RENEW_AT


def csr_key(untrusted_csr: bytes) -> PublicKey:
    """Return the key of a request that proves possession of it.

    Raises Rejected: `csr.malformed`, `csr.key` (P-256, P-384, Ed25519 or RSA of 2048 to 4096 bits is wanted),
    `csr.signature` (RFC 2986, clause 4.2).
    """
    if not 0 < len(untrusted_csr) <= MAX_CSR_BYTES:
        raise Rejected("csr.malformed", f"{len(untrusted_csr)} bytes, wanted 1 to {MAX_CSR_BYTES}")
    try:
        request = x509.load_der_x509_csr(untrusted_csr)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, TypeError) as error:
        raise Rejected("csr.malformed", type(error).__name__) from None
    if isinstance(key, ec.EllipticCurvePublicKey):
        strong = isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    elif isinstance(key, rsa.RSAPublicKey):
        strong = 2048 <= key.key_size <= 4096 and key.public_numbers().e == 65537
    else:
        strong = isinstance(key, ed25519.Ed25519PublicKey)
    if not strong:
        raise Rejected("csr.key", "wanted P-256, P-384, Ed25519 or RSA of 2048 to 4096 bits")
    if not signed:
        raise Rejected("csr.signature", "the request is not signed by its own key")
    return key  # type: ignore[return-value]


def node_identity(untrusted_der: bytes) -> CertifiedNode:
    """Read site and node from a certificate whose chain the TLS layer has already verified.

    Raises Rejected `certificate.identity` unless it names exactly one node and nothing else.
    """
    try:
        certificate = x509.load_der_x509_certificate(untrusted_der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    except (
        ValueError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise Rejected("certificate.identity", type(error).__name__) from None
    if len(list(names)) != 1 or len(uris) != 1 or not uris[0].startswith(NODE_URI_PREFIX):
        raise Rejected("certificate.identity", "wanted exactly one ringfence:node: name")
    site, colon, node = uris[0].removeprefix(NODE_URI_PREFIX).partition(":")
    if not colon:
        raise Rejected("certificate.identity", "wanted ringfence:node:<site>:<node>")
    return CertifiedNode(
        site=checked_name(site, "site"),
        node=checked_name(node, "node"),
        fingerprint=certificate.fingerprint(hashes.SHA256()),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, now: float, lifetime_s: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(int(now - CLOCK_SKEW_S), UTC))
        .not_valid_after(datetime.fromtimestamp(int(now + lifetime_s), UTC))
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)

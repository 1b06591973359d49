"""The path from a device's certificate to a configured root (RFC 5280, 6.1), for certificates that web verifiers cannot take.

Web verifiers want a host name, and refuse the critical alternative name by which a TPM is named. This builds paths through
what the device shows and what the operator configured, and trusts only what the operator configured: a certificate that
the device shows is material for a path and never its end. It fetches nothing. It relies on `cryptography` to parse DER and
to check each signature, and does at most MAX_SIGNATURES of them whatever it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID
from msgspec import Struct

from contract import ekder
from contract.certnames import canonical, outside, readable
from contract.crl import StaleCrl, check_revocation
from contract.errors import Rejected

MAX_CERTIFICATE_BYTES: Final = 8192
MAX_PATH: Final = 8
"""Certificates between the device's own and the root: makers that certify on the die have five."""
MAX_SIGNATURES: Final = 64
MAX_STEPS: Final = 512
"""Certificates that sign one another in a ring have more paths than there is time for."""
MAX_PATHS: Final = 16
MIN_RSA_BITS: Final = 2048
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_CRITICAL: Final = frozenset(
    {
        x509.BasicConstraints.oid,
        x509.KeyUsage.oid,
        x509.ExtendedKeyUsage.oid,
        x509.SubjectAlternativeName.oid,
        x509.NameConstraints.oid,
        x509.CRLDistributionPoints.oid,
        # Nobody here demands a policy, so these change no decision; policyConstraints would, and is refused.
        x509.CertificatePolicies.oid,
        x509.ObjectIdentifier("2.5.29.33"),  # policyMappings
        x509.InhibitAnyPolicy.oid,
    }
)


class Trust(Struct, frozen=True, kw_only=True):
    """What the operator put down: anchors (self-issued), intermediates, which are worth nothing without an anchor, and lists."""

    certificates: Sequence[x509.Certificate]
    crls: Sequence[x509.CertificateRevocationList] = ()
    stale_crl: StaleCrl = "refuse"


class Path(Struct, frozen=True, kw_only=True):
    """A path that passed every check."""

    certificates: tuple[x509.Certificate, ...]
    """From the device's own to the anchor."""
    notes: tuple[str, ...]

    @property
    def root_sha256(self) -> str:
        """Return the anchor's SHA-256, hex."""
        return fingerprint(self.certificates[-1]).hex()


class Missing(Struct, frozen=True, kw_only=True):
    """The certificate that would take a path one step further."""

    issuer: str
    key_id: str
    """Authority key identifier, hex; empty when the certificate names none."""
    urls: tuple[str, ...]
    """Where the certificate says that its issuer's can be fetched (RFC 5280, 4.2.2.1)."""

    def __str__(self) -> str:
        more = [f"key id {self.key_id}"] if self.key_id else []
        return ", ".join([f"no configured certificate of {self.issuer} signed it", *more, *self.urls])


def parse(untrusted: bytes, area: str) -> x509.Certificate:
    """Parse one certificate whole, so that nothing behind can fail.

    Raises Rejected `{area}.certificate-der` for what has the shape of a certificate and is not strict DER (X.690, 10 and 11),
    and `{area}.certificate-malformed` for anything else.
    """
    if len(untrusted) > MAX_CERTIFICATE_BYTES:
        raise Rejected(
            f"{area}.certificate-malformed", f"{len(untrusted)} bytes, at most {MAX_CERTIFICATE_BYTES}"
        )
    try:
        certificate = x509.load_der_x509_certificate(untrusted)
        # Extensions, names, dates and the key are parsed on first use: all of it here.
        _ = certificate.extensions, certificate.public_key(), certificate.serial_number
        _ = canonical(certificate.subject), canonical(certificate.issuer)
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except (
        ValueError,
        TypeError,
        OverflowError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ) as error:
        shaped = ekder.spki_of(untrusted) is not None
        code = f"{area}.certificate-der" if shaped else f"{area}.certificate-malformed"
        raise Rejected(code, f"not strict DER of a certificate: {str(error)[:300]}") from None
    if not ekder.same_algorithm(untrusted):
        raise Rejected(
            f"{area}.certificate-malformed", "the signature algorithm inside is another than outside"
        )
    return certificate


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 of the certificate."""
    return certificate.fingerprint(hashes.SHA256())


def spki(certificate: x509.Certificate) -> bytes:
    """Return the certificate's SubjectPublicKeyInfo, DER."""
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def check_path(
    leaf: x509.Certificate, shown: Sequence[x509.Certificate], trust: Trust, *, at: datetime, area: str
) -> Path:
    """Find a path from `leaf` to an anchor and check it; of several the first that passes. `shown` is the device's material.

    1. a chain of names and signatures leads to an anchor within MAX_PATH (`{area}.certificate-path`)
    2. every certificate is in its dates (`{area}.certificate-expired`; 6.1.3, a 2)
    3. no signature below the anchor uses SHA-1 or older: colliding pairs have been for sale since 2020; no issuer's RSA key is
       shorter than 2048 bits (`{area}.certificate-algorithm`)
    4. every issuer is a CA that may sign certificates, within its path length (`{area}.certificate-path`; 6.1.4, k to n)
    5. every certificate is within the name constraints of all above it (`{area}.certificate-constraints`; 6.1.3, b and c)
    6. no critical extension is unknown (`{area}.certificate-critical`; 6.1.4, o)
    7. none is revoked by a list that is here (`{area}.revoked`, `{area}.crl-*`; 6.3)
    """
    search = _Search(leaf, shown, trust.certificates)
    failure: Rejected | None = None
    for tried, chain in enumerate(search.chains()):
        if tried == MAX_PATHS:
            break
        try:
            return Path(certificates=chain, notes=_check_chain(chain, trust, at, area))
        except Rejected as rejected:
            failure = failure or rejected
    if failure is not None:
        raise failure
    raise Rejected(f"{area}.certificate-path", search.why())  # 1


def missing(
    leaf: x509.Certificate, shown: Sequence[x509.Certificate], known: Sequence[x509.Certificate]
) -> Missing | None:
    """Return what a path lacks to reach an anchor among `known`; None when one does."""
    search = _Search(leaf, shown, known)
    if next(search.chains(), None) is not None:
        return None
    return lacking(search.furthest[-1])


def lacking(certificate: x509.Certificate) -> Missing:
    """Return what the certificate says of its issuer."""
    named = _extension(certificate, x509.AuthorityKeyIdentifier)
    key_id = named.key_identifier if isinstance(named, x509.AuthorityKeyIdentifier) else None
    access = _extension(certificate, x509.AuthorityInformationAccess)
    urls = [
        one.access_location.value[:200]
        for one in (access if isinstance(access, x509.AuthorityInformationAccess) else ())
        if one.access_method == AuthorityInformationAccessOID.CA_ISSUERS
        and isinstance(one.access_location, x509.UniformResourceIdentifier)
        and one.access_location.value.isprintable()
    ]
    return Missing(issuer=readable(certificate.issuer), key_id=(key_id or b"").hex(), urls=tuple(urls[:4]))


def is_anchor(certificate: x509.Certificate) -> bool:
    """Return whether a configured certificate is a root: self-issued, and by the very key that it holds where it says so."""
    if canonical(certificate.subject) != canonical(certificate.issuer):
        return False
    by = _extension(certificate, x509.AuthorityKeyIdentifier)
    own = _extension(certificate, x509.SubjectKeyIdentifier)
    if isinstance(by, x509.AuthorityKeyIdentifier) and isinstance(own, x509.SubjectKeyIdentifier):
        return by.key_identifier in (None, own.digest)
    return True


class _Search:
    """Walks up by names and signatures, depth first; remembers each signature it has checked."""

    def __init__(
        self,
        leaf: x509.Certificate,
        shown: Sequence[x509.Certificate],
        configured: Sequence[x509.Certificate],
    ) -> None:
        self._leaf = leaf
        self._anchors = {fingerprint(c) for c in configured if is_anchor(c)}
        self._by_name: dict[object, list[x509.Certificate]] = {}
        seen: set[bytes] = set()
        for certificate in (*configured, *shown[: ekder.MAX_CERTIFICATES]):
            mark = fingerprint(certificate)
            if mark not in seen:
                seen.add(mark)
                self._by_name.setdefault(canonical(certificate.subject), []).append(certificate)
        self._checked: dict[tuple[bytes, bytes], bool] = {}
        self._steps = 0
        self.furthest: tuple[x509.Certificate, ...] = (leaf,)

    def chains(self) -> Iterator[tuple[x509.Certificate, ...]]:
        """Yield chains from the leaf to an anchor."""
        yield from self._up((self._leaf,))

    def _up(self, chain: tuple[x509.Certificate, ...]) -> Iterator[tuple[x509.Certificate, ...]]:
        if len(chain) > len(self.furthest):
            self.furthest = chain
        self._steps += 1
        if len(chain) > MAX_PATH + 1 or self._steps > MAX_STEPS:
            return
        for issuer in self._by_name.get(canonical(chain[-1].issuer), ()):
            if issuer in chain or not self._signed(chain[-1], issuer):
                continue
            longer = (*chain, issuer)
            if fingerprint(issuer) in self._anchors:
                yield longer
            else:
                yield from self._up(longer)

    def _signed(self, child: x509.Certificate, issuer: x509.Certificate) -> bool:
        pair = fingerprint(child), fingerprint(issuer)
        if pair not in self._checked:
            if len(self._checked) == MAX_SIGNATURES:
                return False
            self._checked[pair] = _verifies(child, child.tbs_certificate_bytes, issuer)
        return self._checked[pair]

    def why(self) -> str:
        """Say what is missing to go on from where the search got furthest."""
        if len(self.furthest) > MAX_PATH + 1:
            return f"more than {MAX_PATH} certificates to a root"
        return str(lacking(self.furthest[-1]))


def _verifies(
    signed: x509.Certificate | x509.CertificateRevocationList, message: bytes, issuer: x509.Certificate
) -> bool:
    key = issuer.public_key()
    try:
        how = signed.signature_algorithm_parameters
        algorithm = signed.signature_hash_algorithm
        if isinstance(key, rsa.RSAPublicKey) and algorithm is not None:
            scheme = how if isinstance(how, padding.PKCS1v15 | padding.PSS) else padding.PKCS1v15()
            key.verify(signed.signature, message, scheme, algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm is not None:
            key.verify(signed.signature, message, ec.ECDSA(algorithm))
        elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey) and algorithm is None:
            key.verify(signed.signature, message)
        else:
            return False
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _crl_flaw(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> str:
    """Say why a list does not count as this issuer's; "" when it does."""
    usage = _extension(issuer, x509.KeyUsage)
    if isinstance(usage, x509.KeyUsage) and not usage.crl_sign:
        return "its issuer may not sign lists"
    try:
        weak = _weak(crl)
    except UnsupportedAlgorithm:
        weak = "an unknown signature algorithm"
    if weak:
        return f"signed with {weak}"
    return "" if _verifies(crl, crl.tbs_certlist_bytes, issuer) else "not signed by its issuer"


def _weak(signed: x509.Certificate | x509.CertificateRevocationList) -> str:
    algorithm = signed.signature_hash_algorithm
    return "" if algorithm is None or isinstance(algorithm, _HASHES) else algorithm.name


def _check_chain(
    chain: tuple[x509.Certificate, ...], trust: Trust, at: datetime, area: str
) -> tuple[str, ...]:
    below = 0
    notes: list[str] = []
    for depth, certificate in enumerate(chain):
        _check_dates(certificate, at, area)  # 2
        _check_critical(certificate, area)  # 6
        if depth == 0:
            continue
        weak = _weak(chain[depth - 1])
        if weak:  # 3
            raise Rejected(
                f"{area}.certificate-algorithm", f"{readable(chain[depth - 1].subject)} is signed with {weak}"
            )
        _check_issuer(certificate, below, area)  # 3, 4
        if canonical(certificate.subject) != canonical(certificate.issuer):
            below += 1
        _check_constraints(certificate, chain[:depth], area)  # 5
        notes += check_revocation(  # 7
            chain[depth - 1],
            certificate,
            trust.crls,
            at=at,
            stale=trust.stale_crl,
            signed=_crl_flaw,
            area=area,
        )
    return tuple(dict.fromkeys(notes))


def _check_dates(certificate: x509.Certificate, at: datetime, area: str) -> None:
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise Rejected(
            f"{area}.certificate-expired",
            f"{readable(certificate.subject)} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} "
            f"to {certificate.not_valid_after_utc:%Y-%m-%d}",
        )


def _check_critical(certificate: x509.Certificate, area: str) -> None:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _CRITICAL:
            raise Rejected(
                f"{area}.certificate-critical",
                f"{readable(certificate.subject)}: unknown critical extension {extension.oid.dotted_string}",
            )


def _check_issuer(issuer: x509.Certificate, below: int, area: str) -> None:
    name = readable(issuer.subject)
    constraints = _extension(issuer, x509.BasicConstraints)
    if not isinstance(constraints, x509.BasicConstraints) or not constraints.ca:
        raise Rejected(f"{area}.certificate-path", f"{name} is no CA")
    if constraints.path_length is not None and constraints.path_length < below:
        raise Rejected(f"{area}.certificate-path", f"{name} allows {constraints.path_length} CAs below it")
    usage = _extension(issuer, x509.KeyUsage)
    if isinstance(usage, x509.KeyUsage) and not usage.key_cert_sign:
        raise Rejected(f"{area}.certificate-path", f"{name} may not sign certificates")
    key = issuer.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise Rejected(f"{area}.certificate-algorithm", f"{name} has an RSA key of {key.key_size} bits")


def _check_constraints(issuer: x509.Certificate, below: Sequence[x509.Certificate], area: str) -> None:
    constraints = _extension(issuer, x509.NameConstraints)
    if not isinstance(constraints, x509.NameConstraints):
        return
    for depth, certificate in enumerate(below):
        if depth and canonical(certificate.subject) == canonical(certificate.issuer):
            continue  # self-issued, and not the last of the path: RFC 5280, 6.1.3, b
        why = outside(certificate, constraints)
        if why:
            raise Rejected(
                f"{area}.certificate-constraints", f"{readable(issuer.subject)} does not allow it: {why}"
            )


def _extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.ExtensionType | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None

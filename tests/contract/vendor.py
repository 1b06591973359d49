"""A TPM maker's certification authority in the test's own hands, and two witnesses' views of what it makes.

Makes EK certificates and chains that are wrong in exactly one place, bends the bytes of a certificate and signs it again, and
asks `openssl verify` about the same chain.
"""

from __future__ import annotations

import datetime
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from contract.certpath import Trust
from contract.enrolment import EkTrust, check_identity
from tests.contract.forge import EK_ATTRIBUTES, EK_POLICY, STORAGE, ecc_public

NOW = datetime.datetime(2027, 6, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
EK_USAGE = "2.23.133.8.1"
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Extension = tuple[x509.ExtensionType, bool]
DER = serialization.Encoding.DER
PEM = serialization.Encoding.PEM


def usage(**allowed: bool) -> x509.KeyUsage:
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in every})


def name(common: str, *more: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    # EK certificates in the field have an empty subject and name the TPM in the alternative name.
    parts = [*more, *([(NameOID.COMMON_NAME, common)] if common else [])]
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def device(
    manufacturer: str = "id:49465800", model: str = "SLB9670", version: str = "id:0007003E"
) -> x509.Name:
    pairs = zip(("2.23.133.2.1", "2.23.133.2.2", "2.23.133.2.3"), (manufacturer, model, version), strict=True)
    return x509.Name([x509.NameAttribute(x509.ObjectIdentifier(oid), value) for oid, value in pairs])


class Authority:
    """Root and issuer; `ek_certificate` is good where nothing is said."""

    def __init__(self, common: str = "issuer", *, now: datetime.datetime = NOW) -> None:
        """Everything is valid from 90 days before `now` to 90 days after."""
        self.now = now
        self.root_key = ec.generate_private_key(ec.SECP256R1())
        self.issuer_key = ec.generate_private_key(ec.SECP256R1())
        self.ek_key = ec.generate_private_key(ec.SECP256R1())
        self.ek_public = ecc_public(self.ek_key, EK_ATTRIBUTES, STORAGE, EK_POLICY)
        self.root = self.ca("root", self.root_key, "root", self.root_key)
        self.issuer = self.ca(common, self.issuer_key, "root", self.root_key)

    def builder(
        self,
        subject: x509.Name,
        key: Key,
        issuer: x509.Name,
        until: datetime.datetime | None,
        serial: int | None = None,
    ) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder(issuer, subject, key.public_key())
        builder = builder.serial_number(serial or x509.random_serial_number())
        return builder.not_valid_before(self.now - 90 * DAY).not_valid_after(until or self.now + 90 * DAY)

    def ca(
        self,
        subject: str | x509.Name,
        key: Key,
        issuer: str | x509.Name,
        issuer_key: Key,
        *,
        ca: bool = True,
        path_length: int | None = None,
        may_sign: bool = True,
        crl_sign: bool = True,
        until: datetime.datetime | None = None,
        more: Sequence[Extension] = (),
        sha1: bool = False,
    ) -> x509.Certificate:
        subject = name(subject) if isinstance(subject, str) else subject
        issuer = name(issuer) if isinstance(issuer, str) else issuer
        builder = self.builder(subject, key, issuer, until)
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
        builder = builder.add_extension(usage(key_cert_sign=may_sign, crl_sign=crl_sign), critical=True)
        for extension, critical in more:
            builder = builder.add_extension(extension, critical)
        made = builder.sign(issuer_key, hashes.SHA256())
        return x509.load_der_x509_certificate(by_sha1(made.public_bytes(DER), issuer_key)) if sha1 else made

    def ek_certificate(
        self,
        *,
        key: Key | None = None,
        ca: bool = False,
        extended: str | None = EK_USAGE,
        until: datetime.datetime | None = None,
        used_for: x509.KeyUsage | None = None,
        model: str = "SLB9670",
        subject: x509.Name | None = None,
        names: Sequence[x509.GeneralName] | None = None,
        more: Sequence[Extension] = (),
        signer: Key | None = None,
        issuer: str | x509.Name = "issuer",
        serial: int | None = None,
        sha1: bool = False,
    ) -> bytes:
        """Return DER, good where nothing is said."""
        issuer = name(issuer) if isinstance(issuer, str) else issuer
        builder = self.builder(subject or name(""), key or self.ek_key, issuer, until, serial)
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
        builder = builder.add_extension(used_for or usage(key_agreement=True), critical=True)
        if extended:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([x509.ObjectIdentifier(extended)]), critical=False
            )
        shown = [x509.DirectoryName(device(model=model))] if names is None else list(names)
        if shown:
            builder = builder.add_extension(x509.SubjectAlternativeName(shown), critical=True)
        for extension, critical in more:
            builder = builder.add_extension(extension, critical)
        der = builder.sign(signer or self.issuer_key, hashes.SHA256()).public_bytes(DER)
        return by_sha1(der, signer or self.issuer_key) if sha1 else der

    def crl(
        self,
        *revoked: int,
        issuer: str = "issuer",
        key: Key | None = None,
        since: datetime.datetime = NOW - DAY,
        until: datetime.datetime | None = NOW + 30 * DAY,
        more: Sequence[Extension] = (),
        sha1: bool = False,
    ) -> x509.CertificateRevocationList:
        """Return the issuer's list."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(name(issuer)).last_update(since)
        builder = builder.next_update(until or NOW + 3650 * DAY)
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - 2 * DAY)
            builder = builder.add_revoked_certificate(entry.build())
        for extension, critical in more:
            builder = builder.add_extension(extension, critical)
        made = builder.sign(key or self.issuer_key, hashes.SHA256())
        return (
            x509.load_der_x509_crl(by_sha1(made.public_bytes(DER), key or self.issuer_key)) if sha1 else made
        )

    def check(
        self,
        certificate: bytes,
        roots: Sequence[x509.Certificate] | Trust | None = None,
        *,
        chain: bytes = b"",
        allowed: Sequence[str] = (),
        now: datetime.datetime = NOW,
        hardware_only: bool = False,
    ) -> EkTrust:
        """Check as the controller does."""
        known = [self.issuer, self.root] if roots is None else roots
        return check_identity(
            self.ek_public,
            certificate,
            known,
            allowed,
            now.timestamp(),
            ek_chain=chain,
            hardware_only=hardware_only,
        )

    def bent(self, bend: Callable[[bytes], bytes], *, key: Key | None = None, **what: object) -> bytes:
        """Return an EK certificate whose signed part was bent, signed again over the bent bytes."""
        der = self.ek_certificate(**what)  # type: ignore[arg-type]
        outer = Tlv.read(der)
        tbs, algorithm, _ = outer.children()
        changed = bend(tbs.whole)
        signature = (key or self.issuer_key).sign(changed, ec.ECDSA(hashes.SHA256()))  # type: ignore[arg-type, call-arg]
        return tlv(0x30, changed + algorithm.whole + tlv(0x03, b"\0" + signature))


class Tlv:
    """One DER value; enough to bend certificates with."""

    def __init__(self, tag: int, content: bytes, whole: bytes) -> None:
        self.tag, self.content, self.whole = tag, content, whole

    @classmethod
    def read(cls, data: bytes, at: int = 0) -> Tlv:
        size, head = data[at + 1], 2
        if size & 0x80:
            head += size & 0x7F
            size = int.from_bytes(data[at + 2 : at + head], "big")
        return cls(data[at], data[at + head : at + head + size], data[at : at + head + size])

    def children(self) -> list[Tlv]:
        found: list[Tlv] = []
        at = 0
        while at < len(self.content):
            found.append(Tlv.read(self.content, at))
            at += len(found[-1].whole)
        return found


def tlv(tag: int, content: bytes) -> bytes:
    """Return a DER value."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def replaced(place: int, new: Callable[[Tlv], bytes]) -> Callable[[bytes], bytes]:
    """Return a bend that replaces one field of the signed part: 1 serial number, 3 issuer, 5 subject, 7 extensions."""

    def bend(tbs: bytes) -> bytes:
        fields = Tlv.read(tbs).children()
        return tlv(0x30, b"".join(new(f) if n == place else f.whole for n, f in enumerate(fields)))

    return bend


_ECDSA_SHA256 = tlv(0x06, bytes.fromhex("2a8648ce3d040302"))
_ECDSA_SHA1 = tlv(0x06, bytes.fromhex("2a8648ce3d0401"))


def by_sha1(der: bytes, key: Key) -> bytes:
    """Return a certificate or list signed anew, as was done before 2016: libraries do not make such any more."""
    fields = Tlv.read(Tlv.read(der).children()[0].whole).children()
    plain = tlv(0x30, _ECDSA_SHA1)
    tbs = tlv(0x30, b"".join(plain if f.whole == tlv(0x30, _ECDSA_SHA256) else f.whole for f in fields))
    with tempfile.NamedTemporaryFile() as file:
        pkcs8 = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        file.write(pkcs8)
        file.flush()
        signature = subprocess.run(
            ["openssl", "dgst", "-sha1", "-sign", file.name], input=tbs, capture_output=True, check=True
        ).stdout
    return tlv(0x30, tbs + plain + tlv(0x03, b"\0" + signature))


def openssl_takes(
    folder: Path,
    leaf: bytes,
    roots: Sequence[x509.Certificate],
    untrusted: Sequence[x509.Certificate] = (),
    *,
    crls: Sequence[x509.CertificateRevocationList] = (),
    at: datetime.datetime = NOW,
) -> bool:
    """Ask the independent witness about the same path (at the security level that refuses SHA-1 and short RSA keys)."""
    (folder / "leaf.der").write_bytes(leaf)
    (folder / "roots.pem").write_bytes(b"".join(c.public_bytes(PEM) for c in roots))
    (folder / "untrusted.pem").write_bytes(b"".join(c.public_bytes(PEM) for c in untrusted))
    command = ["openssl", "verify", "-auth_level", "2", "-attime", str(int(at.timestamp()))]
    command += ["-no-CApath", "-no-CAstore", "-CAfile", "roots.pem"]
    if untrusted:
        command += ["-untrusted", "untrusted.pem"]
    if crls:
        (folder / "crls.pem").write_bytes(b"".join(c.public_bytes(PEM) for c in crls))
        command += ["-crl_check", "-CRLfile", "crls.pem"]
    done = subprocess.run([*command, "leaf.der"], cwd=folder, capture_output=True, text=True)
    return done.returncode == 0

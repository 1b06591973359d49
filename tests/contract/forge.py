"""Quotes made to order: well signed, and wrong in exactly one place. Plus the recorded cases of `tests/vectors`."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from contract import tpm
from contract.binding import QUOTED_PCRS
from contract.quote import AttestationKey, Counters, VerifiedQuote, verify_quote

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
CASES = ("good-rsa", "secureboot-on", "cmdline-changed", "binary-changed")
EK_ATTRIBUTES = 0x000300B2
AK_ATTRIBUTES = 0x00050472
EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
QUALIFYING = hashlib.sha256(b"what was asked").digest()
PCRS = {pcr: hashlib.sha256(bytes([pcr])).digest() for pcr in sorted(QUOTED_PCRS)}
WANTED = QUOTED_PCRS
_CURVES = {256: (ec.SECP256R1(), 3, 0x0B, hashes.SHA256()), 384: (ec.SECP384R1(), 4, 0x0C, hashes.SHA384())}


def sized(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def rsa_public(
    key: rsa.RSAPrivateKey, attributes: int, parameters: bytes, policy: bytes = b"", *, exponent: int = 0
) -> bytes:
    """Return TPM2B_PUBLIC; `parameters` are symmetric and scheme."""
    bits = key.key_size
    modulus = key.public_key().public_numbers().n.to_bytes(bits // 8, "big")
    body = struct.pack(">HHI", 1, 0x0B, attributes) + sized(policy) + parameters
    return sized(body + struct.pack(">HI", bits, exponent) + sized(modulus))


def ecc_public(
    key: ec.EllipticCurvePrivateKey, attributes: int, parameters: bytes, policy: bytes = b""
) -> bytes:
    """Return TPM2B_PUBLIC; `parameters` are symmetric and scheme."""
    point, size = key.public_key().public_numbers(), key.key_size // 8
    body = struct.pack(">HHI", 0x23, 0x0B, attributes) + sized(policy) + parameters
    body += struct.pack(">HH", _CURVES[key.key_size][1], 0x10)
    return sized(body + sized(point.x.to_bytes(size, "big")) + sized(point.y.to_bytes(size, "big")))


STORAGE = struct.pack(">HHHH", 6, 128, 0x43, 0x10)
RSASSA_SHA256 = struct.pack(">HHH", 0x10, 0x14, 0x0B)


class Forger:
    """An AK in the test's own hands, under an EK; signs whatever it is given."""

    def __init__(self, kind: str = "rsa2048") -> None:
        self.ek_key = ec.generate_private_key(ec.SECP256R1())
        self.ek_public = ecc_public(self.ek_key, EK_ATTRIBUTES, STORAGE, EK_POLICY)
        bits = int(kind[3:])
        self.key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
        if kind.startswith("rsa"):
            self.key = rsa.generate_private_key(65537, bits)
            self.hash_id, self.hash = 0x0B, hashes.SHA256()
            self.ak_public = rsa_public(self.key, AK_ATTRIBUTES, RSASSA_SHA256)
        else:
            curve, _, self.hash_id, self.hash = _CURVES[bits]
            self.key = ec.generate_private_key(curve)
            scheme = struct.pack(">HHH", 0x10, 0x18, self.hash_id)
            self.ak_public = ecc_public(self.key, AK_ATTRIBUTES, scheme)
        self.attestation_key = AttestationKey.from_public(self.ak_public, self.ek_public)

    def attest(
        self,
        *,
        magic: int = 0xFF544347,
        kind: int = 0x8018,
        signer: bytes | None = None,
        extra: bytes = QUALIFYING,
        counters: Counters | None = None,
        safe: int | None = None,
        selections: bytes | None = None,
        digest: bytes | None = None,
        pcrs: dict[int, bytes] | None = None,
    ) -> bytes:
        """Return TPMS_ATTEST, good where nothing is said."""
        shown = PCRS if pcrs is None else pcrs
        at = counters or COUNTERS
        if selections is None:
            selections = one_selection(shown)
        if digest is None:
            values = b"".join(shown[pcr] for pcr in sorted(shown))
            digest = hashlib.new(tpm.HASH_NAMES[self.hash_id], values).digest()
        return (
            struct.pack(">IH", magic, kind)
            + sized(self.attestation_key.qualified_name if signer is None else signer)
            + sized(extra)
            + struct.pack(">QII", at.clock, at.reset, at.restart)
            + struct.pack(">BQ", at.safe if safe is None else safe, at.firmware_version)
            + selections
            + sized(digest)
        )

    def sign(self, attest: bytes) -> bytes:
        """Return TPMT_SIGNATURE."""
        if isinstance(self.key, rsa.RSAPrivateKey):
            raw = self.key.sign(attest, padding.PKCS1v15(), self.hash)
            return struct.pack(">HH", 0x14, self.hash_id) + sized(raw)
        r, s = decode_dss_signature(self.key.sign(attest, ec.ECDSA(self.hash)))
        return self.ecdsa(r, s)

    def ecdsa(self, r: int, s: int, *, size: int | None = None) -> bytes:
        """Return TPMT_SIGNATURE of these numbers."""
        size = size or self.key.key_size // 8
        numbers = sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))
        return struct.pack(">HH", 0x18, self.hash_id) + numbers

    def verify(
        self,
        attest: bytes,
        *,
        signature: bytes | None = None,
        extra: bytes = QUALIFYING,
        pcrs: dict[int, bytes] | None = None,
        wanted: frozenset[int] = WANTED,
        previous: Counters | None = None,
    ) -> VerifiedQuote:
        """Verify as the controller does; signed well where no signature is given."""
        return verify_quote(
            self.attestation_key,
            attest,
            self.sign(attest) if signature is None else signature,
            qualifying_data=extra,
            pcrs=PCRS if pcrs is None else pcrs,
            wanted_pcrs=wanted,
            previous=previous,
        )


COUNTERS = Counters(reset=7, restart=2, clock=123456, safe=True, firmware_version=2**64 - 1)


def selection(bits: bytes, bank: int = 0x0B) -> bytes:
    """Return one TPMS_PCR_SELECTION."""
    return struct.pack(">HB", bank, len(bits)) + bits


def one_selection(pcrs: dict[int, bytes], bank: int = 0x0B) -> bytes:
    """Return a TPML_PCR_SELECTION of one bank."""
    bits = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
    return struct.pack(">I", 1) + selection(bits, bank)


class Case:
    """One recorded boot of a real guest (see its README)."""

    def __init__(self, name: str) -> None:
        self.folder = VECTORS / name
        self.nonce = bytes.fromhex((self.folder / "nonce.hex").read_text())
        sha256 = (self.folder / "pcrs.txt").read_text().partition("sha256:")[2].partition("sha384:")[0]
        found = re.findall(r"(\d+)\s*: 0x([0-9A-F]{64})", sha256)
        self.all_pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in found}
        numbers = (self.folder / "selection.txt").read_text().strip().partition(":")[2]
        self.wanted = frozenset(map(int, numbers.split(",")))
        self.pcrs = {pcr: self.all_pcrs[pcr] for pcr in self.wanted}

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def roots(self) -> list[x509.Certificate]:
        """Return the CA's certificates, root and issuer."""
        return x509.load_pem_x509_certificates(self.read("ca-root.pem") + self.read("ca-issuer.pem"))

    def quote(self, previous: Counters | None = None) -> VerifiedQuote:
        """Verify the recorded quote."""
        return verify_quote(
            AttestationKey.from_public(self.read("ak.tpm2b"), self.read("ek.tpm2b")),
            self.read("quote.attest"),
            self.read("quote.sig"),
            qualifying_data=self.nonce,
            pcrs=self.pcrs,
            wanted_pcrs=self.wanted,
            previous=previous,
        )

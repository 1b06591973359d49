"""TPM 2.0 structures, parsed from bytes with exact lengths, and the names computed over them.

Parses TPM2B_PUBLIC (RSA-2048, RSA-3072, NIST P-256, NIST P-384), TPMT_SIGNATURE (RSASSA and ECDSA) and
computes object names. It refuses everything else: other key types, trailing bytes, lengths that do not fit.
It decides nothing about trust and talks to no TPM. Clauses are those of the TPM 2.0 Library specification,
Part 1 (Architecture) and Part 2 (Structures), version 1.59.
"""

from __future__ import annotations

import hashlib
from struct import Struct
from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from msgspec import Struct as Record

from contract.errors import Rejected

ALG_RSA: Final = 0x0001
ALG_SHA1: Final = 0x0004
ALG_AES: Final = 0x0006
ALG_SHA256: Final = 0x000B
ALG_SHA384: Final = 0x000C
ALG_SHA512: Final = 0x000D
ALG_NULL: Final = 0x0010
ALG_RSASSA: Final = 0x0014
ALG_RSAES: Final = 0x0015
ALG_RSAPSS: Final = 0x0016
ALG_OAEP: Final = 0x0017
ALG_ECDSA: Final = 0x0018
ALG_ECDH: Final = 0x0019
ALG_ECDAA: Final = 0x001A
ALG_ECC: Final = 0x0023
ALG_CFB: Final = 0x0043
CURVE_P256: Final = 0x0003
CURVE_P384: Final = 0x0004
RH_ENDORSEMENT: Final = 0x4000000B

# TPMA_OBJECT (Part 2, 8.3.2).
FIXED_TPM: Final = 1 << 1
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18
# Bits 0, 3, 8, 9, 12 to 15 and 20 to 31 are reserved and shall be zero.
_RESERVED_ATTRIBUTES: Final = 0xFFF0F309

MAX_PUBLIC_BYTES: Final = 1024
DEFAULT_EXPONENT: Final = 65537

HASH_NAMES: Final = {ALG_SHA1: "sha1", ALG_SHA256: "sha256", ALG_SHA384: "sha384", ALG_SHA512: "sha512"}
HASH_SIZES: Final = {ALG_SHA1: 20, ALG_SHA256: 32, ALG_SHA384: 48, ALG_SHA512: 64}
NAME_ALGORITHMS: Final = frozenset({ALG_SHA256, ALG_SHA384, ALG_SHA512})
HASHES: Final[dict[int, hashes.HashAlgorithm]] = {
    ALG_SHA1: hashes.SHA1(),  # noqa: S303  (OAEP of old keys only; never accepted for a signature)
    ALG_SHA256: hashes.SHA256(),
    ALG_SHA384: hashes.SHA384(),
    ALG_SHA512: hashes.SHA512(),
}
CURVES: Final[dict[int, ec.EllipticCurve]] = {CURVE_P256: ec.SECP256R1(), CURVE_P384: ec.SECP384R1()}
CURVE_BYTES: Final = {CURVE_P256: 32, CURVE_P384: 48}
_RSA_BITS: Final = frozenset({2048, 3072})

_U16 = Struct(">H")
_U32 = Struct(">I")

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class Public(Record, frozen=True, kw_only=True):
    """One parsed TPMT_PUBLIC. Well formed, but worth no trust by itself."""

    type: int
    """ALG_RSA or ALG_ECC."""
    name_algorithm: int
    attributes: int
    """TPMA_OBJECT."""
    auth_policy: bytes
    symmetric: tuple[int, int, int] | None
    """Algorithm, key bits and mode of a storage key; None for TPM_ALG_NULL."""
    scheme: int
    scheme_hash: int
    """TPM_ALG_NULL when the scheme has no hash."""
    bits: int
    """RSA modulus bits; for ECC the bits of a coordinate."""
    curve: int
    """TPM_ECC_CURVE, or 0 for RSA."""
    key: PublicKey
    """The public key itself, loaded once. The point is on its curve."""
    name: bytes
    """nameAlg || H(TPMT_PUBLIC)."""

    @property
    def algorithm(self) -> str:
        """Return "rsa2048", "rsa3072", "ecc256" or "ecc384"."""
        return f"{'rsa' if self.type == ALG_RSA else 'ecc'}{self.bits}"

    @property
    def spki(self) -> bytes:
        """Return the key as SubjectPublicKeyInfo DER."""
        return self.key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )


class _Cursor:
    """Reads forward, never past the end; every failure is Rejected with `code`."""

    __slots__ = ("at", "code", "data")

    def __init__(self, untrusted: bytes, code: str) -> None:
        self.data = untrusted
        self.at = 0
        self.code = code

    def fail(self, why: str) -> Rejected:
        return Rejected(self.code, f"at byte {self.at}: {why}")

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise self.fail(f"{size} bytes wanted, {len(self.data) - self.at} left")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def sized(self, most: int) -> bytes:
        """Read a TPM2B of at most `most` bytes."""
        size = self.u16()
        if size > most:
            raise self.fail(f"size {size}, at most {most}")
        return self.take(size)

    def end(self) -> None:
        if self.at != len(self.data):
            raise self.fail(f"{len(self.data) - self.at} bytes too many")


def parse_public(untrusted: bytes) -> Public:
    """Parse a TPM2B_PUBLIC (Part 2, 12.2.5). Raises Rejected `tpm.public`."""
    if len(untrusted) > MAX_PUBLIC_BYTES:
        raise Rejected("tpm.public", f"{len(untrusted)} bytes, at most {MAX_PUBLIC_BYTES}")
    cursor = _Cursor(untrusted, "tpm.public")
    if cursor.u16() != len(untrusted) - 2:
        raise cursor.fail("size field does not fit the structure")
    kind = cursor.u16()
    name_algorithm = cursor.u16()
    if name_algorithm not in NAME_ALGORITHMS:
        raise cursor.fail(f"name algorithm {name_algorithm:#06x} is not SHA-256, SHA-384 or SHA-512")
    attributes = cursor.u32()
    if attributes & _RESERVED_ATTRIBUTES:
        raise cursor.fail(f"reserved attribute bits set: {attributes:#010x}")
    auth_policy = cursor.sized(64)
    if len(auth_policy) not in (0, HASH_SIZES[name_algorithm]):
        raise cursor.fail(f"policy digest of {len(auth_policy)} bytes does not fit the name algorithm")
    if kind not in (ALG_RSA, ALG_ECC):
        raise cursor.fail(f"key type {kind:#06x} is neither RSA nor ECC")
    symmetric = _symmetric(cursor)
    scheme, scheme_hash = _scheme(cursor, kind)
    bits, curve, key = _rsa(cursor) if kind == ALG_RSA else _ecc(cursor)
    cursor.end()
    return Public(
        type=kind,
        name_algorithm=name_algorithm,
        attributes=attributes,
        auth_policy=auth_policy,
        symmetric=symmetric,
        scheme=scheme,
        scheme_hash=scheme_hash,
        bits=bits,
        curve=curve,
        key=key,
        name=_U16.pack(name_algorithm) + digest(name_algorithm, untrusted[2:]),
    )


def _symmetric(cursor: _Cursor) -> tuple[int, int, int] | None:
    """Read TPMT_SYM_DEF_OBJECT (Part 2, 11.1.7): AES-CFB or nothing."""
    algorithm = cursor.u16()
    if algorithm == ALG_NULL:
        return None
    bits, mode = cursor.u16(), cursor.u16()
    if algorithm != ALG_AES or bits not in (128, 192, 256) or mode != ALG_CFB:
        raise cursor.fail(f"symmetric algorithm {algorithm:#06x}/{bits}/{mode:#06x} is not AES-CFB")
    return algorithm, bits, mode


def _scheme(cursor: _Cursor, kind: int) -> tuple[int, int]:
    """Read TPMT_RSA_SCHEME or TPMT_ECC_SCHEME (Part 2, 11.2.4.2 and 11.2.5.6)."""
    scheme = cursor.u16()
    if scheme == ALG_NULL or (kind == ALG_RSA and scheme == ALG_RSAES):
        return scheme, ALG_NULL
    with_hash = (ALG_RSASSA, ALG_RSAPSS, ALG_OAEP) if kind == ALG_RSA else (ALG_ECDSA, ALG_ECDH)
    if scheme not in with_hash:
        raise cursor.fail(f"scheme {scheme:#06x} does not fit the key type")
    scheme_hash = cursor.u16()
    if scheme_hash not in HASH_SIZES:
        raise cursor.fail(f"scheme hash {scheme_hash:#06x} is unknown")
    return scheme, scheme_hash


def _rsa(cursor: _Cursor) -> tuple[int, int, PublicKey]:
    bits = cursor.u16()
    exponent = cursor.u32()
    if bits not in _RSA_BITS:
        raise cursor.fail(f"RSA of {bits} bits is neither 2048 nor 3072")
    if exponent not in (0, DEFAULT_EXPONENT):
        raise cursor.fail(f"RSA exponent {exponent} is not the default")
    modulus = cursor.sized(bits // 8)
    if len(modulus) != bits // 8 or not modulus[0] & 0x80 or not modulus[-1] & 1:
        raise cursor.fail("RSA modulus does not have its size, or is even")
    return bits, 0, rsa.RSAPublicNumbers(DEFAULT_EXPONENT, int.from_bytes(modulus, "big")).public_key()


def _ecc(cursor: _Cursor) -> tuple[int, int, PublicKey]:
    curve = cursor.u16()
    if curve not in CURVES:
        raise cursor.fail(f"curve {curve:#06x} is neither P-256 nor P-384")
    kdf = cursor.u16()
    if kdf != ALG_NULL:
        raise cursor.fail(f"key derivation scheme {kdf:#06x} is not TPM_ALG_NULL")
    size = CURVE_BYTES[curve]
    # Some TPMs strip leading zeros of a coordinate, so shorter is allowed and longer never.
    x, y = cursor.sized(size), cursor.sized(size)
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), CURVES[curve])
    try:
        return size * 8, curve, numbers.public_key()
    except ValueError:
        raise cursor.fail("the point is not on its curve") from None


def digest(algorithm: int, data: bytes) -> bytes:
    """Return the digest of `data` by a TPM_ALG_ID of HASH_SIZES."""
    return hashlib.new(HASH_NAMES[algorithm], data, usedforsecurity=False).digest()


def name_of(public: bytes) -> bytes:
    """Return the Name of a TPM2B_PUBLIC: nameAlg || H(TPMT_PUBLIC) (Part 1, 16). Raises Rejected `tpm.public`."""
    return parse_public(public).name


def qualified_name(ek: Public, ak: Public) -> bytes:
    """Return the Qualified Name of an AK that is a child of an EK primary (Part 1, 26.5).

    QN(EK) = nameAlg || H(TPM_RH_ENDORSEMENT || Name(EK)); QN(AK) = nameAlg || H(QN(EK) || Name(AK)). Computed from
    the public areas, never taken from the node.
    """
    of_ek = _U16.pack(ek.name_algorithm) + digest(ek.name_algorithm, _U32.pack(RH_ENDORSEMENT) + ek.name)
    return _U16.pack(ak.name_algorithm) + digest(ak.name_algorithm, of_ek + ak.name)


_SIGNATURE_HEAD = Struct(">HHH")


def rsassa_signature(untrusted: bytes, *, hash_algorithm: int, size: int) -> bytes:
    """Return the bytes inside a TPMT_SIGNATURE of RSASSA with this hash, exactly `size` long (Part 2, 11.3.4).

    Raises Rejected `quote.signature-scheme` or `quote.signature-length`.
    """
    if len(untrusted) < 6:
        raise Rejected("quote.signature-length", f"{len(untrusted)} bytes are no TPMT_SIGNATURE")
    algorithm, used_hash, length = _SIGNATURE_HEAD.unpack_from(untrusted)
    if algorithm != ALG_RSASSA or used_hash != hash_algorithm:
        raise _other_scheme(algorithm, used_hash, ALG_RSASSA, hash_algorithm)
    if length != size or len(untrusted) != 6 + size:
        raise Rejected(
            "quote.signature-length", f"size field {length} in {len(untrusted)} bytes, key has {size}"
        )
    return untrusted[6:]


def ecdsa_signature(untrusted: bytes, *, hash_algorithm: int, size: int) -> tuple[int, int]:
    """Return r and s of a TPMT_SIGNATURE of ECDSA with this hash; each 1 to `size` bytes and not zero (11.3.2).

    Raises Rejected `quote.signature-scheme` or `quote.signature-length`.
    """
    if len(untrusted) < 6:
        raise Rejected("quote.signature-length", f"{len(untrusted)} bytes are no TPMT_SIGNATURE")
    algorithm, used_hash, r_size = _SIGNATURE_HEAD.unpack_from(untrusted)
    if algorithm != ALG_ECDSA or used_hash != hash_algorithm:
        raise _other_scheme(algorithm, used_hash, ALG_ECDSA, hash_algorithm)
    s_at = 8 + r_size
    s_size = int.from_bytes(untrusted[s_at - 2 : s_at], "big")
    if not (0 < r_size <= size and 0 < s_size <= size and len(untrusted) == s_at + s_size):
        raise Rejected("quote.signature-length", f"r of {r_size}, s of {s_size} in {len(untrusted)} bytes")
    r = int.from_bytes(untrusted[6 : s_at - 2], "big")
    s = int.from_bytes(untrusted[s_at:], "big")
    if not r or not s:
        raise Rejected("quote.signature-length", "r or s is zero")
    return r, s


def _other_scheme(algorithm: int, used_hash: int, wanted: int, wanted_hash: int) -> Rejected:
    return Rejected(
        "quote.signature-scheme",
        f"signed by {algorithm:#06x} with {used_hash:#06x}, enrolled {wanted:#06x} with {wanted_hash:#06x}",
    )

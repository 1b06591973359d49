"""Signatures of single files, as IMA measures them: the extended attribute `security.ima`.

Source: Linux, security/integrity/integrity.h (`struct signature_v2_hdr`), digsig_asymmetric.c; ima-evm-utils. Version 2
is over the file's digest, version 3 over `struct ima_file_id` (type, algorithm, digest). A signature counts only by a key
that the policy holds; the key id in the header finds it and proves nothing.
"""

from __future__ import annotations

import hashlib
from struct import Struct
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

DIGSIG: Final = 0x03  # EVM_IMA_XATTR_DIGSIG
VERITY_DIGSIG: Final = 0x06  # IMA_VERITY_DIGSIG
MIN_RSA_BITS: Final = 2048
_HEAD = Struct(">BBBIH")  # type, version, hash algorithm, key id, length
# enum hash_algo (include/uapi/linux/hash_info.h); SHA-1 and older are not taken.
_HASHES: Final[dict[int, tuple[bytes, hashes.HashAlgorithm]]] = {
    4: (b"sha256", hashes.SHA256()),
    5: (b"sha384", hashes.SHA384()),
    6: (b"sha512", hashes.SHA512()),
}

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class Signer(NamedTuple):
    """A key whose signature on a file is enough."""

    name: str
    key_id: int
    """The last four bytes of the subject key identifier."""
    key: PublicKey


def load_signer(name: str, pem: str) -> Signer:
    """Return the signer of a PEM public key, or of a certificate (whose dates are not asked). Raises ValueError."""
    identifier = None
    try:
        if "BEGIN CERTIFICATE" in pem:
            certificate = x509.load_pem_x509_certificate(pem.encode())
            key: object = certificate.public_key()
            found = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
            identifier = found.value.digest
        else:
            key = serialization.load_pem_public_key(pem.encode())
    except x509.ExtensionNotFound:
        pass
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"signer {name!r}: no PEM public key or certificate: {error}") from None
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise ValueError(f"signer {name!r}: RSA with {key.key_size} bits, at least {MIN_RSA_BITS}")
        return Signer(name, int.from_bytes((identifier or _identifier(key))[-4:], "big"), key)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return Signer(name, int.from_bytes((identifier or _identifier(key))[-4:], "big"), key)
    raise ValueError(f"signer {name!r}: expected an RSA or EC key")


def _identifier(key: PublicKey) -> bytes:
    """Return SHA-1 of the key bits (RFC 5280, clause 4.2.1.2, method 1), as ima-evm-utils makes it."""
    form = serialization.PublicFormat
    if isinstance(key, rsa.RSAPublicKey):
        bits = key.public_bytes(serialization.Encoding.DER, form.PKCS1)
    else:
        bits = key.public_bytes(serialization.Encoding.X962, form.UncompressedPoint)
    return hashlib.sha1(bits, usedforsecurity=False).digest()


def key_id_of(signature: bytes) -> int | None:
    """Return the key id that a signature names, or None if it has no such header."""
    return _HEAD.unpack_from(signature)[3] if len(signature) >= _HEAD.size else None


def verifies(signer: Signer, signature: bytes, kind: bytes, algorithm: bytes, digest: bytes) -> bool:
    """Say whether `signature` is this signer's on a file of this digest.

    1. the header is of a known form and its length is exact
    2. its algorithm is the one of the measured digest, at least SHA-256
    3. its type and version are those of a file's digest (2) or of an fs-verity digest (3)
    4. the key's signature verifies
    """
    if len(signature) < _HEAD.size:
        return False
    form, version, algorithm_id, _, length = _HEAD.unpack_from(signature)
    raw = signature[_HEAD.size :]
    known = _HASHES.get(algorithm_id)
    if len(raw) != length or known is None or known[0] != algorithm:  # 1, 2
        return False
    if (form, version, kind) == (DIGSIG, 2, b"ima"):  # 3
        signed = digest
    elif (form, version, kind) == (VERITY_DIGSIG, 3, b"verity"):
        signed = hashlib.new(algorithm.decode(), bytes([form, algorithm_id]) + digest).digest()
    else:
        return False
    try:  # 4
        if isinstance(signer.key, rsa.RSAPublicKey):
            signer.key.verify(raw, signed, padding.PKCS1v15(), Prehashed(known[1]))
        else:
            signer.key.verify(raw, signed, ec.ECDSA(Prehashed(known[1])))
    except (InvalidSignature, ValueError):
        return False
    return True

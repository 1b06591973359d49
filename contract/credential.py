"""TPM2_MakeCredential in Python: a secret that only the TPM with both EK and AK can open.

Encrypts for an RSA-2048, RSA-3072, P-256 or P-384 EK. It needs no TPM and keeps nothing. Relies on `cryptography` for
OAEP, ECDH and AES. Clauses are those of the TPM 2.0 Library specification, Part 1, version 1.59.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from contract import tpm
from contract.errors import Rejected

_IDENTITY: Final = b"IDENTITY\0"


def make_credential(
    ek_public: bytes,
    ak_name: bytes,
    secret: bytes,
    *,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> tuple[bytes, bytes]:
    """Return (TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET) for TPM2_ActivateCredential (Part 1, 24).

    `ek_public` is TPM2B_PUBLIC, `ak_name` the Name computed from the AK's public area, `secret` 1 to 32 bytes.
    Raises Rejected `tpm.public`, `ek.attributes` (no AES-CFB in the EK). ValueError for a wrong secret is our own fault.
    """
    ek = tpm.parse_public(ek_public)
    if ek.symmetric is None:
        raise Rejected("ek.attributes", "the EK names no symmetric algorithm, so it is no storage key")
    size = tpm.HASH_SIZES[ek.name_algorithm]
    if not 0 < len(secret) <= 32:
        raise ValueError(f"a secret of {len(secret)} bytes")
    seed, encrypted_secret = _rsa_seed(ek, random(size)) if ek.type == tpm.ALG_RSA else _ecc_seed(ek)
    # 24.5: the symmetric key is bound to the AK's name, the integrity key to nothing else than the seed.
    key = kdfa(ek.name_algorithm, seed, b"STORAGE", ak_name, b"", bits=ek.symmetric[1])
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    integrity_key = kdfa(ek.name_algorithm, seed, b"INTEGRITY", b"", b"", bits=size * 8)
    outer = hmac.digest(integrity_key, identity + ak_name, tpm.HASH_NAMES[ek.name_algorithm])
    return _sized(_sized(outer) + identity), _sized(encrypted_secret)


def _sized(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def _rsa_seed(ek: tpm.Public, seed: bytes) -> tuple[bytes, bytes]:
    """Part 1, B.10.4: OAEP with the EK's name algorithm and the label "IDENTITY", zero included."""
    assert isinstance(ek.key, rsa.RSAPublicKey)  # noqa: S101  (for the type checker; parse_public made it)
    algorithm = tpm.HASHES[ek.scheme_hash if ek.scheme == tpm.ALG_OAEP else ek.name_algorithm]
    oaep = padding.OAEP(mgf=padding.MGF1(algorithm), algorithm=algorithm, label=_IDENTITY)
    return seed, ek.key.encrypt(seed, oaep)


def _ecc_seed(ek: tpm.Public) -> tuple[bytes, bytes]:
    """Part 1, C.6.4: one-pass Diffie-Hellman with a key of this moment; the secret is its public point."""
    assert isinstance(ek.key, ec.EllipticCurvePublicKey)  # noqa: S101
    size = tpm.CURVE_BYTES[ek.curve]
    ephemeral = ec.generate_private_key(tpm.CURVES[ek.curve])
    shared_x = ephemeral.exchange(ec.ECDH(), ek.key)
    point = ephemeral.public_key().public_numbers()
    ours, ours_y = point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big")
    theirs = ek.key.public_numbers().x.to_bytes(size, "big")
    bits = tpm.HASH_SIZES[ek.name_algorithm] * 8
    seed = kdfe(ek.name_algorithm, shared_x, b"IDENTITY", ours, theirs, bits=bits)
    return seed, _sized(ours) + _sized(ours_y)


def kdfa(algorithm: int, key: bytes, label: bytes, context_u: bytes, context_v: bytes, *, bits: int) -> bytes:
    """KDFa (Part 1, 11.4.10.2): SP 800-108 counter mode over HMAC; `bits` is a multiple of 8."""
    fixed = label + b"\0" + context_u + context_v + bits.to_bytes(4, "big")
    out = b""
    counter = 0
    while len(out) < bits // 8:
        counter += 1
        out += hmac.digest(key, counter.to_bytes(4, "big") + fixed, tpm.HASH_NAMES[algorithm])
    return out[: bits // 8]


def kdfe(
    algorithm: int, shared_x: bytes, label: bytes, party_u: bytes, party_v: bytes, *, bits: int
) -> bytes:
    """KDFe (Part 1, 11.4.10.3): SP 800-56A concatenation; coordinates padded to the curve; `bits` a multiple of 8."""
    out = b""
    counter = 0
    while len(out) < bits // 8:
        counter += 1
        out += tpm.digest(
            algorithm, counter.to_bytes(4, "big") + shared_x + label + b"\0" + party_u + party_v
        )
    return out[: bits // 8]

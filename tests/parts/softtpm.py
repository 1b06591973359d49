"""A TPM in a few lines of Python, good enough to be believed: keys, names, quotes, credential activation.

For the fleet simulator only, where two thousand real simulators would not fit. It proves nothing about TPMs (the
tests that do use swtpm); it speaks exactly what a TPM with a P-256 EK (TCG template L-2) and a P-256 AK under it
speaks, or an RSA-2048 AK. TPM 2.0 Library specification, Parts 1 and 2, version 1.59.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from contract.credential import kdfa, kdfe

_SHA256 = 0x000B
_EK_ATTRIBUTES = 0x000300B2
_AK_ATTRIBUTES = 0x00050472
_EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_ENDORSEMENT = (0x4000000B).to_bytes(4, "big")
_FIRMWARE = 0x2023_0801_0000_0000
_RSASSA_SHA256 = struct.pack(">HH", 0x0014, _SHA256)
_ECDSA_SHA256 = struct.pack(">HH", 0x0018, _SHA256)


def _sized(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def _public(key: ec.EllipticCurvePrivateKey, attributes: int, policy: bytes, parameters: bytes) -> bytes:
    point = key.public_key().public_numbers()
    unique = _sized(point.x.to_bytes(32, "big")) + _sized(point.y.to_bytes(32, "big"))
    return struct.pack(">HHI", 0x0023, _SHA256, attributes) + _sized(policy) + parameters + unique


def _rsa_public(key: rsa.RSAPrivateKey) -> bytes:
    """An AK of RSA-2048: no symmetric, RSASSA with SHA-256, exponent 65537."""
    head = struct.pack(">HHI", 0x0001, _SHA256, _AK_ATTRIBUTES) + _sized(b"")
    parameters = struct.pack(">4HI", 0x0010, 0x0014, _SHA256, key.key_size, 0)
    return head + parameters + _sized(key.public_key().public_numbers().n.to_bytes(key.key_size // 8, "big"))


def _name(public: bytes) -> bytes:
    return _SHA256.to_bytes(2, "big") + hashlib.sha256(public).digest()


def _load(scalar: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1())


def new_scalar() -> bytes:
    """Return a new private key as its 32 bytes, easily stored."""
    return ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value.to_bytes(32, "big")


class SoftTpm:
    """EK, AK and counters of one imagined machine."""

    def __init__(
        self, ek: bytes, ak: bytes, *, resets: int = 1, rsa_ak: rsa.RSAPrivateKey | None = None
    ) -> None:
        """`ek` and `ak` are from `new_scalar`; an RSA key takes the place of `ak`."""
        self._ek, self._ak, self._rsa = _load(ek), _load(ak), rsa_ak
        # AES-128-CFB, no scheme, P-256, no KDF / no symmetric, ECDSA with SHA-256, P-256, no KDF.
        ek_area = _public(
            self._ek,
            _EK_ATTRIBUTES,
            _EK_POLICY,
            struct.pack(">6H", 0x0006, 128, 0x0043, 0x0010, 0x0003, 0x0010),
        )
        if rsa_ak is None:
            ak_area = _public(
                self._ak, _AK_ATTRIBUTES, b"", struct.pack(">5H", 0x0010, 0x0018, _SHA256, 0x0003, 0x0010)
            )
        else:
            ak_area = _rsa_public(rsa_ak)
        self.ek_public, self.ak_public = _sized(ek_area), _sized(ak_area)
        self.ak_name = _name(ak_area)
        ek_qualified = _SHA256.to_bytes(2, "big") + hashlib.sha256(_ENDORSEMENT + _name(ek_area)).digest()
        signer = _SHA256.to_bytes(2, "big") + hashlib.sha256(ek_qualified + self.ak_name).digest()
        self._head = b"\xffTCG" + struct.pack(">H", 0x8018) + _sized(signer)
        self._resets = resets

    def quote(
        self, qualifying_data: bytes, pcrs: Mapping[int, bytes], *, clock_ms: int
    ) -> tuple[bytes, bytes]:
        """Return (TPMS_ATTEST, TPMT_SIGNATURE) over all of `pcrs` (SHA-256 bank)."""
        bits = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
        digest = hashlib.sha256(b"".join(pcrs[pcr] for pcr in sorted(pcrs))).digest()
        attest = (
            self._head
            + _sized(qualifying_data)
            + struct.pack(">QIIBQ", clock_ms, self._resets, 0, 1, _FIRMWARE)
            + struct.pack(">IHB", 1, _SHA256, 3)
            + bits
            + _sized(digest)
        )
        if self._rsa is not None:
            return attest, _RSASSA_SHA256 + _sized(
                self._rsa.sign(attest, padding.PKCS1v15(), hashes.SHA256())
            )
        r, s = decode_dss_signature(self._ak.sign(attest, ec.ECDSA(hashes.SHA256())))
        signature = _ECDSA_SHA256 + _sized(r.to_bytes(32, "big")) + _sized(s.to_bytes(32, "big"))
        return attest, signature

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """TPM2_ActivateCredential (Part 1, 24 and C.6.4). Raises ValueError when it is for another TPM or AK."""
        x, y = encrypted_secret[4:36], encrypted_secret[38:70]
        point = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
        ).public_key()
        shared = self._ek.exchange(ec.ECDH(), point)
        own_x = self._ek.public_key().public_numbers().x.to_bytes(32, "big")
        seed = kdfe(_SHA256, shared, b"IDENTITY", x, own_x, bits=256)
        integrity, identity = credential_blob[4:36], credential_blob[36:]
        key = kdfa(_SHA256, seed, b"INTEGRITY", b"", b"", bits=256)
        if not hmac.compare_digest(hmac.digest(key, identity + self.ak_name, "sha256"), integrity):
            raise ValueError("the credential is for another TPM")
        storage = kdfa(_SHA256, seed, b"STORAGE", self.ak_name, b"", bits=128)
        opened = Cipher(algorithms.AES(storage), CFB(bytes(16))).decryptor().update(identity)
        return opened[2:]

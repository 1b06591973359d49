"""Keys in escrow, sealed to trust: who can open what, and the bytes it rests on. Pure.

A key is sealed where it is put in (on the admin's machine), under two halves that never meet before they are needed:

    seed    32 random bytes in a credential that only the TPM with this EK and this AK activates (contract.credential)
    share   32 random bytes that the controller keeps, and gives out only after a good attestation in this boot
    key     AES-256-GCM under HKDF-SHA-256(seed || share), bound to node and name

So a stolen database opens nothing (no seed), a stolen disk opens nothing (neither), a stolen machine with its TPM opens
nothing as long as it cannot attest (no share). The share travels encrypted to an X25519 key that the agent made for
this one request and that its quote covers (ReportBody.keys_wanted): a recorded answer is of no use, not even to the same
TPM, for the private half was in memory only.

Refuses to decide who may have a key: that is `controller.fleet.escrow`'s. What was tampered with does not open
(`escrow.seal`, `escrow.share`); which part it was is not told.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from contract import tpm
from contract.credential import make_credential
from contract.enrolment import check_ak, check_ek
from contract.errors import Rejected
from contract.messages import MAX_KEY_BYTES, KeyReleased, KeyWanted, SealedKey

SEED_BYTES: Final = 32
SHARE_BYTES: Final = 32
_TAG_BYTES: Final = 16
_NONCE: Final = bytes(12)
"""Every AES key here is derived from fresh secrets and encrypts once."""
_SEAL_LABEL: Final = b"ringfence escrow seal 1\0"
_SHARE_LABEL: Final = b"ringfence escrow share 1\0"


def seal(
    key: bytes,
    *,
    node: str,
    name: str,
    ek_public: bytes,
    ak_public: bytes,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> tuple[SealedKey, bytes]:
    """Seal a key of 1 to MAX_KEY_BYTES bytes; return it with the share for the controller.

    `ek_public` and `ak_public` are TPM2B_PUBLIC. Raises Rejected `escrow.size`, `tpm.public`, `ak.*`, `ek.attributes`.
    """
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise Rejected("escrow.size", f"a key of {len(key)} bytes, wanted 1 to {MAX_KEY_BYTES}")
    check_ek(ek_public)
    check_ak(ak_public)
    seed, share = random(SEED_BYTES), random(SHARE_BYTES)
    blob, secret = make_credential(ek_public, tpm.name_of(ak_public), seed, random=random)
    ciphertext = AESGCM(_seal_key(seed, share, node, name)).encrypt(_NONCE, key, None)
    return SealedKey(credential_blob=blob, encrypted_secret=secret, ciphertext=ciphertext), share


def unseal(sealed: SealedKey, *, seed: bytes, share: bytes, node: str, name: str) -> bytes:
    """Return the key. `seed`: what TPM2_ActivateCredential gave. Raises Rejected `escrow.seal`."""
    try:
        return AESGCM(_seal_key(seed, share, node, name)).decrypt(_NONCE, sealed.ciphertext, None)
    except InvalidTag:
        raise Rejected("escrow.seal", "the key does not open: sealed for another node, name or TPM") from None


def check_sealed(sealed: SealedKey, share: bytes) -> None:
    """Check what can be checked without the TPM: sizes. Raises Rejected `escrow.size`."""
    if len(sealed.ciphertext) <= _TAG_BYTES or not sealed.credential_blob or not sealed.encrypted_secret:
        raise Rejected("escrow.size", "the sealed key has no content")
    if len(share) != SHARE_BYTES:
        raise Rejected("escrow.size", f"a share of {len(share)} bytes, wanted {SHARE_BYTES}")


def ask(name: str) -> tuple[KeyWanted, X25519PrivateKey]:
    """Make a request and the private key that its answer is for: to be kept in memory, and used once."""
    private = X25519PrivateKey.generate()
    return KeyWanted(name=name, ephemeral=private.public_key().public_bytes_raw()), private


def answer(sealed: SealedKey, share: bytes, wanted: KeyWanted, *, node: str) -> KeyReleased:
    """Encrypt the share for one request. Raises Rejected `escrow.ephemeral` for a key that makes no shared secret."""
    private = X25519PrivateKey.generate()
    ours = private.public_key().public_bytes_raw()
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(wanted.ephemeral))
    except ValueError:  # a point of small order (RFC 7748, clause 6.1)
        raise Rejected("escrow.ephemeral", "the request's key makes no shared secret") from None
    cipher = AESGCM(_share_key(shared, wanted, ours, sealed, node))
    return KeyReleased(
        name=wanted.name, sealed=sealed, ephemeral=ours, share=cipher.encrypt(_NONCE, share, None)
    )


def opened_share(released: KeyReleased, wanted: KeyWanted, private: X25519PrivateKey, *, node: str) -> bytes:
    """Return the share of an answer to this very request. Raises Rejected `escrow.share` for any other."""
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(released.ephemeral))
        cipher = AESGCM(_share_key(shared, wanted, released.ephemeral, released.sealed, node))
        return cipher.decrypt(_NONCE, released.share, None)
    except (InvalidTag, ValueError):
        raise Rejected("escrow.share", "not the answer to this request") from None


def _seal_key(seed: bytes, share: bytes, node: str, name: str) -> bytes:
    return _derived(seed + share, _SEAL_LABEL + _field(node.encode()) + _field(name.encode()))


def _share_key(shared: bytes, wanted: KeyWanted, ours: bytes, sealed: SealedKey, node: str) -> bytes:
    """Both ends derive it from the exchange and from everything that the answer is about."""
    about = (node.encode(), wanted.name.encode(), wanted.ephemeral, ours, *_parts(sealed))
    transcript = hashlib.sha256(b"".join(map(_field, about))).digest()
    return _derived(shared, _SHARE_LABEL + transcript)


def _parts(sealed: SealedKey) -> tuple[bytes, bytes, bytes]:
    return sealed.credential_blob, sealed.encrypted_secret, sealed.ciphertext


def _derived(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret)


def _field(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value

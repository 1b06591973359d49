"""One-time codes by the clock (RFC 6238), and how their secrets are kept. Pure.

SHA-1, six digits and thirty seconds are what every authenticator speaks; a code is good once (clause 5.2) and for one step
before and after. A secret must be read to check a code, so it cannot be hashed: it is sealed with a key from the controller's own
folder, and a copy of the database alone makes no codes.
"""

from __future__ import annotations

import base64
import hmac
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from contract.errors import Rejected

SECRET_BYTES: Final = 20
STEP_S: Final = 30
DIGITS: Final = 6
SKEW_STEPS: Final = 1
_NONCE_BYTES: Final = 12


def new_secret() -> bytes:
    """Return a new secret."""
    return os.urandom(SECRET_BYTES)


def step_of(secret: bytes, untrusted_code: str, now: float, *, after: int) -> int | None:
    """Return the step that a code belongs to, None where it is none: wrong, too old, too early, or not `after` the last one used."""
    found = None
    for step in range(int(now // STEP_S) - SKEW_STEPS, int(now // STEP_S) + SKEW_STEPS + 1):
        right = hmac.compare_digest(_totp(secret).generate(step * STEP_S), untrusted_code.encode())
        if right and step > after:
            found = step
    return found


def uri(secret: bytes, *, user: str, issuer: str) -> str:
    """Return what an authenticator takes (otpauth://)."""
    return _totp(secret).get_provisioning_uri(user, issuer)


def shown(secret: bytes) -> str:
    """Return a secret for typing: base32."""
    return base64.b32encode(secret).decode()


def sealed(key: bytes, user: str, secret: bytes) -> bytes:
    """Return the secret as it is stored: for this user and no other."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, secret, user.encode())


def opened(key: bytes, user: str, stored: bytes) -> bytes:
    """Return a stored secret. Raises Rejected `login.sealed`: the controller's keys are others than when it was stored."""
    try:
        return AESGCM(key).decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], user.encode())
    except InvalidTag:
        raise Rejected(
            "login.sealed", "stored under another key; let somebody who manages people reset the user"
        ) from None


def _totp(secret: bytes) -> TOTP:
    return TOTP(secret, DIGITS, SHA1(), STEP_S)  # noqa: S303  (RFC 6238; not for collision resistance)

"""Passwords: Argon2id (RFC 9106), kept as PHC strings. Pure, slow on purpose: never on the event loop.

Memory and passes are the second choice of RFC 9106, clause 4 (64 MiB, 3); a hash says its own, so that they can be raised. One lane,
not four: with more, OpenSSL's threads wait for each other for ever as soon as two are hashed at once (seen with 4.0), and a
core that is not taken by a stranger's guess is the better use. `matches` takes as long for nobody as for somebody.
Relies on `cryptography`, which lets other threads run meanwhile.
"""

from __future__ import annotations

import os
import unicodedata
from typing import Final

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from contract.errors import Rejected

MEMORY_KIB: Final = 64 * 1024
PASSES: Final = 3
LANES: Final = 1
SALT_BYTES: Final = 16
HASH_BYTES: Final = 32
MIN_CHARS: Final = 12
"""Length is what counts against guessing (NIST SP 800-63B, clause 5.1.1.1); no rule about kinds of characters."""
MAX_CHARS: Final = 256
_NOBODYS: Final = (
    "$argon2id$v=19$m=65536,t=3,p=1$cmluZ2ZlbmNlLW5vYm9keQ$wcNV61TEBA/kbElO6aq1L+hNaqIwRpFMPQ+db28Rinc"
)
"""Of random bytes that nobody kept: no password has it."""


def check_new(password: str, *, user: str) -> None:
    """Raise Rejected `password.short`, `password.long`, `password.name`."""
    if len(password) < MIN_CHARS:
        raise Rejected("password.short", f"{len(password)} characters, at least {MIN_CHARS}")
    if len(password) > MAX_CHARS:
        raise Rejected("password.long", f"more than {MAX_CHARS} characters")
    if user in password.lower() and len(password) < MIN_CHARS + len(user):
        raise Rejected("password.name", "it is little more than the user's name")


def hashed(password: str) -> str:
    """Return what is kept of a password. Takes about 0.1 s and 64 MiB."""
    kdf = Argon2id(
        salt=os.urandom(SALT_BYTES),
        length=HASH_BYTES,
        iterations=PASSES,
        lanes=LANES,
        memory_cost=MEMORY_KIB,
    )
    return kdf.derive_phc_encoded(_encoded(password))


def matches(password: str, kept: str | None) -> bool:
    """Say whether a password is the one that is kept. None: nobody's, which takes as long and is never right."""
    if kept is not None and f",p={LANES}$" not in kept:
        return False  # none of ours
    try:
        Argon2id.verify_phc_encoded(_encoded(password[: MAX_CHARS + 1]), kept or _NOBODYS)
    except InvalidKey:
        return False
    return kept is not None


def _encoded(password: str) -> bytes:
    # Keyboards differ in how they compose a letter (RFC 8265, clause 4.2.1).
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")

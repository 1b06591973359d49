"""Acting once for each Idempotency-Key of an account, and answering again with what was answered.

1. A key means one request for a day: with another one it is refused (`idempotency.other`).
2. Whoever comes with it first holds it. The act and the mark that it was done are one transaction, which fails for whoever does not
   hold the key any more: so nothing is done twice, with however many controllers and at whatever moment one of them dies.
3. Whoever comes meanwhile waits for the answer. A holder from which nothing was heard for a while, and of which nothing was stored, is
   replaced; one that had acted and died before its answer was kept leaves `idempotency.unanswered`: it is said, never done again.
4. The answer may hold a secret that is shown once. It is sealed under the controller's own key and the Idempotency-Key, of which only
   a digest is stored: the database alone opens none, and neither do the controller's keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import zlib
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from contract.errors import Rejected
from controller.records import Record
from controller.store import Duplicate, Store, Transaction
from controller.store import answers as rows

KEPT_S: Final = 24 * 3600.0
HOLD_S: Final = 60.0
"""A holder that has not acted after so long is replaced; none works longer (the longest waits 30 s for a drill)."""
WAIT_S: Final = 40.0
MAX_KEYS: Final = 10_000
"""Of one account in a day."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Of the answers to them, as they are stored."""
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_NONCE_BYTES: Final = 12


class Asked(Record, frozen=True, kw_only=True):
    """A request with a key."""

    account: str
    key: str
    request_sha256: bytes

    @property
    def key_sha256(self) -> bytes:
        """What is stored of the key."""
        return hashlib.sha256(self.key.encode()).digest()


class Held(Record, frozen=True, kw_only=True):
    """A request that is to be carried out now, by this holder."""

    asked: Asked
    holder: str


class Once:
    """Keys over one store."""

    def __init__(self, store: Store, key: bytes, *, hold_s: float = HOLD_S, wait_s: float = WAIT_S) -> None:
        """`key` seals answers: 32 bytes that every controller over this database has."""
        self._store = store
        self._key = key
        self._hold_s = hold_s
        self._wait_s = wait_s

    async def begin(self, asked: Asked, *, now: float) -> Held | bytes:
        """Return the right to carry it out, or what was answered. Raises Rejected `idempotency.other`, `idempotency.pending`,
        `idempotency.unanswered`, `idempotency.full`."""
        loop = asyncio.get_running_loop()
        begun, pause = loop.time(), 0.02
        while True:
            held = Held(asked=asked, holder=secrets.token_hex(8))
            at = now + loop.time() - begun
            try:
                found = await self._store.run(lambda tx, held=held, at=at: self._begin(tx, held, at))  # type: ignore[misc]
            except Duplicate:  # somebody came with it in this very moment
                continue
            if found is not None:
                return found
            if loop.time() - begun > self._wait_s:
                raise Rejected("idempotency.pending", "the same request is still being carried out")
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _begin(self, tx: Transaction, held: Held, now: float) -> Held | bytes | None:
        asked = held.asked
        row = rows.load(tx, asked.account, asked.key_sha256)
        if row is not None and row.begun_at <= now - KEPT_S:
            rows.remove(tx, asked.account, asked.key_sha256)
            row = None
        if row is None:
            keys, size = rows.used(tx, asked.account)
            if keys >= MAX_KEYS or size >= MAX_BYTES:
                raise Rejected("idempotency.full", f"{keys} keys with {size} bytes of answers in a day")
            rows.add(
                tx,
                asked.account,
                asked.key_sha256,
                request_sha256=asked.request_sha256,
                holder=held.holder,
                now=now,
            )
            return held
        if row.request_sha256 != asked.request_sha256:  # 1
            raise Rejected("idempotency.other", "this key was used for another request; take a new one")
        if row.answer is not None:
            return self._opened(asked, row.answer)
        if now - row.held_at <= self._hold_s:
            return None
        if row.acted:  # 3
            raise _unanswered()
        rows.take_over(tx, asked.account, asked.key_sha256, held.holder, now)
        return held

    def mark(self, tx: Transaction, held: Held) -> None:
        """Say that this transaction is of the act. Raises Rejected `idempotency.pending` where it is held no more (2)."""
        if not rows.mark_acted(tx, held.asked.account, held.asked.key_sha256, held.holder):
            raise Rejected(
                "idempotency.pending", "it took too long, and is carried out by another request now"
            )

    async def keep(self, held: Held, answer: bytes) -> None:
        """Keep the answer for whoever comes with the key again."""
        stored = self._sealed(held.asked, answer)
        asked = held.asked
        await self._store.run(lambda tx: rows.keep(tx, asked.account, asked.key_sha256, held.holder, stored))

    async def drop(self, held: Held) -> None:
        """Forget what has failed before anything of it was stored: it may be tried again."""
        asked = held.asked
        await self._store.run(lambda tx: rows.remove_idle(tx, asked.account, asked.key_sha256, held.holder))

    async def sweep(self, *, now: float) -> int:
        """Forget keys that are older than a day; returns how many. Call every hour."""
        gone = 0
        while some := await self._store.run(lambda tx: rows.sweep(tx, now - KEPT_S)):
            gone += some
        return gone

    def _cipher(self, asked: Asked) -> AESGCM:
        kdf = HKDF(SHA256(), 32, salt=asked.key.encode(), info=b"ringfence answers 1")
        return AESGCM(kdf.derive(self._key))

    def _sealed(self, asked: Asked, answer: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        bound = asked.account.encode() + asked.request_sha256
        return nonce + self._cipher(asked).encrypt(nonce, zlib.compress(answer), bound)

    def _opened(self, asked: Asked, stored: bytes) -> bytes:
        bound = asked.account.encode() + asked.request_sha256
        try:
            packed = self._cipher(asked).decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], bound)
        except InvalidTag:  # kept under another key: from before a restore, perhaps
            raise _unanswered() from None
        return zlib.decompressobj().decompress(packed, MAX_ANSWER_BYTES)


def _unanswered() -> Rejected:
    return Rejected(
        "idempotency.unanswered",
        "it may have been done, and its answer is lost; look before you ask for it with a new key",
    )

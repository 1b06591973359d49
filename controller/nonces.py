"""Nonces of one session: 256 random bits, used once, for a short time. They never leave the session they were made in."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from contract.errors import Rejected
from contract.messages import NONCE_BYTES


@dataclass(frozen=True, slots=True)
class _Nonce:
    value: bytes
    expires: float


class Nonces:
    """A few outstanding: the newest, and those that a Challenge replaced while a report was on its way.

    A person accepts a boot while a report is judged, and the log is asked for besides: that makes four within a moment.
    """

    __slots__ = ("_outstanding",)

    MAX_OUTSTANDING = 8

    def __init__(self) -> None:
        """Nothing outstanding: a report now would be refused."""
        self._outstanding: list[_Nonce] = []

    def issue(self, now: float, lifetime_s: float) -> bytes:
        """Make a nonce that is good for `lifetime_s` and for one report."""
        nonce = _Nonce(secrets.token_bytes(NONCE_BYTES), now + lifetime_s)
        self._outstanding = [*self._outstanding[1 - self.MAX_OUTSTANDING :], nonce]
        return nonce.value

    def candidates(self) -> tuple[bytes, ...]:
        """Return the outstanding nonces, oldest first."""
        return tuple(nonce.value for nonce in self._outstanding)

    def consume(self, value: bytes | None, now: float) -> bytes:
        """Take a nonce, and every older one, out of use before anything is verified with it; None takes all.

        Raises Rejected `nonce.none` (nothing outstanding: used already), `nonce.expired`.
        """
        if not self._outstanding:
            raise Rejected("nonce.none", "no nonce is outstanding: each is good for one report")
        values = self.candidates()
        index = values.index(value) if value is not None else len(values) - 1
        taken = self._outstanding[index]
        self._outstanding = self._outstanding[index + 1 :]
        if now >= taken.expires:
            raise Rejected("nonce.expired", f"{now - taken.expires:.0f} s ago")
        return taken.value

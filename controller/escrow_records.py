"""What the API takes and shows of keys in escrow. No secret is in what is shown."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from contract.escrow import SHARE_BYTES
from contract.messages import SealedKey
from controller.records import EkTrust, Record, Strict

LeastTier = Literal["affirming", "warning"]
KeyState = Literal["held", "stale", "revoked"]


class NewKey(Strict, frozen=True, kw_only=True):
    """A key, sealed where it was put in: the plaintext never comes here."""

    sealed: SealedKey
    share: Annotated[
        bytes,
        Meta(
            min_length=SHARE_BYTES,
            max_length=SHARE_BYTES,
            extra_json_schema={"pattern": "^[A-Za-z0-9+/]{43}=$"},
        ),
    ]
    """Base64 in JSON."""
    ak_name: Annotated[str, Meta(pattern=r"\A[0-9a-f]{4,136}\Z")]
    """Of the AK it is sealed to."""
    least_tier: LeastTier = "affirming"
    reason: Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"\S")]


class SealingView(Record, frozen=True, kw_only=True):
    """What a key for this node must be sealed to."""

    node: str
    ek_public: bytes
    """TPM2B_PUBLIC; base64 in JSON, as below."""
    ak_public: bytes
    ek_id: str
    """SHA-256 hex of the EK's SubjectPublicKeyInfo: compare it with what is known of the machine."""
    ak_name: str
    ek_trust: EkTrust


class KeyView(Record, frozen=True, kw_only=True):
    """A key in escrow."""

    node: str
    name: str
    version: int
    least_tier: LeastTier
    state: KeyState
    """`stale`: the node has another attestation key now, which cannot open it."""
    put_at: float
    put_by: str
    releases: int
    released_at: float | None
    revoked_at: float | None
    revoked_by: str | None

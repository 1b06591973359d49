"""What the API shows of stored evidence and of results. Immutable structs without behaviour, as in `controller.records`."""

from __future__ import annotations

from typing import Literal

from contract.messages import Tier
from contract.result import Area
from controller.records import Record


class EvidenceView(Record, frozen=True, kw_only=True):
    """One stored piece of evidence. `id` is the cursor."""

    id: int
    node: str
    kind: Literal["boot", "change", "refused"]
    """The first attestation of a boot, a change of verdict in it, or evidence that was refused."""
    at: float
    until: float | None
    """When the next verdict took its place; None while it is the newest."""
    tier: Tier
    tiers: dict[Area, Tier]
    findings: list[str]
    """Codes."""
    quote_sha256: str
    policy_sha256: str
    event_log_sha256: str


class BundleView(Record, frozen=True, kw_only=True):
    """One piece of evidence as files."""

    id: int
    node: str
    files: dict[str, bytes]
    """Name to content (base64 in JSON): `contract.bundle.NAMES` and no others."""


class ResultView(Record, frozen=True, kw_only=True):
    """A signed result."""

    node: str
    result: str
    """EAR as JWT (JWS compact, ES256)."""


class ResultKeyView(Record, frozen=True, kw_only=True):
    """The public key of results."""

    jwk: dict[str, str]
    pem: str

"""What people decide beforehand: what a site demands, when it is isolated, and how much of that needs no person.

Immutable; unknown keys are refused. The defaults are the strict ones. Durations in seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Trigger = Literal["untrusted"]
Reenrol = Literal["ask", "same-ek"]


class DriftingNodes(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Isolate the site when so many of its nodes drift, each in its own way, within so many seconds."""

    count: Annotated[int, Meta(ge=2, le=1000)]
    window_s: Annotated[float, Meta(gt=0, le=86400)]


class SitePolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a site demands and when it is isolated. The defaults are the strict ones."""

    require_tpm: bool = True
    """Only EKs proved by certificate or by allow-list may enrol."""
    require_hardware_tpm: bool = False
    """Only TPMs whose certificate says that they are a chip of their own; a person may vouch for one that has no usable
    certificate by listing its EK, and for none whose certificate says otherwise."""
    reenrol: Reenrol = "ask"
    """A known TPM that comes with new keys (its disk was replaced): ask a person once, or let it in by itself."""
    isolate_node_on: tuple[Trigger, ...] = ("untrusted",)
    isolate_site_on: tuple[Trigger, ...] = ("untrusted",)
    drifting_nodes: DriftingNodes | None = None
    grants_need_two_persons: bool = True
    """Who asked for access must not approve it."""
    rollouts_need_two_persons: bool = True
    """Who asked for a rollout that touches this site must not approve it."""
    interval_s: Annotated[float, Meta(gt=0, le=86400)] = 60.0
    """How often a node reports when nothing happens."""


class BreakerLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most that may be isolated without a person, within any window (DESIGN.md, 6)."""

    nodes: Annotated[int, Meta(ge=0)] = 3
    fleet_fraction: Annotated[float, Meta(ge=0, le=1)] = 0.02
    sites: Annotated[int, Meta(ge=0)] = 1
    window_s: Annotated[float, Meta(gt=0)] = 600.0
    same_value_nodes: Annotated[int, Meta(ge=1)] = 2
    """So many nodes with one and the same new value may be isolated; from the next on it is an unannounced update."""


class EvidenceLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much evidence is kept of each node; the newest of each kind stays whatever its age."""

    boots: Annotated[int, Meta(ge=1, le=10_000)] = 16
    """First attestations of a boot."""
    changes: Annotated[int, Meta(ge=1, le=10_000)] = 32
    """Changes of the verdict."""
    refused: Annotated[int, Meta(ge=1, le=10_000)] = 8
    """Evidence that did not verify."""
    days: Annotated[float, Meta(gt=0, le=36_500)] = 1095.0

    def of(self, kind: Literal["boot", "change", "refused"]) -> int:
        """Return how many of a kind."""
        return {"boot": self.boots, "change": self.changes, "refused": self.refused}[kind]


class FleetSettings(Struct, frozen=True, kw_only=True):
    """What the use cases need to know besides the store."""

    breaker: BreakerLimits = BreakerLimits()
    evidence: EvidenceLimits = EvidenceLimits()
    inventory_days: float = 365.0
    """How long it is kept what a node consisted of once."""
    directive_lifetime_s: float = 300.0
    enrolment_lifetime_s: float = 7 * 86400.0
    enrolment_retry_s: float = 5.0
    max_open_enrolments: int = 1000
    protected_addresses: tuple[str, ...] = ()
    """Never fenced, whoever claims them: the controller's own."""
    started: float = 0.0
    """When this controller came up: silence before that is our own."""

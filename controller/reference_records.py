"""What the API shows and takes of reference values and of boots. Immutable structs, as in `controller.records`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from contract.bootreference import Reference
from contract.claims import Claims
from contract.references import MAX_SETS, ReferenceSet
from controller.records import Record, Strict

Reason = Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"\S")]


class ReferenceView(Record, frozen=True, kw_only=True):
    """An announced set. `id` is the cursor."""

    id: int
    reference: ReferenceSet
    reason: str
    created_at: float
    created_by: str
    withdrawn_at: float | None
    withdrawn_by: str | None


class Announcement(Strict, frozen=True, kw_only=True):
    """Sets to be announced, each on its own, and why."""

    references: Annotated[list[ReferenceSet], Meta(min_length=1, max_length=MAX_SETS)]
    reason: Reason


class BootView(Record, frozen=True, kw_only=True):
    """The boot that a node is held to, and what the log of its last boot claims."""

    node: str
    accepted_at: float
    is_last: bool
    """The last boot is the accepted one: its claims may be learned from."""
    reference: Reference
    claims: Claims


class Accepted(Record, frozen=True, kw_only=True):
    """What accepting an incident did."""

    affected: list[str]
    """Nodes whose boot is accepted now."""
    left: dict[str, str]
    """Nodes of the incident that were left as they are, and why."""
    references: list[ReferenceView]
    """The new values, announced where these nodes stand, so that nobody is asked about the next one."""

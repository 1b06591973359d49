"""What the API takes and shows of response rules, suppressions and drills. Immutable structs, as in `controller.records`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from controller.records import Record, Strict
from controller.response import MAX_RULES_BYTES

MAX_SUPPRESSION_S = 30 * 86400.0
ReasonText = Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"\S")]


class ResponseView(Record, frozen=True, kw_only=True):
    """One version of the response rules. Version 0: none were ever set, and each site's own policy decides."""

    version: int
    document: str
    """TOML, as it was given."""
    set_at: float
    set_by: str
    reason: str
    notes: list[str] = msgspec.field(default_factory=list)
    """Where the rules and the policies of sites pull in different directions."""


class NewResponses(Strict, frozen=True, kw_only=True):
    """The whole document, which takes the place of version `replaces`."""

    document: Annotated[str, Meta(max_length=MAX_RULES_BYTES)]
    replaces: Annotated[int, Meta(ge=0, le=2**53)]
    reason: ReasonText


class Undo(Strict, frozen=True, kw_only=True):
    """Put an earlier version in force again, in place of version `replaces`."""

    replaces: Annotated[int, Meta(ge=1, le=2**53)]
    to: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    """Default: the one before."""
    reason: ReasonText


class NewSuppression(Strict, frozen=True, kw_only=True):
    """What is to be kept quiet, on which nodes, until when."""

    selector: Annotated[str, Meta(min_length=1, max_length=2048)]
    kind: Annotated[str, Meta(max_length=128, pattern=r"^[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*(\.\*)?$")]
    """Of an incident (`drift`, `update`, `untrusted`), or the code of a finding (`boot.pcr`, `drift.firewall`, `boot.*`)."""
    until: float
    acts: bool = False
    """Nothing is isolated or fenced by itself for it either."""
    reason: ReasonText


class SuppressionView(Record, frozen=True, kw_only=True):
    """A suppression, in force or ended."""

    id: int
    selector: str
    kind: str
    acts: bool
    until: float
    reason: str
    created_at: float
    created_by: str
    ended_at: float | None = None
    ended_by: str | None = None

"""What the API takes and shows of grants and of break-glass codes. Immutable structs, as in `controller.records`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from contract.grant import MAX_CODES, Access, Moment, Why, Words
from contract.messages import Name
from controller.records import Record, Strict

Reason = Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"\S")]
GrantState = Literal["requested", "approved", "open", "refused", "ended", "revoked", "lapsed"]
"""`lapsed`: nobody approved it in time."""


class GrantRequest(Strict, frozen=True, kw_only=True):
    """Who is to have access to what, and why."""

    node: Name
    who: Words
    company: Words
    evidence: Words
    """Contract or training reference."""
    access: Access
    starts: Moment | None = None
    """Absent: now."""
    ends: Moment
    reason: Why


class GrantContent(Record, frozen=True, kw_only=True):
    """What of a grant is only read together with it."""

    who: str
    company: str
    evidence: str
    access: Access
    reason: str


class GrantUse(Record, frozen=True, kw_only=True):
    """What the node has told of a grant, by its clock."""

    opened_at: float | None = None
    closed_at: float | None = None
    closed_why: str = ""
    refused: str = ""
    """Code and detail, where its baseline does not allow it."""
    used_at: float | None = None
    """First use."""
    sources: list[str] = field(default_factory=list)
    bytes_carried: int = 0


class GrantView(Record, frozen=True, kw_only=True):
    """A grant. `id` is the cursor."""

    id: int
    node: str
    site: str
    state: GrantState
    content: GrantContent
    starts: float
    ends: float
    requested_at: float
    requested_by: str
    approved_at: float | None
    approved_by: str | None
    revoked_at: float | None
    revoked_by: str | None
    revoke_reason: str | None
    use: GrantUse


class GrantChange(Record, frozen=True, kw_only=True):
    """A grant after an act, and the nodes whose directive changed."""

    grant: GrantView
    affected: list[str]


class NewCodes(Strict, frozen=True, kw_only=True):
    """How many break-glass codes a node gets, and why."""

    count: Annotated[int, Meta(ge=1, le=MAX_CODES)] = 5
    reason: Reason


class CodeView(Record, frozen=True, kw_only=True):
    """A break-glass code, without the code."""

    id: int
    node: str
    created_at: float
    created_by: str
    used_at: float | None
    """By the node's clock."""
    revoked_at: float | None
    revoked_by: str | None


class IssuedCode(Record, frozen=True, kw_only=True):
    """A code, shown this once."""

    id: int
    code: str


class IssuedCodes(Record, frozen=True, kw_only=True):
    """Codes for one node. Nobody can show them again."""

    node: str
    items: list[IssuedCode]


class CodeList(Record, frozen=True, kw_only=True):
    """All codes of a node, oldest first."""

    items: list[CodeView]

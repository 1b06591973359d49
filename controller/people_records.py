"""What the API shows and takes of people and of tokens. Immutable structs, as in `controller.records`; no secret is in a view."""

from __future__ import annotations

from controller.permissions import Right
from controller.records import Record


class ApiTokenView(Record, frozen=True, kw_only=True):
    """A token, without the token."""

    name: str
    rights: tuple[Right, ...]
    user: str | None
    """Whose it is; None: a service account, which belongs to nobody."""
    created_at: float
    created_by: str | None
    """None: before this was kept."""
    expires_at: float | None
    used_at: float | None
    """To the minute."""
    revoked_at: float | None
    revoked_by: str | None

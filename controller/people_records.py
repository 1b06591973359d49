"""What the API shows and takes of people and of tokens. Immutable structs, as in `controller.records`; no secret is in a view."""

from __future__ import annotations

from typing import Literal

from msgspec import field

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


UserState = Literal["invited", "active", "disabled"]


class UserView(Record, frozen=True, kw_only=True):
    """A person who logs in here."""

    name: str
    rights: tuple[Right, ...]
    state: UserState
    """`invited`: has yet to choose a password."""
    wait_s: float
    """So long nobody can log in under this name, after wrong tries."""
    recovery_codes: int
    """Unused ones."""
    created_at: float
    created_by: str
    last_login_at: float | None


class SetUp(Record, frozen=True, kw_only=True):
    """What an authenticator must be given. It is shown until the first code has come back, and then never again."""

    secret: str
    """Base32."""
    uri: str
    """otpauth://, as QR codes hold it."""


class OidcOffer(Record, frozen=True, kw_only=True):
    """Where a person goes who is vouched for by an issuer, and what must come back."""

    issuer: str
    client_id: str
    authorization_endpoint: str
    token_endpoint: str
    scope: str
    nonce: str
    """Goes to the issuer and comes back inside the ID token."""
    ca: str
    """PEM of the authority that the issuer's certificate comes from; empty: one that the system trusts."""


class LoggedIn(Record, frozen=True, kw_only=True):
    """A session."""

    token: str
    name: str
    rights: tuple[Right, ...]
    expires_at: float
    recovery_codes: list[str] = field(default_factory=list)
    """With the first login: each is good once in place of a code. They are shown this once."""

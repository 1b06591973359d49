"""Which controller the command speaks to, and with what token: one file, readable by its owner alone.

The environment wins over the file: RINGFENCE_URL, RINGFENCE_CA (a PEM file), RINGFENCE_TOKEN; RINGFENCE_PROFILE
names another file. A profile that others can read is refused: the token in it would be theirs too.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
from msgspec import Struct

from contract.errors import Rejected


class Profile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and as whom."""

    url: str
    ca: str
    """PEM of the authority that the controller's certificate must come from."""
    token: str


def profile_path() -> Path:
    """Return where the profile is kept."""
    named = os.environ.get("RINGFENCE_PROFILE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "ringfence" / "profile.json"


def load_profile() -> Profile:
    """Return the profile in force. Raises Rejected `login.none`, `login.exposed`, `login.malformed`."""
    url, ca, token = (os.environ.get(f"RINGFENCE_{name}", "") for name in ("URL", "CA", "TOKEN"))
    if url and ca and token:
        return Profile(url=url, ca=_read_ca(Path(ca)), token=token)
    path = profile_path()
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError:
        raise Rejected("login.none", "log in first: ringfence login --url URL --ca FILE") from None
    if stat.S_IMODE(mode) & 0o077:
        raise Rejected("login.exposed", f"others may read {path}; chmod 600 it and revoke its token")
    try:
        kept = msgspec.json.decode(content, type=Profile)
    except msgspec.DecodeError as error:
        raise Rejected("login.malformed", f"{path}: {error}; log in again") from None
    return Profile(url=url or kept.url, ca=_read_ca(Path(ca)) if ca else kept.ca, token=token or kept.token)


def save_profile(profile: Profile) -> Path:
    """Write the profile for its owner alone and return where. Raises OSError."""
    path = profile_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(profile))
    fresh.replace(path)
    return path


def _read_ca(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected("login.ca", f"{path}: not a readable PEM file ({type(error).__name__})") from None

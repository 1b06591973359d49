"""Who is logged in, as systemd-logind keeps it: one small file for each session, of a person or of a command over SSH.

Written by root alone (`pam_systemd`). Refuses to guess: what is no such file is no session. Read through `agent.host.Host`.
"""

from __future__ import annotations

from typing import NamedTuple

from agent.host import Host, printable

FOLDER = "/run/systemd/sessions"
_MAX_BYTES = 16_384


class Session(NamedTuple):
    """One session."""

    uid: int
    host: str
    """Where it comes from, as the service that let it in says; empty for here."""
    service: str
    """`sshd`, `login`."""

    def describe(self) -> str:
        """Return it in words."""
        return f"from {self.host or 'here'} by {self.service or 'an unknown service'}"


def sessions(host: Host) -> list[Session]:
    """Return every session; none where nobody keeps them. Raises OSError for a folder that cannot be read."""
    found = []
    try:
        entries = host.tree.entries(FOLDER)
    except FileNotFoundError:
        return []
    for entry in entries:
        if entry.kind != "file" or not entry.name.isalnum():
            continue  # "3.ref": the pipe that holds session 3
        try:
            text = host.read_file(f"{FOLDER}/{entry.name}", max_bytes=_MAX_BYTES)
        except OSError:
            continue  # it has just ended
        session = parsed(text.decode("utf-8", "replace"))
        if session is not None:
            found.append(session)
    return found


def parsed(text: str) -> Session | None:
    """Return the session of one file; None where it names no user. Pure."""
    told = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    uid = told.get("UID", "")
    if not (uid.isascii() and uid.isdigit() and len(uid) <= 10):
        return None
    return Session(
        int(uid), printable(told.get("REMOTE_HOST", ""))[:256], printable(told.get("SERVICE", ""))[:64]
    )

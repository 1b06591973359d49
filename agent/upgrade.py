"""The order for another release of the agent, and what became of it: the folder `upgrade` in the state folder.

The agent writes an order and does nothing more: its own unit may not write /usr, and an upgrade must outlive it. systemd starts
`/usr/lib/ringfence-agent/upgrade` for it (ringfence-upgrade.path), a shell script that brings the package manager to do it, waits
for the new agent to be up, and writes the outcome. Files in the folder, lines of text each:

    order       the version, and `newer` or `older`; taken by the script's first step
    running     the version, while it is brought
    result      the version, the one before, `done`, `failed`, `back` or `lost`, and what there is to say

Refuses to believe a result that it cannot read: that is none. Relies on: a folder that root alone can write.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal, NamedTuple, cast, get_args

from agent.proc import printable
from agent.store import replace_file

FOLDER: Final = "var/lib/ringfence/upgrade"
"""Below the root. Also in packaging/systemd/ringfence-upgrade.path and packaging/os/agent/upgrade."""
_MAX_BYTES: Final = 4096

Outcome = Literal["done", "failed", "back", "lost"]
"""`failed`: the package manager did not do it. `back`: the new agent did not come up, the one before runs again. `lost`: neither does."""


class Result(NamedTuple):
    """What became of the last order."""

    version: str
    before: str
    outcome: Outcome
    said: str
    at: float
    """Seconds since 1970."""


class Upgrade:
    """The folder of one node, below a root."""

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER

    def order(self, version: str, *, older: bool) -> None:
        """Ask for a release; one that waits still is replaced. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._folder / "order", f"{version}\n{'older' if older else 'newer'}\n".encode())

    def withdraw(self) -> None:
        """Take back an order that nobody has taken yet. Raises OSError."""
        (self._folder / "order").unlink(missing_ok=True)

    def ordered_at(self) -> float | None:
        """Return since when an order waits to be taken. Raises OSError."""
        return self._changed_at("order")

    def running_since(self) -> float | None:
        """Return since when one is carried out, if that was not cut off by the machine's end. Raises OSError."""
        return self._changed_at("running")

    def result(self) -> Result | None:
        """Return the last outcome. Raises OSError."""
        try:
            with (self._folder / "result").open("rb") as file:
                at, untrusted = os.fstat(file.fileno()).st_mtime, file.read(_MAX_BYTES)
        except FileNotFoundError:
            return None
        lines = [printable(line) for line in untrusted.decode("utf-8", "replace").split("\n")]
        if len(lines) < 4 or lines[2] not in get_args(Outcome):
            return None
        version, before, outcome, said = lines[:4]
        return Result(version, before, cast(Outcome, outcome), said, at)

    def _changed_at(self, name: str) -> float | None:
        try:
            return (self._folder / name).stat().st_mtime
        except FileNotFoundError:
            return None

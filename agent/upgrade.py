"""The order for another release of the agent, and what became of it.

The agent writes an order and does nothing more: its own unit may not write /usr, and an upgrade must outlive it. systemd starts
`/usr/lib/ringfence-agent/upgrade` for it (ringfence-upgrade.path), a shell script that brings the package manager to do it, waits
for the new agent to be up, and writes the outcome, in a folder of its own: what root works with must not be the agent's to change.
Lines of text each:

    order       in the state folder: the version, and `newer` or `older`; taken by the script's first step
    running     the version, while it is brought
    result      the version, the one before, `done`, `failed`, `back` or `lost`, and what there is to say

Refuses to believe a result that it cannot read: that is none. Relies on: OUTCOMES, which root alone can write.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal, NamedTuple, cast, get_args

from agent.proc import printable
from agent.store import replace_file

ORDERS: Final = "var/lib/ringfence/upgrade"
"""Below the root. Also in packaging/systemd/ringfence-upgrade.path and packaging/os/agent/upgrade. Until 0.1.0 outcomes were here as well."""
OUTCOMES: Final = "var/lib/ringfence-upgrade"
"""Below the root. Also in packaging/systemd/ringfence-upgrade.service and packaging/os/agent/upgrade."""
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
    """The folders of one node, below a root."""

    def __init__(self, root: Path) -> None:
        self._folder = root / ORDERS
        self._outcomes = root / OUTCOMES

    def order(self, version: str, *, older: bool) -> None:
        """Ask for a release; one that waits still is replaced. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._folder / "order", f"{version}\n{'older' if older else 'newer'}\n".encode())

    def withdraw(self) -> None:
        """Take back an order that nobody has taken yet. Raises OSError."""
        (self._folder / "order").unlink(missing_ok=True)

    def ordered_at(self) -> float | None:
        """Return since when an order waits to be taken. Raises OSError."""
        return _changed_at(self._folder / "order")

    def running_since(self) -> float | None:
        """Return since when one is carried out, if that was not cut off by the machine's end. Raises OSError."""
        return _changed_at(self._outcome("running"))

    def result(self) -> Result | None:
        """Return the last outcome. Raises OSError."""
        try:
            with self._outcome("result").open("rb") as file:
                at, untrusted = os.fstat(file.fileno()).st_mtime, file.read(_MAX_BYTES)
        except FileNotFoundError:
            return None
        lines = [printable(line) for line in untrusted.decode("utf-8", "replace").split("\n")]
        if len(lines) < 4 or lines[2] not in get_args(Outcome):
            return None
        version, before, outcome, said = lines[:4]
        return Result(version, before, cast(Outcome, outcome), said, at)

    def _outcome(self, name: str) -> Path:
        """Return where a file of the script is: one of before this folder was there may have brought this very release."""
        now = self._outcomes / name
        return now if now.exists() else self._folder / name


def _changed_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None

"""Devices that a rule names and that are not there any more: told once, as loudly as the section asks. Not a probe.

Only of those that a rule names: one that is unknown is a drift, and its going ends that. What went while the agent was down is
not known; `required` tells of what must be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from agent.probes import Notice
from contract.messages import Severity, never_more

Removed = Literal["ignore", "tell", "warn"]
MAX_TOLD = 32


class Departures:
    """Of one section."""

    def __init__(self, section: str, removed: Removed) -> None:
        self._section = section
        self._removed = removed
        self._there: dict[str, str] = {}
        self._fresh: list[Notice] = []

    def look(self, there: Mapping[str, str]) -> None:
        """Take note of what is there now: identity, and the device in words. Not to be called where it could not be looked."""
        gone = [said for identity, said in self._there.items() if identity not in there]
        self._there = dict(there)
        if self._removed == "ignore" or not gone:
            return
        severity: Severity = "warning" if self._removed == "warn" else "info"
        for said in gone[:MAX_TOLD]:
            text = never_more(f"{said} is not there any more", 2048)
            self._fresh.append(
                Notice(f"{self._section}.gone", severity, text, {"device": never_more(said, 2048)})
            )
        more = max(0, len(gone) - MAX_TOLD)
        if more:
            text = f"{more} more devices are not there any more"
            self._fresh.append(Notice(f"{self._section}.gone", severity, text, {"more": str(more)}))

    def take(self) -> list[Notice]:
        """Return what is to be told since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

"""Who carries out what a probe wants done: this process, or another beside it (`agent.beside`).

A probe looks in the agent; `settle`, `repair` and `undo` change the machine, and need powers that the agent's unit need not have.
Where the agent runs as a unit of the package, they are the work of `agent.repairing`; everywhere else, and for what the agent may do
itself (`Probe.by_hands`), they happen here.

Refuses: to decide what is repaired. Relies on: the worker thread alone calling.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from agent.budget import Cost
from agent.exhibits import Exhibit, Exhibits
from agent.host import Host
from agent.probes import Probe, SectionBase
from contract.errors import Rejected
from contract.messages import Drift


class Acted(NamedTuple):
    """What came of a repair."""

    error: str = ""
    """Why nothing at all could be done, for people."""
    exhibits: Sequence[Exhibit] = ()
    """What it found and kept."""
    cost: Cost = Cost(0.0, 0)
    untried: Collection[str] = ()
    """Keys for which nothing was tried this time."""


class Hands(Protocol):
    """Carries out. A failure is an answer, never an exception."""

    def greet(self) -> str:
        """Make sure that somebody is there; return why nobody is, for people."""

    def settle(self, probe: Probe[SectionBase], now: float) -> None:
        """Have a probe do what is daily work (`Probe.settle`)."""

    def repair(self, probe: Probe[SectionBase], wrong: Sequence[Drift], now: float) -> Acted:
        """Have a probe mend what it has found wrong."""

    def undo(self, probe: Probe[SectionBase]) -> str:
        """Have a probe whose section is no longer in force put back what it changed; return why it could not, for people."""


class OwnHands:
    """This process does it, and keeps what it finds in `exhibits`, where there are any."""

    def __init__(self, host: Host, exhibits: Exhibits | None = None) -> None:
        self._host = host
        self._exhibits = exhibits

    def greet(self) -> str:
        """Return nothing: this process is there."""
        return ""

    def settle(self, probe: Probe[SectionBase], now: float) -> None:
        """Let the probe do it."""
        probe.settle(now)

    def repair(self, probe: Probe[SectionBase], wrong: Sequence[Drift], now: float) -> Acted:
        """Let the probe do it, and measure what it took."""
        tree, processes = self._host.tree, self._host.processes
        began, written, error = time.thread_time(), self._host.written_bytes(), ""
        outer = tree.before_change, processes.on_end  # a repair lets the firewall be repaired in its midst
        if self._exhibits is not None:
            tree.before_change, processes.on_end = self._exhibits.keep, self._exhibits.keep_process
        try:
            probe.repair(wrong, now)
        except (OSError, Rejected) as failed:
            error = str(failed)
        finally:
            tree.before_change, processes.on_end = outer
        cost = Cost(time.thread_time() - began, max(0, self._host.written_bytes() - written))
        found = self._exhibits.take() if self._exhibits is not None and outer[0] is None else []
        return Acted(error, found, cost)

    def undo(self, probe: Probe[SectionBase]) -> str:
        """Let the probe do it."""
        probe.leave()
        probe.undo()
        return ""

"""Flows are judged again after others have committed to our tables: whoever changed the rules may have let one in as they do.

A foreign rule that says `goto allow`, or an element put into a set of ours, gives its flows the mark of the rules in force, which
outlives the repair (docs/adr/0002). So none keeps it: each is judged with its next packet, and what is allowed goes on.
Refuses nothing. Relies on: `Netfilter.judge_again`; culprits, as the kernel's announcements name them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from agent.firewall.events import Culprit
from agent.firewall.match import is_ours

if TYPE_CHECKING:
    from agent.netfilter import Netfilter


class Crossed:
    """Whether flows are still to be judged again. One thread."""

    def __init__(self) -> None:
        self._due = False

    def heard(self, netfilter: Netfilter, culprits: Iterable[Culprit]) -> None:
        """Note who has committed since the last look; where it finds everything as it was, the next begins with the flows."""
        if any(is_ours(table) for each in culprits for _, table in each.tables):
            self._due = True
            netfilter.wake()

    def settle(self, netfilter: Netfilter, mark: int) -> None:
        """Have flows with the rules' mark judged again, if that is due. What fails is due still."""
        if self._due and not netfilter.outrunning.on:
            with contextlib.suppress(OSError):
                self.judge(netfilter, mark)

    def judge(self, netfilter: Netfilter, mark: int) -> None:
        """Have flows with the rules' mark judged again. Raises OSError."""
        netfilter.judge_again(mark)
        self._due = False

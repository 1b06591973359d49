"""`[ima]`: whether this node can prove what ran on it: the kernel measures, and its log can be read.

Whether what was measured is allowed is for the controller to judge (`contract.ima.follow`), from a quote; nothing here is
taken on the node's word. This probe makes sure that a node whose kernel was started without an IMA policy says so by
name, and repairs nothing: what was not measured since boot cannot be measured afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from agent import probes
from agent.probes import Difference, could_not_look
from contract.errors import Rejected
from contract.imalog import BOOT_AGGREGATE, fields_of, read_record, shown
from contract.imapolicy import ImaPolicy
from contract.messages import Drift

FIRST_LINE_BYTES = 4096
"""The boot aggregate is short; the rest of the log is not read here."""


class Section(ImaPolicy, frozen=True, kw_only=True):
    """`[ima]`: the policy as the controller judges by it."""


class Probe(probes.Probe[Section]):
    """Looks at the beginning of the IMA log."""

    by_hands = False

    def observe(self, now: float) -> list[Drift]:
        """Return a drift if the log cannot be read, or does not begin as a kernel's does."""
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Do nothing: what ran cannot be repaired."""

    def _differences(self) -> Iterator[Difference]:
        wanted = "a log that begins with the boot aggregate"
        try:
            descriptor = self.around.host.open_log(self.around.ima_log)
            try:
                untrusted = os.read(descriptor, FIRST_LINE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            yield could_not_look("log", "the kernel's IMA log", error)
            return
        if not untrusted:
            yield Difference(
                "log", wanted, "nothing measured: started without an IMA policy (ima_policy=tcb)"
            )
            return
        try:
            record = read_record(untrusted, 0, 0)
            name = fields_of(record.template, record.data).name
        except Rejected as fault:
            yield Difference("log", wanted, str(fault))
            return
        if name != BOOT_AGGREGATE:
            yield Difference("log", wanted, f"'{shown(name)}'")

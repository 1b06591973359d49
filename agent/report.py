"""The report's body: what the agent says about the node, written on the worker thread, quoted over by the TPM.

Refuses: more than the wire takes; what does not fit waits for the next report (events) or is counted (drifts).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from agent import VERSION
from agent.firewall.counts import Count
from agent.ima import UNMEASURED, Measured
from agent.loop import Loop
from contract.inventory import Taken
from contract.messages import (
    MAX_DRIFTS_PER_REPORT,
    MAX_DROPPED_PER_REPORT,
    MAX_EVENT_LOG_BYTES,
    MAX_EVENTS_PER_REPORT,
    MAX_PACKAGES_PER_REPORT,
    Drift,
    Dropped,
    KeyWanted,
    PackageChange,
    ReportBody,
)
from contract.wire import encode

_EVENT_BYTES = 160 * 1024
_DRIFT_BYTES = 160 * 1024


class Prepared(NamedTuple):
    """A body with what must be known when it is answered."""

    body: bytes
    number: int
    pending: bytes | None
    """SHA-256 of the pending baseline that it names."""
    healed: int
    """How many healed drifts it carries."""
    event_log: bytes
    event_log_sha256: bytes
    """Empty where there is no log."""
    measured: Measured
    dropped: tuple[Count, ...] = ()
    inventory: Taken | None = None
    """What it names by its SHA-256."""
    events: int = 0
    """How many it carries."""


class Reporter:
    """Numbers and writes reports. On the worker thread only."""

    def __init__(self, loop: Loop, node: str, event_log_path: str) -> None:
        self._loop = loop
        self._node = node
        self._event_log_path = event_log_path
        self._event_log: bytes | None = None
        self._number = 0

    def event_log(self) -> bytes:
        """Return the firmware's log of this boot, b"" where the machine has none. Read once."""
        if self._event_log is None:
            try:
                log = self._loop.host.read_log(self._event_log_path, max_bytes=MAX_EVENT_LOG_BYTES)
            except OSError:
                log = b""
            self._event_log = log
        return self._event_log

    def prepare(
        self,
        now: float,
        measured: Measured = UNMEASURED,
        keys_wanted: Sequence[KeyWanted] = (),
        boot_packages: Sequence[PackageChange] = (),
        inventory: Taken | None = None,
    ) -> Prepared:
        """Write the next report. (worker)"""
        loop = self._loop
        state = loop.hold.state
        self._number = max(self._number + 1, int(now * 1000))
        drifts = [drift for each in loop.machine.drifts.values() for drift in each]
        healed = list(loop.machine.healed)
        dropped = self._dropped()
        event_log = self.event_log()
        log_sha256 = hashlib.sha256(event_log).digest() if event_log else b""
        body = ReportBody(
            node=self._node,
            number=self._number,
            boot_id=loop.host.boot_id(),
            at=now,
            uptime_s=loop.host.uptime_s(),
            agent_version=VERSION,
            posture=loop.stance.posture,
            baseline=state.last_good.ref if state.last_good else None,
            pending=state.pending.ref if state.pending else None,
            directive_number=state.directive_number,
            fenced=list(loop.stance.fenced),
            addresses=loop.host.addresses()[:256],
            drifts=_fitting(drifts, healed, now),
            events=loop.spool.peek(MAX_EVENTS_PER_REPORT, _EVENT_BYTES),
            events_dropped=loop.spool.dropped,
            event_log_sha256=log_sha256,
            ima_offset=measured.offset,
            ima_bytes=measured.available_bytes,
            packages=_packages(measured.packages, boot_packages),
            os_release=loop.host.os_release(),
            keys_wanted=list(keys_wanted),
            dropped=[Dropped(counter=each.name, packets=each.packets, bytes=each.bytes) for each in dropped],
            inventory_sha256=b"" if inventory is None else inventory.sha256,
        )
        pending = state.pending.ref.sha256 if state.pending else None
        said = encode(body)
        return Prepared(
            said,
            self._number,
            pending,
            len(healed),
            event_log,
            log_sha256,
            measured,
            tuple(dropped),
            inventory,
            len(body.events),
        )

    def arrived(self, prepared: Prepared) -> None:
        """Note that the controller has a report: what it dropped is not told again. (worker)"""
        netfilter = self._loop.machine.around.netfilter
        if netfilter is not None and prepared.dropped:
            netfilter.tell_dropped(prepared.dropped)

    def _dropped(self) -> list[Count]:
        netfilter = self._loop.machine.around.netfilter
        return [] if netfilter is None else netfilter.dropped(MAX_DROPPED_PER_REPORT)


def _fitting(drifts: Sequence[Drift], healed: Sequence[Drift], now: float) -> list[Drift]:
    """Return the drifts that a report has room for, and one more that counts the others."""
    shown: list[Drift] = []
    size = 0
    for drift in [*drifts, *healed][: MAX_DRIFTS_PER_REPORT - 1]:
        size += len(drift.wanted) + len(drift.found) + len(drift.culprit) + len(drift.key)
        if size > _DRIFT_BYTES:
            break
        shown.append(drift)
    if len(shown) < len(drifts):
        more = f"{len(drifts) - len(shown)} more that did not fit"
        shown.append(Drift(section="report", key="drifts", wanted="all of them", found=more, since=now))
    return shown


def _packages(measured: Sequence[PackageChange], of_boot: Sequence[PackageChange]) -> list[PackageChange]:
    """Return those that account for measured files, then those of the boot that are not among them."""
    named = {(change.name, change.after) for change in measured}
    others = [change for change in of_boot if (change.name, change.after) not in named]
    return [*measured, *others][:MAX_PACKAGES_PER_REPORT]

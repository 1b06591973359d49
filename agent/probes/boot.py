"""`[boot]`: whether this node can prove how it booted: TPM reachable, firmware log readable, log and PCRs in agreement.

Whether the boot is the right one is for the controller to judge (`contract.boot.judge_boot`), from a quote; nothing
here is taken on the node's word. This probe makes sure that a node which cannot prove itself says so by name, and
repairs nothing: there is nothing in a boot that could be put right afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from agent import probes
from agent.probes import Difference, could_not_look
from agent.tpm import Tpm, TpmBusy, TpmUnavailable
from contract.bootpolicy import BootPolicy
from contract.errors import Rejected
from contract.eventlog import EventLog, explain, parse_event_log
from contract.messages import MAX_EVENT_LOG_BYTES, Drift

PCR_READ_EVERY_S = 60.0
"""A hardware TPM takes tens of milliseconds for this and has better things to do."""
PCR_READ_TIMEOUT_S = 0.2
"""The thread that owns the machine waits no longer: the firewall is its work too."""
BUSY_GRACE_S = 10.0
"""A quote of a hardware TPM takes up to 2 s: one look that falls into it says nothing, two so far apart do."""


class Section(BootPolicy, frozen=True, kw_only=True):
    """`[boot]`: the policy as the controller judges by it."""


class Probe(probes.Probe[Section]):
    """Looks at TPM and firmware log."""

    by_hands = False

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._pcrs: dict[int, bytes] = {}
        self._read_at: float | None = None
        self._busy_since: float | None = None
        self._log_digest = b""
        self._log: EventLog | None = None

    def observe(self, now: float) -> list[Drift]:
        """Return a drift if the TPM does not answer, the log cannot be had, or both disagree."""
        return self.drifts(self._differences(now), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Do nothing: a boot cannot be repaired."""

    def _differences(self, now: float) -> Iterator[Difference]:
        pcrs: dict[int, bytes] = {}
        if self.around.tpm is None:
            yield Difference("tpm", "a TPM", "none is configured")
        else:
            try:
                pcrs = self._read_pcrs(self.around.tpm, now)
                self._busy_since = None
            except TpmBusy as error:
                pcrs = self._pcrs
                if self._busy_since is None:
                    self._busy_since = now
                if now - self._busy_since >= BUSY_GRACE_S:
                    yield could_not_look("tpm", "PCR values", error)
            except TpmUnavailable as error:
                yield could_not_look("tpm", "PCR values", error)
        try:
            log = self._read_log()
        except FileNotFoundError as error:
            if self.section.event_log == "required":
                yield could_not_look("event-log", "the firmware's log", error)
            return
        except (OSError, Rejected) as error:
            yield could_not_look("event-log", "the firmware's log", error)
            return
        for finding in explain(log, pcrs, self.section.runtime_pcrs):
            yield Difference(f"event-log PCR {finding.pcr}", "a log that leads to the PCR", finding.detail)

    def _read_pcrs(self, tpm: Tpm, now: float) -> dict[int, bytes]:
        """Return the policy's PCRs, read at most every PCR_READ_EVERY_S. Raises TpmUnavailable."""
        fresh = self._read_at is not None and 0 <= now - self._read_at < PCR_READ_EVERY_S
        if not fresh:
            self._read_at = None
            self._pcrs = tpm.read_pcrs(self.section.pcrs, timeout_s=PCR_READ_TIMEOUT_S)
            self._read_at = now
        return self._pcrs

    def _read_log(self) -> EventLog:
        """Return the log, parsed anew only if its bytes changed. Raises OSError, Rejected `eventlog.*`."""
        raw = self.around.host.read_log(self.around.event_log, max_bytes=MAX_EVENT_LOG_BYTES)
        digest = hashlib.sha256(raw).digest()
        if self._log is None or digest != self._log_digest:
            self._log = parse_event_log(raw)
            self._log_digest = digest
        return self._log

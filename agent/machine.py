"""The probes in force and one look at a section: observe, repair, observe again. On the worker thread only.

Refuses: to decide what is repaired (agent.plan does) and to keep records (the loop does).
Relies on: probes keeping to their interface; a repair that fails is told, and seen again by the next look.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace

import msgspec

from agent import plan
from agent.firewall.section import Section as FirewallSection
from agent.hold import Held
from agent.netfilter import Netfilter, render
from agent.probes import Probe, SectionBase, Surroundings, mode_of, sections
from agent.responses import Told
from contract.baseline import Head
from contract.errors import Rejected
from contract.messages import Drift, Posture

POSTURES: tuple[Posture, ...] = ("normal", "isolated", "maintenance")
_HEALED_KEPT = 128
_STORM = 20
"""Firewall passes within a second, past which each waits a little: heal, but do not burn the node (ATTACKS f05)."""
_STORM_PAUSE_S = 0.02


class Machine:
    """What is looked at, and what was found. `around` is what probes and responses are given."""

    def __init__(self, around: Surroundings, netfilter: Netfilter) -> None:
        self.around = around
        self.probes: dict[str, Probe[SectionBase]] = {}
        self.drifts: dict[str, list[Drift]] = {}
        """Left after the last look, by section."""
        self.healed: list[Drift] = []
        """Repaired and not reported yet, oldest first."""
        self._netfilter = netfilter
        self._head: Head
        self._firewall_times: deque[float] = deque(maxlen=_STORM)

    def surround(self, **changes: object) -> None:
        """Change posture, fences or the controller's addresses for all probes."""
        self.around = replace(self.around, **changes)  # type: ignore[arg-type]
        for probe in self.probes.values():
            probe.around = self.around

    def dry_run(self, held: Held) -> None:
        """Raise Rejected if the kernel would not take the rules of `held`, in any posture."""
        section = held.sections["firewall"]
        assert isinstance(section, FirewallSection)  # noqa: S101  (parsed by the module of that name)
        for posture in POSTURES:
            self._netfilter.check(render(section, posture, replace(self.around, posture=posture, grants=())))

    def replace_probes(self, held: Held) -> list[Probe[SectionBase]]:
        """Take the sections of another baseline; return the old probes whose doing is to be undone."""
        old, self._head = self.probes, held.baseline.head
        self.probes = {
            name: sections()[name].Probe(section, self.around) for name, section in held.sections.items()
        }
        self.drifts = {name: drifts for name, drifts in self.drifts.items() if name in self.probes}
        return [p for n, p in old.items() if n != "firewall" and p.section != held.sections.get(n)]

    def look(self, name: str, held: plan.Stance, now: float, *, silent: bool) -> list[Told]:
        """Observe, repair, observe again, tell. `silent`: the difference is of our own making."""
        probe = self.probes[name]
        if name == "firewall":
            self._pace()
        before = self.drifts.get(name, [])
        mode = mode_of(probe.section, self._head)
        if plan.enforced(name, mode, held):
            probe.settle(now)
        found = left = probe.observe(now)
        failed: list[Told] = []
        repair = plan.to_repair(name, mode, held, found)
        if repair:
            try:
                probe.repair(repair, now)
            except (OSError, Rejected) as error:
                failed = [Told(kind=f"{name}.repair-failed", severity="critical", summary=str(error))]
            left = probe.observe(now)
        self.drifts[name] = left
        remaining = {drift.key for drift in left}
        told = plan.tell(name, before, left if silent else found, left)
        if not silent:
            healed = [msgspec.structs.replace(d, repaired=True) for d in found if d.key not in remaining]
            self.healed = (self.healed + healed)[-_HEALED_KEPT:]
        noticed = probe.notices(now)
        told += [Told(kind=n.kind, severity=n.severity, summary=n.summary, detail=n.detail) for n in noticed]
        return failed + told

    def _pace(self) -> None:
        now = time.monotonic()
        if len(self._firewall_times) == _STORM and now - self._firewall_times[0] < 1.0:
            time.sleep(_STORM_PAUSE_S)
        self._firewall_times.append(now)

"""`ringfence-agent end-grants`: ends on time what a grant has opened and the kernel does not end by itself, also when the agent is dead.

Ports end by the kernel's timeouts. USB devices and accounts are let in and shut out by the agent, so while a grant with one of them is
open, this runs beside it, in a process and a systemd unit of its own (packaging/systemd/ringfence-grants.path starts it when the
agent has marked the state folder). It reads the state, waits for the end of each grant by the clock that nobody can set, gives
the agent a moment to do its work, and shuts what is still open: by the very probes that the agent has. It ends when nothing is open.

Refuses: to open anything, to write any state, to touch what no ended grant names, and a section that only observes.
Relies on: CAP_DAC_OVERRIDE and CAP_KILL for accounts; sysfs for USB. What it did is told by the agent when that is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from agent import grants
from agent.config import AgentConfig
from agent.firewall.section import Section as FirewallSection
from agent.grants import Bounds, Kept, OpenGrant
from agent.host import Host
from agent.probes import Probe, SectionBase, Surroundings, mode_of, parse_sections
from agent.probes import sections as known_sections
from agent.probes.access import Section as AccessSection
from agent.store import Damaged, State, Store
from contract.baseline import parse_baseline
from contract.errors import Rejected
from contract.grant import Grant
from contract.messages import Drift

GRACE_S = 3.0
"""The agent comes first: it ends a grant within a second or two."""
LONGEST_S = 15.0
"""Another grant may be opened meanwhile, and a machine may have slept."""


class Found(NamedTuple):
    """What is to be said of the grants of one moment."""

    over: tuple[Grant, ...]
    """Opened and over: nobody has said yet that they were ended."""
    still: tuple[OpenGrant, ...]
    left_s: float
    """Until the next of those ends."""


def found(
    state: State, sections: dict[str, SectionBase], at: grants.Clock, resumed: dict[int, Kept]
) -> Found:
    """Return it. `resumed`: grants of a boot before, each as it was first seen in this one; filled here."""
    access, firewall = sections.get("access"), sections.get("firewall", FirewallSection())
    assert isinstance(firewall, FirewallSection)  # noqa: S101  (parsed by the module of that name)
    bounds = Bounds(access if isinstance(access, AccessSection) else None, firewall.zones)
    asked = state.directive.grants if state.directive is not None else []
    opened = [each for each in asked if each.id in state.grants and state.grants[each.id].open]
    kept = {}
    for each in opened:
        kept[each.id] = state.grants[each.id]
        if kept[each.id].boot_id != at.boot_id:
            kept[each.id] = resumed.setdefault(each.id, grants.resumed(kept[each.id], each, at))
    due = grants.due(opened, kept, bounds, "normal", at)
    late_s = at.boottime_s - GRACE_S
    over = tuple(each.grant for each in due if each.opened is None and each.kept.ends_s <= late_s)
    still = tuple(each.opened for each in due if each.opened is not None)
    # One that is over and has its moment of grace is waited for as well.
    ends = [one.kept.ends_s + GRACE_S for one in due if one.kept.ends_s > late_s]
    return Found(over, still, min((end - at.boottime_s for end in ends), default=0.0))


class Ender:
    """Beside the agent of one node."""

    def __init__(self, config: AgentConfig, say: Callable[[str], object]) -> None:
        self.store = Store(config.state, config.node)
        roots = config.roots
        self._host = Host(root=Path(roots.root), sysfs_root=Path(roots.sysfs), proc_root=Path(roots.proc))
        self._say = say
        self._resumed: dict[int, Kept] = {}

    def turn(self) -> float:
        """Shut what is over; return for how long there is nothing to do: 0 when nothing is open any more. Raises Damaged, Rejected."""
        state = self.store.load_state()
        slot = None if state is None else state.pending or state.last_good
        if state is None or slot is None:
            return LONGEST_S
        baseline = parse_baseline(slot.raw, file=f"{slot.ref.name}/{slot.ref.version}.toml")
        sections = parse_sections(baseline)
        issued = state.directive.issued if state.directive is not None else 0.0
        at = grants.clock(time.time(), issued, self._host.uptime_s(), self._host.boot_id())
        seen = found(state, sections, at, self._resumed)
        around = Surroundings(host=self._host, grants=seen.still, remembered=dict(state.remembered))
        enforced = [name for name in ("access", "usb") if name in sections]
        enforced = [name for name in enforced if mode_of(sections[name], baseline.head) == "enforce"]
        left = [
            drift
            for name in enforced
            for drift in self._shut(known_sections()[name].Probe(sections[name], around), seen.over, at.now)
        ]
        if left or seen.left_s > LONGEST_S:
            return LONGEST_S
        return seen.left_s

    def _shut(self, probe: Probe[SectionBase], over: Sequence[Grant], now: float) -> list[Drift]:
        """Shut what the grants had opened of one section; return what is still open."""
        wrong = [drift for drift in probe.observe(now) if _is_of(drift, over)]
        if not wrong:
            return []
        try:
            probe.repair(wrong, now)
        except OSError as error:
            self._say(f"{probe.name}: {error}")
        left = [drift for drift in probe.observe(now) if _is_of(drift, over)]
        for drift in wrong:
            if drift.key not in {each.key for each in left}:
                self._say(f"{drift.key}: {drift.wanted}, since the grant is over")
        return left


def run(config: AgentConfig, say: Callable[[str], object]) -> None:
    """Wait and shut until nothing is open any more, or the agent says so."""
    ender = Ender(config, say)
    while ender.store.grants_open():
        try:
            wait_s = ender.turn()
        except (Damaged, Rejected) as error:  # the agent, once it is back, knows no grant and shuts them all
            say(str(error))
            wait_s = LONGEST_S
        if not wait_s:
            ender.store.mark_grants(is_open=False)
            return
        time.sleep(max(0.1, wait_s))


def _is_of(drift: Drift, over: Sequence[Grant]) -> bool:
    """Tell whether a drift is something that a grant has opened and that must be shut now."""
    what, _, name = drift.key.partition(" ")
    if what == "account":
        return any(name.removesuffix(" processes") in grant.access.accounts for grant in over)
    is_open = drift.section == "usb" and drift.wanted.startswith("not authorized")
    return is_open and any(name in grant.access.usb for grant in over)

"""The probes in force and one look at a section: observe, repair, observe again. On the worker thread only.

Every repair keeps what it found (`agent.exhibits`). Repairs have a budget and rest when they do not last (`agent.budget`): not
when a baseline of ours is put in force, which is carried out at once.

Refuses: to decide what is repaired (agent.plan and agent.budget do) and to keep records (the loop does).
Relies on: probes keeping to their interface; a repair that fails is told, and seen again by the next look.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from agent import budget, plan
from agent.exhibits import Exhibit
from agent.firewall.contested import is_held, says_not_in_force
from agent.firewall.local import resolved
from agent.firewall.nft import rules
from agent.firewall.section import Section as FirewallSection
from agent.hands import Hands, OwnHands
from agent.hold import Held
from agent.netfilter import Netfilter
from agent.probes import Probe, SectionBase, Surroundings, mode_of, sections
from agent.responses import Told
from contract.baseline import Head
from contract.errors import Rejected
from contract.messages import Drift, Posture, never_more

POSTURES: tuple[Posture, ...] = ("normal", "isolated", "maintenance")
_HEALED_KEPT = 128
_STORM = 20
"""Firewall passes within a second, past which each waits a little: heal, but do not burn the node (ATTACKS f05)."""
_STORM_PAUSE_S = 0.02
_OUTRUN_PAUSE_S = 0.05
"""Before each load that nobody has looked for; what was let in meanwhile meets the guard beneath."""


class Machine:
    """What is looked at, and what was found. `around` is what probes and responses are given."""

    def __init__(
        self,
        around: Surroundings,
        netfilter: Netfilter,
        hands: Hands | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.around = around
        self.probes: dict[str, Probe[SectionBase]] = {}
        self.drifts: dict[str, list[Drift]] = {}
        """Left after the last look, by section."""
        self.healed: list[Drift] = []
        """Repaired and not reported yet, oldest first."""
        self.fought_now: list[Drift] = []
        """Of the firewall, repaired in its last look or held against repair by somebody else, unless that was silent."""
        self.observing = False
        """A probe is looking and changes nothing: an order may be carried out in between."""
        self._netfilter = netfilter
        self._hands = hands or OwnHands(around.host)
        self._monotonic = monotonic
        self._head: Head
        self._firewall_times: deque[float] = deque(maxlen=_STORM)
        self._fenced_in = True
        """Whether our tables may stand: not while a signed baseline only observes the firewall."""
        self._accounts: dict[str, budget.Account] = {}
        self._resting: dict[str, dict[str, str]] = {}
        """Keys whose repair waits, and why, by section."""

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
            around = replace(self.around, posture=posture, grants=())
            # Without what live sets hold, so that the first look at these rules finds them tried already.
            wanted = rules(section, posture, around, resolved(section, around.host))
            self._netfilter.check(wanted.text(live=False))

    def replace_probes(self, held: Held, *, reverting: bool = False) -> list[Probe[SectionBase]]:
        """Take the sections of another baseline; return the old probes whose doing is to be undone.

        Each knows its successor, so that what the new baseline governs too is handed over and not put back in between.
        `reverting`: only to sections that will mend it themselves; a last-good one that merely observes must find the
        machine as it was before.
        """
        old, self._head = self.probes, held.baseline.head
        self._fenced_in = True  # what an earlier one loaded may stand there still
        self.probes = {
            name: sections()[name].Probe(section, self.around) for name, section in held.sections.items()
        }
        self.drifts = {name: drifts for name, drifts in self.drifts.items() if name in self.probes}
        self._accounts, self._resting = {}, {}
        for probe in self.probes.values():
            probe.ref = held.ref
        undone = [p for n, p in old.items() if n != "firewall" and p.section != held.sections.get(n)]
        for probe in undone:
            successor = self.probes.get(probe.name)
            if successor and (not reverting or mode_of(successor.section, self._head) == "enforce"):
                probe.successor = successor
        return undone

    def greet(self) -> list[Told]:
        """Make sure that whoever carries out repairs is there; return what is to be said."""
        error = self._hands.greet()
        return [Told(kind="repairs.unavailable", severity="critical", summary=error)] if error else []

    def undo(self, probe: Probe[SectionBase]) -> list[Told]:
        """Have put back what a probe's repairs have changed, where that is remembered; return what is to be said."""
        error = self._hands.undo(probe)
        said = f"what was changed under {probe.name} stays as it is: {error}"
        return [Told(kind=f"{probe.name}.undo-failed", severity="warning", summary=said)] if error else []

    def look(
        self, name: str, held: plan.Stance, now: float, occasion: plan.Occasion = "routine"
    ) -> list[Told]:
        """Observe, repair, observe again, tell: all of it in routine, in one event what a baseline of ours has changed."""
        probe = self.probes[name]
        if name == "firewall":
            self.fought_now = []
            self._pace()
        before = self.drifts.get(name, [])
        mode = mode_of(probe.section, self._head)
        enforced = plan.enforced(name, mode, held)
        backed = self._stand_back(enforced) if name == "firewall" else []
        if enforced:
            self._hands.settle(probe, now)
        found = left = self._observe(probe, now)
        if self.probes.get(name) is not probe:
            return []  # an order came in between, and brought another baseline
        told = backed
        kept: Sequence[Exhibit] = []
        wrong = plan.to_repair(name, mode, held, found)
        free = occasion != "routine" or not probe.rationed
        repair = wrong if free else self._within_budget(name, wrong, told)
        if repair:
            kept = self._repair(probe, repair, now, told, free=free)
            left = probe.observe(now)
        left = _marked(left, self._resting.get(name, {}))
        self.drifts[name] = left
        remaining = {drift.key for drift in left}
        mended = [drift for drift in found if drift.key not in remaining]
        told += self._told_of(name, occasion, before, mended=mended, left=left, kept=kept)
        if name == "firewall" and occasion == "routine":
            self.fought_now = [*mended, *(each for each in left if enforced and is_held(each))]
        noticed = probe.notices(now)
        told += [Told(kind=n.kind, severity=n.severity, summary=n.summary, detail=n.detail) for n in noticed]
        return told

    def _told_of(
        self,
        name: str,
        occasion: plan.Occasion,
        before: Sequence[Drift],
        *,
        mended: Sequence[Drift],
        left: Sequence[Drift],
        kept: Sequence[Exhibit],
    ) -> list[Told]:
        """Return the events of a look, and put into the next report what somebody else had changed and was mended."""
        named = _named(kept)
        # A kernel that starts anew has forgotten its settings: that is nobody's doing. What lay on disk is.
        foreign = mended if occasion == "routine" or (occasion == "boot" and kept) else []
        told = plan.tell(name, before, [*foreign, *left], left, named)
        if occasion == "adoption" or (occasion == "boot" and not kept):
            told += plan.put_right(name, occasion, mended, named)
        else:
            told += _not_named(name, kept, {each.key for each in foreign})
        healed = [msgspec.structs.replace(each, repaired=True) for each in foreign]
        self.healed = (self.healed + healed)[-_HEALED_KEPT:]
        return told

    def due(self, woken: set[str]) -> set[str]:
        """Return the sections that are to be looked at: of those that were woken, and the firewall where somebody holds it
        against us and a burst is over, since no event tells of that.
        """
        last_s = self._firewall_times[-1] if self._firewall_times else 0.0
        again = time.monotonic() - last_s > plan.BURST_S and any(
            map(is_held, self.drifts.get("firewall", []))
        )
        return (woken | ({"firewall"} if again else set())) & self.probes.keys()

    def not_in_force(self) -> str:
        """Return what of the firewall's rules is not in force as wanted, for people; empty where all is, or none is to be."""
        if not self._fenced_in:
            return ""
        left = [each for each in self.drifts.get("firewall", []) if says_not_in_force(each.key)]
        return "; ".join(f"{each.key}: found {each.found}" for each in left[:4])

    def _observe(self, probe: Probe[SectionBase], now: float) -> list[Drift]:
        before, self.observing = self.observing, True
        try:
            return probe.observe(now)
        finally:
            self.observing = before

    def _within_budget(self, name: str, wrong: Sequence[Drift], told: list[Told]) -> list[Drift]:
        """Return what may be repaired now, and tell once of what begins to wait."""
        decision = budget.decide(
            self._accounts.get(name, budget.Account()),
            self._head.repair,
            [drift.key for drift in wrong],
            self._monotonic(),
        )
        before, self._resting[name] = self._resting.get(name, {}), dict(decision.resting)
        if decision.over and decision.over not in before.values():
            told.append(Told(kind=f"{name}.budget-spent", severity="critical", summary=decision.over))
        elif not decision.over:
            for key in sorted(decision.resting.keys() - before.keys()):
                summary = f"{key}: {decision.resting[key]}"
                detail = {"key": key}
                told.append(Told(kind=f"{name}.flapping", severity="warning", summary=summary, detail=detail))
        return [drift for drift in wrong if drift.key in decision.may]

    def _repair(
        self, probe: Probe[SectionBase], wrong: list[Drift], now: float, told: list[Told], *, free: bool
    ) -> Sequence[Exhibit]:
        """Repair, and charge what it took to the section's account unless it is `free`."""
        acted = self._hands.repair(probe, wrong, now)
        if acted.error:
            told.append(Told(kind=f"{probe.name}.repair-failed", severity="critical", summary=acted.error))
        keys = [drift.key for drift in wrong if drift.key not in acted.untried]
        if keys and not free:
            account = self._accounts.get(probe.name, budget.Account())
            self._accounts[probe.name] = budget.charge(account, keys, acted.cost, self._monotonic())
        return acted.exhibits

    def _stand_back(self, enforced: bool) -> list[Told]:
        """Take our tables away, once, where the firewall is only observed: lock-down, or what was enforced before, is over.

        Left standing they would still drop what the signed baseline in force only wants to be told of.
        """
        was, self._fenced_in = self._fenced_in, enforced
        try:
            if not was or enforced or not self._netfilter.withdraw():
                return []
        except (OSError, Rejected) as error:
            self._fenced_in = True  # tried again at the next look
            return [Told(kind="firewall.withdraw-failed", severity="critical", summary=str(error))]
        said = "the baseline only observes the firewall: our rules were taken away"
        return [Told(kind="firewall.withdrawn", severity="warning", summary=said)]

    def _pace(self) -> None:
        now = time.monotonic()
        if self._netfilter.outrunning.on:
            time.sleep(_OUTRUN_PAUSE_S)
            if self.around.host.wake is not None:
                self.around.host.wake("firewall")  # loaded unseen: looked at again until it can be seen
        elif len(self._firewall_times) == _STORM and now - self._firewall_times[0] < 1.0:
            time.sleep(_STORM_PAUSE_S)
        self._firewall_times.append(now)


def _marked(left: Sequence[Drift], resting: dict[str, str]) -> list[Drift]:
    """Return the drifts, those whose repair waits with the reason."""
    return [
        msgspec.structs.replace(d, wanted=never_more(f"{d.wanted} ({resting[d.key]})", 2048))
        if d.key in resting
        else d
        for d in left
    ]


def _named(kept: Sequence[Exhibit]) -> dict[str, dict[str, str]]:
    """Return what an event says of each path's record, by path."""
    out = {}
    for each in kept:
        detail = {"kept": each.name} if each.name else {"not_kept": each.why_not}
        detail |= each.said
        out[each.path] = {key: value for key, value in detail.items() if value}
    return out


def _not_named(name: str, kept: Sequence[Exhibit], healed: set[str]) -> list[Told]:
    """Return an event for each record that no event of a healed key names."""
    return [
        Told(
            kind=f"{name}.kept" if "kept" in detail else f"{name}.not-kept",
            severity="info" if "kept" in detail else "warning",
            summary=f"{path}: what was found there before the repair",
            detail={"path": path, **detail},
        )
        for path, detail in _named(kept).items()
        if not any(plan.about(key, path) for key in healed)
    ]

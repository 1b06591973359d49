"""The agent's decisions: facts in, actions out. PURE: no clock, no files, no network, no kernel.

`settle` decides about the baseline (fetch, apply, confirm, revert), `stance` about posture and fences, `contest`
about a firewall that somebody fights over, `to_repair` about drifts, `tell` about events. The loop carries out what is returned and decides nothing itself.

Refuses: to take back an isolation, whoever brought it about; to read silence of a controller that was away before as
the fault of a new baseline; to try again, under the same directive, a baseline that failed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from agent.responses import Told, Wanted
from contract.directive import Directive, WantedBaseline
from contract.messages import BaselineRef, Drift, Mode, Posture, never_more

Occasion = Literal["routine", "boot", "adoption", "order"]
"""Why it is looked at a section: as always, also when the agent starts again; for the first time in a boot; because
another baseline was put in force; because an order changed what is wanted."""
MAX_PENDING_STARTS = 3
"""An agent that came up so often under one unconfirmed baseline is being killed by it."""
MAX_NAMED = 8
"""Keys that the summary of one event names; its detail has more."""


class Facts(NamedTuple):
    """What `settle` looks at. `*_s` are seconds on the monotonic clock."""

    directive: Directive | None
    last_good: BaselineRef | None
    pending: BaselineRef | None
    pending_for_s: float
    """Since it was put in force by this process."""
    pending_starts: int
    pending_had_contact: bool
    pending_answered: bool
    """A report that named it as pending was answered, in a session dialled after it was put in force."""
    not_in_force: str
    """What of its firewall rules the kernel does not hold as wanted; empty where it holds all."""
    turned_down: Mapping[str, int]
    ready: WantedBaseline | None
    """Fetched and verified, waiting to be put in force."""
    confirm_s: float


class Stay(NamedTuple):
    """Nothing to do about the baseline."""


class Fetch(NamedTuple):
    """Get this one; nothing changes until it is here and verified."""

    wanted: WantedBaseline


class Apply(NamedTuple):
    """Put the fetched one in force, as pending."""

    wanted: WantedBaseline


class Confirm(NamedTuple):
    """The pending one is good."""


class Revert(NamedTuple):
    """Put last-good (or lock-down) back in force."""

    code: Literal[
        "baseline.no-confirmation", "baseline.not-in-force", "baseline.crashes", "baseline.withdrawn"
    ]
    reason: str


Step = Stay | Fetch | Apply | Confirm | Revert


def same(ref: BaselineRef | None, wanted: WantedBaseline) -> bool:
    """Tell whether both name the same bytes."""
    return ref is not None and ref.sha256.hex() == wanted.sha256


def settle(facts: Facts) -> Step:
    """Return the next step of the baseline: verify -> pending -> apply -> confirm, or back to last-good.

    An answer alone confirms nothing: it may have come through the rules before, where the new ones were not taken.
    """
    wanted = facts.directive.baseline if facts.directive is not None else None
    if facts.pending is not None:
        if facts.pending_answered and not facts.not_in_force:
            return Confirm()
        if facts.pending_starts > MAX_PENDING_STARTS:
            return Revert("baseline.crashes", f"{facts.pending_starts} starts without a confirmation")
        if facts.not_in_force and facts.pending_for_s >= facts.confirm_s:
            return Revert("baseline.not-in-force", f"{facts.confirm_s:g} s on: {facts.not_in_force}")
        if facts.pending_had_contact and facts.pending_for_s >= facts.confirm_s:
            return Revert("baseline.no-confirmation", f"no report went through within {facts.confirm_s:g} s")
        if wanted is not None and not same(facts.pending, wanted):
            return Revert("baseline.withdrawn", "the controller wants another one")
        return Stay()
    if facts.directive is None or wanted is None or same(facts.last_good, wanted):
        return Stay()
    if facts.turned_down.get(wanted.sha256, -1) >= facts.directive.number:
        return Stay()
    if facts.ready is not None and facts.ready.sha256 == wanted.sha256:
        return Apply(wanted)
    return Fetch(wanted)


BURST_S = 2.0
MANAGER_BURST_S = 30.0
"""What a firewall manager does on its restart counts once, however many commits it takes."""
MANAGERS = frozenset(
    {"dockerd", "containerd", "firewalld", "podman", "netavark", "libvirtd", "virtnetworkd", "NetworkManager"}
    | {"ufw", "kubelet", "kube-proxy", "k3s-server", "systemd", "systemd-network", "systemd-nspawn"}
)
"""Names of programs that reload rules as a whole. A name proves nothing: it stretches a burst and excuses no contest."""


class Healing(NamedTuple):
    """One burst of changes that was undone, or could not be because somebody holds it."""

    at: float
    """Wall clock."""
    what: str
    """Which of our tables, whose hold on one, or foreign rewriting."""
    by: str
    """As the culprit is described; empty where nobody knows."""


def contest(
    before: Sequence[Healing], fought: Iterable[Drift], now: float, *, times: int, within_s: float
) -> tuple[tuple[Healing, ...], str]:
    """Return what is to be remembered, and why the node must isolate itself: empty as long as it need not.

    The same table, healed in `times` bursts within `within_s`, is fought over: whoever does it wants these rules gone
    and will be faster one day. So is a table that another process holds, and rewriting past our rules that comes back or cannot be
    taken out, seen as often. Several commits in a moment are one burst; a clock that jumps forgets.
    """
    kept = [each for each in before if 0 <= now - each.at < within_s]
    for drift in fought:
        what = _fought_over(drift.key)
        burst_s = MANAGER_BURST_S if _is_manager(drift.culprit) else BURST_S
        if not any(each.what == what and now - each.at < burst_s for each in kept):
            kept.append(Healing(now, what, drift.culprit))
    for what in sorted({each.what for each in kept}):
        found = [each for each in kept if each.what == what]
        if len(found) >= times:
            by = found[-1].by or "an unknown process"
            took_s = now - found[0].at
            said = f"{what} was found" if what.startswith((_HOLD, _REWRITING)) else f"table {what} was healed"
            return (), f"{said} {len(found)} times within {took_s:.0f} s, last after {by}"
    return tuple(kept), ""


_HOLD = "another process's hold on "
_REWRITING = "rewriting past our rules"


def _fought_over(key: str) -> str:
    """Return what a drift's key is about; a foreign table is given another name too easily to count by it."""
    if key.startswith("foreign:"):
        return _REWRITING
    family, _, rest = key.partition(" ")
    name, _, what = rest.partition(" ")
    return f"{_HOLD if what == 'owner' else ''}{family} {name}"


def _is_manager(culprit: str) -> bool:
    """Tell whether a culprit, or its parent, goes by the name of a firewall manager."""
    return any(culprit.startswith(f"{name} (") or f", of {name} (" in culprit for name in MANAGERS)


class Stance(NamedTuple):
    """What the firewall is to hold."""

    posture: Posture
    fenced: tuple[str, ...]
    reason: str
    by_silence: bool = False
    """Isolated because nobody answers: to be written down, so that no answer ends it."""


def stance(
    directive: Directive | None,
    wanted: Iterable[Wanted],
    *,
    offline_s: float,
    isolate_after_s: float | None,
    damaged: bool,
    self_isolated: str = "",
) -> Stance:
    """Return posture and fences. Isolation by anyone wins; nothing here ends one, ordered or the node's own."""
    wanted = list(wanted)
    fenced = tuple(sorted({address for each in wanted for address in each.fenced}))
    if self_isolated:
        return Stance("isolated", fenced, self_isolated)
    if directive is None:
        if damaged:
            return Stance("isolated", fenced, "the node's state was damaged")
        posture: Posture = "normal"
        reason = ""
    else:
        posture, reason = directive.posture, directive.reason
    if posture == "isolated":
        return Stance("isolated", fenced, reason or "ordered by the controller")
    if any(each.posture == "isolated" for each in wanted):
        return Stance("isolated", fenced, reason or "ordered by the controller")
    if isolate_after_s is not None and offline_s >= isolate_after_s:
        return Stance(
            "isolated", fenced, f"no answer of the controller for {offline_s:.0f} s", by_silence=True
        )
    return Stance(posture, fenced, reason)


def enforced(section: str, mode: Mode, held: Stance) -> bool:
    """Tell whether a section's drifts are to be repaired. Isolation and fences are orders: no `observe` softens them."""
    return mode == "enforce" or (section == "firewall" and (held.posture == "isolated" or bool(held.fenced)))


def to_repair(section: str, mode: Mode, held: Stance, drifts: Sequence[Drift]) -> list[Drift]:
    """Return the drifts that are to be repaired now."""
    return list(drifts) if enforced(section, mode, held) else []


def about(key: str, path: str) -> bool:
    """Tell whether a drift's key speaks of a file: "/etc/x", "/etc/x mode"."""
    return key == path or key.startswith(f"{path} ")


def put_right(
    section: str, occasion: Occasion, mended: Sequence[Drift], kept: Mapping[str, Mapping[str, str]]
) -> list[Told]:
    """Return one event, or none, for what was mended while a baseline was put in force, at boot or anew.

    A warning where something that stood on disk was removed or overwritten: somebody put it there. `kept` is as for `tell`.
    """
    if not (mended or kept):
        return []
    keys = [each.key for each in mended if not any(about(each.key, path) for path in kept)]
    records = [f"{path} ({detail.get('kept') or 'not kept'})" for path, detail in kept.items()]
    when = "at the first look after a start" if occasion == "boot" else "when the baseline was put in force"
    named = [*kept, *keys]
    shown = ", ".join(named[:MAX_NAMED]) + (
        f" and {len(named) - MAX_NAMED} more" if named[MAX_NAMED:] else ""
    )
    detail = {"count": str(len(named)), "keys": ", ".join(keys), "kept": ", ".join(records)}
    return [
        Told(
            kind=f"{section}.put-right",
            severity="warning" if kept else "info",
            summary=never_more(f"put right {when}: {shown}", 512),
            detail={key: never_more(value, 2048) for key, value in detail.items() if value},
        )
    ]


def tell(
    section: str,
    before: Sequence[Drift],
    found: Sequence[Drift],
    left: Sequence[Drift],
    kept: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Told]:
    """Return events for what changed: healed at once, newly drifted, cleared by somebody else.

    `before`: left over from the last pass; `found`: seen in this one; `left`: still there after the repair; `kept`: path ->
    what is to be said of the record of what the repair found there.
    """
    told = []
    known = {(d.key, d.found) for d in before}
    remaining = {d.key for d in left}
    for drift in found:
        detail = {"key": drift.key, "wanted": drift.wanted, "found": drift.found}
        if drift.culprit:
            detail["culprit"] = drift.culprit
        by = f" by {drift.culprit}" if drift.culprit else ""
        if drift.key not in remaining:
            for path in kept or ():
                if about(drift.key, path):
                    detail |= (kept or {})[path]
            told.append(
                Told(
                    kind=f"{section}.healed",
                    severity="warning",
                    summary=f"{drift.key}: changed{by}, put back",
                    detail=detail,
                )
            )
        elif (drift.key, drift.found) not in known:
            told.append(
                Told(
                    kind=f"{section}.drift",
                    severity="warning",
                    summary=f"{drift.key}: wanted {drift.wanted}, found {drift.found}",
                    detail=detail,
                )
            )
    seen = {d.key for d in found}
    for key in sorted({d.key for d in before} - seen):
        told.append(
            Told(
                kind=f"{section}.cleared",
                severity="info",
                summary=f"{key}: as wanted again",
                detail={"key": key},
            )
        )
    return told

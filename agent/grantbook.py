"""Which grants are open, kept over restarts, and who used them. On the worker thread only.

Everything is written down before it opens, and told when it opens, is first used by an address, closes or is refused.
`agent.grants` decides; the firewall, USB and access sections carry out what is open.

Refuses: to tell the same refusal twice. Relies on: the loop asking on every turn.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent import grants
from agent.firewall.section import Section as FirewallSection
from agent.grants import Due, Kept, OpenGrant
from agent.hold import Held, Hold
from agent.netfilter import Netfilter
from agent.probes.access import Section
from agent.responses import Told
from contract.grant import Grant
from contract.messages import Posture

SAVED_EVERY_S = 10.0
"""So much may be added to a grant by a power cut, if the wall clock does not know better."""
LOOKED_EVERY_S = 2.0
MAX_SOURCES = 16


class GrantBook:
    """The grants of one node."""

    def __init__(
        self,
        hold: Hold,
        netfilter: Netfilter,
        tell: Callable[[Told], object],
        *,
        boot_id: Callable[[], str],
    ) -> None:
        self._hold = hold
        self._netfilter = netfilter
        self._tell = tell
        self._boot_id = boot_id
        self._saved_s = 0.0
        self._looked_s = 0.0
        self._counted: dict[tuple[int, str], int] = {}
        self._open: tuple[OpenGrant, ...] = ()
        self._bounds: tuple[Held, grants.Bounds] | None = None

    def open_now(self, posture: Posture, now: float, boottime_s: float) -> tuple[OpenGrant, ...]:
        """Return what is open under this posture, after writing down and telling what changed."""
        before = self._hold.state.grants
        directive = self._hold.state.directive
        if not before and (directive is None or not directive.grants):
            self._open = ()
            return ()
        self._count(boottime_s, last=False)
        at = grants.clock(now, directive.issued if directive else 0.0, boottime_s, self._boot_id())
        found = self._due(posture, at)
        still = {each.grant.id for each in found if each.opened is not None}
        if any(each.id not in still for each in self._open):
            self._count(boottime_s, last=True)
            found = self._due(posture, at)
        before = self._hold.state.grants
        told = [one for each in found for one in _news(each, before.get(each.grant.id))]
        there = {each.grant.id for each in found}
        told += [
            _closed(number, kept, "revoked")
            for number, kept in before.items()
            if number not in there and kept.open
        ]
        after = {each.grant.id: _after(each) for each in found}
        self._save({number: grants.running(kept, boottime_s) for number, kept in after.items()}, boottime_s)
        for one in told:
            self._tell(one)
        self._open = tuple(each.opened for each in found if each.opened is not None)
        return self._open

    def _due(self, posture: Posture, at: grants.Clock) -> list[Due]:
        directive, held = self._hold.state.directive, self._hold.held
        if self._bounds is None or self._bounds[0] is not held:
            section, firewall = held.sections.get("access"), held.sections["firewall"]
            assert isinstance(firewall, FirewallSection)  # noqa: S101  (parsed by the module of that name)
            of_grants = section if isinstance(section, Section) else None
            self._bounds = held, grants.Bounds(of_grants, firewall.zones)
        bounds = self._bounds[1]
        return grants.due(directive.grants if directive else [], self._hold.state.grants, bounds, posture, at)

    def _save(self, after: dict[int, Kept], boottime_s: float) -> None:
        before = self._hold.state.grants
        same = {n: _lasting(k) for n, k in before.items()} == {n: _lasting(k) for n, k in after.items()}
        if same and (boottime_s - self._saved_s < SAVED_EVERY_S or not _ticking(after)):
            return
        self._saved_s = boottime_s
        self._hold.change(grants=after)

    def _count(self, boottime_s: float, *, last: bool) -> None:
        """Ask the kernel who used what is open; tell of each address once."""
        if not self._open or (not last and boottime_s - self._looked_s < LOOKED_EVERY_S):
            return
        self._looked_s = boottime_s
        changed = dict(self._hold.state.grants)
        for opened in self._open:
            kept = changed.get(opened.id)
            if kept is None or not opened.ports:
                continue
            try:
                use = self._netfilter.grant_use(opened.id)
            except OSError:
                continue  # not loaded yet, or just gone: what is not seen now is seen in the next round
            more = sum(self._since_last(opened.id, address, total) for address, total in use.items())
            known = set(kept.sources)
            new = [address for address in sorted(use) if address not in known]
            new = new[: MAX_SOURCES - len(known)]
            for address in new:
                self._tell(_used(opened.id, address))
            if more or new:
                changed[opened.id] = msgspec.structs.replace(
                    kept, carried_bytes=kept.carried_bytes + more, sources=(*kept.sources, *new)
                )
        if changed != self._hold.state.grants:
            self._hold.change(grants=changed)

    def _since_last(self, grant: int, address: str, total: int) -> int:
        """Return what was carried since the last look; the kernel counts from nothing when rules are loaded anew."""
        before = self._counted.get((grant, address), 0)
        self._counted[grant, address] = total
        return total - before if total >= before else total


def _lasting(kept: Kept) -> Kept:
    return msgspec.structs.replace(kept, wait_s=0.0, left_s=0.0)


def _ticking(kept: dict[int, Kept]) -> bool:
    return any(each.left_s > 0 for each in kept.values())


def _after(due: Due) -> Kept:
    refused = due.refused.code if due.refused is not None else ""
    return msgspec.structs.replace(due.kept, open=due.opened is not None, refused=refused)


def _news(due: Due, before: Kept | None) -> list[Told]:
    """Return what is to be told of one grant: opened, closed, refused; each once."""
    out = []
    was_open = before is not None and before.open
    if due.opened is not None and not was_open:
        out.append(_opened(due.grant))
    if due.opened is None and was_open:
        out.append(_closed(due.grant.id, due.kept, due.why))
    if due.refused is not None and (before is None or before.refused != due.refused.code):
        detail = {"grant": str(due.grant.id), "code": due.refused.code, "who": due.grant.who}
        out.append(Told(kind="grant.refused", severity="warning", summary=str(due.refused), detail=detail))
    return out


def _opened(grant: Grant) -> Told:
    access = grant.access
    what = [
        f"{each.direction} {each.protocol} {', '.join(map(str, each.ports))} with {', '.join(each.peers)}"
        for each in access.openings
    ]
    what += [f"USB {each}" for each in access.usb]
    what += [f"account {each}" for each in access.accounts]
    what += [f"door {each}" for each in access.doors]
    return Told(
        kind="grant.opened",
        severity="warning",
        summary=f"grant {grant.id}: {grant.who} of {grant.company}: {'; '.join(what)}",
        detail={
            "grant": str(grant.id),
            "who": grant.who,
            "company": grant.company,
            "evidence": grant.evidence,
            "approved_by": ", ".join(grant.approved_by),
            "reason": grant.reason,
            "doors": ", ".join(access.doors),
        },
    )


def _used(grant: int, address: str) -> Told:
    return Told(
        kind="grant.used",
        severity="info",
        summary=f"grant {grant}: used by {address}",
        detail={"grant": str(grant), "source": address},
    )


def _closed(number: int, kept: Kept, why: str) -> Told:
    return Told(
        kind="grant.closed",
        severity="warning",
        summary=f"grant {number}: closed ({why}); {kept.carried_bytes} bytes carried",
        detail={
            "grant": str(number),
            "why": why,
            "bytes": str(kept.carried_bytes),
            "sources": ", ".join(kept.sources),
        },
    )

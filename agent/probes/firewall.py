"""Section `[firewall]`: our nftables tables are as the signed baseline renders them, and nobody works around them.

Every observation compares the whole of our tables with a fresh load of the wanted text in a throw-away
namespace, unless the kernel's generation number says that no commit happened since the last one. Repair is
one atomic batch. Chains of other programs that accept, drop or rewrite are drift under the key
"foreign:<family> <table> <chain>"; rules that may lead packets past ours are taken out, whole tables only with `foreign =
"remove"`. A table under a name of ours that another process owns is drift "<family> <name> owner"; ours then stands under
another name, and everything else here speaks of it by its own (`agent.firewall.spare`).

Refuses to take the fence down: `undo` leaves the rules, and the next baseline replaces them in one batch.
Relies on: `agent.netfilter`; the loop passing on culprits with `Netfilter.note`.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from agent import probes
from agent.firewall import advice as advices
from agent.firewall import compare, large, link, local, nft, tables
from agent.firewall.apart import Apart
from agent.firewall.beneath import Beneath, is_beneath
from agent.firewall.blame import Blame
from agent.firewall.bypass import Bypass
from agent.firewall.crossed import Crossed
from agent.firewall.events import Culprit
from agent.firewall.fast import GONE, Fast
from agent.firewall.foreigners import Foreigners
from agent.firewall.holds import Holds, is_hold
from agent.firewall.kept import Kept
from agent.firewall.match import GUARD_TABLE
from agent.firewall.model import Local, model
from agent.firewall.names import Change, Names, Snapshot, terms_of
from agent.firewall.outrun import Outrun
from agent.firewall.section import Section
from agent.firewall.uses import misused, weak
from agent.firewall.watch import UnitWatch
from agent.netfilter import Cut, Netfilter
from agent.probes import Contradiction, Difference, Notice, SectionBase, could_not_look
from contract.errors import Rejected
from contract.messages import Drift, never_more

__all__ = ["Probe", "Section", "advice", "contradictions"]

_RULESET = "ruleset"
_FAMILIES = frozenset(family for family, _ in nft.OWN_TABLES)
_FULL_LOOK_S = 60.0
_FULL_LOOK_SHARE = 0.001
"""Of the time that may go into full looks which nothing asked for: a list of 100,000 takes half a second each."""


def contradictions(parsed: Mapping[str, SectionBase]) -> Iterable[Contradiction]:
    """Yield what cannot stand in the section."""
    section = parsed["firewall"]
    return [*advices.contradictions(section), *misused(section)] if isinstance(section, Section) else ()


def advice(parsed: Mapping[str, SectionBase], interfaces: Collection[str] | None) -> Iterable[Contradiction]:
    """Yield what the author should look at again."""
    section = parsed["firewall"]
    if not isinstance(section, Section):
        return ()
    return [*advices.advice(section, interfaces=interfaces), *weak(section)]


class Probe(probes.Probe[Section]):
    """Observes and repairs the firewall."""

    by_hands = False
    rationed = False

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._rendered: tuple[object, nft.Rules, Cut] | None = None
        self._last: tuple[int, nft.Rules, list[Difference]] | None = None
        self._looked_at = 0.0
        self._look_took_s = 0.0
        self._names: Names | None = None
        self._named: Snapshot | None = None
        self._gateways: tuple[tuple[str, str], ...] | None = None
        """As asked for at the beginning of this look."""
        self._renewed = 0
        self._settled_at = -1.0
        self._watching = False
        self._blame = Blame(lambda key: (_is_ours(key) or is_beneath(key)) and not is_hold(key))
        self._bypass = Bypass(section, around.host)
        self._beneath = Beneath(section)
        self._fast = Fast(section)
        self._foreigners = Foreigners(section)
        self._holds = Holds()
        self._foreign: list[Difference] = []
        self._crossed = Crossed()
        self._unseen_at = -1.0
        """Of the look in which everything was loaded without a listing."""

    def text(self) -> str:
        """Return the batch that this section wants under the posture and fences of the moment."""
        return self.rules().text()

    def rules(self) -> nft.Rules:
        """Return our tables as they are wanted under the posture and fences of the moment, on this node."""
        return self._made()[0]

    def _made(self) -> tuple[nft.Rules, Cut]:
        """Return the rules, and the cut without that of the interfaces."""
        around, here = self.around, self._here()
        key = (around.posture, around.controller, around.fenced, around.grants, here)
        if self._rendered is None or self._rendered[0] != key:
            made = nft.rules(self.section, around.posture, around, here)
            kept = Kept(model(self.section, "isolated", around, here))
            self._rendered = (key, made, Cut(nft.render_cut(self.section, around, here), kept))
        return self._rendered[1:]

    def _timed(self) -> nft.Rules:
        """Return the rules with the time that is left of each grant, where `rules` has a fixed one to compare."""
        around, made = self.around, self.rules()
        if not around.grants:
            return made
        left = tuple(grant.at(around.host.uptime_s()) for grant in around.grants)
        return nft.rules(self.section, around.posture, replace(around, grants=left), made.here)

    def _here(self) -> Local:
        """Return what the rules need to know of this node at this moment."""
        found = local.resolved(self.section, self.around.host, self._gateways)
        self._gateways = found.gateways
        if self._names is None:
            return found
        return replace(found, names=self._answers(self._names).addresses)

    def _answers(self, names: Names) -> Snapshot:
        if (
            self._named is None
        ):  # else as at the beginning of this look: an answer that comes meanwhile is no drift
            names.keep_from([each.address for each in self.around.controller])
            self._named = names.snapshot()
        return self._named

    def _watch(self, netfilter: Netfilter) -> None:
        """Begin to ask for names and to look at units, where the section has any."""
        if self._watching:
            return
        self._watching = True
        terms = terms_of(self.section.zones.values())
        if terms:
            self._names = Names(terms, netfilter.wake)
            weakref.finalize(self, self._names.stop)
        if local.owners(self.section)[1]:
            weakref.finalize(self, UnitWatch(self.section, self.around.host, netfilter.wake).stop)

    def settle(self, now: float) -> None:
        """Follow interfaces while isolated; give the addresses of names their time anew.

        What fails is seen by the look that follows: where our table is not there yet, the repair brings it.
        """
        netfilter = self.around.netfilter
        if netfilter is None:
            return
        self._gateways = None
        with contextlib.suppress(OSError):
            self._follow(netfilter)  # first: it asks whether anybody has committed meanwhile
            self._beneath.renew(netfilter, self.around, self._here())
            self._fast.follow(netfilter, self.around.posture)
        self._crossed.settle(
            netfilter, self.rules().mark
        )  # after it: what `rules` made is no longer what stands
        self._watch(netfilter)
        self._settled_at, self._named = now, None
        if self._names is None or self._answers(self._names).version == self._renewed:
            return
        self._renewed = self._answers(self._names).version
        text = tables.renewal(self.rules().tables)
        if text:
            with contextlib.suppress(OSError):
                netfilter.load(text)

    def _follow(self, netfilter: Netfilter) -> None:
        """Follow the gateways that routes name: our own daily work, no repair. Raises OSError."""
        before, standing = self._rendered, netfilter.standing
        if before is None or standing is None or before[1].here.gateways == self._here().gateways:
            return
        made = self.rules()
        if standing == (netfilter.generation(), before[1].tables):
            part = tables.difference(standing[1], made.tables)
            if part:
                netfilter.load(part)

    def observe(self, now: float) -> list[Drift]:
        """Return one drift for each object of our tables that differs, and for each foreign chain that matters."""
        netfilter = self.around.netfilter
        if netfilter is None:
            return self.drifts(
                [could_not_look(_RULESET, "our tables", OSError("no access to nftables"))], now
            )
        self._watch(netfilter)
        if self._settled_at != now:
            self._named = self._gateways = None
        cut = self._made()[1]
        netfilter.prepared_cut = cut
        if netfilter.outrunning.on and self._unseen_at == now:
            return self.drifts(self._foreign, now)  # who commits since then is seen by the next look
        culprits = netfilter.noted()
        self._crossed.heard(netfilter, culprits)
        held: list[Difference] = []
        try:
            standing = netfilter.tables()
            held = self._holds.differences(standing.held)
            here = self.rules().here
            netfilter.prepared_cut = cut._replace(links=self._beneath.links(netfilter, self.around, here))
            differences = [*self._differences(netfilter, now), *self._unresolved(here)]
            beneath = self._beneath.differences(netfilter, self.around, here, standing)
            beneath += self._fast.differences(netfilter, self.around.posture)
            differences += [Difference(*each) for each in beneath]
            isolated = self.around.posture == "isolated"
            differences += self._bypass.differences(now, netfilter, isolated=isolated)
        except Outrun as error:
            self._last = None
            differences = self._outrun(netfilter, culprits, str(error.strerror))
        except (OSError, Rejected, ValueError) as error:
            self._last = None
            differences = [could_not_look(_RULESET, "our tables", error)]
        return self.drifts(self._blame.given([*differences, *held], culprits), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Load what differs of ours, and take out what of others may not stand beside it. No part waits for another.

        Where this brings isolation about, open flows are ended as well. Raises OSError, Rejected, when all was tried.
        """
        netfilter = self.around.netfilter
        if netfilter is None:
            return
        self._last = None
        keys = [drift.key for drift in drifts]
        isolated = self.around.posture == "isolated"
        parts = Apart()
        with parts.each():
            beneath = [key for key in keys if is_beneath(key)]
            self._beneath.repair(netfilter, self.around, self._here(), beneath)
        with parts.each():
            if any(map(_is_ours, keys)):
                self._load(netfilter, [key for key in keys if _is_ours(key)], now)
        with parts.each():
            if any(map(_is_ours, keys)):
                self._crossed.judge(netfilter, self.rules().mark)
        with parts.each():
            self._beneath.clear(netfilter, keys)
        with parts.each():
            if isolated and any(_is_cut(key) for key in keys):
                kept = self._made()[1].kept
                netfilter.flush_conntrack(kept)
                netfilter.kill_sockets(kept)
        with parts.each():
            if isolated:
                self._bypass.repair(netfilter, keys, self.around.remembered)
        with parts.each():
            self._foreigners.repair(netfilter, drifts, isolated=isolated)
        with parts.each():
            self._fast.repair(netfilter, self.around.posture)
        parts.end()

    def _load(self, netfilter: Netfilter, keys: Sequence[str], now: float) -> None:
        """Bring our tables to what is wanted: only what differs where that can be, and whole where it is not enough."""
        self._named = None  # the seconds that are left, not those that were
        wanted = self._timed()
        if netfilter.outrunning.on:
            netfilter.load(wanted.text())
            self._unseen_at = now
            return
        standing, elements, sets = netfilter.standing, self._elements(netfilter), {}
        if standing is not None and standing[0] == netfilter.generation():
            part = tables.difference(standing[1], wanted.tables)
        else:
            part = tables.mending(wanted.tables, [key for key in keys if key not in elements])
            sets = {key: elements[key] for key in keys if key in elements}
        if part or (part is not None and sets):
            try:
                netfilter.load(GONE + part)
                netfilter.mend(sets)
                if not any(_is_ours(each.key) for each in self._differences(netfilter, now)):
                    return
            except OSError:  # the batch did not fit what is there: nothing of it is in force
                pass
        self._last = None
        self._load_whole(netfilter, wanted, elements)

    def _load_whole(self, netfilter: Netfilter, wanted: nft.Rules, elements: large.Elements) -> None:
        """Load the rules, then fill the large sets: while those are empty, what only they allow is denied. Raises OSError."""
        if elements:
            try:
                netfilter.load(wanted.text(without=elements.keys()))
                netfilter.mend(elements)
                return
            except OSError:  # the kernel takes no elements as it gave them: all of it as text
                pass
        netfilter.load(wanted.text())

    def _elements(self, netfilter: Netfilter) -> large.Elements:
        """Return what the large sets should hold; none where the rules could not be tried."""
        try:
            return netfilter.tried(self.rules().text(live=False)).elements
        except (OSError, Rejected):
            return {}

    def notices(self, now: float) -> list[Notice]:
        """Return one notice for each commit on our tables that left no difference, and for each name that leads elsewhere."""
        changes = self._names.changes() if self._names else []
        return self._blame.notices() + [_leads_elsewhere(change) for change in changes]

    def _differences(self, netfilter: Netfilter, now: float) -> list[Difference]:
        wanted = self.rules()
        generation = netfilter.generation()
        if self._last is not None and self._last[:2] == (generation, wanted) and self._fresh(now):
            return self._last[2]
        begun = time.monotonic()
        tried = netfilter.tried(wanted.text(live=False))
        found = netfilter.own(tried)
        differences = [
            Difference(change.key, change.wanted, change.found)
            for change in compare.changes(
                compare.filled(tried.canonical, found, wanted.tables, self._fading(), self._untold()), found
            )
        ]
        differences = [each for each in differences if not self._over(each.key)]
        netfilter.standing = None if differences else (generation, wanted.tables)
        self._foreign = self._foreigners.differences(netfilter)
        differences += self._foreign
        # Only what was true at one generation may be remembered under it.
        self._last = (generation, wanted, differences) if netfilter.generation() == generation else None
        self._looked_at = now
        self._look_took_s = time.monotonic() - begun
        if self._last is None:
            netfilter.standing = None
        return differences

    def _outrun(self, netfilter: Netfilter, culprits: list[Culprit], why: str) -> list[Difference]:
        """Return what is to be loaded unseen: our rules always, and by name each table that somebody has written to.

        Another look is asked for: when it is calmer it lists again. Commits on other tables alone excuse no isolation,
        and so are no difference of a table of ours.
        """
        netfilter.wake()
        links = tuple(pair for pair in link.LINK_TABLES if self.around.posture == "isolated")
        wanted = {("inet", GUARD_TABLE), *nft.OWN_TABLES, *links}
        touched = sorted({pair for each in culprits for pair in each.tables if pair in wanted})
        found = [Difference(f"{family} {name} table {name}", "unchanged", why) for family, name in touched]
        return [*found, Difference(_RULESET, "unchanged", why), *self._foreign]

    def _over(self, key: str) -> bool:
        """Tell whether a set belongs to a grant whose time has just come: the kernel was faster than the next pass."""
        name = key.rpartition(" set ")[2]
        now_s = self.around.host.uptime_s() if self.around.grants else 0.0
        return any(
            name.startswith(f"grant{each.id}_") and each.ends_s <= now_s for each in self.around.grants
        )

    def _fading(self) -> frozenset[str]:
        return frozenset() if self._names is None else self._names.fading()

    def _untold(self) -> frozenset[str]:
        """Return the sets whose names nobody has answered for yet: what is in them came from the agent before this one."""
        names = frozenset() if self._names is None else self._answers(self._names).untold
        zones = [zone for zone, each in self.section.zones.items() if names.intersection(each.names)]
        return frozenset(f"name{version}_{zone}" for zone in zones for version in (4, 6))

    def _unresolved(self, here: Local) -> list[Difference]:
        """Return what the section names and this node does not know. A unit that does not run is none of that."""
        users = [name for name in local.owners(self.section)[0] if name not in here.users]
        found = [Difference(f"user {name}", "a user of this machine", "no such user") for name in users]
        if self._names is None:
            return found
        for name, why in sorted(self._names.failed().items()):
            found.append(could_not_look(f"name {name}", "addresses", OSError(0, why)))
        objections = sorted(self._names.objections().items())
        return found + [
            Difference(f"name {name} answers", "addresses elsewhere", why) for name, why in objections
        ]

    def _fresh(self, now: float) -> bool:
        pause_s = max(_FULL_LOOK_S, self._look_took_s / _FULL_LOOK_SHARE)
        return abs(now - self._looked_at) < pause_s


def _is_ours(key: str) -> bool:
    """Tell whether a drift is of our tables, so that loading them mends it."""
    return key == _RULESET or (key.split(" ", maxsplit=1)[0] in _FAMILIES and not is_beneath(key))


def _is_cut(key: str) -> bool:
    return key == _RULESET or key.startswith(f"inet {nft.CUT_TABLE} ")


def _leads_elsewhere(change: Change) -> Notice:
    detail = {"name": change.name, "before": " ".join(change.before), "now": " ".join(change.now)}
    detail = {key: never_more(text, 2048) for key, text in detail.items()}
    summary = f"{change.name} leads to {', '.join(change.now[:8]) or 'nothing'}"
    return Notice("firewall.name-changed", "info", summary, detail)

"""The kernel's firewall as it stands in one network namespace, and the only way to it (libnftables, netlink).

What is wanted is never computed from a listing and no listing is ever loaded: the wanted text is loaded in a
throw-away network namespace and the two listings are compared. That is also the dry run.

Refuses to flush anything that is not ours. Relies on: CAP_NET_ADMIN for everything, CAP_SYS_ADMIN for the
throw-away namespace; libnftables.so.1; the network namespace of the thread that makes the `Netfilter`.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agent.firewall import compare, flows, large, link, netlink, pins, routes
from agent.firewall.apart import Apart
from agent.firewall.compare import Canonical
from agent.firewall.counts import Count, Tally, counts
from agent.firewall.events import Culprit, Events
from agent.firewall.fast import render_fast
from agent.firewall.foreign import ForeignChain
from agent.firewall.granted import seen_set
from agent.firewall.holds import owner
from agent.firewall.kept import Kept
from agent.firewall.library import NetfilterError, context, parsed, run
from agent.firewall.listing import NOTHING, Loaded, foreign, in_own_namespace, loaded, own
from agent.firewall.match import CUT_TABLE, is_ours
from agent.firewall.model import Model
from agent.firewall.nft import OWN_TABLES, TABLE, render, render_cut, render_lockdown
from agent.firewall.outrun import Outrunning
from agent.firewall.programs import Program, attached, remove
from agent.firewall.section import Neighbour
from agent.firewall.spare import Names, held
from agent.firewall.tables import Table
from agent.probes import Difference
from contract.errors import Rejected

__all__ = ["Culprit", "Events", "Netfilter", "NetfilterError", "render", "render_cut", "render_lockdown"]

_REMEMBERED_TEXTS = 16
_MAX_NOTED = 64
_ANEW = tuple(f"delete table {family} {TABLE}\n" for family in ("inet", "arp"))


def _heard() -> contextlib.AbstractContextManager[Callable[[], object]]:
    return contextlib.nullcontext(lambda: None)


class Cut(NamedTuple):
    """What isolates, as it is kept ready."""

    core: str
    """The cut table alone (`render_cut`): always loadable."""
    kept: Kept
    """Whose open flows are left alone."""
    links: str = ""
    """The cut of every interface (`agent.firewall.link`): refused where one of them has gone meanwhile."""


class Standing(NamedTuple):
    """The tables that stand under names that are ours."""

    ours: dict[tuple[str, str], netlink.Table]
    """Those in force, by their own names (`agent.firewall.spare`)."""
    remains: list[netlink.Table]
    """What earlier versions, or an agent before this one, have left."""
    held: list[netlink.Table]
    """Those that another process owns."""


class Netfilter:
    """The firewall of one network namespace. One thread at a time may use it; a lock sees to that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.outrunning = Outrunning()
        self._context = self.outrunning.made(context)
        self._talk = netlink.Talk()
        self._sockets = netlink.Talk(netlink.NETLINK_SOCK_DIAG)
        self._routes = netlink.Talk(routes.NETLINK_ROUTE)
        self._names = Names()
        self._families: dict[str, bool] = {}
        self._tally = Tally()
        self._known: dict[str, Loaded] = {}
        self._noted: deque[Culprit] = deque(maxlen=_MAX_NOTED)
        self.on_wake: Callable[[], object] = lambda: None
        """What `wake` calls; the loop sets it."""
        self.unheard: Callable[[], contextlib.AbstractContextManager[Callable[[], object]]] = _heard
        """Within, large sets are filled (`Events.unheard`); whoever listens sets it."""
        self.standing: tuple[int, tuple[Table, ...]] | None = None
        """What our tables were seen to be, and the generation it was seen at; the firewall probe keeps it."""
        self.prepared_cut: Cut | None = None
        """The cut of the baseline in force, ready to be loaded; the firewall probe keeps it."""

    def find(self) -> Netfilter:
        """Look at our tables under the names that the agent has in force, in another process than the agent's. Raises OSError."""
        self._names.find(netlink.tables(self._talk))
        return self

    def wake(self) -> None:
        """Ask for another look at the firewall. For any thread."""
        self.on_wake()

    def note(self, culprit: Culprit | None) -> None:
        """Others have committed: keep who, for the next observation. For the thread of `Events`."""
        self.outrunning.heard()
        self._noted.extend([culprit] if culprit is not None else [])

    def noted(self) -> list[Culprit]:
        """Return and forget the culprits that were noted, oldest first."""
        out = []
        while self._noted:
            out.append(self._noted.popleft())
        return out

    def load(self, text: str) -> None:
        """Put a batch into force, whole or not at all. Raises NetfilterError.

        One that fails because another process owns a table of ours is tried again under a spare name. One that only changes
        what stands finds nothing there, and fails.
        """
        with self._lock:
            anew = any(start in text for start in _ANEW)
            if anew:
                self._add_counts()
            try:
                run(self._context, self._names.text(text))
            except NetfilterError:
                if not self._names.leave(netlink.tables(self._talk)):
                    raise
                run(self._context, self._names.text(text))
            if anew:
                self._tally.begun_anew()

    def dropped(self, most: int) -> list[Count]:
        """Return what was dropped since `tell_dropped`, most packets first, over every load of the rules. Raises OSError."""
        with self._lock:
            self._add_counts()
        return self._tally.dropped(most)

    def tell_dropped(self, told: Sequence[Count]) -> None:
        """Note that these, from `dropped`, have arrived."""
        self._tally.tell(told)

    def _add_counts(self) -> None:
        """Take what the counters say. Where no rules stand they say nothing. Raises OSError."""
        found: list[Count] = []
        for family in ("inet", "arp"):
            found += self._counters(family)
        self._tally.add(found)

    def _counters(self, family: str) -> list[Count]:
        return counts(netlink.counters(self._talk, self._names.real((family, TABLE))))

    def _steady(self, what: str) -> contextlib.AbstractContextManager[None]:
        """List within: an end to it where commits come faster than libnftables reads. Raises Outrun."""
        return self.outrunning.listing(netlink.generation(self._talk), what)

    def check(self, text: str) -> None:
        """Dry run: load the batch where it harms nobody. Raises Rejected `firewall.refused` with the kernel's words."""
        self.canonical(text)

    def grant_use(self, grant: int) -> dict[str, int]:
        """Return bytes by address of those who used a grant since its rules were loaded. Raises NetfilterError, Outrun."""
        found: list[compare.Object] = []
        with self._lock, self._steady("grant"):
            for version in (4, 6):
                listed = f"list set inet {TABLE} {seen_set(grant, version).name}"
                found += parsed(run(self._context, self._names.text(listed)))
        return compare.counted(found)

    def generation(self) -> int:
        """Return the number of the last commit, ours or not; equal numbers mean that nothing was changed between."""
        with self._lock:
            return netlink.generation(self._talk)

    def listing(self, table: str, family: str = "inet") -> Canonical:
        """Return the canonical form of one table as it stands; empty where it is absent.

        Raises NetfilterError, also where libnftables prints something that is no JSON; Outrun.
        """
        with self._lock, self._steady("table"):
            return own(self._context, self._talk, ((family, table),), self._names)

    def tables(self) -> Standing:
        """Return every table that stands and is ours by its name. Raises OSError."""
        with self._lock:
            found = [each for each in netlink.tables(self._talk) if is_ours(each.name)]
            self._names.leave(found)
            by_others = held(found)
            free = [each for each in found if each not in by_others]
            places = [self._names.meant((each.family, each.name)) for each in free]
        ours = {place: each for place, each in zip(places, free, strict=True) if place is not None}
        remains = [each for place, each in zip(places, free, strict=True) if place is None]
        return Standing(ours, remains, by_others)

    def cut_devices(self) -> frozenset[str]:
        """Return the interfaces that our netdev chains hold both ways. Raises OSError."""
        with self._lock:
            found = netlink.chain_devices(self._talk, self._names.real(("netdev", CUT_TABLE))[1])
        return frozenset(found[0] & found[1]) if len(found) == 2 else frozenset()

    def ways(self, meant: Model) -> link.Ways:
        """Return the interfaces of the moment and the ways to whom an isolated node may talk to. Raises OSError."""
        wanted = [element.partition(" . ")[0] for _, elements in meant.controller for element in elements]
        with self._lock:
            found = routes.links(self._routes)
            hops = [routes.next_hop(self._routes, each) for each in (*wanted, *link.kept_addresses(meant))]
        return link.ways(found, [hop for hop in hops if hop is not None], link.kept_interfaces(meant))

    def knows(self, family: str) -> bool:
        """Tell whether the kernel knows a family of nftables ("arp", "bridge"); tried once, where it harms nobody."""
        if family not in self._families:
            try:
                in_own_namespace(lambda: run(context(), f"add table {family} ringfence_cut"))
                self._families[family] = True
            except NetfilterError:
                self._families[family] = False
        return self._families[family]

    def interfaces(self) -> list[str]:
        """Return the names of the interfaces of the moment. Raises OSError."""
        with self._lock:
            return [each.name for each in routes.links(self._routes)]

    def offloads(self) -> bool:
        """Tell whether kernel and library have flowtables; tried once, where it harms nobody."""
        if "flowtable" not in self._families:
            try:
                self.check(render_fast(("lo", "lo")))
                self._families["flowtable"] = True
            except (NetfilterError, Rejected):
                self._families["flowtable"] = False
        return self._families["flowtable"]

    def neighbours(self, wanted: Sequence[Neighbour]) -> list[Difference]:
        """Return what differs of the pinned neighbours (`agent.firewall.pins`). Raises OSError."""
        with self._lock:
            return pins.differences(self._routes, wanted)

    def pin(self, wanted: Sequence[Neighbour], keys: Sequence[str]) -> None:
        """Mend what differs of the pinned neighbours. Raises OSError."""
        with self._lock:
            pins.repair(self._routes, wanted, keys)

    def programs(self) -> list[Program]:
        """Return XDP programs and tc filters on the interfaces (`agent.firewall.programs`). Raises OSError."""
        with self._lock:
            return attached(self._routes)

    def remove_program(self, program: Program) -> None:
        """Take one out. Raises OSError."""
        with self._lock:
            remove(self._routes, program)

    def counts(self) -> list[Count]:
        """Return what our rules have counted. Raises NetfilterError where no rules are loaded."""
        with self._lock:
            found = self._counters("inet")
        if not found:
            raise NetfilterError(errno.ENOENT, "no rules of ours are loaded")
        return found

    def own(self, like: Loaded = NOTHING) -> Canonical:
        """Return the canonical form of our tables as they stand. Raises NetfilterError, Outrun.

        `like`: what is wanted (`tried`); large sets that are as there are not listed one by one.
        """
        with self._lock, self._steady("own"):
            return own(self._context, self._talk, OWN_TABLES, self._names, like)

    def mend(self, elements: large.Elements) -> None:
        """Make large sets of ours hold these elements and no other, each set in one commit. Raises OSError."""
        if not elements:
            return
        with self._lock, self.unheard() as committed:
            for key, wanted in elements.items():
                family, table, name = large.place_of(key)
                if large.mend(self._talk, (*self._names.real((family, table)), name), wanted):
                    committed()

    def canonical(self, text: str, tables: tuple[tuple[str, str], ...] = OWN_TABLES) -> Canonical:
        """Return what `own` (or `listing` of each of `tables`) would return with nothing but `text` loaded.

        Raises as `tried`.
        """
        return self.tried(text, tables).canonical

    def tried(self, text: str, tables: tuple[tuple[str, str], ...] = OWN_TABLES) -> Loaded:
        """Return what the kernel makes of `text` alone, and what the large sets of `tables` hold then; remembered.

        Raises Rejected `firewall.refused` if nftables refuses the text, NetfilterError if the namespace cannot be made.
        """
        known = self._known.get(text)
        if known is None:
            known = in_own_namespace(lambda: loaded(text, tables))
            while len(self._known) >= _REMEMBERED_TEXTS:
                del self._known[next(iter(self._known))]
            self._known[text] = known
        return known

    def foreign(self) -> list[ForeignChain]:
        """Return the chains of other programs that accept, drop or rewrite. Raises NetfilterError, Outrun.

        A dormant table sees no packet and is passed over. One that cannot be listed safely counts as rewriting.
        """
        with self._lock, self._steady("foreign"):
            return foreign(self._context, self._talk)

    def remove_tables(self, listed: Sequence[netlink.Table]) -> None:
        """Delete tables, as the kernel has listed them, in one commit. Raises OSError: EPERM for one that is owned."""
        with self._lock:
            netlink.delete_tables(self._talk, listed)

    def remove_named(self, family: str, table: str) -> None:
        """Delete tables by their name; a name that cannot be written may be that of several. Raises OSError."""
        with self._lock:
            found = [
                each for each in netlink.tables(self._talk) if (each.family, each.name) == (family, table)
            ]
            netlink.delete_tables(self._talk, found)

    def owners(self, family: str, table: str) -> list[str]:
        """Return who owns tables of that name: nobody else can change those. Raises OSError."""
        with self._lock:
            listed = netlink.tables(self._talk)
        return [owner(each) for each in listed if each.owner and (each.family, each.name) == (family, table)]

    def remove_rules(self, rules: Sequence[netlink.Rule], generation: int) -> None:
        """Delete rules in one commit. Raises OSError: ERESTART where somebody has committed since `generation`."""
        with self._lock:
            netlink.delete_rules(self._talk, rules, generation)

    def withdraw(self) -> bool:
        """Delete our own tables, all in one commit; return whether one was there. What others hold is theirs. Raises OSError."""
        with self._lock:
            found = [each for each in netlink.tables(self._talk) if is_ours(each.name)]
            own = [each for each in found if each not in held(found)]
            self._add_counts()
            netlink.delete_tables(self._talk, own)
            self._tally.begun_anew()
        return bool(own)

    def cut_now(self, cut: Cut) -> tuple[int, int]:
        """Isolate at once: commit the cut, then end open flows but those that it keeps.

        Returns (connection tracking entries deleted, sockets destroyed). Raises OSError, and only when every part was
        tried: an interface that has gone since the cut was prepared holds nothing up.
        """
        parts = Apart()
        ended = [0, 0]
        with parts.each():
            self.load(cut.core)
        with parts.each():
            if cut.links:
                self.load(cut.links)
        with parts.each():
            ended[0] = self.flush_conntrack(cut.kept)
        with parts.each():
            ended[1] = self.kill_sockets(cut.kept)
        parts.end()
        return ended[0], ended[1]

    def flush_conntrack(self, kept: Kept) -> int:
        """Delete connection tracking entries; see `agent.firewall.flows`."""
        with self._lock:
            return flows.flush_conntrack(self._talk, flows.Here(self._routes), kept)

    def judge_again(self, mark: int) -> int:
        """Have the rules judge again each flow that carries this mark; see `agent.firewall.flows`. Raises OSError."""
        with self._lock:
            return flows.judge_again(self._talk, mark)

    def kill_sockets(self, kept: Kept) -> int:
        """Destroy connected sockets; see `agent.firewall.flows`."""
        with self._lock:
            return flows.kill_sockets(self._sockets, flows.Here(self._routes), kept)

    def close(self) -> None:
        """Give back the sockets. The rules stay: an agent that ends never opens the fence."""
        self._talk.close()
        self._sockets.close()
        self._routes.close()

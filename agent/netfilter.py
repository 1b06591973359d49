"""The kernel's firewall as it stands in one network namespace, and the only way to it (libnftables, netlink).

What is wanted is never computed from a listing and no listing is ever loaded: the wanted text is loaded in a
throw-away network namespace and the two listings are compared. That is also the dry run.

Refuses to flush anything that is not ours. Relies on: CAP_NET_ADMIN for everything, CAP_SYS_ADMIN for the
throw-away namespace; libnftables.so.1; the network namespace of the thread that makes the `Netfilter`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import nftables

from agent.firewall import compare, flows, link, netlink, pins, routes, xtables
from agent.firewall.compare import Canonical
from agent.firewall.counts import Count, Tally, counts
from agent.firewall.events import Culprit, Events
from agent.firewall.fast import render_fast
from agent.firewall.foreign import ForeignChain, foreign_chains, unreadable
from agent.firewall.granted import seen_set
from agent.firewall.library import NetfilterError, context, parsed, run, version
from agent.firewall.match import CUT_TABLE, is_ours
from agent.firewall.model import Model
from agent.firewall.nft import OWN_TABLES, TABLE, render, render_cut, render_lockdown
from agent.firewall.outrun import Outrun, Outrunning
from agent.firewall.programs import Program, attached, remove
from agent.firewall.section import Neighbour
from agent.firewall.tables import Table
from agent.probes import Difference
from contract.errors import Rejected

__all__ = ["Culprit", "Events", "Netfilter", "NetfilterError", "render", "render_cut", "render_lockdown"]

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_REMEMBERED_TEXTS = 16
_MAX_NOTED = 64
_ANEW = tuple(f"delete table {family} {TABLE}\n" for family in ("inet", "arp"))
_TRIES = 8
"""A manager of containers commits every few milliseconds while it sets up a network."""
_DORMANT = 1
_FLAG_NAMES = {_DORMANT: "dormant", 2: "owner", 4: "persist"}
_FLAGS_SAFE_SINCE = (1, 0, 8)
"""Before it, libnftables' JSON reads freed memory where a table has flags."""


class Cut(NamedTuple):
    """What isolates, as it is kept ready."""

    core: str
    """The cut table alone (`render_cut`): always loadable."""
    links: str = ""
    """The cut of every interface (`agent.firewall.link`): refused where one of them has gone meanwhile."""


class Netfilter:
    """The firewall of one network namespace. One thread at a time may use it; a lock sees to that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.outrunning = Outrunning()
        self._context = self.outrunning.made(context)
        self._talk = netlink.Talk()
        self._sockets = netlink.Talk(netlink.NETLINK_SOCK_DIAG)
        self._routes = netlink.Talk(routes.NETLINK_ROUTE)
        self._families: dict[str, bool] = {}
        self._lists_flags = version(self._context) >= _FLAGS_SAFE_SINCE
        self._tally = Tally()
        self._known: dict[str, Canonical] = {}
        self._noted: deque[Culprit] = deque(maxlen=_MAX_NOTED)
        self.on_wake: Callable[[], object] = lambda: None
        """What `wake` calls; the loop sets it."""
        self.standing: tuple[int, tuple[Table, ...]] | None = None
        """What our tables were seen to be, and the generation it was seen at; the firewall probe keeps it."""
        self.prepared_cut: Cut | None = None
        """The cut of the baseline in force, ready to be loaded; the firewall probe keeps it."""

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
        """Put a batch into force, whole or not at all. Raises NetfilterError."""
        with self._lock:
            anew = any(start in text for start in _ANEW)
            if anew:
                with contextlib.suppress(Outrun):  # what they had counted since the last look is lost
                    self._add_counts()
            run(self._context, text)
            if anew:
                self._tally.begun_anew()

    def dropped(self, most: int) -> list[Count]:
        """Return what was dropped since `tell_dropped`, most packets first, over every load of the rules.

        Where commits outrun a look at the counters, up to the last look.
        """
        with self._lock, contextlib.suppress(Outrun):
            self._add_counts()
        return self._tally.dropped(most)

    def tell_dropped(self, told: Sequence[Count]) -> None:
        """Note that these, from `dropped`, have arrived."""
        self._tally.tell(told)

    def _add_counts(self) -> None:
        """Take what the counters say. Where no rules stand they say nothing. Raises Outrun."""
        found: list[Count] = []
        for family in ("inet", "arp"):
            with contextlib.suppress(NetfilterError), self._steady("counters"):
                found += counts(parsed(run(self._context, f"list counters table {family} {TABLE}")))
        self._tally.add(found)

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
                found += parsed(run(self._context, listed))
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
            return _listing(self._context, self._talk, (family, table))

    def standing_tables(self) -> list[netlink.Table]:
        """Return every table that stands and is ours by its name, also of earlier versions. Raises OSError."""
        with self._lock:
            return [each for each in netlink.tables(self._talk) if is_ours(each.name)]

    def cut_devices(self) -> frozenset[str]:
        """Return the interfaces that our netdev chains hold both ways. Raises OSError."""
        with self._lock:
            held = netlink.chain_devices(self._talk, CUT_TABLE)
        return frozenset(held[0] & held[1]) if len(held) == 2 else frozenset()

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
                _in_own_namespace(lambda: run(context(), f"add table {family} ringfence_cut"))
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
        """Return what our rules have counted. Raises NetfilterError, also where no rules are loaded; Outrun."""
        with self._lock, self._steady("counters"):
            return counts(parsed(run(self._context, f"list counters table inet {TABLE}")))

    def own(self) -> Canonical:
        """Return the canonical form of our tables as they stand. Raises NetfilterError, Outrun."""
        with self._lock, self._steady("own"):
            return _own(self._context, self._talk)

    def canonical(self, text: str, tables: tuple[tuple[str, str], ...] = OWN_TABLES) -> Canonical:
        """Return what `own` (or `listing` of each of `tables`) would return with nothing but `text` loaded.

        Raises Rejected `firewall.refused` if nftables refuses the text, NetfilterError if the namespace cannot be made.
        """
        known = self._known.get(text)
        if known is None:
            known = _in_own_namespace(lambda: _loaded(text, tables))
            while len(self._known) >= _REMEMBERED_TEXTS:
                del self._known[next(iter(self._known))]
            self._known[text] = known
        return known

    def foreign(self) -> list[ForeignChain]:
        """Return the chains of other programs that accept, drop or rewrite. Raises NetfilterError, Outrun.

        A dormant table sees no packet and is passed over. One that cannot be listed safely counts as rewriting.
        """
        objects: list[compare.Object] = []
        unread: list[ForeignChain] = []
        leads: dict[tuple[str, str, int], str] = {}
        with self._lock, self._steady("foreign"):
            for table in netlink.tables(self._talk):
                if is_ours(table.name) or table.flags & _DORMANT:
                    continue
                if _is_plain(table.name) and (not table.flags or self._lists_flags):
                    try:
                        listed, found = self._read(table.family, table.name)
                    except NetfilterError:
                        if table in netlink.tables(self._talk):
                            raise
                        continue  # it went while it was read: firewalld has one for a moment at each reload
                    objects += parsed(listed)
                    leads |= {(table.family, table.name, handle): to for handle, to in found.items()}
                else:
                    unread.append(unreadable(table.family, table.name))
        return foreign_chains(objects, (), leads) + unread

    def _read(self, family: str, table: str) -> tuple[str, dict[int, str]]:
        """Return a table's listing and where its xtables DNAT leads, both of one moment."""
        for _ in range(_TRIES):
            before = netlink.generation(self._talk)
            listed = run(self._context, f"list table {family} {table}")
            found = xtables.destinations(self._talk, family, table) if '"DNAT"' in listed else {}
            if netlink.generation(self._talk) == before:
                break
        return listed, found

    def remove_table(self, family: str, table: str) -> None:
        """Delete a foreign table; family and name as listed by the kernel. Raises NetfilterError."""
        if not _is_plain(table):
            raise NetfilterError(errno.EINVAL, f"table {table!r} has a name that cannot be written")
        self.load(f"delete table {family} {table}\n")

    def withdraw(self) -> bool:
        """Delete our own tables, all in one batch; return whether one was there. Raises NetfilterError."""
        with self._lock:
            own = [each for each in netlink.tables(self._talk) if is_ours(each.name)]
        if own:
            self.load("".join(f"delete table {each.family} {each.name}\n" for each in own))
        return bool(own)

    def cut_now(self, cut: Cut, keep: Iterable[flows.Peer]) -> tuple[int, int]:
        """Isolate at once: commit the cut, then end open flows but those to `keep`.

        Returns (connection tracking entries deleted, sockets destroyed). Raises NetfilterError, OSError; once the
        commit is done packets are dropped whatever fails after it. An interface that has gone since the cut was
        prepared does not hold it up: then the core stands at once, and the error comes last.
        """
        kept = tuple(keep)
        refused: NetfilterError | None = None
        self.load(cut.core)
        try:
            if cut.links:
                self.load(cut.links)
        except NetfilterError as error:
            refused = error
        ended = self.flush_conntrack(kept), self.kill_sockets(kept)
        if refused is not None:
            raise refused
        return ended

    def flush_conntrack(self, keep: Iterable[flows.Peer]) -> int:
        """Delete connection tracking entries; see `agent.firewall.flows`."""
        with self._lock:
            return flows.flush_conntrack(self._talk, keep)

    def kill_sockets(self, keep: Iterable[flows.Peer]) -> int:
        """Destroy connected sockets; see `agent.firewall.flows`."""
        with self._lock:
            return flows.kill_sockets(self._sockets, keep)

    def close(self) -> None:
        """Give back the sockets. The rules stay: an agent that ends never opens the fence."""
        self._talk.close()
        self._sockets.close()
        self._routes.close()


def _is_plain(name: str) -> bool:
    """Tell whether a name that others chose can be written into a command as it stands."""
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name) is not None


def _listing(within: nftables.Nftables, talk: netlink.Talk, wanted: tuple[str, str]) -> Canonical:
    family, table = wanted
    for present in netlink.tables(talk):
        if (present.family, present.name) == wanted:
            if present.flags:
                # Never listed: ours has no flags, and older libraries read freed memory when they print them.
                names = [name for bit, name in _FLAG_NAMES.items() if present.flags & bit]
                return {f"{family} {table} table {table}": (f"flags {' '.join(names) or present.flags}",)}
            return compare.canonical(parsed(run(within, f"list table {family} {table}")))
    return {}


def _own(
    within: nftables.Nftables, talk: netlink.Talk, tables: tuple[tuple[str, str], ...] = OWN_TABLES
) -> Canonical:
    return {key: lines for table in tables for key, lines in _listing(within, talk, table).items()}


def _loaded(text: str, tables: tuple[tuple[str, str], ...]) -> Canonical:
    own = context()
    try:
        run(own, link.on_loopback(text))
    except NetfilterError as error:
        raise Rejected("firewall.refused", str(error.strerror)) from None
    talk = netlink.Talk()
    try:
        return _own(own, talk, tables)
    finally:
        talk.close()


def _in_own_namespace(work: Callable[[], T]) -> T:
    """Run `work` on a thread with a network namespace of its own, which ends with it."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                raise NetfilterError(code, f"unshare: {os.strerror(code)}")
            results.append(work())
        except (OSError, Rejected, ValueError) as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="nftables-dry-run")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]

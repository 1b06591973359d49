"""The chains of other programs beside our rules: told, and taken out where they may lead packets past ours.

Whoever may do that is never left standing while the firewall is enforced, whatever `foreign` says: its rules are deleted, one by one by
their handles, so that a manager whose chains stand in the same table goes on (docs/adr/0025-foreign-rewriting.md). Whole tables
are deleted with `foreign = "remove"`, in posture `isolated` those that send frames elsewhere below IP, and such as cannot be read.

Refuses to touch what the section names under `known`, and the tables of the manager of the node's containers as a whole. What another
process owns the kernel lets nobody else change: then it is said who that is.
Relies on: `agent.netfilter`; `agent.firewall.foreign` for what a chain does.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.firewall import managers
from agent.firewall.apart import Apart
from agent.firewall.foreign import EVERY, LEADS_PAST, ForeignChain
from agent.firewall.netlink import Rule
from agent.firewall.section import Section
from agent.probes import Difference
from contract.messages import Drift

if TYPE_CHECKING:
    from agent.netfilter import Netfilter

PREFIX = "foreign:"
_TRIES = 8
"""A manager of containers commits every few milliseconds while it sets up a network."""


class Foreigners:
    """Of one section."""

    def __init__(self, section: Section) -> None:
        self._section = section

    def differences(self, netfilter: Netfilter) -> list[Difference]:
        """Return one for each chain that is not accounted for. Raises NetfilterError, Outrun."""
        return [Difference(_key(each), each.wanted, each.describe()) for each in self._unknown(netfilter)]

    def _unknown(self, netfilter: Netfilter) -> list[ForeignChain]:
        known = {(each.family, each.table) for each in self._section.known}
        return [
            chain
            for chain in netfilter.foreign()
            if (chain.family, chain.table) not in known
            and not managers.is_expected(self._section.containers, chain)
        ]

    def repair(self, netfilter: Netfilter, drifts: Iterable[Drift], *, isolated: bool) -> None:
        """Take out what `drifts` tell of and what may not stand. Raises OSError, when everything was tried."""
        found = [each for each in drifts if each.key.startswith(PREFIX)]
        leading = {each.key for each in found if leads_past(each)}
        whole = {table_of(key) for key in leading if key.endswith(f" {EVERY}")}
        if self._section.foreign == "remove":
            whole |= {table_of(each.key) for each in found}
        elif isolated:
            whole |= {table_of(each.key) for each in found if _rewrites_below(each)}
        # Other chains of it carry the containers' traffic.
        whole = {place for place in whole if not managers.is_managers(self._section.containers, *place)}
        parts = Apart()
        for place in sorted(whole):
            with parts.each(), _naming_the_owner(netfilter, *place):
                netfilter.remove_named(*place)
        for place in sorted({table_of(key) for key in leading} - whole):
            with parts.each(), _naming_the_owner(netfilter, *place):
                self._take_out(netfilter, {key for key in leading if table_of(key) == place})
        parts.end()

    def _take_out(self, netfilter: Netfilter, keys: set[str]) -> None:
        """Delete the rules of chains that may lead past ours, as they stand at one moment. Raises OSError."""
        for again in range(_TRIES):
            generation = netfilter.generation()
            rules = [
                Rule(chain.family, chain.table, chain.chain, handle)
                for chain in self._unknown(netfilter)
                if _key(chain) in keys
                for handle in chain.past
            ]
            try:
                netfilter.remove_rules(rules, generation)
            except OSError as error:
                if error.errno == errno.ERESTART and again < _TRIES - 1:
                    continue  # somebody has committed since: a handle may mean another rule by now
                raise
            return


@contextmanager
def _naming_the_owner(netfilter: Netfilter, family: str, table: str) -> Iterator[None]:
    """Say who owns a table, where that is why the kernel refuses to change it: firewalld owns its own since 2.1."""
    try:
        yield
    except PermissionError as error:
        owners = netfilter.owners(family, table)
        if not owners:
            raise
        said = f"table {family} {table} can be changed by its owner alone, {' and '.join(owners)}"
        raise PermissionError(error.errno, said) from None


def leads_past(drift: Drift) -> bool:
    """Tell whether a drift is of a foreign chain that may lead packets past our rules."""
    return drift.key.startswith(PREFIX) and drift.wanted == LEADS_PAST


def table_of(key: str) -> tuple[str, str]:
    """Return (family, table) of "foreign:<family> <table> <chain>"."""
    family, table = key.removeprefix(PREFIX).split(" ")[:2]
    return family, table


def _key(chain: ForeignChain) -> str:
    return f"{PREFIX}{chain.family} {chain.table} {chain.chain}"


def _rewrites_below(drift: Drift) -> bool:
    """Tell whether a foreign chain sends frames elsewhere below IP: nothing that an isolated node could need."""
    return drift.key.startswith(f"{PREFIX}netdev ") and "rewrites" in drift.found

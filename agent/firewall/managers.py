"""Tables of the program that manages this node's containers: what may stand beside ours, by what it does. Pure.

Docker, netavark and CNI write into tables that others write into as well (`ip nat`, `ip filter` of iptables-nft). So no
table is trusted by its name: a chain is the manager's by its own name or as one of iptables' built-in ones, and only
as far as it accepts, masquerades, marks packets (not connections), drops what is forwarded, and leads by DNAT to
addresses of containers. Everything else in the same tables stays drift. None of it opens anything: what passes is
decided by our own rules.

Refuses nothing. Relies on: `agent.firewall.foreign` for what a chain does.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from agent.firewall.foreign import ForeignChain
from agent.firewall.section import Containers, checked_network

_IPTABLES = frozenset({"nat", "filter", "raw", "mangle"})
_BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})


class _Manager(NamedTuple):
    chains: re.Pattern[str]
    """Its own chains in the tables of iptables."""
    tables: frozenset[tuple[str, str]]
    """Its own tables, where it speaks nftables itself."""


_MANAGERS = {
    "docker": _Manager(
        re.compile(r"DOCKER(-[A-Z0-9-]+)?"), frozenset({("ip", "docker-bridges"), ("ip6", "docker-bridges")})
    ),
    "podman": _Manager(re.compile(r"(NETAVARK|CNI)[_-][A-Za-z0-9_-]+"), frozenset({("inet", "netavark")})),
    "cni": _Manager(
        re.compile(r"CNI-[A-Za-z0-9-]+"),
        frozenset({("ip", "cni_hostport"), ("ip6", "cni_hostport"), ("inet", "cni_plugins_masquerade")}),
    ),
}


def is_managers(containers: Containers | None, family: str, table: str) -> bool:
    """Tell whether the manager writes into a table: it is never deleted, whatever else stands there."""
    if containers is None:
        return False
    shared = family in {"ip", "ip6"} and table in _IPTABLES
    return shared or (family, table) in _MANAGERS[containers.manager].tables


def is_expected(containers: Containers | None, chain: ForeignChain) -> bool:
    """Tell whether a chain is the manager's and does only what such a program does."""
    if containers is None or not is_managers(containers, chain.family, chain.table) or chain.past:
        return False
    manager = _MANAGERS[containers.manager]
    own = (chain.family, chain.table) in manager.tables or manager.chains.fullmatch(chain.chain) is not None
    if not own and chain.chain not in _BUILT_IN:
        return False
    if "drops" in chain.effects and not own and not _may_drop(chain):
        return False
    return all(_is_expected_rewrite(containers, how) for how in chain.rewrites)


def _may_drop(chain: ForeignChain) -> bool:
    """Docker drops what is forwarded and not its own, and before routing what asks for a container directly."""
    return (chain.table, chain.chain) in {("filter", "FORWARD"), ("raw", "PREROUTING")}


def _is_expected_rewrite(containers: Containers, how: str) -> bool:
    kind, _, to = how.partition(" ")
    if kind != "dnat":
        return kind in {"masquerade", "mark"}
    try:
        address = ipaddress.ip_address(to)
    except ValueError:
        return False
    networks = [checked_network(text) for text in containers.addresses]
    return any(address.version == each.version and address in each for each in networks)

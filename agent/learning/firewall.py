"""Draft of `[firewall]`: zones from the node's own networks and its peers, rules from listening sockets and live flows.

A flow that is not there while this runs is not learned, nor is what passes through this node. The way to the controller is added
by the agent and is left out.
"""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from typing import NamedTuple

from agent.learning import Draft, entry, section, table
from agent.probes import Surroundings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAMES_PORT = 53
_MANY = 64
"""Past so many peers beyond the node's own networks a person should say which network that is."""


class _Way(NamedTuple):
    zone: str
    protocol: str
    port: int


def draft(around: Surroundings) -> Draft:
    """Return zones and rules. Raises OSError."""
    host = around.host
    networks = host.networks()
    listening = {
        (each.protocol, each.port)
        for each in host.listeners()
        if not ipaddress.ip_address(each.address).is_loopback
    }
    ephemeral = host.ephemeral_ports()
    listening = {each for each in listening if each[0] == "tcp" or each[1] not in ephemeral}
    inbound: set[_Way] = set()
    outbound: set[_Way] = set()
    remote: dict[str, set[Address]] = defaultdict(set)
    for flow in host.flows():
        peer = ipaddress.ip_address(flow.remote)
        if peer.is_loopback or (flow.remote, flow.remote_port) in around.controller:
            continue
        comes_in = (flow.protocol, flow.local_port) in listening
        zone = _zone_of(peer, networks) or ("callers" if comes_in else "called")
        if zone in ("callers", "called"):
            remote[zone].add(peer)
        ways, port = (inbound, flow.local_port) if comes_in else (outbound, flow.remote_port)
        ways.add(_Way(zone, flow.protocol, port))
    for protocol, port in listening - {(way.protocol, way.port) for way in inbound}:
        inbound |= {_Way(zone, protocol, port) for zone in networks}
    servers = _name_servers(around)
    if servers:
        remote["names"] = set(servers)
        outbound |= {_Way("names", protocol, _NAMES_PORT) for protocol in ("tcp", "udp")}
    return _written(networks, remote, inbound, outbound)


def _written(
    networks: dict[str, list[Network]],
    remote: dict[str, set[Address]],
    inbound: set[_Way],
    outbound: set[_Way],
) -> Draft:
    decide = "enforced, what no rule below names is closed: read `ringfence-agent diff` for a week first"
    text = [section("firewall", {"foreign": "report"}, decide=decide)]
    for name, nets in networks.items():
        keys = {"interfaces": [name], "addresses": [str(net) for net in nets]}
        text.append(
            table(
                f"firewall.zones.{zone_name(name)}",
                keys,
                decide="the whole network on this interface: who of it?",
            )
        )
    for name, peers in sorted(remote.items()):
        if peers:
            many = (
                f"{len(peers)} peers: which network is this?"
                if len(peers) > _MANY
                else "seen while this ran: who are they?"
            )
            keys = {
                "addresses": [str(each) for each in sorted(peers, key=lambda one: (one.version, int(one)))]
            }
            text.append(table(f"firewall.zones.{name}", keys, decide=many))
    for direction, ways in (("inbound", inbound), ("outbound", outbound)):
        together: dict[tuple[str, str], set[int]] = defaultdict(set)
        for way in ways:
            together[way.zone, way.protocol].add(way.port)
        for (zone, protocol), ports in sorted(together.items()):
            rule = {"zone": zone_name(zone), "protocol": protocol, "ports": sorted(ports)}
            text.append(entry(f"firewall.{direction}", rule))
    return Draft("\n".join(text), ["firewall: ping, and what passes through this node, is not learned"])


def zone_name(interface: str) -> str:
    """Return an interface's name as a zone's: a-z, 0-9 and '-'."""
    return re.sub(r"[^a-z0-9]+", "-", interface.lower()).strip("-") or "zone"


def _zone_of(peer: Address, networks: dict[str, list[Network]]) -> str | None:
    return next((name for name, nets in networks.items() for net in nets if peer in net), None)


def _name_servers(around: Surroundings) -> list[Address]:
    try:
        text = around.host.read_file("/etc/resolv.conf", max_bytes=65536).decode("utf-8", "replace")
    except OSError:  # none, or a link to what a resolver on this node writes
        return []
    found = []
    for line in text.splitlines():
        keyword, _, value = line.strip().partition(" ")
        try:
            address = ipaddress.ip_address(value.strip())
        except ValueError:
            continue
        if keyword == "nameserver" and not address.is_loopback:
            found.append(address)
    return found

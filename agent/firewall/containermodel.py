"""What `[firewall.containers]` means under one posture. Pure: the second stage, beside `agent.firewall.model`.

In posture `isolated` containers have nothing: nothing is forwarded, and what the node keeps for itself is not theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.firewall import section as sections
from agent.firewall.model import Local, Service, Zone, service, zone_now
from agent.firewall.section import PortRange, Section
from contract.messages import Posture

_INSIDE = "_ctr"
"""No zone of a section can have this name."""


@dataclass(frozen=True, kw_only=True)
class PublishedTo:
    """Ports that one zone may ask for at the node, by protocol."""

    zone: Zone
    anywhere: tuple[tuple[str, tuple[PortRange, ...]], ...]
    """(protocol, ports): to whatever port of a container they lead."""
    onto: tuple[tuple[str, tuple[tuple[PortRange, int], ...]], ...]
    """(protocol, (ports asked for, the port that they must lead to))."""


@dataclass(frozen=True, kw_only=True)
class Contained:
    """Containers' networks and what may begin there, end there, or pass between them."""

    patterns: tuple[str, ...]
    """Interface names; with "*" at the end: what names begin with."""
    own: Zone
    """Their addresses; its interfaces stay empty."""
    zones: tuple[Zone, ...]
    egress: tuple[tuple[Zone, Service], ...]
    published: tuple[PublishedTo, ...]
    between: Service
    node: Service
    from_node: Service


def contained(section: Section, posture: Posture, local: Local) -> Contained | None:
    """Return the model, or None where the section says nothing of containers."""
    written = section.containers
    if written is None:
        return None
    open_now = posture != "isolated"
    egress = written.egress if open_now else []
    published = written.published if open_now else []
    names = sorted({rule.zone for rule in egress} | {rule.zone for rule in published})
    zones = {name: zone_now(name, section.zones[name], local) for name in names}
    return Contained(
        patterns=tuple(sorted(set(written.interfaces))),
        own=zone_now(_INSIDE, sections.Zone(addresses=written.addresses), local),
        zones=tuple(zones[name] for name in names),
        egress=tuple(
            (zones[name], service([rule for rule in egress if rule.zone == name]))
            for name in names
            if any(rule.zone == name for rule in egress)
        ),
        published=tuple(
            _published(zones[name], [rule for rule in published if rule.zone == name])
            for name in names
            if any(rule.zone == name for rule in published)
        ),
        between=service(written.between if open_now else []),
        node=service(written.node if open_now else []),
        from_node=service(written.from_node if open_now else []),
    )


def _published(zone: Zone, rules: Sequence[sections.Published]) -> PublishedTo:
    anywhere, onto = [], []
    for protocol in ("tcp", "udp"):
        mine = [rule for rule in rules if rule.protocol == protocol]
        free = [sections.port_range(p) for rule in mine if rule.container_port is None for p in rule.ports]
        if free:
            anywhere.append((protocol, tuple(sections.merged_ports(free))))
        by_port: dict[int, list[PortRange]] = {}
        for rule in mine:
            if rule.container_port is not None:
                by_port.setdefault(rule.container_port, []).extend(map(sections.port_range, rule.ports))
        if by_port:
            pairs = [
                (each, port) for port in sorted(by_port) for each in sections.merged_ports(by_port[port])
            ]
            onto.append((protocol, tuple(pairs)))
    return PublishedTo(zone=zone, anywhere=tuple(anywhere), onto=tuple(onto))

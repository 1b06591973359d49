"""From `[firewall]`, a posture and the surroundings to the text that nftables loads. Pure.

Table `inet ringfence` holds the rules; table `inet ringfence_cut` stands only in posture `isolated` and drops,
without looking at connection tracking, everything but the controller and what the signed posture names, so that
flows which were open before die at commit. Both are replaced in one batch, which `nft -f` can load as well.

Why it looks the way it does:
- Every chain ends in an explicit `drop`: `policy drop` alone lets packets through while a table is replaced under load.
- "Established" counts only for flows that *these* rules have let in: their connection mark carries a number made
  from the text of the rules (upper 16 bits; the lower are left to others). A flow that was opened while the rules
  were tampered with, or under rules that are no longer in force, is judged again, in both directions, by its
  original tuple, and goes on only where the rules of today allow it.
- An expected connection of a conntrack helper (RELATED) is not let in; only RELATED ICMP errors are.
- Flows that a foreign NAT rule has redirected towards or from this node are dropped: the destination that
  a rule names is the one the packet goes to.
- One jump for each zone, hash sets behind it: the cost does not grow with the length of a list.

Refuses to put any text into the output but names checked by the section's types, `ipaddress` values and integers.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Protocol as Interface
from typing import TypeVar

from agent.firewall import section as sections
from agent.firewall.section import PortRange, Section
from contract.messages import Posture

N = TypeVar("N", ipaddress.IPv4Network, ipaddress.IPv6Network)

TABLE = "ringfence"
CUT_TABLE = "ringfence_cut"
OWN_TABLES = (TABLE, CUT_TABLE)

_STATELESS = -310
"""Before raw (-300) and connection tracking (-200): nothing has classified the packet yet."""
_EPOCH = "@epoch@"
_FENCE_SETS = "@fences@"
_NEIGHBOURS = """\
\tchain neighbours {
\t\ticmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept
\t\ticmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } ip6 hoplimit 1 accept
\t}"""


class Endpoint(Interface):
    """An address and a TCP port of the controller."""

    @property
    def address(self) -> str: ...

    @property
    def port(self) -> int: ...


class Around(Interface):
    """What rendering takes from `agent.probes.Surroundings`."""

    @property
    def controller(self) -> Sequence[Endpoint]: ...

    @property
    def fenced(self) -> Sequence[str]: ...


def render(section: Section, posture: Posture, around: Around) -> str:
    """Return the whole batch: both tables deleted where they stand, and made anew as the posture wants them."""
    body = _main_table(section, posture, around)
    epoch = (int.from_bytes(hashlib.sha256(body.encode()).digest()[:2], "big") or 1) << 16
    # The fence is no part of the number: fencing a neighbour must not have every other flow judged again.
    fence = "\n".join(
        _set(f"fence{version}", f"ipv{version}_addr", addresses) for version, addresses in fences(around)
    )
    text = _replacing(TABLE) + _replacing(CUT_TABLE)
    text += body.replace(_EPOCH, f"0x{epoch:08x}").replace(_FENCE_SETS, fence)
    if posture == "isolated":
        text += _cut_table(section, around)
    return f"# Written by Ringfence, posture {posture}. Changes made by hand are undone.\n{text}"


def render_cut(section: Section, around: Around) -> str:
    """Return the small batch that isolates at once: the cut table alone, beside whatever rules are in force."""
    return _replacing(CUT_TABLE) + _cut_table(section, around)


def render_lockdown(around: Around) -> str:
    """Return the rules of a node without any baseline it can trust: the controller, and nothing else."""
    return render(Section(), "normal", around)


def fences(around: Around) -> list[tuple[int, list[str]]]:
    """Return the fenced addresses as (4, [...]) and (6, [...]), each in one spelling, sorted.

    The controller's own are left out: fencing them would take away the way to lift the fence.
    """
    fenced = {ipaddress.ip_address(text) for text in around.fenced}
    fenced -= {ipaddress.ip_address(endpoint.address) for endpoint in around.controller}
    return [(version, sorted(str(each) for each in fenced if each.version == version)) for version in (4, 6)]


def _replacing(table: str) -> str:
    return f"add table inet {table}\ndelete table inet {table}\n"


def _main_table(section: Section, posture: Posture, around: Around) -> str:
    inbound, outbound, forward = _rules(section, posture)
    peers = [*_addressees(inbound), *_addressees(outbound)]
    passing = sorted({(rule.source, rule.destination) for rule in forward})
    used = sorted({*peers, *(zone for pair in passing for zone in pair)})
    parts = [
        _FENCE_SETS,
        *_controller_sets(around),
        *(part for zone in used for part in _zone_sets(zone, section.zones[zone])),
    ]
    chains = [_fence_chains(), _NEIGHBOURS, _allow_chain()]
    dispatch_in: list[str] = []
    dispatch_out: list[str] = []
    for prefix, rules in (("in", inbound), ("out", outbound)):
        for zone in _addressees(rules):
            name = f"{prefix}_{zone}"
            sets, chain = _service(
                name, [rule for rule in rules if rule.zone == zone], "ct original proto-dst"
            )
            parts += sets
            chains.append(chain)
            side = "saddr" if prefix == "in" else "daddr"
            here = _matches(zone, section.zones[zone], "iifname", f"ct original {{}} {side}")
            there = _matches(zone, section.zones[zone], "oifname", f"ct original {{}} {side}")
            asking, answering = (here, there) if prefix == "in" else (there, here)
            first, second = (dispatch_in, dispatch_out) if prefix == "in" else (dispatch_out, dispatch_in)
            first += [f"ct direction original {match}jump {name}" for match in asking]
            second += [f"ct direction reply {match}jump {name}" for match in answering]
    dispatch_forward: list[str] = []
    for source, destination in passing:
        name = f"fwd_{source}_{destination}"
        through = [rule for rule in forward if (rule.source, rule.destination) == (source, destination)]
        sets, chain = _service(name, through, "ct reply proto-src")
        parts += sets
        chains.append(chain)
        dispatch_forward += _forward_dispatch(section, source, destination, name)
    way = section.controller.interface
    chains += [
        _base_chain("input", "iif", [*_controller_way(way, reply=True), *dispatch_in]),
        _base_chain("output", "oif", [*_controller_way(way, reply=False), *dispatch_out]),
        _base_chain("forward", None, dispatch_forward),
    ]
    return _table(TABLE, [part for part in parts if part], chains)


def _rules(
    section: Section, posture: Posture
) -> tuple[list[sections.Rule], list[sections.Rule], list[sections.ForwardRule]]:
    if posture == "isolated":
        return section.isolated.inbound, section.isolated.outbound, []
    more = section.maintenance if posture == "maintenance" else sections.Extra()
    return (
        [*section.inbound, *more.inbound],
        [*section.outbound, *more.outbound],
        [*section.forward, *more.forward],
    )


def _addressees(rules: Iterable[sections.Rule]) -> list[str]:
    return sorted({rule.zone for rule in rules})


def _set(name: str, kind: str, elements: Sequence[str], *, interval: bool = False) -> str:
    flags = "\n\t\tflags interval" if interval else ""
    filled = f"\n\t\telements = {{ {', '.join(elements)} }}" if elements else ""
    return f"\tset {name} {{\n\t\ttype {kind}{flags}{filled}\n\t}}"


def _controller_sets(around: Around) -> list[str]:
    four: set[str] = set()
    six: set[str] = set()
    for endpoint in around.controller:
        address = ipaddress.ip_address(endpoint.address)
        (four if address.version == 4 else six).add(f"{address} . {int(endpoint.port)}")
    return [
        _set("controller4", "ipv4_addr . inet_service", sorted(four)),
        _set("controller6", "ipv6_addr . inet_service", sorted(six)),
    ]


def _zone_sets(name: str, zone: sections.Zone) -> list[str]:
    four: list[ipaddress.IPv4Network] = []
    six: list[ipaddress.IPv6Network] = []
    for network in map(sections.checked_network, zone.addresses):
        if isinstance(network, ipaddress.IPv4Network):
            four.append(network)
        else:
            six.append(network)
    return [
        _set(f"zone{version}_{name}", f"ipv{version}_addr", elements, interval=interval)
        for version, (elements, interval) in ((4, _elements(four)), (6, _elements(six)))
        if elements
    ]


def _elements(networks: list[N]) -> tuple[list[str], bool]:
    """Return a set's elements, and whether it must be an interval set.

    Single addresses alone make a hash set, which is faster; prefixes are collapsed, since nftables
    refuses intervals that overlap.
    """
    if all(network.prefixlen == network.max_prefixlen for network in networks):
        return sorted({str(network.network_address) for network in networks}), False
    merged = ipaddress.collapse_addresses(networks)
    return [str(net.network_address if net.prefixlen == net.max_prefixlen else net) for net in merged], True


def _matches(name: str, zone: sections.Zone, interface_key: str, address_key: str) -> list[str]:
    """Return one match for each family of the zone; `address_key` holds a place for "ip" or "ip6"."""
    start = ""
    if zone.interfaces:
        names = ", ".join(f'"{each}"' for each in sorted(set(zone.interfaces)))
        start = f"{interface_key} {{ {names} }} "
    if not zone.addresses:
        return [start]
    six = any(":" in address for address in zone.addresses)
    four = any(":" not in address for address in zone.addresses)
    out = [f"{start}{address_key.format('ip')} @zone4_{name} "] if four else []
    return out + ([f"{start}{address_key.format('ip6')} @zone6_{name} "] if six else [])


def _forward_dispatch(section: Section, source: str, destination: str, name: str) -> list[str]:
    """Match both ends: who asked (`ct original saddr`) and who really answers (`ct reply saddr`, so after NAT)."""
    first, second = section.zones[source], section.zones[destination]
    out = []
    for direction, from_key, to_key in (("original", "iifname", "oifname"), ("reply", "oifname", "iifname")):
        for asking in _matches(source, first, from_key, "ct original {} saddr"):
            for answering in _matches(destination, second, to_key, "ct reply {} saddr"):
                if not ("zone4_" in asking + answering and "zone6_" in asking + answering):
                    out.append(f"ct direction {direction} {asking}{answering}jump {name}")
    return out


def _ports_of(
    rules: Iterable[sections.Rule] | Iterable[sections.ForwardRule], protocol: str
) -> list[PortRange]:
    return sections.merged_ports(
        [sections.port_range(port) for rule in rules if rule.protocol == protocol for port in rule.ports]
    )


def _service(
    name: str, rules: Sequence[sections.Rule] | Sequence[sections.ForwardRule], port_key: str
) -> tuple[list[str], str]:
    """Return the port sets and the chain that lets in what the rules name; it returns for everything else."""
    sets, lines = [], []
    if any(rule.protocol == "any" for rule in rules):
        return [], _chain(name, ["goto allow"])
    for protocol in ("tcp", "udp"):
        ports = _ports_of(rules, protocol)
        if ports:
            sets.append(
                _set(f"{name}_{protocol}", "inet_service", _ranges(ports), interval=_has_range(ports))
            )
            lines.append(f"meta l4proto {protocol} {port_key} @{name}_{protocol} goto allow")
    if any(rule.protocol == "icmp" for rule in rules):
        lines += ["icmp type { echo-reply, echo-request } goto allow"]
        lines += ["icmpv6 type { echo-request, echo-reply } goto allow"]
    return sets, _chain(name, lines)


def _ranges(ports: Iterable[PortRange]) -> list[str]:
    return [str(low) if low == high else f"{low}-{high}" for low, high in ports]


def _has_range(ports: Iterable[PortRange]) -> bool:
    return any(low != high for low, high in ports)


def _controller_way(interface: str | None, *, reply: bool) -> list[str]:
    key, direction = ("iifname", "reply") if reply else ("oifname", "original")
    start = f'{key} "{interface}" ' if interface else ""
    ends = "saddr . tcp sport" if reply else "daddr . tcp dport"
    return [
        f"ct direction {direction} {start}{family} {ends} @controller{version} goto allow"
        for family, version in (("ip", 4), ("ip6", 6))
    ]


def _allow_chain() -> str:
    return _chain("allow", [f"ct mark set ct mark & 0x0000ffff | {_EPOCH} accept"])


def _base_chain(hook: str, loopback_key: str | None, dispatch: Iterable[str]) -> str:
    ours = f"ct mark & 0xffff0000 == {_EPOCH}"
    lines = [f"ct state established {ours} accept"]
    if loopback_key:
        lines.append(f'{loopback_key} "lo" accept')
        lines.append("jump neighbours")
    lines += [
        f"ct state related meta l4proto {{ icmp, ipv6-icmp }} {ours} accept",
        "ct state invalid counter drop",
    ]
    if loopback_key:
        lines.append("ct status dnat counter drop")
    return _chain(
        hook, [*lines, *dispatch, "counter drop"], f"type filter hook {hook} priority 0; policy drop;"
    )


def _fence_chains() -> str:
    drops = [
        f"{family} {side} @fence{version} counter drop"
        for family, version in (("ip", 4), ("ip6", 6))
        for side in ("saddr", "daddr")
    ]
    return "\n".join(
        _chain(f"fence_{hook}", drops, f"type filter hook {hook} priority {_STATELESS}; policy accept;")
        for hook in ("prerouting", "output")
    )


def _cut_table(section: Section, around: Around) -> str:
    chains = [_NEIGHBOURS]
    used = _addressees([*section.isolated.inbound, *section.isolated.outbound])
    for hook, interface_key, peer, remote, local in (
        ("prerouting", "iif", "saddr", "sport", "dport"),
        ("output", "oif", "daddr", "dport", "sport"),
    ):
        way = section.controller.interface
        start = f'{interface_key}name "{way}" ' if way else ""
        lines = [f'{interface_key} "lo" accept', "jump neighbours"]
        lines += [
            f"{start}{family} {peer} . tcp {remote} @controller{version} accept"
            for family, version in (("ip", 4), ("ip6", 6))
        ]
        for rules, port in ((section.isolated.inbound, local), (section.isolated.outbound, remote)):
            for rule in rules:
                matches = _matches(
                    rule.zone, section.zones[rule.zone], f"{interface_key}name", f"{{}} {peer}"
                )
                lines += [
                    f"{match}{tail} accept"
                    for match in matches
                    for tail in _stateless(rule, port)
                    if not (" ip saddr" in match or " ip daddr" in match) or "icmpv6" not in tail
                ]
        policy = f"type filter hook {hook} priority {_STATELESS}; policy drop;"
        chains.append(_chain(f"cut_{hook}", [*lines, "counter drop"], policy))
    zones = [part for zone in used for part in _zone_sets(zone, section.zones[zone])]
    return _table(CUT_TABLE, [*_controller_sets(around), *zones], chains)


def _stateless(rule: sections.Rule, port_key: str) -> list[str]:
    if rule.protocol == "any":
        return ["counter"]
    if rule.protocol == "icmp":
        kinds = "type { echo-reply, echo-request }"
        return [f"icmp {kinds}", f"icmpv6 {kinds}"]
    ports = ", ".join(_ranges(_ports_of([rule], rule.protocol)))
    return [f"{rule.protocol} {port_key} {{ {ports} }}"]


def _chain(name: str, lines: Iterable[str], head: str = "") -> str:
    inside = "\n".join(f"\t\t{line}" for line in ([head] if head else []) + list(lines))
    return f"\tchain {name} {{\n{inside}\n\t}}"


def _table(name: str, sets: Sequence[str], chains: Sequence[str]) -> str:
    return f"table inet {name} {{\n" + "\n".join([*sets, *chains]) + "\n}\n"

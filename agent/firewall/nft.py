"""From the model of one posture to the text that nftables loads. Pure.

Table `inet ringfence` holds the rules; `inet ringfence_cut` stands only in posture `isolated` (`agent.firewall.cut`).
All are replaced in one batch, which `nft -f` can load as well.

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
from collections.abc import Iterable
from dataclasses import replace

from agent.firewall.cut import cut_table
from agent.firewall.granted import granted
from agent.firewall.match import (
    CUT_TABLE,
    NEIGHBOURS,
    OWN_TABLES,
    STATELESS,
    TABLE,
    controller_sets,
    port_set,
    zone_matches,
    zone_sets,
)
from agent.firewall.model import Around, Model, Passage, Peer, Service, fences, model
from agent.firewall.section import Section
from agent.firewall.tables import Chain, Set, Table, replacing
from contract.messages import Posture

__all__ = ["CUT_TABLE", "OWN_TABLES", "TABLE", "Around", "fences", "render", "render_cut", "render_lockdown"]

_EPOCH = "@epoch@"


def render(section: Section, posture: Posture, around: Around) -> str:
    """Return the whole batch: our tables deleted where they stand, and made anew as the posture wants them."""
    meant = model(section, posture, around)
    text = replacing(OWN_TABLES) + _main_text(meant)
    if posture == "isolated":
        text += cut_table(meant).text()
    return f"# Written by Ringfence, posture {posture}. Changes made by hand are undone.\n{text}"


def render_cut(section: Section, around: Around) -> str:
    """Return the small batch that isolates at once: the cut table alone, beside whatever rules are in force."""
    return replacing([("inet", CUT_TABLE)]) + cut_table(model(section, "isolated", around)).text()


def render_lockdown(around: Around) -> str:
    """Return the rules of a node without any baseline it can trust: the controller, and nothing else."""
    return render(Section(), "normal", around)


def _main_text(meant: Model) -> str:
    table = _main_table(meant)
    # Fences and grants are no part of the number: neither may have every other flow judged again.
    lasting = _main_table(replace(meant, grants=())) if meant.grants else table
    unfenced = Table(name=TABLE, sets=lasting.sets[2:], chains=lasting.chains)
    epoch = (int.from_bytes(hashlib.sha256(unfenced.text().encode()).digest()[:2], "big") or 1) << 16
    return table.text().replace(_EPOCH, f"0x{epoch:08x}")


def _main_table(meant: Model) -> Table:
    sets = [Set(name=f"fence{v}", kind=f"ipv{v}_addr", elements=elements) for v, elements in meant.fenced]
    sets += controller_sets(meant)
    sets += [each for zone in meant.zones for each in zone_sets(zone)]
    chains = [*_fence_chains(), NEIGHBOURS, _allow_chain()]
    to_input: list[str] = []
    to_output: list[str] = []
    for prefix, peers in (("in", meant.inbound), ("out", meant.outbound)):
        for peer in peers:
            name = f"{prefix}_{peer.zone.name}"
            more, chain = _service(name, peer.service, "ct original proto-dst")
            sets += more
            chains.append(chain)
            asking, answering = _peer_matches(prefix, peer)
            first, second = (to_input, to_output) if prefix == "in" else (to_output, to_input)
            first += [f"ct direction original {match}jump {name}" for match in asking]
            second += [f"ct direction reply {match}jump {name}" for match in answering]
    through: list[str] = []
    for passage in meant.forward:
        name = f"fwd_{passage.source.name}_{passage.destination.name}"
        more, chain = _service(name, passage.service, "ct reply proto-src")
        sets += more
        chains.append(chain)
        through += _forward_dispatch(passage, name)
    grants = granted(meant.grants)
    sets += grants.sets
    chains += grants.chains
    way = meant.controller_interface
    chains += [
        _base_chain("input", "iif", [*_controller_way(way, reply=True), *to_input, *grants.to_input]),
        _base_chain("output", "oif", [*_controller_way(way, reply=False), *to_output, *grants.to_output]),
        _base_chain("forward", None, through),
    ]
    return Table(name=TABLE, sets=tuple(sets), chains=tuple(chains))


def _peer_matches(prefix: str, peer: Peer) -> tuple[list[str], list[str]]:
    """Return the matches of packets that ask and of those that answer."""
    side = "saddr" if prefix == "in" else "daddr"
    here = zone_matches(peer.zone, "iifname", f"ct original {{}} {side}")
    there = zone_matches(peer.zone, "oifname", f"ct original {{}} {side}")
    return (here, there) if prefix == "in" else (there, here)


def _forward_dispatch(passage: Passage, name: str) -> list[str]:
    """Match both ends: who asked (`ct original saddr`) and who really answers (`ct reply saddr`, so after NAT)."""
    out = []
    for direction, from_key, to_key in (("original", "iifname", "oifname"), ("reply", "oifname", "iifname")):
        for asking in zone_matches(passage.source, from_key, "ct original {} saddr"):
            for answering in zone_matches(passage.destination, to_key, "ct reply {} saddr"):
                if not ("zone4_" in asking + answering and "zone6_" in asking + answering):
                    out.append(f"ct direction {direction} {asking}{answering}jump {name}")
    return out


def _service(name: str, service: Service, port_key: str) -> tuple[list[Set], Chain]:
    """Return the port sets and the chain that lets in what the rules name; it returns for everything else."""
    if service.everything:
        return [], Chain(name=name, rules=("goto allow",))
    sets, lines = [], []
    for protocol, ports in service.ports():
        sets.append(port_set(f"{name}_{protocol}", ports))
        lines.append(f"meta l4proto {protocol} {port_key} @{name}_{protocol} goto allow")
    if service.ping:
        lines += ["icmp type { echo-reply, echo-request } goto allow"]
        lines += ["icmpv6 type { echo-request, echo-reply } goto allow"]
    return sets, Chain(name=name, rules=tuple(lines))


def _controller_way(interface: str | None, *, reply: bool) -> list[str]:
    key, direction = ("iifname", "reply") if reply else ("oifname", "original")
    start = f'{key} "{interface}" ' if interface else ""
    ends = "saddr . tcp sport" if reply else "daddr . tcp dport"
    return [
        f"ct direction {direction} {start}{family} {ends} @controller{version} goto allow"
        for family, version in (("ip", 4), ("ip6", 6))
    ]


def _allow_chain() -> Chain:
    return Chain(name="allow", rules=(f"ct mark set ct mark & 0x0000ffff | {_EPOCH} accept",))


def _base_chain(hook: str, loopback_key: str | None, dispatch: Iterable[str]) -> Chain:
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
    rules = (*lines, *dispatch, "counter drop")
    return Chain(name=hook, rules=rules, head=f"type filter hook {hook} priority 0; policy drop;")


def _fence_chains() -> list[Chain]:
    drops = tuple(
        f"{family} {side} @fence{version} counter drop"
        for family, version in (("ip", 4), ("ip6", 6))
        for side in ("saddr", "daddr")
    )
    return [
        Chain(
            name=f"fence_{hook}",
            rules=drops,
            head=f"type filter hook {hook} priority {STATELESS}; policy accept;",
        )
        for hook in ("prerouting", "output")
    ]

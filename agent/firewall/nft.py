"""From the model of one posture to the text that nftables loads. Pure.

Table `inet ringfence` holds the rules; `inet ringfence_cut` stands only in posture `isolated` (`agent.firewall.cut`).
All are replaced in one batch, which `nft -f` can load as well.

Why it looks the way it does:
- Every chain ends in an explicit `drop`: `policy drop` alone lets packets through while a table is replaced under load.
- A flow goes on only where *these* rules have let it in, also one that nobody has answered yet (a camera's datagrams):
  its connection mark carries a number made from the text of the rules (upper 16 bits; the lower are left to others).
  A flow that was opened while the rules were tampered with, or under rules that are no longer in force, is judged
  again, in both directions, by its original tuple, and goes on only where the rules of today allow it.
- An expected connection of a conntrack helper (RELATED) is not let in; only RELATED ICMP errors are.
- Flows that a foreign NAT rule has redirected towards or from this node are dropped: the destination that
  a rule names is the one the packet goes to.
- One look by direction and interface, one jump for each zone there, hash sets behind it: the cost does not grow with the
  length of a list, nor with zones of other interfaces.

Refuses to put any text into the output but names checked by the section's types, `ipaddress` values and integers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from agent.firewall.containermodel import Contained, contained
from agent.firewall.containers import container_chains
from agent.firewall.cut import cut_table
from agent.firewall.dispatch import Way, dispatched
from agent.firewall.fast import GONE
from agent.firewall.granted import granted
from agent.firewall.limit import limit_of
from agent.firewall.match import (
    CUT_TABLE,
    LOOPBACK,
    NEIGHBOURS,
    OWN_TABLES,
    STATELESS,
    TABLE,
    address_matches,
    controller_sets,
    mixes_families,
    sender_match,
    service_rules,
    zone_sets,
)
from agent.firewall.model import (
    NOWHERE,
    Around,
    Local,
    Model,
    Passage,
    Peer,
    Special,
    fences,
    model,
)
from agent.firewall.neighbours import IN, discovery
from agent.firewall.section import Section
from agent.firewall.tables import Chain, Set, Table, replacing
from contract.messages import Posture

__all__ = ["CUT_TABLE", "OWN_TABLES", "TABLE", "Around", "fences", "render", "render_cut", "render_lockdown"]

_EPOCH = "@epoch@"
_FENCE = "fence"
_ASKED_PORT = "ct original proto-dst"
_COUNTER = re.compile(r'counter name "([^"]+)"')


@dataclass(frozen=True)
class Rules:
    """All of our tables as one posture wants them, on a node where users, units and names are `here`."""

    posture: Posture
    tables: tuple[Table, ...]
    here: Local = NOWHERE
    mark: int = 0
    """In the upper 16 bits of the connection mark of every flow that these rules have let in: their number."""

    def text(self, *, live: bool = True, without: Collection[str] = ()) -> str:
        """Return the whole batch; `live` False: without what live sets hold, so the same as long as the rules are.

        The sets of `without`, by key, are left empty.
        """
        head = f"# Written by Ringfence, posture {self.posture}. Changes made by hand are undone.\n"
        made = "".join(table.text(live=live, without=without) for table in self.tables)
        return head + GONE + replacing(OWN_TABLES) + made


def rules(section: Section, posture: Posture, around: Around, local: Local = NOWHERE) -> Rules:
    """Return our tables as the posture wants them."""
    meant = model(section, posture, around, local)
    chain = discovery(section, around, local)
    table, mark = _main_table(meant, contained(section, posture, local), chain)
    tables = [table]
    if posture == "isolated":
        tables.append(cut_table(meant))
    return Rules(posture, tuple(tables), local, mark)


def render(section: Section, posture: Posture, around: Around, local: Local = NOWHERE) -> str:
    """Return the whole batch: our tables deleted where they stand, and made anew as the posture wants them."""
    return rules(section, posture, around, local).text()


def render_cut(section: Section, around: Around, local: Local = NOWHERE) -> str:
    """Return the small batch that isolates at once: the cut table alone, beside whatever rules are in force."""
    return (
        GONE + replacing([("inet", CUT_TABLE)]) + cut_table(model(section, "isolated", around, local)).text()
    )


def render_lockdown(around: Around) -> str:
    """Return the rules of a node without any baseline it can trust: the controller, and nothing else."""
    return render(Section(), "normal", around)


def _main_table(meant: Model, inside: Contained | None, discovered: Chain | None) -> tuple[Table, int]:
    # Grants are no part of the number: opening one must not have every other flow judged again.
    lasting = _unnumbered(replace(meant, grants=()), inside, discovered) if meant.grants else None
    table = _unnumbered(meant, inside, discovered)
    return _numbered(table, lasting or table)


def _unnumbered(meant: Model, inside: Contained | None, discovered: Chain | None) -> Table:
    fence_sets, fence_chains = _fence(meant.fenced)
    sets = [*fence_sets]
    sets += controller_sets(meant)
    zones = {zone.name: zone for zone in (*meant.zones, *(inside.zones if inside else ()))}
    sets += [each for _, zone in sorted(zones.items()) for each in zone_sets(zone)]
    chains = [*fence_chains, NEIGHBOURS, *([discovered] if discovered else []), _allow_chain()]
    arriving: list[Way] = []
    leaving: list[Way] = []
    for prefix, peers in (("in", meant.inbound), ("out", meant.outbound)):
        for peer in peers:
            name = f"{prefix}_{peer.zone.name}"
            more, made = _peer_chains(name, peer)
            sets += more
            chains += made
            asking, answering = (arriving, leaving) if prefix == "in" else (leaving, arriving)
            asking += _ways_of(prefix, peer, "original", f"jump {name}")
            answering += _ways_of(prefix, peer, "reply", f"jump {name}")
    passing: list[Way] = []
    for passage in meant.forward:
        name = f"fwd_{passage.source.name}_{passage.destination.name}"
        more, lines = service_rules(name, passage.service, "ct reply proto-src", "goto allow")
        sets += more
        chains.append(Chain(name=name, rules=tuple(lines)))
        passing += _passing(passage, f"jump {name}")
    to_input, input_chains = dispatched("input", ("iifname",), arriving)
    to_output, output_chains = dispatched("output", ("oifname",), leaving)
    through, forward_chains = dispatched("forward", ("iifname", "oifname"), passing)
    chains += [*input_chains, *output_chains, *forward_chains]
    grants = granted(meant.grants)
    sets += grants.sets
    chains += grants.chains
    way = meant.controller_interface
    from_controller, to_controller = _controller_way(way, reply=True), _controller_way(way, reply=False)
    early = container_chains(inside)
    sets += early.sets
    chains += early.chains
    chains += [
        _base_chain(
            "input",
            "iif",
            [*from_controller, *to_input, *grants.to_input],
            early.input and [*from_controller, *early.input],
            neighbours=discovered.name if discovered else NEIGHBOURS.name,
        ),
        _base_chain(
            "output",
            "oif",
            [*to_controller, *to_output, *grants.to_output],
            early.output and [*to_controller, *early.output],
        ),
        _base_chain("forward", None, through, early.forward),
    ]
    return Table(name=TABLE, sets=tuple(sets), chains=tuple(chains), counters=_counters(chains))


def _numbered(table: Table, lasting: Table) -> tuple[Table, int]:
    """Put the number of the rules where their connection mark is set and asked for, and return it; it is made from `lasting`."""
    # The fence is no part of it: fencing a neighbour must not have every other flow judged again.
    judging = replace(
        lasting,
        sets=tuple(each for each in lasting.sets if not each.name.startswith(_FENCE)),
        # Nor are neighbours: they have no flows, and a gateway may change.
        chains=tuple(each for each in lasting.chains if not each.name.startswith((_FENCE, IN))),
        counters=(),
    )
    digest = hashlib.sha256(judging.text(live=False).encode()).digest()
    mark = (int.from_bytes(digest[:2], "big") % 0xFFFD + 1) << 16
    epoch = f"0x{mark:08x}"
    chains = [
        replace(chain, rules=tuple(rule.replace(_EPOCH, epoch) for rule in chain.rules))
        for chain in table.chains
    ]
    return replace(table, chains=tuple(chains)), mark


def _counters(chains: Iterable[Chain]) -> tuple[str, ...]:
    found = {name for chain in chains for rule in chain.rules for name in _COUNTER.findall(rule)}
    return tuple(sorted(found))


def _ways_of(prefix: str, peer: Peer, direction: str, verdict: str) -> list[Way]:
    """Return where packets come from, or go to, that ask or answer."""
    sender = sender_match(peer.zone)
    if sender and direction == "reply":
        # What a MAC address decides, nobody can judge from an answer: the next packet of the client is waited for.
        return []
    side = "saddr" if prefix == "in" else "daddr"
    return [
        Way(direction=direction, interfaces=(peer.zone.interfaces,), match=sender + match, verdict=verdict)
        for match in address_matches(peer.zone, f"ct original {{}} {side}")
    ]


def _passing(passage: Passage, verdict: str) -> list[Way]:
    """Match both ends: who asked (`ct original saddr`) and who really answers (`ct reply saddr`, so after NAT)."""
    out = []
    source, destination = passage.source, passage.destination
    sender = sender_match(source)
    both = [
        ("original", (source.interfaces, destination.interfaces)),
        ("reply", (destination.interfaces, source.interfaces)),
    ]
    # What a MAC address decides, nobody can judge from an answer.
    for direction, interfaces in both[:1] if sender else both:
        for asking in address_matches(source, "ct original {} saddr"):
            for answering in address_matches(destination, "ct reply {} saddr"):
                if not mixes_families(asking + answering):
                    match = f"{sender}{asking}{answering}"
                    out.append(Way(direction=direction, interfaces=interfaces, match=match, verdict=verdict))
    return out


def _peer_chains(name: str, peer: Peer) -> tuple[list[Set], list[Chain]]:
    """Return sets and chains of one peer: the chain that is jumped to, and one for each of its terms."""
    sets, lines = service_rules(name, peer.service, _ASKED_PORT, "goto allow")
    chains = []
    for number, special in enumerate(peer.special, start=1):
        under = f"{name}_{number}"
        # Jumped to, not gone to: what one owner may not, the next may.
        more, asked = service_rules(under, special.service, _ASKED_PORT, f"jump {under}")
        sets += more
        lines += asked
        limits, rules = limit_of(under, special.limit) if special.limit else ([], _owner(special))
        sets += limits
        chains.append(Chain(name=under, rules=tuple(rules)))
    return sets, [*chains, Chain(name=name, rules=tuple(lines))]


def _owner(special: Special) -> list[str]:
    if special.unit is not None:
        return [f'socket cgroupv2 level {special.unit.level} "{special.unit.path}" goto allow']
    return [f"meta skuid {special.uid} goto allow"]


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


def _base_chain(
    hook: str,
    loopback_key: str | None,
    dispatch: Iterable[str],
    early: Iterable[str] = (),
    *,
    neighbours: str = NEIGHBOURS.name,
) -> Chain:
    """Return a base chain. `early`: containers' own, which are led on by DNAT and judged by where they really go."""
    ours = f"ct mark & 0xffff0000 == {_EPOCH}"
    lines = [f"ct state established,new {ours} accept"]
    if loopback_key:
        lines.append(f"{loopback_key} {LOOPBACK} accept")
        lines.append(f"jump {neighbours}")
    lines += [
        f"ct state related meta l4proto {{ icmp, ipv6-icmp }} {ours} accept",
        'ct state invalid counter name "drop_invalid" drop',
    ]
    lines += early
    if loopback_key:
        lines.append('ct status dnat counter name "drop_redirected" drop')
    rules = (*lines, *dispatch, f'counter name "drop_{hook}" drop')
    return Chain(name=hook, rules=rules, head=f"type filter hook {hook} priority 0; policy drop;")


def fence_now(around: Around) -> str:
    """Return the batch that fences at once, as the whole rules will have it; "" where nobody is to be fenced."""
    sets, chains = _fence(fences(around))
    if not chains:
        return ""
    heads = Table(
        name=TABLE,
        sets=tuple(sets),
        chains=tuple(replace(each, rules=()) for each in chains),
        counters=_counters(chains),
    )
    flushed = "".join(f"flush chain {heads.place} {each.name}\n" for each in chains)
    return GONE + heads.text() + flushed + Table(name=TABLE, sets=(), chains=tuple(chains)).text()


def _fence(fenced: Iterable[tuple[int, tuple[str, ...]]]) -> tuple[list[Set], list[Chain]]:
    """Return sets and chains of the fence: none where nobody is fenced, since each packet would pay for them."""
    listed = [(version, elements) for version, elements in fenced if elements]
    sets = [
        Set(name=f"{_FENCE}{version}", kind=f"ipv{version}_addr", elements=elements, live=True)
        for version, elements in listed
    ]
    drops = tuple(
        f'{"ip" if version == 4 else "ip6"} {side} @{_FENCE}{version} counter name "drop_fenced" drop'
        for version, _ in listed
        for side in ("saddr", "daddr")
    )
    chains = [
        Chain(
            name=f"{_FENCE}_{hook}",
            rules=drops,
            head=f"type filter hook {hook} priority {STATELESS}; policy accept;",
        )
        for hook in ("prerouting", "output")
    ]
    return sets, chains if drops else []

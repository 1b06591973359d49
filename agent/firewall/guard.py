"""The guard table: what still denies while our rules are missing, asleep, edited or half made. Pure.

A drop in any table is final. `inet ringfence_guard` stands behind the rules (priority 10) and lets pass only what
they have marked: the upper 16 bits of the connection mark are set by their `allow` chain and by nothing else.
So a rule table that was deleted, that sleeps, or into which somebody has put "accept", opens nothing. Flows that the
rules had let in before go on without a gap.

It names no address, port or zone and is the same text for every baseline and posture: replacing the rules never
touches it. It costs a packet one comparison.
Refuses nothing by itself where the rules stand. Relies on: the rules accepting nothing without a mark but loopback and
neighbour discovery (`agent.firewall.nft`); docs/adr/0015-guard-table.md.
"""

from __future__ import annotations

from agent.firewall.match import GUARD_TABLE, LOOPBACK, NEIGHBOURS
from agent.firewall.tables import Chain, Table, replacing

_BEHIND = 10
_MARKED = "ct mark & 0xffff0000 != 0 accept"


def guard_table() -> Table:
    """Return the guard table."""
    chains = [NEIGHBOURS]
    for hook, loopback_key in (("input", "iif"), ("forward", ""), ("output", "oif")):
        rules = [_MARKED]
        if loopback_key:
            rules.append(f"{loopback_key} {LOOPBACK} accept")
        rules.append("jump neighbours")  # untracked; forwarded between the ports of a filtered bridge
        head = f"type filter hook {hook} priority {_BEHIND}; policy drop;"
        chains.append(Chain(name=f"guard_{hook}", rules=(*rules, "counter drop"), head=head))
    return Table(name=GUARD_TABLE, sets=(), chains=tuple(chains))


def render_guard() -> str:
    """Return the batch that makes the guard anew, whatever stands there: tiny, and so the first to be loaded."""
    return replacing([("inet", GUARD_TABLE)]) + guard_table().text()

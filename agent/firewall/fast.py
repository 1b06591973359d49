"""`[firewall.offload]`: established flows that pass through this node go past the rules, where the kernel has flowtables.

`inet ringfence_fast` stands behind rules and guard. What it hands to its flowtable has been let in by the rules of today, in
both directions; from then on the kernel forwards it at the ingress of its interfaces, where no rule is asked. So the
table must go wherever judgement changes: every batch that replaces rules, fences or isolates begins by deleting it
(`GONE`), and its flows are back before the rules in the same commit. It is made anew after that, and flows that are
still allowed come back into it.

Only forwarding: what begins or ends on the node itself never passes it (docs/adr/0034-flowtable.md).
Refuses nothing; a kernel without flowtables loads `GONE` all the same, and nothing more. Relies on: nf_flow_table (Linux
5.13 for bridges and VLANs), and on `agent.firewall.nft` marking what it lets in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from agent.firewall import compare
from agent.firewall.compare import ABSENT, Change
from agent.firewall.link import cannot_be_written
from agent.firewall.match import FAST_TABLE
from agent.firewall.outrun import Outrun
from agent.firewall.section import Section, matches
from agent.firewall.tables import replacing
from contract.messages import Posture

if TYPE_CHECKING:
    from agent.netfilter import Netfilter

FAST = ("inet", FAST_TABLE)
GONE = replacing([FAST])
"""Loads wherever nftables does, whether the table stands or not."""
_MOST_DEVICES = 256
"""The kernel takes no more (NFT_NETDEVICE_MAX)."""
_LET_IN = "ct mark 0x00010000-0xfffdffff"
"""By rules: neither by a grant, which is looked up with every packet, nor by a limit and not answered yet."""
_KEY = f"inet {FAST_TABLE} table {FAST_TABLE}"


def devices(section: Section, posture: Posture, names: Iterable[str]) -> tuple[str, ...]:
    """Return which of a node's interfaces take part; none while it is isolated, or where flows could only turn back."""
    if section.offload is None or posture == "isolated":
        return ()
    patterns = section.offload.interfaces
    found = sorted(
        name for name in names if name != "lo" and any(matches(pattern, name) for pattern in patterns)
    )
    found = [name for name in found if not cannot_be_written(name)][:_MOST_DEVICES]
    return tuple(found) if len(found) > 1 else ()


def render_fast(taking_part: Sequence[str]) -> str:
    """Return the batch that makes the table anew, with an empty flowtable; without interfaces: that takes it away."""
    if not taking_part:
        return GONE
    names = ", ".join(f'"{name}"' for name in taking_part)
    between = f"iifname {{ {names} }} oifname {{ {names} }}"
    return GONE + (
        f"table inet {FAST_TABLE} {{\n"
        f"\tflowtable fast {{\n\t\thook ingress priority 0;\n\t\tdevices = {{{names}}};\n\t}}\n"
        "\tchain fast_forward {\n"
        "\t\ttype filter hook forward priority 20; policy accept;\n"
        f"\t\t{between} meta l4proto {{ tcp, udp }} {_LET_IN} ct state established flow add @fast\n"
        "\t}\n}\n"
    )


class Fast:
    """Keeps the table for one section. One thread."""

    def __init__(self, section: Section) -> None:
        self._section = section
        self._made: tuple[str, ...] = ()
        """What it was last made for."""
        self._seen: tuple[int, tuple[str, ...], list[Change]] | None = None

    def differences(self, netfilter: Netfilter, posture: Posture) -> list[Change]:
        """Return what differs of the table. Raises OSError, Rejected, ValueError."""
        wanted = self._wanted(netfilter, posture)
        generation = netfilter.generation()
        if self._seen is not None and self._seen[:2] == (generation, wanted):
            return self._seen[2]
        listed = netfilter.listing(FAST_TABLE)
        if wanted:
            found = compare.changes(netfilter.canonical(render_fast(wanted), (FAST,)), listed)
        else:
            found = [Change(_KEY, ABSENT, "present")] if listed else []
        self._seen = (generation, wanted, found) if netfilter.generation() == generation else None
        return found

    def follow(self, netfilter: Netfilter, posture: Posture) -> None:
        """Make it for the interfaces of the moment: our own daily work, no repair. Raises OSError."""
        if self._wanted(netfilter, posture) != self._made:
            self.repair(netfilter, posture)

    def repair(self, netfilter: Netfilter, posture: Posture) -> None:
        """Make it again where it does not stand as it should, also after a batch of ours that took it away. Raises OSError."""
        wanted = self._wanted(netfilter, posture)
        try:
            differs = wanted != self._made or bool(self.differences(netfilter, posture))
        except Outrun:  # looked at when it is calmer; what changes judgement has taken it away already
            return
        if differs:
            netfilter.load(render_fast(wanted))
            self._made, self._seen = wanted, None

    def _wanted(self, netfilter: Netfilter, posture: Posture) -> tuple[str, ...]:
        if self._section.offload is None or not netfilter.offloads():
            return ()
        return devices(self._section, posture, netfilter.interfaces())

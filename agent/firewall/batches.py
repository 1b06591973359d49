"""Every batch that holds a node to its section in one posture, in the order in which the agent loads them. Pure.

For `render` and `check`: what a person reads and what is tried on the kernel before anybody signs is all of it.
Refuses nothing by itself. Relies on the stages that the agent compiles with; tests compare this with what an agent loads.
"""

from __future__ import annotations

from typing import NamedTuple

from agent.firewall.fast import devices, render_fast
from agent.firewall.guard import render_guard
from agent.firewall.link import Ways, render_links
from agent.firewall.model import Around, Local, model
from agent.firewall.neighbours import render_arp
from agent.firewall.nft import render
from agent.firewall.section import Section
from contract.messages import Posture


class Batch(NamedTuple):
    """What is put into force whole or not at all."""

    what: str
    text: str


def batches(
    section: Section,
    posture: Posture,
    around: Around,
    here: Local,
    ways: Ways,
    *,
    bridge: bool = True,
    offloads: bool = True,
) -> tuple[Batch, ...]:
    """Return them. `ways`: interfaces, and where they lead; `bridge`, `offloads`: what the kernel has."""
    found = [Batch("the guard beneath the rules, the same for every baseline", render_guard())]
    if posture == "isolated" and ways.devices:
        links = render_links(model(section, posture, around, here), ways, bridge=bridge)
        found.append(Batch("the cut of every interface and bridge, which isolation loads first", links))
    if arp := render_arp(section, around, here):
        found.append(Batch("who may speak ARP, by interface", arp))
    found.append(Batch(f"the rules of posture {posture}", render(section, posture, around, here)))
    if offloads and (taking_part := devices(section, posture, ways.devices)):
        found.append(Batch("the flowtable for what passes through", render_fast(taking_part)))
    return tuple(found)

"""Every batch that holds a node to its section in one posture, in the order in which the agent loads them. Pure.

For `render` and `check`: what a person reads and what is tried on the kernel before anybody signs is all of it.
Refuses nothing by itself. Relies on the stages that the agent compiles with; tests compare this with what an agent loads.
"""

from __future__ import annotations

from typing import NamedTuple

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
    section: Section, posture: Posture, around: Around, here: Local, ways: Ways, *, bridge: bool
) -> tuple[Batch, ...]:
    """Return them. `ways` are the interfaces that the cut of an isolated node names; `bridge`: the kernel knows bridges."""
    found = [Batch("the guard beneath the rules, the same for every baseline", render_guard())]
    if posture == "isolated" and ways.devices:
        links = render_links(model(section, posture, around, here), ways, bridge=bridge)
        found.append(Batch("the cut of every interface and bridge, which isolation loads first", links))
    if arp := render_arp(section, around, here):
        found.append(Batch("who may speak ARP, by interface", arp))
    found.append(Batch(f"the rules of posture {posture}", render(section, posture, around, here)))
    return tuple(found)

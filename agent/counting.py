"""`ringfence-agent counters`: how much each rule of the firewall has let through or dropped. Changes nothing.

Refuses to guess: without the right to read nftables it fails. Relies on: root; the rules being loaded.
"""

from __future__ import annotations

import json

import click

from agent.netfilter import Netfilter


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def counters(as_json: bool) -> None:
    """Show packets and bytes of each rule since the rules were last loaded whole. As root."""
    netfilter = Netfilter()
    try:
        found = netfilter.find().counts()
    finally:
        netfilter.close()
    if as_json:
        click.echo(json.dumps([each._asdict() for each in found]))
        return
    width = max((len(each.name) for each in found), default=0)
    for each in found:
        click.echo(f"{each.name:<{width}}  {each.packets:>12} packets  {each.bytes:>15} bytes")

"""`ringfence-agent check`: a baseline, read by the code that will enforce it, before anybody signs it.

Refused (exit code 2) is what no node would take; a warning (exit code 0) is what a node takes and its author may not have
meant. As root the rules of every posture are tried on the kernel, in a network namespace of their own.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import click

from agent.firewall.batches import batches
from agent.firewall.link import Ways
from agent.firewall.local import resolved
from agent.firewall.section import Section as FirewallSection
from agent.host import Host
from agent.machine import POSTURES
from agent.netfilter import Netfilter
from agent.probes import ControllerEndpoint, Surroundings, Warned, parse_sections, warnings
from contract.baseline import parse_baseline
from contract.errors import Rejected

_REFUSED = 2
_ENDPOINT = ControllerEndpoint("192.0.2.1", 8440)
"""Stands for the controller in the dry run (RFC 5737: documentation)."""
_WAYS = Ways(
    devices=("eth0",), toward=("eth0",), hops=((4, ("192.0.2.1",)), (6, ("2001:db8::1",))), carriers={}
)
"""Stands for the interfaces of a node, and for a next hop on the way to its controller."""


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--here", is_flag=True, help="This machine is such a node: tell also which interfaces it lacks."
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def check(file: Path, here: bool, as_json: bool) -> None:
    """Check a baseline with the code that will enforce it; as root also against the kernel (dry run)."""
    try:
        shown, warned = _checked(file, here=here)
    except Rejected as refused:
        if not as_json:
            raise
        click.echo(json.dumps({"file": str(file), "refused": refused.detail or refused.code}))
        sys.exit(_REFUSED)
    if as_json:
        listed = [{"line": each.line, "key": each.key, "text": each.text} for each in warned]
        click.echo(json.dumps({**shown, "warnings": listed}))
        return
    for each in warned:
        click.echo(f"warning: {file.name}:{each.line}: {each.key}: {each.text}", err=True)
    count = f"; {len(warned)} warnings" if warned else ""
    click.echo(
        f"{file}: {shown['name']} version {shown['version']}, {shown['sections']} sections; {shown['dry_run']}{count}"
    )


def _checked(file: Path, *, here: bool) -> tuple[dict[str, object], list[Warned]]:
    baseline = parse_baseline(file.read_bytes(), file=file.name)
    parsed = parse_sections(baseline)
    firewall = parsed.get("firewall")
    dry = "no firewall section: default deny"
    if isinstance(firewall, FirewallSection):
        dry = "rules not tried on the kernel: not root"
        if os.geteuid() == 0:
            _try(firewall)
            dry = "the kernel takes the rules of every posture"
    interfaces = {name for _, name in socket.if_nameindex()} if here else None
    shown: dict[str, object] = {"file": str(file), "name": baseline.head.name}
    shown |= {"version": baseline.head.version, "sections": len(parsed), "dry_run": dry}
    return shown, warnings(baseline, parsed, interfaces)


def _ways(firewall: FirewallSection) -> Ways:
    """Return interfaces that stand for a node's, those that the section would offload among them."""
    patterns = firewall.offload.interfaces if firewall.offload else []
    named = [each if not each.endswith("*") else f"{each[:-1]}{n}" for each in patterns for n in (0, 1)]
    return replace(_WAYS, devices=tuple(sorted({*_WAYS.devices, *named})))


def _try(firewall: FirewallSection) -> None:
    """Load every batch of every posture where it harms nobody. Raises Rejected `firewall.refused`."""
    netfilter, host = Netfilter(), Host()
    try:
        for posture in POSTURES:
            around = Surroundings(host=host, controller=(_ENDPOINT,), posture=posture)
            here = resolved(firewall, host)
            # The cut of interfaces names those of the node: here the loopback stands for one (`link.on_loopback`).
            has = {"bridge": netfilter.knows("bridge"), "offloads": netfilter.offloads()}
            for each in batches(firewall, posture, around, here, _ways(firewall), **has):
                netfilter.check(each.text)
    finally:
        netfilter.close()

"""Draft of `[listeners]`: every socket that waits for connections now."""

from __future__ import annotations

import ipaddress

from agent.learning import Draft, entry, section
from agent.probes import Surroundings


def draft(around: Surroundings) -> Draft:
    """Return a rule for each open socket. UDP sockets on ports of the kernel's choice are passing, and left out."""
    ephemeral, left_out = around.host.ephemeral_ports(), []
    rules: dict[tuple[str, int, str], set[bool]] = {}
    for each in around.host.listeners():
        if each.protocol == "udp" and each.port in ephemeral:
            left_out.append(f"listeners: udp port {each.port} of {each.program or '?'}: chosen by the kernel")
            continue
        rules.setdefault((each.protocol, each.port, each.program), set()).add(
            ipaddress.ip_address(each.address).is_loopback
        )
    text = [section("listeners", {"kill": False}, decide="kill = true once every socket below is judged")]
    for (protocol, port, program), loopback in sorted(rules.items()):
        keys = {
            "protocol": protocol,
            "port": port,
            "address": "loopback" if all(loopback) else "any",
            "program": program or None,
        }
        text.append(entry("listeners.allow", keys, decide="" if program else "which program is this?"))
    return Draft("\n".join(text), left_out)

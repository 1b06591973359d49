"""Isolated and booting: every interface is cut as it appears, until the agent has put its own rules in force.

`ringfence-agent early` comes before the network, and most interfaces come after it: the IP stack is closed for all of them, but a
packet socket passes it, and the kernel keeps a chain below IP for no interface that is not there yet. So the early step
stays, in an isolated node alone: the kernel announces an interface, and it is cut a few milliseconds later, whoever it was that
made it (udev or not). That the agent has taken over is told by its state.

Refuses to decide: what is cut was decided by `agent.early`. Relies on: CAP_NET_ADMIN; a supervisor that counts the step as done
once it says READY (packaging/systemd/ringfence-early.service).
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from pathlib import Path

from agent.config import load_config
from agent.firewall.link import render_links
from agent.firewall.model import Around, model
from agent.firewall.section import Section
from agent.host import Host
from agent.netfilter import Netfilter
from agent.store import Damaged, Store
from contract.errors import Rejected

_LINK_GROUP = 1
"""RTMGRP_LINK."""
_LOOK_S = 1.0
"""Events come at once; this is for routes, for announcements that were lost, and for the agent's coming."""


def cut_of_links(netfilter: Netfilter, section: Section, around: Around) -> str:
    """Return the batch that cuts every interface of this moment. Raises OSError."""
    meant = model(section, "isolated", around)
    return render_links(meant, netfilter.ways(meant), bridge=netfilter.knows("bridge"))


def agent_is_up(config: Path) -> bool:
    """Tell whether the agent has put its rules in force in this boot; it says so in its state."""
    try:
        known = load_config(config)
        state = Store(known.state, known.node).load_state()
        return state is not None and state.boot_id == Host(proc_root=Path(known.roots.proc)).boot_id()
    except (Damaged, Rejected, OSError):
        return False


def follow(netfilter: Netfilter, section: Section, around: Around, over: Callable[[], bool]) -> None:
    """Cut each interface that appears, until it is `over`. What the kernel refuses is tried again."""
    changes = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    with changes:
        changes.bind((0, _LINK_GROUP))
        changes.setblocking(False)
        loaded = ""
        while not over():
            try:
                text = cut_of_links(netfilter, section, around)
                if text != loaded:
                    netfilter.load(text)
                    loaded = text
            except OSError:
                loaded = ""
            select.select([changes], [], [], _LOOK_S)
            _drain(changes)


def _drain(changes: socket.socket) -> None:
    while True:
        try:
            changes.recv(65536)
        except BlockingIOError:
            return
        except OSError:  # more was announced than fitted: the next look sees all of it
            continue

"""`ringfence-agent early`: the rules of the last confirmed baseline, before the network is up and the agent runs.

Done before network-pre.target (ATTACKS f12). It reads the state folder and nothing else, decides as the agent
would (`agent.plan.stance`), and loads: the guard first (tiny), then the rules, and the cut where isolation was
in force; then USB (`agent.earlyusb`). A baseline that only observes the firewall gets no rules loaded, unless the node
is isolated or fences a neighbour: those are orders. What to trust is told by the state's own checksum and by the SHA-256 under which the baseline
was confirmed; signatures were checked before it got there.

Refuses to open anything: no state, a damaged one, one of another node, or rules that the kernel will not take all
mean lock-down; a damaged one means isolation as well. It never removes a rule on its end, but for what the fence before it
(`agent.earlyfile`) has loaded where nothing is to stand. It imports little: it must be done in a third of a second on a slow machine.
Relies on: CAP_NET_ADMIN; the configuration (unreadable: lock-down without a controller).
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from agent import earlyusb, plan
from agent.config import DEFAULT_PATH, AgentConfig, load_config
from agent.earlylinks import agent_is_up, cut_of_links, follow
from agent.firewall.guard import render_guard
from agent.firewall.model import NOWHERE
from agent.firewall.neighbours import render_arp
from agent.firewall.nft import render, render_lockdown
from agent.firewall.section import Section
from agent.host import Host
from agent.netfilter import Netfilter
from agent.notify import notify
from agent.probes import ControllerEndpoint, mode_of
from agent.probes.usb import Section as UsbSection
from agent.responses import Wanted, checked
from agent.store import Damaged, State, Store
from contract import baseline as baselines
from contract.baseline import Baseline, parse_baseline
from contract.errors import Rejected
from contract.messages import Posture

EXIT_FAULT = 3
_USAGE = "usage: ringfence-agent early [--config FILE] [--follow]"


class Around(NamedTuple):
    """What rendering wants to know of the node."""

    controller: tuple[ControllerEndpoint, ...]
    fenced: tuple[str, ...] = ()
    grants: tuple[()] = ()
    """Opened by the agent alone: it knows what of them is left."""


class Rules(NamedTuple):
    """What is to be loaded, and how people are told."""

    text: str
    """Empty: the signed baseline only observes the firewall."""
    lockdown: str
    """In its place if the kernel refuses `text`."""
    said: str
    links: Section | None = None
    """Isolated: what the interfaces that are there already are cut by."""
    around: Around = Around(())
    arp: str = ""
    """By interface alone: no route is known yet."""
    usb: UsbSection | None = None
    """Where the baseline in force enforces it."""


def rules(config: AgentConfig | None) -> Rules:
    """Return what the state folder asks for. Raises nothing for a state that cannot be believed."""
    if config is None:
        return _locked(Around(()), "isolated", "the configuration cannot be read: nothing is let through")
    try:
        state = Store(config.state, config.node).load_state()
    except Damaged as damage:
        return _locked(Around(_controller(config, None)), "isolated", f"{damage}: isolated")
    return of_state(config, state)


def of_state(config: AgentConfig, state: State | None) -> Rules:
    """Return what a state asks for. Raises nothing for a baseline in it that cannot be believed."""
    around = Around(_controller(config, state))
    if state is None:
        return _locked(around, "normal", "no state was found")
    try:
        return _of_state(state, around)
    except Rejected as error:
        return _locked(around, "isolated", f"the stored baseline cannot be believed: {error}")


def _of_state(state: State, around: Around) -> Rules:
    """Raises Rejected for a baseline that is not what was confirmed."""
    held = None if state.last_good is None else _confirmed(state)
    wanted: list[Wanted] = []
    if state.directive is not None:
        try:
            wanted = [want for _, _, want in checked(state.directive.responses)]
        except Rejected:  # an older agent's directive; the agent will tell of it
            wanted = []
    stance = plan.stance(
        state.directive,
        wanted,
        offline_s=state.offline_s,
        isolate_after_s=held.head.offline.isolate_after_s if held is not None else None,
        damaged=state.damaged,
        self_isolated=state.self_isolated,
    )
    around = around._replace(fenced=stance.fenced)
    why = f" ({stance.reason})" if stance.reason else ""
    if held is None or state.last_good is None:
        return _locked(around, stance.posture, f"no baseline was confirmed here{why}")
    section = baselines.section(held, "firewall", Section) if "firewall" in held.sections else Section()
    ref = state.last_good.ref
    if not plan.enforced("firewall", mode_of(section, held.head), stance):
        said = f"{ref.name}/{ref.version} only observes the firewall: nothing is loaded"
        return Rules("", "", said, usb=earlyusb.enforced(held))
    text = render_guard() + render(section, stance.posture, around)
    said = f"{ref.name}/{ref.version} in posture {stance.posture}{why}"
    links = section if stance.posture == "isolated" else None
    arp = render_arp(section, around, NOWHERE)
    usb = earlyusb.enforced(held)
    return Rules(text, _lockdown(around, stance.posture), said, links, around, arp, usb)


def _confirmed(state: State) -> Baseline:
    slot = state.last_good
    assert slot is not None  # noqa: S101  (the caller has looked)
    if hashlib.sha256(slot.raw).digest() != slot.ref.sha256:
        raise Rejected("baseline.changed", f"{slot.ref.name}/{slot.ref.version} is not what was confirmed")
    return parse_baseline(slot.raw, file=f"{slot.ref.name}/{slot.ref.version}.toml")


def _locked(around: Around, posture: Posture, why: str) -> Rules:
    text = _lockdown(around, posture)
    links = Section() if posture == "isolated" else None
    return Rules(text, text, f"lock-down: {why}", links, around)


def _lockdown(around: Around, posture: Posture) -> str:
    if posture == "isolated":
        return render_guard() + render(Section(), "isolated", around)
    return render_guard() + render_lockdown(around)


def _controller(config: AgentConfig, state: State | None) -> tuple[ControllerEndpoint, ...]:
    where = config.controller
    addresses = where.literal_addresses() or (state.controller_addresses if state is not None else [])
    return tuple(ControllerEndpoint(address, where.port) for address in addresses)


def load(made: Rules, netfilter: Netfilter) -> str:
    """Put them into force, guard first; return what stands. Raises OSError where the kernel takes not even lock-down."""
    if not made.text:
        # By mistake only: its file was missing, or older than the baseline. The agent would take the tables away as well.
        return f"{made.said}; what stood was taken away" if netfilter.withdraw() else made.said
    netfilter.load(render_guard())
    said = made.said
    try:
        netfilter.load(made.text)
    except OSError as error:
        netfilter.load(made.lockdown)
        said = f"lock-down: the kernel refuses {made.said} ({error.strerror})"
    if made.arp:
        with contextlib.suppress(OSError):  # a kernel that cannot filter ARP: the agent tells of it
            netfilter.load(made.arp)
    if made.links is not None:
        # Those that appear later: `agent.earlylinks`. The IP stack is closed for all from now on.
        with contextlib.suppress(OSError):
            netfilter.load(cut_of_links(netfilter, made.links, made.around))
    return said


def main(
    argv: Sequence[str], *, say: Callable[[str], object] = lambda text: print(text, file=sys.stderr)
) -> NoReturn:
    """Run the command: exit code 0 when rules are in force, also lock-down; 2 for wrong usage; 3 when none could be loaded.

    With `--follow` an isolated node says READY to its supervisor and goes on cutting interfaces until the agent is up.
    """
    path, left = DEFAULT_PATH, [each for each in argv if each != "--follow"]
    if len(left) == 2 and left[0] == "--config":
        path = Path(left[1])
    elif left:
        say(_USAGE)
        sys.exit(0 if left in (["-h"], ["--help"]) else 2)
    config: AgentConfig | None = None
    try:
        config = load_config(path)
    except Rejected as error:
        say(f"ringfence-agent early: {error.detail or error.code}")
    made, code = rules(config), 0
    try:
        netfilter = Netfilter()
        said = load(made, netfilter)
    except OSError as error:
        said, code = f"no rules could be loaded: {error}", EXIT_FAULT
    say(f"ringfence-agent early: {said}")
    if made.usb is not None and config is not None:
        for line in earlyusb.decide(made.usb, _host(config), time.time()):
            say(f"ringfence-agent early: {line}")
    if code:
        sys.exit(code)
    notify("READY=1")
    if made.links is not None and len(left) < len(argv):
        follow(netfilter, made.links, made.around, lambda: agent_is_up(path))
    netfilter.close()
    sys.exit(0)


def _host(config: AgentConfig) -> Host:
    roots = config.roots
    return Host(root=Path(roots.root), sysfs_root=Path(roots.sysfs), proc_root=Path(roots.proc))


if __name__ == "__main__":
    main(sys.argv[1:])

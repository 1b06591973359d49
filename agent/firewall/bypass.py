"""Ways past our rules that no table shows: interfaces in other namespaces, XDP programs and tc filters, bridges whose
packets the kernel does not show us.

Told and not mended: taking an interface out of a running container, or switching what every bridge of the machine does, is
for a person (or for the section `[sysctl]`). XDP programs and tc filters are told, and taken out in posture `isolated`:
there they could rewrite what passes to the controller into what does not. The baseline names those that are meant.
A namespace that holds a device of the machine is cut off in posture `isolated`, whether or not it is meant; the response
`isolate` joins it again. Namespaces are looked at once a minute, since no event tells of them, and in isolation whenever an
interface comes or goes as well; programs twice a second at most.
Relies on: `agent.firewall.namespaces`, `agent.firewall.elsewhere`, `agent.firewall.programs`, `agent.host`.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING

from agent.firewall import compare, elsewhere, namespaces
from agent.firewall.namespaces import Stray
from agent.firewall.programs import Program
from agent.firewall.section import Section, matches
from agent.host import Host
from agent.probes import Difference, could_not_look
from contract.errors import Rejected

if TYPE_CHECKING:
    from agent.netfilter import Netfilter

EVERY_S = 60.0
PROGRAMS_EVERY_S = 0.5
"""A look takes a third of a millisecond, and a storm of commits asks a thousand times a second."""
PROGRAM = "program:"
_BRIDGED = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")


class Bypass:
    """Looks for one section, and remembers what it found until the next look."""

    def __init__(self, section: Section, host: Host) -> None:
        self._containers = section.containers
        self._known = section.programs
        self._host = host
        self._last: tuple[float, object, list[Difference]] | None = None
        self._open: list[Stray] = []
        """Isolated: devices of the machine that still have a way out, elsewhere."""
        self._programs: tuple[float, list[Difference]] | None = None

    def differences(self, now: float, netfilter: Netfilter, *, isolated: bool) -> list[Difference]:
        """Return what was found; of namespaces by the last look, which is at most a minute old."""
        # A card that was given away a moment ago has left this namespace.
        about = tuple(socket.if_nameindex()) if isolated else None
        if self._last is None or abs(now - self._last[0]) >= EVERY_S or self._last[1] != about:
            self._last = (now, about, [*self._strays(netfilter, isolated=isolated), *self._bridged()])
        if self._programs is None or abs(now - self._programs[0]) >= PROGRAMS_EVERY_S:
            self._programs = (now, self._attached(netfilter))
        return [*self._last[2], *self._programs[1]]

    def _attached(self, netfilter: Netfilter) -> list[Difference]:
        try:
            return [
                Difference(_key(each), "absent", f"{each.what} ({each.cure})")
                for each in netfilter.programs()
                if not self._is_known(each)
            ]
        except OSError as error:
            return [could_not_look(PROGRAM, "no program before or after the rules", error)]

    def repair(self, netfilter: Netfilter, keys: Iterable[str], remembered: MutableMapping[str, str]) -> None:
        """Cut other namespaces off, take out the programs and filters that `keys` name; for posture `isolated`.

        What cannot be cut or taken out stays told.
        """
        for stray in self._open:
            with contextlib.suppress(OSError):
                elsewhere.shut(stray.path, stray.number, remembered)
            self._last = None
        wanted = {key for key in keys if key.startswith(PROGRAM)}
        self._programs = None
        for each in netfilter.programs() if wanted else ():
            if _key(each) in wanted and not self._is_known(each):
                with contextlib.suppress(OSError):  # held by a BPF link
                    netfilter.remove_program(each)

    def _is_known(self, program: Program) -> bool:
        hook = "xdp" if program.hook == "xdp" else "tc"
        return any(
            known.hook == hook and matches(known.interface, program.interface) for known in self._known
        )

    def _strays(self, netfilter: Netfilter, *, isolated: bool) -> list[Difference]:
        allowed = self._containers.parents if self._containers else []
        self._open = []
        try:
            found = namespaces.strays()
        except OSError as error:
            return [could_not_look("netns:", "no interface past the rules", error)]
        out = []
        for each in found:
            key, device = f"netns:{each.where} {each.name}", each.kind == namespaces.DEVICE
            what = each.kind if device else f"{each.kind} of {each.parent}"
            if device and isolated:
                wrong = _not_cut(netfilter, each)
                what += f", {wrong}" if wrong else ", cut off"
                self._open += [each] if wrong else []
                if wrong and each.parent in allowed:
                    out.append(Difference(key, "cut off", what))
            if each.parent not in allowed:
                out.append(Difference(key, "absent", what))
        return out

    def _bridged(self) -> list[Difference]:
        if self._containers is None:
            return []
        out = []
        for key in _BRIDGED:
            try:
                value = self._host.sysctl(key)
            except OSError as error:
                out.append(could_not_look(key, "1", error))
                continue
            if value.strip() != "1":
                out.append(Difference(key, "1", value.strip()))
        return out


def _not_cut(netfilter: Netfilter, stray: Stray) -> str:
    """Return what is missing of the cut of a stray's namespace; "" where it is whole."""
    try:
        there = elsewhere.standing(stray.path, stray.number)
        wanted = netfilter.canonical(elsewhere.apart(there.interfaces), (elsewhere.PLACE,))
    except (OSError, Rejected, ValueError) as error:
        return f"cannot be cut off: {error}"
    if there.up and (there.interfaces - there.held or compare.changes(wanted, there.listing)):
        return "not cut off"
    return ""


def _key(program: Program) -> str:
    return f"{PROGRAM}{program.interface} {program.hook}"

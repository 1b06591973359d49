"""Ways past our rules that no table shows: interfaces in other namespaces, XDP programs and tc filters, bridges whose
packets the kernel does not show us.

Told and not mended: taking an interface out of a running container, or switching what every bridge of the machine does, is
for a person (or for the section `[sysctl]`). XDP programs and tc filters are told, and taken out in posture `isolated`:
there they could rewrite what passes to the controller into what does not. The baseline names those that are meant.
Namespaces are looked at once a minute, since no event tells of them; programs twice a second at most.
Relies on: `agent.firewall.namespaces`, `agent.firewall.programs`, `agent.host`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from agent.firewall import namespaces
from agent.firewall.programs import Program
from agent.firewall.section import Section, matches
from agent.host import Host
from agent.probes import Difference, could_not_look

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
        self._last: tuple[float, list[Difference]] | None = None
        self._programs: tuple[float, list[Difference]] | None = None

    def differences(self, now: float, netfilter: Netfilter) -> list[Difference]:
        """Return what was found; of namespaces by the last look, which is at most a minute old."""
        if self._last is None or abs(now - self._last[0]) >= EVERY_S:
            self._last = (now, [*self._strays(), *self._bridged()])
        if self._programs is None or abs(now - self._programs[0]) >= PROGRAMS_EVERY_S:
            self._programs = (now, self._attached(netfilter))
        return [*self._last[1], *self._programs[1]]

    def _attached(self, netfilter: Netfilter) -> list[Difference]:
        try:
            return [
                Difference(_key(each), "absent", f"{each.what} ({each.cure})")
                for each in netfilter.programs()
                if not self._is_known(each)
            ]
        except OSError as error:
            return [could_not_look(PROGRAM, "no program before or after the rules", error)]

    def repair(self, netfilter: Netfilter, keys: Iterable[str]) -> None:
        """Take out the programs and filters that `keys` name; for posture `isolated`. What cannot be taken out stays told."""
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

    def _strays(self) -> list[Difference]:
        allowed = self._containers.parents if self._containers else []
        try:
            found = namespaces.strays()
        except OSError as error:
            return [could_not_look("netns:", "no interface past the rules", error)]
        return [
            Difference(
                f"netns:{each.where} {each.name}",
                "absent",
                each.kind if each.kind == namespaces.DEVICE else f"{each.kind} of {each.parent}",
            )
            for each in found
            if each.parent not in allowed
        ]

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


def _key(program: Program) -> str:
    return f"{PROGRAM}{program.interface} {program.hook}"

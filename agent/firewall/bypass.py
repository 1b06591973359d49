"""Ways past our rules that no table shows: interfaces in other namespaces, bridges whose packets the kernel does not show us.

Told and not mended: taking an interface out of a running container, or switching what every bridge of the machine does, is
for a person (or for the section `[sysctl]`). Looked for once a minute, since no event tells of it.
Relies on: `agent.firewall.namespaces`, `agent.host`.
"""

from __future__ import annotations

from agent.firewall import namespaces
from agent.firewall.section import Section
from agent.host import Host
from agent.probes import Difference, could_not_look

EVERY_S = 60.0
_BRIDGED = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")


class Bypass:
    """Looks for one section, and remembers what it found until the next look."""

    def __init__(self, section: Section, host: Host) -> None:
        self._containers = section.containers
        self._host = host
        self._last: tuple[float, list[Difference]] | None = None

    def differences(self, now: float) -> list[Difference]:
        """Return what was found by the last look, which is at most a minute old."""
        if self._last is None or abs(now - self._last[0]) >= EVERY_S:
            self._last = (now, [*self._strays(), *self._bridged()])
        return self._last[1]

    def _strays(self) -> list[Difference]:
        allowed = self._containers.parents if self._containers else []
        try:
            found = namespaces.strays()
        except OSError as error:
            return [could_not_look("netns:", "no interface past the rules", error)]
        return [
            Difference(f"netns:{each.where} {each.name}", "absent", f"{each.kind} of {each.parent}")
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

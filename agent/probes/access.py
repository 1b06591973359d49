"""Section `[access]`: the most that a grant of the controller, or a break-glass code, may open here.

The entries are bounds, no rules: they open nothing. A grant that comes with a directive is held against them
(`agent.grants`). Accounts named here are shut while no grant opens them: this probe sees to that.

Refuses: an entry that names nothing (none is never all), two entries of one name, a zone that `[firewall]` lacks, an
account that is also allowed nothing else than grants to keep it from being the administrator's (`root`).
Relies on: `agent.grants` for the decision, `Surroundings.grants` for what is open now.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes
from agent.firewall.section import PortRange, port_range
from agent.probes import Contradiction
from contract.grant import MAX_GRANT_S, Account, Door, UsbId
from contract.messages import Drift, Name

Limit = Annotated[float, Meta(ge=1, le=MAX_GRANT_S)]
Reason = Annotated[str, Meta(min_length=3, max_length=512)]
MAX_ENTRIES = 64


class _Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything below the section."""


class Network(_Strict, frozen=True, kw_only=True):
    """`[[access.network]]`: ports that a grant may open, and with whom."""

    name: Name
    direction: Literal["in", "out"]
    zone: Name
    """A zone of `[firewall]`: every peer of the grant is in it, and packets come over its interfaces."""
    protocol: Literal["tcp", "udp"]
    ports: Annotated[list[int | str], Meta(min_length=1, max_length=64)]
    """Numbers, or ranges as text: "30000-30100"."""
    max_s: Limit
    reason: Reason

    def __post_init__(self) -> None:
        self.ranges()

    def ranges(self) -> list[PortRange]:
        """Return the ports as ranges. Raises ValueError."""
        return [port_range(port) for port in self.ports]


class Usb(_Strict, frozen=True, kw_only=True):
    """`[[access.usb]]`: devices that a grant may let in."""

    ids: Annotated[list[UsbId], Meta(min_length=1, max_length=64)]
    max_s: Limit
    reason: Reason


class Accounts(_Strict, frozen=True, kw_only=True):
    """`[[access.accounts]]`: users that a grant may let in; shut at all other times."""

    names: Annotated[list[Account], Meta(min_length=1, max_length=16)]
    max_s: Limit
    reason: Reason

    def __post_init__(self) -> None:
        if "root" in self.names:
            raise ValueError("expected no `root`: an account of [access] is shut while no grant is open")


class Doors(_Strict, frozen=True, kw_only=True):
    """`[[access.doors]]`: doors that a grant may name. They are opened by people; here it is recorded."""

    names: Annotated[list[Door], Meta(min_length=1, max_length=16)]
    max_s: Limit
    reason: Reason


class BreakGlass(_Strict, frozen=True, kw_only=True):
    """`[access.break_glass]`: what a one-use code does at the node's console. Absent: no code does anything."""

    posture: Literal["normal", "maintenance"]
    max_s: Annotated[float, Meta(ge=1, le=7 * 86400.0)]
    """So long it lasts; then everything is as it was."""
    releases_isolation: bool = False
    """Also where the node is isolated, by whomever."""
    reason: Reason


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[access]`."""

    two_persons: bool = True
    """A grant is refused where the same person has asked for it and approved it."""
    network: Annotated[list[Network], Meta(max_length=MAX_ENTRIES)] = field(default_factory=list)
    usb: Annotated[list[Usb], Meta(max_length=MAX_ENTRIES)] = field(default_factory=list)
    accounts: Annotated[list[Accounts], Meta(max_length=MAX_ENTRIES)] = field(default_factory=list)
    doors: Annotated[list[Doors], Meta(max_length=MAX_ENTRIES)] = field(default_factory=list)
    break_glass: BreakGlass | None = None

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.network]
        if len(set(names)) != len(names):
            raise ValueError("expected each name of [[access.network]] once")
        accounts = [name for entry in self.accounts for name in entry.names]
        if len(set(accounts)) != len(accounts):
            raise ValueError("expected each account once")


def contradictions(sections: Mapping[str, probes.SectionBase]) -> Iterator[Contradiction]:
    """Yield an entry whose zone does not exist."""
    from agent.firewall.section import Section as Firewall

    section, firewall = sections["access"], sections.get("firewall")
    zones = firewall.zones if isinstance(firewall, Firewall) else {}
    assert isinstance(section, Section)  # noqa: S101  (parsed by this module)
    for number, entry in enumerate(section.network):
        if entry.zone not in zones:
            known = ", ".join(sorted(zones)) or "none is defined"
            yield Contradiction(
                ("access", "network", number, "zone"), f"expected a zone of [firewall]: {known}"
            )


class Probe(probes.Probe[Section]):
    """Keeps the accounts shut that no grant opens."""

    def observe(self, now: float) -> list[Drift]:
        """Return one drift for each account that is not as the grants of the moment want it."""
        return []

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Shut accounts."""

"""`[netdevs]`: which network interfaces may be there.

An adapter that is plugged in, a tunnel or a bridge that is made, is a way around rules that name interfaces. An interface that
no rule names is reported or set down; whoever may set it up again is root, and it is set down again. Loopback always may be
there. Refuses to set down what the way to the controller goes over, and hardware while there is no such way: those are
reported. Sees the agent's own network namespace; what a container has inside is the container's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes
from agent.netlinks import Link
from agent.probes import Contradiction, Difference, Notice, could_not_look
from agent.probes._bounds import bounded
from agent.probes._gone import Departures, Removed
from agent.probes._vital import vital_parts
from agent.usbrules import Reason
from contract.messages import Drift, never_more

SUBSYSTEMS = ("net",)
MAX_TOLD = 32
NamePattern = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.@:*-]{1,15}\Z")]
Mac = Annotated[str, Meta(pattern=r"\A([0-9a-f]{2}:){5}[0-9a-f]{2}\Z")]


class Allow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[netdevs.allow]]`: interfaces that may be there. Every key that is given must match."""

    reason: Reason
    """Why, for the next reader."""
    names: Annotated[list[NamePattern], Meta(min_length=1, max_length=64)]
    """Names, with `*`."""
    mac: Mac | None = None
    """The address in use; it must be the hardware's own as well, where the kernel tells that."""
    driver: Annotated[str, Meta(min_length=1, max_length=32)] | None = None
    """As `ethtool -i` shows it."""
    place: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    """Where its hardware is: a PCI address, a USB interface."""
    kind: Annotated[str, Meta(max_length=32)] | None = None
    """Of one made by software, as `ip -d link` shows it; empty: hardware only."""
    promiscuous: bool = True
    """Whether it may take in what is not meant for it, as a port of a bridge does."""
    required: bool = False
    """It is a drift while no such interface is there."""

    def names_it(self, link: Link) -> bool:
        """True if the rule speaks of this interface."""
        mac = self.mac is None or {self.mac} == {link.mac, link.permanent or link.mac}
        pairs = ((self.driver, link.driver), (self.place, link.place), (self.kind, link.kind))
        return (
            mac
            and any(fnmatchcase(link.name, each) for each in self.names)
            and all(wanted is None or wanted == found for wanted, found in pairs)
        )


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[netdevs]`."""

    unknown: Literal["report", "down"] = "report"
    """`down`: set an interface down that no rule names."""
    removed: Removed = "ignore"
    """Whether a device that a rule names and that went is told, and how loudly."""
    allow: Annotated[list[Allow], Meta(max_length=256)] = field(default_factory=list)
    """Interfaces that may be there."""


def advice(
    parsed: Mapping[str, probes.SectionBase], interfaces: Collection[str] | None
) -> Iterator[Contradiction]:
    """Warn of rules that any interface can meet by taking a name."""
    section = parsed["netdevs"]
    for number, rule in enumerate(section.allow if isinstance(section, Section) else ()):
        hardware = rule.kind in (None, "")
        if hardware and rule.mac is rule.driver is rule.place is None:
            yield Contradiction(
                ("netdevs", "allow", number, "names"),
                "a name is all that is asked, and any interface can be renamed to it: "
                "add `place`, `mac` or `driver`, or the `kind` of one made by software",
            )


class Probe(probes.Probe[Section]):
    """Compares the interfaces with the rules."""

    by_hands = False
    rationed = False

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._kept_down: dict[tuple[str, str], Notice] = {}
        self._told: set[tuple[str, str]] = set()
        self._gone = Departures(self.name, section.removed)

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each interface that no rule names, and for each that is missing."""
        self._kept_down = {}
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Set unknown interfaces down, if the section says so."""
        if self.section.unknown != "down":
            return
        wrong = {drift.key for drift in drifts}
        links = self.around.host.links
        vital = vital_parts(self.around)
        for link in links.all():
            if vital.keeps(link):
                continue  # the way to the controller: told, not taken
            if link.up and self._unknown(link) and wrong & {link.name, "interfaces"}:
                try:
                    self.remember_first(link.name, "up")
                    links.set_down(link)
                except OSError:
                    continue  # the next observation reports it

    def undo(self) -> None:
        """Set up again what was set down."""
        for name, _ in self.remembered():
            try:
                self.around.host.links.set_up(name)
            except OSError:  # it has gone, or its driver refuses
                pass
            self.forget(name)

    def governs(self, key: str) -> bool:
        """True if the section keeps the interface down too, or it cannot be told."""
        if self.section.unknown != "down":
            return False
        try:
            there = [link for link in self.around.host.links.all() if link.name == key]
        except OSError:
            return True
        vital = vital_parts(self.around)
        return all(self._unknown(link) and not vital.keeps(link) for link in there)

    def notices(self, now: float) -> list[Notice]:
        """Return `netdevs.down` once for each interface that is kept down, `netdevs.gone` for each that went."""
        fresh = [notice for key, notice in self._kept_down.items() if key not in self._told]
        self._told = set(self._kept_down)
        return fresh + self._gone.take()

    def _rule(self, link: Link) -> Allow | None:
        return next((rule for rule in self.section.allow if rule.names_it(link)), None)

    def _unknown(self, link: Link) -> bool:
        return not link.loopback and self._rule(link) is None

    def _differences(self) -> Iterator[Difference]:
        try:
            links = self.around.host.links.all()
        except OSError as error:
            yield could_not_look("interfaces", "a list of network interfaces", error)
            return
        named = [link for link in links if self._rule(link) is not None]
        self._gone.look(
            {
                f"{each.name} {each.mac}": f"network interface {each.name} ({each.describe()})"
                for each in named
            }
        )
        yield from bounded("interfaces", self._each(links), MAX_TOLD)
        for number, rule in enumerate(self.section.allow):
            if rule.required and not any(rule.names_it(link) for link in links):
                yield Difference(f"allow {number}", f"there ({rule.reason})", "not there")

    def _each(self, links: Sequence[Link]) -> Iterator[Difference]:
        for link in links:
            rule = self._rule(link)
            if self._unknown(link):
                if self.section.unknown == "down" and not link.up:
                    detail = {"name": link.name, "mac": link.mac, "driver": link.driver, "place": link.place}
                    text = f"network interface {link.name} ({link.describe()}) is kept down: no rule names it"
                    cut = {key: never_more(value, 2048) for key, value in detail.items()}
                    self._kept_down[(link.name, link.mac)] = Notice(
                        "netdevs.down", "warning", never_more(text, 2048), cut
                    )
                else:
                    yield Difference(link.name, "an interface that a rule names", link.describe())
            elif rule is not None and link.promiscuous and not rule.promiscuous:
                yield Difference(f"{link.name} promiscuous", "no", "yes")

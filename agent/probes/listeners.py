"""`[listeners]`: which programs may wait for connections on this node.

Sees TCP sockets that listen and UDP sockets without a peer, in the agent's network namespace; raw and packet sockets,
SCTP, and other namespaces are not seen. A port that opened and closed between two looks is put on record
(`listeners.brief`), since the kernel announces the end of a socket; whose it was nobody can tell any more. Reports only, unless `kill = true`. UDP sockets on a port that the kernel chose are
given `udp_settle_s` before they count, since every name lookup opens one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes
from agent.firewall.section import Section as FirewallSection
from agent.firewall.section import port_range
from agent.host import Listener
from agent.probes import Contradiction, Difference, Notice, could_not_look
from agent.socketends import Ended
from contract.messages import Drift

MAX_BRIEF = 4096
"""Ends of sockets taken in one look (some 20 ms)."""
MAX_BRIEF_TOLD = 16
Reason = Annotated[str, Meta(min_length=3, max_length=512)]


class Allow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[listeners.allow]]`: one socket that may be open."""

    protocol: Literal["tcp", "udp"]
    """Transport."""
    port: Annotated[int, Meta(ge=1, le=65535)]
    """Local port."""
    address: Annotated[str, Meta(max_length=64)] = "any"
    """Local address, or `any`, or `loopback` for 127.0.0.0/8 and ::1."""
    program: Annotated[str, Meta(max_length=1024, pattern=r"\A/[^\x00-\x1f]*\Z")] | None = None
    """Path of the executable; absent: any program."""
    reason: Reason
    """Why, for the next reader."""

    def __post_init__(self) -> None:
        if self.address not in ("any", "loopback"):
            ipaddress.ip_address(self.address)

    def covers(self, listener: Listener) -> bool:
        """True if this rule allows the socket."""
        if (listener.protocol, listener.port) != (self.protocol, self.port):
            return False
        if self.program is not None and listener.program != self.program:
            return False
        found = ipaddress.ip_address(listener.address)
        if self.address == "loopback":
            return found.is_loopback
        return self.address == "any" or found == ipaddress.ip_address(self.address)


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[listeners]`."""

    allow: Annotated[list[Allow], Meta(max_length=512)] = field(default_factory=list)
    """The sockets that may be open."""
    kill: bool = False
    """In mode `enforce`: kill the process of a socket that no rule allows."""
    brief: bool = True
    """Put on record sockets that no rule allows and that opened and closed between two looks."""
    udp_settle_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    """Seconds that a UDP socket on a port of the kernel's choice may be open without being a drift."""


def advice(
    parsed: Mapping[str, probes.SectionBase], interfaces: Collection[str] | None
) -> Iterator[Contradiction]:
    """Warn of ports that the firewall opens and where this section kills whoever answers."""
    section, firewall = parsed["listeners"], parsed.get("firewall")
    if not (isinstance(section, Section) and section.kill and isinstance(firewall, FirewallSection)):
        return
    outside = [(rule.protocol, rule.port) for rule in section.allow if rule.address != "loopback"]
    for key, rules in (("inbound", firewall.inbound), ("maintenance.inbound", firewall.maintenance.inbound)):
        for number, rule in enumerate(rules):
            for text in rule.ports:
                low, high = port_range(text)
                if not any(protocol == rule.protocol and low <= port <= high for protocol, port in outside):
                    yield Contradiction(
                        ("firewall", *key.split("."), number, "ports"),
                        f"[listeners] kills whoever answers at {rule.protocol} {text}: add [[listeners.allow]], or shut the port",
                    )


class Probe(probes.Probe[Section]):
    """Compares open sockets with the rules."""

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._first_seen: dict[Listener, float] = {}
        self._seen: set[Ended] = set()
        """Sockets of this look and the last one: their end is no news."""
        self._now_open: set[Ended] = set()
        self._brief_failed = ""

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each open socket that no rule allows."""
        return self.drifts(self._differences(now), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Kill the processes of the sockets that are still open and not allowed, if the section says so."""
        if not self.section.kill:
            return
        wrong = {drift.key for drift in drifts}
        host = self.around.host
        try:
            listeners = host.listeners()
        except OSError:
            return  # the next observation reports it
        for listener in listeners:
            if not self._allowed(listener) and _key(listener) in wrong:
                try:
                    host.end_listener(listener)
                except OSError:
                    continue  # hidden, or not to be killed: the next observation reports that it is still there

    def notices(self, now: float) -> list[Notice]:
        """Return `listeners.brief` for what opened and closed since the last call, each port once."""
        if not self.section.brief:
            return []
        try:
            ended, lost = self.around.host.ended_sockets(MAX_BRIEF)
        except OSError as error:
            return self._without_brief(error)
        ephemeral = self.around.host.ephemeral_ports() if ended else range(0)
        counts: dict[Ended, int] = {}
        for each in ended:
            known = each in self._seen or self._may_be_allowed(each)
            if not known and not (each.protocol == "udp" and each.port in ephemeral):
                counts[each] = counts.get(each, 0) + 1
        self._seen = self._now_open
        out = []
        for each, times in list(counts.items())[:MAX_BRIEF_TOLD]:
            key = _key(Listener(each.protocol, each.address, each.port, None, ""))
            detail = {"key": key, "times": str(times)}
            out.append(Notice("listeners.brief", "warning", f"{key} was open and is closed again", detail))
        missed = max(0, len(counts) - MAX_BRIEF_TOLD)
        if missed or lost or len(ended) == MAX_BRIEF:
            summary = "more sockets were opened and closed again than are named"
            out.append(
                Notice("listeners.brief", "warning", summary, {"more": str(missed) if missed else "?"})
            )
        return out

    def _without_brief(self, error: OSError) -> list[Notice]:
        reason = error.strerror or str(error)
        if reason == self._brief_failed:
            return []
        self._brief_failed = reason
        summary = f"sockets that open and close between two looks are not seen: {reason}"
        return [Notice("listeners.brief-blind", "warning", summary, {})]

    def _may_be_allowed(self, ended: Ended) -> bool:
        """True if a rule would allow it for some program: which one it was is not known."""
        return any(
            rule.covers(Listener(ended.protocol, ended.address, ended.port, None, rule.program or ""))
            for rule in self.section.allow
        )

    def _allowed(self, listener: Listener) -> bool:
        return any(rule.covers(listener) for rule in self.section.allow)

    def _differences(self, now: float) -> Iterator[Difference]:
        host = self.around.host
        try:
            listeners = host.listeners()
        except OSError as error:
            yield could_not_look("sockets", "a list of open sockets", error)
            return
        ephemeral = host.ephemeral_ports()
        self._now_open = {Ended(each.protocol, each.address, each.port) for each in listeners}
        self._seen |= self._now_open
        self._first_seen = {each: self._first_seen.get(each, now) for each in listeners}
        for each in listeners:
            if self._allowed(each):
                continue
            settling = now - self._first_seen[each] < self.section.udp_settle_s
            if each.protocol == "udp" and each.port in ephemeral and settling:
                continue
            process = host.describe_process(each.pid) if each.pid is not None else ""
            program = each.program or "a program that cannot be seen"
            yield Difference(_key(each), "no such socket", f"open, by {program}", process)


def _key(listener: Listener) -> str:
    address = f"[{listener.address}]" if ":" in listener.address else listener.address
    return f"{listener.protocol} {address}:{listener.port}"

"""Section `[access]`: the most that a grant of the controller, or a break-glass code, may open here.

The entries are bounds, no rules: they open nothing. A grant that comes with a directive is held against them
(`agent.grants`). Accounts named here are shut while no grant opens them: this probe sees to that.

Refuses: an entry that names nothing (none is never all), two entries of one name, a zone that `[firewall]` lacks, an
account that is also allowed nothing else than grants to keep it from being the administrator's (`root`).
Relies on: `agent.grants` for the decision, `Surroundings.grants` for what is open now, `agent.loginsessions` for who is logged in.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes
from agent.accountfiles import parse_expiry, parse_passwd, with_expiry
from agent.firewall.section import PortRange, port_range
from agent.grants import OpenGrant
from agent.host import Watched
from agent.loginsessions import FOLDER, sessions
from agent.probes import Contradiction, Difference, Notice, could_not_look
from agent.tree import file_of
from agent.usbrules import Kind
from contract.grant import MAX_GRANT_S, Account, Door, UsbId
from contract.messages import Drift, Name, never_more

Limit = Annotated[float, Meta(ge=1, le=MAX_GRANT_S)]
Reason = Annotated[str, Meta(min_length=3, max_length=512)]
MAX_ENTRIES = 64
DAY_S = 86400.0
SHUT = "1"
"""The expiry of an account that is shut: the second day of 1970. Keys and passwords alike are refused by it (pam_unix(8))."""
_SHADOW, _PASSWD, _LOCK = "/etc/shadow", "/etc/passwd", "/etc/.pwd.lock"
_DEATH_S = 0.5


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
    interfaces: Annotated[list[Kind], Meta(min_length=1, max_length=32)]
    """`class:subclass:protocol` in hexadecimal, `*` for any. A stick that is also a keyboard gets in as a stick."""
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
        elif zones[entry.zone].macs or (zones[entry.zone].names and not zones[entry.zone].addresses):
            yield Contradiction(
                ("access", "network", number, "zone"),
                "expected a zone of addresses or interfaces: MAC addresses and names bound no grant",
            )


class Probe(probes.Probe[Section]):
    """Keeps the accounts shut that no grant opens: expired in /etc/shadow, and without a process.

    While a grant is open the account expires at the end of its last day, so that it is shut some time even if nobody is
    there to do it; to the second it is shut by the pass after the grant's end.
    """

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._told: set[tuple[int, str, str]] = set()
        """Grant, account and who used it."""

    def observe(self, now: float) -> list[Drift]:
        """Return one drift for each account that is not as the grants of the moment want it."""
        open_now = any(grant.accounts for grant in self.around.grants)
        self.around.host.watch_files(self.name, Watched(folders=frozenset([FOLDER] if open_now else [])))
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Set the expiry of accounts, then end what still runs under those that are shut. Raises OSError."""
        wrong = {drift.key for drift in drifts}
        host = self.around.host
        for name, wanted in self._wanted().items():
            if f"account {name}" in wrong:
                self._set(name, wanted)
        users = self._users()
        for name, wanted in self._wanted().items():
            if f"account {name} processes" in wrong and wanted == SHUT and name in users:
                host.processes.end_user(users[name])
        self._wait_gone(
            [users[name] for name, wanted in self._wanted().items() if wanted == SHUT and name in users]
        )

    def undo(self) -> None:
        """Give accounts back the expiry that they had. What was ended stays ended."""
        for name, expiry in self.remembered():
            with suppress(OSError):
                self._write(name, expiry)
            self.forget(name)

    def governs(self, key: str) -> bool:
        """True if the section shuts the account too."""
        return key in self._wanted()

    def notices(self, now: float) -> list[Notice]:
        """Return `grant.used` for whoever works under an account that a grant has opened, each once.

        A login that begins wakes this section; one without a session (no systemd-logind) is seen by its processes, if it
        lasts until the next look.
        """
        opened = [(grant, name) for grant in self.around.grants for name in grant.accounts]
        there = {grant.id for grant, _ in opened}
        self._told = {each for each in self._told if each[0] in there}
        return [notice for grant, name in opened for notice in self._uses(grant, name)]

    def _uses(self, grant: OpenGrant, name: str) -> Iterator[Notice]:
        host = self.around.host
        try:
            uid = self._users().get(name)
            if uid is None:
                return
            by = {f"account {name} {each.describe()}" for each in sessions(host) if each.uid == uid}
            running = [] if by else host.processes.of_user(uid)
        except OSError:
            return  # the look has told of it
        if running and not any(known[:2] == (grant.id, name) for known in self._told):
            by = {f"account {name}: {host.describe_process(running[0])}"}
        for source in sorted(by):
            if (grant.id, name, source) not in self._told:
                self._told.add((grant.id, name, source))
                detail = {"grant": str(grant.id), "source": never_more(source, 2048)}
                summary = never_more(f"grant {grant.id}: used by {source}", 2048)
                yield Notice("grant.used", "info", summary, detail)

    def _wanted(self) -> dict[str, str]:
        """Return the expiry that each account is to have."""
        wanted = {name: SHUT for entry in self.section.accounts for name in entry.names}
        for grant in self.around.grants:
            for name in grant.accounts:
                if name in wanted:
                    until = str(int(grant.ends_at // DAY_S) + 1)
                    wanted[name] = max(wanted[name], until, key=int)
        return wanted

    def _differences(self) -> Iterator[Difference]:
        wanted = self._wanted()
        if not wanted:
            return
        try:
            expiry = parse_expiry(self.around.host.tree.keep(_SHADOW).content())
            users = self._users()
        except OSError as error:
            yield could_not_look(_SHADOW, "a look at the accounts", error)
            return
        for name, day in sorted(wanted.items()):
            if name not in users:
                continue
            found = expiry.get(name)
            if found != day:
                yield Difference(
                    f"account {name}", _words(day), "not in shadow" if found is None else _words(found)
                )
            try:
                running = self.around.host.processes.of_user(users[name]) if day == SHUT else []
            except OSError as error:
                yield could_not_look(f"account {name} processes", "none", error)
                continue
            if running:
                shown = "; ".join(self.around.host.describe_process(pid) for pid in running[:4])
                yield Difference(f"account {name} processes", "none", f"{len(running)}: {shown}")

    def _users(self) -> dict[str, int]:
        users, _ = parse_passwd(self.around.host.tree.keep(_PASSWD).content())
        return {user.name: user.uid for user in users}

    def _set(self, name: str, expiry: str) -> None:
        before = parse_expiry(self.around.host.tree.keep(_SHADOW).content()).get(name)
        if before is not None:
            self.remember_first(name, before)
            self._write(name, expiry)

    def _write(self, name: str, expiry: str) -> None:
        tree = self.around.host.tree
        with tree.locked(_LOCK):
            kept = tree.keep(_SHADOW)
            if kept.kind == "file":
                tree.put(_SHADOW, file_of(with_expiry(kept.content(), name, expiry), kept))

    def _wait_gone(self, uids: Sequence[int]) -> None:
        """Give killed processes a moment to be gone, so that the look that follows does not find them."""
        deadline = time.monotonic() + _DEATH_S
        while any(self.around.host.processes.of_user(uid) for uid in uids) and time.monotonic() < deadline:
            time.sleep(0.01)


def _words(expiry: str) -> str:
    if expiry == SHUT:
        return "shut"
    return f"shut from day {expiry} of 1970 on" if expiry else "open for ever"

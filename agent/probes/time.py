"""`[time]`: the clock is set by a time service that is meant to set it, is nearly right, and does not jump.

Certificates, grants and directives expire by this clock, so whoever turns it back can use old ones. Refuses to set
anything: reports only, in either mode. A jump is the wall clock against the time since boot, between two looks, and is
shown for an hour after it; one from before the agent began to look is not seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent import probes
from agent.clock import KernelClock
from agent.probes import Difference, could_not_look
from agent.timeservers import configured
from contract.messages import Drift

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Server = Annotated[str, Meta(max_length=253, pattern=r"\A[A-Za-z0-9*_.:-]+\Z")]
Reason = Annotated[str, Meta(min_length=3, max_length=512)]

JUMP_SHOWN_S = 3600.0
SHOWN = 32
"""So many unknown servers are drifts of their own; the others are one drift together."""
_SLEW = 0.001
"""A time service may move the clock by so much a second without a jump (chrony and kernel: 500 millionths)."""


class Allowed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[time.server]]`: servers that may be configured."""

    names: Annotated[list[Server], Meta(min_length=1, max_length=256)]
    """Names and addresses as they are configured; `*` stands for any text."""
    reason: Reason
    """Why, for the next reader."""


class Section(probes.SectionBase, frozen=True, kw_only=True):
    """`[time]`."""

    synchronised: bool = True
    """The kernel must say that a time service has set its clock."""
    max_offset_s: Seconds | None = None
    """How much may still be left to be slewed away; absent: not looked at."""
    max_error_s: Seconds | None = None
    """What the kernel's own bound of its error may be; absent: not looked at."""
    max_jump_s: Seconds = 1.0
    """How far the wall clock may jump at once."""
    max_rtc_offset_s: Annotated[float, Meta(ge=1, le=86400)] | None = None
    """How far the battery clock may be off; absent: not looked at."""
    unknown: Literal["ignore", "report"] = "report"
    """What happens to a configured server that no entry names."""
    server: Annotated[list[Allowed], Meta(max_length=64)] = field(default_factory=list)
    """Servers that may be configured; one of them must be."""

    def __post_init__(self) -> None:
        names = [name.lower() for entry in self.server for name in entry.names]
        if len(set(names)) != len(names):
            raise ValueError("expected each server once")
        if not self.synchronised and (self.max_offset_s is not None or self.max_error_s is not None):
            raise ValueError("expected no `max_offset_s` and `max_error_s` with `synchronised = false`")


class Probe(probes.Probe[Section]):
    """Looks at the clocks."""

    by_hands = False

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        names = [name.lower() for entry in section.server for name in entry.names]
        self._known = re.compile(
            "|".join(".*".join(map(re.escape, name.split("*"))) for name in names) or "(?!)"
        )
        self._last: tuple[float, float] | None = None
        self._jump: tuple[float, str] | None = None

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for a clock that is not set, wrong or jumped, and for servers that should not be there."""
        return self.drifts(self._differences(), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Do nothing: the time service's files belong to [files], and nobody but it may set the clock."""

    def _differences(self) -> Iterator[Difference]:
        clock = self.around.host.clock
        if self.section.synchronised:
            try:
                yield from wrong_clock(self.section, clock.kernel())
            except OSError as error:
                yield could_not_look("clock", "synchronised", error)
        yield from self._jumped()
        if (most := self.section.max_rtc_offset_s) is not None:
            wanted = f"at most {most:g} s off"
            try:
                off = abs(clock.battery_less_wall_s())
            except OSError as error:
                yield could_not_look("battery clock", wanted, error)
            else:
                if off > most:
                    yield Difference("battery clock", wanted, f"{rough(off)} off")
        yield from self._wrong_servers()

    def _jumped(self) -> Iterator[Difference]:
        clock = self.around.host.clock
        at, here = clock.boot_s(), clock.wall_at_boot_s()
        if self._last is not None:
            before, there = self._last
            moved = here - there
            if abs(moved) > self.section.max_jump_s + _SLEW * max(0.0, at - before):
                self._jump = at, f"{'forward' if moved > 0 else 'back'} by {abs(moved):.0f} s"
        self._last = at, here
        if self._jump is not None and at - self._jump[0] >= JUMP_SHOWN_S:
            self._jump = None
        if self._jump is not None:
            yield Difference("clock jump", f"at most {self.section.max_jump_s:g} s", self._jump[1])

    def _wrong_servers(self) -> Iterator[Difference]:
        if self.section.unknown == "ignore" and not self.section.server:
            return
        try:
            found = configured(self.around.host)
        except OSError as error:
            yield could_not_look("servers", "the configured time servers", error)
            return
        known = [name for name in found if self._known.fullmatch(name)]
        if self.section.server and not known:
            yield Difference("servers", "at least one that is listed", "none of them configured")
        if self.section.unknown == "ignore":
            return
        strange = sorted(found.keys() - set(known))
        for name in strange[:SHOWN]:
            yield Difference(f"server {name}", "not configured (no entry names it)", f"in {found[name]}")
        if more := strange[SHOWN:]:
            yield Difference("more servers", "no others configured", f"{len(more)} more: {', '.join(more)}")


def wrong_clock(section: Section, clock: KernelClock) -> Iterator[Difference]:
    """Return how the kernel's clock differs from the section."""
    if not clock.synchronised:
        yield Difference("clock", "synchronised", "not synchronised")
        return  # what else the kernel says is worth nothing
    for key, most, found in (
        ("clock offset", section.max_offset_s, abs(clock.offset_s)),
        ("clock error", section.max_error_s, clock.max_error_s),
    ):
        if most is not None and found > most:
            yield Difference(key, f"at most {most:g} s", rough(found))


def rough(seconds: float) -> str:
    """Return "over 5 s": in steps of 1, 2, 5, so that a value that wanders is not a new drift at every look."""
    step = 1e-9
    for factor in (2.0, 2.5, 2.0) * 20:
        if step * factor > seconds:
            break
        step *= factor
    return f"over {step:.12g} s"

"""The probes: one file for each section of a baseline; the module's name is the section's name.

A probe module exposes `Section` (a subclass of `SectionBase`: what may be written in the TOML) and `Probe` (a
subclass of `Probe[Section]`: observes, explains, repairs). Modules are found by listing this folder; no list
of them stands anywhere. Probes are synchronous and run on the one thread that owns the machine. A probe never
decides its own mode: the loop calls `repair` only where the section is in mode `enforce`. "Could not look" is a drift,
never silence and never an exception.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, cast

import msgspec

from contract import baseline as baselines
from contract.baseline import SectionBase
from contract.messages import BaselineRef, Drift, Mode, Posture, Severity, never_more
from contract.toml import dotted

if TYPE_CHECKING:
    from agent.grants import OpenGrant
    from agent.host import Host
    from agent.netfilter import Netfilter
    from agent.tpm import Tpm

__all__ = [
    "UNSEEN",
    "Contradiction",
    "ControllerEndpoint",
    "Difference",
    "Notice",
    "Probe",
    "ProbeModule",
    "SectionBase",
    "Surroundings",
    "Warned",
    "could_not_look",
    "mode_of",
    "parse_sections",
    "sections",
    "subsystems",
    "warnings",
]

UNSEEN = "?"
"""`Drift.found` where it could not be looked."""


class ControllerEndpoint(NamedTuple):
    """Where the controller listens for nodes: an address (no name) and a TCP port."""

    address: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a probe is given besides its section. `remembered` is kept over restarts by the store."""

    host: Host
    netfilter: Netfilter | None = None
    tpm: Tpm | None = None
    controller: tuple[ControllerEndpoint, ...] = ()
    posture: Posture = "normal"
    fenced: tuple[str, ...] = ()
    grants: tuple[OpenGrant, ...] = ()
    """Open now."""
    on_trial: bool = False
    """The baseline in force is not confirmed yet: it may be taken back within seconds."""
    remembered: MutableMapping[str, str] = field(default_factory=dict)
    event_log: str = "/sys/kernel/security/tpm0/binary_bios_measurements"
    """Where the firmware's log is read."""
    ima_log: str = "/sys/kernel/security/ima/binary_runtime_measurements"
    """Where the kernel's is."""


class Difference(NamedTuple):
    """A drift before its age is known."""

    key: str
    wanted: str
    found: str
    culprit: str = ""


class Notice(NamedTuple):
    """Something to put on record that is no drift: the loop makes an event of it."""

    kind: str
    severity: Severity
    summary: str
    detail: dict[str, str]


class Contradiction(NamedTuple):
    """Something in one section that cannot stand beside another section."""

    at: tuple[str | int, ...]
    """The key that is refused, from the section's name on."""
    expected: str


S = TypeVar("S", bound=SectionBase)


class Probe(ABC, Generic[S]):
    """Observes one section. Lives as long as its baseline is in force.

    `around` is replaced by the loop when posture or fences change; nothing may be derived from it in `__init__`.
    """

    rationed: ClassVar[bool] = True
    """False where a repair closes a door in one small step: it has no budget and never rests (`agent.budget`)."""
    by_hands: ClassVar[bool] = True
    """False where repairs need no powers but the agent's own, or there are none (`agent.hands`)."""

    def __init__(self, section: S, around: Surroundings) -> None:
        self.section = section
        self.around = around
        self._since: dict[tuple[str, str, str], float] = {}
        self.successor: Probe[SectionBase] | None = None
        """Who takes over what this probe remembers, as far as it governs it."""
        name = type(self).__module__.rpartition(".")[2]
        self.name = name
        """The section's name."""
        self._before = f"{name}:"
        self.ref: BaselineRef | None = None
        """The signed baseline that the section stands in; set by whoever makes the probe."""
        self.acted: list[Notice] = []
        """What `settle` and `repair` have to say; told by the next `notices`."""
        self.marks: dict[str, str] = {}
        """What they leave behind for the looks that follow. An empty value takes a mark away."""

    def unsettled(self) -> frozenset[str]:
        """Return what waits for `settle`: names that are the same as long as the same thing waits. Raises nothing."""
        return frozenset()

    def settle(self, now: float) -> None:
        """Do what is daily work and no repair, before each `observe` in mode `enforce`: let in a device that may come."""

    def recall(self, now: float) -> None:
        """Find what an `observe` of this very probe would have left for `repair` and `undo`; called where there was none."""

    def leave(self) -> None:
        """End what runs in the background: the section is no longer in force."""

    @abstractmethod
    def observe(self, now: float) -> list[Drift]:
        """Return how the machine differs from the section. Writes nothing and raises nothing for a failed look."""

    @abstractmethod
    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Mend what can be mended of `drifts` (from the last `observe`). What stays is seen by the next `observe`.

        May raise OSError or Rejected where nothing at all could be done: the loop reports it and goes on.
        """

    def undo(self) -> None:
        """Put back what `repair` changed, where it was remembered: this section is no longer in force.

        What the `successor` governs is left as it is, and stays remembered for its own undo.
        """

    def governs(self, key: str) -> bool:
        """True if this section too decides about what is remembered under `key`, and would not have the first value back."""
        return False

    def notices(self, now: float) -> list[Notice]:
        """Return what is to be recorded since the last call, each thing once. Called after `observe`."""
        return []

    def drifts(self, differences: Iterable[Difference], now: float) -> list[Drift]:
        """Give each difference its age: `since` is when this very difference was first seen by this probe."""
        seen: dict[tuple[str, str, str], float] = {}
        out = []
        for each in differences:
            identity = (each.key, each.wanted, each.found)
            seen[identity] = self._since.get(identity, now)
            out.append(
                Drift(
                    section=self.name,
                    key=never_more(each.key, 256),
                    wanted=never_more(each.wanted, 2048),
                    found=never_more(each.found, 2048),
                    since=seen[identity],
                    culprit=never_more(each.culprit, 2048),
                )
            )
        self._since = seen
        return out

    def take_acted(self) -> list[Notice]:
        """Return what was done, and forget it."""
        acted, self.acted = self.acted, []
        return acted

    def remember_first(self, key: str, value: str) -> None:
        """Keep the value that was there before the first repair of `key`; later ones do not overwrite it."""
        self.around.remembered.setdefault(self._before + key, value)

    def remembered(self) -> Iterator[tuple[str, str]]:
        """Yield every (key, first value) that this section has remembered and that no successor governs."""
        for key in list(self.around.remembered):
            if key.startswith(self._before):
                bare = key.removeprefix(self._before)
                if self.successor is None or not self.successor.governs(bare):
                    yield bare, self.around.remembered[key]

    def handed_over(self) -> Iterator[tuple[str, str]]:
        """Yield every (key, first value) that this section has remembered and that the successor governs."""
        for key, value in list(self.around.remembered.items()):
            bare = key.removeprefix(self._before)
            if key.startswith(self._before) and self.successor is not None and self.successor.governs(bare):
                yield bare, value

    def forget(self, key: str) -> None:
        """Drop a remembered value after it was put back."""
        self.around.remembered.pop(self._before + key, None)


def could_not_look(key: str, wanted: str, error: Exception) -> Difference:
    """Return the difference that stands for a failed look: found is "?", and `wanted` also tells why."""
    reason = (
        getattr(error, "strerror", None)
        or getattr(error, "detail", None)
        or str(error)
        or type(error).__name__
    )
    return Difference(key, f"{wanted} (could not look: {reason})", UNSEEN)


Check = Callable[[Mapping[str, SectionBase]], Iterable[Contradiction]]


class Warned(NamedTuple):
    """Something that a node takes and its author may not have meant."""

    line: int
    key: str
    text: str


Advise = Callable[[Mapping[str, SectionBase], Collection[str] | None], Iterable[Contradiction]]


class ProbeModule(Protocol):
    """What a file in this folder exposes; besides, where sections must agree, `contradictions(sections)`.

    That is called for baselines that have the module's section, with all sections, each with the mode that holds for it, and
    yields `Contradiction`. A module that names `SUBSYSTEMS` (of the kernel's uevents) is looked at again as soon as a
    device of one of them comes or goes.
    And, where there is something to warn an author of, `advice(sections, interfaces)`, which yields the same and refuses
    nothing; `interfaces` are those of this machine, or None where it is not such a node.
    """

    Section: type[SectionBase]
    Probe: type[Probe[Any]]


def sections() -> dict[str, ProbeModule]:
    """Return every probe module by section name, found by listing this folder. Names with a leading '_' are not probes."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))
    return {name: cast(ProbeModule, importlib.import_module(f"{__name__}.{name}")) for name in names}


def subsystems() -> dict[str, list[str]]:
    """Return which sections look at which of the kernel's subsystems: those that a probe module names as `SUBSYSTEMS`."""
    found: dict[str, list[str]] = {}
    for name, module in sections().items():
        for subsystem in getattr(module, "SUBSYSTEMS", ()):
            found.setdefault(subsystem, []).append(name)
    return found


def parse_sections(baseline: baselines.Baseline) -> dict[str, SectionBase]:
    """Return every section of a baseline, typed by its probe, in the order of the text.

    Raises Rejected `baseline.key`, with file, line, key and what was expected, also for a section that no probe has
    and for sections that contradict each other.
    """
    known = sections()
    parsed: dict[str, SectionBase] = {}
    for name in baseline.sections:
        if name not in known:
            raise baselines.refuse(baseline, (name,), f"unknown section; expected one of: {', '.join(known)}")
        parsed[name] = baselines.section(baseline, name, known[name].Section)
    in_force = _in_force(parsed, baseline.head)
    for name in parsed:
        check: Check | None = getattr(known[name], "contradictions", None)
        for found in check(in_force) if check is not None else ():
            raise baselines.refuse(baseline, found.at, found.expected)
    return parsed


def warnings(
    baseline: baselines.Baseline,
    parsed: Mapping[str, SectionBase],
    interfaces: Collection[str] | None = None,
) -> list[Warned]:
    """Return what an author should look at again, by line."""
    known = sections()
    found = []
    in_force = _in_force(parsed, baseline.head)
    for name in parsed:
        advise: Advise | None = getattr(known[name], "advice", None)
        for each in advise(in_force, interfaces) if advise is not None else ():
            line = baselines.line_of(baseline.text, each.at)
            found.append(Warned(line, dotted(each.at), each.expected))
    return sorted(found)


def _in_force(parsed: Mapping[str, SectionBase], head: baselines.Head) -> dict[str, SectionBase]:
    """Return the sections, each with the mode that holds for it."""
    return {
        name: section if section.mode else msgspec.structs.replace(section, mode=head.mode)
        for name, section in parsed.items()
    }


def mode_of(section: SectionBase, head: baselines.Head) -> Mode:
    """Return the mode in force for a section: its own, else the head's."""
    return section.mode or head.mode

"""What the node is held to, and the crash-safe steps from one baseline to the next.

Every change is on disk before the machine is touched, so that a start after a crash at any instant finds one
of: last-good; pending with a deadline; nothing it can believe, which is lock-down (ATTACKS a01, a02).

Refuses: directives that `contract.envelope` refuses, that name a response nobody here has, or that were issued
before this state was made (so a deleted state folder opens no door to old orders).
Relies on: the worker thread alone calling.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from agent import responses
from agent.config import AgentConfig
from agent.firewall.contested import is_fought_over
from agent.firewall.section import Section as FirewallSection
from agent.lockdown import lockdown
from agent.plan import Apply, Facts, Healing, Step, contest, settle
from agent.probes import SectionBase, parse_sections
from agent.remembered import Remembered
from agent.responses import Told
from agent.store import Damaged, Slot, State, Store, fresh_state
from contract import directive as directives
from contract.baseline import Baseline, parse_baseline
from contract.directive import WantedBaseline
from contract.envelope import open_directive
from contract.errors import Rejected
from contract.messages import BaselineRef, Drift, never_more
from contract.trusted import TrustedBaseline

MAX_TURNED_DOWN = 32
RETRY_S = 900.0
MAX_RETRY_S = 86400.0
"""A baseline that was taken back is not tried again sooner, however many directives ask for it: each try cuts the
node off for a while. The pause doubles with every failure."""
CLOCK_SLACK_S = 300.0
"""A controller's clock may be this far behind a node whose state is new."""

Request = tuple[directives.Response, responses.Response, responses.Wanted]


@dataclass(frozen=True)
class Held:
    """A baseline in force: signed (with its reference) or the packaged lock-down (without)."""

    ref: BaselineRef | None
    baseline: Baseline
    sections: dict[str, SectionBase]


class Hold:
    """State, directive and baseline of the node. `tell` takes events; it must not raise."""

    def __init__(
        self, config: AgentConfig, store: Store, tell: Callable[[Told], object], *, now: float
    ) -> None:
        self._config = config
        self._store = store
        self._tell = tell
        self._unwritable = False
        self.state = self._first_state(now)
        self.remembered = Remembered(lambda: self.state.remembered, lambda now: self.change(remembered=now))
        self.held = self._held_at_start()
        self.requests: list[Request] = []
        self.ready: TrustedBaseline | None = None
        self.pending_since: float | None = None
        """Monotonic time at which this process put the pending baseline in force."""
        self.pending_session = 0
        """The last session opened before that: only an answer in a later one confirms."""
        self.pending_answered = False
        if self.state.directive is not None:
            try:
                self.requests = responses.checked(self.state.directive.responses)
            except Rejected as error:  # an older agent's directive; the controller will say it anew
                tell(Told(kind="directive.refused", severity="warning", summary=str(error)))

    # ---- state

    def _first_state(self, now: float) -> State:
        try:
            found = self._store.load_state()
        except Damaged as damage:
            self._tell(
                Told(kind="state.damaged", severity="critical", summary=f"{damage}; holding lock-down rules")
            )
            self._store.set_aside()
            found = fresh_state(now, damaged=True)
            self._write(found)
            return found
        if found is None:
            found = fresh_state(now)
            self._tell(
                Told(kind="state.new", severity="warning", summary="no state was found: lock-down rules hold")
            )
            self._write(found)
        elif found.created > now + CLOCK_SLACK_S:  # the clock was set back: a time to come forbids nothing
            found = msgspec.structs.replace(found, created=now)
        return found

    def change(self, **fields: object) -> bool:
        """Replace fields of the state and write it; False when the disk refused (memory has it all the same)."""
        self.state = msgspec.structs.replace(self.state, **fields)
        return self._write(self.state)

    def _write(self, state: State) -> bool:
        try:
            self._store.save_state(state)
        except OSError as error:
            if not self._unwritable:
                self._tell(Told(kind="state.unwritable", severity="critical", summary=str(error)))
            self._unwritable = True
            return False
        self._unwritable = False
        return True

    # ---- baseline

    def _held_at_start(self) -> Held:
        if self.state.pending is not None:
            self.state = msgspec.structs.replace(self.state, pending_starts=self.state.pending_starts + 1)
            self._write(self.state)
        for slot in (self.state.pending, self.state.last_good):
            if slot is not None:
                try:
                    return _held(slot.ref, parse_baseline(slot.raw, file=_file(slot.ref)))
                except Rejected as error:
                    self._tell(Told(kind="baseline.unreadable", severity="critical", summary=str(error)))
                if slot is self.state.pending:
                    self.change(pending=None, pending_starts=0)
        return self.locked_down()

    def locked_down(self) -> Held:
        """Return the packaged lock-down rules as what is held."""
        return _held(None, lockdown())

    def step(self, monotonic_s: float, not_in_force: str) -> Step:
        """Ask the plan what to do about the baseline; `not_in_force` as `Machine.not_in_force` says."""
        state = self.state
        ready = self.ready
        return settle(
            Facts(
                directive=state.directive,
                last_good=state.last_good.ref if state.last_good else None,
                pending=state.pending.ref if state.pending else None,
                pending_for_s=0.0 if self.pending_since is None else monotonic_s - self.pending_since,
                pending_starts=state.pending_starts,
                pending_had_contact=state.pending_had_contact,
                pending_answered=self.pending_answered,
                not_in_force=not_in_force,
                turned_down=state.turned_down,
                ready=None
                if ready is None
                else WantedBaseline(name=ready.name, version=ready.version, sha256=ready.sha256),
                confirm_s=self._config.confirm_s,
            )
        )

    def begin(self, step: Apply, check: Callable[[Held], None], *, in_contact: bool) -> Held | None:
        """Parse and dry-run the fetched baseline, then write it down as pending; None if it is not to be applied.

        `check` is the dry run and raises Rejected. Nothing of the machine was touched when this returns.
        """
        trusted, self.ready = self.ready, None
        if trusted is None:
            return None
        ref = BaselineRef(name=trusted.name, version=trusted.version, sha256=bytes.fromhex(trusted.sha256))
        try:
            held = _held(ref, trusted.baseline)
            check(held)
        except Rejected as error:
            self.turn_down(step.wanted.sha256, error)
            return None
        fields: dict[str, object] = {
            "pending": Slot(ref=ref, raw=trusted.raw),
            "pending_starts": 0,
            "pending_had_contact": in_contact,
        }
        before = self.state
        if not self.change(**fields):
            # Without a record of it a crash would leave rules that nobody takes back.
            self.state = before
            self.turn_down(step.wanted.sha256, Rejected("baseline.not-storable", "the disk takes nothing"))
            return None
        self.held = held
        self.pending_answered = False
        return held

    def confirm(self) -> None:
        """The pending baseline becomes last-good."""
        slot = self.state.pending
        if slot is None:
            return
        name, version = slot.ref.name, slot.ref.version
        highest = {**self.state.highest, name: max(version, self.state.highest.get(name, 0))}
        self.change(last_good=slot, pending=None, pending_starts=0, highest=highest, damaged=False)
        self._tell(
            Told(
                kind="baseline.confirmed",
                severity="info",
                summary=f"{_file(slot.ref)} is in force and confirmed",
            )
        )

    def revert(self, code: str, reason: str, now: float) -> Held:
        """Write down that last-good (or lock-down) holds again, and return it; the machine is touched after that."""
        slot = self.state.pending
        turned_down, reverted = dict(self.state.turned_down), dict(self.state.reverted)
        if slot is not None and code != "baseline.withdrawn":
            sha256 = slot.ref.sha256.hex()
            turned_down[sha256] = self.state.directive_number
            reverted[sha256] = (now, reverted.get(sha256, (0.0, 0))[1] + 1)
        self.change(
            pending=None,
            pending_starts=0,
            turned_down=_newest(turned_down),
            reverted=dict(sorted(reverted.items(), key=lambda item: item[1])[-MAX_TURNED_DOWN:]),
        )
        self.held = self._held_at_start()
        if slot is not None:
            self._tell(
                Told(
                    kind="baseline.reverted",
                    severity="warning",
                    summary=f"{_file(slot.ref)} was taken back: {reason}",
                    detail={"code": code, "baseline": _file(slot.ref), "sha256": slot.ref.sha256.hex()},
                )
            )
        return self.held

    def turn_down(self, sha256: str, error: Rejected) -> None:
        """Record that a baseline is not acceptable here; it is not tried again under the same directive."""
        number = self.state.directive.number if self.state.directive else self.state.directive_number
        self.change(turned_down=_newest({**self.state.turned_down, sha256: number}))
        self._tell(
            Told(
                kind="baseline.refused",
                severity="warning",
                summary=str(error),
                detail={"code": error.code, "sha256": sha256},
            )
        )

    # ---- a firewall that somebody fights over

    def count_healings(self, fought: list[Drift], now: float) -> str:
        """Write down what of the firewall was healed, or held against us; return why the node must isolate itself, empty if it need not."""
        section = self.held.sections["firewall"]
        assert isinstance(section, FirewallSection)  # noqa: S101  (parsed by the module of that name)
        before = [Healing(*each) for each in self.state.healings]
        ours = [drift for drift in fought if is_fought_over(drift)]
        limit = section.contest
        kept, reason = contest(before, ours, now, times=limit.healings, within_s=limit.within_s)
        reason = never_more(reason, 2048)
        if list(kept) != before:
            # On disk before the machine is touched: a crash in between forgets no isolation.
            under = self.state.directive_number if reason else self.state.self_isolated_under
            healings = [tuple(each) for each in kept]
            self.change(healings=healings, self_isolated=reason, self_isolated_under=under)
        return reason

    def isolate_itself(self, reason: str) -> None:
        """Write down that this node isolates itself, and why; before the machine is touched."""
        self.change(self_isolated=reason, self_isolated_under=self.state.directive_number)

    # ---- directive

    def take_directive(self, untrusted: bytes, key: bytes, now: float) -> bool:
        """Verify and write down a directive; True when it is new. A refusal becomes an event, never an exception."""
        try:
            directive = open_directive(
                untrusted, key, node=self._config.node, now=now, highest_number=self.state.directive_number
            )
            if directive.issued < self.state.created - CLOCK_SLACK_S:
                raise Rejected("directive.before-state", "issued before this node's state was made")
            requests = responses.checked(directive.responses)
        except Rejected as error:
            current = self.state.directive
            if error.code in ("directive.replayed", "directive.number-reused") and current is not None:
                again = self._same_again(untrusted, key, now)
                if again == current:
                    if not self._store.has_signed_directive():  # an agent before this one kept none
                        self._keep_signed(untrusted)
                    return False
            self._tell(
                Told(
                    kind="directive.refused",
                    severity="warning",
                    summary=str(error),
                    detail={"code": error.code},
                )
            )
            return False
        self._keep_signed(untrusted)
        self.requests = requests
        turned_down = self.state.turned_down
        wanted = directive.baseline
        if wanted is not None and self._resting(wanted.sha256, now):
            turned_down = _newest({**turned_down, wanted.sha256: directive.number})
        self.change(
            directive=directive,
            directive_number=directive.number,
            damaged=False,
            self_isolated="" if self._takes_over(directive) else self.state.self_isolated,
            turned_down=turned_down,
        )
        return True

    def _keep_signed(self, envelope: bytes) -> None:
        with contextlib.suppress(OSError):  # `change` tells of a disk that takes nothing
            self._store.save_signed_directive(envelope)

    def _takes_over(self, directive: directives.Directive) -> bool:
        """Tell whether it ends the node's own isolation: a person has released the node, or the controller isolates it now.

        Once the controller isolates, the end of it is the controller's as well.
        """
        released = directive.release > self.state.self_isolated_under
        return released or directive.posture == "isolated"

    def _resting(self, sha256: str, now: float) -> bool:
        """Tell whether this baseline was taken back so short a time ago that it is not to be tried again yet."""
        at, times = self.state.reverted.get(sha256, (0.0, 0))
        return times > 0 and abs(now - at) < min(MAX_RETRY_S, RETRY_S * 2.0 ** (times - 1))

    def _same_again(self, untrusted: bytes, key: bytes, now: float) -> directives.Directive | None:
        """Open the directive as if its number were new: the very one in force, said twice, is no offence."""
        number = self.state.directive_number - 1
        try:
            return open_directive(untrusted, key, node=self._config.node, now=now, highest_number=number)
        except Rejected:
            return None


def _held(ref: BaselineRef | None, baseline: Baseline) -> Held:
    """Parse every section; a baseline without a firewall section has the empty one: default deny."""
    sections = parse_sections(baseline)
    if "firewall" not in sections:
        sections = {"firewall": parse_sections(lockdown())["firewall"], **sections}
    # The text and its raw tables have done their work; of a big baseline they are several megabytes.
    head_only = msgspec.structs.replace(baseline, sections={}, text="")
    return Held(ref=ref, baseline=head_only, sections=sections)


def _file(ref: BaselineRef) -> str:
    return f"{ref.name}/{ref.version}.toml"


def _newest(turned_down: dict[str, int]) -> dict[str, int]:
    return dict(sorted(turned_down.items(), key=lambda item: item[1])[-MAX_TURNED_DOWN:])

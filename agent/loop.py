"""The reconcile loop: the one thread that owns the machine. Level-triggered: wakes carry no data.

Kernel events, timers and directives only say "look again"; every pass compares the whole of what is wanted with
the whole of what is there. The firewall goes first in every pass and is looked at again between other
sections when it was woken meanwhile, so a slow probe never delays it by more than its own slice.

Refuses: to decide (agent.plan does), to open a connection (agent.uplink does). Any exception but those that
the parts document ends the process; the rules stay in the kernel and systemd starts it again.
Relies on: `call` for everything that other threads want of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from agent import permits, plan, responses
from agent.clock import boottime
from agent.config import AgentConfig
from agent.earlyfile import EarlyFile
from agent.exhibits import Exhibits
from agent.firewall.events import Culprit
from agent.frugal import Thrift
from agent.hands import Hands, OwnHands
from agent.hold import Held, Hold
from agent.host import Host
from agent.machine import Machine
from agent.netfilter import Netfilter
from agent.probes import ControllerEndpoint, Surroundings
from agent.responses import Told
from agent.silence import Silence
from agent.spool import Spool
from agent.store import Store
from agent.tpm import Tpm
from agent.wakes import Wakes
from contract import directive as directives
from contract.directive import WantedBaseline
from contract.errors import Rejected
from contract.messages import Event
from contract.trusted import TrustedBaseline

T = TypeVar("T")

TICK_S = 1.0
RESTING_TICK_S = 5.0
"""While the controller answers and nothing is pending, nothing but passes and orders is waited for, and orders wake."""


class Loop:
    """Make it, `start` it, `call` into it. Methods that end in "(worker)" run on its thread only."""

    def __init__(
        self,
        config: AgentConfig,
        store: Store,
        spool: Spool,
        host: Host,
        netfilter: Netfilter,
        *,
        tpm: Tpm | None,
        hands: Hands | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = boottime,
    ) -> None:
        self._config = config
        self.spool = spool
        self.host = host
        self._netfilter = netfilter
        netfilter.on_wake = lambda: self.wake("firewall")
        self._now = now
        self._monotonic = monotonic
        self._wakes = Wakes()
        self.wake = self._wakes.wake
        """Any thread: look again at one section, or at all."""
        self._thread = threading.Thread(target=self._run, name="machine", daemon=True)
        self._started = threading.Event()
        self.beat = monotonic()
        """When the loop last came round; the watchdog looks at it."""
        self.failure: BaseException | None = None
        self.on_report: Callable[[], object] = lambda: None
        self.on_posture: Callable[[], object] = lambda: None
        self.on_fetch: Callable[[WantedBaseline, int], None] = lambda wanted, highest: None
        self.on_redial: Callable[[], None] = lambda: None
        self.on_failure: Callable[[], object] = lambda: None

        self.hold = Hold(config, store, self.tell, now=now())
        around = Surroundings(
            host=host,
            netfilter=netfilter,
            tpm=tpm,
            controller=self._endpoints(),
            remembered=self.hold.remembered,
            event_log=config.tpm.event_log,
            ima_log=config.tpm.ima_log,
        )
        own = OwnHands(host, Exhibits(config.state / "exhibits"))
        self.machine = Machine(around, netfilter, hands or own, monotonic)
        host.let_in, host.wake = self._let_in, self.wake
        self._in_firewall = self._interruptible = False
        self.stance = plan.Stance("normal", (), "")
        parts = (store, spool), (host, netfilter)
        self._early = EarlyFile(config, self.tell)
        self.permits = permits.Permits(self.hold, *parts, self.tell, boottime_s=monotonic())
        self._requests: list[directives.Response] = []
        self._silence = Silence(self.hold, monotonic_s=monotonic(), interval_s=config.interval_s)
        self._in_contact = False
        self._fresh = True
        self._session = 0
        self._fetching: str | None = None
        self._next_full, self._memory = 0.0, Thrift()

    # ---- any thread

    def start(self) -> None:
        """Put the rules in force, then keep them; returns when they are in force."""
        self._thread.start()
        self._started.wait()
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """End the thread. The rules stay in the kernel: stopping never opens anything."""
        self._wakes.stop()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self.host.close()

    def firewall_changed(self, culprit: Culprit | None) -> None:
        """Somebody else committed to nftables."""
        self._netfilter.note(culprit)
        self.wake("firewall")

    def call(self, job: Callable[[], T]) -> Future[T]:
        """Run `job` on the worker thread."""
        return self._wakes.call(job)

    # ---- what the uplink asks for (worker)

    def tell(self, told: Told) -> Event:
        """Put one event into the spool; from warning on, report soon. (worker)"""
        (event,) = self._tell_all([told])
        return event

    def _tell_all(self, told: list[Told]) -> list[Event]:
        if any(each.severity != "info" for each in told):
            self.on_report()
        return self.spool.append(told, self._now()) if told else []

    def take_directive(self, untrusted: bytes, key: bytes) -> None:
        """Verify, write down and carry out a directive. (worker)"""
        if self.hold.take_directive(untrusted, key, self._now()):
            self._silence.broken(self._monotonic())
            self._reconcile_holdings()
            self.on_report()

    def deliver(self, wanted: WantedBaseline, result: TrustedBaseline | Rejected) -> None:
        """The uplink has fetched a baseline, or it was refused. (worker)"""
        self._fetching = None
        if isinstance(result, Rejected):
            self.hold.turn_down(wanted.sha256, result)
        else:
            self._in_contact = True  # or it would not have come
            self.hold.ready = result
        self._reconcile_holdings()

    def session_opened(self) -> int:
        """A new session is up; return its number. (worker)"""
        self._session += 1
        self._in_contact = True
        return self._session

    def session_closed(self) -> None:
        """No session is up. (worker)"""
        self._in_contact = False

    def answered(self, session: int, *, named_pending: bytes | None, events_acked: int, healed: int) -> None:
        """The controller has answered a report that was sent in `session`. (worker)"""
        self.spool.ack(events_acked)
        del self.machine.healed[:healed]
        self._silence.broken(self._monotonic())
        pending = self.hold.state.pending
        if pending and session > self.hold.pending_session and named_pending == pending.ref.sha256:
            self.hold.pending_answered = True
        self._reconcile_holdings()

    def controller_resolved(self, addresses: list[str]) -> None:
        """The controller's name resolves to these. (worker)"""
        if addresses and addresses != self.hold.state.controller_addresses:
            self.hold.change(controller_addresses=addresses)
            self.machine.surround(controller=self._endpoints())
            self._look("firewall", "order")

    # ---- the thread

    def _run(self) -> None:
        try:
            self._hold_at_start()
            self._started.set()
            self._tell_all(self.machine.greet())
            while self._wakes.wait(self._tick_s()):
                self._turn()
        except BaseException as error:  # the outermost place: whatever it is, the process must end
            self.failure = error
            self._started.set()
            self.on_failure()
            raise

    def _turn(self) -> None:
        self.beat = self._monotonic()
        self._do_jobs()
        self._silence.count(self._monotonic())
        self._reconcile_holdings()
        self._early.follow(self.hold.state)
        woken = self._wakes.take_all()
        full = woken is None or self.beat >= self._next_full
        due = set(self.machine.probes) if full else self.machine.due(woken or set())
        if full:
            self._next_full = self.beat + self._config.interval_s
            self._memory.passing(self.beat)
        for name in sorted(due, key=lambda each: (each != "firewall", each)):
            if name != "firewall":
                self._firewall_if_due()
            if name in self.machine.probes:  # an order that came meanwhile may have brought another baseline
                self._interruptible = True
                self._look(name)
                self._interruptible = False
        self.spool.flush()

    def _tick_s(self) -> float:
        resting = self._in_contact and self.hold.state.pending is None
        longest = RESTING_TICK_S if resting else TICK_S
        return max(0.01, min(longest, self._next_full - self._monotonic()))

    def _do_jobs(self) -> None:
        while (job := self._wakes.job()) is not None:
            job()
            self._firewall_if_due()

    def _let_in(self) -> None:
        """Look at the firewall and carry out orders while a probe takes long: it calls this between slices."""
        if not self._wakes.any() or threading.current_thread() is not self._thread:
            return
        if self._in_firewall:
            return
        self.beat = self._monotonic()
        self._firewall_if_due()
        if self._interruptible and self.machine.observing:
            self._interruptible = False
            self._do_jobs()
            self._early.follow(self.hold.state)
            self._interruptible = True

    def _firewall_if_due(self) -> None:
        if self._wakes.take("firewall"):
            self._look("firewall")

    # ---- baseline, posture, responses

    def _hold_at_start(self) -> None:
        boot_id = self.host.boot_id()
        same_boot = boot_id == self.hold.state.boot_id and self.hold.state.pending is None
        self._adopt(self.hold.held, "routine" if same_boot else "boot")
        if self.hold.state.pending is not None:
            self.hold.pending_since = self._monotonic()
        if boot_id != self.hold.state.boot_id:
            self.hold.change(boot_id=boot_id)
        detail = {"boot": boot_id}
        self.tell(Told(kind="agent.started", severity="info", summary="rules are in force", detail=detail))
        self._reconcile_holdings()

    def _reconcile_holdings(self) -> None:
        """Directive, baseline, posture: until the plan has nothing more to say."""
        while True:
            step = self.hold.step(self._monotonic(), self.machine.not_in_force())
            if isinstance(step, plan.Apply):
                held = self.hold.begin(step, self.machine.dry_run, in_contact=self._in_contact)
                if held is None:
                    break
                self.hold.pending_session = self._session
                self._adopt(held, "adoption")
                self.hold.pending_since = self._monotonic()
                self.tell(
                    Told(
                        kind="baseline.applied",
                        severity="info",
                        summary=f"{step.wanted.name}/{step.wanted.version}.toml",
                    )
                )
                self.on_redial()
            elif isinstance(step, plan.Confirm):
                self.hold.confirm()
                self.on_report()
            elif isinstance(step, plan.Revert):
                held = self.hold.revert(step.code, step.reason, self._now())
                self._adopt(held, "adoption", reverting=True)
                self.on_redial()
            else:
                if isinstance(step, plan.Fetch) and self._fetching != step.wanted.sha256:
                    self._fetching = step.wanted.sha256
                    self.on_fetch(step.wanted, self.hold.state.highest.get(step.wanted.name, 0))
                break
        self._hold_stance(silent=True)

    def _adopt(self, held: Held, occasion: plan.Occasion, *, reverting: bool = False) -> None:
        """Make the machine look like `held`: firewall first, then undo what only the old one wanted, then the rest."""
        old = self.machine.replace_probes(held, reverting=reverting)
        self._hold_stance(silent=occasion != "routine")
        self._look("firewall", "routine" if occasion == "routine" else "order")
        for probe in old:
            self._tell_all(self.machine.undo(probe))
        for name in sorted(set(held.sections) - {"firewall"}):
            self._look(name, occasion)
        self._next_full = self._monotonic() + self._config.interval_s
        self._memory.adopted(self._monotonic())

    def _look(self, name: str, occasion: plan.Occasion = "routine") -> None:
        before = self._in_firewall
        self._in_firewall = before or name == "firewall"
        try:
            self._tell_all(self.machine.look(name, self.stance, self._now(), occasion))
        finally:
            self._in_firewall = before
        if name == "firewall" and self.machine.fought_now and not self.hold.state.self_isolated:
            reason = self.hold.count_healings(self.machine.fought_now, self._now())
            if reason:
                self.tell(Told(kind="firewall.contest", severity="critical", summary=reason))
                self._hold_stance(silent=True)

    def _hold_stance(self, *, silent: bool) -> None:
        head = self.hold.held.baseline.head
        stance = plan.stance(
            self.hold.state.directive,
            [wanted for _, _, wanted in self.hold.requests],
            offline_s=self._silence.seconds,
            isolate_after_s=head.offline.isolate_after_s,
            damaged=self.hold.state.damaged,
            self_isolated=self.hold.state.self_isolated,
        )
        if stance.by_silence:
            self.hold.isolate_itself(stance.reason)
        stance, grants = self.permits.over(stance, self._now(), self._monotonic())
        before, self.stance = self.stance, stance
        fresh, self._fresh = self._fresh, False
        granted = grants != self.machine.around.grants
        changed = (stance.posture, stance.fenced) != (before.posture, before.fenced) or granted
        if changed:
            self.machine.surround(posture=stance.posture, fenced=stance.fenced, grants=grants)
        isolating = stance.posture == "isolated" and (fresh or before.posture != "isolated")
        if isolating or stance.posture != before.posture:
            self.on_posture()
        self._carry_out(isolating=isolating)
        if changed:
            self._look("firewall", "order" if silent else "routine")
        if granted:
            self.wake()
        if (on_trial := self.hold.state.pending is not None) != self.machine.around.on_trial:
            self.machine.surround(on_trial=on_trial)
            self.wake("agent")
        if stance.posture != before.posture and not fresh:
            self.tell(
                Told(
                    kind="posture.changed",
                    severity="critical" if stance.posture == "isolated" else "warning",
                    summary=f"{before.posture} -> {stance.posture}: {stance.reason or 'by directive'}",
                    detail={"from": before.posture, "to": stance.posture, "reason": stance.reason},
                )
            )

    def _carry_out(self, *, isolating: bool) -> None:
        """Do the quick part of each new request; undo those that are gone."""
        known = responses.responses()
        wanted = permits.standing(self.hold.requests, self.stance)
        new = [request for request in wanted if request not in self._requests]
        if isolating and "isolate" in known and not any(each.name == "isolate" for each in new):
            new.insert(0, directives.Response(name="isolate", reason=self.stance.reason))
        self._requests = wanted
        names = set(self.hold.state.responses)
        standing = {each.name for each in wanted} | (
            {"isolate"} if self.stance.posture == "isolated" else set()
        )
        for request in new:
            try:
                told = known[request.name].apply(self.machine.around, request)
            except OSError as error:
                told = [Told(kind=f"{request.name}.failed", severity="critical", summary=str(error))]
            self._tell_all(told)
        for name in sorted(names - standing):
            if name in known:
                self._tell_all(known[name].undo(self.machine.around))
        after = sorted((names | {each.name for each in new}) & standing)
        if after != self.hold.state.responses:
            self.hold.change(responses=after)

    def _endpoints(self) -> tuple[ControllerEndpoint, ...]:
        where = self._config.controller
        addresses = where.literal_addresses() or self.hold.state.controller_addresses
        return tuple(ControllerEndpoint(address, where.port) for address in addresses)

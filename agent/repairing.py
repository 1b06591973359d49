"""`ringfence-agent repair`: carries out what the agent has found wrong and may not mend itself, then ends.

The agent talks to the network for months, so its unit has few powers. Here are the others, in a process that systemd starts for the
first order (ringfence-repair.socket) and that ends when none has come for a while. An order says which section of which signed
baseline, and which keys (`agent.beside`); this side reads that baseline from the agent's folder and verifies it down to the root that
the node trusted when it was enrolled, kept here where the agent cannot write. Grants are held against the directive as the controller
has signed it. So the word of an agent that is not itself any more moves the machine towards a signed baseline, or back to what was
there before, and nowhere else.

Refuses: baselines that do not verify, sections that only observe, callers that are neither root nor the agent's user. It opens no
connection. Relies on: the probes, which look again before they change anything; systemd for the socket and the sandbox.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import msgspec

from agent import grants
from agent.beside import SILENT_S, Done, Order
from agent.config import DEFAULT_PATH, AgentConfig, load_config
from agent.exhibits import Exhibits
from agent.exits import EXIT_REFUSED, outermost
from agent.firewall.section import Section as FirewallSection
from agent.frames import receive, send
from agent.hands import OwnHands
from agent.host import host_of
from agent.probes import Probe, SectionBase, Surroundings, mode_of, parse_sections
from agent.probes import sections as known_sections
from agent.probes.access import Section as AccessSection
from agent.remembered import Remembered
from agent.store import Damaged, Repairs, Store
from contract.baseline import Head
from contract.directive import Directive
from contract.envelope import signed_directive
from contract.errors import Rejected
from contract.messages import BaselineRef, Drift

log = logging.getLogger("ringfence")

FOLDER: Final = Path("/var/lib/ringfence-repair")
IDLE_S: Final = 20.0
_LOOKED_S: Final = 2.0
_GIVEN_UP_S: Final = SILENT_S + 30.0
"""Who gave up while this process was starting asks again after `SILENT_S`, and would find another one starting."""
_READ_S: Final = 10.0
_PASSED_DESCRIPTOR: Final = 3
"""sd_listen_fds(3)."""
_MAX_PROBES: Final = 64
_SECRET: Final = frozenset({"tcp_fastopen_key", "stable_secret"})
"""Settings that are keys: what the network sees is derived from them."""
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))
_CURE: Final = (
    "this unit trusts the root of the node's first enrolment: where the node was enrolled with another controller"
    " since, and that was meant, remove /var/lib/ringfence-repair"
)
_USAGE: Final = (
    "usage: ringfence-agent repair [--config FILE] [--state FOLDER] [--listen SOCKET] [--idle SECONDS]"
)


class _Signed(NamedTuple):
    """A baseline that was verified."""

    head: Head
    sections: dict[str, SectionBase]


class Repairer:
    """Carries out orders for one node. `folder` is its own, which the agent cannot write."""

    def __init__(self, config: AgentConfig, folder: Path) -> None:
        self._config = config
        self._agents = Store(config.state, config.node)
        self._own = Store(folder, config.node)
        self._host = host_of(config)
        self._hands = OwnHands(self._host, Exhibits(folder / "exhibits"))
        self._lost = False
        self._known = self._first()
        self._remembered = Remembered(
            lambda: self._trusting().remembered, lambda now: self._change(remembered=now)
        )
        self._signed: dict[str, _Signed] = {}
        self._probes: dict[tuple[str, str], Probe[SectionBase]] = {}

    def answer(self, order: Order) -> Done:
        """Carry out an order; what stands against it is in the answer."""
        try:
            if order.verb == "look":
                return self._look(order.keys)
            if order.verb == "greet" and self._agents.enrolled() is None:
                return Done()  # nobody is trusted yet, and nothing is signed
            if self._known is None:
                self._known = self._begun()
            if order.verb == "greet":
                return Done()
            probe = self._probe(order.ref, order)
            if order.verb == "undo":
                return self._undo(probe, order)
            if mode_of(probe.section, self._baseline(order.ref).head) != "enforce":
                raise Rejected("repair.observes", f"the signed baseline only observes {order.section}")
            return self._act(probe, order)
        except (Rejected, OSError, Damaged) as error:
            log.warning("%s %s: %s", order.verb, order.section, error)
            return Done(error=str(error))

    def _look(self, settings: Sequence[str]) -> Done:
        """Return what only root may read: settings of the kernel, but for its secrets, and its word on the clock."""
        found = {}
        for path in settings:
            with suppress(OSError, ValueError):  # left out: the agent tells that it could not look
                if path.rpartition("/")[2] not in _SECRET:
                    found[path] = self._host.sysctl(path)
        clock = None
        with suppress(OSError):
            clock = self._host.clock.kernel()
        return Done(settings=found, clock=clock)

    def _act(self, probe: Probe[SectionBase], order: Order) -> Done:
        now = time.time()
        probe.marks = {}
        if order.verb == "settle":
            self._hands.settle(probe, now)
            return Done(notices=tuple(probe.take_acted()), marks=probe.marks)
        probe.recall(now)
        acted = self._hands.repair(probe, [_found(order.section, key, now) for key in order.keys], now)
        return Done(
            error=acted.error,
            exhibits=tuple(acted.exhibits),
            notices=tuple(probe.take_acted()),
            marks=probe.marks,
            processor_s=acted.cost.processor_s,
            written_bytes=acted.cost.written_bytes,
        )

    def _undo(self, probe: Probe[SectionBase], order: Order) -> Done:
        probe.recall(time.time())
        probe.successor = self._probe(order.successor, order) if order.successor is not None else None
        self._hands.undo(probe)
        self._probes.clear()  # one that was undone has done with it
        return Done()

    # ---- what is believed

    def _first(self) -> Repairs | None:
        try:
            return self._own.repairs()
        except Damaged as damage:
            log.error("%s; what was there before the first repairs is not known any more", damage)
            self._own.set_aside_repairs()
            self._lost = True
            return None

    def _begun(self) -> Repairs:
        """Take note of whom the node trusts. What an agent of before this unit remembers is taken over. Raises Rejected, Damaged."""
        enrolled, state = self._agents.enrolled(), self._agents.load_state()
        if enrolled is None:
            raise Rejected("repair.not-enrolled", "this node is not enrolled: no baseline is signed for it")
        before = state.remembered if state is not None and not self._lost else {}
        begun = Repairs(
            root_metadata=enrolled.root_metadata,
            directive_key=enrolled.directive_key,
            remembered={key: value for key, value in before.items() if _is_ours(key)},
        )
        self._own.save_repairs(begun)
        return begun

    def _trusting(self) -> Repairs:
        assert self._known is not None  # noqa: S101  (`answer` sees to it)
        return self._known

    def _change(self, **fields: object) -> None:
        """Change what is known; on disk when this returns. Raises OSError: nothing is changed that cannot be put back."""
        changed = msgspec.structs.replace(self._trusting(), **fields)
        self._own.save_repairs(changed)
        self._known = changed

    def _anchor(self) -> bytes:
        """Return the root that is trusted: the one that the machine's owner has pinned, or that of the enrolment."""
        pinned = self._config.root_metadata
        return Path(pinned).read_bytes() if pinned else self._trusting().root_metadata

    def _baseline(self, ref: BaselineRef | None) -> _Signed:
        from agent.updates import kept_baseline  # with the library for it, which `greet` does not need

        if ref is None:
            raise Rejected("repair.unsigned", "no signed baseline is named")
        name = ref.sha256.hex()
        if name not in self._signed:
            try:
                trusted = kept_baseline(self._config.state / "tuf", self._anchor(), ref)
            except Rejected as error:
                if not error.code.startswith("metadata."):
                    raise
                raise Rejected(error.code, f"{error.detail}; {_CURE}") from None
            self._signed = {
                name: _Signed(trusted.baseline.head, parse_sections(trusted.baseline)),
                **self._signed,
            }
            self._signed = dict(list(self._signed.items())[:2])  # the one in force and the one before
        return self._signed[name]

    def _probe(self, ref: BaselineRef | None, order: Order) -> Probe[SectionBase]:
        """Return the probe of the order's section as a baseline has it, with what is around it now."""
        signed = self._baseline(ref)
        section = signed.sections.get(order.section)
        kind = known_sections()[order.section].Probe if section is not None else None
        if section is None or kind is None or not kind.by_hands:
            raise Rejected(
                "repair.section", f"the signed baseline has no section {order.section!r} to repair here"
            )
        around = Surroundings(
            host=self._host,
            controller=order.controller,
            posture=order.posture,
            grants=self._grants(signed, order),
            remembered=self._remembered,
        )
        assert ref is not None  # noqa: S101  (`_baseline` has seen to it)
        key = ref.sha256.hex(), order.section
        if key not in self._probes:
            if len(self._probes) >= _MAX_PROBES:
                self._probes.clear()
            self._probes[key] = kind(section, around)
        self._probes[key].around = around
        return self._probes[key]

    def _grants(self, signed: _Signed, order: Order) -> tuple[grants.OpenGrant, ...]:
        """Return what is open: of the grants that the agent holds open, those that the controller has signed and that are not over."""
        if not order.grants:
            return ()
        directive = self._directive()
        access, firewall = signed.sections.get("access"), signed.sections.get("firewall", FirewallSection())
        if directive is None or not isinstance(firewall, FirewallSection):
            return ()
        at = grants.clock(time.time(), directive.issued, self._host.uptime_s(), self._host.boot_id())
        bounds = grants.Bounds(access if isinstance(access, AccessSection) else None, firewall.zones)
        due = grants.due(directive.grants, self._trusting().grants, bounds, order.posture, at)
        kept = {each.grant.id: grants.running(each.kept, at.boottime_s) for each in due}
        if kept != self._trusting().grants:
            self._change(grants=kept)
        opened = (each.opened for each in due if each.opened is not None)
        return tuple(each for each in opened if each.id in order.grants)

    def _directive(self) -> Directive | None:
        """Return the directive as the controller has signed it; None for one that is older than what was seen before."""
        known = self._trusting()
        envelope = self._agents.signed_directive()
        if not envelope:
            return None
        directive = signed_directive(envelope, known.directive_key, node=self._config.node)
        if directive.number < known.directive_number:
            return None
        if directive.number > known.directive_number:
            self._change(directive_number=directive.number)
        return directive


def serve(repairer: Repairer, listener: socket.socket, *, agent_uid: int, idle_s: float | None) -> None:
    """Answer one caller after the other, until none has come for `idle_s`; sooner where all that was wanted was a look,
    later where the last one had given up."""
    changing = given_up = False
    while True:
        if idle_s is not None:
            most_s = idle_s if changing else min(idle_s, _LOOKED_S)
            listener.settimeout(_GIVEN_UP_S if given_up else most_s)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return
        with connection:
            connection.settimeout(_READ_S)
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if int(_CREDENTIALS.unpack(raw)[1]) not in (0, agent_uid):
                continue
            try:
                with connection.makefile("rb") as into, connection.makefile("wb") as out:
                    order = receive(into, Order)
                    changing |= order.verb in ("settle", "repair", "undo")
                    send(out, repairer.answer(order))
                given_up = False
            except OSError as error:
                given_up = True
                log.warning("a caller went away, or said something else: %s", error)


def main(argv: Sequence[str]) -> NoReturn:
    """Run the command."""
    options = {"--config": str(DEFAULT_PATH), "--state": str(FOLDER), "--listen": "", "--idle": str(IDLE_S)}
    rest = list(argv)
    while len(rest) >= 2 and rest[0] in options:
        options[rest[0]] = rest[1]
        rest = rest[2:]
    if rest:
        print(_USAGE, file=sys.stderr)
        sys.exit(0 if rest in (["-h"], ["--help"]) else EXIT_REFUSED)
    with outermost():
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s"
        )
        config = load_config(Path(options["--config"]))
        repairer = Repairer(config, Path(options["--state"]))
        with _listener(options["--listen"]) as listener:
            idle_s = None if options["--listen"] else float(options["--idle"])
            serve(repairer, listener, agent_uid=config.state.stat().st_uid, idle_s=idle_s)
        sys.exit(0)


def _listener(path: str) -> socket.socket:
    """Return the socket that systemd passes, or one at `path`, for root and the agent's user. Raises Rejected."""
    if not path:
        if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
            raise Rejected(
                "repair.socket", "no socket was passed (ringfence-repair.socket), and --listen names none"
            )
        return socket.socket(fileno=_PASSED_DESCRIPTOR)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    Path(path).unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen()
    return listener


def _found(section: str, key: str, now: float) -> Drift:
    return Drift(section=section, key=key, wanted="", found="", since=now)


def _is_ours(remembered: str) -> bool:
    """Tell whether a remembered value is of a section whose repairs happen here."""
    module = known_sections().get(remembered.partition(":")[0])
    return module is not None and module.Probe.by_hands

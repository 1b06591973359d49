"""A node with the real firewall in a real network namespace, and a hand to pull at it from outside."""

from __future__ import annotations

import ctypes
import queue
import socket
import subprocess
import threading
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.firewall.section import Section
from agent.host import Host as Machine
from agent.netfilter import Culprit, Events, Netfilter
from agent.probes import ControllerEndpoint, Notice, Surroundings
from agent.probes.firewall import Probe
from contract.messages import Drift, Posture
from tests.parts.namespace import Namespace
from tests.parts.topology import Host, Topology

T = TypeVar("T")
CONTROLLER_PORT = 8443
_CLONE_NEWNET = 0x40000000

BASELINE = """
[controller]
interface = "uplink0"

[zones.enclave]
interfaces = ["enclave0"]
addresses = ["10.10.1.0/24", "fd10:1::/64"]

[zones.uplink]
interfaces = ["uplink0"]
addresses = ["0.0.0.0/0", "::/0"]

[[inbound]]
zone = "enclave"
protocol = "tcp"
ports = [8080]
reason = "inference API"

[[inbound]]
zone = "enclave"
protocol = "udp"
ports = [5353, "6000-6010"]
reason = "camera streams"

[[inbound]]
zone = "enclave"
protocol = "icmp"
reason = "the site's own monitoring"

[[outbound]]
zone = "uplink"
protocol = "udp"
ports = [53, 123]
reason = "names and time"
"""


def section(text: str = BASELINE) -> Section:
    """Return the parsed `[firewall]` section."""
    return msgspec.convert(tomllib.loads(text), Section, strict=True)


class FencedNode:
    """The agent's firewall on a node of the topology, on one thread of its own inside the namespace."""

    def __init__(self, host: Host, topology: Topology, text: str = BASELINE) -> None:
        self.host = host
        self.namespace: Namespace = host.namespace
        self._worker = ThreadPoolExecutor(max_workers=1, initializer=self._enter)
        self.netfilter = self.do(Netfilter)
        controller = tuple(
            ControllerEndpoint(address, CONTROLLER_PORT) for address in topology.controller.uplink
        )
        self._around = Surroundings(host=Machine(), netfilter=self.netfilter, controller=controller)
        self.probe = Probe(section(text), self._around)
        self.healing: Healing | None = None

    def _enter(self) -> None:
        with Path("/run/netns", self.namespace.name).open() as handle:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(handle.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def do(self, work: Callable[[], T]) -> T:
        """Run on the thread that owns the machine."""
        return self._worker.submit(work).result(timeout=30)

    def settle(
        self, posture: Posture = "normal", fenced: tuple[str, ...] = (), text: str | None = None
    ) -> None:
        """Bring section, posture and fences into force, and see that nothing differs after it."""
        if text is not None:
            self.probe = Probe(section(text), self._around)
        self.probe.around = Surroundings(
            host=self._around.host,
            netfilter=self.netfilter,
            controller=self._around.controller,
            posture=posture,
            fenced=fenced,
        )
        self.repair(self.observe())
        left = [(d.key, d.found) for d in self.ours()]
        assert left == [], left
        self.notices()

    def settle_text(self, text: str) -> None:
        """Bring a section into force that leaves a drift which nobody can mend."""
        around = self.probe.around
        self.probe = Probe(section(text), around)
        self.repair(self.observe())

    def observe(self) -> list[Drift]:
        """Look once."""
        return self.do(lambda: self.probe.observe(time.time()))

    def ours(self) -> list[Drift]:
        """Look once; foreign tables and namespaces left out, which are told and not mended."""
        return [drift for drift in self.observe() if not drift.key.startswith(("foreign:", "netns:"))]

    def repair(self, drifts: list[Drift]) -> None:
        """Repair once."""
        self.do(lambda: self.probe.repair(drifts, time.time()))

    def notices(self) -> list[Notice]:
        """Return what is to be recorded."""
        return self.do(lambda: self.probe.notices(time.time()))

    def clear(self) -> None:
        """Take all rules away, also foreign ones."""
        self.namespace.run("nft", "flush", "ruleset")
        self.namespace.run("conntrack", "-F", check=False)

    def close(self) -> None:
        """End the thread."""
        if self.healing is not None:
            self.healing.close()
        self.do(self.netfilter.close)
        self._worker.shutdown()


class Healing:
    """The smallest loop there is: an event wakes it, it looks, it repairs, it writes down when."""

    def __init__(self, node: FencedNode) -> None:
        self.node = node
        self.drifts: list[Drift] = []
        self.healed_at: list[float] = []
        self.notices: list[Notice] = []
        self.passes = 0
        self._wakes: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.events = node.namespace.inside(lambda: Events(self._woken))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        node.healing = self

    def _woken(self, culprit: Culprit | None) -> None:
        if culprit is not None:
            self.node.netfilter.note(culprit)
        self._wakes.put(True)

    def _run(self) -> None:
        while self._wakes.get():
            while not self._wakes.empty():
                if not self._wakes.get():
                    return
            self.passes += 1
            self.node.do(lambda: self.node.probe.settle(time.time()))
            drifts = self.node.observe()
            self.notices += self.node.notices()
            if drifts:
                try:
                    self.node.repair(drifts)
                except OSError:  # as the loop does: the next look sees what is left
                    self._wakes.put(True)
                    continue
                self.healed_at.append(time.monotonic())
                self.drifts += drifts
            if self.node.netfilter.outrunning.on:  # as the loop does: until it has seen what is there
                time.sleep(0.05)
                self._wakes.put(True)

    def wait_healed(self, count: int, within_s: float = 5.0) -> None:
        """Wait until so many repairs were made."""
        until(lambda: len(self.healed_at) >= count, within_s)

    def close(self) -> None:
        """End it."""
        self.events.close()
        self._wakes.put(False)
        self._thread.join()
        self.node.healing = None


def until(true: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait for something to become true; fails the test when it does not. A busy machine gets six times as long."""
    deadline = time.monotonic() + 6 * within_s
    while not true():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.005)


class Listener:
    """A UDP or TCP socket inside a namespace that counts what arrives."""

    def __init__(
        self, namespace: Namespace, port: int, kind: int = socket.SOCK_DGRAM, family: int = socket.AF_INET6
    ) -> None:
        self.socket = namespace.socket(family, kind)
        if family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("", port))
        if kind == socket.SOCK_STREAM:
            self.socket.listen()
        self.socket.settimeout(0.3)

    def received(self, within_s: float = 0.3) -> bytes | None:
        """Return the next datagram, or None."""
        self.socket.settimeout(within_s)
        try:
            return self.socket.recv(2048)
        except TimeoutError:
            return None

    def drain(self) -> int:
        """Return how many datagrams wait."""
        self.socket.setblocking(False)
        count = 0
        try:
            while True:
                self.socket.recv(2048)
                count += 1
        except BlockingIOError:
            return count

    def close(self) -> None:
        """Close it."""
        self.socket.close()


def send_udp(namespace: Namespace, address: str, port: int, data: bytes = b"x", source_port: int = 0) -> None:
    """Send one datagram from inside; that a local rule refuses it is no error."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.socket(family, socket.SOCK_DGRAM) as sending:
        if source_port:
            sending.bind(("", source_port))
        try:
            sending.sendto(data, (address, port))
        except PermissionError:
            return


def opens(namespace: Namespace, address: str, port: int, timeout_s: float = 0.4) -> bool:
    """Tell whether a TCP connection comes about."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.socket(family) as made:
        made.settimeout(timeout_s)
        try:
            made.connect((address, port))
        except OSError:
            return False
        return True


class Holder:
    """Root with one `nft -i` kept open: tables that it makes with the flag `owner` are its own until it ends."""

    def __init__(self, namespace: Namespace | None = None) -> None:
        enter = [] if namespace is None else ["nsenter", f"--net=/run/netns/{namespace.name}"]
        self._enter = enter
        self.process = subprocess.Popen(
            [*enter, "nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def type(self, *lines: str) -> None:
        """Give it commands; returns when the last of them is done."""
        assert self.process.stdin is not None
        marker = f"typed{time.monotonic_ns()}"
        text = "\n".join([*lines, f"add table ip {marker}", ""])
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()
        until(lambda: f"table ip {marker}" in self.tables(), 20)
        subprocess.run([*self._enter, "nft", "delete", "table", "ip", marker], check=True)

    def own(self, *tables: str, flush: bool = True) -> None:
        """Take these tables in one commit for each; everything else is flushed first, where it can be."""
        lines = ["flush ruleset"] if flush else []
        for table in tables:
            lines.append(f"add table {table}; delete table {table}; add table {table} {{ flags owner; }}")
        self.type(*lines)

    def tables(self) -> list[str]:
        """Return what `nft` lists, one "table FAMILY NAME" each."""
        listed = subprocess.run([*self._enter, "nft", "list", "tables"], capture_output=True, text=True)
        return listed.stdout.splitlines()

    def close(self) -> None:
        """Let go of everything."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

"""Open sockets: real ones, of processes in a network namespace of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host, Listener
from agent.probes import Surroundings
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of
from tests.parts.namespace import Namespace

NOW = 1_700_000_000.0
TOML = f"""\
[listeners]
kill = true
[[listeners.allow]]
protocol = "tcp"
port = 8080
program = "{os.path.realpath(sys.executable)}"
reason = "inference API"
"""
_PROGRAM = """
import socket, sys, time
kind, address, port = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
sock.bind((address, int(port)))
if kind == "tcp":
    sock.listen()
time.sleep(600)
"""


class Machine:
    """A namespace, and a procfs that shows it and the processes in it: links into the real one."""

    def __init__(self, folder: Path, label: str) -> None:
        self.namespace = Namespace(label)
        self.proc = folder / "proc"
        self.proc.mkdir()
        (self.proc / "sys").symlink_to("/proc/sys")
        self._started: list[subprocess.Popen[bytes]] = []
        holder = self._start("sleep", "600")
        (self.proc / "net").symlink_to(f"/proc/{holder.pid}/net")
        self.around = Surroundings(host=Host(proc_root=self.proc))

    def _start(self, *argv: str) -> subprocess.Popen[bytes]:
        process = self.namespace.start(*argv)
        self._started.append(process)
        (self.proc / str(process.pid)).symlink_to(f"/proc/{process.pid}")
        # nsenter becomes the program in the same process: wait for the namespace, then the program.
        deadline = time.monotonic() + 10
        wanted = os.stat(f"/run/netns/{self.namespace.name}").st_ino  # noqa: PTH116
        while os.stat(f"/proc/{process.pid}/ns/net").st_ino != wanted:  # noqa: PTH116
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    def listen(self, kind: str, address: str, port: int) -> subprocess.Popen[bytes]:
        before = self.sockets()
        process = self._start(sys.executable, "-c", _PROGRAM, kind, address, str(port))
        deadline = time.monotonic() + 10
        while self.sockets() == before:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        return process

    def sockets(self) -> list[str]:
        """Return the open sockets as `ss`, an independent witness, shows them."""
        lines = self.namespace.run("ss", "-Htuln").stdout.splitlines()
        return sorted(" ".join((line.split()[0], line.split()[4])) for line in lines)

    def settle(self) -> None:
        """Reap what was killed."""
        for process in self._started:
            process.poll()

    def close(self) -> None:
        self.namespace.remove()
        for process in self._started:
            process.kill()
            process.wait()


@contextmanager
def machine(folder: Path, label: str) -> Iterator[Machine]:
    made = Machine(folder, label)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    with machine(folder, "listeners") as made:
        made.listen("tcp", "::", 8080)

        def spoil() -> None:
            made.listen("tcp", "0.0.0.0", 4444)

        def blind() -> None:
            (made.proc / "net").unlink()
            (made.proc / "net").mkdir()

        def state() -> object:

            made.settle()
            return made.sockets()

        yield Case(
            toml=TOML, around=made.around, spoil=spoil, blind=blind, state=state, trace=state, undoes=False
        )


def test_the_process_behind_an_unknown_socket_is_named(tmp_path: Path) -> None:
    with machine(tmp_path, "who") as made:
        intruder = made.listen("tcp", "::", 4444)
        (drift,) = probe_of("listeners", TOML, made.around).observe(NOW)
        assert (drift.key, drift.wanted) == ("tcp [::]:4444", "no such socket")
        assert drift.found == f"open, by {os.path.realpath(sys.executable)}"
        assert f"(pid {intruder.pid}, uid 0" in drift.culprit


def test_without_kill_nothing_is_ended(tmp_path: Path) -> None:
    with machine(tmp_path, "alive") as made:
        intruder = made.listen("tcp", "0.0.0.0", 4444)
        probe = probe_of("listeners", TOML.replace("kill = true", "kill = false"), made.around)
        drifts = probe.observe(NOW)
        probe.repair(drifts, NOW)
        assert intruder.poll() is None
        assert [each.key for each in probe.observe(NOW)] == ["tcp 0.0.0.0:4444"]


def test_only_the_process_of_the_unknown_socket_is_killed(tmp_path: Path) -> None:
    with machine(tmp_path, "kill") as made:
        service, intruder = made.listen("tcp", "0.0.0.0", 8080), made.listen("udp", "0.0.0.0", 5353)
        probe = probe_of("listeners", TOML, made.around)
        probe.repair(probe.observe(NOW), NOW)
        assert intruder.wait(5) == -9
        assert service.poll() is None
        assert probe.observe(NOW) == []


@pytest.mark.parametrize(
    ("allowed", "kind", "address", "found"),
    [
        ('address = "loopback"', "tcp", "127.0.0.1", []),
        ('address = "loopback"', "tcp", "::1", []),
        ('address = "loopback"', "tcp", "0.0.0.0", ["tcp 0.0.0.0:8080"]),
        ('address = "127.0.0.1"', "tcp", "127.0.0.1", []),
        ('address = "127.0.0.1"', "tcp", "::1", ["tcp [::1]:8080"]),
        ('program = "/usr/sbin/sshd"', "tcp", "0.0.0.0", ["tcp 0.0.0.0:8080"]),
        ("", "udp", "0.0.0.0", ["udp 0.0.0.0:8080"]),
    ],
)
def test_a_rule_covers_what_it_names(
    allowed: str, kind: str, address: str, found: list[str], tmp_path: Path
) -> None:
    toml = f'[listeners]\n[[listeners.allow]]\nprotocol = "tcp"\nport = 8080\n{allowed}\nreason = "why"\n'
    with machine(tmp_path, "rule") as made:
        made.listen(kind, address, 8080)
        assert [drift.key for drift in probe_of("listeners", toml, made.around).observe(NOW)] == found


def test_udp_on_a_port_of_the_kernels_choice_is_given_time(tmp_path: Path) -> None:
    with machine(tmp_path, "udp") as made:
        made.listen("udp", "0.0.0.0", 40001)
        probe = probe_of("listeners", "[listeners]\n", made.around)
        assert probe.observe(NOW) == []
        assert probe.observe(NOW + 9.9) == []
        assert [drift.key for drift in probe.observe(NOW + 10)] == ["udp 0.0.0.0:40001"]


def test_a_process_that_no_longer_holds_the_socket_is_not_killed(tmp_path: Path) -> None:
    with machine(tmp_path, "reused") as made:
        service = made.listen("tcp", "0.0.0.0", 8080)
        (seen,) = made.around.host.listeners()
        made.around.host.end_listener(seen._replace(port=4444))
        assert service.poll() is None
        made.around.host.end_listener(seen)
        assert service.wait(5) == -9


def test_the_agent_and_init_are_never_killed() -> None:
    host = Host()
    for pid in (1, os.getpid(), None):
        with pytest.raises(ProcessLookupError):
            host.end_listener(Listener("tcp", "0.0.0.0", 1, pid, ""))


@pytest.mark.parametrize(
    "line",
    ["port = 0", "port = 65536", 'port = "80"', 'port = 80\naddress = "host"', "port = 80\nprotocol = 3"],
)
def test_a_bad_rule_is_refused(line: str) -> None:
    protocol = "" if "protocol" in line else 'protocol = "tcp"\n'
    with pytest.raises(Rejected):
        section_of("listeners", f'[listeners]\n[[listeners.allow]]\n{protocol}{line}\nreason = "why"\n')


BRIEF = """\
[listeners]
[[listeners.allow]]
protocol = "tcp"
port = 8080
program = "/usr/bin/inference"
reason = "inference API"
"""


class Inside:
    """A probe on a thread inside a namespace, where its socket must be opened."""

    def __init__(self, folder: Path, label: str, toml: str = BRIEF) -> None:
        self.machine = Machine(folder, label)
        self.probe = probe_of("listeners", toml, self.machine.around)
        self.look()

    def look(self) -> list[tuple[str, str]]:
        """Return (kind, key) of what is put on record by one look."""

        def run() -> list[tuple[str, str]]:
            self.probe.observe(NOW)
            return [(each.kind, each.detail.get("key", "")) for each in self.probe.notices(NOW)]

        return self.machine.namespace.inside(run)

    def open_and_close(self, *kinds: tuple[str, str, int]) -> None:
        """As a process of its own, faster than anybody looks."""
        script = "".join(
            f"s=socket.socket(socket.AF_INET{'6' if ':' in address else ''},"
            f"socket.SOCK_{'STREAM' if kind == 'tcp' else 'DGRAM'});s.bind(({address!r},{port}));"
            + ("s.listen();" if kind == "tcp" else "")
            + "s.close()\n"
            for kind, address, port in kinds
        )
        self.machine.namespace.run(sys.executable, "-c", f"import socket\n{script}")
        time.sleep(0.2)  # the kernel announces from a work queue, after an RCU grace period

    def close(self) -> None:
        self.machine.around.host.close()
        self.machine.close()


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    made = Inside(tmp_path, "brief")
    try:
        yield made
    finally:
        made.close()


def test_d09_a_port_that_opened_and_closed_between_two_looks_is_put_on_record(inside: Inside) -> None:
    inside.open_and_close(("tcp", "0.0.0.0", 4444), ("tcp", "::", 4445), ("udp", "127.0.0.1", 5353))
    assert sorted(inside.look()) == [
        ("listeners.brief", "tcp 0.0.0.0:4444"),
        ("listeners.brief", "tcp [::]:4445"),
        ("listeners.brief", "udp 127.0.0.1:5353"),
    ]
    assert inside.look() == []


def test_d09_allowed_ports_connections_and_lookups_are_not_put_on_record(inside: Inside) -> None:
    server = "import socket;l=socket.socket();l.bind(('127.0.0.1',8080));l.listen();"
    client = "c=socket.create_connection(('127.0.0.1',8080));a,_=l.accept();a.close();c.close();l.close();"
    lookup = "u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);u.sendto(b'?',('127.0.0.1',53));u.close()\n"
    refused = "try: socket.create_connection(('127.0.0.1',9))\nexcept OSError: pass\n"
    inside.machine.namespace.run(sys.executable, "-c", server + client + lookup + refused)
    time.sleep(0.2)
    assert inside.look() == []


def test_d09_a_port_that_was_seen_while_it_was_open_is_told_as_a_drift_only(inside: Inside) -> None:
    process = inside.machine.listen("tcp", "0.0.0.0", 4444)
    assert inside.look() == []
    process.kill()
    process.wait()
    time.sleep(0.2)
    assert inside.look() == []


def test_d09_a_flood_of_ports_is_told_within_bounds(inside: Inside) -> None:
    inside.open_and_close(*(("tcp", "127.0.0.1", 2000 + number) for number in range(60)))
    told = inside.look()
    assert len(told) == 17 and told[-1] == ("listeners.brief", "")

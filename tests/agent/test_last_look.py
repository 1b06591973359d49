"""What is kept of a process that is ended: real processes, real sockets, the folder read by hand."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import lastlook, plan
from agent.exhibits import Exhibits
from agent.hands import OwnHands
from agent.hold import Held
from agent.host import Host
from agent.machine import Machine
from agent.netfilter import Netfilter
from agent.probes import parse_sections
from contract.baseline import parse_baseline
from tests.agent.probes.case import HEAD
from tests.agent.probes.nodecase import Machine as NodeMachine
from tests.agent.probes.nodecase import holding
from tests.agent.probes.test_listeners import machine as listening_machine

SECRET = "hunter2-in-the-environment"
_PROGRAM = """
import socket, sys, time
waiting = socket.create_server(("127.0.0.1", 0))
out = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(waiting.getsockname()[1], flush=True)
time.sleep(600)
"""


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]


def _sleep(seconds: str) -> subprocess.Popen[bytes]:
    """Start a program and wait until the kernel shows its arguments: that is after it has begun."""
    process = subprocess.Popen(["sleep", seconds])
    deadline = time.monotonic() + 10
    while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"sleep\0"):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def _kill(host: Host, process: subprocess.Popen[bytes]) -> None:
    handle = os.pidfd_open(process.pid)
    host.processes.kill(process.pid, handle)
    os.close(handle)
    assert process.wait(10) == -9


@pytest.fixture
def kept(tmp_path: Path) -> Exhibits:
    return Exhibits(tmp_path / "exhibits")


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def _evil(folder: Path, server: socket.socket) -> tuple[subprocess.Popen[str], int, Path]:
    """Start a program that listens, talks to somebody, and has deleted itself; return it, its port and a copy of it."""
    copy, program = folder / "copy", folder / "evil"
    shutil.copy(os.path.realpath(sys.executable), copy)
    shutil.copy(copy, program)
    process = subprocess.Popen(
        [program, "-I", "-c", _PROGRAM, str(server.getsockname()[1])],
        stdout=subprocess.PIPE,
        text=True,
        env={"PASSWORD": SECRET, "PYTHONHOME": sys.base_prefix},
    )
    assert process.stdout is not None
    port = int(process.stdout.readline())
    program.unlink()
    return process, port, copy


def test_d09_who_listened_is_known_after_it_was_killed(
    tmp_path: Path, kept: Exhibits, server: socket.socket
) -> None:
    began = time.time()
    process, port, copy = _evil(tmp_path, server)
    host = Host()
    host.processes.on_end = kept.keep_process
    (listener,) = [each for each in host.listeners() if (each.pid, each.port) == (process.pid, port)]
    host.end_listener(listener)
    assert process.wait(10) == -9
    (record,) = _records(tmp_path / "exhibits")
    assert record["program"] == f"{tmp_path}/evil (deleted)" and record["pid"] == process.pid
    assert record["sha256"] == hashlib.sha256(copy.read_bytes()).hexdigest() and record["whole"]
    # It has no name any more, so its first bytes are kept too.
    assert base64.b64decode(record["content"]) == copy.read_bytes()[: lastlook.HEAD_BYTES]
    assert record["command"][:3] == [str(tmp_path / "evil"), "-I", "-c"]
    assert record["uid"] == os.getuid() and record["parents"][0].endswith(f"(pid {os.getpid()})")
    assert began - 5 < record["started_at"] < time.time() + 5
    there = server.getsockname()[1]
    assert f"tcp 127.0.0.1:{port}" in record["sockets"]
    assert any(each.endswith(f" to 127.0.0.1:{there}") for each in record["sockets"])
    for path in (tmp_path / "exhibits").iterdir():
        assert SECRET not in path.read_text()
    (exhibit,) = kept.take()
    assert str(there) in exhibit.said["sockets"]


def test_a_program_that_has_a_name_is_kept_by_its_digest_alone(tmp_path: Path, kept: Exhibits) -> None:
    host = Host()
    host.processes.on_end = kept.keep_process
    _kill(host, _sleep("600"))
    (record,) = _records(tmp_path / "exhibits")
    assert record["content"] == ""
    assert record["sha256"] == hashlib.sha256(Path(shutil.which("sleep") or "").read_bytes()).hexdigest()


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user's process")
def test_d05_who_had_a_device_open_and_who_ran_under_a_shut_account_are_kept(
    tmp_path: Path, kept: Exhibits
) -> None:
    nodes = NodeMachine(tmp_path / "machine")
    nodes.host.processes.on_end = kept.keep_process
    node = nodes.node("/dev/video0", mode=0o666)
    with holding(node, uid=4711) as process:
        (found,), _ = nodes.host.nodes.find(("/dev/video*",))
        (holder,) = nodes.host.nodes.holders("char", [found.number])
        nodes.host.nodes.end(holder, "char")
        assert process.wait(10) == -9
    sleeping = [subprocess.Popen(["sleep", f"{600 + number}"], user=4712) for number in range(2)]
    deadline = time.monotonic() + 10
    while len(nodes.host.processes.of_user(4712)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    nodes.host.processes.end_user(4712)
    assert [each.wait(10) for each in sleeping] == [-9, -9]
    records = _records(tmp_path / "exhibits")
    assert [each["uid"] for each in records] == [4711, 4712, 4712]
    assert {each["pid"] for each in records} == {process.pid, *(each.pid for each in sleeping)}


def test_the_same_again_and_again_pushes_nothing_out(tmp_path: Path, kept: Exhibits) -> None:
    host = Host()
    host.processes.on_end = kept.keep_process
    for seconds in ("600", "600", "600", "601"):
        _kill(host, _sleep(seconds))
    assert [each["command"][1] for each in _records(tmp_path / "exhibits")] == ["600", "601"]
    assert len({each.name for each in kept.take()}) == 2


def test_a03_a_disk_that_takes_nothing_saves_no_process(tmp_path: Path) -> None:
    (tmp_path / "exhibits").write_text("a file where the folder should be")
    kept = Exhibits(tmp_path / "exhibits")
    host = Host()
    host.processes.on_end = kept.keep_process
    _kill(host, _sleep("600"))
    (exhibit,) = kept.take()
    assert exhibit.name == "" and exhibit.why_not == "File exists"


def test_a_procfs_that_says_nothing_is_no_hindrance(tmp_path: Path) -> None:
    host = Host(proc_root=tmp_path)
    assert lastlook.last_look(tmp_path, 7, host.processes._sockets) is None
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_text("Name:\tx\nUid:\tgarbage\n")
    look = lastlook.last_look(tmp_path, 7, host.processes._sockets)
    assert look is not None and (look.name, look.uid, look.started_at, look.descriptor) == ("x", -1, 0.0, -1)
    assert lastlook.program_of(look, lambda: None) == lastlook.Program("", True, b"")


def test_d09_the_event_of_a_killed_listener_names_its_record(tmp_path: Path) -> None:
    with listening_machine(tmp_path, "lastlook") as made:
        evil = made.listen("tcp", "0.0.0.0", 4444)
        baseline = parse_baseline((HEAD + "[listeners]\nkill = true\n").encode())
        hands = OwnHands(made.around.host, Exhibits(tmp_path / "exhibits"))
        machine = Machine(made.around, Netfilter(), hands)
        machine.replace_probes(Held(None, baseline, parse_sections(baseline)))
        told = machine.look("listeners", plan.Stance("normal", (), ""), 1.0)
        assert evil.wait(10) == -9
        (healed,) = [each for each in told if each.kind == "listeners.healed"]
        assert healed.detail["key"] == "tcp 0.0.0.0:4444"
        (event,) = [each for each in told if each.kind == "listeners.kept"]
        record = json.loads((tmp_path / "exhibits" / event.detail["kept"]).read_bytes())
        assert record["pid"] == evil.pid and record["sockets"] == ["tcp 0.0.0.0:4444"]
        assert event.detail["sockets"] == "tcp 0.0.0.0:4444" and "4444" in event.detail["command"]
        assert made.around.host.processes.on_end is None

"""Grants in the kernel: what the vendor's packets reach, and until when; the agent is killed for real."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.firewall.lab import opens, until
from tests.agent.grantrun import VENDOR_PORT
from tests.parts.namespace import Namespace
from tests.parts.topology import Topology

KEY = bytes(range(32)).hex()


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with Topology({"fw": 1}) as built:
        namespace = built.nodes[0].namespace
        for port in ("8080", str(VENDOR_PORT)):
            namespace.start(sys.executable, "-m", "tests.parts.inference", "--port", port)
            until(lambda p=port: opens(namespace, "127.0.0.1", int(p)), 10)  # type: ignore[misc]
        yield built


@pytest.fixture
def site(topology: Topology) -> Iterator[tuple[Namespace, Namespace, str]]:
    """(node, vendor, the node's address)."""
    node = topology.nodes[0]
    yield node.namespace, topology.sites["fw"].the_client.namespace, node.enclave[0]
    node.namespace.run("nft", "flush", "ruleset")


def started(node: Namespace, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start an agent with a grant and wait until it is open."""
    log = folder / f"log{time.monotonic_ns()}"
    process = node.start(sys.executable, "-m", "tests.agent.grantrun", folder, KEY, *more, log=log)
    until(lambda: "open" in log.read_text() or process.poll() is not None, 20)
    assert process.poll() is None, log.read_text()
    return process


class Line:
    """A connection that tells whether bytes still come: the service streams a line every 20 ms."""

    def __init__(self, namespace: Namespace, address: str, port: int) -> None:
        self.socket = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.settimeout(1.0)
        self.socket.connect((address, port))
        self.socket.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: x\r\n\r\n")

    def alive(self, within_s: float = 1.0) -> bool:
        """Tell whether something came."""
        self.socket.settimeout(within_s)
        try:
            return bool(self.socket.recv(65536))
        except TimeoutError:
            return False


def test_a04_a_vendors_port_closes_on_time_with_the_agent_killed(
    site: tuple[Namespace, Namespace, str], tmp_path: Path
) -> None:
    node, vendor, address = site
    begun = time.monotonic()
    agent = started(node, tmp_path, "6")
    try:
        assert opens(vendor, address, VENDOR_PORT)
        assert not opens(vendor, address, 7777)
        other = Line(vendor, address, 8080)
        line = Line(vendor, address, VENDOR_PORT)
        assert line.alive()
        agent.send_signal(signal.SIGKILL)
        agent.wait(5)
        assert line.alive(), "a dead agent ends nothing before its time"
        time.sleep(max(0.0, begun + 6.5 + 3.0 - time.monotonic()))
        assert not opens(vendor, address, VENDOR_PORT), "no new connection"
        while line.alive(0.2):  # what was on its way
            assert time.monotonic() < begun + 12.0, "the open connection goes on"
        assert not line.alive(1.0), "the open connection died with the set's element"
        assert other.alive(), "the baseline's own flows go on"
        assert opens(vendor, address, 8080)
    finally:
        agent.kill()
        agent.wait(5)


BEHIND = """
table inet behind {
	chain input { type filter hook input priority 10; policy drop; iif "lo" accept; ct mark & 0xffff0000 != 0 accept; icmpv6 type nd-neighbor-solicit accept; icmpv6 type nd-neighbor-advert accept; }
	chain output { type filter hook output priority 10; policy drop; oif "lo" accept; ct mark & 0xffff0000 != 0 accept; icmpv6 type nd-neighbor-solicit accept; icmpv6 type nd-neighbor-advert accept; }
}
"""


def test_f03_what_lets_only_marked_flows_pass_lets_a_grants_pass_and_no_longer_than_it(
    site: tuple[Namespace, Namespace, str], tmp_path: Path
) -> None:
    node, vendor, address = site
    begun = time.monotonic()
    agent = started(node, tmp_path, "6")
    try:
        node.nft(BEHIND)
        line = Line(vendor, address, VENDOR_PORT)
        assert line.alive()
        assert not opens(vendor, address, 7777)
        time.sleep(max(0.0, begun + 9.0 - time.monotonic()))
        while line.alive(0.2):
            assert time.monotonic() < begun + 12.0, "the open connection goes on"
        assert not opens(vendor, address, VENDOR_PORT)
    finally:
        agent.kill()
        agent.wait(5)


def test_f02_a_reload_keeps_what_is_left_and_a_flow_goes_on_through_it(
    site: tuple[Namespace, Namespace, str], tmp_path: Path
) -> None:
    node, vendor, address = site
    agent = started(node, tmp_path, "300")
    try:
        line = Line(vendor, address, VENDOR_PORT)
        before = _left_s(node)
        time.sleep(2.2)
        node.run("nft", "delete", "table", "inet", "ringfence")
        until(lambda: bool(_left_s(node)), 15)
        after = _left_s(node)
        assert 0 < after < before - 2.0, (before, after)
        assert line.alive()
    finally:
        agent.kill()
        agent.wait(5)


def test_f02_an_element_that_somebody_adds_to_a_grants_set_is_taken_out(
    site: tuple[Namespace, Namespace, str], tmp_path: Path
) -> None:
    node, _, _ = site
    agent = started(node, tmp_path, "300")
    try:
        name = "grant1_0_peers4"
        node.run("nft", "add", "element", "inet", "ringfence", name, "{ 10.99.0.0/16 timeout 1h }")
        assert "10.99" in node.run("nft", "list", "set", "inet", "ringfence", name).stdout
        until(lambda: "10.99" not in node.run("nft", "list", "set", "inet", "ringfence", name).stdout, 15)
        node.run("nft", "flush", "set", "inet", "ringfence", name)
        until(lambda: "10.10" in node.run("nft", "list", "set", "inet", "ringfence", name).stdout, 15)
    finally:
        agent.kill()
        agent.wait(5)


def test_a_restarted_agent_gives_no_more_than_what_is_left(
    site: tuple[Namespace, Namespace, str], tmp_path: Path
) -> None:
    node, _, _ = site
    agent = started(node, tmp_path, "300")
    time.sleep(1.5)
    agent.kill()
    agent.wait(5)
    node.run("nft", "flush", "ruleset")
    agent = started(node, tmp_path, "300", "again")
    try:
        assert 0 < _left_s(node) <= 298.6
    finally:
        agent.kill()
        agent.wait(5)


def _left_s(node: Namespace) -> float:
    """Return the seconds that the kernel still gives the grant, as `nft` prints them; 0 without one."""
    text = node.run("nft", "list", "set", "inet", "ringfence", "grant1_0_peers4", check=False).stdout
    _, _, rest = text.partition("expires ")
    if not rest:
        return 0.0
    seconds, number = 0.0, ""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    unit = ""
    for char in rest.split()[0].strip(",}") + "0":
        if char.isdigit():
            if unit:
                seconds += float(number) * units[unit]
                number = unit = ""
            number += char
        else:
            unit += char
    return seconds

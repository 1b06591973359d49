"""What is foretold of open connections is what the kernel does to them: real flows, real rules, the same sections.

The prophet is `contract.foretell` over what `agent.socketreport` sees; the witness is whether bytes still arrive.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host import Host as Machine
from agent.probes import ControllerEndpoint
from agent.socketreport import socket_report
from contract.foretell import Foretold
from contract.messages import Posture
from contract.sockets import Connection, SocketReport, read_sockets
from contract.wire import encode
from tests.agent.firewall.lab import CONTROLLER_PORT, FencedNode, section
from tests.parts.namespace import Namespace
from tests.parts.topology import Topology

ZONES = """
[zones.enclave]
interfaces = ["enclave0"]
addresses = ["10.10.1.0/24", "fd10:1::/64"]
[zones.uplink]
interfaces = ["uplink0"]
addresses = ["0.0.0.0/0", "::/0"]
[zones.one]
addresses = ["10.10.1.100"]
"""
RULE = (
    '\n[[{at}]]\nzone = "{zone}"\nprotocol = "{protocol}"\nports = [{ports}]\nreason = "for a test"\n{more}'
)
CONTROLLER = '\n[controller]\ninterface = "{}"\n'


def rule(at: str, zone: str, ports: str, protocol: str = "tcp", more: str = "") -> str:
    return RULE.format(at=at, zone=zone, protocol=protocol, ports=ports, more=more)


EVERYTHING = "".join(
    f'\n[[{at}]]\nzone = "{zone}"\nprotocol = "any"\nreason = "for a test"\n'
    for at in ("inbound", "outbound")
    for zone in ("enclave", "uplink")
)


class Stream:
    """An open TCP connection, and a way to see whether it lives."""

    def __init__(self, here: socket.socket, there: socket.socket) -> None:
        self.here, self.there = here, there

    def arrives(self, within_s: float) -> bool:
        """Whether a byte sent by the node reaches the peer, and the answer the node."""
        for one in (self.here, self.there):
            one.settimeout(within_s)
        try:
            self.here.sendall(b"x")
            if self.there.recv(1) != b"x":
                return False
            self.there.sendall(b"y")
            return self.here.recv(1) == b"y"
        except OSError:
            return False

    def close(self) -> None:
        self.here.close()
        self.there.close()


def joined(
    server: Namespace, address: str, port: int, client: Namespace
) -> tuple[socket.socket, socket.socket]:
    """(accepted, connected) of one new TCP connection; the listener stays open for as long as the accepted end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def listen() -> socket.socket:
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        return listener

    listener = server.inside(listen)
    _LISTENERS.append(listener)
    connected = client.inside(lambda: socket.create_connection((address, port), timeout=10))
    accepted, _ = listener.accept()
    return accepted, connected


_LISTENERS: list[socket.socket] = []


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with Topology({"factory": 1}) as built:
        yield built


@pytest.fixture
def node(topology: Topology) -> Iterator[FencedNode]:
    node = FencedNode(topology.nodes[0], topology, CONTROLLER.format("uplink0") + ZONES + EVERYTHING)
    node.settle()
    yield node
    while _LISTENERS:
        _LISTENERS.pop().close()
    node.clear()
    node.close()


@pytest.fixture
def streams(node: FencedNode, topology: Topology) -> Iterator[dict[str, Stream]]:
    """Connections of each kind, made under rules that let everything be."""
    own, client = node.host, topology.sites["factory"].the_client
    made: dict[str, Stream] = {}
    for name, address in (("served4", own.enclave[0]), ("served6", own.enclave[1])):
        made[name] = Stream(*joined(own.namespace, address, 8080, client.namespace))
    there, here = joined(topology.outside.namespace, topology.outside.uplink[0], 443, own.namespace)
    made["asked"] = Stream(here, there)
    there, here = joined(client.namespace, client.enclave[0], 9100, own.namespace)
    made["printer"] = Stream(here, there)
    there, here = joined(
        topology.controller.namespace, topology.controller.uplink[0], CONTROLLER_PORT, own.namespace
    )
    made["controller"] = Stream(here, there)
    yield made
    for stream in made.values():
        stream.close()


def reported(node: FencedNode, tmp_path: Path, topology: Topology) -> SocketReport:
    """What the agent would tell from inside the node."""
    for each in Path("/proc").iterdir():
        if each.name.isdigit() and not (tmp_path / each.name).is_symlink():
            (tmp_path / each.name).symlink_to(each)
    with contextlib.suppress(FileExistsError):
        (tmp_path / "net").symlink_to("/proc/thread-self/net")
    controller = [ControllerEndpoint(each, CONTROLLER_PORT) for each in topology.controller.uplink]
    machine = Machine(proc_root=tmp_path)
    said = node.do(lambda: socket_report(machine, tmp_path, controller))
    return read_sockets(encode(said))


def name_of(one: Connection, streams: dict[str, Stream]) -> str:
    """Which of the streams a reported connection is."""
    for name, stream in streams.items():
        port, peer = stream.here.getsockname()[1], stream.here.getpeername()
        if (one.local_port, one.peer, one.peer_port) == (port, peer[0], peer[1]):
            return name
    return f"{one}"


CASES: dict[str, tuple[str, Posture]] = {
    "nothing": (ZONES, "normal"),
    "no firewall at all": ("", "normal"),
    "what is served": (ZONES + rule("inbound", "enclave", "8080"), "normal"),
    "another port": (ZONES + rule("inbound", "enclave", '8081, "9000-9200"'), "normal"),
    "one client": (ZONES + rule("inbound", "one", "8080"), "normal"),
    "wrong interface": (
        ZONES + rule("inbound", "uplink", "8080") + rule("outbound", "enclave", "443"),
        "normal",
    ),
    "what is asked for": (ZONES + rule("outbound", "uplink", "443"), "normal"),
    "a printer": (ZONES + rule("outbound", "one", '"9000-9200"'), "normal"),
    "inbound is not outbound": (
        ZONES + rule("inbound", "enclave", "9100") + rule("outbound", "uplink", "8080"),
        "normal",
    ),
    "of root": (ZONES + rule("outbound", "uplink", "443", more='user = "root"\n'), "normal"),
    "of nobody": (ZONES + rule("outbound", "uplink", "443", more='user = "nobody"\n'), "normal"),
    "udp is not tcp": (ZONES + rule("outbound", "uplink", "443", "udp"), "normal"),
    "limited": (ZONES + rule("inbound", "enclave", "8080", more='rate = "50/second"\n'), "normal"),
    "all": (ZONES + EVERYTHING, "normal"),
    "isolated": (ZONES + EVERYTHING + rule("isolated.outbound", "one", "9100"), "isolated"),
    "maintenance": (ZONES + rule("maintenance.inbound", "enclave", "8080"), "maintenance"),
    "maintenance is over": (ZONES + rule("maintenance.inbound", "enclave", "8080"), "normal"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_does_what_was_foretold(
    case: str, node: FencedNode, streams: dict[str, Stream], topology: Topology, tmp_path: Path
) -> None:
    text, posture = CASES[case]
    text = CONTROLLER.format("uplink0") + text
    said = reported(node, tmp_path, topology)
    foretold = Foretold(section(text), posture)
    fates = {name_of(one, streams): foretold.fate(one, said.controller) for one in said.connections}
    assert fates.keys() == streams.keys()
    assert foretold.loses_controller(said.controller) == "kept"
    node.settle(posture, text=text)
    # Those that live are waited for as long as it takes; the others have had time enough after that.
    verdicts = {name: fate.verdict for name, fate in fates.items()}
    assert set(verdicts.values()) <= {"kept", "cut"}, fates
    for wanted, within_s in (("kept", 60.0), ("cut", 0.25)):
        for name, stream in streams.items():
            if verdicts[name] == wanted:
                assert stream.arrives(within_s) == (wanted == "kept"), (name, fates[name])


def test_who_loses_the_controller_is_foretold(
    node: FencedNode, streams: dict[str, Stream], topology: Topology, tmp_path: Path
) -> None:
    text = CONTROLLER.format("enclave0") + ZONES + rule("inbound", "enclave", "8080")
    said = reported(node, tmp_path, topology)
    assert [(each.address, each.interface) for each in said.controller] == [
        (address, "uplink0") for address in topology.controller.uplink
    ]
    assert Foretold(section(text), "normal").loses_controller(said.controller) == "cut"
    assert Foretold(section(ZONES), "normal").loses_controller(said.controller) == "kept"
    unknown = [type(each)(each.address, each.port) for each in said.controller]
    assert Foretold(section(text), "normal").loses_controller(unknown) == "unsure"
    assert Foretold(section(text), "normal").loses_controller([]) == "unsure"
    node.settle(text=text)
    assert not streams["controller"].arrives(0.5)
    assert streams["served4"].arrives(60.0)


def test_processes_and_listeners_are_told_and_loopback_is_not(
    node: FencedNode, streams: dict[str, Stream], topology: Topology, tmp_path: Path
) -> None:
    own = node.host.namespace
    inner = Stream(*joined(own, "127.0.0.1", 7000, own))
    to_itself = Stream(*joined(own, node.host.enclave[0], 7001, own))
    said = reported(node, tmp_path, topology)
    assert not {7000, 7001} & {port for one in said.connections for port in (one.local_port, one.peer_port)}
    assert ("tcp", 8080) in {(one.protocol, one.port) for one in said.listening}
    assert 7000 not in {one.port for one in said.listening}
    mine = next(one for one in said.connections if name_of(one, streams) == "asked")
    assert (mine.begun, mine.interface, mine.uid, mine.user) == ("here", "uplink0", 0, "root")
    assert mine.program == Path("/proc/self/exe").resolve().name
    wanted = next((x[3:] for x in Path("/proc/self/cgroup").read_text().splitlines() if x[:3] == "0::"), "")
    assert mine.cgroup == wanted
    closed = Foretold(section(ZONES + rule("inbound", "enclave", "8081")), "normal")
    assert [one.port for one in said.listening if one.port == 8080 and not closed.serves(one)] != []
    for stream in (inner, to_itself):
        stream.close()

"""What cannot be known from outside is never foretold as kept; what a node tells of its sockets is read strictly."""

from __future__ import annotations

import tomllib

import msgspec
import pytest

from contract.errors import Rejected
from contract.firewall import Section
from contract.foretell import Foretold, Verdict
from contract.messages import MAX_SOCKETS_BYTES, Posture
from contract.sockets import MAX_CONNECTIONS, Connection, Endpoint, Listening, SocketReport, read_sockets
from contract.wire import encode

ZONES = """
[zones.lan]
interfaces = ["eth0"]
addresses = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]
[zones.anywhere]
interfaces = ["eth1"]
[zones.named]
names = ["models.example"]
addresses = ["192.0.2.7"]
[zones.cards]
interfaces = ["eth0"]
macs = ["02:00:00:00:00:01"]
"""
OUT = Connection("tcp", "here", 40000, "10.1.2.3", 443, "eth0", 33, "www-data", "/system.slice/web.service")


def rule(zone: str, at: str = "outbound", more: str = "") -> str:
    return f'[[{at}]]\nzone = "{zone}"\nprotocol = "tcp"\nports = [443, "8000-8010"]\nreason = "x"\n{more}\n'


def verdict(text: str, one: Connection, posture: Posture = "normal", *controller: Endpoint) -> Verdict:
    section = msgspec.convert(tomllib.loads(text), Section)
    return Foretold(section, posture).fate(one, controller).verdict


def other(**changes: object) -> Connection:
    return msgspec.structs.replace(OUT, **changes)


@pytest.mark.parametrize(
    ("text", "one", "wanted"),
    [
        (rule("lan"), OUT, "kept"),
        (rule("lan"), other(peer="11.0.0.1"), "cut"),
        (rule("lan"), other(peer="10.255.255.255"), "kept"),
        (rule("lan"), other(peer="fd12::1"), "kept"),
        (rule("lan"), other(peer="fe00::1"), "cut"),
        (rule("lan"), other(interface="eth1"), "cut"),
        (rule("lan"), other(interface=""), "unsure"),
        (rule("lan"), other(peer="11.0.0.1", interface=""), "cut"),
        (rule("anywhere"), other(interface="eth1", peer="203.0.113.1"), "kept"),
        (rule("named"), OUT, "unsure"),
        (rule("named"), other(peer="192.0.2.7"), "kept"),
        (rule("named") + rule("lan"), OUT, "kept"),
        (rule("cards"), OUT, "unsure"),
        (rule("cards"), other(peer_port=80), "cut"),
        (rule("lan", more='user = "www-data"'), OUT, "kept"),
        (rule("lan", more='user = "33"'), OUT, "kept"),
        (rule("lan", more='user = "root"'), OUT, "cut"),
        (rule("lan", more='user = "root"'), other(user="", uid=-1), "unsure"),
        (rule("lan", more='unit = "web.service"'), OUT, "kept"),
        (rule("lan", more='unit = "eb.service"'), OUT, "cut"),
        (rule("lan", more='unit = "web.service"'), other(cgroup=""), "unsure"),
        (rule("lan", "inbound"), OUT, "cut"),
        (rule("lan", "inbound"), other(begun="there", local_port=8005, peer_port=5), "kept"),
        (rule("lan", "inbound"), other(begun="there", local_port=8011, peer_port=443), "cut"),
        (rule("lan", "inbound", "connections = 3"), other(begun="there", local_port=443), "unsure"),
        (rule("lan").replace("tcp", "udp"), OUT, "cut"),
        (rule("lan").replace("tcp", "udp"), other(protocol="udp"), "kept"),
        ("", OUT, "cut"),
    ],
)
def test_one_connection_under_one_rule(text: str, one: Connection, wanted: Verdict) -> None:
    assert verdict(ZONES + text, one) == wanted


def test_each_posture_has_its_own_rules() -> None:
    text = ZONES + rule("lan") + rule("lan", "isolated.inbound") + rule("lan", "maintenance.inbound")
    served = other(begun="there", local_port=443, peer_port=1)
    assert [verdict(text, OUT, p) for p in ("normal", "maintenance", "isolated")] == ["kept", "kept", "cut"]  # type: ignore[arg-type]
    assert [verdict(text, served, p) for p in ("normal", "maintenance", "isolated")] == [
        "cut",
        "kept",
        "kept",
    ]  # type: ignore[arg-type]


def test_the_way_to_the_controller_is_there_without_a_rule_and_by_its_interface_alone() -> None:
    there = Endpoint("10.1.2.3", 443, "eth0")
    assert verdict(ZONES, OUT, "isolated", there) == "kept"
    assert verdict(ZONES, other(peer_port=444), "normal", there) == "cut"
    assert verdict(ZONES, other(protocol="udp"), "normal", there) == "cut"
    narrowed = '[controller]\ninterface = "eth1"\n' + ZONES
    assert verdict(narrowed, OUT, "normal", there) == "cut"
    assert verdict(narrowed, other(interface=""), "normal", there) == "unsure"
    assert verdict(narrowed + rule("lan"), OUT, "normal", there) == "kept"


def test_networks_of_containers_are_not_guessed_at() -> None:
    text = ZONES + (
        '[containers]\nmanager = "docker"\ninterfaces = ["docker0"]\naddresses = ["172.17.0.0/16"]\nreason = "x"\n'
    )
    assert verdict(text, other(peer="172.17.0.2", interface="docker0")) == "unsure"
    assert verdict(text, other(peer="172.17.0.2")) == "unsure"
    assert verdict(text, other(peer="11.0.0.1")) == "cut"


def test_which_services_nobody_may_ask_for() -> None:
    section = msgspec.convert(tomllib.loads(ZONES + rule("lan", "inbound")), Section)
    foretold = Foretold(section, "normal")
    assert foretold.serves(Listening("tcp", 8000, "x"))
    assert not foretold.serves(Listening("tcp", 7999, "x"))
    assert not foretold.serves(Listening("udp", 8000, "x"))


def code(report: bytes) -> str:
    with pytest.raises(Rejected) as refused:
        read_sockets(report)
    return refused.value.code


def test_c12_what_a_node_tells_is_read_strictly() -> None:
    assert read_sockets(encode(SocketReport(connections=[OUT]))).connections == [OUT]
    for field in ("program", "user", "cgroup", "interface"):
        assert code(encode(SocketReport(connections=[other(**{field: "\x1b[2J"})]))) == "sockets.malformed"
    assert code(encode(SocketReport(listening=[Listening("tcp", 1, "a\nb")]))) == "sockets.malformed"
    assert code(encode(SocketReport(connections=[other(peer="evil")]))) == "sockets.malformed"
    assert code(encode(SocketReport(connections=[other(peer="10.0.0.0/8")]))) == "sockets.malformed"
    assert code(encode(SocketReport(controller=[Endpoint("x", 1)]))) == "sockets.malformed"
    many = [other(local_port=n) for n in range(MAX_CONNECTIONS + 1)]
    assert code(encode(SocketReport(connections=many))) == "sockets.malformed"
    assert code(bytes(MAX_SOCKETS_BYTES + 1)) == "message.too-large"
    assert code(encode(SocketReport()) + b"\0") == "sockets.malformed"

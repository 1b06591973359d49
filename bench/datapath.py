"""What the fence costs inference traffic: requests, datagrams, bulk, and new connections, between namespaces.

A client has one link to each of several nodes: one without any firewall, one where the kernel tracks connections and does no
more, ours (rules and guard) with allow-lists of 10, 1,000 and 100,000 addresses, and a list of 1,000 plain rules. 100,000
plain rules are not measured: the kernel keeps a core for minutes to take them (its watchdog tells of a soft lockup after four).

They take short turns, and each is compared with the bare one. An inference request has a millisecond of work at the server; a
bare one has none, so it shows what the kernel alone does, connection tracking included, and any cost at its largest. A
datagram that is never answered is judged by the lists until the first is let in. Also: how long nftables takes to apply 10,000
addresses, whole and what differs.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

from agent.firewall.guard import render_guard
from agent.firewall.nft import Rules, rules
from agent.firewall.section import InboundRule, Section, Zone
from agent.firewall.tables import difference
from agent.netfilter import Netfilter
from bench.figures import Figure, figure, percentile
from tests.parts.namespace import Namespace, remove_leftovers

PORT = 8080
LISTS = (10, 1_000, 100_000)
LINEAR = 1_000
_REQUEST_BYTES, _ANSWER_BYTES = 512, 2048
_CHUNK_BYTES = 1 << 18
_TURN_S = 0.1
_UNDISTURBED = 95.0
"""Percentile of turns: a few per cent are looked for, and whatever else runs on the machine only ever takes away."""
BARE, TRACKED = "no firewall", "connection tracking alone"
_TRACKING = "".join(
    f"chain {hook} {{\ntype filter hook {hook} priority 0; policy accept;\nct state established accept\n}}\n"
    for hook in ("input", "output")
)


@dataclass
class Node:
    """One way through the fence."""

    name: str
    namespace: Namespace
    address: str
    server: subprocess.Popen[bytes]


def run(*, quick: bool) -> list[Figure]:
    """Take turns: 5 of each kind when `quick`, else 60."""
    turns = 5 if quick else 60
    remove_leftovers()
    figures: list[Figure] = []
    with _site() as (client, nodes):
        print(f"  {len(nodes)} nodes, {turns} turns each", flush=True)
        for work in WORKS:
            takes = [work.of(client, node) for node in nodes]
            figures += _compared(work, [node.name for node in nodes], _rounds(takes, turns))
        figures += _applied(nodes[0].namespace, 5 if quick else 30)
    return figures


def allow_list(count: int, client: str) -> Section:
    """Return a baseline that lets in `count` addresses, the client's among them, to one port."""
    addresses = [f"172.{16 + n // 65025}.{n // 255 % 255}.{n % 255 + 1}" for n in range(count - 1)]
    zone = Zone(addresses=[client, *addresses])
    tcp = InboundRule(zone="enclave", protocol="tcp", ports=[PORT], reason="inference API")
    udp = InboundRule(zone="enclave", protocol="udp", ports=[PORT], reason="camera streams")
    return Section(zones={"enclave": zone}, inbound=[tcp, udp])


def linear(count: int, client: str) -> str:
    """Return the same as a list of plain rules, which looks at each packet by itself."""
    listed = [f"172.16.{n // 255}.{n % 255 + 1}" for n in range(count - 1)] + [client]
    inward = "\n".join(
        f"ip saddr {each} meta l4proto {{ tcp, udp }} th dport {PORT} accept" for each in listed
    )
    outward = "\n".join(
        f"ip daddr {each} meta l4proto {{ tcp, udp }} th sport {PORT} accept" for each in listed
    )
    return (
        f"table inet linear {{\nchain i {{\ntype filter hook input priority 0; policy drop;\n{inward}\n}}\n"
        f"chain o {{\ntype filter hook output priority 0; policy drop;\n{outward}\n}}\n}}\n"
    )


def compiled(section: Section) -> Rules:
    """Return its rules on a node that knows no controller."""
    return rules(section, "normal", SimpleNamespace(controller=(), fenced=(), grants=()))


def _kinds() -> Iterator[tuple[str, Callable[[str], str]]]:
    """Yield each kind of node and what it loads, by the client's address there."""
    yield BARE, lambda client: ""
    yield TRACKED, lambda client: f"table inet tracking {{\n{_TRACKING}}}\n"
    for count in LISTS:
        yield (
            f"{count:,} addresses",
            lambda client, count=count: render_guard() + compiled(allow_list(count, client)).text(),  # type: ignore[misc]
        )
    yield f"{LINEAR:,} plain rules", lambda client: linear(LINEAR, client)


@contextlib.contextmanager
def _site() -> Iterator[tuple[Namespace, list[Node]]]:
    client = Namespace("bench-client")
    nodes: list[Node] = []
    try:
        for number, (kind, text) in enumerate(_kinds(), start=1):
            here, there = f"10.90.{number}.1", f"10.90.{number}.2"
            inside = Namespace(f"bench-{number}")
            client.batch([f"link add n{number} type veth peer name up0 netns {inside.name}"])
            client.batch([f"addr add {here}/24 dev n{number}", f"link set n{number} up"])
            inside.batch([f"addr add {there}/24 dev up0", "link set up0 up"])
            server = inside.start(sys.executable, "-m", "bench.answering", str(PORT), str(_ANSWER_BYTES))
            nodes.append(Node(kind, inside, there, server))
            inside.nft(text(here))
        for node in nodes:
            _wait_for(client, node.address)
        yield client, nodes
    finally:
        for node in nodes:
            node.server.kill()
            node.server.wait()
            node.namespace.remove()
        client.remove()


def _wait_for(client: Namespace, address: str) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), _connected(client, address):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nobody answers at {address}")


def _connected(client: Namespace, address: str) -> socket.socket:
    made = client.socket()
    made.settimeout(2)
    made.connect((address, PORT))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


Take = Callable[[], float]
"""One turn; returns how much was done, by the second."""


@dataclass
class Work:
    """Something to do with a node."""

    name: str
    unit: str
    of: Callable[[Namespace, Node], Take]


def _asking(client: Namespace, node: Node, kind: bytes = b"r") -> Take:
    made = _connected(client, node.address)
    request = kind * _REQUEST_BYTES

    def turn() -> float:
        count, begun = 0, time.perf_counter()
        while (took := time.perf_counter() - begun) < _TURN_S:
            for _ in range(5):
                made.sendall(request)
                left = _ANSWER_BYTES
                while left:
                    left -= len(made.recv(left))
            count += 5
        return count / took

    return turn


def _bulk(client: Namespace, node: Node) -> Take:
    made = _connected(client, node.address)
    made.sendall(b"b" * _REQUEST_BYTES)  # from here on the server only reads
    chunk = bytes(_CHUNK_BYTES)

    def turn() -> float:
        sent, begun = 0, time.perf_counter()
        while (took := time.perf_counter() - begun) < _TURN_S:
            made.sendall(chunk)
            sent += _CHUNK_BYTES
        return sent / took / 1e6

    return turn


def _opening(client: Namespace, node: Node) -> Take:
    def turn() -> float:
        # Sockets are made before: entering a namespace costs more than a connection.
        waiting = client.inside(lambda: [socket.socket() for _ in range(200)])
        begun = time.perf_counter()
        for each in waiting:
            each.connect((node.address, PORT))
        took = time.perf_counter() - begun
        for each in waiting:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            each.close()
        return len(waiting) / took

    return turn


def _sending(client: Namespace, node: Node) -> Take:
    made = client.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.connect((node.address, PORT))
    frame = bytes(_ANSWER_BYTES // 2)

    def turn() -> float:
        count, begun = 0, time.perf_counter()
        while (took := time.perf_counter() - begun) < _TURN_S:
            for _ in range(50):
                made.send(frame)
            count += 50
        return count / took

    return turn


WORKS = (
    Work("inference requests of 1 ms", "1/s", lambda client, node: _asking(client, node, b"i")),
    Work("bare requests", "1/s", _asking),
    Work("datagrams that nobody answers", "1/s", _sending),
    Work("bulk", "MB/s", _bulk),
    Work("new connections", "1/s", _opening),
)


def _rounds(takes: list[Take], turns: int) -> list[list[float]]:
    """Return what each did in each round."""
    for take in takes:
        take()
    rounds = []
    for number in range(turns):
        # Whoever comes first in a round is not always the same.
        order = [(number + each) % len(takes) for each in range(len(takes))]
        done = {each: takes[each]() for each in order}
        rounds.append([done[each] for each in range(len(takes))])
    return rounds


def _compared(work: Work, names: list[str], rounds: list[list[float]]) -> list[Figure]:
    """Return what each did in the turns that others on the machine disturbed least, and beside it the bare one in its own."""
    best = [percentile([each[number] for each in rounds], _UNDISTURBED) for number in range(len(names))]
    return [
        figure(
            f"{work.name}, {name}",
            best[number],
            work.unit,
            BARE if number else "",
            best[0] if number else None,
        )
        for number, name in enumerate(names)
    ]


def _applied(namespace: Namespace, times: int) -> list[Figure]:
    """Apply 10,000 addresses whole, and a list that differs in 100 of them."""
    first = allow_list(10_000, "10.90.0.1")
    zone = first.zones["enclave"]
    others = [f"192.0.2.{n}" for n in range(1, 101)]
    second = Section(
        zones={"enclave": Zone(addresses=[*zone.addresses[:-100], *others])}, inbound=first.inbound
    )
    one, other = compiled(first), compiled(second)
    ways = [difference(one.tables, other.tables) or "", difference(other.tables, one.tables) or ""]

    def measure() -> tuple[list[float], list[float]]:
        netfilter = Netfilter()
        whole, part = [], []
        for _ in range(times):
            for took, text in ((whole, one.text()), (part, ways[0]), (part, ways[1])):
                begun = time.perf_counter()
                netfilter.load(text)
                took.append((time.perf_counter() - begun) * 1000)
        netfilter.load("delete table inet ringfence\n")
        netfilter.close()
        return whole, part

    whole, part = namespace.inside(measure)
    bare = percentile(whole, 50)
    return [
        figure("apply 10,000 addresses whole, p50", bare, "ms"),
        figure("apply 100 other addresses of 10,000, p50", percentile(part, 50), "ms", "whole", bare),
    ]

"""Packets that must arrive and packets that must not, sent for real and counted where they arrive."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.flow.lab import Lab
from tests.parts.inference import PORT, connect, infer
from tests.parts.namespace import Namespace

TCP_OUT = 443
UDP_OUT = 4444
UNLISTED = 2222
_WAIT_S = 0.6

FORBIDDEN = (
    "outside host -> inference port of a node, over the uplink",
    "client in the enclave -> unlisted TCP port of a node",
    "node -> outside host, TCP 443",
    "node -> outside host, UDP 4444",
    "client -> through a node -> outside host",
)


class Outside:
    """The outside host: listens, and remembers which datagrams came."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.namespace = lab.topology.outside.namespace
        self.address4, self.address6 = lab.topology.outside.uplink
        self._sockets: list[socket.socket] = []
        self._datagrams: set[bytes] = set()
        for family, address in ((socket.AF_INET, self.address4), (socket.AF_INET6, self.address6)):
            listening = self.namespace.socket(family, socket.SOCK_STREAM)
            listening.bind((address, TCP_OUT))
            listening.listen(64)
            receiving = self.namespace.socket(family, socket.SOCK_DGRAM)
            receiving.bind((address, UDP_OUT))
            self._sockets += [listening, receiving]
            threading.Thread(target=self._receive, args=(receiving,), daemon=True).start()

    def __enter__(self) -> Outside:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def reaches(self, source: Namespace, address: str, port: int) -> bool:
        """Say whether a TCP handshake gets as far as the other machine's kernel: accepted or refused by it."""
        try:
            connect(source, address, port, timeout_s=_WAIT_S).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True

    def hears(self, source: Namespace, address: str, word: str) -> bool:
        """Say whether a datagram from there arrives."""
        with contextlib.suppress(OSError), connect(source, address, UDP_OUT, kind=socket.SOCK_DGRAM) as made:
            made.send(word.encode())
        return self._arrived(word.encode())

    def _arrived(self, word: bytes) -> bool:
        pause = threading.Event()
        for _ in range(int(_WAIT_S / 0.02)):
            if word in self._datagrams:
                self._datagrams.discard(word)
                return True
            pause.wait(0.02)
        return False

    def _receive(self, receiving: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                word, sender = receiving.recvfrom(2048)
                if not sender:
                    return
                self._datagrams.add(word)


def forbidden(lab: Lab, outside: Outside) -> dict[str, list[str]]:
    """Try every forbidden kind on every node, both families; return what got through, by kind."""
    tries: list[tuple[str, str, Callable[[], bool]]] = []
    for node in lab.nodes:
        client = lab.client(node.site).namespace
        inside = node.host.namespace
        for up, enclave, out in zip(
            node.host.uplink, node.host.enclave, (outside.address4, outside.address6), strict=True
        ):
            tries += [
                (FORBIDDEN[0], up, lambda up=up: outside.reaches(outside.namespace, up, PORT)),  # type: ignore[misc]
                (FORBIDDEN[1], enclave, lambda c=client, a=enclave: outside.reaches(c, a, UNLISTED)),  # type: ignore[misc]
                (FORBIDDEN[2], enclave, lambda n=inside, a=out: outside.reaches(n, a, TCP_OUT)),  # type: ignore[misc]
                (FORBIDDEN[3], enclave, lambda n=inside, a=out, w=enclave: outside.hears(n, a, w)),  # type: ignore[misc]
            ]
    for site in lab.topology.sites.values():
        client = site.the_client.namespace
        tries += [
            (FORBIDDEN[4], out, lambda c=client, a=out: outside.reaches(c, a, TCP_OUT))  # type: ignore[misc]
            for out in (outside.address4, outside.address6)
        ]
    passed: dict[str, list[str]] = {kind: [] for kind in FORBIDDEN}
    with ThreadPoolExecutor(32) as pool:
        for (kind, address, _), got in zip(tries, pool.map(lambda each: each[2](), tries), strict=True):
            if got:
                passed[kind].append(address)
    return passed


def allowed(lab: Lab) -> dict[str, bool]:
    """Ask every node's inference service from the client and from a neighbour, both families."""
    tries: dict[str, Callable[[], bool]] = {}
    for node in lab.nodes:
        client = lab.client(node.site).namespace
        peers = lab.site(node.site)
        peer = peers[(peers.index(node) + 1) % len(peers)]
        for address in node.host.enclave:
            tries[f"client -> {node.name} {address}"] = lambda c=client, a=address: infer(c, a)  # type: ignore[misc]
            tries[f"{peer.name} -> {node.name} {address}"] = lambda p=peer, a=address: infer(  # type: ignore[misc]
                p.host.namespace, a
            )
    with ThreadPoolExecutor(16) as pool:
        return dict(zip(tries, pool.map(lambda ask: ask(), tries.values()), strict=True))

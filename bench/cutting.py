"""One node, from an isolation directive in its hands to the kernel and to the last packet; and what the guard costs.

The whole machine side of an agent runs in a namespace of a small site: signature, state on disk, cut, open flows. A
sender on the node floods a neighbour meanwhile; the last packet is when the neighbour saw none after.
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from pathlib import Path

from agent.firewall.guard import render_guard
from agent.probes import Surroundings
from bench.figures import Figure, figure, percentile
from contract.messages import Posture
from tests.agent.rig import Rig, baseline
from tests.parts.nftwatch import NftWatch
from tests.parts.topology import Topology

_PORT = 9
_EXTRA = """
[[firewall.outbound]]
zone = "enclave"
protocol = "udp"
ports = [9]
reason = "bench"
"""


def run(*, quick: bool) -> list[Figure]:
    """Isolate and release one node again and again."""
    times = 20 if quick else 200
    with Topology({"cut": 1}) as site, tempfile.TemporaryDirectory() as folder:
        client = site.sites["cut"].the_client
        inside = site.nodes[0].namespace
        hearing = _Hearing(client.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM))
        rig = Rig(Path(folder))

        def begin() -> None:
            rig.start()
            rig.adopt(baseline(1, 8080, extra=_EXTRA), 1, 1)

        inside.inside(begin)
        flood = _Flood(inside.socket(socket.AF_INET, socket.SOCK_DGRAM), client.enclave[0])
        committed_ms, last_ms = [], []
        with NftWatch(inside) as watch:
            for number in range(2, 2 * times + 2, 2):
                _order(rig, number, "normal")
                time.sleep(0.05)
                asked = time.time()
                _order(rig, number + 1, "isolated")
                at = watch.wait(lambda change: "ringfence_cut" in change.added, after=asked).at
                time.sleep(0.02)
                committed_ms.append((at - asked) * 1000)
                last_ms.append((hearing.last - asked) * 1000)
        flood.close()
        rig.stop()
        return [
            figure("isolation directive -> kernel, one node, p50", percentile(committed_ms, 50), "ms"),
            figure(
                "isolation directive -> kernel, one node, p99",
                percentile(committed_ms, 99),
                "ms",
                "promise",
                10.0,
            ),
            figure("isolation directive -> last packet of a flood, p50", percentile(last_ms, 50), "ms"),
            figure("isolation directive -> last packet of a flood, p99", percentile(last_ms, 99), "ms"),
            *_guard_cost(site, quick=quick),
        ]


def _order(rig: Rig, number: int, posture: Posture) -> None:
    rig.direct(rig.signed(number, posture=posture, wanted=rig.kit.wanted("factory", 1)))


class _Hearing:
    """Counts datagrams and knows when the last one came."""

    def __init__(self, made: socket.socket) -> None:
        self.last = 0.0
        self.count = 0
        self._socket = made
        made.bind(("", _PORT))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while self._socket.recv(64):
            self.last = time.time()
            self.count += 1


class _Flood:
    """One datagram each half millisecond."""

    def __init__(self, made: socket.socket, address: str) -> None:
        self._socket, self._address = made, address
        self._going = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._going:
            try:
                self._socket.sendto(b"x", (self._address, _PORT))
            except OSError:
                pass
            time.sleep(0.0005)

    def close(self) -> None:
        self._going = False
        self._thread.join()


def _guard_cost(site: Topology, *, quick: bool) -> list[Figure]:
    """Return the time of a round trip with the guard against one without, taking turns."""
    from agent.firewall.nft import render
    from agent.host import Host
    from agent.probes import ControllerEndpoint
    from tests.agent.firewall.lab import section

    node, client = site.nodes[0], site.sites["cut"].the_client.namespace
    around = Surroundings(host=Host(), controller=(ControllerEndpoint("192.0.2.1", 8440),))
    node.namespace.run("nft", "flush", "ruleset")
    node.namespace.nft(render(section(), "normal", around))
    echo = node.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
    echo.bind(("", 5353))
    threading.Thread(target=_echo, args=(echo,), daemon=True).start()
    asking = client.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asking.connect((node.enclave[0], 5353))
    took: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(20 if quick else 60):
        guarded = bool(turn % 2)
        node.namespace.nft(
            render_guard()
            if guarded
            else "add table inet ringfence_guard\ndelete table inet ringfence_guard\n"
        )
        for _ in range(500):
            began = time.perf_counter()
            asking.send(b"x")
            asking.recv(16)
            took[guarded].append(time.perf_counter() - began)
    echo.close()
    without, with_guard = (percentile(took[each], 50) * 1e6 for each in (False, True))
    return [figure("round trip through rules and guard, p50", with_guard, "us", "without the guard", without)]


def _echo(made: socket.socket) -> None:
    while True:
        try:
            data, where = made.recvfrom(16)
            made.sendto(data, where)
        except OSError:
            return

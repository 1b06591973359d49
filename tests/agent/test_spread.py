"""Nodes that are isolated together do not all report in the same moment; the cut itself waits for nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from agent.channel import WebSocket
from agent.enrol import Identity
from agent.session import MIN_GAP_S, Session
from agent.store import Enrolled, Keys
from agent.uplink import SPREAD_S, Uplink
from contract import wire
from contract.messages import Challenge, Hello, Message, Order, Report
from tests.agent.rig import Rig, baseline, in_own_namespace, nft


def test_c05_only_an_order_that_changes_the_posture_spreads_reports(tmp_path: Path) -> None:
    def scene() -> list[str]:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        heard: list[str] = []
        rig.loop.on_posture = lambda: heard.append("changed")
        wanted = rig.kit.wanted("factory", 1)
        for number, posture in (
            (2, "normal"),
            (3, "isolated"),
            (4, "isolated"),
            (5, "normal"),
            (6, "isolated"),
        ):
            rig.direct(rig.signed(number, posture=posture, wanted=wanted))  # type: ignore[arg-type]
            cut = "table inet ringfence_cut" in nft("list", "tables")
            heard.append(f"{number} {'cut' if cut else 'open'}")
        rig.stop()
        return heard

    assert in_own_namespace(scene) == [
        "2 open",
        "changed",
        "3 cut",
        "4 cut",
        "changed",
        "5 open",
        "changed",
        "6 cut",
    ]


async def test_c05_the_report_of_such_a_node_waits_a_moment_and_never_past_its_interval() -> None:
    uplink = SimpleNamespace(due=asyncio.Event(), redial=asyncio.Event(), silent_until=0.0)
    session = _session(uplink)
    session._next = now = time.monotonic() + 100.0
    assert session._due_at() == now
    uplink.due.set()
    assert session._due_at() == session._sent_at + MIN_GAP_S, "what is to be said is said at once"
    for _ in range(100):
        Uplink._spread(cast(Uplink, uplink))
        assert 0.0 <= uplink.silent_until - time.monotonic() + 1.0 <= SPREAD_S + 1.0
    uplink.silent_until = now - 50.0
    assert session._due_at() == now - 50.0
    uplink.silent_until = now + 50.0
    assert session._due_at() == now


class _Socket:
    """What comes is put in; what was sent is kept."""

    def __init__(self) -> None:
        self.coming: asyncio.Queue[bytes] = asyncio.Queue()
        self.sent: list[bytes] = []

    def put(self, message: Message) -> None:
        """Have a message come."""
        self.coming.put_nowait(wire.encode(message))

    async def receive(self) -> bytes:
        """Return the next one."""
        return await self.coming.get()

    async def send(self, data: bytes) -> None:
        """Keep it."""
        self.sent.append(data)


async def test_c18_an_order_does_not_wait_for_the_tpm() -> None:
    """A quote takes a hardware TPM up to a second; what is about reports waits for the report, an order does not."""
    socket = _Socket()
    orders: list[tuple[bytes, int]] = []
    quoting, quoted = asyncio.Event(), asyncio.Event()
    report = Report(body=b"", quote=b"", signature=b"", pcrs={}, event_log=None, ima_log=None)

    class _Uplink(SimpleNamespace):
        async def prepare(self, *_: object) -> object:
            return SimpleNamespace(number=1)

        async def quoted(self, *_: object) -> Report:
            quoting.set()
            await quoted.wait()
            return report

        async def says_too_little(self, *_: object) -> bool:
            return False

        async def directive(self, untrusted: bytes, _: object) -> None:
            orders.append((untrusted, len(socket.sent)))

    uplink = _Uplink(due=asyncio.Event(), redial=asyncio.Event(), silent_until=0.0)
    session = _session(uplink, socket)
    session._identity = cast(Identity, SimpleNamespace(renew_at=lambda: 2.0**40))
    running = asyncio.create_task(session.run())
    await asyncio.wait_for(quoting.wait(), 60)
    socket.put(Order(directive=b"one"))
    socket.put(Order(directive=b"two"))
    socket.put(Challenge(nonce=bytes([7]) * 32))
    socket.put(Order(directive=b"three"))
    await _until(lambda: len(orders) == 2)
    assert orders == [(b"one", 0), (b"two", 0)]
    assert session._nonce == bytes(32), "the challenge waits: this report is over the nonce before it"
    quoting.clear()
    quoted.set()
    await asyncio.wait_for(quoting.wait(), 60)
    await _until(lambda: len(socket.sent) == 2)
    await _until(lambda: len(orders) == 3)
    assert orders[2] == (b"three", orders[2][1]) and orders[2][1] >= 1
    running.cancel()
    await asyncio.wait({running}, timeout=60)
    assert running.cancelled()


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0.005)


def _session(uplink: SimpleNamespace, socket: _Socket | None = None) -> Session:
    return Session(
        cast(Uplink, uplink),
        cast(WebSocket, socket),
        Hello(node="press-1", nonce=bytes(32), interval_s=60.0),
        1,
        enrolled=cast(Enrolled, None),
        identity=cast(Identity, None),
        keys=cast(Keys, None),
    )

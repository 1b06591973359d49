"""From a USB device's uevent to the switch set, by the agent's own loop; alone, and in a storm of a thousand uevents a second.

The uevent is the kernel's own, in a network namespace; the tree in which the device appears is one of plain files
(no USB hardware on the machines that measure), so the kernel's part of binding drivers is not in the figure. Reference: a bare
program that waits for the same uevent and writes the same switch.
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agent import probes
from bench.figures import Figure, figure, percentile
from tests.agent.rig import Rig, baseline
from tests.parts.namespace import Namespace
from tests.parts.uevents import Announcer
from tests.parts.usbtree import KEYBOARD, STORAGE_STICK, Device, UsbTree

_OURS = Device(0x046D, 0xC31C, "Keyboard", "K1", (KEYBOARD,))
_SECTION = """
[usb]
[[usb.allow]]
vendor = "046d"
interfaces = ["03:01:01"]
reason = "bench"
"""
_OTHERS = 6
_QUIET_S = 1.1
_STORM_PER_S = 1000.0


def run(*, quick: bool) -> list[Figure]:
    """Plug one keyboard in 100 times (10 when `quick`) beside six other devices, and again under a storm."""
    times = 10 if quick else 100
    with tempfile.TemporaryDirectory() as folder:
        kernel = Namespace("bench-usb")
        tree = UsbTree(Path(folder) / "sys")
        tree.run()
        announcer = Announcer(kernel)
        try:
            print(f"  {times} times each: bare, agent, agent in a storm", flush=True)
            bare_ms = _bare(kernel, tree, announcer, times)
            alone_ms, storm_ms = _agent(kernel, tree, announcer, Path(folder), times)
        finally:
            announcer.close()
            tree.close()
            kernel.remove()
    bare = percentile(bare_ms, 50)
    reference = "bare uevent and write, p50"
    return [
        figure("USB uevent to switch set, p50", percentile(alone_ms, 50), "ms", reference, bare),
        figure("USB uevent to switch set, p99", percentile(alone_ms, 99), "ms", reference, bare),
        figure(
            "USB uevent to switch set among 1,000 uevents a second, p99",
            percentile(storm_ms, 99),
            "ms",
            "promise",
            1000.0,
        ),
    ]


def _agent(
    kernel: Namespace, tree: UsbTree, announcer: Announcer, folder: Path, times: int
) -> tuple[list[float], list[float]]:
    rig = Rig(folder)
    kernel.inside(rig.start)
    kernel.inside(lambda: rig.adopt(baseline(1, 80, extra=_SECTION), 1, 1))
    for port in range(_OTHERS):
        tree.plug(STORAGE_STICK, port=str(port + 2))
    events = kernel.inside(lambda: rig.loop.host.watch_devices(probes.subsystems(), rig.loop.wake))
    try:
        alone_ms = [_once(tree, announcer) for _ in range(times)]
        over = threading.Event()

        def storm() -> None:
            while not over.is_set():
                announcer.send("usb", times=100, per_s=_STORM_PER_S)

        thread = threading.Thread(target=storm)
        thread.start()
        time.sleep(_QUIET_S)
        try:
            storm_ms = [_once(tree, announcer) for _ in range(max(10, times // 4))]
        finally:
            over.set()
            thread.join()
    finally:
        events.stop()
        rig.stop()
    return alone_ms, storm_ms


def _bare(kernel: Namespace, tree: UsbTree, announcer: Announcer, times: int) -> list[float]:
    hub = tree.root / "bus/usb/devices/usb1/authorized_default"
    hub.write_text("0")
    waiting = kernel.inside(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15))
    waiting.bind((0, 1))
    waiting.settimeout(0.5)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            try:
                waiting.recv(8192)
            except TimeoutError:
                continue
            (tree.root / "bus/usb/devices/1-1/authorized").write_text("1")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return [_once(tree, announcer, pause_s=0.01) for _ in range(times)]
    finally:
        over.set()
        thread.join()
        waiting.close()


def _once(tree: UsbTree, announcer: Announcer, *, pause_s: float = _QUIET_S) -> float:
    """Plug in, announce, wait for the switch; return milliseconds. Then pull out and let it become quiet."""
    time.sleep(pause_s)
    name = tree.plug(_OURS)
    begun = time.perf_counter()
    announcer.send("usb")
    _wait(lambda: tree.authorized(name))
    took_ms = (time.perf_counter() - begun) * 1000
    tree.unplug(name)
    return took_ms


def _wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("the switch was not set within 5 s")
        time.sleep(0.0002)

"""Somebody outside who tries the guest's open listener (`image.LISTENER`) again and again, by QEMU's forwarded port.

QEMU takes every connection on its own; only what the listener says shows that the guest let it through. A try stays open for
a while, so that TCP asks again for it meanwhile: a gap shorter than the time between two tries is seen as well.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from types import TracebackType

EVERY_S = 0.2
KEPT_S = 15.0


class Knocking:
    """Tries as long as the block lasts. `tried`: what QEMU took; `answered`: what the guest let through."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.tried = self.answered = 0

    def __enter__(self) -> Knocking:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        waiting: dict[socket.socket, float] = {}
        while not self._end.wait(EVERY_S):
            try:
                one = socket.create_connection(("127.0.0.1", self._port), 1)
            except OSError:
                pass  # the guest is switched off
            else:
                waiting[one] = time.monotonic()
                self.tried += 1
            said, _, _ = select.select(list(waiting), [], [], 0)
            for each in said:
                self.answered += self._says_open(each)
            for each in {*said, *(s for s, since in waiting.items() if time.monotonic() - since > KEPT_S)}:
                del waiting[each]
                each.close()
        for each in waiting:
            each.close()

    @staticmethod
    def _says_open(one: socket.socket) -> bool:
        try:
            return one.recv(16).startswith(b"open")
        except OSError:
            return False


def is_open(port: int, within_s: float) -> bool:
    """Whether the listener answers within that time."""
    end = time.monotonic() + within_s
    with Knocking(port) as knocking:
        while not knocking.answered and time.monotonic() < end:
            time.sleep(EVERY_S)
    return knocking.answered > 0


def answers(port: int, within_s: float) -> bool:
    """Whether the listener answers a patient caller within that time: one call at a time, for a guest that is slow and should be open."""
    end = time.monotonic() + within_s
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as one:
                one.settimeout(left)
                if one.recv(16).startswith(b"open"):
                    return True
        except OSError:
            pass  # refused: nobody listens yet
        time.sleep(EVERY_S)
    return False

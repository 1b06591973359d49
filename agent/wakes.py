"""What other threads want of the machine's thread: sections to look at again, and jobs to do. Wakes carry no data.

Refuses: to decide what comes first (agent.loop does).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Wakes:
    """Any thread may `wake`, `call` and `stop`; the rest is for the machine's thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._due: set[str] = set()
        self._all_due = False
        self._stopping = False

    def wake(self, section: str | None = None) -> None:
        """Look again at one section, or at all."""
        with self._condition:
            if section is None:
                self._all_due = True
            else:
                self._due.add(section)
            self._condition.notify()

    def call(self, job: Callable[[], T]) -> Future[T]:
        """Have `job` done. What it raises reaches the caller and ends the machine's thread."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:
                    future.set_exception(error)
                    raise

        with self._condition:
            self._jobs.append(run)
            self._condition.notify()
        return future

    def stop(self) -> None:
        """End the waiting."""
        with self._condition:
            self._stopping = True
            self._condition.notify()

    def wait(self, longest_s: float) -> bool:
        """Wait until something is wanted, or for so long; False when it is time to stop."""
        with self._condition:
            if not (self._jobs or self._due or self._all_due or self._stopping):
                self._condition.wait(longest_s)
            return not self._stopping

    def any(self) -> bool:
        """Tell whether something more urgent than a look may be waiting. Costs next to nothing."""
        return bool(self._due or self._jobs)

    def job(self) -> Callable[[], None] | None:
        """Take the oldest job."""
        with self._condition:
            return self._jobs.popleft() if self._jobs else None

    def take(self, section: str) -> bool:
        """Tell whether a section is due, and take it off."""
        with self._condition:
            due = section in self._due
            self._due.discard(section)
        return due

    def take_all(self) -> set[str] | None:
        """Take every section that is due; None: all of them."""
        with self._condition:
            due, self._due = self._due, set()
            every, self._all_due = self._all_due, False
        return None if every else due

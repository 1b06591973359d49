"""The worker processes of a fleet, and the plays they perform together."""

from __future__ import annotations

import queue
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.parts.simulator import Identity, save_fleet
from tests.simulate.wire import Play, Result, Said, Setup, Task, checked, joined

TREE = Path(__file__).resolve().parents[2]
EVENT_LOG = TREE / "tests/vectors/good-rsa/eventlog.bin"


class Broken(RuntimeError):
    """A worker ended, or could not play what it was told."""


class _Process:
    """One worker and what it says, sorted by play."""

    def __init__(self, setup: Setup, log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.simulate.worker"],
                cwd=TREE,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._said: dict[int, queue.SimpleQueue[Said | None]] = {}
        self._lock = threading.Lock()
        self._send(msgspec.json.encode(setup))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def begin(self, task: Task) -> None:
        """Pass a play on."""
        self._of(task.number)
        self._send(msgspec.json.encode(task))

    def said(self, number: int, timeout_s: float) -> Said:
        """Wait for the next word about a play. Raises Broken, and when nothing is said for too long."""
        try:
            said = self._of(number).get(timeout=timeout_s)
        except queue.Empty:
            raise Broken(f"nothing was said for {timeout_s:g} s") from None
        if said is None or said.fault:
            raise Broken(said.fault if said else self._log.read_text()[-2000:] or "a worker ended")
        return said

    def end(self) -> None:
        """Close its input; it ends by itself, or is made to."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _of(self, number: int) -> queue.SimpleQueue[Said | None]:
        with self._lock:
            return self._said.setdefault(number, queue.SimpleQueue())

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Broken(self._log.read_text()[-2000:]) from None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = msgspec.json.decode(line, type=Said)
            self._of(said.number).put(said)
        with self._lock:
            for each in self._said.values():
                each.put(None)


class Playing:
    """A play that has begun on every worker."""

    def __init__(self, workers: Sequence[_Process], number: int, limit_s: float) -> None:
        self._workers, self._number, self._limit_s = workers, number, limit_s

    def result(self) -> Result:
        """Wait for its end and return what all workers saw. Raises Broken."""
        said = [worker.said(self._number, self._limit_s) for worker in self._workers]
        return joined([each.result for each in said if each.result is not None])


class Swarm:
    """A fleet in a few processes, for as long as the block lasts; never for longer than `limit_s`."""

    def __init__(
        self,
        urls: Sequence[str],
        ca: str,
        fleet: Sequence[Identity],
        *,
        workers: int = 2,
        limit_s: float = 900.0,
    ) -> None:
        """`fleet`: enrolled nodes. Raises ValueError for a URL that is not on loopback."""
        self._urls, self._ca, self._fleet = [checked(url) for url in urls], ca, fleet
        self._count, self._limit_s = workers, limit_s
        self._workers: list[_Process] = []
        self._folder = tempfile.TemporaryDirectory(prefix="ringfence-swarm-")
        self._number = 0

    def __enter__(self) -> Swarm:
        folder = Path(self._folder.name)
        for share in range(self._count):
            path = folder / f"fleet-{share}"
            save_fleet(self._fleet[share :: self._count], path)
            setup = Setup(self._urls, self._ca, str(path), str(EVENT_LOG), share, self._limit_s)
            self._workers.append(_Process(setup, folder / f"log-{share}"))
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        self._folder.cleanup()

    def begin(self, play: Play) -> Playing:
        """Have all workers begin, and return once all have."""
        self._number += 1
        for worker in self._workers:
            worker.begin(Task(self._number, play))
        for worker in self._workers:
            worker.said(self._number, self._limit_s)
        return Playing(self._workers, self._number, self._limit_s)

    def play(self, play: Play) -> Result:
        """Play to the end."""
        return self.begin(play).result()


def raise_limits() -> None:
    """Let this process, and those it starts, open as many files as it may: one for each node."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

"""Signed files are fetched and verified by a process of their own, which ends with the work.

It happens once in weeks, and the library for it is as big as all probes together: so `ringfence-agent verify` loads it
and the process that stays does not. The child opens no connection: it asks this side for each file, over its standard
input and output, and ends with a verdict. What comes back is looked at once more against the order (`trusted_baseline`).

Refuses what `contract.trust` refuses; a child that ends early, hangs or says something else is "try again".
Relies on: the child being this very program, started from where this one was; `agent.frames`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, cast

from agent.exits import outermost
from agent.frames import receive, send
from contract.directive import WantedBaseline
from contract.errors import Rejected
from contract.messages import Message
from contract.trusted import TrustedBaseline, target_path, trusted_baseline, verified_targets

if TYPE_CHECKING:
    from agent.updates import Fetch

_LONGEST_S = 300.0
"""For everything, the files' way included; then the child is ended."""


class Begin(Message, frozen=True, tag="begin"):
    """First of all, to the child."""

    state_dir: str
    root_metadata: bytes | None
    wanted: WantedBaseline
    now: float
    highest_version: int


class Ask(Message, frozen=True, tag="ask"):
    """From the child: a file of the controller."""

    path: str
    max_bytes: int


class Got(Message, frozen=True, tag="got"):
    """To the child: the file."""

    content: bytes


class Missing(Message, frozen=True, tag="missing"):
    """To the child: there is no such file."""

    path: str


class Failed(Message, frozen=True, tag="failed"):
    """Either way: try again later."""

    detail: str


class Verified(Message, frozen=True, tag="verified"):
    """From the child, last: the baseline, and its SHA-256 (hex) as it is signed."""

    sha256: str
    raw: bytes


class Refused(Message, frozen=True, tag="refused"):
    """From the child, last: it must not be trusted."""

    code: str
    detail: str


_FROM_CHILD = cast("type[Ask | Verified | Refused | Failed]", Ask | Verified | Refused | Failed)
_FILE = cast("type[Got | Missing | Failed]", Got | Missing | Failed)


class SignedFiles:
    """The node's signed files below one state folder. `get` blocks; one child at a time."""

    def __init__(self, state_dir: Path, fetch: Fetch, *, root_metadata: bytes | None) -> None:
        """`root_metadata` as `agent.updates.Updates` takes it."""
        self._state_dir = state_dir.resolve()
        self._fetch = fetch
        self._root_metadata = root_metadata
        self._lock = threading.Lock()

    def get(self, wanted: WantedBaseline, *, now: float, highest_version: int = 0) -> TrustedBaseline:
        """As `agent.updates.Updates.get`, which the child calls. Raises Rejected, OSError to try again."""
        begin = Begin(
            state_dir=str(self._state_dir),
            root_metadata=self._root_metadata,
            wanted=wanted,
            now=now,
            highest_version=highest_version,
        )
        with self._lock:
            last = self._talked(begin)
        if isinstance(last, Refused):
            raise Rejected(last.code, last.detail)
        if not isinstance(last, Verified):
            raise OSError(last.detail)
        signed = {target_path(wanted.name, wanted.version): (len(last.raw), last.sha256)}
        targets = verified_targets(root_version=0, version=0, entries=signed, raw=b"")
        return trusted_baseline(targets, wanted, last.raw, highest_version=highest_version)

    def _talked(self, begin: Begin) -> Verified | Refused | Failed:
        with subprocess.Popen(
            _command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(), cwd="/"
        ) as child:
            too_long = threading.Timer(_LONGEST_S, child.kill)
            too_long.start()
            try:
                assert child.stdin is not None and child.stdout is not None  # noqa: S101  (pipes, as asked for)
                send(child.stdin, begin)
                while isinstance(said := receive(child.stdout, _FROM_CHILD), Ask):
                    send(child.stdin, self._fetched(said))
                return said
            finally:
                too_long.cancel()
                child.kill()

    def _fetched(self, asked: Ask) -> Got | Missing | Failed:
        try:
            return Got(content=self._fetch(asked.path, asked.max_bytes))
        except FileNotFoundError:
            return Missing(path=asked.path)
        except OSError as error:
            return Failed(detail=str(error))


def main() -> NoReturn:
    """Be the child: one baseline, then the end."""
    into, out = sys.stdin.buffer, sys.stdout.buffer
    with outermost():
        send(out, _verdict(into, out))
        sys.exit(0)


def _verdict(into: IO[bytes], out: IO[bytes]) -> Verified | Refused | Failed:
    from agent.updates import Updates  # the child alone is there for it

    def fetch(path: str, max_bytes: int) -> bytes:
        send(out, Ask(path=path, max_bytes=max_bytes))
        said = receive(into, _FILE)
        if isinstance(said, Missing):
            raise FileNotFoundError(path)
        if isinstance(said, Failed):
            raise OSError(said.detail)
        return said.content

    begin = receive(into, Begin)
    try:
        updates = Updates(Path(begin.state_dir), fetch, root_metadata=begin.root_metadata)
        trusted = updates.get(begin.wanted, now=begin.now, highest_version=begin.highest_version)
    except Rejected as refused:
        return Refused(code=refused.code, detail=refused.detail)
    except OSError as error:
        return Failed(detail=str(error))
    return Verified(sha256=trusted.sha256, raw=trusted.raw)


def _command() -> list[str]:
    """Return what starts the child: in a frozen program the program itself, else the module by the same interpreter."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "verify"]
    return [sys.executable, "-P", "-m", "agent.start", "verify"]


def _environment() -> dict[str, str]:
    """Return this process's own, with the code that this process runs."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}

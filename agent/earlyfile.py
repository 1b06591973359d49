"""`early.nft` in the state folder: what the node is held to at its next boot, as text that plain `nft` loads.

The fence before Python (packaging/os/agent/fence) loads it, and the packaged lock-down (`packaged`) where it is missing, cut
or refused. `agent.early` comes after that and decides anew, so the file decides nothing: it is what `agent.early` makes of the
state, guard and rules. ARP and the cut of interfaces are left to that step, since a kernel may refuse those and take the rest.

Refuses to leave an old one behind: where a new one cannot be written, the old one goes, and the node boots into lock-down.
Relies on: the worker thread alone calling, after the machine was touched; the sum finds faults and is no defence against root.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable

from agent import early
from agent.config import AgentConfig
from agent.firewall.guard import render_guard
from agent.firewall.nft import render_lockdown
from agent.responses import Told
from agent.store import State, replace_file, sync_folder

NAME = "early.nft"
"""Also in packaging/os/agent/fence."""
_SUM = "# sha256 "
_UNPRINTED = re.compile(r"[^A-Za-z0-9 .,:;/()_-]")
"""A reason may hold anything: of the text that is loaded it gets no more than a comment, and of letters no more than these."""
_MOST_SAID = 200
_NEVER = (-1,)
"""What no file looks like: the next look writes it anew."""
_OFFLINE_STEP_S = 600.0
"""Time offline decides when its limit is reached, and grows with every pass before that."""


class EarlyFile:
    """The file of one node. `tell` takes events; it must not raise."""

    def __init__(self, config: AgentConfig, tell: Callable[[Told], object]) -> None:
        self._config = config
        self._tell = tell
        self._path = config.state / NAME
        self._inputs: tuple[object, ...] = ()
        self._seen: tuple[int, ...] = ()
        self._unwritten = ""

    def follow(self, state: State) -> None:
        """Write the file anew where the state asks for another one, or somebody has touched it. (worker)

        Reading a big baseline takes a tenth of a second, so what the text is made of is compared first.
        """
        inputs = _inputs(state)
        if inputs != self._inputs or (not self._unwritten and self._stat() != self._seen):
            self._inputs = inputs
            self._write(text_of(early.of_state(self._config, state)))
        elif self._unwritten:
            self._write(self._unwritten)

    def _write(self, text: str) -> None:
        content = text.encode()
        if self._stands(content):
            self._unwritten = ""
            return
        try:
            replace_file(self._path, content)
        except OSError as error:
            if not self._unwritten:
                summary = f"{self._path}: {error.strerror}; {self._removed()}"
                self._tell(Told(kind="early.unwritable", severity="warning", summary=summary))
            self._unwritten = text
            return
        self._unwritten = ""
        self._stands(content)

    def _removed(self) -> str:
        """Take the old one away, which may open more than is right now; say for people what the next boot begins with."""
        try:
            self._path.unlink(missing_ok=True)
            sync_folder(self._path.parent)
        except OSError:
            return "until it can be written, the next boot begins with what stands there"
        return "until it can be written, the next boot begins with lock-down"

    def _stat(self) -> tuple[int, ...]:
        """Return by what a change of the file is seen; empty where it is no plain file of ours."""
        try:
            found = self._path.lstat()
        except OSError:
            return ()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return ()
        return (found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def _stands(self, content: bytes) -> bool:
        """Whether the file is as it is to be. What is remembered of it was looked at before it was read: who touches it as it
        is written is found now, or by the next look.
        """
        seen = self._stat()
        try:
            right = bool(seen) and stat.S_IMODE(seen[1]) == 0o600 and self._path.read_bytes() == content
        except OSError:
            right = False
        self._seen = seen if right else _NEVER
        return right


def _inputs(state: State) -> tuple[object, ...]:
    """Return what `agent.early` makes the rules of; the rest of the state changes more often and is of no consequence."""
    ordered = state.directive
    return (
        state.last_good,
        None if ordered is None else (ordered.posture, ordered.reason, ordered.responses),
        state.self_isolated,
        state.damaged,
        state.offline_s // _OFFLINE_STEP_S,
        state.controller_addresses,
    )


def text_of(made: early.Rules) -> str:
    """Return the whole file: what it is, the rules (none, where the baseline only observes), and the sum of all that."""
    said = _UNPRINTED.sub("?", made.said)[:_MOST_SAID]
    text = f"# {said}\n# Written by Ringfence for the next boot, whenever that changes.\n{made.text}"
    return f"{text}{_SUM}{hashlib.sha256(text.encode()).hexdigest()}\n"


def packaged() -> str:
    """Return the lock-down that comes with the package: it knows no controller, so it lets nothing through."""
    head = "# lock-down: nothing is let through. Part of the package, made by the code that makes the agent's own.\n"
    return head + render_guard() + render_lockdown(early.Around(()))

"""A network namespace with its own interfaces, and sockets and processes inside it.

Nothing is ever created in the machine's own namespace: links are made from inside, end to end. A run's
namespaces carry the process id of the run, so what a killed run left behind is found and removed by the next.
Relies on root, `ip` (iproute2) and setns(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")

_PREFIX = "rf-"
_NETNS = Path("/run/netns")
_REGISTER = Path("/run/ringfence-parts")
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """Ask the kernel to end this process when the run that started it ends, however that ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _start_time(pid: int) -> str:
    """Return the start time of a process in clock ticks (proc(5), stat field 22), or "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _register() -> None:
    """Note that this process owns what carries its number; whole at once, since other runs read it."""
    _REGISTER.mkdir(exist_ok=True)
    mine = _REGISTER / str(os.getpid())
    temporary = _REGISTER / f"{os.getpid()}.new"
    temporary.write_text(_start_time(os.getpid()))
    temporary.rename(mine)


def ip(*argv: str) -> str:
    """Run `ip` and return what it printed; raises CalledProcessError with its words in `stderr`."""
    return subprocess.run(["ip", *argv], check=True, capture_output=True, text=True).stdout


def remove_leftovers() -> list[str]:
    """Remove namespaces and processes of runs that are no longer alive; return the names of what was removed."""
    _REGISTER.mkdir(exist_ok=True)
    with (_REGISTER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of one run begin at the same time
        return _removed_leftovers()


def _removed_leftovers() -> list[str]:
    removed = []
    for path in sorted(_NETNS.glob(f"{_PREFIX}*")) if _NETNS.is_dir() else []:
        pid_text = path.name.removeprefix(_PREFIX).partition("-")[0]
        if not pid_text.isdigit():
            continue
        started = _start_time(int(pid_text))
        register = _REGISTER / pid_text
        known = register.read_text() if register.exists() else ""
        if started and started == known:
            continue
        _remove(path.name)
        removed.append(path.name)
    for register in _REGISTER.iterdir():
        if register.name.isdigit() and _start_time(int(register.name)) != register.read_text():
            register.unlink(missing_ok=True)
    return removed


def _remove(name: str) -> None:
    for _ in range(20):
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Namespace:
    """One network namespace of this run."""

    def __init__(self, label: str) -> None:
        """Create it, loopback up. `label` is for people; two topologies of one process may use the same."""
        _register()
        self.label = label
        self.name = f"{_PREFIX}{os.getpid()}-{next(_numbers)}-{label}"
        # Not `ip -n`, which remounts / and /sys: in a plain chroot / is no mount point.
        self._enter = ["nsenter", f"--net={_NETNS / self.name}"]
        ip("netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *argv: str) -> str:
        """Run `ip` inside; raises CalledProcessError with its words in `stderr`."""
        return subprocess.run([*self._enter, "ip", *argv], check=True, capture_output=True, text=True).stdout

    def batch(self, lines: Sequence[str]) -> None:
        """Run many `ip` commands in one process; raises RuntimeError with the words of `ip`."""
        done = subprocess.run(
            [*self._enter, "ip", "-batch", "-"], input="\n".join(lines), capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {done.stderr.strip()}\n" + "\n".join(lines))

    def sysctl(self, **values: str) -> None:
        """Set sysctls of this namespace; "__" in a key stands for ".", "/" is not needed."""

        def write() -> None:
            for key, value in values.items():
                Path("/proc/sys", *key.split("__")).write_text(value)

        self.inside(write)

    def inside(self, work: Callable[[], T]) -> T:
        """Call `work` in a thread that has entered the namespace. Sockets made there stay there for life."""
        result: list[T] = []
        failure: list[BaseException] = []

        def body() -> None:
            try:
                with (_NETNS / self.name).open() as handle:
                    if _libc.setns(handle.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"setns {self.name}")
                result.append(work())
            except BaseException as error:  # handed to the caller's thread
                failure.append(error)

        thread = threading.Thread(target=body, name=f"in {self.name}")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Return a socket that lives in the namespace and may be used from any thread."""
        return self.inside(lambda: socket.socket(family, kind))

    def run(
        self, *argv: str | Path, text: str | None = None, check: bool = True, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside and wait; raises RuntimeError with its words when it fails and `check`."""
        done = subprocess.run(
            [*self._enter, *map(str, argv)],
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise RuntimeError(
                f"{self.label}: {' '.join(map(str, argv))}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done

    def start(
        self, *argv: str | Path, log: Path | IO[bytes] | None = None, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program inside; its output goes to the end of `log`.

        It dies with the thread that called (prctl(2), PR_SET_PDEATHSIG): call from one that lives long enough.
        """
        sink: int | IO[bytes] = subprocess.DEVNULL
        with contextlib.ExitStack() as stack:
            if isinstance(log, Path):
                sink = stack.enter_context(log.open("ab"))
            elif log is not None:
                sink = log
            return subprocess.Popen(
                [*self._enter, *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **(env or {})},
                preexec_fn=_die_with_parent,  # noqa: PLW1509  (only prctl, in a single-purpose process)
            )

    def nft(self, text: str) -> None:
        """Load nft text as a person at the keyboard would, with the `nft` program."""
        self.run("nft", "-f", "-", text=text)

    def ruleset(self) -> str:
        """Return what the kernel holds, in the words of the `nft` program (our independent witness)."""
        return self.run("nft", "-s", "list", "ruleset").stdout

    def uevent(self) -> None:
        """Make the kernel announce a device in this namespace, as plugging one in does."""
        self.batch(["link add wake0 type bridge", "link del wake0"])

    def remove(self) -> None:
        """End every process inside and delete the namespace with its links."""
        _remove(self.name)

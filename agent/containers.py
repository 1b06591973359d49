"""Which containers run, by the runtimes' own records, and what they may do, by the kernel's.

Read are the files in which Podman and CRI-O (containers/storage), Docker and containerd keep what they run: no program is started
and no daemon is asked, so none has to be up, and looking wakes none. What a container may do is asked of the kernel for
its first process (namespaces, capabilities, user, mounts): a record can be edited, `/proc` can not.

Refuses: records that do not parse (a failed look, never an empty list), to signal a process that is not the container's any
more. Not seen: rootless containers' images (their records lie in home folders; `unnamed` shows that they are there).
"""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec

MAX_RECORD_BYTES = 32 * 1024 * 1024
_STORAGE, _STORAGE_RUN = "/var/lib/containers/storage", "/run/containers/storage"
_DOCKER = "/var/lib/docker"
_CONTAINERD = "/run/containerd/io.containerd.runtime.v2.task"
_SOCKETS = (
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
)
_NAMESPACES = {"network": "net", "pid": "pid", "ipc": "ipc", "uts": "uts"}
_DEATH_S = 0.2
MAX_LOOKED_AT = 16
"""Processes of a container that are looked at before it is ended."""


class Container(NamedTuple):
    """One that runs."""

    runtime: str
    id: str
    name: str
    image: str
    """As it was asked for: `registry/repository:tag`; may be empty."""
    digests: frozenset[str]
    """`sha256:...` of the image: its id, and its manifest where that is recorded."""
    pid: int


class Powers(NamedTuple):
    """What a container's first process may do."""

    namespaces: frozenset[str]
    """Those of `network`, `pid`, `ipc`, `uts` that it shares with the machine."""
    own_users: bool
    """It has a user namespace of its own, where capabilities mean little outside."""
    capabilities: int
    """Bounding and effective set."""
    all_capabilities: bool
    uid: int
    sockets: tuple[str, ...]
    """Sockets of container runtimes that it can reach through a mount."""
    host_root: bool
    """The machine's root file system is mounted in it."""


class ContainerTree:
    """The containers below one root, and the processes of one procfs."""

    def __init__(
        self,
        root: Path,
        proc_root: Path,
        breathe: Callable[[], None] = lambda: None,
        ending: Callable[[Iterable[int]], AbstractContextManager[None]] = lambda pids: nullcontext(),
    ) -> None:
        self._root = root
        self._proc = proc_root
        self._breathe = breathe
        self._ending = ending
        """Looks at processes that are about to be ended."""

    def running(self) -> list[Container]:
        """Return every container that a runtime records and whose process lives. Raises OSError."""
        found: dict[str, Container] = {}
        for look in (self._storage, self._docker, self._containerd):
            for each in look():
                self._breathe()
                if self._lives(each.pid):
                    found.setdefault(each.id, each)  # what Docker runs, containerd records as well
        return sorted(found.values(), key=lambda each: (each.runtime, each.name, each.id))

    def powers(self, container: Container) -> Powers:
        """Return what a container may do. Raises OSError, also if it has ended."""
        pid = str(container.pid)
        shared = {name for name, kind in _NAMESPACES.items() if self._same_namespace(pid, kind)}
        status = self._status(pid)
        bounding = int(status["CapBnd"], 16)
        sockets, host_root = self._mounted(pid)
        return Powers(
            frozenset(shared),
            not self._same_namespace(pid, "user"),
            bounding | int(status["CapEff"], 16),
            bounding == int(self._status("1")["CapBnd"], 16),
            int(status["Uid"].split()[1]),
            sockets,
            host_root,
        )

    def unnamed(self, known: list[Container]) -> list[int]:
        """Return the first process of each PID namespace that is neither the machine's nor a known container's."""
        named = {self._namespace(str(each.pid), "pid") for each in known} | {self._ours("pid")}
        found: dict[str, int] = {}
        for pid in sorted(int(name) for name in os.listdir(self._proc) if name.isdigit()):  # noqa: PTH208
            self._breathe()
            namespace = self._namespace(str(pid), "pid")
            if namespace and namespace not in named:
                found.setdefault(namespace, pid)
        return sorted(found.values())

    def stop(self, container: Container) -> None:
        """Kill a container, if it still is that one. Raises OSError.

        By its cgroup where it has one of its own, else by its first process, with which its PID namespace ends.
        """
        handle = os.pidfd_open(container.pid)
        try:
            if container not in self.running():
                return
            kill = self._cgroup_kill(container)
            with self._ending([container.pid, *_others_in(kill, container.pid)]):
                if kill is not None:
                    kill.write_text("1")
                else:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], _DEATH_S)
        finally:
            os.close(handle)

    # ---- runtimes

    def _storage(self) -> Iterator[Container]:
        base = self._at(_STORAGE)
        for listed in sorted(base.glob("*-containers/containers.json")):
            driver = listed.parent.name.removesuffix("-containers")
            images = {_text(each, "id"): each for each in _table_list(base / f"{driver}-images/images.json")}
            for each in _table_list(listed):
                number = _text(each, "id")
                pid = self._pid_in(
                    self._at(_STORAGE_RUN) / f"{driver}-containers" / number / "userdata/pidfile"
                )
                if pid is None:
                    continue
                image = images.get(_text(each, "image"), {})
                digests = {f"sha256:{_text(each, 'image')}", _text(image, "digest")}
                digests |= {name.removeprefix("manifest-") for name in _texts(image, "big-data-names")}
                metadata = _parsed(_text(each, "metadata").encode() or b"{}", listed)
                name = next(iter(_texts(each, "names")), number[:12])
                asked = _text(metadata, "image-name") or next(iter(_texts(image, "names")), "")
                yield Container("podman", number, name, asked, _digests(digests), pid)

    def _docker(self) -> Iterator[Container]:
        base = self._at(_DOCKER)
        manifests: dict[str, set[str]] = {}
        for record in base.glob("image/*/repositories.json"):
            repositories = _table(_table_of(record), "Repositories")
            for name in repositories:
                for reference, number in _table(repositories, name).items():
                    if "@" in reference:
                        manifests.setdefault(str(number), set()).add(reference.partition("@")[2])
        for record in sorted(base.glob("containers/*/config.v2.json")):
            self._breathe()
            config = _table_of(record)
            state = _table(config, "State")
            pid = state.get("Pid")
            if state.get("Running") is not True or not isinstance(pid, int):
                continue
            image = _text(config, "Image")
            digests = {image, _text(_table(config, "ImageManifest"), "digest")} | manifests.get(image, set())
            name = _text(config, "Name").lstrip("/")
            asked = _text(_table(config, "Config"), "Image")
            yield Container("docker", record.parent.name, name, asked, _digests(digests), pid)

    def _containerd(self) -> Iterator[Container]:
        for record in sorted(self._at(_CONTAINERD).glob("*/*/init.pid")):
            pid = self._pid_in(record)
            if pid is None:
                continue
            notes = _table(_table_of(record.with_name("config.json")), "annotations")
            asked = _text(notes, "io.kubernetes.cri.image-name") or _text(notes, "nerdctl/image-ref")
            kind = _text(notes, "io.kubernetes.cri.container-type")
            name = _text(notes, "io.kubernetes.cri.container-name") or _text(notes, "nerdctl/name")
            if kind == "sandbox":
                name = f"sandbox of {_text(notes, 'io.kubernetes.cri.sandbox-name')}"
            digest = asked.partition("@")[2]
            number = record.parent.name
            yield Container("containerd", number, name or number[:12], asked, _digests({digest}), pid)

    # ---- the kernel

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def _lives(self, pid: int) -> bool:
        """True if the process is there and has a mount namespace of its own: a number used anew has the machine's."""
        own = self._namespace(str(pid), "mnt")
        return bool(own) and own != self._ours("mnt")

    def _namespace(self, pid: str, kind: str) -> str:
        try:
            return os.readlink(self._proc / pid / "ns" / kind)  # noqa: PTH115
        except OSError:
            return ""

    def _ours(self, kind: str) -> str:
        """Return the machine's namespace: process 1's, or the agent's own where it may not look at process 1."""
        return self._namespace("1", kind) or self._namespace("self", kind)

    def _same_namespace(self, pid: str, kind: str) -> bool:
        own = self._namespace(pid, kind)
        if not own:
            raise ProcessLookupError(errno.ESRCH, "it has ended, or is hidden")
        return own == self._ours(kind)

    def _status(self, pid: str) -> dict[str, str]:
        lines = (self._proc / pid / "status").read_text("utf-8", "replace").splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def _pid_in(self, path: Path) -> int | None:
        try:
            text = path.read_text("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        return int(text) if text.isdigit() else None

    def _mounted(self, pid: str) -> tuple[tuple[str, ...], bool]:
        """Return the runtimes' sockets within reach of a process's mounts, and whether the machine's root is."""
        host, own = self._mounts("1"), self._mounts(pid)
        reach = []
        for socket in _SOCKETS:
            real = os.path.realpath(self._at(socket))
            place = _place(host, real) if os.path.exists(real) else None  # noqa: PTH110
            if place and any(device == place[0] and _within(place[1], base) for device, base, _ in own):
                reach.append(socket)
        root = _place(host, "/")
        return tuple(reach), any((device, base) == root for device, base, _ in own)

    def _mounts(self, pid: str) -> list[tuple[str, str, str]]:
        """Return (device, its folder, mount point) of each mount of a process."""
        lines = (self._proc / pid / "mountinfo").read_text("utf-8", "surrogateescape").splitlines()
        return [(fields[2], fields[3], fields[4]) for fields in (line.split(" ") for line in lines)]

    def _cgroup_kill(self, container: Container) -> Path | None:
        for line in (self._proc / str(container.pid) / "cgroup").read_text("utf-8", "replace").splitlines():
            number, _, path = line.split(":", 2)
            if number == "0" and container.id in path and ".." not in path:
                kill = Path("/sys/fs/cgroup") / path.lstrip("/") / "cgroup.kill"
                return kill if kill.exists() else None
        return None


def _others_in(kill: Path | None, pid: int) -> list[int]:
    """Return other processes of the control group that will be killed, MAX_LOOKED_AT of them at most."""
    if kill is None:
        return []
    try:
        listed = [int(each) for each in kill.with_name("cgroup.procs").read_text().split()]
    except (OSError, ValueError):
        return []
    return [each for each in listed if each not in (0, pid)][:MAX_LOOKED_AT]


def _place(mounts: list[tuple[str, str, str]], path: str) -> tuple[str, str] | None:
    """Return the device and the path on it of a path, by the mount that is nearest above it, the last one made."""
    best: tuple[int, str, str] | None = None
    for device, base, point in mounts:
        if _within(path, point) and (best is None or len(point) >= best[0]):
            rest = path[len(point.rstrip("/")) :]
            best = len(point), device, (base.rstrip("/") + rest) or "/"
    return None if best is None else (best[1], best[2].rstrip("/") or "/")


def _within(path: str, folder: str) -> bool:
    return folder in (path, "/") or path.startswith(f"{folder.rstrip('/')}/")


def _digests(found: set[str]) -> frozenset[str]:
    return frozenset(each for each in found if each.startswith("sha256:") and len(each) == 71)


def _parsed(raw: bytes, path: Path) -> dict[str, object]:
    try:
        return msgspec.json.decode(raw, type=dict[str, object])
    except (msgspec.DecodeError, ValueError) as error:
        raise OSError(errno.EBADMSG, f"does not parse: {error}", str(path)) from None


def _raw(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(MAX_RECORD_BYTES + 1)
    if len(raw) > MAX_RECORD_BYTES:
        raise OSError(errno.EFBIG, f"more than {MAX_RECORD_BYTES} bytes", str(path))
    return raw


def _table_of(path: Path) -> dict[str, object]:
    return _parsed(_raw(path), path)


def _table_list(path: Path) -> list[dict[str, object]]:
    try:
        return msgspec.json.decode(_raw(path), type=list[dict[str, object]])
    except (msgspec.DecodeError, ValueError) as error:
        raise OSError(errno.EBADMSG, f"does not parse: {error}", str(path)) from None


def _table(record: dict[str, object], key: str) -> dict[str, object]:
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def _text(record: dict[str, object], key: str) -> str:
    found = record.get(key)
    return found if isinstance(found, str) else ""


def _texts(record: dict[str, object], key: str) -> list[str]:
    found = record.get(key)
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []

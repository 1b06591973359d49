"""The mounts of one mount namespace, as `/proc/PID/mountinfo` shows them (proc(5)), and changing them by descriptor.

The agent may stand in a mount namespace of its own (systemd gives services one), so the table is that of process 1,
and a change is made in its namespace. A mount is named by path and by the kernel's number for it: the path is opened without
following links, and nothing is changed if what was opened is another mount. Nothing is unmounted by force or
lazily. This module decides nothing; `agent.probes.mounts` does. Used through `agent.host.Host` only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_MAX_TABLE_BYTES = 16 * 1024 * 1024
_OCTAL = re.compile(r"\\([0-7]{3})")
_MOUNT_SETATTR = 442
"""mount_setattr(2), Linux 5.12; one number on every architecture."""
_AT_EMPTY_PATH = 0x1000
_UMOUNT_NOFOLLOW = 8
_CLONE_NEWNS = 0x00020000
_CLONE_FS = 0x00000200
SETTABLE = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "nosymfollow": 0x200000}
"""Options of the mount itself that can be added without touching any other."""


class Mount(NamedTuple):
    """One mount."""

    number: int
    """The kernel's, unique in the whole machine."""
    parent: int
    path: str
    kind: str
    """Type of the file system, such as `ext4` or `fuse.sshfs`."""
    source: str
    options: frozenset[str]
    """Those of the mount and those of its file system."""


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


class MountTable:
    """The mounts that a process sees; 1 is the machine's own."""

    def __init__(self, proc_root: Path, process: str = "1") -> None:
        self._process = proc_root / process

    def mounts(self) -> list[Mount]:
        """Return every mount, in the kernel's order. Raises OSError, also for a table that does not parse."""
        with (self._process / "mountinfo").open("rb") as file:
            content = file.read(_MAX_TABLE_BYTES + 1)
        if len(content) > _MAX_TABLE_BYTES:
            raise OSError(errno.EFBIG, f"more than {_MAX_TABLE_BYTES} bytes", str(self._process))
        return [_parse(line) for line in os.fsdecode(content).split("\n") if line]

    def change(self, mount: Mount, *, add: Iterable[str] = (), take: Iterable[str] = ()) -> None:
        """Add and take away options of a mount (names of SETTABLE); all others stay. Raises OSError."""
        wanted = _MountAttr(_bits(add), _bits(take), 0, 0)

        def work() -> None:
            descriptor = _open(mount)
            try:
                where = (descriptor, b"", _AT_EMPTY_PATH)
                _call("syscall", _MOUNT_SETATTR, *where, ctypes.byref(wanted), ctypes.sizeof(wanted))
            finally:
                os.close(descriptor)

        self._at(mount, work)

    def unmount(self, mount: Mount) -> None:
        """Unmount what nothing uses. Raises OSError."""

        def work() -> None:
            os.close(_open(mount))
            folder, _, name = mount.path.rpartition("/")
            above = _walk(folder)  # umount2(2) takes no descriptor, but a name in the working folder
            try:
                os.fchdir(above)
                _call("umount2", b"./" + os.fsencode(name), _UMOUNT_NOFOLLOW)
            finally:
                os.close(above)

        self._at(mount, work)

    def _at(self, mount: Mount, work: Callable[[], None]) -> None:
        """Call `work` in the namespace where the mount is. Raises OSError; ESTALE if another one has its place."""
        failure: list[OSError] = []

        def body() -> None:
            try:
                _call(
                    "unshare", _CLONE_FS
                )  # working folder and root of this thread alone; setns(2) demands it
                try:
                    os.close(_open(mount))
                except OSError:  # not here, or another one here
                    self._enter()
                    os.close(_open(mount))
                work()
            except OSError as error:
                failure.append(error)

        # A thread of its own: a namespace cannot be left again without the rights to enter the old one.
        thread = threading.Thread(target=body, name="mounts")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]

    def _enter(self) -> None:
        namespace = os.open(self._process / "ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", namespace, _CLONE_NEWNS)
        finally:
            os.close(namespace)


def _open(mount: Mount) -> int:
    """Return a descriptor (O_PATH) of a mount; no part of its path may be a link. Raises OSError; ESTALE for another mount."""
    found = _walk(mount.path)
    with Path(f"/proc/thread-self/fdinfo/{found}").open() as file:
        numbers = [line.partition(":")[2].strip() for line in file if line.startswith("mnt_id:")]
    if numbers != [str(mount.number)]:
        os.close(found)
        raise OSError(errno.ESTALE, "another mount is there", mount.path)
    return found


def _walk(path: str) -> int:
    """Return a descriptor (O_PATH) of what a path names, no link followed. Raises OSError."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    found = os.open("/", flags | os.O_DIRECTORY)
    for part in PurePosixPath(path).parts[1:]:
        try:
            inner = os.open(part, flags, dir_fd=found)
        finally:
            os.close(found)
        found = inner
    return found


def _bits(options: Iterable[str]) -> int:
    return sum(SETTABLE[option] for option in set(options))


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _parse(line: str) -> Mount:
    """Return one line: number parent device root path options [more ...] - type source options."""
    first, separator, last = line.partition(" - ")
    fields, rest = first.split(" "), last.split(" ")
    if not separator or len(fields) < 6 or len(rest) < 3 or not (fields[0] + fields[1]).isdigit():
        raise OSError(errno.EBADMSG, "a line that is no mount", line)
    options = {_plain(each) for each in fields[5].split(",") + rest[2].split(",")}
    if "ro" in options:  # of the mount or of its file system: either is enough
        options.discard("rw")
    return Mount(
        number=int(fields[0]),
        parent=int(fields[1]),
        path=_plain(fields[4]),
        kind=_plain(rest[0]),
        source=_plain(rest[1]),
        options=frozenset(options),
    )


def _plain(text: str) -> str:
    """Undo the kernel's escapes: `\\040` is a blank."""
    return _OCTAL.sub(lambda found: chr(int(found.group(1), 8)), text)

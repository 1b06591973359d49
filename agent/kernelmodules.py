"""Kernel modules as the kernel shows them: the list, what sysfs says of it, lockdown and signatures.

A module that took itself off the list often still stands in sysfs, so both are read and compared. Nothing here
loads a module, and nothing is unloaded by force. This module decides nothing; `agent.probes.modules` does. Used
through `agent.host.Host` only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from pathlib import Path
from typing import NamedTuple

from agent.sysfsbuses import write

MAX_LIST_BYTES = 1024 * 1024
_MAX_ATTRIBUTE_BYTES = 256
_NAME = re.compile(r"[A-Za-z0-9_]{1,63}", re.ASCII)
_IN_FORCE = re.compile(r"\[(none|integrity|confidentiality)\]", re.ASCII)
_LOCKDOWN = "kernel/security/lockdown"
_SIG_ENFORCE = "module/module/parameters/sig_enforce"
_MODULES_DISABLED = "sys/kernel/modules_disabled"


class Module(NamedTuple):
    """One loaded module."""

    name: str
    """With `_`, as the kernel writes it."""
    taints: str
    """Letters of Documentation/admin-guide/tainted-kernels.rst: O out of tree, E unsigned, F forced."""


class ModuleTree:
    """The kernel behind a procfs and a sysfs tree."""

    def __init__(self, proc_root: Path, sysfs_root: Path) -> None:
        self._proc = proc_root
        self._sysfs = sysfs_root

    def loadable(self) -> bool:
        """Return False for a kernel that was built without modules and so can never load one. Raises OSError."""
        if (self._proc / "modules").exists() or (self._proc / _MODULES_DISABLED).exists():
            return True
        _read(
            self._proc / "sys/kernel/ostype", _MAX_ATTRIBUTE_BYTES
        )  # or procfs itself is missing: no answer
        return False

    def loaded(self) -> list[Module]:
        """Return every module on the kernel's list, sorted. Raises OSError, also for a list that does not parse."""
        found = []
        for line in _read(self._proc / "modules", MAX_LIST_BYTES).splitlines():
            name, *rest = line.split()
            if _NAME.fullmatch(name) is None or len(rest) < 4:
                raise OSError(errno.EBADMSG, "a line that is no module", name)
            taints = rest[-1][1:-1] if rest[-1].startswith("(") else ""
            found.append(Module(name, taints.strip("+-")))
        return sorted(found)

    def hidden(self) -> list[str]:
        """Return modules that sysfs has and the list has not, sorted. Raises OSError."""
        suspects = self._only_in_sysfs()
        # One that was just being unloaded is in neither by now.
        return sorted(suspects & self._only_in_sysfs()) if suspects else []

    def lockdown(self) -> str:
        """Return `none`, `integrity` or `confidentiality`. Raises OSError."""
        text = _read(self._sysfs / _LOCKDOWN, _MAX_ATTRIBUTE_BYTES)
        found = _IN_FORCE.search(text)
        if found is None:
            raise OSError(errno.EBADMSG, "no state of lockdown", text)
        return found.group(1)

    def signatures_enforced(self) -> bool:
        """Return whether the kernel was told to refuse modules without a valid signature. Raises OSError."""
        return _read(self._sysfs / _SIG_ENFORCE, _MAX_ATTRIBUTE_BYTES).strip() == "Y"

    def raise_lockdown(self, level: str) -> None:
        """Lock the kernel down to `integrity` or `confidentiality`, until the next boot. Raises OSError.

        The kernel takes no lower one than is in force (kernel_lockdown(7)): EPERM.
        """
        write(self._sysfs / _LOCKDOWN, level)

    def enforce_signatures(self) -> None:
        """Have the kernel refuse modules without a valid signature, until the next boot. Raises OSError."""
        write(self._sysfs / _SIG_ENFORCE, "1")

    def unload(self, name: str) -> None:
        """Unload a module that nothing uses (delete_module(2), not forced). Raises OSError.

        Refused if procfs is not that of the running kernel: a tree made elsewhere must not unload anything here.
        """
        boot = "sys/kernel/random/boot_id"
        if _read(self._proc / boot, _MAX_ATTRIBUTE_BYTES) != _read(
            Path("/proc") / boot, _MAX_ATTRIBUTE_BYTES
        ):
            raise OSError(errno.EPERM, "another kernel's procfs", str(self._proc))
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "delete_module"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), name)
        if libc.delete_module(name.encode(), os.O_NONBLOCK):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), name)

    def _only_in_sysfs(self) -> set[str]:
        # Only what was loaded has `initstate`; what was built in has none.
        there = {path.parent.name for path in (self._sysfs / "module").glob("*/initstate")}
        return there - {module.name for module in self.loaded()}


def _read(path: Path, max_bytes: int) -> str:
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes} bytes", str(path))
    return content.decode("ascii", "backslashreplace")

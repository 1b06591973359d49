"""Kernel settings below `/proc/sys`, read and written by name. For `agent.host.Host`, whose part this is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

MAX_SYSCTL_BYTES: Final = 4096
_SYSCTL_PART = re.compile(r"[A-Za-z0-9_@:.-]+", re.ASCII)


class KernelSettings:
    """The settings of the kernel that `_proc_root` shows."""

    _proc_root: Path
    ask_setting: Callable[[str], str] | None = None
    """Whom to ask for a setting that root alone may read, by its path, in an agent that is not root. Raises OSError."""

    def sysctl(self, key: str) -> str:
        """Return a kernel setting, white space folded to single blanks. Raises OSError, ValueError for a bad key."""
        path = sysctl_path(key)
        try:
            return self._proc("sys/" + path)
        except PermissionError:
            if self.ask_setting is None:
                raise
            return self.ask_setting(path)

    def set_sysctl(self, key: str, value: str) -> None:
        """Write a kernel setting. Raises OSError, ValueError for a bad key."""
        path = self._proc_root / "sys" / sysctl_path(key)
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode() + b"\n")
        finally:
            os.close(descriptor)

    def sysctls(self, key: str) -> list[str]:
        """Return the paths of the settings that a key with `*` as whole parts stands for now, sorted; a plain one stands for itself.

        Raises OSError for a folder that is not there, ValueError for a bad key.
        """
        found = [""]
        for part in sysctl_path(key).split("/"):
            if part != "*":
                found = [f"{above}/{part}".strip("/") for above in found]
                continue
            base = self._proc_root / "sys"
            names = {above: os.listdir(base / above) for above in found}  # noqa: PTH208
            found = [f"{above}/{name}" for above in found for name in sorted(names[above])]
        return found

    def _proc(self, path: str) -> str:
        with (self._proc_root / path).open("rb") as file:
            return " ".join(file.read(MAX_SYSCTL_BYTES).decode("utf-8", "backslashreplace").split())


def sysctl_path(key: str) -> str:
    """Return the path below `/proc/sys`: `net.ipv4.ip_forward`, or with `/` where a part has a dot (`net/ipv4/conf/eth0.1/rp_filter`).

    Raises ValueError for what is no such key.
    """
    parts = key.split("/") if "/" in key else key.split(".")
    plain = [part for part in parts if part != "*"]
    if (
        len(parts) < 2
        or parts[0] == "*"
        or any(_SYSCTL_PART.fullmatch(part) is None or part in (".", "..") for part in plain)
    ):
        raise ValueError(f"expected the name of a kernel setting, got {key!r}")
    return "/".join(parts)

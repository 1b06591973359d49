"""Which operating system the machine says that it runs (os-release(5)), in the form that announcements narrow by.

The words are whoever's who may write /etc, so they prove nothing (`contract.nodeword`); the parser takes only values of the
form that os-release(5) prescribes, and anything else as if it were not there.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 16 * 1024
_PLACES: Final = ("etc/os-release", "usr/lib/os-release")
_FIELD: Final = re.compile(rb"""^(ID|VERSION_ID)=(["']?)([a-z0-9._-]{1,63})\2[ \t]*$""", re.MULTILINE)


def os_release(root: Path) -> str:
    """Return `ID` and `VERSION_ID` (`debian 12`), the first alone where there is no second; empty where nothing is said."""
    for place in _PLACES:
        content = _content(root / place)
        if content is not None:
            said = {name: value.decode() for name, _, value in _FIELD.findall(content)}
            return " ".join(filter(None, (said.get(b"ID"), said.get(b"VERSION_ID")))) if b"ID" in said else ""
    return ""


def _content(path: Path) -> bytes | None:
    try:
        # O_NONBLOCK: a FIFO in the file's place must not hold anybody.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb") as file:  # noqa: PTH123  (a descriptor)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return file.read(MAX_BYTES)

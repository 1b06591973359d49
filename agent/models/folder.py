"""What lies below a model's root, at any depth, within bounds."""

from __future__ import annotations

import errno

from agent.glance import FILES_A_BREATH
from agent.host import Host

MAX_ENTRIES = 65_536
MAX_DEPTH = 32


def files_below(host: Host, root: str) -> dict[str, bool]:
    """Return path, relative to `root`, of all that is no folder, and whether it is a regular file.

    Names that are no UTF-8 are shown with `\\xNN`. Raises OSError; E2BIG for more than MAX_ENTRIES or deeper than MAX_DEPTH.
    """
    found: dict[str, bool] = {}
    folders = [""]
    while folders:
        above = folders.pop()
        if above.count("/") > MAX_DEPTH:
            raise OSError(errno.E2BIG, f"folders deeper than {MAX_DEPTH}", root)
        host.breathe()
        for number, entry in enumerate(host.tree.entries(f"{root}/{above}".rstrip("/"))):
            if number % FILES_A_BREATH == 0:
                host.breathe()
            if entry.kind == "folder":
                folders.append(f"{above}{entry.name}/")
            else:
                path = above + entry.name
                if not path.isascii():
                    path = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                found[path] = entry.kind == "file"
            if len(found) + len(folders) > MAX_ENTRIES:
                raise OSError(errno.E2BIG, f"more than {MAX_ENTRIES} files", root)
    return found

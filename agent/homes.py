"""Home folders, as the account files name them: found without following a link that its owner could have made."""

from __future__ import annotations

from agent.accountfiles import User
from agent.tree import Tree


def home_of(tree: Tree, user: User) -> str | None:
    """Return the home folder without links, "" for the root, or None if there is none. Raises OSError if it cannot be told."""
    try:
        home = tree.real_folder("/" + user.home.lstrip("/"))
        if home == "/":
            return ""
        entry = tree.entry(home)
    except FileNotFoundError:
        return None
    return home if entry is not None and entry.kind in ("folder", "link") else None

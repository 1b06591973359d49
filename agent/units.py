"""systemd's unit folders as they lie on disk: unit files, drop-ins, masks, aliases, and links that pull a unit in.

Reads the folders as systemd.unit(5) and `systemctl --root` do, of the system and of its users; asks no running systemd and never
makes it reload. What generators write at every boot is not here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from agent.tree import Entry, Tree

LOCAL = (
    "/etc/systemd/system.control",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
)
VENDOR = ("/usr/lib/systemd/system",)
XDG_USERS = "/etc/xdg/systemd/user"
"""By packages a link to the next one, and told as a file; looked into where it is a folder of its own."""
USERS_LOCAL = (
    XDG_USERS,
    "/etc/systemd/user",
    "/run/systemd/user",
    "/usr/local/share/systemd/user",
    "/usr/local/lib/systemd/user",
)
USERS_VENDOR = ("/usr/share/systemd/user", "/usr/lib/systemd/user")
"""Units that run under each user's own systemd."""
HOME = (".config/systemd/user.control", ".config/systemd/user", ".local/share/systemd/user")
"""The same of one user, below the home folder."""
TRANSIENT = "/run/systemd/transient"
"""What `systemd-run` and programs like it have made since boot."""
RUN_USERS = "/run/user"
RUN_USER = ("systemd/user.control", "systemd/transient", "systemd/user")
"""Below a folder of RUN_USERS that is named after the user's number."""
ETC = "/etc/systemd/system"
MASK = "/dev/null"
_UNIT = re.compile(r".+\.(service|socket|device|mount|automount|swap|target|path|timer|slice|scope)")
_STARTS = re.compile(r".+\.(service|socket|mount|automount|path|timer)(\.d)?")
"""Kinds of transient units that start something; a scope takes in what runs already, a slice holds others."""
_PULL = re.compile(r".+\.(wants|requires|upholds)")

Kind = Literal["unit", "drop-in", "mask", "alias", "pull"]
State = Literal["enabled", "disabled", "masked", "static", "not there"]


class Piece(NamedTuple):
    """One file or link that says something of a unit."""

    path: str
    kind: Kind
    unit: str
    """Which unit it is about: of an alias the one behind it."""
    target: str
    """Of a link."""
    local: bool
    """Not in the folder that packages use."""


def pieces(tree: Tree, folders: tuple[str, ...]) -> Iterator[Piece]:
    """Yield what is in some unit folders; one that is not there has nothing. Raises OSError."""
    for folder in folders:
        local = folder not in (*VENDOR, *USERS_VENDOR)
        for entry in listed(tree, folder):
            path = f"{folder}/{entry.name}"
            if entry.kind == "folder":
                yield from _inner(tree, path, entry.name, local)
            elif _UNIT.fullmatch(entry.name):
                yield _piece(path, entry, local)


def starting(tree: Tree, folder: str) -> Iterator[Piece]:
    """Yield the transient units in a folder, and their drop-ins, that start something. Raises OSError."""
    for piece in pieces(tree, (folder,)):
        if _STARTS.fullmatch(piece.path.removeprefix(f"{folder}/").partition("/")[0]):
            yield piece


def listed(tree: Tree, folder: str) -> list[Entry]:
    """Return the names in a folder, none if it is not there. Raises OSError."""
    try:
        return tree.entries(folder)
    except FileNotFoundError:
        return []


def states(found: list[Piece]) -> dict[str, State]:
    """Return what each unit is, as `systemctl is-enabled` would say; `static` only if its package pulls it in."""
    out: dict[str, State] = {}
    rank = {"not there": 0, "disabled": 1, "static": 2, "enabled": 3, "masked": 4}
    for piece in found:
        state: State = "disabled"
        if piece.kind == "mask":
            state = "masked"
        elif piece.kind in ("pull", "alias"):
            state = "enabled" if piece.local else "static" if piece.kind == "pull" else "disabled"
        elif piece.kind == "drop-in":
            continue
        if rank[state] > rank[out.get(piece.unit, "not there")]:
            out[piece.unit] = state
    return out


def parse_install(untrusted: bytes) -> list[str]:
    """Return the folders in which `systemctl enable` would link a unit: `multi-user.target.wants`."""
    found, inside = [], False
    for line in untrusted.decode("utf-8", "replace").splitlines():
        if line.startswith("["):
            inside = line.strip() == "[Install]"
        key, _, value = (part.strip() for part in line.partition("="))
        for name, ending in (("WantedBy", "wants"), ("RequiredBy", "requires"), ("UpheldBy", "upholds")):
            if inside and key == name:
                found += [f"{each}.{ending}" for each in value.split() if "/" not in each and "%" not in each]
    return found


def _piece(path: str, entry: Entry, local: bool) -> Piece:
    if entry.kind != "link":
        return Piece(path, "unit", entry.name, "", local)
    if entry.target == MASK:
        return Piece(path, "mask", entry.name, entry.target, local)
    return Piece(path, "alias", entry.target.rpartition("/")[2], entry.target, local)


def _inner(tree: Tree, path: str, name: str, local: bool) -> Iterator[Piece]:
    if name.endswith(".d"):
        for entry in listed(tree, path):
            if entry.name.endswith(".conf") and not entry.name.startswith("."):
                yield Piece(f"{path}/{entry.name}", "drop-in", name[:-2], entry.target, local)
    elif _PULL.fullmatch(name):
        for entry in listed(tree, path):
            if _UNIT.fullmatch(entry.name):
                yield Piece(f"{path}/{entry.name}", "pull", entry.name, entry.target, local)

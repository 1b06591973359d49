"""Opening a plain file below a root, and changing what it grants. Part of the gate `agent.host`.

Refuses to follow a symbolic link in any part of a path. A change is made in place, by descriptor, so it must be sure that
the descriptor leads to no other file than the one that is meant: whoever may write in a folder on the way can put a hard
link to any file there and take it away again at any moment, and a link count of one then says nothing. So a change is
made only where root alone can write in every folder on the way; and where the wanted owner can write as well, only what
that user could do to the file without us: permission bits and ACL of what is already the user's own. It relies on folders
being walked by descriptors: what has been judged is what is walked through.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from agent.fileaccess import (
    Access,
    AclEntry,
    access_of,
    capability_text,
    parse_capabilities,
    set_acl,
    set_attributes,
    set_capabilities,
)
from agent.userdb import user_name

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SET_IDS = stat.S_ISUID | stat.S_ISGID


class Wanted(NamedTuple):
    """What a file is to grant."""

    uid: int
    gid: int
    mode: int
    acl: frozenset[AclEntry] = frozenset()
    capabilities: str = ""
    attributes: Sequence[str] | None = None
    """None: left alone."""


class Open(NamedTuple):
    """A plain file that is open, and the way to it."""

    descriptor: int
    folder: int
    """Descriptor (O_PATH) of the folder that it was opened in."""
    name: str
    crowded: str
    """The first folder on the way that some user besides root and `writer` may write in; empty: none."""
    writer: int
    """The one user besides root who may write in folders on the way; 0: nobody."""
    writers_folder: str
    """The first folder on the way that this user may write in."""


@contextmanager
def opened(root: Path, path: str) -> Iterator[Open]:
    """Open a regular file for reading, as long as the block lasts. Raises OSError; EINVAL for what is no regular file."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or not path.startswith("/"):
        raise OSError(errno.EINVAL, "no path of a file", path)
    crowded, writer, writers_folder = "", 0, ""
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for depth in range(len(parts)):
            place = "/" + "/".join(parts[:depth])
            who = _writer(folder)
            if who is None or (who and writer not in (0, who)):
                crowded = crowded or place
            elif who and not writer:
                writer, writers_folder = who, place
            if depth < len(parts) - 1:
                inner = os.open(parts[depth], _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = inner
        # O_NONBLOCK: a FIFO or a device in the file's place must not hold the thread.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(parts[-1], flags, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            yield Open(descriptor, folder, parts[-1], crowded, writer, writers_folder)
        finally:
            os.close(descriptor)
    finally:
        os.close(folder)


def set_access(root: Path, path: str, wanted: Wanted, tell: Callable[[str, int, str], None]) -> None:
    """Make a regular file grant what is wanted, and nothing else than this file. Raises OSError: EMLINK if it has a second
    name, EOPNOTSUPP where somebody else could have put another file in its place.

    `tell` is called with path, open folder and name before the change. Everything goes by one descriptor. Immutable and
    append-only are taken off first only where `wanted` decides about them.
    """
    with opened(root, path) as at:
        found = os.fstat(at.descriptor)
        if found.st_nlink != 1:
            raise OSError(errno.EMLINK, f"has {found.st_nlink} names, not changed", path)
        access = access_of(at.descriptor)
        _refuse_where_others_write(at, found, access, wanted, path)
        tell(path, at.folder, at.name)
        if wanted.attributes is not None and access.attributes:
            set_attributes(at.descriptor, [])
        if (found.st_uid, found.st_gid) != (wanted.uid, wanted.gid):
            # Before the mode: chown clears set-uid and set-gid.
            os.fchown(at.descriptor, wanted.uid, wanted.gid)
        set_acl(at.descriptor, wanted.acl, wanted.mode)
        os.fchmod(at.descriptor, wanted.mode)
        set_capabilities(at.descriptor, wanted.capabilities)
        if wanted.attributes is not None:
            set_attributes(at.descriptor, wanted.attributes)


def _refuse_where_others_write(
    at: Open, found: os.stat_result, access: Access, wanted: Wanted, path: str
) -> None:
    if at.crowded:
        raise OSError(
            errno.EOPNOTSUPP,
            f"others than root and one user may write in {at.crowded}, and could put any file in its place; "
            "take write access to that folder from group and others, or set repair to none",
            path,
        )
    if not at.writer:
        return
    owners = (found.st_uid, found.st_gid) == (wanted.uid, wanted.gid) and found.st_uid == at.writer
    same = access.capabilities == capability_text(parse_capabilities(wanted.capabilities)) and (
        wanted.attributes is None or access.attributes == frozenset(wanted.attributes)
    )
    if not owners or not same or wanted.mode & _SET_IDS:
        raise OSError(
            errno.EOPNOTSUPP,
            f"user {user_name(at.writer)} may write in {at.writers_folder}, and could put any file in its place: there, only "
            "permissions of that user's own files are changed; give the folder to root, or set repair to none",
            path,
        )


def _writer(folder: int) -> int | None:
    """Return the one user besides root who may write in a folder (0: nobody), or None if there may be more of them.

    The group bits are the mask where the folder has an ACL, so they cover what that grants.
    """
    found = os.fstat(folder)
    return None if found.st_mode & 0o022 else found.st_uid

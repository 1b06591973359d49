"""Users and groups by name and by number, as the system's own databases have them."""

from __future__ import annotations

import errno
import grp
import pwd


def user_id(name: str) -> int:
    """Return the number of a user by name or number. Raises OSError (ENOENT) if there is none."""
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise OSError(errno.ENOENT, "no such user", name) from None


def group_id(name: str) -> int:
    """Return the number of a group by name or number. Raises OSError (ENOENT) if there is none."""
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise OSError(errno.ENOENT, "no such group", name) from None


def user_name(uid: int) -> str:
    """Return the name of a user, or its number where it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return the name of a group, or its number where it has no name."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)

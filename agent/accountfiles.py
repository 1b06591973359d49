"""Account files: passwd, group, shadow, sudoers and authorized_keys, as bytes in and facts out. Pure.

What does not parse is not passed over: it comes back as a line that nobody can have allowed. Where programs
differ in how they read a line, the reading here is the one that shows more of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Literal, NamedTuple

PasswordState = Literal["empty", "locked", "set"]

NO_LOGIN = frozenset({"nologin", "false", "sync", "halt", "shutdown", "true"})
"""Programs in place of a shell that let nobody in."""
_KEY_TYPE = re.compile(r"(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+", re.ASCII)
_UID_IN_SUDOERS = re.compile(r"#-?[0-9]")
_INCLUDE = re.compile(r"[#@]include(dir)?[ \t]")
_IN_SHADOW = "x"
_SHADOW_FIELDS = 9
SUDOERS_FOLDER = "/etc/sudoers.d"


class User(NamedTuple):
    """A line of passwd."""

    name: str
    password: str
    uid: int
    gid: int
    home: str
    shell: str

    def logs_in(self) -> bool:
        """True if the shell is one. None at all means /bin/sh."""
        return self.shell.rpartition("/")[2] not in NO_LOGIN


class Group(NamedTuple):
    """A line of group."""

    name: str
    gid: int
    members: tuple[str, ...]


class Bad(NamedTuple):
    """A line that says nothing we understand."""

    number: int
    text: str


class Key(NamedTuple):
    """A line of authorized_keys."""

    number: int
    fingerprint: str
    """`SHA256:...`, as `ssh-keygen -l` prints it; empty for what is no key."""
    options: str
    label: str
    """Type and comment, for people."""


def parse_passwd(untrusted: bytes) -> tuple[list[User], list[Bad]]:
    """Return the users, and the lines that are none."""
    users, bad = [], []
    for number, line in _lines(untrusted):
        fields = line.split(":")
        try:
            name, password, uid, gid, _, home, shell = fields
            users.append(User(name, password, _id(uid), _id(gid), home, shell))
        except ValueError:
            bad.append(Bad(number, line))
    return users, bad


def parse_group(untrusted: bytes) -> tuple[list[Group], list[Bad]]:
    """Return the groups, and the lines that are none."""
    groups, bad = [], []
    for number, line in _lines(untrusted):
        try:
            name, _, gid, members = line.split(":")
            names = tuple(member for member in members.split(",") if member)
            groups.append(Group(name, _id(gid), names))
        except ValueError:
            bad.append(Bad(number, line))
    return groups, bad


def parse_shadow(untrusted: bytes) -> dict[str, str]:
    """Return name to second field, of shadow or gshadow. The first line of a name counts, as it does to libc."""
    found: dict[str, str] = {}
    for _, line in _lines(untrusted):
        name, colon, rest = line.partition(":")
        if colon:
            found.setdefault(name, rest.partition(":")[0])
    return found


def parse_expiry(untrusted: bytes) -> dict[str, str]:
    """Return name to eighth field of shadow: the day, counted from 1970, from which on the account is shut; empty: never."""
    found: dict[str, str] = {}
    for _, line in _lines(untrusted):
        fields = line.split(":")
        if len(fields) == _SHADOW_FIELDS:
            found.setdefault(fields[0], fields[7])
    return found


def with_expiry(untrusted: bytes, name: str, expiry: str) -> bytes:
    """Return shadow with another expiry of one account; every other byte as it was."""
    lines = untrusted.split(b"\n")
    for place, line in enumerate(lines):
        fields = line.split(b":")
        if fields[0] == name.encode() and len(fields) == _SHADOW_FIELDS:
            fields[7] = expiry.encode()
            lines[place] = b":".join(fields)
            break
    return b"\n".join(lines)


def password_state(user: User, shadow: dict[str, str]) -> PasswordState:
    """Return whether a password opens the account: none is needed, none can, or one does."""
    field = shadow.get(user.name, "!") if user.password == _IN_SHADOW else user.password
    if not field:
        return "empty"
    return "set" if field[0] in "$_" or len(field) == 13 else "locked"


def parse_sudoers(untrusted: bytes) -> list[str]:
    """Return what sudo heeds: logical lines with blanks folded, without comments and the include of its own folder.

    `#1000 ALL=...` is a rule for a number and `#include` an include; a comment ends with its line, whatever it ends in.
    """
    found: list[str] = []
    joined = ""
    for line in untrusted.decode("utf-8", "backslashreplace").split("\n"):
        bare = line.strip()
        if (
            not joined
            and bare.startswith("#")
            and not _UID_IN_SUDOERS.match(bare)
            and not _INCLUDE.match(bare)
        ):
            continue
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        whole = " ".join((joined + line).split())
        joined = ""
        if whole and whole.rstrip("/") not in (
            f"#includedir {SUDOERS_FOLDER}",
            f"@includedir {SUDOERS_FOLDER}",
        ):
            found.append(whole)
    if rest := " ".join(joined.split()):
        found.append(rest)
    return found


def parse_authorized_keys(untrusted: bytes) -> list[Key]:
    """Return a Key for each line that is neither empty nor a comment; `number` counts from 1."""
    keys = []
    for number, raw in enumerate(untrusted.split(b"\n"), 1):
        line = raw.decode("utf-8", "backslashreplace").strip(" \t\r")
        if line and not line.startswith("#"):
            keys.append(_key(number, line))
    return keys


def _key(number: int, line: str) -> Key:
    options = ""
    first = re.split(r"[ \t]", line, maxsplit=1)[0]
    if not _KEY_TYPE.fullmatch(first):
        options = line[: _options_end(line)]
        line = line[len(options) :].lstrip(" \t")
    kind, blob, comment = [*re.split(r"[ \t]+", line, maxsplit=2), "", ""][:3]
    try:
        raw = base64.b64decode(blob, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not _KEY_TYPE.fullmatch(kind) or not raw:
        return Key(number, "", options, "no key")
    digest = base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
    return Key(number, f"SHA256:{digest}", options, f"{kind} {comment}".strip())


def _options_end(line: str) -> int:
    """Return where the options end: at the first blank outside of quotation marks."""
    quoted = escaped = False
    for place, character in enumerate(line):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character in " \t" and not quoted:
            return place
    return len(line)


def _lines(untrusted: bytes) -> list[tuple[int, str]]:
    text = untrusted.decode("utf-8", "backslashreplace")
    return [(n, line) for n, line in enumerate(text.split("\n"), 1) if line and not line.startswith("#")]


def _id(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("expected a number")
    return int(text)

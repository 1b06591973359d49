"""`[files]` as it may be written. PURE."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from agent.fileaccess import parse_capabilities
from contract.baseline import SectionBase

Reason = Annotated[str, Meta(min_length=3, max_length=512)]
Account = Annotated[str, Meta(pattern=r"\A[a-z0-9_][a-z0-9_.-]{0,31}\Z")]
AclText = Annotated[
    str,
    Meta(pattern=r"\A((user|group):[a-z0-9_][a-z0-9_.-]{0,31}|group:|mask:):[r-][w-][x-]\Z"),
]
AttributeName = Annotated[str, Meta(pattern=r"\A(user|trusted|security)\.[^\x00-\x1f\x7f]{1,200}\Z")]
_ACL = re.compile(r"(user|group|mask):([^:]*):([rwx-]{3})")


class File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[files.file]]`: one file. It must be there."""

    path: Annotated[str, Meta(max_length=1024, pattern=r"\A(/[^/\x00-\x1f\x7f]+)+\Z")]
    """Absolute, without symbolic links."""
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")] | None = None
    """Of its content, in lower case; absent: any content."""
    owner: Account = "root"
    """User, by name or number."""
    group: Account = "root"
    """Group, by name or number."""
    mode: Annotated[str, Meta(pattern=r"\A[0-7]{4}\Z")] = "0644"
    """Four octal digits."""
    acl: Annotated[list[AclText], Meta(max_length=32)] = field(default_factory=list)
    """What the POSIX ACL grants beside the mode; empty: nothing."""
    capabilities: Annotated[str, Meta(max_length=512)] = ""
    """What running it grants, as `getcap` prints it; empty: nothing."""
    attributes: list[Literal["immutable", "append-only"]] | None = None
    """chattr +i and +a; absent: not looked at."""
    xattrs: dict[AttributeName, Annotated[str, Meta(max_length=1024)]] = field(default_factory=dict)
    """Extended attributes that it must have."""
    repair: Literal["none", "mode"] = "none"
    """`mode`: in mode `enforce` put all of this right but content and `xattrs`."""
    reason: Reason
    """Why, for the next reader."""

    def __post_init__(self) -> None:
        if {".", ".."} & set(self.path.split("/")):
            raise ValueError("expected a path without '.' and '..'")
        parse_capabilities(self.capabilities)
        named = [(kind, who) for kind, who, _ in self.acl_entries()]
        if len(set(named)) != len(named):
            raise ValueError("expected each user and group once in `acl`")
        mask = [letters for kind, _, letters in self.acl_entries() if kind == "mask"]
        if mask and mask[0] != _letters(int(self.mode, 8) >> 3 & 7):
            raise ValueError(
                "expected the mask of `acl` to be the group's part of `mode`: the kernel keeps them one"
            )
        if {"security.capability", "security.ima", "security.evm"} & self.xattrs.keys():
            raise ValueError(
                "expected other extended attributes: the kernel writes these, or `capabilities` names them"
            )

    def acl_entries(self) -> list[tuple[str, str, str]]:
        """Return (user, group or mask; name or empty; letters) for each entry."""
        found = (_ACL.fullmatch(text) for text in self.acl)
        return [(each.group(1), each.group(2), each.group(3)) for each in found if each is not None]


class Section(SectionBase, frozen=True, kw_only=True):
    """`[files]`."""

    file: Annotated[list[File], Meta(max_length=8192)] = field(default_factory=list)
    """The files."""
    rehash_s: Annotated[float, Meta(ge=60, le=30 * 86400)] = 86400.0
    """A file is hashed anew after so many seconds even if nothing seems to have changed."""

    def __post_init__(self) -> None:
        paths = [file.path for file in self.file]
        if len(set(paths)) != len(paths):
            raise ValueError("expected each path once")


def _letters(bits: int) -> str:
    return "".join(letter if bits & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))

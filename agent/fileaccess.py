"""What a file grants beside owner and mode: POSIX ACL, capabilities, extended and chattr attributes; by descriptor only.

Part of the gate `agent.host`. Reads and writes the kernel's own forms (`system.posix_acl_access`, linux/posix_acl_xattr.h;
`security.capability`, linux/capability.h; FS_IOC_GETFLAGS, linux/fs.h). Refuses what it does not know: an ACL or a set of
capabilities that does not parse is shown as such and never taken for none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ACL, CAPABILITY = "system.posix_acl_access", "security.capability"
ATTRIBUTES = {"immutable": 0x10, "append-only": 0x20}
"""chattr +i and +a."""
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_NOT_HERE = {errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_ENTRY = struct.Struct("<HHI")
_ACL_VERSION = 2
_CAP_2, _CAP_3, _EFFECTIVE = 0x02000000, 0x03000000, 0x1
_CAPABILITIES = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
]
_CLAUSE = re.compile(r"(cap_[a-z_]+(?:,cap_[a-z_]+)*)[=+]([eip]{1,3})", re.ASCII)

AclEntry = tuple[int, int, int]
"""Tag, id, permissions."""


class Access(NamedTuple):
    """As the kernel has it."""

    acl: frozenset[AclEntry]
    """Named users and groups, the owning group's own entry and the mask; empty where the mode says it all."""
    capabilities: str
    """As `capability_text` writes it; empty: none."""
    attributes: frozenset[str]
    others: frozenset[str]
    """Names of the other extended attributes."""


def access_of(descriptor: int) -> Access:
    """Return what an open file grants. Raises OSError; EBADMSG for what does not parse."""
    try:
        names = frozenset(os.listxattr(descriptor))
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        names = frozenset()
    acl = _decode_acl(os.getxattr(descriptor, ACL)) if ACL in names else frozenset()
    capabilities = _decode_capabilities(os.getxattr(descriptor, CAPABILITY)) if CAPABILITY in names else ""
    return Access(acl, capabilities, attributes_of(descriptor), names - {ACL, CAPABILITY})


def attributes_of(descriptor: int) -> frozenset[str]:
    """Return the chattr attributes that matter here; none where the file system has none. Raises OSError."""
    bits = _flags(descriptor)
    return frozenset(name for name, bit in ATTRIBUTES.items() if bits & bit)


def set_attributes(descriptor: int, wanted: Sequence[str]) -> None:
    """Make immutable and append-only as wanted; the other flags stay. Raises OSError."""
    before = _flags(descriptor)
    after = before & ~sum(ATTRIBUTES.values()) | sum(ATTRIBUTES[name] for name in set(wanted))
    if after != before:
        fcntl.ioctl(descriptor, _SETFLAGS, struct.pack("@l", after))


def set_acl(descriptor: int, wanted: frozenset[AclEntry], mode: int) -> None:
    """Give an open file an ACL; an empty one leaves the mode alone. Raises OSError."""
    if not wanted:
        _drop(descriptor, ACL)
        return
    entries = {(_USER_OBJ, _NO_ID, mode >> 6 & 7), (_OTHER, _NO_ID, mode & 7), *wanted}
    packed = b"".join(_ENTRY.pack(tag, perm, who) for tag, who, perm in sorted(entries))
    os.setxattr(descriptor, ACL, struct.pack("<I", _ACL_VERSION) + packed)


def set_capabilities(descriptor: int, text: str) -> None:
    """Give an open file capabilities; the empty text takes them away. Raises OSError, ValueError."""
    if not text:
        _drop(descriptor, CAPABILITY)
        return
    parsed = parse_capabilities(text)
    words = [0, 0, 0, 0]
    for name, kinds in parsed.items():
        place = _CAPABILITIES.index(name.removeprefix("cap_"))
        for offset, kind in enumerate("pi"):
            if kind in kinds:
                words[2 * (place // 32) + offset] |= 1 << place % 32
    effective = _EFFECTIVE if any("e" in kinds for kinds in parsed.values()) else 0
    os.setxattr(descriptor, CAPABILITY, struct.pack("<5I", _CAP_2 | effective, *words))


def wanted_acl(entries: Sequence[tuple[str, int | None, str]], mode: int) -> frozenset[AclEntry]:
    """Return the ACL for entries (`user`, `group` or `mask`; id or None; `rw-`), completed from the mode's group bits."""
    if not entries:
        return frozenset()
    tags = {
        ("user", True): _USER,
        ("group", True): _GROUP,
        ("group", False): _GROUP_OBJ,
        ("mask", False): _MASK,
    }
    found = {
        (tags[kind, who is not None], _NO_ID if who is None else who, _bits(text))
        for kind, who, text in entries
    }
    for tag in (_GROUP_OBJ, _MASK):
        if not any(each[0] == tag for each in found):
            found.add((tag, _NO_ID, mode >> 3 & 7))
    return frozenset(found)


def acl_text(entries: frozenset[AclEntry]) -> str:
    """Return an ACL in one line, as `getfacl -n -c` would: "user:1000:rw-,group::r--,mask::rw-"; "none" for none."""
    words = {_USER: "user", _GROUP: "group", _GROUP_OBJ: "group", _MASK: "mask"}
    return (
        ",".join(
            f"{words[tag]}:{'' if who == _NO_ID else who}:{_letters(perm)}"
            for tag, who, perm in sorted(entries)
        )
        or "none"
    )


def parse_capabilities(text: str) -> Mapping[str, frozenset[str]]:
    """Return capability -> letters of `eip`, of a text as `getcap` prints it. Raises ValueError."""
    found: dict[str, frozenset[str]] = {}
    for clause in text.split():
        match = _CLAUSE.fullmatch(clause)
        names = match.group(1).split(",") if match else []
        if match is None or any(name.removeprefix("cap_") not in _CAPABILITIES for name in names):
            raise ValueError(f"expected capabilities as getcap prints them, got {clause!r}")
        found.update(dict.fromkeys(names, frozenset(match.group(2))))
    if len({"e" in letters for letters in found.values()}) > 1:
        raise ValueError(
            "expected `e` for all capabilities of a file or for none: the kernel has one bit for it"
        )
    return found


def capability_text(found: Mapping[str, frozenset[str]]) -> str:
    """Return capabilities in one form: "cap_net_admin,cap_net_raw=ep"."""
    groups: dict[str, list[str]] = {}
    for name in sorted(found):
        groups.setdefault("".join(letter for letter in "eip" if letter in found[name]), []).append(name)
    return " ".join(f"{','.join(names)}={letters}" for letters, names in sorted(groups.items()))


def _decode_acl(raw: bytes) -> frozenset[AclEntry]:
    if len(raw) < 4 or len(raw) % _ENTRY.size != 4 or raw[:4] != struct.pack("<I", _ACL_VERSION):
        raise OSError(errno.EBADMSG, "an ACL that does not parse")
    entries = {(tag, who, perm) for tag, perm, who in _ENTRY.iter_unpack(raw[4:])}
    if any(tag not in (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER) for tag, _, _ in entries):
        raise OSError(errno.EBADMSG, "an ACL that does not parse")
    if not any(tag in (_USER, _GROUP, _MASK) for tag, _, _ in entries):
        return frozenset()  # three entries: the mode itself
    return frozenset(each for each in entries if each[0] not in (_USER_OBJ, _OTHER))


def _decode_capabilities(raw: bytes) -> str:
    (head,) = struct.unpack_from("<I", raw) if len(raw) >= 4 else (0,)
    if head & ~_EFFECTIVE not in (_CAP_2, _CAP_3) or len(raw) != (20 if head & ~_EFFECTIVE == _CAP_2 else 24):
        raise OSError(errno.EBADMSG, "capabilities that do not parse")
    words = struct.unpack_from("<4I", raw, 4)
    found = {}
    for place in range(64):
        word, bit = 2 * (place // 32), 1 << place % 32
        letters = {"p"} if words[word] & bit else set()
        letters |= {"i"} if words[word + 1] & bit else set()
        if letters:
            name = _CAPABILITIES[place] if place < len(_CAPABILITIES) else str(place)
            found[f"cap_{name}"] = frozenset(letters | ({"e"} if head & _EFFECTIVE else set()))
    root = f" [rootid={struct.unpack_from('<I', raw, 20)[0]}]" if len(raw) == 24 else ""
    return (capability_text(found) or "=") + root


def _flags(descriptor: int) -> int:
    try:
        (bits,) = struct.unpack("@l", fcntl.ioctl(descriptor, _GETFLAGS, bytes(struct.calcsize("@l"))))
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        return 0
    return int(bits)


def _drop(descriptor: int, name: str) -> None:
    try:
        os.removexattr(descriptor, name)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise


def _bits(letters: str) -> int:
    return sum(bit for letter, bit in zip(letters, (4, 2, 1), strict=True) if letter != "-")


def _letters(bits: int) -> str:
    return "".join(letter if bits & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))

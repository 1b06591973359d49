"""What a node says of itself beside its logs: which operating system it runs, which packages changed.

The quote covers the report, so it is this node's word, and no more than that: root on a node may say what it likes. So it
serves for two things only. It narrows what is announced (a lie gains nothing that was not announced for the site anyway),
and it puts words to a difference that was found without it. Nothing is accepted because of it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Final

from msgspec import Struct as Record

from contract.bootpolicy import REVOCATION
from contract.messages import PackageChange

MAX_NAMED: Final = 2
"""Packages that a finding names."""
_LAST_DATE_S: Final = 253402300799.0
"""End of the year 9999; no calendar here goes further."""
_PACKAGES: Final = {
    "kernel": re.compile(
        r"(?!.*-(?:dbg|doc|devel|headers)\Z)"
        r"(?:linux-(?:image|modules)(?:-.*)?|kernel(?:-(?:core|modules|default|rt|uek|lt|ml|64k)(?:-.*)?)?)"
    ),
    "boot-loader": re.compile(r"(?:shim|grub|grub2|systemd-boot|refind)(?:-.*)?"),
    "initrd": re.compile(
        r"initramfs-tools(?:-.*)?|dracut(?:-.*)?|mkinitcpio|(?:intel|amd64)-microcode|microcode_ctl"
    ),
    REVOCATION: re.compile(r"shim(?:-.*)?|secureboot-db|fwupd(?:-.*)?"),
}
# No blank in either, and no version that begins as a word does: what stands behind "found " is what makes two findings one.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_:~-]{0,127}", re.ASCII)
_VERSION: Final = re.compile(r"[0-9][A-Za-z0-9.+_:~^-]{0,127}", re.ASCII)
_NAMES_A_RELEASE: Final = re.compile(r"linux-(?:image|modules)(?:-[a-z]+)*-[0-9].*", re.ASCII)


class NodeWord(Record, frozen=True, kw_only=True):
    """What one report says beside its logs."""

    os_release: str = ""
    """As `ID` and `VERSION_ID` of os-release name it: `debian 12`. Empty: the node does not say."""
    packages: Sequence[PackageChange] = ()


NOTHING_SAID: Final = NodeWord()


def boot_package(name: str) -> bool:
    """Return whether a package of this name holds something that is measured at boot."""
    return any(wanted.fullmatch(name) for wanted in _PACKAGES.values())


def packages_text(word: NodeWord, stages: Collection[str], release: str) -> str:
    """Return in words which packages account for a change at these stages, newest first; empty where none is told of.

    `release` is that of the kernel that runs, where a digest covers it: another kernel's package accounts for nothing.
    """
    wanted = [_PACKAGES[stage] for stage in stages if stage in _PACKAGES]
    fitting = [
        change
        for change in word.packages
        if _NAME.fullmatch(change.name)
        and _VERSION.fullmatch(change.after)
        and any(of_stage.fullmatch(change.name) for of_stage in wanted)
        and _of_release(change, release)
    ]
    fitting.sort(key=lambda change: (-change.at, change.name))
    told = [_told(change) for change in fitting[:MAX_NAMED]]
    if len(fitting) > MAX_NAMED:
        told.append(f"{len(fitting) - MAX_NAMED} more")
    return f"{' and '.join(told)} (the node's word)" if told else ""


def _of_release(change: PackageChange, release: str) -> bool:
    """Whether a package may be of the kernel that runs: Debian's name says it, Red Hat's version does."""
    if not release or not _PACKAGES["kernel"].fullmatch(change.name):
        return True
    if _NAMES_A_RELEASE.fullmatch(change.name):
        return release in change.name
    version = change.after.rpartition(":")[2]
    return not change.name.startswith("kernel") or release.startswith(version)


def _told(change: PackageChange) -> str:
    at = change.at if 0 < change.at <= _LAST_DATE_S else 0.0
    on = f" on {datetime.fromtimestamp(at, UTC).date().isoformat()}" if at else ""
    was = f" from {change.before}" if _VERSION.fullmatch(change.before) else ""
    return f"package '{change.name}' updated{on}{was} to {change.after}"

"""Draft of `[files]`: owner, mode and digest of the files that decide who gets in and what runs.

The digest only of files that everybody may read: a digest of a secret tells whether a guess is right.
"""

from __future__ import annotations

import os
import stat

from agent.fileaccess import access_of
from agent.filehashing import hash_file
from agent.host import facts_of
from agent.learning import Draft, entry, section
from agent.probes import Surroundings

WATCHED = (
    "/etc/fstab", "/etc/group", "/etc/gshadow", "/etc/hosts", "/etc/ld.so.preload", "/etc/nsswitch.conf", "/etc/passwd",
    "/etc/profile", "/etc/resolv.conf", "/etc/securetty", "/etc/shadow", "/etc/ssh/ssh_config", "/etc/ssh/sshd_config",
    "/etc/sudoers", "/etc/sysctl.conf",
)  # fmt: skip
FOLDERS = ("/etc/inference", "/etc/ssh/sshd_config.d", "/etc/sysctl.d", "/etc/modprobe.d")
_CHANGING = frozenset({"/etc/group", "/etc/gshadow", "/etc/passwd", "/etc/resolv.conf", "/etc/shadow"})
"""Other programs write them day by day; [accounts] looks at what is in them."""


def draft(around: Surroundings) -> Draft:
    """Return each of those files that is here and is no link."""
    host, left_out = around.host, []
    paths = set(WATCHED)
    for folder in FOLDERS:
        try:
            paths |= {f"{folder}/{each.name}" for each in host.tree.entries(folder) if each.kind == "file"}
        except OSError:
            continue  # most machines lack some
    text = [section("files", decide="add the files of your own services")]
    for path in sorted(paths):
        try:
            descriptor = host.open_file(path)
            try:
                facts, access = facts_of(descriptor), access_of(descriptor)
            finally:
                os.close(descriptor)
            if access.acl or access.capabilities:
                left_out.append(f"files: {path}: has an ACL or capabilities, write them by hand")
                continue
            public = bool(facts.mode & stat.S_IROTH) and path not in _CHANGING
            digest = hash_file(host, path).sha256 if public else None
        except FileNotFoundError:
            continue
        except OSError as error:
            left_out.append(f"files: {path}: {error.strerror or error}")
            continue
        keys = {
            "path": path,
            "sha256": digest,
            "owner": facts.owner,
            "group": facts.group,
            "mode": f"{facts.mode:04o}",
        }
        writable = facts.mode & (stat.S_IWGRP | stat.S_IWOTH)
        text.append(
            entry("files.file", keys, decide="others than its owner may write it" if writable else "")
        )
    return Draft("\n".join(text), left_out)

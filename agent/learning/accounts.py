"""Draft of `[accounts]`: who may log in, who is in which privileged group, sudo's rules, keys by fingerprint, PAM files.

No password, not even its hash: only whether there is one.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.accountfiles import parse_group, parse_passwd, parse_shadow, password_state
from agent.learning import Draft, entry, section
from agent.probes import Surroundings, accounts
from agent.sshdconfig import key_files, other_ways

_MAX_BYTES = 1024 * 1024


def draft(around: Surroundings) -> Draft:
    """Return the accounts of the files below the root. Raises OSError without /etc/passwd."""
    probe = accounts.Probe(accounts.Section(), around)
    settings = probe.sshd_settings()
    keys_in = accounts.Section().authorized_keys
    if settings:
        keys_in = list(dict.fromkeys([*keys_in, *(pattern for _, pattern in key_files(settings))]))
    ways = sorted({each.text for each in other_ways(settings)})
    keys: dict[str, object] = {"unknown": "report"}
    keys |= {"authorized_keys": keys_in} if keys_in != accounts.Section().authorized_keys else {}
    keys |= {"sshd": ways} if ways else {}
    text = [section("accounts", keys), *_users(around), *_groups(around)]
    left_out = []
    probe = accounts.Probe(accounts.Section(authorized_keys=keys_in), around)
    for each in probe.unlisted():
        sha256 = each.found.removeprefix("sha256 ").partition(":")[0]
        if not each.found.startswith("sha256 "):
            left_out.append(f"accounts: {each.key}: {each.wanted}")
        elif each.key.startswith("/etc/sudoers"):
            decide = "who may become root, and for what?"
            text.append(entry("accounts.sudoers", {"path": each.key, "sha256": sha256}, decide=decide))
        elif each.key.startswith((*(f"{folder}/" for folder in accounts.PAM_FOLDERS), "/etc/pam.conf")):
            text.append(entry("accounts.pam", {"path": each.key, "sha256": sha256}))
        else:
            decide = "no package brought this: who did?"
            text.append(entry("accounts.file", {"path": each.key, "sha256": sha256}, decide=decide))
    seen: set[tuple[str, str, str]] = set()
    for user, key in probe.authorized():
        if (user, key.fingerprint, key.options) in seen:
            continue
        seen.add((user, key.fingerprint, key.options))
        if not key.fingerprint:
            left_out.append(f"accounts: line {key.number} of the keys of {user} is no key")
            continue
        said = {"user": user, "fingerprint": key.fingerprint, "options": key.options or None}
        text.append(entry("accounts.key", said, decide="whose key is this?"))
    return Draft("\n".join(text), left_out)


def _users(around: Surroundings) -> Iterator[str]:
    host = around.host
    users, _ = parse_passwd(host.read_file("/etc/passwd", max_bytes=_MAX_BYTES))
    try:
        shadow = parse_shadow(host.read_file("/etc/shadow", max_bytes=_MAX_BYTES))
    except FileNotFoundError:
        shadow = {}
    for user in users:
        state = password_state(user, shadow)
        if (user.logs_in() and user.name != "root") or (state != "locked" and user.name != "root"):
            keys = {"name": user.name, "uid": user.uid, "shell": user.shell or None, "password": state}
            if state == "empty":
                yield entry(
                    "accounts.user",
                    {**keys, "password": "any"},
                    decide="its password is EMPTY: set or lock it",
                )
            else:
                yield entry("accounts.user", keys, decide="does anybody still log in as this?")


def _groups(around: Surroundings) -> Iterator[str]:
    host = around.host
    users, _ = parse_passwd(host.read_file("/etc/passwd", max_bytes=_MAX_BYTES))
    try:
        groups, _ = parse_group(host.read_file("/etc/group", max_bytes=_MAX_BYTES))
    except FileNotFoundError:
        return
    for group in groups:
        if group.name in accounts.Section().privileged:
            members = {*group.members, *(user.name for user in users if user.gid == group.gid)} - {"root"}
            if members:
                decide = "whoever is in it is as good as root"
                yield entry("accounts.group", {"name": group.name, "members": sorted(members)}, decide=decide)

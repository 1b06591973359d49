"""sshd's configuration, as bytes in and ways in out: what lets somebody in besides the keys that are looked at. Pure.

Reads sshd_config(5) as the one that shows more: a setting counts wherever it stands, in a `Match` block or after another of its
name. Refuses to judge what `sshd -f` or `-o` would make of it: who starts sshd otherwise is for `[services]` to see.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

FOLDER = "/etc/ssh"
MAIN = f"{FOLDER}/sshd_config"
KEYS_FILE, INCLUDE = "authorizedkeysfile", "include"
_DEFAULT_FILES = (".ssh/authorized_keys", ".ssh/authorized_keys2")
_LINE = re.compile(r"\s*([A-Za-z][A-Za-z0-9]*)(?:\s*=\s*|\s+)(.*)", re.DOTALL)
_WORD = re.compile(r'"([^"]*)"|([^\s"]+)')
_WAYS = {
    "authorizedkeyscommand": ("none",),
    "authorizedprincipalscommand": ("none",),
    "authorizedprincipalsfile": ("none",),
    "trustedusercakeys": ("none",),
    "hostbasedauthentication": ("no",),
    "ignorerhosts": ("yes",),
    "gssapiauthentication": ("no",),
    "kerberosauthentication": ("no",),
    "permitemptypasswords": ("no",),
    "permituserenvironment": ("no",),
    "strictmodes": ("yes",),
    "usepam": ("yes",),
}
"""Settings that open another way in, or make a lock useless, and the values with which they do not."""


class Setting(NamedTuple):
    """One line."""

    keyword: str
    """In small letters."""
    arguments: tuple[str, ...]
    text: str
    """As it stands there, blanks folded."""
    always: bool
    """False in a block that holds for some connections only."""


def parse_sshd_config(untrusted: bytes) -> list[Setting]:
    """Return the settings, of every block."""
    found: list[Setting] = []
    always = True
    for line in untrusted.decode("utf-8", "backslashreplace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or line.lstrip().startswith("#"):
            continue
        keyword, rest = match.groups()
        words = []
        for quoted, bare in _WORD.findall(rest):
            if bare.startswith("#"):
                break
            words.append(quoted or bare)
        if keyword.lower() == "match":
            always = [each.lower() for each in words] == ["all"]
        found.append(Setting(keyword.lower(), tuple(words), " ".join(line.split()), always))
    return found


def key_files(settings: list[Setting]) -> Iterator[tuple[Setting, str]]:
    """Yield each file of keys that sshd would look into, as `accounts.authorized_keys` writes it, with its line."""
    named = [each for each in settings if each.keyword == KEYS_FILE]
    if not any(each.always for each in named):
        named.append(
            Setting(KEYS_FILE, _DEFAULT_FILES, f"AuthorizedKeysFile {' '.join(_DEFAULT_FILES)}", True)
        )
    for setting in named:
        for pattern in setting.arguments:
            if pattern.lower() != "none":
                yield setting, pattern.removeprefix("%h/")


def other_ways(settings: list[Setting]) -> Iterator[Setting]:
    """Yield what lets somebody in without a key that is looked at."""
    for setting in settings:
        harmless = _WAYS.get(setting.keyword)
        if harmless is not None and not {each.lower() for each in setting.arguments} <= set(harmless):
            yield setting

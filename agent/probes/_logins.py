"""What decides about logins besides accounts, keys and sudo's rules: for `[accounts]`. Not a probe.

PAM modules, polkit's rules and login scripts for everybody, held to what packages brought or the section lists; and
sshd's configuration, where a line can have keys looked for elsewhere or ask no key at all. Told only, never repaired.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

from agent import sshdconfig, units
from agent.accountsection import Section
from agent.glance import Glance
from agent.host import Host
from agent.probes import Difference, could_not_look
from agent.probes._bounds import bounded
from agent.probes._kept import PackagedFiles, Reader
from agent.sshdconfig import Setting, parse_sshd_config

PAM_FOLDERS = ("/etc/pam.d", "/usr/lib/pam.d")
MAX_TOLD = 16
MAX_MODULE_BYTES = 8 * 1024 * 1024
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_POLKIT = tuple(f"{root}/polkit-1/rules.d" for root in ("/etc", "/run", "/usr/local/share", "/usr/share"))
_AUTHORITY = tuple(
    f"{root}/polkit-1/localauthority/{each}.d"
    for root in ("/etc", "/var/lib")
    for each in ("10-vendor", "20-org", "30-site", "50-local", "90-mandatory")
)
FOLDERS = ("/etc/profile.d", *_POLKIT, *_AUTHORITY)
_SSHD_MORE = f"{sshdconfig.FOLDER}/sshd_config.d"
_MAX_INCLUDES = 64


class Logins:
    """Looks at one machine for one section."""

    def __init__(self, section: Section, host: Host, packaged: PackagedFiles) -> None:
        self._section = section
        self._host = host
        self._packaged = packaged
        self._folders: list[str] = []
        """As they were last found."""
        self._files = Reader(lambda content: None, MAX_MODULE_BYTES)
        self._sshd = Reader(parse_sshd_config)

    def folders(self) -> list[str]:
        """Return the folders that are looked at, those of PAM's modules among them. One that is a link is another's."""
        tree = self._host.tree
        found = list(FOLDERS)
        for library in _LIBRARIES:
            try:
                inner = [entry.name for entry in tree.entries(library) if entry.kind == "folder"]
            except OSError:  # not there, or a link to one that is looked at
                continue
            found += [f"{library}/{name}/security" for name in inner if "-linux-" in name]
            found += [f"{library}/security"] if "security" in inner else []
        self._folders = found
        return found

    @contextmanager
    def quickly(self, glance: Glance) -> Iterator[None]:
        """Within this, do not open a file again that a glance finds to be the same."""
        with self._files.quickly(glance):
            yield

    def watched(self) -> list[str]:
        """Return the folders that are worth a look as soon as they are touched: not those of packages alone."""
        modules = [folder for folder in self._folders if folder.endswith("/security")]
        return [_SSHD_MORE, "/etc/profile.d", _POLKIT[0], *modules]

    def differences(self) -> Iterator[Difference]:
        """Yield what is not as the section or a package has it, and what cannot be looked at."""
        yield from bounded("login files", self.unlisted(), MAX_TOLD)
        yield from bounded("sshd", self._ways(), MAX_TOLD)

    def unlisted(self) -> Iterator[Difference]:
        """Yield each file that is in none of the section's entries and not as a package brought it, and wrong ones."""
        listed = {each.path: each.sha256 for each in self._section.file}
        there: dict[str, str] = dict.fromkeys(listed, "")
        for folder in self.folders():
            try:
                for entry in units.listed(self._host.tree, folder):
                    if entry.kind != "folder":
                        there[f"{folder}/{entry.name}"] = entry.target
            except OSError as error:
                yield could_not_look(folder, "a list of its files", error)
        for path, target in sorted(there.items()):
            yield from self._judged(path, target, listed.get(path))

    def pam_files(self) -> Iterator[Difference]:
        """Yield each file of PAM's rules that is in no entry and not as a package brought it, and wrong ones."""
        listed = {each.path: each.sha256 for each in self._section.pam}
        there = {"/etc/pam.conf"}
        for folder in PAM_FOLDERS:
            for entry in files_in(self._host, folder):
                if isinstance(entry, Difference):
                    yield entry
                else:
                    there.add(entry)
        for path in sorted(there | set(listed)):
            try:
                found = self._files.read(self._host, path)
            except FileNotFoundError:
                if path in listed:
                    yield Difference(path, "there", "not there")
                continue
            except OSError as error:
                yield could_not_look(path, "a look at the PAM file", error)
                continue
            if path in listed:
                if found.sha256 != listed[path]:
                    yield Difference(f"{path} sha256", listed[path], found.sha256)
            elif self._section.packaged == "report" or not self._packaged.has(path, found.md5):
                yield Difference(path, "a listed file", f"sha256 {found.sha256}")

    def settings(self) -> list[Setting]:
        """Return the lines of sshd's configuration, with what it includes; none without sshd. Raises OSError."""
        found: list[Setting] = []
        waiting, seen = [sshdconfig.MAIN], set[str]()
        while waiting:
            path = waiting.pop(0)
            if path in seen or len(seen) >= _MAX_INCLUDES:
                continue
            seen.add(path)
            try:
                parsed = self._sshd.read(self._host, path).parsed
            except FileNotFoundError:
                continue
            found += parsed
            for setting in parsed:
                if setting.keyword == sshdconfig.INCLUDE:
                    for pattern in setting.arguments:
                        waiting += self._matching(pattern)
        return found

    def _judged(self, path: str, target: str, wanted: str | None) -> Iterator[Difference]:
        if target:
            if not (self._section.packaged == "accept" and self._packaged.has(path, "")):
                yield Difference(path, "a listed file", f"link to {target}")
            return
        try:
            found = self._files.read(self._host, path)
        except FileNotFoundError:
            if wanted is not None:
                yield Difference(path, "there", "not there")
            return
        except OSError as error:
            yield could_not_look(path, "a look at the file", error)
            return
        if wanted is not None:
            if found.sha256 != wanted:
                yield Difference(f"{path} sha256", wanted, found.sha256)
        elif self._section.packaged == "report" or not self._packaged.has(path, found.md5):
            yield Difference(path, "a listed file", f"sha256 {found.sha256}")

    def _ways(self) -> Iterator[Difference]:
        try:
            settings = self.settings()
        except OSError as error:
            yield could_not_look(sshdconfig.MAIN, "a look at sshd's configuration", error)
            return
        if not settings:
            return  # no sshd
        allowed = {" ".join(each.split()).lower() for each in self._section.sshd}
        for setting in sshdconfig.other_ways(settings):
            if setting.text.lower() not in allowed:
                yield Difference(
                    f"sshd {setting.text}", "no such line, or one of accounts.sshd", setting.text
                )
        for setting, pattern in sshdconfig.key_files(settings):
            if pattern not in self._section.authorized_keys:
                wanted = ", ".join(self._section.authorized_keys)
                yield Difference(f"sshd keys {pattern}", f"one of {wanted}", setting.text)

    def _matching(self, pattern: str) -> list[str]:
        """Return the files that an Include means: a pattern in its last part only. Raises OSError for another."""
        path = pattern if pattern.startswith("/") else f"{sshdconfig.FOLDER}/{pattern}"
        folder, _, name = path.rpartition("/")
        if set("*?[") & set(folder):
            raise OSError(0, "an Include with a pattern among its folders", path)
        if not set("*?[") & set(name):
            return [path]
        try:
            names = [entry.name for entry in self._host.tree.entries(folder) if entry.kind != "folder"]
        except FileNotFoundError:
            return []
        return [f"{folder}/{each}" for each in names if fnmatchcase(each, name) and not each.startswith(".")]


def files_in(host: Host, folder: str) -> Iterator[str | Difference]:
    """Yield the paths of files and links in a folder, or the difference that it cannot be read."""
    try:
        for entry in units.listed(host.tree, folder):
            if entry.kind != "folder":
                yield f"{folder}/{entry.name}"
    except OSError as error:
        yield could_not_look(folder, "a list of its files", error)

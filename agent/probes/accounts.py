"""`[accounts]`: who may log in and become root: users, groups, passwords, sudo rules, keys, PAM, polkit, sshd's own ways.

Reads the files below the root, not the name service: an account that only a directory server knows is not seen here.
Default deny: what is not listed is drift. Repairs only with `unknown = "repair"`, and only two things that open a
door and can be put back: unknown lines of authorized_keys are taken out, unknown files of sudoers.d taken away, both kept
in the agent's state. Users, groups, passwords and PAM are for people: a wrong repair there locks everybody out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from agent import probes, sshdconfig
from agent.accountfiles import (
    SUDOERS_FOLDER,
    Key,
    User,
    parse_authorized_keys,
    parse_group,
    parse_passwd,
    parse_shadow,
    parse_sudoers,
    password_state,
)
from agent.accountsection import Section
from agent.homes import home_of
from agent.host import Watched
from agent.probes import Difference, could_not_look
from agent.probes._bounds import bounded
from agent.probes._kept import PackagedFiles, Reader, Small, aside, put_aside, put_asides, remember
from agent.probes._logins import PAM_FOLDERS, Logins, files_in
from agent.sshdconfig import Setting
from agent.tree import Kept, file_of
from contract.messages import Drift

__all__ = ["PAM_FOLDERS", "Probe", "Section"]

MAX_TOLD = 16
"""Differences of one kind told one by one."""
_SINGLE = (
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/sudoers",
    "/etc/pam.conf",
    sshdconfig.MAIN,
)
_PACKAGED = (*(f"{each}/" for each in (*PAM_FOLDERS, SUDOERS_FOLDER)), "/etc/sudoers", "/etc/pam.conf")


class Probe(probes.Probe[Section]):
    """Compares account files with the section."""

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._passwd = Reader(parse_passwd)
        self._group = Reader(parse_group)
        self._shadow = Reader(parse_shadow)
        self._sudoers = Reader(parse_sudoers)
        self._keys = Reader(parse_authorized_keys)
        self._packaged = PackagedFiles(around.host, _PACKAGED)
        self._logins = Logins(section, around.host, self._packaged)
        self._allowed = {(key.user, key.fingerprint, key.options) for key in section.key}
        self._homes: set[str] = set()
        """Of users who log in."""
        self._owners: dict[str, set[str]] = {}
        """Files of authorized_keys, and whose they are."""
        self._strange: dict[str, set[str]] = {}
        """Files of authorized_keys with lines that are not allowed, and whose they are."""

    def observe(self, now: float) -> list[Drift]:
        """Return a drift for each account, member, rule, key and file that is not listed, or that cannot be read."""
        self._packaged.cover([*_PACKAGED, *(f"{each}/" for each in self._logins.folders())])
        self._packaged.refresh()
        with self.around.host.glance() as glance, self._logins.quickly(glance):
            found = self.drifts(self._differences(), now)
        self.around.host.watch_files(self.name, self._watched())
        return found

    def _watched(self) -> Watched:
        """Return what is worth a look at once; of homes only whether a folder of keys comes."""
        listed = {entry.path for entry in self.section.sudoers} | {entry.path for entry in self.section.pam}
        firsts = {pattern.partition("/")[0] for pattern in self.section.authorized_keys}
        return Watched(
            paths=frozenset({*_SINGLE, *self._owners, *listed, *(entry.path for entry in self.section.file)}),
            folders=frozenset({SUDOERS_FOLDER, PAM_FOLDERS[0], *self._logins.watched()}),
            appearing=frozenset(f"{home}/{first}" for home in self._homes for first in firsts if first),
        )

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Take away unknown files of sudoers.d and unknown lines of authorized_keys, where the section asks for it."""
        if self.section.unknown != "repair":
            return
        wrong = {drift.key for drift in drifts}
        listed = {each.path for each in self.section.sudoers}
        unread = self._packaged.missing
        if self.section.packaged == "accept" and unread and not isinstance(unread, FileNotFoundError):
            listed |= wrong  # a package's file might be among them
        for path in self._in_folder(SUDOERS_FOLDER, wrong):
            if path not in listed:
                with suppress(OSError):  # the next observation reports it
                    put_aside(self, path)
        for path, users in self._strange.items():
            with suppress(OSError):
                self._take_out(path, users)

    def recall(self, now: float) -> None:
        """Look: what may be taken away is known from that."""
        self.observe(now)

    def undo(self) -> None:
        """Put back what was taken away. A file that is there again stays; lines of keys are added to it."""
        tree = self.around.host.tree
        for path, kept in put_asides(self):
            with suppress(OSError):  # its folder has gone
                there = tree.keep(path)
                if there.kind == "absent":
                    tree.put(path, kept)
                elif there.kind == kept.kind == "file" and not path.startswith(f"{SUDOERS_FOLDER}/"):
                    tree.put(path, _merged(there, kept))
        for key, _ in self.handed_over():
            path, before = aside(self, key)
            if isinstance(self.successor, Probe) and before is not None and before.kind == "file":
                with suppress(OSError):
                    self.successor.give_back(path, before, self._owners.get(path, set()))

    def governs(self, key: str) -> bool:
        """True for what was put aside, but for files of sudo that the section lists."""
        path, kept = aside(self, key)
        return kept is not None and path not in {each.path for each in self.section.sudoers}

    def give_back(self, path: str, before: Kept, users: set[str]) -> None:
        """Add those lines of a key file as it was that this section allows and an older one took out. Raises OSError."""
        if path.startswith(f"{SUDOERS_FOLDER}/"):
            return
        there = self.around.host.tree.keep(path)
        if there.kind != "file":
            return
        content = before.content()
        allowed = {key.number for key in parse_authorized_keys(content) if self._may(users, key)}
        now = there.content().split(b"\n")
        lines = [line for number, line in enumerate(content.split(b"\n"), 1) if number in allowed]
        if missing := [line for line in lines if line not in now]:
            whole = b"\n".join([*(line for line in now if line), *missing]) + b"\n"
            self.around.host.tree.put(path, file_of(whole, there))

    def _differences(self) -> Iterator[Difference]:
        host = self.around.host
        users: list[User] = []
        try:
            users, bad = self._passwd.read(host, "/etc/passwd").parsed
            yield from bounded("/etc/passwd", (_bad("/etc/passwd", each.number) for each in bad), MAX_TOLD)
        except OSError as error:
            yield could_not_look("/etc/passwd", "a look at the users", error)
        try:
            shadow = self._shadow.read(host, "/etc/shadow").parsed
        except FileNotFoundError:
            shadow = {}  # passwords may stand in passwd itself
        except OSError as error:
            shadow = {}
            yield could_not_look("/etc/shadow", "a look at the passwords", error)
        yield from bounded("users", self._users(users, shadow), MAX_TOLD)
        yield from bounded("groups", self._groups(users), MAX_TOLD)
        yield from bounded("sudo rules", self._sudo(), MAX_TOLD)
        yield from bounded("authorized keys", self._authorized(users), MAX_TOLD)
        yield from bounded("PAM files", self._logins.pam_files(), MAX_TOLD)
        yield from self._logins.differences()

    def _users(self, users: list[User], shadow: dict[str, str]) -> Iterator[Difference]:
        listed = {each.name: each for each in self.section.user}
        seen: set[str] = set()
        for user in users:
            key = f"user {user.name}"
            if user.name in seen:
                yield Difference(key, "one line in /etc/passwd", "several")
            seen.add(user.name)
            if (user.uid == 0) != (user.name == "root"):
                yield Difference(f"{key} uid", "0 for root and nobody else", str(user.uid))
            entry = listed.get(user.name)
            state = password_state(user, shadow)
            wanted = entry.password if entry else "any" if user.name == "root" else "locked"
            if state == "empty" or wanted not in ("any", state):
                yield Difference(f"{key} password", "locked or set" if wanted == "any" else wanted, state)
            if entry is None:
                if user.logs_in() and user.name != "root":
                    yield Difference(key, "a listed user, or no shell", user.shell or "/bin/sh")
                continue
            if entry.uid is not None and user.uid != entry.uid and user.name != "root":
                yield Difference(f"{key} uid", str(entry.uid), str(user.uid))
            if entry.shell is not None and user.shell != entry.shell:
                yield Difference(f"{key} shell", entry.shell, user.shell or "/bin/sh")

    def _groups(self, users: list[User]) -> Iterator[Difference]:
        host = self.around.host
        try:
            groups, bad = self._group.read(host, "/etc/group").parsed
        except OSError as error:
            yield could_not_look("/etc/group", "a look at the groups", error)
            return
        try:
            passwords = self._shadow.read(host, "/etc/gshadow").parsed
        except FileNotFoundError:
            passwords = {}
        except OSError as error:
            passwords = {}
            yield could_not_look("/etc/gshadow", "a look at the groups' passwords", error)
        for line in bad:
            yield _bad("/etc/group", line.number)
        listed = {each.name: each.members for each in self.section.group}
        watched = {*self.section.privileged, *listed}
        gids = {group.gid: group.name for group in reversed(groups) if group.name in watched}
        for group in groups:
            name = gids.get(group.gid)  # another name for a privileged number is that group
            if name is None:
                continue
            if name != group.name and group.name not in listed:
                yield Difference(
                    f"group {group.name}", f"a number of its own, not that of {name}", str(group.gid)
                )
            members = {*group.members, *(user.name for user in users if user.gid == group.gid)} - {"root"}
            strange = sorted(members - set(listed.get(group.name, listed.get(name, []))))
            if strange:
                wanted = ", ".join(listed.get(name, [])) or "nobody"
                yield Difference(
                    f"group {group.name} members", wanted, f"also {', '.join(strange[:MAX_TOLD])}"
                )
            if passwords.get(group.name, "!")[:1] not in ("!", "*", ""):
                yield Difference(f"group {group.name} password", "none", "set")

    def _sudo(self) -> Iterator[Difference]:
        listed = {each.path: each for each in self.section.sudoers}
        there: set[str] = set()
        for entry in files_in(self.around.host, SUDOERS_FOLDER):
            if isinstance(entry, Difference):
                yield entry
            elif not ("." in entry.rpartition("/")[2] or entry.endswith("~")):  # sudo passes those over
                there.add(entry)
        for path in sorted({"/etc/sudoers", *there, *listed}):
            try:
                found = self._sudoers.read(self.around.host, path)
            except FileNotFoundError:
                if path in listed:
                    yield Difference(path, "there", "not there")
                continue
            except OSError as error:
                yield could_not_look(path, "a look at sudo's rules", error)
                continue
            rule = listed.get(path)
            if rule is None:
                known = self.section.packaged == "accept" and self._packaged.has(path, found.md5)
                if found.parsed and not known:
                    yield Difference(path, "no such file", f"sha256 {found.sha256}: {found.parsed[0]}")
            elif rule.sha256 is not None and rule.sha256 != found.sha256:
                yield Difference(f"{path} sha256", rule.sha256, found.sha256)
            elif rule.rules is not None:
                allowed = {" ".join(each.split()) for each in rule.rules}
                for line in found.parsed:
                    if line not in allowed:
                        yield Difference(f"{path} {line}", "no such rule", line)

    def unlisted(self) -> list[Difference]:
        """Return every file of sudo's rules, of PAM and of logins that no entry names and no package brought."""
        self._packaged.cover([*_PACKAGED, *(f"{each}/" for each in self._logins.folders())])
        return [*self._sudo(), *self._logins.pam_files(), *self._logins.unlisted()]

    def sshd_settings(self) -> list[Setting]:
        """Return the lines of sshd's configuration. Raises OSError."""
        return self._logins.settings()

    def authorized(self) -> Iterator[tuple[str, Key]]:
        """Yield every key that opens an account, with the account's name. Raises OSError without /etc/passwd."""
        users, _ = self._passwd.read(self.around.host, "/etc/passwd").parsed
        for each in self._key_files(users):
            if not isinstance(each, Difference):
                yield from ((name, key) for name in sorted(each[1]) for key in each[2].parsed)

    def _authorized(self, users: list[User]) -> Iterator[Difference]:
        self._strange = {}
        for each in self._key_files(users):
            if isinstance(each, Difference):
                yield each
                continue
            path, names, found = each
            if found.names != 1:
                yield Difference(f"{path} names", "one", f"{found.names}: not touched")
            yield from self._strange_keys(path, names, found)

    def _key_files(self, users: list[User]) -> Iterator[Difference | tuple[str, set[str], Small[list[Key]]]]:
        """Yield path, whose it is, and content of each file of keys; or the difference that it cannot be read."""
        host = self.around.host
        self._homes = set()
        whose: dict[str, set[str]] = {}
        for user in users:
            try:
                home = home_of(host.tree, user)
            except OSError as error:
                yield could_not_look(f"home of {user.name}", "a look at its keys", error)
                home = None
            if home is not None and user.logs_in():
                self._homes.add(home)
            for pattern in self.section.authorized_keys:
                path = pattern.replace("%u", user.name)
                if path.startswith("/") or home is not None:
                    whose.setdefault(path if path.startswith("/") else f"{home}/{path}", set()).add(user.name)
        self._owners = whose
        for path, names in sorted(whose.items()):
            try:
                yield path, names, self._keys.read(self.around.host, path)
            except FileNotFoundError:
                continue
            except OSError as error:
                yield could_not_look(path, "a look at the keys", error)

    def _strange_keys(self, path: str, users: set[str], found: Small[list[Key]]) -> Iterator[Difference]:
        for key in found.parsed:
            if not self._may(users, key):
                self._strange[path] = users
                what = key.fingerprint or f"line {key.number}"
                yield Difference(f"{path} {what}", "a listed key", f"{key.options} {key.label}".strip())

    def _may(self, users: set[str], key: Key) -> bool:
        return any((user, key.fingerprint, key.options) in self._allowed for user in users)

    def _in_folder(self, folder: str, wrong: set[str]) -> list[str]:
        paths = [entry for entry in files_in(self.around.host, folder) if isinstance(entry, str)]
        more = "sudo rules" in wrong  # more of them than are named
        return [path for path in paths if path in wrong or (more and self._is_strange(path))]

    def _is_strange(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        if "." in name or name.endswith("~"):
            return False
        try:
            found = self._sudoers.read(self.around.host, path)
        except OSError:
            return True  # a link: sudo would follow it
        known = self.section.packaged == "accept" and self._packaged.has(path, found.md5)
        return bool(found.parsed) and not known

    def _take_out(self, path: str, users: set[str]) -> None:
        tree = self.around.host.tree
        if self._keys.read(self.around.host, path).names != 1:
            return
        kept = tree.keep(path)
        if kept.kind != "file":
            return
        content = kept.content()
        strange = {key.number for key in parse_authorized_keys(content) if not self._may(users, key)}
        if strange:
            remember(self, path, kept)
            lines = content.split(b"\n")
            left = [line for number, line in enumerate(lines, 1) if number not in strange]
            tree.put(path, file_of(b"\n".join(left), kept))


def _bad(path: str, number: int) -> Difference:
    return Difference(f"{path} line {number}", "a line of the file's form", "another one")


def _merged(there: Kept, before: Kept) -> Kept:
    """Return the file as it was, unless somebody has added lines since: then those and what was taken out."""
    now, then = there.content().split(b"\n"), before.content().split(b"\n")
    if set(now) <= set(then):
        return before
    missing = [line for line in then if line and line not in now]
    return file_of(b"\n".join([*(line for line in now if line), *missing]) + b"\n", there)

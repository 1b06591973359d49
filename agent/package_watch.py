"""Which upgrades account for new lines of the IMA log, so that an ordinary upgrade is not taken for an attack.

Reads the package databases only when a line is new that the baseline does not allow. A file is claimed for a package
when its content now is both what was measured and what the database records. The controller takes this as an
explanation and not as proof, and only for packages that the signed baseline names (`contract.imarules`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from agent.packages import InstalledPackage, PackageDatabase
from contract.errors import Rejected
from contract.imalog import VIOLATION, read_lines
from contract.imapolicy import ImaPolicy
from contract.imarules import ImaRules, Unknown, explainable
from contract.messages import MAX_PACKAGES_PER_REPORT, MAX_PATHS_PER_PACKAGE, PackageChange

MAX_WAITING: Final = 4096
MAX_REPORTED_FILES: Final = 1024
"""In one report: some 100 KB."""
_INFO: Final = "/var/lib/dpkg/info/"
_UNPACKING: Final = "/var/lib/dpkg/tmp.ci/"
"""Where dpkg runs a new package's first script from, before it lies in `_INFO`."""


class PackageWatch:
    """Follows the log and the package databases, at its own pace. For one thread at a time."""

    def __init__(self, read: Callable[[int], bytes | None], database: PackageDatabase) -> None:
        """`read` returns bytes of the log from an offset on, some at a time; none, or None, at its end."""
        self._read = read
        self._database = database
        self._policy: ImaPolicy | None = None
        self._rules = ImaRules(ImaPolicy())
        self._begin()

    def _begin(self) -> None:
        self._offset = 0
        self._waiting: dict[tuple[str, bytes], None] = {}
        self._looked: tuple[int, ...] | None = None
        self._changes: dict[tuple[str, str], PackageChange] = {}

    def look(self, policy: ImaPolicy) -> tuple[PackageChange, ...]:
        """Return the changes to be reported: those that account for lines measured up to now.

        Begins anew under another policy. Slow only when a line is new that the policy does not allow, or when a
        package was changed while one waits.
        """
        if policy is not self._policy:
            self._policy, self._rules = policy, ImaRules(policy)
            self._begin()
        while lines := self._read(self._offset):
            taken = self._take(lines)
            self._offset += taken
            if not taken:
                break  # not whole, or no log: the controller names line and offset
        if self._waiting:
            stamp = self._database.stamp()
            if stamp != self._looked:
                self._looked = stamp
                self._explain()
        return tuple(self._changes.values())

    def reported(self, changes: tuple[PackageChange, ...]) -> None:
        """Let go of changes that the controller has answered."""
        for change in changes:
            if self._changes.get((change.name, change.after)) == change:
                del self._changes[change.name, change.after]
                self._looked = None  # there is room for others

    def _take(self, untrusted_lines: bytes) -> int:
        """Keep what the policy does not allow; return the size of the whole lines in bytes."""
        end = 0
        with suppress(Rejected):
            for record, fields in read_lines(untrusted_lines):
                end = record.end
                if (
                    isinstance(fields, Rejected)
                    or record.template_sha1 == VIOLATION
                    or not explainable(fields)
                ):
                    continue
                if isinstance(self._rules.judge(fields), Unknown) and len(self._waiting) < MAX_WAITING:
                    self._waiting[fields.name.decode(), fields.digest] = None
                    self._looked = None
        return end

    def _explain(self) -> None:
        wanted: dict[str, list[bytes]] = {}
        for path, digest in self._waiting:
            wanted.setdefault(path, []).append(digest)
        try:
            for package in self._database.installed():
                files = self._claimed(package, wanted)
                if files:
                    self._claim(package, files)
        except OSError:
            self._looked = None  # rpm did not answer; the next look asks again

    def _claimed(self, package: InstalledPackage, wanted: dict[str, list[bytes]]) -> dict[str, bytes]:
        """Return which of the waiting files are this package's."""
        found: dict[str, bytes] = {}
        for file in package.files:
            paths = [file.path]
            if file.path.startswith(_INFO):
                paths.append(_UNPACKING + file.path.rpartition(".")[2])
            for path in paths:
                if path not in wanted:
                    continue
                sha256 = self._database.sha256_of(file)
                if sha256 is not None and bytes.fromhex(sha256) in wanted[path]:
                    found[path] = bytes.fromhex(sha256)
        return found

    def _claim(self, package: InstalledPackage, files: dict[str, bytes]) -> None:
        identity = (package.name, package.version)
        before = self._changes.get(identity)
        if before is None and len(self._changes) >= MAX_PACKAGES_PER_REPORT:
            return
        room = MAX_REPORTED_FILES - sum(len(change.files) for change in self._changes.values())
        kept = dict(before.files) if before else {}
        for path, digest in list(files.items())[: max(0, min(room, MAX_PATHS_PER_PACKAGE - len(kept)))]:
            kept[path] = digest
        if not kept:
            return
        self._changes[identity] = PackageChange(
            name=package.name[:256],
            before=(self._rules.version_of(package.name) or "")[:256],
            after=package.version[:256],
            at=max(0.0, package.changed_at),
            files=kept,
        )
        for path, digest in kept.items():
            self._waiting.pop((path, digest), None)

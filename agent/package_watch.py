"""Which upgrades account for new lines of the IMA log, so that an ordinary upgrade is not taken for an attack.

Reads the package databases only when a line is new that the baseline does not allow. A file is claimed for a package
when its content now is both what was measured and what the database records. The controller takes this as an
explanation and not as proof, and only for packages that the signed baseline names (`contract.imarules`).
"""

from __future__ import annotations

from typing import Final

from agent.packages import InstalledPackage, PackageDatabase
from contract.errors import Rejected
from contract.imalog import VIOLATION, read_lines
from contract.imarules import ImaRules, Unknown, explainable
from contract.messages import MAX_PACKAGES_PER_REPORT, MAX_PATHS_PER_PACKAGE, PackageChange

MAX_WAITING: Final = 4096
_INFO: Final = "/var/lib/dpkg/info/"
_UNPACKING: Final = "/var/lib/dpkg/tmp.ci/"
"""Where dpkg runs a new package's first script from, before it lies in `_INFO`."""


class PackageWatch:
    """Follows new lines and package databases. For one thread."""

    def __init__(self, rules: ImaRules, database: PackageDatabase) -> None:
        self._rules = rules
        self._database = database
        self._waiting: dict[tuple[str, bytes], None] = {}
        self._looked: tuple[int, ...] | None = None
        self._changes: dict[tuple[str, str], PackageChange] = {}

    def look(self, untrusted_lines: bytes) -> tuple[PackageChange, ...]:
        """Return what is to be reported: changes that account for these lines and for those before them.

        Takes whole lines, each once; lines that cannot be read are left to the controller. Slow only when a line is
        new that the baseline does not allow, or when a package was changed while one waits.
        """
        try:
            for record, fields in read_lines(untrusted_lines):
                if (
                    isinstance(fields, Rejected)
                    or record.template_sha1 == VIOLATION
                    or not explainable(fields)
                ):
                    continue
                if isinstance(self._rules.judge(fields), Unknown) and len(self._waiting) < MAX_WAITING:
                    self._waiting[fields.name.decode(), fields.digest] = None
                    self._looked = None
        except Rejected:
            pass  # the controller names line and offset
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
        files = {**(before.files if before else {}), **files}
        kept = dict(list(files.items())[:MAX_PATHS_PER_PACKAGE])
        self._changes[identity] = PackageChange(
            name=package.name[:256],
            before=(self._rules.version_of(package.name) or "")[:256],
            after=package.version[:256],
            at=max(0.0, package.changed_at),
            files=kept,
        )
        for path, digest in kept.items():
            self._waiting.pop((path, digest), None)

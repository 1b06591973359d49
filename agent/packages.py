"""The package databases of the machine, dpkg's and rpm's: which package a file belongs to, and what it should contain.

Reads dpkg's files (`status`, `info/*.list`, `*.md5sums`) and asks the program `rpm`, the only one that reads rpm's; it
runs none of a package's scripts and writes nothing. What a database says of a file is worth as much as the machine's
root user: it can explain an upgrade to people, and vouch for nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import select
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from agent.versions import compare_debian, compare_rpm

RPM_TIMEOUT_S: Final = 120.0
_RPM_PAUSE_S: Final = 0.005
_RPM_READ_BYTES: Final = 65536
_HASH_BYTES: Final = 1024 * 1024
_RPM_FOLDERS: Final = ("usr/lib/sysimage/rpm", "var/lib/rpm")
_RPM_NAMES: Final = ("rpmdb.sqlite", "Packages", "Packages.db")
_RPM_VERSIONS: Final = r"%{=NAME}\t%{=EVR}\n"
_RPM_DATES: Final = r"%{=NAME}\t%{=EVR}\t%{=INSTALLTIME}\n"
_RPM_FORMAT: Final = (
    r"[%{=NAME}\t%{=EVR}\t%{=INSTALLTIME}\t%{=FILEDIGESTALGO}\t%{FILEMODES}\t%{FILEDIGESTS}\t%{FILENAMES}\n]"
)
_RPM_HASHES: Final = {"1": "md5", "2": "sha1", "8": "sha256", "9": "sha384", "10": "sha512", "(none)": "md5"}


class PackageFile(NamedTuple):
    """A file as a database records it."""

    path: str
    """Real path inside the root: symbolic links in its folder are followed (`/bin/sh` lies in `/usr/bin`)."""
    algorithm: str
    """Empty: the database keeps no digest of it (maintainer scripts)."""
    digest: str
    """Lower-case hexadecimal."""


class InstalledPackage(NamedTuple):
    """A package that is installed, or half so."""

    name: str
    version: str
    changed_at: float
    """Seconds since 1970: when it was last unpacked."""
    files: tuple[PackageFile, ...]


class PackageVersion(NamedTuple):
    """A package without its files."""

    name: str
    version: str
    kind: Literal["dpkg", "rpm"]
    """Whose order of versions holds."""
    state: str
    """`installed`, or how far dpkg came with it: `unpacked`, `half-configured` and the like."""


def compare(package: PackageVersion, version: str) -> int:
    """Return below, at or above 0 as the package is older than, the same as or newer than `version`."""
    order = compare_debian if package.kind == "dpkg" else compare_rpm
    return order(package.version, version)


class PackageDatabase:
    """All packages below one root. Reads when asked, and remembers nothing."""

    def __init__(self, root: Path = Path("/"), breathe: Callable[[], None] = lambda: None) -> None:
        self._root = root
        self._breathe = breathe
        self._folders: dict[str, str] = {}

    def stamp(self) -> tuple[int, ...]:
        """Return what differs as soon as a package was changed."""
        watched = ["var/lib/dpkg/status", "var/lib/dpkg/info"]
        watched += [f"{folder}/{name}" for folder in _RPM_FOLDERS for name in _RPM_NAMES]
        found = []
        for path in watched:
            try:
                found.append((self._root / path).stat().st_mtime_ns)
            except OSError:
                found.append(0)
        return tuple(found)

    def installed(self) -> Iterator[InstalledPackage]:
        """Yield every package. A database that is not there has none; raises OSError if `rpm` itself fails."""
        yield from self._dpkg()
        yield from self._rpm()

    def without_files(self, wanted: Callable[[str], bool]) -> Iterator[InstalledPackage]:
        """Yield the packages whose name is wanted, with version and date alone. Raises OSError if `rpm` itself fails."""
        base = self._root / "var/lib/dpkg/info"
        for fields in self._dpkg_paragraphs():
            if wanted(fields["Package"]):
                try:
                    changed_at = (base / f"{_stem(fields)}.list").stat().st_mtime
                except OSError:
                    continue
                yield InstalledPackage(fields["Package"], fields.get("Version", ""), changed_at, ())
        if (folder := self._rpm_folder()) is not None:
            for line in self._ask_rpm(folder, _RPM_DATES):
                name, _, rest = line.partition("\t")
                version, _, at = rest.partition("\t")
                if at.isdigit() and wanted(name):
                    yield InstalledPackage(name, version, float(at), ())

    def versions(self) -> list[PackageVersion]:
        """Return every package with its version. Raises OSError: no database at all, or `rpm` fails."""
        found, databases = [], 0
        try:
            for fields in self._paragraphs():
                name, version, state = fields["Package"], fields.get("Version", ""), fields["State"]
                found.append(PackageVersion(name, version, "dpkg", state))
            databases += 1
        except FileNotFoundError:
            pass
        if (folder := self._rpm_folder()) is not None:
            for line in self._ask_rpm(folder, _RPM_VERSIONS):
                name, _, version = line.partition("\t")
                if name != "gpg-pubkey":  # a key, not a package
                    found.append(PackageVersion(name, version, "rpm", "installed"))
            databases += 1
        if not databases:
            raise OSError(errno.ENOENT, "neither dpkg's nor rpm's database is there")
        return found

    def dpkg_sums(self, folders: Sequence[str]) -> dict[str, str]:
        """Return path to MD5 of what dpkg's packages have below some folders (real paths, with `/` at the end), or at a path.

        A link, which has no content, is there with an empty digest. Raises OSError if there is no dpkg.
        """
        # The last two parts are what a path has left where `/lib` is a link to `/usr/lib`.
        ends = dict.fromkeys(
            "/".join(folder.strip("/").split("/")[-2:]) + "/" * folder.endswith("/") for folder in folders
        )
        needles = [end.encode() for end in ends]
        base = self._root / "var/lib/dpkg"
        status = (base / "status").read_text("utf-8", "surrogateescape")
        tails = tuple(needle.decode() for needle in needles)
        found: dict[str, str] = {}
        for paragraph in status.split("\n\n"):
            self._breathe()
            for path, digest in _CONFFILE.findall(paragraph):
                if any(tail in path for tail in tails):
                    found[self._real(path)] = digest
        for line in self._lines_with(needles, ".md5sums"):
            digest, _, path = line.partition("  ")
            found[self._real("/" + path)] = digest
        for line in self._lines_with(needles, ".list"):
            found.setdefault(self._real(line), "")
        return {path: digest for path, digest in found.items() if path.startswith(tuple(folders))}

    def _lines_with(self, needles: Sequence[bytes], ending: str) -> Iterator[str]:
        """Yield the lines, of all of dpkg's files with that ending, in which one of the needles stands."""
        with os.scandir(self._root / "var/lib/dpkg/info") as entries:
            for entry in entries:
                self._breathe()
                if not entry.name.endswith(ending):
                    continue
                content = Path(entry.path).read_bytes()
                if not self._holds(content, needles):
                    continue
                for line in content.splitlines():
                    self._breathe()
                    if any(needle in line for needle in needles):
                        yield line.decode("utf-8", "surrogateescape")

    def _holds(self, content: bytes, needles: Sequence[bytes]) -> bool:
        for needle in needles:
            self._breathe()  # lists of megabytes are looked through for each of them
            if needle in content:
                return True
        return False

    def sha256_of(self, file: PackageFile) -> str | None:
        """Return the SHA-256 of a file as it is now, or None if it is not what the database records, or is not there."""
        sums = [hashlib.sha256()]
        if file.algorithm and file.algorithm != "sha256":
            sums.append(hashlib.new(file.algorithm, usedforsecurity=False))
        try:
            # O_NONBLOCK: a FIFO in the file's place must not hold anybody.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            descriptor = os.open(self._root / file.path.lstrip("/"), flags)
            with open(descriptor, "rb") as content:  # noqa: PTH123  (a descriptor)
                if not stat.S_ISREG(os.fstat(content.fileno()).st_mode):
                    return None
                while part := content.read(_HASH_BYTES):
                    for each in sums:
                        each.update(part)
        except OSError:
            return None
        if file.algorithm and sums[-1].hexdigest() != file.digest:
            return None
        return sums[0].hexdigest()

    def _real(self, path: str) -> str:
        """Return where a path of a database really lies: links in its folder followed, inside the root."""
        folder, _, name = path.rpartition("/")
        known = self._folders.get(folder)
        if known is None:
            # Links of the root's own are relative in every distribution; an absolute one would lead out of it.
            real = os.path.realpath(self._root / folder.lstrip("/"))
            base = os.path.realpath(self._root)
            inside = os.path.relpath(real, base)
            known = folder if inside.startswith("..") else "" if inside == "." else "/" + inside
            self._folders[folder] = known
        return f"{known}/{name}"

    def _dpkg(self) -> Iterator[InstalledPackage]:
        base = self._root / "var/lib/dpkg"
        for fields in self._dpkg_paragraphs():
            name, stem = fields["Package"], _stem(fields)
            try:
                changed_at = (base / f"info/{stem}.list").stat().st_mtime
            except OSError:
                continue
            files = tuple(self._dpkg_files(base, stem, fields["Text"]))
            yield InstalledPackage(name, fields.get("Version", ""), changed_at, files)

    def _dpkg_paragraphs(self) -> list[dict[str, str]]:
        """Return what `_paragraphs` yields; nothing where there is no dpkg."""
        try:
            return list(self._paragraphs())
        except OSError:
            return []

    def _paragraphs(self) -> Iterator[dict[str, str]]:
        """Yield the fields of each package that is there in any part. `State` is dpkg's word, `Text` the whole. Raises OSError."""
        status = (self._root / "var/lib/dpkg/status").read_text("utf-8", "surrogateescape")
        for paragraph in status.split("\n\n"):
            self._breathe()
            fields = dict(_FIELD.findall(paragraph))
            state = fields.get("Status", "").split()
            if len(state) == 3 and state[2] not in ("not-installed", "config-files") and "Package" in fields:
                yield {**fields, "State": state[2], "Text": paragraph}

    def _dpkg_files(self, base: Path, stem: str, paragraph: str) -> Iterator[PackageFile]:
        try:
            sums = (base / f"info/{stem}.md5sums").read_text("utf-8", "surrogateescape")
        except OSError:
            sums = ""  # packages without files have none
        for line in sums.splitlines():
            digest, _, path = line.partition("  ")
            if path:
                yield PackageFile(self._real("/" + path), "md5", digest)
        for path, digest in _CONFFILE.findall(paragraph):
            yield PackageFile(self._real(path), "md5", digest)
        for script in ("preinst", "postinst", "prerm", "postrm", "config"):
            yield PackageFile(f"/var/lib/dpkg/info/{stem}.{script}", "", "")

    def _rpm(self) -> Iterator[InstalledPackage]:
        folder = self._rpm_folder()
        if folder is None:
            return
        found: dict[tuple[str, str], tuple[float, list[PackageFile]]] = {}
        for line in self._ask_rpm(folder, _RPM_FORMAT):
            fields = line.split("\t", 6)
            if len(fields) != 7:
                continue
            name, version, at, algorithm, mode, digest, path = fields
            _, files = found.setdefault((name, version), (float(at), []))
            kind = _RPM_HASHES.get(algorithm)
            if kind and digest and mode.isdigit() and stat.S_ISREG(int(mode)):
                files.append(PackageFile(self._real(path), kind, digest))
        for (name, version), (installed_at, files) in found.items():
            yield InstalledPackage(name, version, installed_at, tuple(files))

    def _rpm_folder(self) -> Path | None:
        for folder in _RPM_FOLDERS:
            if any((self._root / folder / name).exists() for name in _RPM_NAMES):
                return self._root / folder
        return None

    def _ask_rpm(self, folder: Path, form: str) -> list[str]:
        """Return the lines rpm prints for all packages. Raises OSError."""
        command = ["rpm", "--dbpath", str(folder.absolute()), "-qa", "--qf", form]
        until = time.monotonic() + RPM_TIMEOUT_S
        parts: list[bytes] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as rpm:
            assert rpm.stdout is not None  # noqa: S101  (a pipe was asked for)
            try:
                while True:
                    self._breathe()
                    if select.select([rpm.stdout], [], [], _RPM_PAUSE_S)[0]:
                        if not (part := os.read(rpm.stdout.fileno(), _RPM_READ_BYTES)):
                            break
                        parts.append(part)
                    elif time.monotonic() > until:
                        raise OSError(errno.ETIMEDOUT, f"rpm did not answer within {RPM_TIMEOUT_S:g} s")
                if rpm.wait(_RPM_PAUSE_S * 100):
                    raise OSError(f"rpm did not answer: exit code {rpm.returncode}")
            except subprocess.TimeoutExpired as error:
                raise OSError(f"rpm did not answer: {error}") from None
            finally:
                rpm.kill()
        return b"".join(parts).decode("utf-8", "surrogateescape").splitlines()


def _stem(fields: dict[str, str]) -> str:
    """Return how dpkg names a package's files in `info`."""
    name = fields["Package"]
    return f"{name}:{fields.get('Architecture', '')}" if fields.get("Multi-Arch") == "same" else name


_FIELD = re.compile(r"^(Package|Status|Version|Architecture|Multi-Arch): (.*)$", re.MULTILINE)
_CONFFILE = re.compile(r"^ (/\S+) ([0-9a-f]{32})$", re.MULTILINE)

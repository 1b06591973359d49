"""What a deb or an rpm will put on a node: path and SHA-256 of each file, as IMA will measure it there.

Asks `dpkg-deb` and `rpm`, which know their formats; nothing of a package is run or unpacked to disk. A deb's digests are made here, over its
files and its maintainer scripts; an rpm's are its own. It checks no signature: that is for the package manager of the node.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from contract.errors import Rejected
from contract.imapolicy import MAX_PATH_CHARS, Package, pack

_SCRIPTS: Final = ("preinst", "postinst", "prerm", "postrm", "config")
_MERGED: Final = ("/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/libx32/")
"""Links into /usr on every system of today; IMA measures the real path."""
_RPM_HEAD: Final = r"%{NAME}\n%{EVR}\n"
_RPM_FILES: Final = r"[%{=FILEDIGESTALGO}\t%{FILEMODES}\t%{FILEDIGESTS}\t%{FILENAMES}\n]"
_RPM_SHA256: Final = "8"
_HASH_BYTES: Final = 1024 * 1024
_DEB: Final = b"!<arch>\ndebian-binary"
_RPM: Final = b"\xed\xab\xee\xdb"


def files_of(path: Path) -> Package:
    """Return a package file as an entry of `[ima]`.

    Raises Rejected `package.unreadable`: neither deb nor rpm, damaged, or the program that reads it is missing; OSError.
    """
    with path.open("rb") as file:
        begin = file.read(len(_DEB))
    if begin == _DEB:
        return _deb(path)
    if begin.startswith(_RPM):
        return _rpm(path)
    raise Rejected("package.unreadable", f"{path}: neither a deb nor an rpm")


def _deb(path: Path) -> Package:
    fields = _asked(
        path,
        "dpkg-deb",
        "--show",
        "--showformat=${Package}\n${Version}\n${Architecture}\n${Multi-Arch}\n",
        path,
    )
    name, version, architecture, multi = fields.split("\n")[:4]
    files = {
        where: sha256
        for member, sha256 in _members(path, "--fsys-tarfile")
        if len(where := _real(member)) <= MAX_PATH_CHARS // 4
    }
    stem = f"{name}:{architecture}" if multi == "same" else name
    for member, sha256 in _members(path, "--ctrl-tarfile"):
        if (script := member.lstrip("/")) in _SCRIPTS:
            files[f"/var/lib/dpkg/info/{stem}.{script}"] = sha256
            # From where dpkg runs what comes before the unpacking.
            files[f"/var/lib/dpkg/tmp.ci/{script}"] = sha256
    return pack(name, version, {_raw(where): sha256 for where, sha256 in files.items()})


def _members(path: Path, what: str) -> Iterator[tuple[str, bytes]]:
    """Yield the regular files of a deb's archive, from `/` on, with the SHA-256 of each."""
    argv = [_program("dpkg-deb", path), what, str(path)]
    seen: dict[str, bytes] = {}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asked:
        assert asked.stdout is not None and asked.stderr is not None  # noqa: S101  (both are pipes)
        try:
            with tarfile.open(fileobj=asked.stdout, mode="r|") as archive:
                for member in archive:
                    name = "/" + member.name.removeprefix("./").lstrip("/")
                    if member.islnk():
                        seen[name] = seen["/" + member.linkname.removeprefix("./").lstrip("/")]
                    elif (content := archive.extractfile(member) if member.isreg() else None) is not None:
                        seen[name] = _sha256(content)
                    else:
                        continue
                    yield name, seen[name]
        except (tarfile.TarError, KeyError, EOFError) as error:
            asked.stdout.close()
            raise Rejected("package.unreadable", f"{path}: {_said(asked.stderr) or error}") from None
        asked.stdout.close()
        if asked.wait() != 0:
            raise Rejected("package.unreadable", f"{path}: {_said(asked.stderr)}")


def _rpm(path: Path) -> Package:
    told = _asked(path, "rpm", "-qp", "--nosignature", "--qf", _RPM_HEAD + _RPM_FILES, path)
    name, version, *lines = told.splitlines()
    files = {}
    for line in lines:
        algorithm, mode, digest, where = line.split("\t", 3)
        if not digest or not stat.S_ISREG(int(mode)):
            continue  # folders, links, and what the package only claims
        if algorithm != _RPM_SHA256:
            raise Rejected(
                "package.unreadable", f"{path}: its digests are not SHA-256 (algorithm {algorithm})"
            )
        if len(where := _real(where)) <= MAX_PATH_CHARS // 4:
            files[_raw(where)] = bytes.fromhex(digest)
    return pack(name, version, files)


def _real(path: str) -> str:
    return f"/usr{path}" if path.startswith(_MERGED) else path


def _raw(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _sha256(content: IO[bytes]) -> bytes:
    made = hashlib.sha256()
    while part := content.read(_HASH_BYTES):
        made.update(part)
    return made.digest()


def _program(name: str, path: Path) -> str:
    found = shutil.which(name)
    if found is None:
        package = {"dpkg-deb": "dpkg"}.get(name, name)
        raise Rejected(
            "package.unreadable",
            f"{path}: reading it needs {name} (package {package}), which is not installed here",
        )
    return found


def _asked(path: Path, program: str, *argv: str | Path) -> str:
    done = subprocess.run(
        [_program(program, path), *map(str, argv)],
        capture_output=True,
        check=False,
        text=True,
        errors="surrogateescape",
    )
    if done.returncode != 0:
        raise Rejected("package.unreadable", f"{path}: {' '.join(done.stderr.split())[:500]}")
    return done.stdout


def _said(pipe: IO[bytes]) -> str:
    return " ".join(pipe.read().decode("utf-8", "replace").split())[:500]

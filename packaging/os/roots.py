"""Built packages in clean roots: lint, install, run, upgrade, break, remove. `make packages-try`; as root, on Debian.

    python packaging/os/roots.py [--from DIR] [--base 12=FOLDER] [--base 13=FOLDER] [--only WORD]

A base is a bare root of a Debian (made by mmdebstrap when none is given); every case gets a copy, in namespaces of its own: nothing of
this machine's firewall, processes or mounts is touched. What is tried: `roots_cases.py`, `roots_repository.py`,
`roots_booted.py` and `roots_upgrade.py`, a function each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
SUITES = {"12": "bookworm", "13": "trixie"}
_ALONE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts"]


class Failed(Exception):
    """A case did not go as it must."""


class Root:
    """A copy of a bare root, to be used up. Commands run in it with their own mounts, processes and, unless asked, network."""

    def __init__(self, path: Path, debs: dict[str, Path]) -> None:
        self.path, self.debs = path, debs
        for deb in debs.values():
            shutil.copy(deb, path / "root" / deb.name)

    def run(
        self, script: str, *, code: int | None = 0, says: str = "", network: bool = False, **environment: str
    ) -> str:
        """Run a shell script and return what it wrote. Raises Failed for another exit code, or when `says` is not in it.

        `code` None takes every code but 0.
        """
        up = "" if network else "ip link set lo up; "
        inside = f'{up}mount -t proc proc {self.path}/proc; chroot {self.path} /bin/sh -c "$SCRIPT"'
        done = subprocess.run(
            [*_ALONE, *([] if network else ["--net"]), "sh", "-c", inside],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SCRIPT": script, "DEBIAN_FRONTEND": "noninteractive", **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False, timeout=900,
        )  # fmt: skip
        wrong = done.returncode == 0 if code is None else done.returncode != code
        if wrong or says not in done.stdout:
            raise Failed(
                f"{script}\n  exit code {done.returncode}, wanted {code} and {says!r}:\n{done.stdout[-3000:]}"
            )
        return done.stdout

    def install(
        self, *names: str, code: int | None = 0, says: str = "", force: str = "", **environment: str
    ) -> str:
        """Install copied packages by dpkg, as it does when an administrator calls it."""
        files = " ".join(f"/root/{self.debs[name].name}" for name in names)
        return self.run(f"dpkg --force-unsafe-io {force} -i {files}", code=code, says=says, **environment)

    def version(self, package: str = "ringfence-agent") -> str:
        """Return state and version by dpkg: "installed 1.0-1", "config-files 1.0-1", or "" where it is not known."""
        return self.run(
            f"dpkg-query -W -f '${{db:Status-Status}} ${{Version}}' {package} 2>/dev/null || true"
        ).strip()

    def whole(self) -> None:
        """Raises Failed when dpkg finds anything half done, or left its own files behind."""
        told = self.run(
            "dpkg --audit; find /usr/lib/ringfence* -name '*.dpkg-new' -o -name '*.dpkg-tmp' 2>/dev/null || true"
        )
        if told.strip():
            raise Failed(f"half a state: {told}")


@contextlib.contextmanager
def copied(base: Path, work: Path, debs: dict[str, Path], *, full: int | None = None) -> Iterator[Root]:
    """A copy of a base, written on top of it. With `full` there is room for so many bytes and no more."""
    over = Path(tempfile.mkdtemp(dir=work, prefix="root-"))
    root = over / "root"
    size = "75%" if full is None else str(sum(deb.stat().st_size for deb in debs.values()) + full)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "ringfence-try", over], check=True)
    try:
        for name in ("upper", "work", "root"):
            (over / name).mkdir()
        layers = f"lowerdir={base},upperdir={over}/upper,workdir={over}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "ringfence-try", root], check=True)
        try:
            yield Root(root, debs)
        finally:
            subprocess.run(["umount", "-l", root], check=True)
    finally:
        subprocess.run(["umount", "-l", over], check=True)
        shutil.rmtree(over)


def bumped(
    deb: Path, version: str, work: Path, change: Callable[[Path], object] = lambda folder: None
) -> Path:
    """Return the package under another version, as a later release would bring it. `change` is given its unpacked files."""
    folder = Path(tempfile.mkdtemp(dir=work))
    subprocess.run(["dpkg-deb", "-R", deb, folder], check=True)
    change(folder)
    control = folder / "DEBIAN/control"
    old = next(
        line for line in control.read_text().splitlines() if line.startswith("Version: ")
    ).removeprefix("Version: ")
    for path in (control, folder / "DEBIAN/preinst"):
        if path.exists():
            path.write_text(path.read_text().replace(old, version))
    made = work / f"{deb.name.split('_')[0]}_{version}_{deb.stem.rpartition('_')[2]}.deb"
    subprocess.run(
        ["dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "-b", folder, made],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    shutil.rmtree(folder)
    return made


def bare(suite: str, given: dict[str, Path], work: Path) -> Path:
    """Return a bare root of a Debian, with what the packages depend on; the one given is left as it is."""
    path = work / f"base-{suite}"
    if suite in given:
        subprocess.run(["cp", "-a", given[suite], path], check=True)
    else:
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", SUITES[suite], path], check=True)
    with contextlib.suppress(shutil.SameFileError):
        shutil.copy("/etc/resolv.conf", path / "etc/resolv.conf")
    return path


def main() -> int:
    """Run every case in every Debian; 1 when one failed."""
    for name in ("roots_repository", "roots_booted"):
        import_module(name)
    cases = import_module("roots_upgrade").CASES

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--from", dest="source", type=Path, default=TREE / "dist")
    parser.add_argument("--base", action="append", default=[], metavar="12=FOLDER")
    parser.add_argument("--only", default="", help="Cases whose name has this in it.")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: chroot and namespaces")
    debs = {path.name.split("_")[0]: path for path in sorted(options.source.resolve().glob("*.deb"))}
    if not debs:
        parser.error(f"{options.source} has no packages: make packages")
    given = {number: Path(folder) for number, _, folder in (each.partition("=") for each in options.base)}
    work = Path(tempfile.mkdtemp(prefix="ringfence-roots-"))
    try:
        return _all(cases, debs, given, work, options)
    finally:
        shutil.rmtree(work)


def _all(
    found, debs: dict[str, Path], given: dict[str, Path], work: Path, options: argparse.Namespace
) -> int:  # type: ignore[no-untyped-def]
    newer = {
        f"{name}-newer": bumped(deb, "99.0-1", work)
        for name, deb in debs.items()
        if "controller" in name or "agent" in name
    }
    failed = 0
    for suite in ("here", *SUITES):
        wanted = [
            case
            for case in found
            if (case.where == "here") == (suite == "here") and options.only in case.__name__
        ]
        if not wanted:
            continue
        bases: dict[bool, Path] = {}
        if suite != "here":
            bases[True] = bare(suite, given, work)
            bases[False] = work / f"depends-{suite}"
            subprocess.run(["cp", "-a", bases[True], bases[False]], check=True)
            Root(bases[False], {}).run(
                "apt-get -qq update && apt-get -qq install -y --no-install-recommends nftables netbase",
                network=True,
            )
        for case in wanted:
            began = time.monotonic()
            try:
                if suite == "here":
                    case(options.source.resolve(), work)
                else:
                    with copied(bases[case.bare], work, {**debs, **newer}, full=case.full) as root:
                        case(root, options.source.resolve())
                word = "ok"
            except (Failed, subprocess.SubprocessError) as error:
                failed, word = failed + 1, f"FAILED\n{error}"
            print(f"{suite:5}{case.__name__:32}{time.monotonic() - began:6.1f} s  {word}", flush=True)
        for path in bases.values():
            shutil.rmtree(path)
    print("all as they must" if not failed else f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    import roots  # by its name, as the cases import it: one class Failed and not two

    sys.exit(roots.main())

"""OS packages: `make packages` writes dist/*.deb and dist/*.rpm. The same commit gives the same bytes, in any folder.

Each program is built by PyInstaller into a folder of its own with all that it needs but the C library and zlib, under /usr/lib/NAME; then
nfpm writes a deb and an rpm from one description. What would differ between two builds is fixed here: times are those of the last
commit (SOURCE_DATE_EPOCH), hashing is not randomised, no compiled file of an earlier run is read, modes do not come from the umask.
`packaging/os/twice.py` builds two clones and compares.

    python packaging/os/build.py [--only NAME] [--out DIR]
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import bill
import provenance
from pages import SECTIONS, SHELLS

TREE = Path(__file__).resolve().parents[2]
HERE = TREE / "packaging/os"
TOOLS = TREE / "build/package-tools"
VERSION = (
    os.environ.get("RINGFENCE_VERSION")
    or tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["version"]
)
ABOUT = {
    "ringfence-agent": "Proves how a node booted, holds it to a signed baseline, repairs drift",
    "ringfence-controller": "Judges the evidence of a fleet, hands out baselines, isolates nodes",
    "ringfence": "Admin command of a fleet, with offline signing and verifying",
}
CONTROLLER_UNITS = ("ringfence-controller.service", "ringfence-backup.service", "ringfence-backup.timer")
# PyInstaller's loader is linked with zlib; libnftables reads /etc/protocols, which Debian has in a package of its own.
DEPENDS = {
    "ringfence-agent": {
        "deb": ["libc6 (>= 2.36)", "zlib1g", "nftables", "netbase", "passwd"],
        "rpm": ["libz.so.1()(64bit)", "nftables", "setup", "coreutils", "sed", "findutils", "shadow-utils"],
    },
    "ringfence-controller": {
        "deb": ["libc6 (>= 2.36)", "zlib1g", "passwd"],
        "rpm": ["libz.so.1()(64bit)", "shadow-utils"],
    },
    "ringfence": {"deb": ["libc6 (>= 2.36)", "zlib1g"], "rpm": ["libz.so.1()(64bit)"]},
}
FENCE_DROP_IN = "/usr/lib/systemd/system/ringfence-fence.service.d/10-debian.conf"
# Compiled when the environment was made, in a folder with a name by chance; the linker's build id is taken over that name too.
COMPILED_HERE = "_internal/tpm2_pytss/*.so"
OWNER = os.environ.get("RINGFENCE_MAINTAINER", "The owner of this build <root@localhost.localdomain>")


def run(*argv: str | Path, **environment: str) -> None:
    """Run a tool; its own words are the error."""
    subprocess.run([str(arg) for arg in argv], check=True, cwd=TREE, env={**os.environ, **environment})


def epoch() -> int:
    """Return the time of the last commit, in seconds since 1970."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given or provenance.git(TREE, "log", "-1", "--format=%ct"))


def forget_build_id(library: Path) -> None:
    """Write zeros over a library's build id. objcopy(1), which could take the note out, takes PT_GNU_RELRO with it."""
    told = subprocess.run(["readelf", "-n", library], check=True, capture_output=True, text=True).stdout
    ids = [bytes.fromhex(each) for each in re.findall(r"Build ID: ([0-9a-f]+)", told)]
    content = library.read_bytes()
    for each in ids:
        if content.count(each) != 1:
            raise SystemExit(f"{library}: its build id stands there {content.count(each)} times, wanted once")
        content = content.replace(each, bytes(len(each)))
    library.write_bytes(content)


def freeze(program: str, work: Path) -> Path:
    """Build one program's folder and return it."""
    own = work / f"ringfence-{VERSION}.dist-info"
    own.mkdir(exist_ok=True)
    (own / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ringfence\nVersion: {VERSION}\n")
    run(
        sys.executable, "-m", "PyInstaller", "--noconfirm", "--clean", "--log-level=ERROR",
        "--distpath", work / "dist", "--workpath", work / "work" / program, HERE / "ringfence.spec",
        RINGFENCE_PROGRAM=program, RINGFENCE_METADATA=str(own), PYTHONHASHSEED="0", SOURCE_DATE_EPOCH=str(epoch()),
        PYTHONPATH=f"{TOOLS}:{TREE}", PYTHONPYCACHEPREFIX=str(work / "pycache" / program),
        PYTHONDONTWRITEBYTECODE="1", PYINSTALLER_CONFIG_DIR=str(work / "pyinstaller"),
    )  # fmt: skip
    frozen = work / "dist" / program
    for path in frozen.glob(COMPILED_HERE):
        forget_build_id(path)
    for path in sorted(frozen.rglob("*")):
        if path.is_symlink():
            continue
        path.chmod(0o755 if path.is_dir() or path == frozen / program else 0o644)
        os.utime(path, (epoch(), epoch()))
    said = subprocess.run([frozen / program, "--version"], check=True, capture_output=True, text=True).stdout
    if said.split()[-1] != VERSION and "RINGFENCE_VERSION" not in os.environ:
        raise SystemExit(f"{program} says {said.strip()!r} and not {VERSION}")
    return frozen


def documents(program: str, frozen: Path, work: Path) -> list[dict[str, object]]:
    """Write what stands under /usr/share, and return it as nfpm wants it."""
    doc, section = f"/usr/share/doc/{program}", SECTIONS[program]
    run(sys.executable, HERE / "pages.py", program, work, ABOUT[program], VERSION, PYTHONPATH=str(TREE))
    taken = bill.parts(work / "work" / program / "ringfence", frozen, TREE)
    (work / f"{program}.cdx.json").write_text(bill.cyclonedx(program, VERSION, taken, frozen, stamp()))
    _gzipped(bill.licences(program, taken), work / f"{program}.licences.gz")
    (work / f"{program}.copyright").write_text(_copyright(program, taken))
    _gzipped((TREE / "CHANGELOG.md").read_text(), work / "changelog.gz")
    when = datetime.fromtimestamp(epoch(), UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    entry = (
        f"{program} ({VERSION}-1) stable; urgency=medium\n\n  * See changelog.gz.\n\n -- {OWNER}  {when}\n"
    )
    _gzipped(entry, work / f"{program}.changelog.gz")
    overrides = HERE / "lintian" / program
    return [
        _file(work / f"{program}.{section}.gz", f"/usr/share/man/man{section}/{program}.{section}.gz"),
        *(_file(work / f"{program}.{shell}", to.format(program)) for shell, to in SHELLS.items()),
        _file(work / f"{program}.cdx.json", f"{doc}/{program}.cdx.json"),
        _file(work / f"{program}.licences.gz", f"{doc}/licences.gz"),
        _file(work / f"{program}.copyright", f"{doc}/copyright"),
        _file(work / "changelog.gz", f"{doc}/changelog.gz"),
        {**_file(work / f"{program}.changelog.gz", f"{doc}/changelog.Debian.gz"), "packager": "deb"},
        {**_file(overrides, f"/usr/share/lintian/overrides/{program}"), "packager": "deb"},
        _file(TREE / "docs/operate.md", f"{doc}/operate.md"),
    ]


def contents(program: str, frozen: Path, work: Path) -> list[dict[str, object]]:
    """Return what is installed, as nfpm wants it."""
    doc = f"/usr/share/doc/{program}"
    files: list[dict[str, object]] = [
        {"src": f"{frozen}/", "dst": f"/usr/lib/{program}", "type": "tree"},
        {"src": f"../lib/{program}/{program}", "dst": f"/usr/bin/{program}", "type": "symlink"},
        *documents(program, frozen, work),
    ]
    units = sorted((TREE / "packaging/systemd").iterdir())
    if program == "ringfence-agent":
        run(sys.executable, HERE / "lockdown.py", work / "lockdown.nft", PYTHONPATH=str(TREE))
        files += [
            _file(path, f"/usr/lib/systemd/system/{path.name}")
            for path in units
            if path.name not in CONTROLLER_UNITS
        ]
        usb = "60-ringfence-usb.rules"
        files += [
            _file(TREE / "packaging/udev" / usb, f"/usr/lib/udev/rules.d/{usb}"),
            _file(
                TREE / "packaging/sysusers.d/ringfence-agent.conf", "/usr/lib/sysusers.d/ringfence-agent.conf"
            ),
            _file(
                TREE / "packaging/tmpfiles.d/ringfence-agent.conf", "/usr/lib/tmpfiles.d/ringfence-agent.conf"
            ),
            _file(TREE / "packaging/grub.d/ringfence-usb.cfg", f"{doc}/examples/ringfence-usb.cfg"),
            _file(HERE / "agent/fence", "/usr/lib/ringfence-agent/fence", 0o755),
            {**_file(HERE / "agent/fence-debian.conf", FENCE_DROP_IN), "packager": "deb"},
            _file(HERE / "agent/prepare", "/usr/lib/ringfence-agent/prepare", 0o755),
            _file(HERE / "agent/upgrade", "/usr/lib/ringfence-agent/upgrade", 0o755),
            _file(work / "lockdown.nft", "/usr/lib/ringfence-agent/lockdown.nft"),
            _file(HERE / "agent/agent.toml.example", f"{doc}/examples/agent.toml"),
            {"dst": "/etc/ringfence", "type": "dir", "file_info": {"mode": 0o755, "mtime": stamp()}},
            {"dst": "/var/lib/ringfence", "type": "dir", "file_info": {"mode": 0o700, "mtime": stamp()}},
        ]
        files += [
            _file(path, f"{doc}/baselines/{path.name}")
            for path in sorted((TREE / "baselines").glob("*.toml"))
        ]
    if program == "ringfence-controller":
        files += [
            _file(path, f"/usr/lib/systemd/system/{path.name}")
            for path in units
            if path.name in CONTROLLER_UNITS
        ]
        files += [
            _file(TREE / f"packaging/monitoring/{name}", f"{doc}/monitoring/{name}")
            for name in ("alerts.yaml", "grafana.json")
        ]
        files.append(_file(HERE / "controller/backup", "/usr/lib/ringfence-controller/backup", 0o755))
        files.append(
            {
                **_file(HERE / "controller/backup.conf", "/etc/ringfence-controller/backup.conf"),
                "type": "config|noreplace",
            }
        )
    return files


def describe(program: str, frozen: Path, work: Path) -> Path:
    """Write nfpm's description; returns the file."""
    short = program.removeprefix("ringfence-")
    scripts = {}
    for name, file in (
        ("preinstall", "preinst"),
        ("postinstall", "postinst"),
        ("preremove", "prerm"),
        ("postremove", "postrm"),
    ):
        if (HERE / short / file).exists():
            scripts[name] = str(work / f"{program}.{file}")
            Path(scripts[name]).write_text((HERE / short / file).read_text().replace("@VERSION@", VERSION))
    wanted: dict[str, object] = {
        "name": program,
        "arch": architecture(),
        "platform": "linux",
        "version": VERSION,
        "release": "1",
        "section": "admin",
        "priority": "optional",
        "maintainer": OWNER,
        "description": f"{ABOUT[program]}\nSee /usr/share/doc/{program}/operate.md.",
        "license": "proprietary",
        "rpm": {"buildhost": "localhost", "summary": ABOUT[program], "group": "System Environment/Daemons"},
        "overrides": {kind: {"depends": needed} for kind, needed in DEPENDS[program].items()},
        "contents": [each for entry in contents(program, frozen, work) for each in _kinds(entry)],
        "scripts": scripts,
        "mtime": stamp(),
    }
    path = work / f"{program}.json"
    path.write_text(json.dumps(wanted, indent=1))
    return path


def package(program: str, work: Path, out: Path) -> list[Path]:
    """Build one program's packages and the bill beside them; returns all of them."""
    frozen = freeze(program, work)
    described = describe(program, frozen, work)
    machine = os.uname().machine
    names = {
        "deb": f"{program}_{VERSION}-1_{architecture()}.deb",
        "rpm": f"{program}-{VERSION}-1.{machine}.rpm",
    }
    made = []
    for kind, name in names.items():
        run(
            TOOLS / "bin/nfpm", "package", "--config", described, "--packager", kind, "--target", work / name,
            SOURCE_DATE_EPOCH=str(epoch()),
        )  # fmt: skip
        # Whole or not at all: a build that was cut off leaves no half a package behind.
        made.append(Path(shutil.move(work / name, out / name)))
    beside = out / f"{program}_{VERSION}.cdx.json"
    shutil.copy(work / f"{program}.cdx.json", beside)
    return [*made, beside]


def stamp() -> str:
    """Return the time of the last commit as RFC 3339."""
    return datetime.fromtimestamp(epoch(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def architecture() -> str:
    """Return Debian's name of this machine's architecture. Raises KeyError for one that was never tried."""
    return {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]


def _file(path: Path, to: str, mode: int = 0o644) -> dict[str, object]:
    return {"src": str(path), "dst": to, "file_info": {"mode": mode, "mtime": stamp()}}


def _kinds(entry: dict[str, object]) -> list[dict[str, object]]:
    """Return an entry once, or twice: rpm is told what is documentation, and nfpm leaves what is called so out of a deb."""
    if "packager" in entry or not str(entry["dst"]).startswith(("/usr/share/doc/", "/usr/share/man/")):
        return [entry]
    return [{**entry, "packager": "deb"}, {**entry, "packager": "rpm", "type": "doc"}]


def _gzipped(text: str, path: Path) -> None:
    with gzip.GzipFile(path, "wb", 9, mtime=0) as file:
        file.write(text.encode())


def _copyright(program: str, taken: list[bill.Part]) -> str:
    lines = ["Ringfence is the property of its owner; all rights reserved.", ""]
    lines += ["It contains, in /usr/lib/" + program + ", works of others, each under its own licence:", ""]
    lines += [f"  {part.name} {part.version}: {part.licence}" for part in taken]
    return "\n".join([*lines, "", f"Their texts: /usr/share/doc/{program}/licences.gz"]) + "\n"


def main() -> int:
    """Build what was asked for and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=sorted(SECTIONS))
    parser.add_argument("--out", type=Path, default=TREE / "dist")
    options = parser.parse_args()
    os.umask(0o022)
    work, out = TREE / "build/packages", options.out.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    out.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for program in [options.only] if options.only else sorted(SECTIONS):
        for path in package(program, work, out):
            made.append(path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            print(f"{digest}  {path.stat().st_size / 1e6:6.1f} MB  {path.name}", flush=True)
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(made))
    (out / "SHA256SUMS").write_text(sums)
    (out / f"ringfence_{VERSION}.intoto.json").write_bytes(provenance.statement(TREE, made))
    return 0


if __name__ == "__main__":
    sys.exit(main())

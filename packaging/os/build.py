"""OS packages: `make packages` writes dist/*.deb and dist/*.rpm. The same tree gives the same bytes.

Each program is built by PyInstaller into a folder of its own with all that it needs but the C library, under /usr/lib/NAME; then
nfpm writes a deb and an rpm from one description. Times are those of the last commit (SOURCE_DATE_EPOCH).

    python packaging/os/build.py [--only NAME] [--out DIR]
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
HERE = TREE / "packaging/os"
TOOLS = TREE / "build/package-tools"
VERSION = importlib.metadata.version("ringfence")
SECTIONS = {"ringfence-agent": 8, "ringfence-controller": 8, "ringfence": 1}
ABOUT = {
    "ringfence-agent": "Proves how this node booted, holds it to a signed baseline, repairs or reports every drift",
    "ringfence-controller": "Judges the evidence of a fleet, hands out baselines, isolates compromised nodes and sites",
    "ringfence": "The admin command of Ringfence, and its offline signing and verifying",
}
CONTROLLER_UNIT = "ringfence-controller.service"
# libnftables reads /etc/protocols, which Debian has in a package of its own.
DEPENDS = {"deb": ["nftables", "netbase"], "rpm": ["nftables", "setup"]}


def run(*argv: str | Path, **environment: str) -> None:
    """Run a tool; its own words are the error."""
    subprocess.run([str(arg) for arg in argv], check=True, cwd=TREE, env={**os.environ, **environment})


def epoch() -> str:
    """Return the time of the last commit, in seconds since 1970."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return (
        given
        or subprocess.run(
            ["git", "log", "-1", "--format=%ct"], cwd=TREE, check=True, capture_output=True, text=True
        ).stdout.strip()
    )


def freeze(program: str, work: Path) -> Path:
    """Build one program's folder and return it."""
    run(
        sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=ERROR",
        "--distpath", work / "dist", "--workpath", work / "work" / program, HERE / "ringfence.spec",
        RINGFENCE_PROGRAM=program, PYTHONHASHSEED="0", SOURCE_DATE_EPOCH=epoch(), PYTHONPATH=f"{TOOLS}:{TREE}",
    )  # fmt: skip
    return work / "dist" / program


def manual(program: str, frozen: Path, work: Path) -> Path:
    """Write a manual page from the program's own help; returns the compressed file."""
    told = subprocess.run([frozen / program, "--help"], check=True, capture_output=True, text=True).stdout
    commands = re.findall(r"^  ([a-z][a-z-]+)\s{2,}(\S.*)$", told.partition("Commands:")[2], re.M)
    body = [f'.TH {program.upper()} {SECTIONS[program]} "" "Ringfence {VERSION}"', ".SH NAME"]
    body += [
        f"{program} \\- {ABOUT[program]}",
        ".SH SYNOPSIS",
        f".B {program}",
        "COMMAND [OPTIONS]",
        ".SH COMMANDS",
    ]
    for name, what in commands:
        body += [".TP", f".B {name}", _roff(what)]
    body += [".PP", f"{program} COMMAND \\-\\-help says the rest.", ".SH SEE ALSO"]
    body += [f"/usr/share/doc/{program}/operate.md"]
    page = work / f"{program}.{SECTIONS[program]}.gz"
    with gzip.GzipFile(page, "wb", mtime=0) as file:
        file.write(("\n".join(body) + "\n").encode())
    return page


def completion(program: str, frozen: Path, work: Path) -> Path:
    """Write the shell's completion; returns the file."""
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    told = subprocess.run(
        [frozen / program],
        env={**os.environ, variable: "bash_source"},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    path = work / f"{program}.bash"
    path.write_text(told)
    return path


def bill_of_materials(program: str, frozen: Path, work: Path) -> Path:
    """Write what is inside as CycloneDX 1.5 JSON; returns the file."""
    pins = (TREE / "packaging/setup/requirements.txt").read_text()
    named = dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", pins, re.M))
    components = [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}
        for name, version in sorted(named.items())
    ]
    for path in sorted(frozen.rglob("*.so*")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = str(path.relative_to(frozen))
        components.append({"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]})
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": program, "version": VERSION}},
        "components": components,
    }
    path = work / f"{program}.cdx.json"
    path.write_text(json.dumps(bill, indent=1) + "\n")
    return path


def contents(program: str, frozen: Path, work: Path) -> list[dict[str, object]]:
    """Return what is installed, as nfpm wants it."""
    doc = f"/usr/share/doc/{program}"
    files: list[dict[str, object]] = [
        {"src": f"{frozen}/", "dst": f"/usr/lib/{program}", "type": "tree"},
        {"src": f"/usr/lib/{program}/{program}", "dst": f"/usr/bin/{program}", "type": "symlink"},
        _file(
            manual(program, frozen, work),
            f"/usr/share/man/man{SECTIONS[program]}/{program}.{SECTIONS[program]}.gz",
        ),
        _file(completion(program, frozen, work), f"/usr/share/bash-completion/completions/{program}"),
        _file(bill_of_materials(program, frozen, work), f"{doc}/{program}.cdx.json"),
        _file(TREE / "docs/operate.md", f"{doc}/operate.md"),
        _file(TREE / "CHANGELOG.md", f"{doc}/CHANGELOG.md"),
    ]
    if program == "ringfence-agent":
        files += [
            _file(path, f"/usr/lib/systemd/system/{path.name}")
            for path in sorted((TREE / "packaging/systemd").iterdir())
            if path.name != CONTROLLER_UNIT
        ]
        files += [
            _file(
                TREE / "packaging/udev/60-ringfence-usb.rules", "/usr/lib/udev/rules.d/60-ringfence-usb.rules"
            ),
            _file(TREE / "packaging/grub.d/ringfence-usb.cfg", f"{doc}/examples/ringfence-usb.cfg"),
            _file(HERE / "agent/agent.toml.example", f"{doc}/examples/agent.toml"),
            {"dst": "/etc/ringfence", "type": "dir", "file_info": {"mode": 0o755}},
            {"dst": "/var/lib/ringfence", "type": "dir", "file_info": {"mode": 0o700}},
        ]
        files += [
            _file(path, f"{doc}/baselines/{path.name}")
            for path in sorted((TREE / "baselines").glob("*.toml"))
        ]
    if program == "ringfence-controller":
        unit = TREE / "packaging/systemd" / CONTROLLER_UNIT
        files.append(_file(unit, f"/usr/lib/systemd/system/{unit.name}"))
        for name in ("alerts.yaml", "grafana.json"):
            files.append(_file(TREE / f"packaging/monitoring/{name}", f"{doc}/monitoring/{name}"))
    return files


def describe(program: str, frozen: Path, work: Path) -> Path:
    """Write nfpm's description; returns the file."""
    short = program.removeprefix("ringfence-")
    scripts = {
        name: str(HERE / short / file)
        for name, file in (("postinstall", "postinst"), ("preremove", "prerm"), ("postremove", "postrm"))
        if (HERE / short / file).exists()
    }
    wanted: dict[str, object] = {
        "name": program,
        "arch": "${ARCH}",
        "platform": "linux",
        "version": VERSION,
        "release": "1",
        "section": "admin",
        "priority": "optional",
        "maintainer": "The owner of this build <root@localhost>",
        "description": f"{ABOUT[program]}.\nSee /usr/share/doc/{program}/operate.md.",
        "license": "proprietary",
        "overrides": {
            kind: {"depends": needed if program == "ringfence-agent" else []}
            for kind, needed in DEPENDS.items()
        },
        "contents": contents(program, frozen, work),
        "scripts": scripts,
        "mtime": _stamp(),
    }
    path = work / f"{program}.json"
    path.write_text(json.dumps(wanted, indent=1))
    return path


def package(program: str, work: Path, out: Path) -> list[Path]:
    """Build one program's packages; returns them."""
    frozen = freeze(program, work)
    described = describe(program, frozen, work)
    made = []
    for kind in ("deb", "rpm"):
        before = set(out.iterdir())
        run(
            TOOLS / "bin/nfpm", "package", "--config", described, "--packager", kind, "--target", f"{out}/",
            SOURCE_DATE_EPOCH=epoch(), ARCH=_architecture(),
        )  # fmt: skip
        made += sorted(set(out.iterdir()) - before) or [
            max(out.glob(f"{program}*.{kind}"), key=os.path.getmtime)
        ]
    return made


def _file(path: Path, to: str) -> dict[str, object]:
    return {"src": str(path), "dst": to, "file_info": {"mode": 0o644, "mtime": _stamp()}}


def _stamp() -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(int(epoch()), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]


def _roff(text: str) -> str:
    return text.replace("\\", "\\\\").replace("-", "\\-")


def main() -> int:
    """Build what was asked for and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=sorted(SECTIONS))
    parser.add_argument("--out", type=Path, default=TREE / "dist")
    options = parser.parse_args()
    work = TREE / "build/packages"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    options.out.mkdir(parents=True, exist_ok=True)
    for program in [options.only] if options.only else sorted(SECTIONS):
        for path in package(program, work, options.out):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            print(f"{digest}  {path.stat().st_size / 1e6:6.1f} MB  {path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

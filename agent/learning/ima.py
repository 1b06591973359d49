"""`ringfence-agent learn ima`: the `[ima]` allow-list of a good machine, for a person to read, put into a baseline and sign.

Takes the SHA-256 of every file that a package database lists and that still is what the database records; what was changed
since is named and left out. What a good boot has measured besides (initrd, generated files) comes from its IMA log, and
stands by itself under `allow`, for nobody but that machine vouches for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from agent.packages import PackageDatabase
from contract.errors import Rejected
from contract.imalog import BOOT_AGGREGATE, VIOLATION, read_lines, shown
from contract.imapolicy import MAX_PATH_CHARS, Package, pack, toml_lines
from contract.pathrules import PathRules, refuse_too_wide

_ALGORITHMS = (b"sha256", b"sha384", b"sha512")
_OF_THE_FENCE = re.compile(
    rb"(/usr)?/lib/modules/[^/]+/kernel/net/(.+/)?(netfilter/.+|[a-z0-9_]+_diag)\.ko(\.[a-z0-9]+)?"
)
"""Modules of the kernel that rules, and the cut of an isolation above all, may ask for: a good boot need not have used them, and they
must not be strangers when they are."""
_FOR_UPGRADES = frozenset({"ringfence-agent", "apt", "dpkg", "coreutils", "grep"})
"""What runs when another release of the agent comes, and perhaps in no boot before."""


class Learned(NamedTuple):
    """What a machine has."""

    packages: list[Package]
    allow: dict[str, list[str]]
    """What was measured and no package has, or has otherwise."""
    exclude: tuple[str, ...]
    left_out: list[str]
    """Why some files are not in it, one line each."""


def learn(
    database: PackageDatabase,
    *,
    exclude: tuple[str, ...] = (),
    untrusted_log: bytes | None = None,
    only_measured: bool = False,
    whole: Collection[str] = (),
) -> Learned:
    """Return what the package databases and one IMA log say. `only_measured` leaves out what the log does not
    name, but for modules of the kernel that the fence may load later, what an upgrade of the agent runs, and the packages in `whole`.

    Raises OSError, ValueError for a bad rule in `exclude` or a name in `whole` that is no package here, Rejected `ima.*` for a log that cannot be read.
    """
    refuse_too_wide(exclude)
    excluded = PathRules(exclude)
    left_out: list[str] = []
    measured = _measured(untrusted_log, left_out) if untrusted_log is not None else {}
    packages: list[Package] = []
    known: dict[bytes, set[bytes]] = {}
    missing = set(whole)
    for package in database.installed():
        missing.discard(package.name)
        all_of_it = not only_measured or package.name in _FOR_UPGRADES or package.name in whole
        files: dict[bytes, bytes] = {}
        for file in package.files:
            raw = file.path.encode("utf-8", "surrogateescape")
            seldom = not all_of_it and raw not in measured and not _OF_THE_FENCE.fullmatch(raw)
            if seldom or excluded.match(raw):
                continue
            sha256 = database.sha256_of(file)
            if sha256 is not None and len(raw) <= MAX_PATH_CHARS // 4:
                files[raw] = bytes.fromhex(sha256)
            elif file.algorithm:
                left_out.append(f"{shown(raw)}: not as package {package.name} has it")
        if files:
            packages.append(pack(package.name, package.version, files))
            for raw, digest in files.items():
                known.setdefault(raw, set()).add(digest)
    if missing:
        raise ValueError(f"not installed: {', '.join(sorted(missing))}")
    return Learned(packages, dict(_besides(measured, known, excluded, left_out)), exclude, left_out)


def _measured(untrusted_log: bytes, left_out: list[str]) -> dict[bytes, list[tuple[bytes, bytes]]]:
    """Return path to (algorithm, digest) of every file in a log, in its order."""
    found: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for record, fields in read_lines(untrusted_log):
        if isinstance(fields, Rejected):
            left_out.append(f"a line of the log: {fields}")
        elif record.template_sha1 == VIOLATION:
            left_out.append(f"{shown(fields.name)}: written while it was measured")
        elif fields.name != BOOT_AGGREGATE and fields.buffer is None:
            digests = found.setdefault(fields.name, [])
            if (fields.algorithm, fields.digest) not in digests:
                digests.append((fields.algorithm, fields.digest))
    return found


def _besides(
    measured: dict[bytes, list[tuple[bytes, bytes]]],
    known: dict[bytes, set[bytes]],
    excluded: PathRules,
    left_out: list[str],
) -> Iterator[tuple[str, list[str]]]:
    for raw, digests in sorted(measured.items()):
        others = [(a, d) for a, d in digests if d not in known.get(raw, ())]
        if not others or excluded.match(raw):
            continue
        strong = [f"{a.decode()}:{d.hex()}" for a, d in others if a in _ALGORITHMS]
        try:
            path = raw.decode()
        except UnicodeDecodeError:
            path = ""
        if path.startswith("/") and strong and len(path) <= MAX_PATH_CHARS:
            yield path, strong
        else:
            left_out.append(f"{shown(raw)}: no policy can name it (UTF-8 path, SHA-256 or better)")


def toml_of(learned: Learned) -> str:
    """Return the `[ima]` section."""
    lines = ["[ima]"]
    if learned.exclude:
        lines.append(
            f"exclude = [{', '.join(json.dumps(rule, ensure_ascii=False) for rule in learned.exclude)}]"
        )
    if learned.allow:
        lines += [
            "",
            "# Measured on the machine that this was learned from, and in no package: look at each.",
            "[ima.allow]",
        ]
        for path, digests in learned.allow.items():
            lines.append(f"{json.dumps(path)} = {json.dumps(digests)}")
    for package in learned.packages:
        lines += ["", *toml_lines(package)]
    return "\n".join(lines) + "\n"

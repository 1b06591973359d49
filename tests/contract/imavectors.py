"""The vectors of `tests/vectors/ima`: one log each, with a header that says what to expect. `python -m tests.contract.imavectors` makes them.

A file is header lines `key: value`, an empty line, and the bytes of the log as they travel. Keys: `about`; `expect`, the
codes of the findings in their order, or `good`; `boot`, the recorded case whose PCRs 0 to 9 and allow-list hold; `pcr10`;
`offset`; `more`; `reports` before this one; `policy`, JSON; `change`, a package change in JSON; `witness: no` where
evmctl cannot read the log.
"""

from __future__ import annotations

import base64
import functools
import json
import struct
from pathlib import Path
from typing import NamedTuple

import msgspec

from contract.ima import ImaState
from contract.imalog import read_lines
from contract.imapolicy import ImaPolicy
from contract.imarules import ImaRules
from contract.messages import PackageChange
from tests.contract.forge import Case
from tests.contract.imaforge import Log, allowing, field, sha256

FOLDER = Path(__file__).resolve().parents[1] / "vectors/ima"
VECTORS = sorted(FOLDER.glob("*.vector"))
LINES = 12


class Vector(NamedTuple):
    """A vector as read."""

    expect: list[str]
    pcrs: dict[int, bytes]
    pcr10: bytes
    offset: int
    more: bool
    state: ImaState
    rules: ImaRules
    changes: list[PackageChange]
    witness: bool
    lines: bytes


@functools.cache
def policy_of(case: str) -> ImaPolicy:
    """Return the policy that allows what a recorded boot has measured."""
    return allowing([Case(case).read("ima.bin")])


def read_vector(path: Path) -> Vector:
    """Read one file."""
    head, _, lines = path.read_bytes().partition(b"\n\n")
    keys = dict(line.split(": ", 1) for line in head.decode().splitlines())
    policy = policy_of(keys["boot"])
    if "policy" in keys:
        policy = msgspec.convert(msgspec.to_builtins(policy) | json.loads(keys["policy"]), ImaPolicy)
    expect = [] if keys["expect"] == "good" else keys["expect"].split()
    return Vector(
        expect=expect,
        pcrs=Case(keys["boot"]).pcrs,
        pcr10=bytes.fromhex(keys["pcr10"]),
        offset=int(keys.get("offset", "0")),
        more=keys.get("more") == "yes",
        state=ImaState(reports=int(keys.get("reports", "0"))),
        rules=ImaRules(policy),
        changes=[msgspec.json.decode(keys["change"], type=PackageChange)] if "change" in keys else [],
        witness=keys.get("witness") != "no",
        lines=lines,
    )


def recorded(case: str = "good-rsa", count: int = LINES) -> Log:
    """Return the first lines of a recorded log."""
    log = Log(None)
    for place, (record, _) in enumerate(read_lines(Case(case).read("ima.bin"))):
        if place == count:
            break
        log.line(record.data)
    return log


def _write(name: str, about: str, expect: str, lines: bytes, pcr10: bytes, **keys: object) -> None:
    head = {"about": about, "expect": expect, "boot": "good-rsa", "pcr10": pcr10.hex(), **keys}
    text = "".join(f"{key}: {value}\n" for key, value in head.items())
    (FOLDER / f"{name}.vector").write_bytes(text.encode() + b"\n" + lines)


def _chain() -> None:
    log = recorded()
    _write("good", f"the first {LINES} lines of a recorded boot", "good", log.raw, log.value)
    cut = b"".join(log.lines[:-1])
    _write("m01-cut-before-match", "the last measured line is not sent", "ima.mismatch", cut, log.value)
    _write("m01-cut-in-line", "the last line is cut", "ima.truncated", log.raw[:-5], log.value, witness="no")
    more = recorded().file("/opt/added", sha256(b"added"))
    _write("m02-lines-added", "a line after the match, which is not looked at", "good", more.raw, log.value)
    forged = recorded(count=LINES - 1).file("/usr/bin/sh", sha256(b"other"))
    about = "a line changed, its template hash fixed up"
    _write("m03-hash-fixed-up", about, "ima.mismatch", forged.raw, log.value)
    wrong = recorded().line(log.data(b"/usr/bin/sh", sha256(b"x")), sha1=b"\1" * 20)
    _write(
        "m03-hash-wrong",
        "a template hash that is not of its data",
        "ima.template-hash ima.unknown-file",
        wrong.raw,
        wrong.value,
        witness="no",
    )
    headless = Log(None)
    for record, _ in list(read_lines(log.raw))[1:]:
        headless.line(record.data)
    _write(
        "m04-no-aggregate", "the first line is missing", "ima.boot-aggregate", headless.raw, headless.value
    )
    other = Log(Case("secureboot-on").pcrs)
    _write(
        "m04-other-aggregate",
        "the boot aggregate of another boot",
        "ima.boot-aggregate",
        other.raw,
        other.value,
    )
    _write(
        "m05-offset",
        "lines from an offset of the boot before",
        "ima.offset",
        log.lines[-1],
        log.value,
        offset=1000,
    )
    _write(
        "m10-never",
        "96 reports have not met their quotes",
        "ima.never-matches ima.catching-up",
        log.raw,
        bytes(31) + b"\1",
        more="yes",
        reports=96,
    )


def _lines() -> None:
    hidden = recorded().violation("/var/log/journal/x")
    policy = json.dumps({"exclude": ["/var/log/"]})
    _write(
        "m06-violation",
        "a violation under an excluded path",
        "ima.violation",
        hidden.raw,
        hidden.value,
        policy=policy,
    )
    digest = sha256(b"evil")
    for name, path, code in (
        ("newline", b"/opt/a\nline 2: good", "ima.unknown-file"),
        ("long", b"/opt/" + b"x" * 5000, "ima.unknown-file"),
        ("utf8", b"/opt/\xff\xfe", "ima.unknown-file"),
        ("nul", b"/usr/bin/sh\0/opt/evil", "ima.name"),
    ):
        log = recorded().file(path, digest)
        witness = {"witness": "no"} if name == "long" else {}
        _write(f"m07-{name}", "a name that no terminal should see", code, log.raw, log.value, **witness)
    log = recorded()
    log.line(log.data(b"/opt/evil", digest), pcr=11).line(log.data(b"/opt/evil", digest), pcr=10)
    _write(
        "m08-wrong-pcr",
        "a line of PCR 11",
        "ima.wrong-pcr ima.unknown-file",
        log.raw,
        log.value,
        witness="no",
    )
    log = recorded()
    log.line(log.data(b"/opt/evil", digest), template="d-ng|n-ng|sig")
    _write(
        "m08-template", "a template made to order", "ima.unknown-template", log.raw, log.value, witness="no"
    )
    large = struct.pack("<I20s", 10, bytes(20)) + field(b"ima-sig") + struct.pack("<I", 2**31)
    _write(
        "m09-large",
        "a line that claims 2 GiB",
        "ima.line-too-large",
        recorded().raw + large,
        digest,
        witness="no",
    )
    shell = next(
        f.digest
        for _, f in read_lines(recorded().raw)
        if not isinstance(f, Exception) and f.name == b"/usr/bin/sh"
    )
    log = recorded().file("/tmp/sh", shell)
    _write("m11-other-path", "an allowed content under another path", "ima.other-path", log.raw, log.value)
    pcrs = Case("good-rsa").pcrs
    log = recorded().line(Log(pcrs).data(b"boot_aggregate", sha256(b"".join(pcrs[pcr] for pcr in range(10)))))
    _write("m13-kexec", "a second boot aggregate", "ima.kexec", log.raw, log.value)
    log = recorded().file("/usr/bin/new", sha256(b"new"))
    change = {"name": "base", "before": "1.0-1", "after": "1.0-2", "at": 1.0}
    files = {"/usr/bin/new": base64.b64encode(sha256(b"new")).decode()}
    told = json.dumps(change | {"files": files})
    _write(
        "m14-upgrade",
        "a file of an upgrade that was reported",
        "ima.package-updated",
        log.raw,
        log.value,
        change=told,
    )


def _policies() -> None:
    for name, rule in (
        ("everything", "/"),
        ("root", "/*"),
        ("any-tree", "/*/"),
        ("programs", "/usr/bin/*"),
        ("two-stars", "/var/log/*a*"),
        ("double-star", "/var/**/log"),
        ("dots", "/var/log/../../usr/bin/"),
        ("relative", "var/log/"),
    ):
        head = '# expect: baseline.key\n[baseline]\nname = "m12"\nversion = 1\nsummary = "an exclusion too wide"\n'
        (FOLDER / f"m12-{name}.toml").write_text(f'{head}\n[ima]\nexclude = ["{rule}"]\n')


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    _chain()
    _lines()
    _policies()

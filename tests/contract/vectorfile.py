"""Test vectors of firmware logs: text files whose header names the code expected.

case: l06 a second separator
expect: eventlog.separator          one code or several, in any order; `good` for none
detail: event 13                    optional: must stand in a detail
bank: sha1                          optional; sha256 else
base: good-rsa                      a recorded case: its log is edited, its PCRs are the quoted ones
cut: 100                            edits, in order: keep so many bytes
at 24: 00ff                         overwrite at an offset
insert 24: 00ff
delete 24: 16
replace: 6162 6163                  every occurrence
<empty line>
00 01 ...                           without a base: the log in hexadecimal
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from contract.errors import Rejected
from contract.eventdata import oddities
from contract.eventlog import explain, parse_event_log
from tests.contract.forge import VECTORS, Case

FOLDER = VECTORS / "eventlog"
BANKS = {"sha1": 0x04, "sha256": 0x0B, "sha384": 0x0C}
RUNTIME = (10, 11, 12, 13, 15)
_BYTES_A_LINE = 40


class Vector(Struct):
    """One vector, read."""

    case: str
    expect: set[str]
    detail: str
    bank: int
    base: Case | None
    log: bytes


def read(path: Path) -> Vector:
    """Read a vector; raises ValueError or KeyError for one that is malformed."""
    head, _, body = path.read_text().partition("\n\n")
    fields: dict[str, str] = {}
    edits = []
    for line in head.splitlines():
        name, _, value = line.partition(": ")
        if name.split()[0] in ("cut", "at", "insert", "delete", "replace"):
            edits.append((name.split(), value))
        else:
            fields[name] = value
    base = Case(fields["base"]) if "base" in fields else None
    log = base.read("eventlog.bin") if base else bytes.fromhex(body)
    for words, value in edits:
        log = _edited(log, words, value)
    return Vector(
        case=fields["case"],
        expect=set(fields["expect"].split()) - {"good"},
        detail=fields.get("detail", ""),
        bank=BANKS[fields.get("bank", "sha256")],
        base=base,
        log=log,
    )


def _edited(log: bytes, words: list[str], value: str) -> bytes:
    if words[0] == "cut":
        return log[: int(value)]
    if words[0] == "replace":
        old, new = (bytes.fromhex(part) for part in value.split())
        if old not in log:
            raise ValueError("nothing to replace")
        return log.replace(old, new)
    at = int(words[1])
    if words[0] == "delete":
        return log[:at] + log[at + int(value) :]
    data = bytes.fromhex(value)
    return log[:at] + data + log[at + (len(data) if words[0] == "at" else 0) :]


def write(name: str, case: str, expect: str, log: bytes, **fields: str) -> None:
    """Write a vector that holds its log."""
    head = "".join(f"{key}: {value}\n" for key, value in {"case": case, "expect": expect, **fields}.items())
    lines = [log[at : at + _BYTES_A_LINE].hex() for at in range(0, len(log), _BYTES_A_LINE)]
    (FOLDER / f"{name}.vec").write_text(head + "\n" + "".join(line + "\n" for line in lines))


def found_in(vector: Vector) -> tuple[set[str], str]:
    """Return codes and details of what speaks against the vector's log."""
    try:
        log = parse_event_log(vector.log, vector.bank)
    except Rejected as rejected:
        return {rejected.code}, rejected.detail
    findings = oddities(log)
    if vector.base:
        findings += explain(log, vector.base.pcrs, RUNTIME)
    return {finding.code for finding in findings}, "\n".join(finding.detail for finding in findings)

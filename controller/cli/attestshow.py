"""How `ringfence attest` tells people and programs what it found.

People get what was proved and what was not, and for each finding the PCR, the event, wanted, found and the cure. All
text that came from evidence is printable: what moves a cursor or ends a line is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

from msgspec import Struct as Record

from contract.claims import Claims, claims_of
from contract.codes import cure_of
from contract.errors import Rejected
from contract.eventdata import covered, describe, oddities
from contract.eventdata import fields as parts
from contract.eventlog import BANKS, SHA1, SHA256, Event, EventLog, banks_of, parse_event_log, replay
from contract.imalog import VIOLATION, Fields, ImaRecord, read_lines, shown
from contract.messages import Finding
from contract.offline import Given, Verdict
from contract.offlineclaims import plain_claims
from contract.offlinelogs import ADVISORY_CODES, numbers
from controller.cli.show import at, harmless, items

_COVERED = {True: "yes", False: "NO", None: "-"}
_LABEL_CHARS = 15
_MAX_TEXT_CHARS = 600


class Shown(Record, frozen=True, kw_only=True):
    """Logs as read, with what is wrong with them."""

    event_logs: dict[str, EventLog]
    """By bank, in the log's order, as far as they can be read."""
    ima_log: bytes | None
    """Read again line by line: as objects it would take ten times its size."""
    findings: list[Finding]
    """Why a log cannot be read; empty when all can."""
    notes: list[Finding]
    """What is worth knowing of a log that can be read: other banks than the one that is judged, and oddities."""

    @property
    def event_log(self) -> EventLog | None:
        """The bank that is judged; where the log does not have it any other, SHA-1 last."""
        others = sorted(self.event_logs.values(), key=lambda log: log.bank == SHA1)
        return self.event_logs.get(BANKS[SHA256]) or next(iter(others), None)


def read_shown(untrusted_event_log: bytes | None, untrusted_ima_log: bytes | None) -> Shown:
    """Read the logs as far as they go; raises nothing for what is in them."""
    findings: list[Finding] = []
    notes: list[Finding] = []
    logs: dict[str, EventLog] = {}
    if untrusted_event_log is not None:
        logs = _read_banks(untrusted_event_log, findings, notes)
    try:
        for _ in read_lines(untrusted_ima_log or b""):
            pass
    except Rejected as refused:
        findings.append(Finding(code=refused.code, detail=refused.detail))
    shown = Shown(event_logs=logs, ima_log=untrusted_ima_log, findings=findings, notes=notes)
    if shown.event_log is not None:
        notes += oddities(shown.event_log)
    return shown


def _read_banks(untrusted: bytes, findings: list[Finding], notes: list[Finding]) -> dict[str, EventLog]:
    """Return every bank of a firmware log that can be read. A log is malformed where the judged bank is, or all are."""
    logs: dict[str, EventLog] = {}
    refused: dict[int, Finding] = {}
    try:
        present = banks_of(untrusted)
    except Rejected as fault:
        findings.append(Finding(code=fault.code, detail=fault.detail))
        return logs
    for bank in present:
        try:
            logs[BANKS[bank]] = parse_event_log(untrusted, bank)
        except Rejected as fault:
            refused[bank] = Finding(code=fault.code, detail=f"{BANKS[bank]}: {fault.detail}")
    against = refused.pop(SHA256, None) or (None if logs else refused.pop(present[0]))
    if against is not None:
        findings.append(against)
    if SHA256 not in present:
        notes.append(Finding(code="eventlog.no-sha256", detail=_UNJUDGED.format(", ".join(logs) or "none")))
    notes += refused.values() if logs else ()
    return logs


_UNJUDGED: Final = (
    "banks that can be read: {}. No quote over another bank than SHA-256 is accepted, so nothing in this log can be proved "
    "here; SHA-1 alone proves nothing to us"
)


def verdict_json(verdict: Verdict) -> dict[str, object]:
    """Return the verdict as `--json` shows it."""
    return {
        "verdict": "verified" if verdict.verified else "rejected",
        "findings": [finding_json(finding) for finding in verdict.findings],
        "claims": verdict.claims,
    }


def finding_json(finding: Finding) -> dict[str, object]:
    """Return a finding; `pcr` and `event` only where it names one."""
    found: dict[str, object] = {"code": finding.code, "detail": finding.detail}
    if finding.pcr is not None:
        found["pcr"] = finding.pcr
    if finding.event is not None:
        found["event"] = finding.event
    return found


def verdict_text(verdict: Verdict, given: Given) -> str:
    """Return the verdict for people."""
    against = [finding for finding in verdict.findings if finding.code not in ADVISORY_CODES]
    notes = [finding for finding in verdict.findings if finding.code in ADVISORY_CODES]
    count = f"{len(against)} finding{'s' if len(against) != 1 else ''}"
    out = ["verified" if verdict.verified else f"rejected: {count}", ""]
    for finding in against:
        out += [*_finding_lines(finding), ""]
    if notes:
        out.append("worth a look")
        for finding in notes:
            out += [f"  {line}" for line in _finding_lines(finding)]
        out.append("")
    if verdict.claims:
        head = (
            "what was proved"
            if verdict.verified
            else "what the evidence says (it was rejected: rely on none of it)"
        )
        out += [head, *(f"  {line}" for line in _claim_lines(verdict.claims, given))]
    else:
        out.append("Nothing is said of the evidence: no signature speaks for it.")
    return "\n".join(out).rstrip()


def _finding_lines(finding: Finding) -> list[str]:
    where = [f"PCR {finding.pcr}"] if finding.pcr is not None else []
    where += [f"event {finding.event}"] if finding.event is not None else []
    lines = [f"{finding.code}  ({', '.join(where)})" if where else finding.code]
    lines.append(f"  {_cut(finding.detail)}")
    cure = cure_of(finding.code)
    return [*lines, f"  What to do: {cure}"] if cure else lines


def _claim_lines(claims: Mapping[str, object], given: Given) -> Iterator[str]:
    yield _line("key", f"{at(claims, 'key', 'algorithm')}, attributes {at(claims, 'key', 'attributes')}")
    yield _line(
        "signer",
        f"{claims['signer']}" + ("" if given.key.qualified_name else " (no --ek, or no TPM2B_PUBLIC)"),
    )
    yield _line(
        "nonce",
        f"{claims['nonce']}" + ("" if given.nonce is not None else " (no --nonce): may be an old quote"),
    )
    clock = claims["clock"]
    yield _line("boot count", f"reset {at(clock, 'reset')}, restart {at(clock, 'restart')}")
    pcrs = claims.get("pcrs")
    if isinstance(pcrs, dict):
        for by, text in _EXPLAINED.items():
            of_it = [int(pcr) for pcr, value in pcrs.items() if at(value, "explained_by") == by]
            if of_it:
                yield _line("PCRs", f"{numbers(of_it)}: {text}")
    unquoted = [pcr for pcr in items(at(claims, "coverage", "unquoted")) if isinstance(pcr, int)]
    if unquoted:
        yield _line("PCRs", f"{numbers(unquoted)}: in the firmware log and not quoted: only the log's word")
    if "secure_boot" in claims:
        yield from _boot_lines(claims)
    if "ima" in claims:
        ima = claims["ima"]
        text = (
            f"{at(ima, 'lines_proved')} lines proved; {at(ima, 'bytes_not_proved')} bytes after them are not"
        )
        yield _line("files (IMA)", text)
    yield _line("policy", f"[boot] {at(claims, 'policy', 'boot')}, [ima] {at(claims, 'policy', 'ima')}")


_EXPLAINED = {
    "event log": "explained by the firmware log",
    "start value": "never extended",
    "IMA log": "explained by the IMA log",
    "nothing": "signed, and explained by no log given",
}


def _boot_lines(claims: Mapping[str, object]) -> Iterator[str]:
    """Say what the log says of the boot; `?` behind what no quoted PCR bears out."""
    proved = claims.get("proved")
    said = (
        ("Secure Boot", "secure_boot", {True: "on", False: "off", None: "the log does not say"}),
        ("firmware", "firmware_version", {"": "the log does not say"}),
        ("command line", "kernel_command_line", {None: "the log does not say"}),
        ("lockdown", "lockdown", {None: "the log does not say"}),
        ("SBAT level", "sbat_level", {"": "the log does not say"}),
        ("debugger", "debugger", {True: "ON", False: "none in the log"}),
    )
    for label, name, words in said:
        value = claims.get(name)
        text = words.get(value, str(value))  # type: ignore[call-overload]
        unproved = at(proved, name) is False
        yield _line(label, _cut(f"{text}  (not proved: only the log's word)" if unproved else text))
    for thing in items(claims.get("loaded")):
        name = _cut(f"{at(thing, 'name') or '(no name)'}")
        yield _line("loaded", f"{at(thing, 'stage')}: {name}  {at(thing, 'sha256')}  PCR {at(thing, 'pcr')}")


def _line(label: str, text: str) -> str:
    return f"{label.ljust(_LABEL_CHARS)}{harmless(text)}"


def _cut(text: str) -> str:
    text = harmless(text)
    return text if len(text) <= _MAX_TEXT_CHARS else text[: _MAX_TEXT_CHARS - 1] + "…"


def logs_json(log: Shown) -> dict[str, object]:
    """Return the logs as `--json` shows them."""
    found: dict[str, object] = {"findings": [finding_json(f) for f in (*log.findings, *log.notes)]}
    if log.event_log is not None:
        found["claims"] = plain_claims(claims_of(log.event_log))
        found["banks"] = {name: {"pcrs": _pcrs_json(each)} for name, each in log.event_logs.items()}
        found["bank"] = BANKS[log.event_log.bank]
        each_bank = zip(*(each.events for each in log.event_logs.values()), strict=True)
        found["events"] = [
            _event_json(event, dict(zip(log.event_logs, digests, strict=True)))
            for event, digests in zip(log.event_log.events, each_bank, strict=True)
        ]
    if log.ima_log is not None:
        found["ima"] = [_ima_json(number, *line) for number, line in enumerate(_lines(log.ima_log), 1)]
    return found


def _lines(ima_log: bytes) -> Iterator[tuple[ImaRecord, Fields | Rejected]]:
    """Yield lines up to the one that cannot be read, which `read_shown` has told of."""
    with suppress(Rejected):
        yield from read_lines(ima_log)


def _pcrs_json(log: EventLog) -> dict[str, str]:
    return {str(pcr): value.hex() for pcr, value in sorted(replay(log).items())}


def _event_json(event: Event, banks: Mapping[str, Event]) -> dict[str, object]:
    """Return an event with its digest in each bank; `covered` is said of the bank that the log is read by."""
    return {
        "event": event.index,
        "pcr": event.pcr,
        "type": event.type_name,
        **({"sha256": banks["sha256"].digest.hex()} if "sha256" in banks else {}),
        "digests": {name: of_bank.digest.hex() for name, of_bank in banks.items()},
        "covered": covered(event),
        "description": describe(event),
        "fields": [{"name": f.name, "text": f.text, "covered": f.covered} for f in parts(event)],
    }


def _ima_json(number: int, record: ImaRecord, fields: Fields | Rejected) -> dict[str, object]:
    found: dict[str, object] = {
        "line": number,
        "pcr": record.pcr,
        "template": shown(record.template),
        "violation": record.template_sha1 == VIOLATION,
    }
    if isinstance(fields, Rejected):
        return {**found, "error": f"{fields}"}
    digest = f"{shown(fields.algorithm)}:{fields.digest.hex()}"
    return {**found, "digest": digest, "name": shown(fields.name), "signed": bool(fields.signature)}


def logs_text(log: Shown) -> Iterator[str]:
    """Yield the logs for people, line by line."""
    for finding in (*log.findings, *log.notes):
        yield from _finding_lines(finding)
    if log.event_log is not None:
        yield "what the firmware log says (a claim: only a quote proves it, see `ringfence attest verify`)"
        yield from (f"  {line}" for line in _said_lines(claims_of(log.event_log)))
        yield ""
        yield (
            f"covered: whether the {BANKS[log.event_log.bank]} digest is that of the data; `-` where by its type it need "
            "not be"
        )
        yield f"{'EVENT':>5} {'PCR':>4} {'TYPE':<32} {'COVERED':<8} DESCRIPTION"
        for event in log.event_log.events:
            pcr = "-" if event.pcr > 23 else event.pcr
            marked = _COVERED[covered(event)]
            yield f"{event.index:>5} {pcr:>4} {event.type_name:<32} {marked:<8} {harmless(describe(event))}"
        yield from (
            "",
            "where each bank of the log leads (only sha256 is judged: SHA-1 alone proves nothing to us)",
        )
        for name, each in log.event_logs.items():
            yield from (f"  {name:<8} PCR {pcr:>2}  {value}" for pcr, value in _pcrs_json(each).items())
    if log.ima_log is not None:
        yield from ("", f"{'LINE':>6} {'TEMPLATE':<10} {'SIGNED':<7} DIGEST  NAME")
        for number, (record, fields) in enumerate(_lines(log.ima_log), 1):
            yield _ima_line(number, record, fields)


def _said_lines(claims: Claims) -> Iterator[str]:
    built = plain_claims(claims)
    yield from _boot_lines(built)
    for name in ("signatures", "authorities", "mok"):
        for entry in items(built[name]):
            subject = at(entry, "subject") or at(entry, "sha256")
            yield _line(name, _cut(f"{at(entry, 'variable')}: {at(entry, 'kind')} {subject}"))


def _ima_line(number: int, record: ImaRecord, fields: Fields | Rejected) -> str:
    start = f"{number:>6} {shown(record.template):<10} "
    if record.template_sha1 == VIOLATION:
        start = f"{number:>6} {'VIOLATION':<10} "
    if isinstance(fields, Rejected):
        return f"{start}{harmless(str(fields))}"
    signed = "yes" if fields.signature else "-"
    return f"{start}{signed:<7} {shown(fields.algorithm)}:{fields.digest.hex()}  {shown(fields.name)}"

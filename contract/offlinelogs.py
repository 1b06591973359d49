"""The logs of recorded evidence: read once, replayed, and held against a quote that stands by itself.

Here no session knows which PCRs were asked for or how far a log was agreed before: the quote says which PCRs it covers,
and both logs are read from their first byte. Raises nothing for the bytes of a log; Unusable where the question cannot
be answered with what was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Final, Literal

from msgspec import Struct as Record

from contract import boot, ima
from contract.errors import Rejected
from contract.eventdata import oddities
from contract.eventlog import EV_NO_ACTION, EventLog, explain, parse_event_log, replay, start_value
from contract.ima import ImaResult, ImaState, follow
from contract.imalog import VIOLATION, read_lines
from contract.imapolicy import ImaPolicy
from contract.imarules import ImaRules
from contract.messages import Finding
from contract.quote import Attest

NOT_COMPARED: Final = "boot.not-compared"
ADVISORY_CODES: Final = boot.ADVISORY_CODES | (ima.ADVISORY_CODES - {"ima.catching-up"}) | {NOT_COMPARED}
"""Findings that do not speak against evidence. To be behind is one for a session, which goes on; a file does not."""

RUNTIME_PCRS: Final = frozenset({11, 12, 13, 15, 16, 23})
"""Extended by the running system, which logs it elsewhere (systemd: 11, 12, 13, 15), or resettable by it (16, 23)."""

_ONES: Final = b"\xff" * 32  # what a violation extends
_INTEGRITY_ONLY: Final = ImaPolicy(unknown_files="ignore", violations="warn", kexec="warn")

Explained = Literal["event log", "IMA log", "start value", "nothing"]


class Unusable(Exception):
    """The auditor's files cannot answer the question; says nothing about the evidence."""


class Logs(Record, frozen=True, kw_only=True):
    """The logs given, as far as they could be read."""

    event_log: EventLog | None
    """None: not given, or not well formed."""
    event_log_given: bool
    ima_log: bytes | None
    findings: list[Finding]


def read_logs(untrusted_event_log: bytes | None, untrusted_ima_log: bytes | None) -> Logs:
    """Parse the firmware log; what is wrong with it is a finding. The IMA log is parsed where it is followed."""
    findings: list[Finding] = []
    log = None
    if untrusted_event_log is not None:
        try:
            log = parse_event_log(untrusted_event_log)
            findings += oddities(log)
        except Rejected as refused:
            findings.append(Finding(code=refused.code, detail=refused.detail))
    return Logs(
        event_log=log,
        event_log_given=untrusted_event_log is not None,
        ima_log=untrusted_ima_log,
        findings=findings,
    )


def values_from(said: Attest, logs: Logs, pcr_digest: Callable[[bytes], bytes]) -> dict[int, bytes] | None:
    """Return the values of the quoted PCRs that the logs lead to, or None where a log given cannot be read.

    For PCR 10 the line is looked for at which `pcr_digest` of all values is the quote's; after the last if there is none.
    Raises Unusable when a log is needed that was not given.
    """
    quoted = sorted(said.pcrs)
    others = [pcr for pcr in quoted if pcr != ima.PCR]
    if others and not logs.event_log_given:
        raise Unusable(
            f"no values for PCR {numbers(others)}: give --pcrs, or the --event-log that explains them"
        )
    if ima.PCR in said.pcrs and logs.ima_log is None:
        raise Unusable("no value for PCR 10: give --pcrs, or the --ima-log that explains it")
    values: dict[int, bytes] = {}
    if logs.event_log is not None:
        values = _replayed(logs.event_log, others)
    elif others:
        return None
    if ima.PCR not in said.pcrs:
        return values
    before = b"".join(values[pcr] for pcr in others if pcr < ima.PCR)
    after = b"".join(values[pcr] for pcr in others if pcr > ima.PCR)
    value = bytes(32)
    for value in _pcr10_values(logs.ima_log or b""):
        if pcr_digest(before + value + after) == said.digest:
            break
    return values | {ima.PCR: value}


def told_apart(
    said: Attest, logs: Logs, shown: Mapping[int, bytes], pcr_digest: Callable[[bytes], bytes]
) -> list[Finding]:
    """Return the PCRs whose shown values are wrong, where the logs lead to values that are the quote's."""
    try:
        values = values_from(said, logs, pcr_digest)
    except Unusable:
        return []
    if values is None or pcr_digest(b"".join(values[pcr] for pcr in sorted(values))) != said.digest:
        return []
    return [
        Finding(
            code="quote.pcr-values",
            detail=f"PCR {pcr}: the TPM signed {value.hex()} (the logs lead to it), shown {shown[pcr].hex()}",
            pcr=pcr,
        )
        for pcr, value in sorted(values.items())
        if pcr in shown and shown[pcr] != value
    ]


def led_to(said: Attest, logs: Logs) -> str:
    """Return in words where the values of `values_from` came from."""
    log = logs.event_log
    extended = {event.pcr for event in log.events if event.type != EV_NO_ACTION} if log else set()
    rest = said.pcrs - extended - {ima.PCR}
    parts = [f"PCR {numbers(said.pcrs & extended)} by the firmware log"] if said.pcrs & extended else []
    parts += ["PCR 10 by the IMA log"] if ima.PCR in said.pcrs else []
    parts += [f"PCR {numbers(rest)} as after a reset, since no log names it"] if rest else []
    return "; ".join(parts)


def _replayed(log: EventLog, pcrs: Iterable[int]) -> dict[int, bytes]:
    """Return the value of each PCR after the log; its start value where the log never extends it."""
    led_to = replay(log)
    return {pcr: led_to.get(pcr) or start_value(pcr, log.startup_locality) for pcr in pcrs}


def _pcr10_values(untrusted_ima_log: bytes) -> Iterator[bytes]:
    """Yield PCR 10 before the first line and after each, in both ways in which kernels extend the SHA-256 bank.

    Ends quietly where the log is malformed: `contract.ima.follow` says what is wrong with it.
    """
    value = padded = bytes(32)
    yield value
    with suppress(Rejected):
        for record, _ in read_lines(untrusted_ima_log):
            if record.pcr != ima.PCR:
                continue
            violated = record.template_sha1 == VIOLATION
            value = sha256(value + (_ONES if violated else sha256(record.data).digest())).digest()
            yield value
            sha1 = _ONES[:20] if violated else record.template_sha1
            padded = sha256(padded + sha1 + bytes(12)).digest()
            yield padded


def unexplained(logs: Logs, quoted: Mapping[int, bytes], runtime_pcrs: frozenset[int]) -> list[Finding]:
    """Return a finding for each quoted PCR that the firmware log does not lead to; run-time PCRs are left out."""
    if logs.event_log is None:
        return []
    return explain(logs.event_log, quoted, runtime_pcrs | {ima.PCR})


def followed(policy: ImaPolicy | None, logs: Logs, quoted: Mapping[int, bytes]) -> ImaResult | None:
    """Follow the IMA log from its first byte to the quoted PCR 10; None where no log is given and no policy wants one.

    Without a policy the log's integrity is judged, and not which files it names. A log that the quote does not cover is
    `ima.not-quoted`, a policy without a log `ima.log-missing`; the other codes are those of `contract.ima.follow`.
    """
    if logs.ima_log is None:
        missing = "the policy has an [ima] section, and no IMA log was given"
        return None if policy is None else _no_ima("ima.log-missing", missing)
    if ima.PCR not in quoted:
        return _no_ima("ima.not-quoted", "PCR 10 is not in the quote, so nothing speaks for the IMA log")
    boot_pcrs = {pcr: value for pcr, value in quoted.items() if pcr < ima.PCR}
    rules = ImaRules(policy or _INTEGRITY_ONLY)
    return follow(rules, ImaState(), logs.ima_log, quoted[ima.PCR], boot_pcrs, offset=0)


def _no_ima(code: str, detail: str) -> ImaResult:
    return ImaResult(
        state=ImaState(), findings=[Finding(code=code, detail=detail, pcr=ima.PCR)], caught_up=False
    )


def explained_by(
    logs: Logs, quoted: Mapping[int, bytes], followed_ima: ImaResult | None
) -> dict[int, Explained]:
    """Return for each quoted PCR what leads to its value."""
    log = logs.event_log
    extended = {event.pcr for event in log.events if event.type != EV_NO_ACTION} if log else set()
    led_to = _replayed(log, quoted) if log else {}
    found: dict[int, Explained] = {}
    for pcr, value in quoted.items():
        if pcr == ima.PCR:
            met = followed_ima is not None and followed_ima.caught_up
            found[pcr] = "IMA log" if met else "nothing"
        elif led_to.get(pcr) == value:
            found[pcr] = "event log" if pcr in extended else "start value"
        else:
            found[pcr] = "nothing"
    return found


def numbers(pcrs: Iterable[int]) -> str:
    """Return PCRs as people write them: `0-9, 14`."""
    runs: list[list[int]] = []
    for pcr in sorted(pcrs):
        if runs and pcr == runs[-1][-1] + 1:
            runs[-1].append(pcr)
        else:
            runs.append([pcr])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)

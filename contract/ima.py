"""The kernel's measurement list (IMA): followed from report to report, and held against the quoted PCR 10.

A log is worth what PCR 10 makes of it: the lines up to the one at which the quoted value is met are proved, and what
comes after is not looked at before the next quote. `follow` takes only lines that were not agreed before; what they have
shown stays in the state, since they do not come again. It refuses to take the node's word for where it stands: the state
is reset by the caller alone, when the signed resetCount changes. It relies on a quote that was verified.

Source: Linux, security/integrity/ima/ (ima_queue.c, ima_crypto.c); `contract.imalog` has the format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final

from msgspec import Meta
from msgspec import Struct as Record
from msgspec.structs import replace

from contract.imalog import MAX_LOG_BYTES, where
from contract.imanotes import NOTHING, PCR, OpenFile, PackageUpdate, Shown, unknown_text
from contract.imarules import Explanation, ImaRules
from contract.imawalk import Bank, Reached, Walk, remembered
from contract.messages import Count, Digest, Finding, Message, PackageChange

__all__ = [
    "ADVISORY_CODES",
    "PCR",
    "ImaResult",
    "ImaState",
    "fits",
    "follow",
]

_SHOWN_FILES: Final = 32
_SHOWN_PACKAGES: Final = 6

ADVISORY_CODES: Final = frozenset(
    {
        "ima.package-updated",
        "ima.catching-up",
        "ima.sha1-padded",
        "ima.unknown-file-noted",
        "ima.other-path-noted",
        "ima.violation-noted",
        "ima.kexec-noted",
        "ima.more-noted",
    }
)
"""Findings worth a warning. Every other code of this module means that the evidence is not what it must be."""


class ImaState(Message, frozen=True):
    """How far a node's log is agreed in this boot. The default is a boot of which nothing was seen."""

    lines: Count = 0
    offset: Count = 0
    """Bytes agreed; the next line begins here."""
    pcr: Digest = bytes(32)
    """PCR 10 after `lines`."""
    bank: Bank = ""
    """What the SHA-256 bank is extended with: the template's SHA-256, or before Linux 5.8 its SHA-1 and zeros.
    Decided once a boot, by the first line or when PCR 10 is first met; never mixed."""
    padded_pcr: Annotated[bytes, Meta(max_length=32)] = bytes(32)
    """PCR 10 after `lines` in case `bank` should prove to be `sha1`."""
    reports: Count = 0
    """Since PCR 10 was last met."""
    policy_sha256: Annotated[bytes, Meta(max_length=32)] = b""
    """By which policy the lines were judged. Under another one they are judged again: see `fits`."""
    shown: Shown = NOTHING
    """What these lines have shown. Worth nothing while `reports` is not 0."""
    proved: Shown = NOTHING
    """The same when PCR 10 was last met in this boot: it stands until it is met again, also when the log comes anew."""


_NO_EXPLANATIONS: Final[dict[tuple[str, bytes], Explanation]] = {}


class ImaResult(Record, frozen=True, kw_only=True):
    """What one report's lines come to. The next call takes `pending or state`."""

    state: ImaState
    """Agreed, up to the line at which the quoted PCR 10 was met. If it was not: as before, once; then from the start."""
    findings: list[Finding]
    caught_up: bool
    """The quoted PCR 10 was met: `findings` speak of everything that was measured before the quote."""
    pending: ImaState | None = None
    """Where an unfinished catch-up goes on. Worth nothing by itself."""
    new_lines: int = 0
    """That this call saw, up to where PCR 10 was met, or all."""
    unproved_bytes: int = 0
    """After the line at which PCR 10 was met."""


def fits(rules: ImaRules, state: ImaState) -> bool:
    """Say whether a log may be followed on from `state`; if not, it comes again from offset 0."""
    return state.policy_sha256 in (b"", rules.sha256)


def follow(
    rules: ImaRules,
    state: ImaState,
    untrusted_lines: bytes,
    quoted_pcr10: bytes,
    boot_pcrs: Mapping[int, bytes],
    *,
    offset: int,
    more: bool = False,
    changes: Sequence[PackageChange] = (),
) -> ImaResult:
    """Follow a log by the lines that came with one report, read after its quote was made.

    `offset` is where the node says that they begin: 0 begins again; `more` says that others did not fit, and the last may
    be cut. `boot_pcrs` are the quoted values of PCR 0 to 9. Raises nothing: what is wrong is a finding.

    1. the lines begin where agreement ends (`ima.offset`; m05), the log is not larger than 64 MiB (`ima.too-large`; m09),
       and the kernel measures (`ima.inactive`)
    2. every record is whole (`ima.truncated`, `ima.line-too-large`, `ima.template-name`)
    3. each line is good by itself and by the policy (m03, m04, m06 to m08, m11, m13, m14)
    4. some line leads to the quoted PCR 10 (`ima.mismatch`; m01, m02). Where there are more to come, the node has some
       reports for that (`ima.catching-up`), and no more (`ima.never-matches`; m10)
    """
    if not fits(rules, state) or (offset == 0 and state.offset):
        state = _afresh(state, state.reports)
    refused = _refused(state, len(untrusted_lines), quoted_pcr10, offset)  # 1
    if refused is not None:
        return _unmet(rules, state, refused)
    if state.pcr == quoted_pcr10 and state.bank and not (changes or state.reports or untrusted_lines):
        return ImaResult(state=state, findings=_findings(state.shown, state.bank), caught_up=True)
    bank: Bank = state.bank or "sha256"
    start: Reached = 0, state.lines, state.padded_pcr if bank == "sha1" else state.pcr
    if state.bank == "sha256" and not changes:
        start = remembered(rules.known, untrusted_lines, start, quoted_pcr10)
        if start[2] == quoted_pcr10:  # 3, 4: every line was found good before
            return _known(rules, state, start, len(untrusted_lines))
    explanations = rules.explanations(changes) if changes else _NO_EXPLANATIONS
    walk = Walk(rules, state.shown, boot_pcrs, explanations)
    walk.go(untrusted_lines, start, base=offset, bank=bank, quoted=quoted_pcr10)  # 2, 3
    bank, padded = state.bank or walk.decided, walk.value
    if not bank:  # the first line does not tell how the kernel extends, so the quote must
        other = Walk(rules, state.shown, boot_pcrs, explanations)
        begin = 0, state.lines, state.padded_pcr
        other.go(untrusted_lines, begin, base=offset, bank="sha1", quoted=quoted_pcr10)
        padded = other.value
        bank = "sha256" if walk.met else "sha1" if other.met else ""
        walk = other if other.met else walk
    shown = walk.notes.shown()
    after = ImaState(
        lines=walk.lines,
        offset=offset + walk.at,
        pcr=walk.value,
        padded_pcr=padded,
        bank=bank,
        reports=0 if walk.met else state.reports + 1,
        policy_sha256=rules.sha256,
        shown=shown,
        proved=shown if walk.met else state.proved,
    )
    if walk.met:  # 4
        return _met(state, after, len(untrusted_lines))
    found, goes_on = _why_not(walk, after, quoted_pcr10, more=more)
    unmet = _unmet(rules, state, found, pending=after if goes_on else None)
    new_lines, unproved_bytes = walk.lines - state.lines, len(untrusted_lines) - walk.at
    return replace(unmet, new_lines=new_lines, unproved_bytes=unproved_bytes)


def _known(rules: ImaRules, state: ImaState, reached: Reached, size_bytes: int) -> ImaResult:
    """Return what comes of lines that led to the quoted PCR 10 and were all found good before, on whatever node."""
    at, lines, value = reached
    after = ImaState(
        lines=lines,
        offset=state.offset + at,
        pcr=value,
        padded_pcr=value,
        bank=state.bank,
        policy_sha256=rules.sha256,
        shown=state.shown,
        proved=state.shown,
    )
    return _met(state, after, size_bytes)


def _met(before: ImaState, after: ImaState, size_bytes: int) -> ImaResult:
    """Return what comes of so many bytes of lines of which the last read led to the quoted PCR 10."""
    return ImaResult(
        state=after,
        findings=_findings(after.shown, after.bank),
        caught_up=True,
        new_lines=after.lines - before.lines,
        unproved_bytes=before.offset + size_bytes - after.offset,
    )


def _refused(state: ImaState, size_bytes: int, quoted_pcr10: bytes, offset: int) -> Finding | None:
    """Return why these lines are not looked at."""
    if offset != state.offset:
        detail = f"the lines begin at offset {offset}, wanted {state.offset}"
        return Finding(code="ima.offset", detail=detail, pcr=PCR)
    if offset + size_bytes > MAX_LOG_BYTES:
        detail = f"{offset + size_bytes} bytes, at most {MAX_LOG_BYTES}"
        return Finding(code="ima.too-large", detail=detail, pcr=PCR)
    if not state.lines and quoted_pcr10 == bytes(32):
        detail = "PCR 10 was never extended: the kernel measures nothing"
        return Finding(code="ima.inactive", detail=detail, pcr=PCR)
    return None


def _why_not(walk: Walk, after: ImaState, quoted_pcr10: bytes, *, more: bool) -> tuple[Finding, bool]:
    """Return why the quoted value was not met, and whether the next report may go on from there."""
    fault = walk.fault
    if fault is not None and not (
        more and walk.at and fault.code == "ima.truncated"
    ):  # cut by the report's size
        return Finding(code=fault.code, detail=fault.detail, pcr=PCR), False
    if not more:
        detail = f"after {walk.lines} lines the log leads to {walk.value.hex()}, the TPM holds {quoted_pcr10.hex()}"
        return Finding(code="ima.mismatch", detail=detail, pcr=PCR), False
    detail = f"{walk.lines} lines, {after.offset} bytes so far do not lead to the quoted value yet"
    return Finding(code="ima.catching-up", detail=detail, pcr=PCR), True


def _afresh(state: ImaState, reports: int) -> ImaState:
    return ImaState(reports=reports, proved=state.proved)


def _unmet(
    rules: ImaRules,
    state: ImaState,
    finding: Finding,
    *,
    pending: ImaState | None = None,
) -> ImaResult:
    """Return what is left where the quoted value was not met: the last state that was proved, or the log from its start."""
    reports = state.reports + 1
    state = _afresh(state, reports) if state.reports else replace(state, reports=reports)
    findings = [finding, *_findings(state.proved, state.bank)]
    if state.reports > rules.policy.max_reports:
        detail = f"PCR 10 was not met in {state.reports} reports, at most {rules.policy.max_reports}"
        findings.insert(0, Finding(code="ima.never-matches", detail=detail, pcr=PCR))
    return ImaResult(state=state, findings=findings, caught_up=False, pending=pending)


def _findings(found: Shown, bank: Bank) -> list[Finding]:
    """Return everything that the proved lines have shown in this boot, upgrades as one."""
    if found is NOTHING and bank == "sha256":
        return []
    findings = list(found.findings)
    if bank == "sha1":
        detail = (
            "the kernel (before Linux 5.8) extends the SHA-256 bank with SHA-1 and zeros: as strong as SHA-1"
        )
        findings.append(Finding(code="ima.sha1-padded", detail=detail, pcr=PCR))
    if found is NOTHING or found == NOTHING:
        return findings
    findings += [_unknown(file) for file in found.open_files[:_SHOWN_FILES]]
    rest = found.open_files[_SHOWN_FILES:]
    noted = sum(1 for file in rest if file.code in ADVISORY_CODES)
    if found.updates:
        findings.append(_updated(found.updates))
    for code, count in (
        ("ima.more", len(rest) - noted + found.omitted),
        ("ima.more-noted", noted + found.omitted_noted),
    ):
        if count:
            findings.append(Finding(code=code, detail=f"{count} more findings like these", pcr=PCR))
    return findings


def _unknown(file: OpenFile) -> Finding:
    digest = f"sha256:{file.sha256.hex()}"
    text = unknown_text(file.path.encode(), digest, file.home.encode())
    detail = f"{where(file.line, file.offset)}: {text}"
    return Finding(code=file.code, detail=detail, pcr=PCR)


def _updated(updates: Sequence[PackageUpdate]) -> Finding:
    files = sum(update.files for update in updates)
    each = [f"{u.name} {u.before} -> {u.after} ({u.files})" for u in updates[:_SHOWN_PACKAGES]]
    if len(updates) > _SHOWN_PACKAGES:
        each.append(f"and {len(updates) - _SHOWN_PACKAGES} more packages")
    detail = f"{files} new files by upgrades of packages that the baseline names: {', '.join(each)}"
    return Finding(code="ima.package-updated", detail=detail, pcr=PCR)

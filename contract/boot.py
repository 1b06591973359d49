"""Judging a measured boot by the `[boot]` section, the boot that was accepted, and what people have announced.

Judges only what is verified: a VerifiedQuote, and a log that is worth what the quoted PCRs make of it. It learns
nothing by itself: without a reference there is a finding, and the controller decides whether to take this boot as the
reference. Each finding names PCR, event, stage, wanted and found, and what most likely happened.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import field

from contract.binding import BOOT_PCRS
from contract.bootcause import likely_cause
from contract.bootpolicy import COMMAND_PCR, KEYS_PCR, REVOCATION, BootPolicy
from contract.bootreference import (
    Change,
    Reference,
    ReferenceEvent,
    differences,
    label,
    reference_from,
    release_of,
    renamed_only,
)
from contract.bootrules import break_rules
from contract.claims import Claims, claims_under
from contract.eventdata import oddities
from contract.eventlog import EventLog, explain
from contract.messages import Finding, Message, never_more
from contract.nodeword import NOTHING_SAID, NodeWord
from contract.quote import VerifiedQuote
from contract.references import NOTHING_EXPECTED, Expected
from contract.revocations import held_against

__all__ = [
    "ADVISORY_CODES",
    "BootJudgement",
    "BootPolicy",
    "Reference",
    "ReferenceEvent",
    "judge_boot",
    "reference_from",
    "weigh_boot",
]

ADVISORY_CODES: Final = frozenset({"quote.firmware-version", "quote.clock-unsafe", "boot.unannounced"})
"""Findings worth a warning. Every other code of this package means that the evidence is not what it must be."""
QUESTION_STAGES: Final = frozenset({"boot-loader", "kernel", "initrd"})
"""What an update may change, so that a person is asked instead of a node cut off; and lists that revoke more."""


class BootJudgement(Message, frozen=True, kw_only=True):
    """What is to be said of a boot."""

    findings: list[Finding]
    """Everything that speaks against it; empty: it is the one that was wanted."""
    announced: list[str] = field(default_factory=list)
    """What differs from the accepted boot and was announced; where this is not empty, the boot is to take its place."""


def judge_boot(
    policy: BootPolicy,
    quote: VerifiedQuote,
    log: EventLog | None,
    reference: Reference | None,
    *,
    claims: Claims | None = None,
    expected: Expected = NOTHING_EXPECTED,
) -> list[Finding]:
    """Return everything that speaks against this boot; see `weigh_boot`."""
    return weigh_boot(policy, quote, log, reference, claims=claims, expected=expected).findings


def weigh_boot(
    policy: BootPolicy,
    quote: VerifiedQuote,
    log: EventLog | None,
    reference: Reference | None,
    *,
    claims: Claims | None = None,
    expected: Expected = NOTHING_EXPECTED,
    word: NodeWord = NOTHING_SAID,
) -> BootJudgement:
    """Judge one boot. `claims` are those of `claims_under`, made anew where they are not given; `word` is what the node
    says of itself, which narrows what is announced and says what most likely happened.

    1. the policy names PCRs, and the quote covers them all (`boot.policy-empty`, `boot.pcr-not-quoted`)
    2. where a log is required there is one (`boot.event-log-missing`; l13). A caller that has judged this boot before, by
       reset counter, PCR values and `policy_fingerprint`, need not ask again; after a reset it must (q17)
    3. the log leads to every quoted boot PCR, compared or not, but for those that the policy calls run-time ones
       (`eventlog.replay`; l01, l02), and is what firmware writes (`eventlog.*`)
    4. the section's rules hold (`boot.secure-boot`, `boot.dbx`, `boot.sbat`, `boot.signer`, `boot.stage`,
       `boot.cmdline`, `boot.firmware`), by claims that a digest covers
    5. nothing that was superseded is back (`boot.rolled-back`; l14, l15), announced or not; and no list revokes less than
       that of the accepted boot, unless this very list was announced
    6. every PCR of the policy is as in the reference, or has a pinned value (`boot.pcr`, `boot.not-pinned`), or all that
       differs was announced; or the policy lets a person be asked (`boot.unannounced`)
    """
    if not policy.pcrs:  # 1
        detail = "the [boot] section names no PCR, so no boot is good"
        return BootJudgement(findings=[Finding(code="boot.policy-empty", detail=detail)])
    missing = [pcr for pcr in policy.pcrs if pcr not in quote.pcrs]
    if missing:
        detail = f"PCR {', '.join(map(str, missing))}: in the policy and not in the quote"
        return BootJudgement(findings=[Finding(code="boot.pcr-not-quoted", detail=detail, pcr=missing[0])])
    findings = list(quote.findings)
    unexplained: set[int] = set()
    if log is not None:  # 3
        of_boot = {pcr: value for pcr, value in quote.pcrs.items() if pcr in BOOT_PCRS}
        replayed = explain(log, of_boot, policy.runtime_pcrs)
        unexplained = {finding.pcr for finding in replayed if finding.pcr is not None}
        findings += replayed
        findings += oddities(log)
        claims = claims_under(log, quote.pcrs) if claims is None else claims
    else:
        claims = None
        if policy.event_log == "required":  # 2
            findings.append(Finding(code="boot.event-log-missing", detail="no firmware log for this boot"))
    explained = policy.proven_pcrs - unexplained
    findings += break_rules(policy, claims, explained)  # 4
    if policy.reference == "pinned":
        findings += _rolled_back(log, policy.pcrs, frozenset(expected.superseded), frozenset())  # 5
        return BootJudgement(findings=findings + [f for p in policy.pcrs for f in _pinned(policy, quote, p)])
    if reference is None:
        findings.append(Finding(code="boot.no-reference", detail="no boot of this node was accepted yet"))
        return BootJudgement(findings=findings)
    superseded = {value.sha256 for value in reference.superseded} | set(expected.superseded)
    good = frozenset(event.sha256 for event in reference.events)
    findings += _rolled_back(log, policy.pcrs, frozenset(superseded), good)  # 5
    comparison = _Comparison(policy, quote, log, reference, claims=claims, expected=expected, word=word)
    against = comparison.findings(superseded)  # 6
    findings += against
    adopt = not any(f.code not in ADVISORY_CODES for f in findings) and not against
    return BootJudgement(findings=findings, announced=comparison.announced if adopt else [])


def _pinned(policy: BootPolicy, quote: VerifiedQuote, pcr: int) -> list[Finding]:
    allowed = policy.pinned.get(str(pcr))
    found = quote.pcrs[pcr].hex()
    if not allowed:
        detail = f"PCR {pcr}: no value is pinned"
        return [Finding(code="boot.not-pinned", detail=detail, pcr=pcr)]
    if found in allowed:
        return []
    detail = f"PCR {pcr}: wanted {' or '.join(v[:16] + '…' for v in allowed[:4])}, found {found}"
    return [Finding(code="boot.pcr", detail=detail, pcr=pcr)]


def _rolled_back(
    log: EventLog | None, pcrs: Collection[int], superseded: frozenset[bytes], good: frozenset[bytes]
) -> list[Finding]:
    """Return a finding for each value that was good once, was superseded, and is back."""
    if log is None or not superseded:
        return []
    findings: dict[bytes, Finding] = {}
    for event in log.events:
        digest = event.sha256
        if event.pcr in pcrs and digest in superseded and digest not in good and digest not in findings:
            detail = (
                f"PCR {event.pcr} event {event.index} {event.type_name}: was accepted before and superseded; most likely "
                f"rolled back to an older state: wanted what took its place, found {digest.hex()}"
            )
            findings[digest] = Finding(
                code="boot.rolled-back", detail=detail, pcr=event.pcr, event=event.index
            )
    return list(findings.values())


class _Comparison:
    """One boot held against the accepted one."""

    def __init__(
        self,
        policy: BootPolicy,
        quote: VerifiedQuote,
        log: EventLog | None,
        reference: Reference,
        *,
        claims: Claims | None,
        expected: Expected,
        word: NodeWord,
    ) -> None:
        self._policy, self._quote, self._log, self._reference = policy, quote, log, reference
        self._claims, self._expected, self._word = claims, expected, word
        self._found: Reference | None = None
        self.announced: list[str] = []

    def findings(self, superseded: Collection[bytes]) -> list[Finding]:
        """Return what differs and was not announced; fills `announced`.

        A superseded value is never announced: then the boot stays refused, by `boot.rolled-back` and by its PCR.
        """
        findings: list[Finding] = []
        changes: list[Change] = []
        for pcr in self._policy.pcrs:
            of_pcr = self._changes(pcr)
            if isinstance(of_pcr, Finding):
                findings.append(of_pcr)
            else:
                changes += of_pcr
        if not changes:
            return findings
        found = self._as_found()
        was, now = release_of(self._reference.command_line), release_of(found.command_line)
        renamed = [c for c in changes if self._log is not None and renamed_only(c, self._log, was, now)]
        announced = [c for c in changes if self._is_announced(c, superseded)]
        open_ = [c for c in changes if c not in announced and c not in renamed]
        if not open_ and announced:
            self.announced = list(dict.fromkeys(_told(change) for change in announced))
            return findings
        open_ = open_ or changes
        cause = likely_cause(open_, self._reference, found, self._word)
        lists = self._lists(found)
        if not findings and self._may_ask(open_, superseded, lists):
            return _questions(open_, cause)
        findings += [_weakened(c, less) for c in open_ if (less := _rolled(lists, c, superseded))]
        first = {change.pcr: change for change in reversed(open_)}
        return findings + [
            _difference("boot.pcr", first[pcr], cause) for pcr in self._policy.pcrs if pcr in first
        ]

    def _as_found(self) -> Reference:
        if self._found is None:
            # Every event, explained or not: here it only gives a difference its name.
            every = self._quote.pcrs.keys()
            self._found = reference_from(self._log, self._quote.pcrs, self._claims, runtime_pcrs=every)
        return self._found

    def _lists(self, found: Reference) -> dict[int, str]:
        """Return what each revocation list that can be compared no longer revokes (see `held_against`)."""
        if self._claims is None:
            return {}
        return held_against(self._reference.revoked, found.revoked, self._claims)

    def _changes(self, pcr: int) -> list[Change] | Finding:
        """Return how a PCR differs; a finding where no event can say."""
        policy, reference = self._policy, self._reference
        wanted, found = reference.pcrs.get(pcr), self._quote.pcrs[pcr]
        if wanted is None:
            detail = f"PCR {pcr}: not in the accepted boot; accept the boot again"
            return Finding(code="boot.no-reference", detail=detail, pcr=pcr)
        runtime = pcr in policy.runtime_pcrs
        if not runtime and found == wanted:
            return []
        changes: list[Change] = []
        if self._log is not None and reference.events:
            changes = differences(reference, self._as_found(), pcr)
        if changes or runtime:
            return changes
        why = "" if self._log is not None else " (no log to name the event)"
        return _pcr_finding(pcr, f"PCR {pcr}: wanted {wanted.hex()}{why}, found {found.hex()}")

    def _is_announced(self, change: Change, superseded: Collection[bytes]) -> bool:
        """Whether this very digest is expected at this stage; what is missing never is."""
        after = change.after
        if after is None or after.sha256 in superseded:
            return False
        if change.before is not None and not change.stage:
            return False
        key = after.stage.replace("-", "_")
        if after.sha256 in dict(self._policy.stages.listed()).get(key, ()):
            return True
        return any(
            value.sha256 == after.sha256
            and value.stage == after.stage
            and value.hardware_class in ("", self._reference.firmware_version)
            and value.os_release in ("", self._word.os_release)
            for value in self._expected.values
        )

    def _may_ask(
        self, changes: Sequence[Change], superseded: Collection[bytes], lists: Mapping[int, str]
    ) -> bool:
        """Whether all that is left to explain is what an update changes, in an otherwise accepted, secure boot."""
        policy, claims = self._policy, self._claims
        return (
            policy.unannounced == "question"
            and claims is not None
            and claims.secure_boot is True
            and claims.proved("secure_boot", policy.proven_pcrs)
            and claims.shim_verifies is not False
            and all(_is_update(change, lists) for change in changes)
            and not any(c.after is not None and c.after.sha256 in superseded for c in changes)
        )


def _is_update(change: Change, lists: Mapping[int, str]) -> bool:
    """Whether a change is what updates make: never keys or commands, and of lists only dbx and SBAT, where it is known
    that they revoke at least what they did. A list of the owner's keys lets more be booted, so nobody is asked about it."""
    if change.stage == REVOCATION:
        return change.after is not None and lists.get(change.after.index) == ""
    return change.stage in QUESTION_STAGES and change.pcr not in (KEYS_PCR, COMMAND_PCR)


def _told(change: Change) -> str:
    after = change.after
    return (
        "" if after is None else never_more(f"{after.stage} '{after.description}' {after.sha256.hex()}", 256)
    )


def _questions(changes: Sequence[Change], cause: str) -> list[Finding]:
    """Return one finding for each new value, wherever it was measured."""
    first = {(c.stage, c.after.sha256): c for c in reversed(changes) if c.after is not None}
    ordered = sorted(first.values(), key=lambda c: c.after.index if c.after else 0)
    found = [_difference("boot.unannounced", change, "") for change in ordered]
    return [msgspec.structs.replace(f, detail=never_more(f"{cause}: {f.detail}", 2048)) for f in found]


def _rolled(lists: Mapping[int, str], change: Change, superseded: Collection[bytes]) -> str:
    """Return what the list that changed no longer revokes; empty where it is no list, revokes no less, or is one of those
    that were superseded, which are named already."""
    after = change.after
    return "" if after is None or after.sha256 in superseded else lists.get(after.index, "")


def _weakened(change: Change, less: str) -> Finding:
    """Name a list that went back, also to a state that nobody has seen yet (l14)."""
    told = f"rolled back or reset, for it revokes less than in the accepted boot: {less}"
    return _difference("boot.rolled-back", change, told)


def _difference(code: str, change: Change, cause: str) -> Finding:
    """Say one difference; what was found stands last, since the same new value elsewhere is the same difference."""
    before, after, pcr = change.before, change.after, change.pcr
    told = f"; most likely {cause}" if cause else ""
    if after is None:
        gone = before.sha256.hex() if before else ""
        what = f"{before.type_name} '{before.description}'" if before else "an event"
        detail = f"PCR {pcr}: {what} is missing: wanted {gone}{told}, found nothing"
        return _pcr_finding(pcr, detail, None, code)
    if before is None:
        detail = f"PCR {pcr} {label(after)}: not in the accepted boot{told}, found {after.sha256.hex()}"
    else:
        was = f" (was {before.type_name} '{before.description}'{told})"
        detail = f"PCR {pcr} {label(after)}: wanted {before.sha256.hex()}{was}, found {after.sha256.hex()}"
    return _pcr_finding(pcr, detail, after.index, code)


def _pcr_finding(pcr: int, detail: str, event: int | None = None, code: str = "boot.pcr") -> Finding:
    return Finding(code=code, detail=never_more(detail, 2048), pcr=pcr, event=event)

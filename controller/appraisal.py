"""From an untrusted report to evidence: every check that needs no more than what the session holds. Pure.

Nothing here decides what follows; that is `controller.judge`'s. Nothing here reads a clock or keeps a nonce: the
caller has consumed the nonce before it calls, whatever comes of it. A report that brings nothing new costs the
quote's verification and a few comparisons: boots and measured lines are judged once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec

from contract.binding import BOOT_PCRS, IMA_PCR, QUOTED_PCRS, qualifying_data
from contract.boot import Reference, reference_from, weigh_boot
from contract.claims import claims_under
from contract.errors import Rejected
from contract.eventlog import parse_event_log
from contract.ima import ImaState, fits, follow
from contract.messages import MAX_BODY_BYTES, MAX_IMA_CHUNK_BYTES, Finding, Report, ReportBody
from contract.nodeword import NodeWord
from contract.quote import AttestationKey, VerifiedQuote, verify_quote
from contract.wire import decode, encode
from controller.policies import Policies
from controller.records import MAX_REFERENCE_BYTES, BootRecord, Evidence, SessionRecord

_BOOT_ORDER: Final = tuple(sorted(BOOT_PCRS))
_boot_values = itemgetter(*_BOOT_ORDER)
_BOOT_BEGIN: Final = ImaState()


class Asked(NamedTuple):
    """Which logs a report was to bring: told with its nonce."""

    event_log: bool = False
    ima_offset: int | None = None
    """None: no IMA log."""


class JudgedBoot(NamedTuple):
    """What comes of a boot."""

    record: BootRecord
    reference: bytes | None
    """None: it is on record, or nothing is to be said of it."""
    claims: bytes | None
    announced: Sequence[str]


class LogWanted(Exception):
    """The quote is good, but this boot or this run has not been explained yet: more of the logs must come."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked


class Appraiser:
    """What one session's reports are held against; made anew whenever key or policies change."""

    __slots__ = ("_boot", "_catching_up", "_certificate_sha256", "_key", "_policies", "record")

    def __init__(
        self,
        record: SessionRecord,
        certificate_sha256: bytes,
        policies: Policies,
        key: AttestationKey | None = None,
    ) -> None:
        """Load the key once. Raises Rejected when the stored one is damaged."""
        self.record = record
        self._certificate_sha256 = certificate_sha256
        self._policies = policies
        self._key = key or AttestationKey.from_public(record.ak_public, record.ek_public)
        self._boot: tuple[tuple[bytes, ...], bytes] = (), b""
        """Quoted values of BOOT_PCRS, and the SHA-256 over them."""
        self._catching_up: tuple[int, ImaState] | None = None
        """Reset counter, and how far a long IMA log was read in this session. No quote has met it, so nothing of it
        is stored and nothing is said of it."""

    def renewed(self, record: SessionRecord, policies: Policies) -> Appraiser:
        """Return the appraiser for a newer record of the same session; parses only what has changed."""
        old = self.record
        same_key = (record.ak_public, record.ek_public) == (old.ak_public, old.ek_public)
        if same_key and policies is self._policies:
            self.record = record
            return self
        return Appraiser(record, self._certificate_sha256, policies, self._key if same_key else None)

    def asking(self) -> Asked:
        """Return what the next report should bring, as far as it can be known before its quote is seen."""
        boot = self.record.boot
        counters = self.record.counters
        start = self._start(counters.reset if counters else None)
        return Asked(
            event_log=boot is None or boot.judged_by != self._policies.fingerprint,
            ima_offset=None if start is None else start.offset,
        )

    def needs_reference(self, report: Report, body: ReportBody) -> bool:
        """Return whether this report may have to be held against the accepted boot, which is large and seldom read."""
        return report.event_log is not None or not body.event_log_sha256

    def appraise(
        self, report: Report, body: ReportBody, nonce: bytes, asked: Asked, reference: bytes | None = None
    ) -> Evidence:
        """Verify one report over a nonce that was consumed. `asked` is what came with that nonce.

        1. the body is this node's (`report.other-node`; b09)
        2. the firmware log in the report is the one the body names (`eventlog.changed`; q21)
        3. the quote is the enrolled key's, over nonce, node, certificate, body and log (`quote.*`; q01 to q21)
        4. logs that are missing are asked for once, and not sending them is a failure (`boot.event-log-withheld`); the
           IMA log goes on where it was asked for (`ima.offset`; m05), from the beginning after a signed reset (q17)
        5. the IMA log leads to the quoted PCR 10 and is what the policy allows (`ima.*`; part M): findings
        6. the firmware log is well formed (`eventlog.*`)
        7. log and PCRs are those of a boot that the policy allows (`boot.*`): findings, not a rejection

        Raises Rejected, LogWanted.
        """
        record = self.record
        if body.node != record.node:  # 1
            raise Rejected("report.other-node", f"session of {record.node}")
        untrusted_log = report.event_log
        if untrusted_log is not None and hashlib.sha256(untrusted_log).digest() != body.event_log_sha256:  # 2
            raise Rejected("eventlog.changed", "the log is not the one that the report names")
        quote = verify_quote(  # 3
            self._key,
            report.quote,
            report.signature,
            qualifying_data=self.qualifying(report, body, nonce),
            pcrs=report.pcrs,
            wanted_pcrs=QUOTED_PCRS,
            previous=record.counters,
        )
        known = self._known(quote, body)
        start = self._start(quote.counters.reset)
        _check_logs(report, body, asked, known=known is not None, start=start)  # 4
        ima, ima_findings = self._ima(quote, report, body, start)  # 5
        if untrusted_log is None and known is not None:
            return Evidence(
                body=body,
                counters=quote.counters,
                findings=(*quote.findings, *known.findings, *ima_findings),
                boot=known,
                ima=ima,
            )
        boot = self._judged(quote, body, untrusted_log, reference)  # 6, 7
        return Evidence(
            body=body,
            counters=quote.counters,
            findings=(*quote.findings, *boot.record.findings, *ima_findings),
            boot=boot.record,
            reference=boot.reference,
            announced=list(boot.announced),
            claims=boot.claims,
            ima=ima,
        )

    def qualifying(self, report: Report, body: ReportBody, nonce: bytes) -> bytes:
        """Return what the quote of this report must be over: with the certificate that this very connection showed."""
        return qualifying_data(
            nonce=nonce,
            node=self.record.node,
            certificate_sha256=self._certificate_sha256,
            body=report.body,
            event_log_sha256=body.event_log_sha256,
        )

    def _known(self, quote: VerifiedQuote, body: ReportBody) -> BootRecord | None:
        """Return the boot on record if it is the one seen now and was judged by these policies."""
        known = self.record.boot
        if (
            known is not None
            and known.reset == quote.counters.reset
            and known.pcrs_sha256 == self._boot_sha256(quote)
            and known.event_log_sha256 == body.event_log_sha256
            and known.judged_by == self._policies.fingerprint
        ):
            return known
        return None

    def _boot_sha256(self, quote: VerifiedQuote) -> bytes:
        """Return `BootRecord.pcrs_sha256`. The values are mostly those of the quote before."""
        values = _boot_values(quote.pcrs)
        if values != self._boot[0]:
            self._boot = values, hashlib.sha256(b"".join(values)).digest()
        return self._boot[1]

    # ---- IMA

    def _agreed(self, reset: int | None) -> ImaState:
        """Return how far the log of this boot is agreed. Only the signed reset counter begins a new boot."""
        rules, state, counters = self._policies.ima, self.record.ima, self.record.counters
        if rules is None or state is None or counters is None or counters.reset != reset:
            return _BOOT_BEGIN
        if not fits(
            rules, state
        ):  # another policy: every line is judged again, and what was shown stands until then
            return ImaState(reports=state.reports, proved=state.proved)
        return state

    def _start(self, reset: int | None) -> ImaState | None:
        """Return where the log goes on; None when the policies do not want it."""
        if self._policies.ima is None:
            return None
        if self._catching_up is not None and self._catching_up[0] == reset:
            return self._catching_up[1]
        return self._agreed(reset)

    def _ima(
        self, quote: VerifiedQuote, report: Report, body: ReportBody, start: ImaState | None
    ) -> tuple[ImaState | None, list[Finding]]:
        """Follow the log. Raises LogWanted while a long one is being read, chunk by chunk."""
        rules, reset = self._policies.ima, quote.counters.reset
        if rules is None or start is None:
            return None, []
        self._catching_up = None
        if report.ima_log is None:
            missing = Finding(code="ima.no-log", detail="the node says that it has no IMA log", pcr=IMA_PCR)
            return self._agreed(reset), _weighed(rules.policy.mode, "ima", [missing])
        result = follow(
            rules,
            start,
            report.ima_log,
            quote.pcrs[IMA_PCR],
            quote.pcrs,
            offset=body.ima_offset,
            more=len(report.ima_log) >= MAX_IMA_CHUNK_BYTES,
            changes=body.packages,
        )
        if result.pending is not None and result.pending.reports <= rules.policy.max_reports:
            self._catching_up = reset, result.pending
            raise LogWanted(Asked(report.event_log is not None, result.pending.offset))
        return result.state, _weighed(rules.policy.mode, "ima", result.findings)

    # ---- boot

    def _judged(
        self,
        quote: VerifiedQuote,
        body: ReportBody,
        untrusted_log: bytes | None,
        untrusted_reference: bytes | None,
    ) -> JudgedBoot:
        """Judge a boot that is not on record."""
        word = NodeWord(os_release=body.os_release, packages=body.packages)
        policies = self._policies
        log = None if untrusted_log is None else parse_event_log(untrusted_log)  # 6
        pcrs = {pcr: quote.pcrs[pcr] for pcr in _BOOT_ORDER}
        claims = None if log is None else claims_under(log, pcrs)
        shown = partial(
            reference_from,
            log,
            pcrs,
            claims,
            runtime_pcrs=policies.boot.runtime_pcrs,
            os_release=word.os_release,
        )
        candidate = None
        if untrusted_reference is not None:
            accepted = decode(untrusted_reference, Reference, max_bytes=MAX_REFERENCE_BYTES)
        else:
            accepted = candidate = shown()
        judged = weigh_boot(  # 7
            policies.boot, quote, log, accepted, claims=claims, expected=policies.expected, word=word
        )
        findings = [finding for finding in judged.findings if finding not in quote.findings]
        noted = bool(accepted.explained)  # not so in what earlier versions kept
        if candidate is None and (findings or judged.announced or not noted):
            candidate = shown()
        return JudgedBoot(
            record=BootRecord(
                reset=quote.counters.reset,
                pcrs_sha256=self._boot_sha256(quote),
                event_log_sha256=body.event_log_sha256,
                judged_by=policies.fingerprint,
                findings=_weighed(policies.boot.mode, "boot", findings),
            ),
            reference=None if candidate is None else encode(candidate),
            claims=None if claims is None else encode(claims),
            announced=judged.announced,
        )


def _check_logs(
    report: Report, body: ReportBody, asked: Asked, *, known: bool, start: ImaState | None
) -> None:
    """Check 4. Raises LogWanted for what was not asked for yet, Rejected for what was asked for and did not come."""
    event_log_due = not known and report.event_log is None and bool(body.event_log_sha256)
    if event_log_due and asked.event_log:
        raise Rejected("boot.event-log-withheld", "asked for and not sent")
    offset = None if start is None else start.offset
    if event_log_due or (offset is not None and offset != asked.ima_offset):
        raise LogWanted(Asked(not known, offset))
    if offset is not None and report.ima_log is not None and body.ima_offset != offset:
        raise Rejected("ima.offset", f"asked to go on at {offset}, went on at {body.ima_offset}")


def _weighed(mode: str | None, section: str, findings: list[Finding]) -> list[Finding]:
    """Mark findings of a section that is only observed."""
    if mode != "observe":
        return findings
    return [msgspec.structs.replace(f, code=f"{section}.observe.{f.code}") for f in findings]


def parsed_body(report: Report) -> ReportBody:
    """Parse the opaque body. Raises Rejected `report.malformed`."""
    return decode(report.body, ReportBody, max_bytes=MAX_BODY_BYTES, code="report.malformed")

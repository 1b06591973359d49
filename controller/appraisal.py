"""From an untrusted report to evidence: every check that needs no more than what the session holds. Pure.

Nothing here decides what follows; that is `controller.judge`'s. Nothing here reads a clock or keeps a nonce: the
caller has consumed the nonce before it calls, whatever comes of it.
"""

from __future__ import annotations

import hashlib

import msgspec

from contract.binding import QUOTED_PCRS, qualifying_data
from contract.boot import BootPolicy, Reference, judge_boot, reference_from
from contract.errors import Rejected
from contract.eventlog import EventLog, parse_event_log
from contract.messages import MAX_BODY_BYTES, Finding, Report, ReportBody
from contract.quote import AttestationKey, VerifiedQuote, verify_quote
from contract.wire import decode, encode
from controller.records import BootRecord, Evidence, SessionRecord

MAX_REFERENCE_BYTES = 2 * 1024 * 1024
_STRICTEST = BootPolicy()


class LogWanted(Exception):
    """The quote is good, but this boot has not been explained yet: the firmware log must come with the next report."""


class Appraiser:
    """What one session's reports are held against; made anew whenever the record changes."""

    __slots__ = ("_certificate_sha256", "_key", "_policy", "record")

    def __init__(
        self, record: SessionRecord, certificate_sha256: bytes, key: AttestationKey | None = None
    ) -> None:
        """Load key and policy once; the reference only when a boot is judged, for it is large.

        Raises Rejected when the stored key is damaged.
        """
        self.record = record
        self._certificate_sha256 = certificate_sha256
        self._key = key or AttestationKey.from_public(record.ak_public, record.ek_public)
        self._policy = (
            msgspec.json.decode(record.boot_section, type=BootPolicy) if record.boot_section else _STRICTEST
        )

    def renewed(self, record: SessionRecord) -> Appraiser:
        """Return the appraiser for a newer record of the same session; parses only what has changed."""
        old = self.record
        same_key = (record.ak_public, record.ek_public) == (old.ak_public, old.ek_public)
        if same_key and record.boot_section == old.boot_section:
            self.record = record
            return self
        return Appraiser(record, self._certificate_sha256, self._key if same_key else None)

    def appraise(self, report: Report, body: ReportBody, nonce: bytes) -> Evidence:
        """Verify one report over a nonce that was consumed.

        1. the body is this node's (`report.other-node`; b09)
        2. the log in the report is the one the body names (`eventlog.changed`; q21)
        3. the quote is the enrolled key's, over nonce, node, certificate, body and log (`quote.*`; q01 to q21)
        4. the log is well formed (`eventlog.*`); it is asked for where this boot was not explained before
        5. log and PCRs are those of the accepted boot: findings, not a rejection

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
        boot, reference = self._boot(quote, untrusted_log, body.event_log_sha256)
        return Evidence(
            body=body,
            counters=quote.counters,
            findings=(*quote.findings, *boot.findings),
            boot=boot,
            reference=reference,
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

    def _boot(
        self, quote: VerifiedQuote, untrusted_log: bytes | None, log_sha256: bytes
    ) -> tuple[BootRecord, bytes | None]:
        values = b"".join(quote.pcrs[pcr] for pcr in sorted(quote.pcrs))
        pcrs_sha256 = hashlib.sha256(values).digest()
        known = self.record.boot
        if (
            untrusted_log is None
            and known is not None
            and known.reset == quote.counters.reset
            and known.pcrs_sha256 == pcrs_sha256
            and known.event_log_sha256 == log_sha256
        ):
            return known, None
        if untrusted_log is None and log_sha256:
            raise LogWanted
        log = None if untrusted_log is None else parse_event_log(untrusted_log)  # 4
        candidate = reference_from(log, quote.pcrs)
        boot = BootRecord(
            reset=quote.counters.reset,
            pcrs_sha256=pcrs_sha256,
            event_log_sha256=log_sha256,
            findings=self._judged(quote, log, self._accepted_boot() or candidate),
        )
        return boot, encode(candidate)

    def _accepted_boot(self) -> Reference | None:
        if self.record.reference is None:
            return None
        return decode(self.record.reference, Reference, max_bytes=MAX_REFERENCE_BYTES)

    def _judged(self, quote: VerifiedQuote, log: EventLog | None, reference: Reference) -> list[Finding]:
        findings = [
            f for f in judge_boot(self._policy, quote, log, reference) if f not in quote.findings
        ]  # 5
        if self._policy.mode == "observe":
            return [msgspec.structs.replace(f, code=f"boot.observe.{f.code}") for f in findings]
        return findings


def parsed_body(report: Report) -> ReportBody:
    """Parse the opaque body. Raises Rejected `report.malformed`."""
    return decode(report.body, ReportBody, max_bytes=MAX_BODY_BYTES, code="report.malformed")

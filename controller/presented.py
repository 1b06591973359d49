"""A report as it came, kept at hand while it is judged, so that it can be stored if its verdict is worth keeping.

Costs the steady path one small object that refers to what is there anyway. `prepare` compresses the logs; whoever
has a thread to spare for a report with logs calls it there, else the store's thread does it when the evidence is kept.
"""

from __future__ import annotations

import hashlib

from contract.bundle import Stored, compress
from contract.messages import Report, ReportBody
from controller.records import SessionRecord


class Presented:
    """One report with what its quote was held against. Nothing of it is verified."""

    __slots__ = ("body", "certificate_sha256", "nonce", "parts", "record", "report")

    def __init__(
        self, report: Report, body: ReportBody, nonce: bytes, record: SessionRecord, certificate_sha256: bytes
    ) -> None:
        """`record` and `certificate_sha256`: of the session that the report came over."""
        self.report = report
        self.body = body
        self.nonce = nonce
        self.record = record
        self.certificate_sha256 = certificate_sha256
        self.parts: tuple[tuple[bytes, bytes], ...] | None = None
        """SHA-256 and compressed content of the firmware log and of the IMA lines, each empty when it did not come."""

    def prepare(self) -> tuple[tuple[bytes, bytes], ...]:
        """Compress the logs, once."""
        if self.parts is None:
            self.parts = (_part(self.report.event_log), _part(self.report.ima_log))
        return self.parts

    def stored(self, reference: dict[int, bytes]) -> Stored:
        """Return what the store keeps of it. `reference`: PCR values of the accepted boot."""
        _, (ima_log_sha256, _) = self.prepare()
        return Stored(
            node=self.record.node,
            nonce=self.nonce,
            certificate_sha256=self.certificate_sha256,
            body=self.report.body,
            quote=self.report.quote,
            signature=self.report.signature,
            pcrs=self.report.pcrs,
            ak_public=self.record.ak_public,
            ek_public=self.record.ek_public,
            event_log_sha256=self.body.event_log_sha256,
            ima_log_sha256=ima_log_sha256,
            ima_offset=self.body.ima_offset,
            reference=reference,
        )


def _part(content: bytes | None) -> tuple[bytes, bytes]:
    return (hashlib.sha256(content).digest(), compress(content)) if content else (b"", b"")

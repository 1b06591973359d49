"""One imagined node without a network: its reports as the session code would hand them to the appraiser, and the record
that a controller would keep of it. The TPM is `tests.parts.softtpm`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa

from contract import messages, wire
from contract.binding import qualifying_data
from contract.messages import PackageChange, Report, ReportBody
from controller.appraisal import Appraiser, Asked, LogWanted, parsed_body
from controller.policies import Policies
from controller.records import Evidence, SessionRecord
from tests.parts import imalog
from tests.parts.simulator import replayed
from tests.parts.softtpm import SoftTpm, new_scalar

MAX_REPORTS = 100
CERTIFICATE_SHA256 = hashlib.sha256(b"certificate").digest()


class Attester:
    """A machine that has booted with a firmware log; `ima_log` None: it has no IMA."""

    def __init__(
        self,
        name: str,
        event_log: bytes,
        ima_log: bytes | None = None,
        *,
        rsa_ak: rsa.RSAPrivateKey | None = None,
    ) -> None:
        self.name = name
        self._rsa_ak = rsa_ak
        self._scalars = new_scalar(), new_scalar()
        self._resets = 0
        self.boot_id = "boot"
        self.nonces = 0
        self.clock_ms = 0
        self.boot(event_log, ima_log)

    def boot(self, event_log: bytes, ima_log: bytes | None = None) -> None:
        """Switch off and on: the TPM counts it."""
        self._resets += 1
        self.tpm = SoftTpm(*self._scalars, resets=self._resets, rsa_ak=self._rsa_ak)
        self.event_log = event_log
        self.pcrs = replayed(event_log)
        self.ima_log: bytes | None = None
        if ima_log is not None:
            self.measure(ima_log)

    def measure(self, lines: bytes) -> None:
        """Run what these IMA records tell of."""
        self.ima_log = (self.ima_log or b"") + lines
        self.pcrs = {**self.pcrs, imalog.PCR: imalog.pcr10(lines, self.pcrs[imalog.PCR])}

    def record(self) -> SessionRecord:
        """What the controller knows of a node that never reported."""
        return SessionRecord(
            node=self.name,
            site="factory",
            ek_public=self.tpm.ek_public,
            ak_public=self.tpm.ak_public,
            certificate_sha256=CERTIFICATE_SHA256,
            interval_s=60.0,
            counters=None,
            boot=None,
            baseline=None,
            directive_number=0,
        )

    def appraiser(self, policies: Policies, record: SessionRecord | None = None) -> Appraiser:
        """What a session of this node would hold."""
        return Appraiser(record or self.record(), CERTIFICATE_SHA256, policies)

    def nonce(self) -> bytes:
        """Return a nonce that was not used before."""
        self.nonces += 1
        return hashlib.sha256(f"{self.name} {self.nonces}".encode()).digest()

    def report(
        self,
        nonce: bytes,
        asked: Asked,
        *,
        ima_offset: int | None = None,
        packages: Sequence[PackageChange] = (),
        pcr10: bytes | None = None,
    ) -> Report:
        """Return what an honest agent sends; `ima_offset` and `pcr10` for one that is not."""
        offset = asked.ima_offset if ima_offset is None else ima_offset
        chunk = None
        if self.ima_log is not None and offset is not None:
            chunk = self.ima_log[offset : offset + messages.MAX_IMA_CHUNK_BYTES]
        self.clock_ms += 1000
        log_sha256 = hashlib.sha256(self.event_log).digest() if self.event_log else b""
        body = wire.encode(
            ReportBody(
                node=self.name,
                number=self.clock_ms,
                boot_id=self.boot_id,
                at=1.0,
                uptime_s=1.0,
                agent_version="0",
                posture="normal",
                event_log_sha256=log_sha256,
                ima_offset=offset or 0,
                ima_bytes=None if chunk is None else len(chunk),
                packages=list(packages),
            )
        )
        data = qualifying_data(
            nonce=nonce,
            node=self.name,
            certificate_sha256=CERTIFICATE_SHA256,
            body=body,
            event_log_sha256=log_sha256,
        )
        pcrs = self.pcrs if pcr10 is None else {**self.pcrs, imalog.PCR: pcr10}
        quote, signature = self.tpm.quote(data, pcrs, clock_ms=self.clock_ms)
        return Report(
            body=body,
            quote=quote,
            signature=signature,
            pcrs=pcrs,
            event_log=self.event_log if asked.event_log and self.event_log else None,
            ima_log=chunk,
        )


def after(record: SessionRecord, evidence: Evidence) -> SessionRecord:
    """Return the record as the store would give it back once this evidence was taken."""
    return msgspec.structs.replace(record, counters=evidence.counters, boot=evidence.boot, ima=evidence.ima)


def attest(
    node: Attester, appraiser: Appraiser, policies: Policies, reference: bytes | None = None
) -> tuple[Appraiser, Evidence, int]:
    """Report until the logs are all there; return the session's next appraiser, the evidence and the number of reports."""
    asked = appraiser.asking()
    for rounds in range(1, MAX_REPORTS):
        nonce = node.nonce()
        report = node.report(nonce, asked)
        try:
            evidence = appraiser.appraise(report, parsed_body(report), nonce, asked, reference)
        except LogWanted as more:
            asked = more.asked
            continue
        return appraiser.renewed(after(appraiser.record, evidence), policies), evidence, rounds
    raise AssertionError("always asked for more")

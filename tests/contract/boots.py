"""Boots made to order: a recorded one with some events changed, its PCRs as a TPM would hold them, and a quote over them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence

from contract.boot import BootJudgement, BootPolicy, Reference, judge_boot, reference_from, weigh_boot
from contract.bootreference import succession
from contract.claims import claims_under
from contract.eventlog import EventLog, parse_event_log, replay
from contract.messages import Finding
from contract.nodeword import NOTHING_SAID, NodeWord
from contract.quote import VerifiedQuote
from contract.references import Expected, ExpectedValue
from tests.contract.forge import Case, Forger

SECURE = Case("secureboot-on")
FORGER = Forger("ecc256")
QUESTION = BootPolicy(unannounced="question")


def value(name: str) -> bytes:
    """Return a digest that goes by a name."""
    return hashlib.sha256(name.encode()).digest()


def written(events: Sequence[tuple[int, int, bytes, bytes]]) -> bytes:
    """Return the log of these (PCR, type, digest, data), as a firmware with a SHA-256 bank alone would write it."""
    table = struct.pack("<16sIBBBBIHHB", b"Spec ID Event03\0", 0, 0, 2, 0, 2, 1, 0x0B, 32, 0)
    raw = struct.pack("<II20sI", 0, 3, bytes(20), len(table)) + table
    for pcr, kind, digest, data in events:
        raw += struct.pack("<IIIH32sI", pcr, kind, 1, 0x0B, digest, len(data)) + data
    return raw


class Boot:
    """One boot, as a verifier sees it."""

    def __init__(self, log: EventLog, case: Case = SECURE) -> None:
        self.log = log
        replayed = replay(log)
        self._settle({pcr: replayed.get(pcr, was) for pcr, was in case.pcrs.items()})

    def _settle(self, pcrs: dict[int, bytes]) -> None:
        self.pcrs = pcrs
        self.claims = claims_under(self.log, pcrs)
        self.reference = reference_from(self.log, pcrs, self.claims)

    def over(self, pcrs: Mapping[int, bytes]) -> Boot:
        """Return this log over the PCR values of another boot, as a liar sends it."""
        other = Boot(self.log)
        other._settle(dict(pcrs))
        return other

    def quote(self) -> VerifiedQuote:
        """Return a quote over these PCRs."""
        attest = FORGER.attest(pcrs=self.pcrs)
        return FORGER.verify(attest, pcrs=self.pcrs, wanted=frozenset(self.pcrs))

    def changed(
        self, digests: Mapping[int, bytes] | None = None, texts: Mapping[int, tuple[str, str]] | None = None
    ) -> Boot:
        """Return the boot with other digests at some events, and with a text replaced in others that are covered."""
        events = []
        for event in self.log.events:
            data, digest = event.untrusted_data, event.digest
            if texts and event.index in texts:
                was, now = (text.encode() for text in texts[event.index])
                assert was in data
                data = data.replace(was, now)
                digest = hashlib.sha256(data[data.find(b": ") + 2 :].removesuffix(b"\0")).digest()
            digest = (digests or {}).get(event.index, digest)
            events.append((event.pcr, event.type, digest, data))
        return Boot(parse_event_log(written(events)))

    def without(self, *indexes: int) -> Boot:
        """Return the boot without some events."""
        kept = [e for e in self.log.events if e.index not in indexes]
        return Boot(parse_event_log(written([(e.pcr, e.type, e.digest, e.untrusted_data) for e in kept])))

    def named(self, index: int, data: bytes) -> Boot:
        """Return the boot with other data at an event whose digest does not cover it: the log's word alone."""
        events = [
            (e.pcr, e.type, e.digest, data if e.index == index else e.untrusted_data) for e in self.log.events
        ]
        return Boot(parse_event_log(written(events)))

    def holding(self, index: int, data: bytes) -> Boot:
        """Return the boot with other data at an event, and the digest of that."""
        return self.changed({index: hashlib.sha256(data).digest()}).named(index, data)

    def raw(self) -> bytes:
        """Return the log's bytes."""
        return written([(e.pcr, e.type, e.digest, e.untrusted_data) for e in self.log.events])

    def weighed(
        self,
        policy: BootPolicy,
        reference: Reference | None,
        expected: Expected | None = None,
        word: NodeWord = NOTHING_SAID,
    ) -> BootJudgement:
        """Judge it."""
        return weigh_boot(
            policy, self.quote(), self.log, reference, expected=expected or Expected(), word=word
        )

    def judged(
        self, policy: BootPolicy, reference: Reference | None, expected: Expected | None = None
    ) -> list[Finding]:
        """Judge it; what speaks against it."""
        return judge_boot(policy, self.quote(), self.log, reference, expected=expected or Expected())

    def after(self, before: Reference) -> Reference:
        """Return it as the reference that follows another."""
        return succession(before, self.reference)


def secure() -> Boot:
    """Return the recorded boot with Secure Boot on."""
    return Boot(parse_event_log(SECURE.read("eventlog.bin")))


# Of the recorded boot: the kernel as GRUB read it, twice as firmware and shim loaded it, and the initrd.
KERNEL_FILE, KERNEL_IMAGES, INITRD, GRUB, GRUB_CONFIG, SHIM = 46, (47, 48), 51, 30, 39, 24
COMMAND, LINUX, DBX, SBAT_LEVEL, MOK_LIST = 49, 45, 8, 27, 25


def kernel(name: str) -> dict[int, bytes]:
    """Return the digests of another kernel."""
    return {KERNEL_FILE: value(f"{name} file"), **{at: value(f"{name} image") for at in KERNEL_IMAGES}}


def announced(name: str, *, hardware_class: str = "", os_release: str = "") -> Expected:
    """Return an announcement of that kernel."""
    return Expected(
        values=[
            ExpectedValue(
                stage="kernel",
                sha256=value(f"{name} {kind}"),
                hardware_class=hardware_class,
                os_release=os_release,
            )
            for kind in ("file", "image")
        ]
    )

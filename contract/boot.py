"""The baseline's `[boot]` section: what a node's measured boot must be, and the judging of it.

Judges only what is verified: a VerifiedQuote, and a log that is worth what the quoted PCRs make of it. It learns
nothing by itself: without a reference there is a finding, and the controller decides whether to take this boot as the
reference. Each finding names the PCR and the first event that differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from msgspec import Meta, field

from contract.baseline import SectionBase
from contract.binding import BOOT_PCRS
from contract.eventdata import describe, oddities
from contract.eventlog import EV_NO_ACTION, Event, EventLog, explain
from contract.messages import Digest, Finding, Line, Message, never_more
from contract.quote import VerifiedQuote

Pcr = Annotated[int, Meta(ge=0, le=23)]
PcrKey = Annotated[str, Meta(pattern=r"\A(?:[0-9]|1[0-9]|2[0-3])\Z")]
HexDigest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
MAX_REFERENCE_EVENTS: Final = 8192

ADVISORY_CODES: Final = frozenset({"quote.firmware-version", "quote.clock-unsafe"})
"""Findings worth a warning. Every other code of this package means that the evidence is not what it must be."""


class BootPolicy(SectionBase, frozen=True, kw_only=True):
    """The `[boot]` section."""

    pcrs: list[Pcr] = field(default_factory=lambda: sorted(BOOT_PCRS))
    """SHA-256 PCRs that must be as in the reference. An empty list trusts nothing."""
    runtime_pcrs: list[Pcr] = field(default_factory=list)
    """Those of `pcrs` that the running system extends as well (systemd: 9): not their value is compared but
    the events of the log, which no quote proves for them."""
    event_log: Literal["required", "optional"] = "required"
    reference: Literal["enrolment", "pinned"] = "enrolment"
    """`enrolment`: the first boot after approval, kept by the controller. `pinned`: the values below."""
    pinned: dict[PcrKey, list[HexDigest]] = field(default_factory=dict)
    """PCR to the values allowed, in lower-case hexadecimal."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; msgspec turns it into an error with the key's path."""
        if len(set(self.pcrs)) != len(self.pcrs):
            raise ValueError("`pcrs` names a PCR twice")
        if not BOOT_PCRS.issuperset(self.pcrs):
            quoted = ", ".join(map(str, sorted(BOOT_PCRS)))
            raise ValueError(
                f"`pcrs` may name {quoted}: nodes quote no others, since software extends or resets them"
            )
        if not set(self.runtime_pcrs) <= set(self.pcrs):
            raise ValueError("`runtime_pcrs` must be among `pcrs`")
        if self.reference == "enrolment" and self.pinned:
            raise ValueError('`pinned` needs `reference = "pinned"`')


class ReferenceEvent(Message, frozen=True):
    """One event of the reference boot."""

    pcr: Pcr
    type_name: Line
    sha256: Digest
    description: Line = ""


class Reference(Message, frozen=True):
    """A boot that was accepted, as the controller stores it."""

    pcrs: dict[int, Digest]
    events: Annotated[list[ReferenceEvent], Meta(max_length=MAX_REFERENCE_EVENTS)] = field(
        default_factory=list
    )


def reference_from(log: EventLog | None, pcrs: Mapping[int, bytes]) -> Reference:
    """Return this boot as a reference: quoted PCR values, and the log's events in those PCRs."""
    events = [
        ReferenceEvent(
            pcr=event.pcr,
            type_name=event.type_name,
            sha256=event.sha256,
            description=never_more(describe(event), 96),
        )
        for event in (log.events if log else ())
        if event.type != EV_NO_ACTION and event.pcr in pcrs
    ]
    return Reference(pcrs=dict(pcrs), events=events)


def judge_boot(
    policy: BootPolicy,
    quote: VerifiedQuote,
    log: EventLog | None,
    reference: Reference | None,
) -> list[Finding]:
    """Return everything that speaks against this boot; an empty list means that it is the one that was wanted.

    1. the policy names PCRs, and the quote covers them all (`boot.policy-empty`, `boot.pcr-not-quoted`)
    2. where a log is required there is one (`boot.event-log-missing`; l13). A caller that has judged this boot before, by
       reset counter and PCR values, need not ask again; after a reset it must (q17)
    3. the log leads to the quoted PCRs (`eventlog.replay`; l01, l02) and is what firmware writes (`eventlog.*`)
    4. every PCR of the policy is as in the reference (`boot.pcr`), or has a pinned value (`boot.pcr`, `boot.not-pinned`)
    """
    if not policy.pcrs:  # 1
        return [
            Finding(code="boot.policy-empty", detail="the [boot] section names no PCR, so no boot is good")
        ]
    missing = [pcr for pcr in policy.pcrs if pcr not in quote.pcrs]
    if missing:
        detail = f"PCR {', '.join(map(str, missing))}: in the policy and not in the quote"
        return [Finding(code="boot.pcr-not-quoted", detail=detail, pcr=missing[0])]
    findings = list(quote.findings)
    if log is not None:  # 3
        judged = {pcr: quote.pcrs[pcr] for pcr in policy.pcrs}
        findings += explain(log, judged, policy.runtime_pcrs)
        findings += oddities(log)
    elif policy.event_log == "required":  # 2
        findings.append(Finding(code="boot.event-log-missing", detail="no firmware log for this boot"))
    return findings + _against(policy, quote, log, reference)  # 4


def _against(
    policy: BootPolicy, quote: VerifiedQuote, log: EventLog | None, reference: Reference | None
) -> list[Finding]:
    if policy.reference == "pinned":
        return [f for pcr in policy.pcrs for f in _against_pinned(policy, quote, pcr)]
    if reference is None:
        return [Finding(code="boot.no-reference", detail="no boot of this node was accepted yet")]
    return [f for pcr in policy.pcrs for f in _against_reference(policy, quote, log, reference, pcr)]


def _against_pinned(policy: BootPolicy, quote: VerifiedQuote, pcr: int) -> list[Finding]:
    allowed = policy.pinned.get(str(pcr))
    found = quote.pcrs[pcr].hex()
    if not allowed:
        detail = f"PCR {pcr}: no value is pinned"
        return [Finding(code="boot.not-pinned", detail=detail, pcr=pcr)]
    if found in allowed:
        return []
    detail = f"PCR {pcr}: wanted {' or '.join(v[:16] + '…' for v in allowed[:4])}, found {found}"
    return [Finding(code="boot.pcr", detail=detail, pcr=pcr)]


def _against_reference(
    policy: BootPolicy, quote: VerifiedQuote, log: EventLog | None, reference: Reference, pcr: int
) -> list[Finding]:
    wanted = reference.pcrs.get(pcr)
    if wanted is None:
        detail = f"PCR {pcr}: not in the accepted boot; accept the boot again"
        return [Finding(code="boot.no-reference", detail=detail, pcr=pcr)]
    if pcr in policy.runtime_pcrs:
        difference = _first_difference(log, reference, pcr) if log and reference.events else None
        return [_pcr_finding(pcr, difference)] if difference else []
    if quote.pcrs[pcr] == wanted:
        return []
    difference = _first_difference(log, reference, pcr) if log and reference.events else None
    if difference is None:
        shown = f"wanted {wanted.hex()}, found {quote.pcrs[pcr].hex()}"
        difference = (shown if log else f"{shown} (no log to name the event)", None)
    return [_pcr_finding(pcr, difference)]


def _pcr_finding(pcr: int, difference: tuple[str, int | None]) -> Finding:
    text, index = difference
    between = " " if index is not None else ": "
    return Finding(code="boot.pcr", detail=f"PCR {pcr}{between}{text}", pcr=pcr, event=index)


def _first_difference(log: EventLog, reference: Reference, pcr: int) -> tuple[str, int | None] | None:
    """Return text and index of the first event of a PCR that is not the reference's, or None if all are the same."""
    wanted = [event for event in reference.events if event.pcr == pcr]
    found = [event for event in log.events if event.pcr == pcr and event.type != EV_NO_ACTION]
    for before, now in zip(wanted, found, strict=False):
        if before.sha256 != now.sha256:
            was = f" (was {before.type_name} '{before.description}')"
            text = f"wanted {before.sha256.hex()}, found {now.sha256.hex()}"
            return f"{_label(now)}: {text}{was}", now.index
    if len(found) > len(wanted):
        extra = found[len(wanted)]
        return f"{_label(extra)}: not in the accepted boot, found {extra.sha256.hex()}", extra.index
    if len(found) < len(wanted):
        gone = wanted[len(found)]
        return (
            f"{gone.type_name} '{gone.description}' is missing: wanted {gone.sha256.hex()}, found nothing",
            None,
        )
    return None


def _label(event: Event) -> str:
    return f"event {event.index} {event.type_name} '{describe(event)}'"

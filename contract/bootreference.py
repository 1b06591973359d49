"""An accepted boot as the controller keeps it, and what differs between two boots. Decides nothing.

Only what the log explains under the quote enters one (`Claims.explained`), and the events of PCRs that a policy calls
run-time ones, which are marked by not being among the explained. The digests are what the TPM was extended with; stage and
description are the log's word and only say what to call a difference. Whatever accepts one looks at the digest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256
from typing import Annotated, Final

import msgspec
from msgspec import Meta, field

from contract.bootpolicy import Pcr
from contract.claims import Claims, claims_under
from contract.eventdata import describe
from contract.eventlog import EventLog
from contract.eventtypes import EV_IPL, EV_NO_ACTION
from contract.messages import Count, Digest, Line, Message, never_more
from contract.revocations import Revoked, revoked_by, stage_of

MAX_REFERENCE_EVENTS: Final = 8192
MAX_SUPERSEDED: Final = 1024
MAX_COMMAND_LINE_CHARS: Final = 4096
OTHER: Final = "other"
_RELEASE: Final = re.compile(r"[0-9][0-9A-Za-z.+~_-]{2,127}", re.ASCII)


class ReferenceEvent(Message, frozen=True, kw_only=True):
    """One event of an accepted boot."""

    pcr: Pcr
    type_name: Line
    sha256: Digest
    description: Line = ""
    stage: Line = ""
    """As `contract.references.ExpectedStage`; empty in references of earlier versions."""
    index: Count = 0
    """In the log."""


class Superseded(Message, frozen=True, kw_only=True):
    """A value that was good until another took its place: it never comes back by itself (l15)."""

    stage: Line
    sha256: Digest


class Reference(Message, frozen=True, kw_only=True):
    """A boot that was accepted, as the controller stores it."""

    pcrs: dict[int, Digest]
    events: Annotated[list[ReferenceEvent], Meta(max_length=MAX_REFERENCE_EVENTS)] = field(
        default_factory=list
    )
    command_line: Annotated[str, Meta(max_length=MAX_COMMAND_LINE_CHARS)] | None = None
    """As far as a digest covers it."""
    firmware_version: Line = ""
    """As far as a digest covers it; what announced values call the hardware class."""
    os_release: Line = ""
    """What the node said of itself when this boot was seen: its word, for people."""
    explained: list[Pcr] = field(default_factory=list)
    """PCRs that the log led to. Events of others are only compared, and nothing is learned or announced from them."""
    revoked: Revoked = Revoked()
    superseded: Annotated[list[Superseded], Meta(max_length=MAX_SUPERSEDED)] = field(default_factory=list)
    """Newest last."""


class Change(Message, frozen=True, kw_only=True):
    """One place at which two boots differ."""

    pcr: int
    before: ReferenceEvent | None
    after: ReferenceEvent | None
    aligned: bool = True
    """False where events were added or removed, so that one event does not stand for another."""

    @property
    def stage(self) -> str:
        """Return the stage that was and is at this place; empty where it is not the same one."""
        if self.before is None or self.after is None or not self.aligned:
            return ""
        return self.after.stage if self.after.stage == self.before.stage else ""


def reference_from(
    log: EventLog | None,
    pcrs: Mapping[int, bytes],
    claims: Claims | None = None,
    *,
    runtime_pcrs: Collection[int] = (),
    os_release: str = "",
) -> Reference:
    """Return this boot as a reference: quoted PCR values, and the log's events in those of them that it explains.

    `claims` are those of `claims_under`; `runtime_pcrs` those whose events are wanted though nothing explains them.
    """
    if log is None:
        return Reference(pcrs=dict(pcrs), os_release=os_release)
    said = claims_under(log, pcrs) if claims is None else claims
    explained = [pcr for pcr in said.explained if pcr in pcrs]
    told = {*explained, *(pcr for pcr in runtime_pcrs if pcr in pcrs)}
    stages = {loaded.event: str(loaded.stage) for loaded in said.loaded if loaded.stage != OTHER}
    events = [
        ReferenceEvent(
            pcr=event.pcr,
            type_name=event.type_name,
            sha256=event.sha256,
            description=never_more(describe(event), 96),
            stage=stages.get(event.index) or stage_of(event) or OTHER,
            index=event.index,
        )
        for event in log.events
        if event.type != EV_NO_ACTION and event.pcr in told
    ]
    return Reference(
        pcrs=dict(pcrs),
        events=events,
        command_line=_proved_text(said, "kernel_command_line", explained, MAX_COMMAND_LINE_CHARS),
        firmware_version=_proved_text(said, "firmware_version", explained, 256) or "",
        os_release=os_release,
        explained=explained,
        revoked=revoked_by(said, explained),
    )


def _proved_text(claims: Claims, name: str, explained: Collection[int], limit: int) -> str | None:
    value: str | None = getattr(claims, name)
    return value if value and len(value) <= limit and claims.proved(name, explained) else None


def succession(before: Reference | None, after: Reference) -> Reference:
    """Return `after` as the reference that takes the place of `before`: it knows what may not come back.

    What the new boot has again is no longer superseded: whoever accepted it has said so.
    """
    if before is None:
        return after
    now = {event.sha256 for event in after.events}
    gone = {
        value.sha256: value
        for value in (
            *before.superseded,
            *(
                Superseded(stage=event.stage, sha256=event.sha256)
                for event in before.events
                if _counts(event)
            ),
        )
        if value.sha256 not in now
    }
    kept = list(gone.values())[-MAX_SUPERSEDED:]
    return msgspec.structs.replace(after, superseded=kept, os_release=after.os_release or before.os_release)


def _counts(event: ReferenceEvent) -> bool:
    return event.stage not in ("", OTHER)


def differences(before: Reference, after: Reference, pcr: int) -> list[Change]:
    """Return where the events of one PCR differ, in the log's order.

    Equal beginnings and ends are matched first. Where as many events went as came, each stands for the one in its
    place; else none does, and nothing that is missing can be explained away.
    """
    old = [event for event in before.events if event.pcr == pcr]
    new = [event for event in after.events if event.pcr == pcr]
    begin = _same(zip(old, new, strict=False))
    ends = zip(reversed(old[begin:]), reversed(new[begin:]), strict=False)
    end = _same(ends)
    old, new = old[begin : len(old) - end], new[begin : len(new) - end]
    aligned = len(old) == len(new)
    changes = [
        Change(pcr=pcr, before=was, after=now, aligned=aligned)
        for was, now in zip(old, new, strict=False)
        if was.sha256 != now.sha256 or not aligned
    ]
    changes += [Change(pcr=pcr, before=None, after=now, aligned=False) for now in new[len(old) :]]
    changes += [Change(pcr=pcr, before=was, after=None, aligned=False) for was in old[len(new) :]]
    return changes


def _same(pairs: Iterator[tuple[ReferenceEvent, ReferenceEvent]]) -> int:
    count = 0
    for one, other in pairs:
        if one.sha256 != other.sha256:
            return count
        count += 1
    return count


def release_of(command_line: str | None) -> str:
    """Return the kernel's release from the path that a measured command line begins with: `6.1.0-18-amd64`."""
    path = (command_line or "").partition(" ")[0]
    name, dash, release = path.rpartition("/")[2].partition("-")
    return release if name and dash and _RELEASE.fullmatch(release) else ""


def renamed_only(change: Change, log: EventLog, was_release: str, now_release: str) -> bool:
    """Return whether a measured command is the accepted one but for the kernel's release in its text.

    What a file is called proves nothing either way: its content is measured by itself. The text must be covered by
    the digest, and with the accepted release put back in it must give the accepted digest.
    """
    before, after = change.before, change.after
    if not (was_release and now_release and before and after and change.aligned):
        return False
    event = next((event for event in log.events if event.index == after.index), None)
    if event is None or event.type != EV_IPL:
        return False
    data = event.untrusted_data
    text = data[data.find(b": ") + 2 :].removesuffix(b"\0")
    as_before = text.replace(now_release.encode(), was_release.encode())
    return sha256(text).digest() == after.sha256 and sha256(as_before).digest() == before.sha256


def label(event: ReferenceEvent) -> str:
    """Return how a finding names an event: index, type, description, and stage where it says something."""
    stage = f" ({event.stage})" if _counts(event) else ""
    return f"event {event.index} {event.type_name} '{event.description}'{stage}"

"""The kernel's measurement list (IMA): followed from report to report, and held against the quoted PCR 10.

A log is worth what PCR 10 makes of it: the lines up to the one at which the quoted value is met are proved, what comes
after is not looked at. `follow` takes only lines that were not agreed before. What it found in this boot stays in the
state, for the lines do not come again. The state is reset by the caller alone, when the signed resetCount changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta
from msgspec import Struct as Record

from contract.imarules import ImaRules
from contract.messages import Count, Digest, Finding, Line, Message, PackageChange, Text

PCR: Final = 10
MAX_LOG_BYTES: Final = 64 * 1024 * 1024
MAX_OPEN: Final = 64

ADVISORY_CODES: Final = frozenset(
    {
        "ima.package-updated",
        "ima.catching-up",
        "ima.sha1-padded",
        "ima.unknown-file-noted",
        "ima.violation-noted",
        "ima.kexec-noted",
    }
)
"""Findings worth a warning. Every other code of this module means that the evidence is not what it must be."""


class OpenFile(Message, frozen=True):
    """A measured file that nothing allows, and that the report of a package upgrade may still explain."""

    line: Count
    path: Text
    sha256: Digest


class PackageUpdate(Message, frozen=True):
    """An upgrade that has explained files in this boot."""

    name: Line
    before: Line
    after: Line
    files: Count


class ImaState(Message, frozen=True):
    """How far a node's log is agreed in this boot. The default is a boot of which nothing was seen."""

    lines: Count = 0
    offset: Count = 0
    """Bytes agreed; the next line begins here."""
    pcr: Digest = bytes(32)
    """PCR 10 after `lines`."""
    bank: Literal["", "sha256", "sha1"] = ""
    """What the kernel extends the SHA-256 bank with; `sha1`: padded with zeros, before Linux 5.8. Known once PCR 10 was met."""
    padded_pcr: Annotated[bytes, Meta(max_length=32)] = b""
    """PCR 10 after `lines` if `bank` should prove to be `sha1`, while that is open."""
    reports: Count = 0
    """Reports since PCR 10 was last met."""
    policy_sha256: Annotated[bytes, Meta(max_length=32)] = b""
    """By which policy the lines were judged. Under another one they are judged again: see `fits`."""
    findings: Annotated[list[Finding], Meta(max_length=MAX_OPEN)] = []
    """What lines of this boot have shown; it does not go away before the next boot or policy."""
    open_files: Annotated[list[OpenFile], Meta(max_length=MAX_OPEN)] = []
    updates: Annotated[list[PackageUpdate], Meta(max_length=MAX_OPEN)] = []
    omitted: Count = 0
    """Findings beyond MAX_OPEN."""


class ImaCounts(Record, frozen=True, kw_only=True):
    """What one call saw."""

    lines: int = 0
    """Proved by this quote."""
    unproved_bytes: int = 0
    """After the line at which PCR 10 was met."""


class ImaResult(Record, frozen=True, kw_only=True):
    """What one report's lines come to."""

    state: ImaState
    """Agreed, up to the line at which the quoted PCR 10 was met; unchanged if it was not."""
    findings: list[Finding]
    caught_up: bool
    """The quoted PCR 10 was met: `findings` speak of everything that was measured before the quote."""
    pending: ImaState | None = None
    """Where an unfinished catch-up goes on, worth nothing by itself; the next call takes `pending or state`."""
    counts: ImaCounts = ImaCounts()


def fits(rules: ImaRules, state: ImaState) -> bool:
    """Say whether a log may be followed on from `state`; if not, begin again from `ImaState()` and offset 0."""
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

    `offset` is where the node says that they begin; `more` that it has others which did not fit. `boot_pcrs` are quoted
    values of PCR 0 to 9. Raises nothing: whatever is wrong is a finding, and the state stays.
    """
    raise NotImplementedError

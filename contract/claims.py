"""What a firmware log says about a boot: Secure Boot and its keys, firmware, loader, kernel, command line.

A claim is worth no more than the log it is read from: first the log must lead to the quoted PCRs
(`contract.eventlog.explain`). Even then the type and the data of many events are covered by no digest, so each claim
tells where it stands in the log and whether a digest covers it (`Claims.proved`). What is malformed becomes absent,
never a guess; `contract.eventdata.oddities` reports it. No input raises anything.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from msgspec import field

from contract.eventlog import EventLog
from contract.messages import Message

Stage = Literal["firmware", "option-rom", "boot-loader", "kernel", "initrd", "uki-section", "driver", "other"]


class Signature(Message, frozen=True, kw_only=True):
    """One entry of a key list. All text is printable."""

    variable: str
    """`PK`, `KEK`, `db`, `dbx`, `MokList`, ...: the list that holds it."""
    kind: str
    """`x509`, `sha256`, another type of UEFI 2.10, 32.4.1 by name or GUID; `list` where the log holds but the digest
    of the whole list (shim's MOK lists in PCR 14)."""
    owner: str = ""
    """GUID of whoever put it there; empty where the record has none."""
    sha256: bytes
    """SHA-256 of the certificate (DER), or the listed hash, or what was extended."""
    subject: str = ""
    """Of a certificate, RFC 4514; empty where it cannot be read."""
    covered: bool | None = None
    """Whether the event's digest is that of the data this stands in."""


class Loaded(Message, frozen=True, kw_only=True):
    """Something that was measured as it was loaded. `sha256` is what was extended; the rest is the log's word."""

    stage: Stage
    name: str
    """Path, section or description; printable."""
    sha256: bytes
    """What was extended: Authenticode hash of an image, plain hash of a file (in the log's bank, where not SHA-256)."""
    pcr: int
    event: int
    covered: bool | None = None
    """Whether the digest covers the name as well. None: the name is only the log's word."""


class Source(Message, frozen=True, kw_only=True):
    """Where in the log a claim stands."""

    event: int
    pcr: int
    covered: bool | None
    """Whether the event's digest is that of the data the claim was read from; a claim not covered proves nothing."""


class Claims(Message, frozen=True, kw_only=True):
    """What the log says. None, empty text and empty lists mean "the log does not say"."""

    secure_boot: bool | None = None
    setup_mode: bool | None = None
    """No platform key (PK): anyone may write the keys."""
    signatures: list[Signature] = field(default_factory=list)
    """PK, KEK, db, dbx (and dbt, dbr), in the order of the log."""
    authorities: list[Signature] = field(default_factory=list)
    """Who vouched for what was loaded (PCR 7, after the separator)."""
    sbat_level: str = ""
    """Date line of the revocation level in force: `2023012900`."""
    sbat: dict[str, int] = field(default_factory=dict)
    """Component to its least generation, by the revocation level."""
    mok: list[Signature] = field(default_factory=list)
    """shim's own lists (MokList, MokListX, MokListTrusted), in the order of the log."""
    shim_verifies: bool | None = None
    """False where shim was told not to verify (MokSBState); None where the log has nothing of shim's."""
    firmware_version: str = ""
    loaded: list[Loaded] = field(default_factory=list)
    kernel_command_line: str | None = None
    """One printable line: what moves the cursor or ends a line is escaped. Judge `kernel_arguments`, show this."""
    kernel_arguments: list[str] = field(default_factory=list)
    """The command line's words as the kernel splits them (quotes, newlines), each printable."""
    lockdown: str | None = None
    """`none`, `integrity`, `confidentiality`. Covered when the command line says so; None-covered where only Secure
    Boot lets one expect it (kernels of distributions)."""
    debugger: bool = False
    exit_boot_services: bool | None = None
    """The firmware was left in order; None where the log holds no such event (exists in the field)."""
    boot_order: list[str] = field(default_factory=list)
    """`Boot0001 'debian' HD(1,GPT,...)/File(...)`, in the order tried."""
    sources: dict[str, Source] = field(default_factory=dict)
    """Name of a field above to where it was read."""

    def proved(self, name: str, explained_pcrs: Collection[int]) -> bool:
        """Return whether a policy may rely on a field: its data is covered by a digest in a PCR that was quoted and that
        the log explains."""
        source = self.sources.get(name)
        return source is not None and source.covered is True and source.pcr in explained_pcrs


def claims_of(log: EventLog) -> Claims:
    """Return what the log says; in time linear to its size. Raises nothing for a log that was parsed."""
    return Claims()

"""What a firmware log says about a boot: Secure Boot and its keys, firmware, loader, kernel, command line.

A claim is worth no more than the log it is read from: first the log must lead to the quoted PCRs
(`contract.eventlog.explain`). Even then the type and the data of many events are covered by no digest, so each claim
tells where it stands in the log and whether a digest covers it (`Claims.proved`). What is malformed becomes absent,
never a guess; `contract.eventdata.oddities` reports it. No input raises anything.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from struct import iter_unpack
from typing import Any, Final

from msgspec import field
from msgspec.structs import replace

from contract import bootchain, keyclaims, uefi
from contract import eventtypes as ev
from contract.bootchain import BootChain, CommandLine
from contract.errors import Rejected
from contract.eventcover import BOOT_VARIABLES
from contract.eventdata import (
    DEBUG,
    LEFT_FIRMWARE,
    known_digests,
    meant_by,
    version_text,
    whole_variable,
)
from contract.eventlog import Event, EventLog, coverage
from contract.keyclaims import KEYS_PCR, MOK_PCR, KeyReader
from contract.messages import Message

Stage = bootchain.Stage
Signature = keyclaims.Signature
Source = keyclaims.Source
_FIRMWARE: Final = frozenset({ev.EV_S_CRTM_VERSION, *BOOT_VARIABLES, ev.EV_EFI_ACTION})
_BOOT_ENTRY: Final = re.compile("Boot[0-9A-Fa-f]{4}", re.ASCII)
MAX_BOOT_ENTRIES: Final = 256
MAX_OPTION_BYTES: Final = 4096
_LEFT_FAILED: Final = b"Exit Boot Services Returned with Failure"
_LOCKDOWN: Final = ("integrity", "confidentiality")
_KEY_PCRS: Final = frozenset({KEYS_PCR, MOK_PCR})


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
    """`none`, `integrity`, `confidentiality`: what the command line asks for, or, never covered, what Secure Boot lets
    one expect of a distribution's kernel."""
    debugger: bool = False
    exit_boot_services: bool | None = None
    """The firmware was left in order; None where the log holds no such event (exists in the field)."""
    boot_order: list[str] = field(default_factory=list)
    """`Boot0001 'debian' HD(1,GPT,...)/File(...)`, in the order tried."""
    sources: dict[str, Source] = field(default_factory=dict)
    """Name of a field above to where it was read."""
    explained: list[int] = field(default_factory=list)
    """Quoted PCRs whose value this log leads to; empty where it was held against no quote. What it says of any other PCR
    is only its word: nothing may be learned from that."""

    def proved(self, name: str, explained_pcrs: Collection[int]) -> bool:
        """Return whether a policy may rely on a field: its data is covered by a digest in a PCR that was quoted and that
        the log explains."""
        source = self.sources.get(name)
        return source is not None and source.covered is True and source.pcr in explained_pcrs


def claims_of(log: EventLog) -> Claims:
    """Return what the log says; in time linear to its size. Raises nothing for a log that was parsed.

    Every event that extends a PCR is either covered by its digest or stands in `loaded`: nothing is left out.
    """
    chain, keys, firmware = BootChain(), KeyReader(), _Firmware()
    loaded: list[Loaded] = []
    known = known_digests(log.bank)
    for event in log.events:
        if event.type == ev.EV_NO_ACTION:
            continue
        said = event.type
        if event.digest in known:
            said, data = meant_by(event, log.bank)
            firmware.take_known(event, said, data)
        elif said in _FIRMWARE:
            firmware.take(event)
        if event.pcr in _KEY_PCRS:
            keys.take(event, said)
        stage = chain.take(event, said)
        if stage is not None:
            loaded.append(
                Loaded(
                    stage=stage[0],
                    name=stage[1],
                    sha256=event.digest,
                    pcr=event.pcr,
                    event=event.index,
                    covered=stage[2],
                )
            )
    fields: dict[str, Any] = {"loaded": loaded}
    sources: dict[str, Source] = {}
    keys.claims(fields, sources)
    firmware.claims(fields, sources)
    line = chain.command_line()
    if line is not None:
        fields["kernel_command_line"], fields["kernel_arguments"] = line.text, line.arguments()
        source = Source(event=line.event, pcr=line.pcr, covered=line.covered)
        sources["kernel_command_line"] = sources["kernel_arguments"] = source
    _write_lockdown(line, fields, sources)
    return Claims(sources=sources, **fields)


def _write_lockdown(line: CommandLine | None, fields: dict[str, Any], sources: dict[str, Source]) -> None:
    """Write what the command line asks for; what only Secure Boot lets one expect is never covered."""
    asked = [""]
    for word in fields.get("kernel_arguments", ()):
        if word == "--":  # the rest is for init
            break
        name, _, value = word.partition("=")
        if name == "lockdown" and value in _LOCKDOWN:
            asked.append(value)
    if any(asked):
        # The kernel only ever raises the level.
        fields["lockdown"] = "confidentiality" if "confidentiality" in asked else "integrity"
        sources["lockdown"] = sources["kernel_command_line"]
    elif fields.get("secure_boot") and fields.get("shim_verifies") is not False:
        at = sources["secure_boot"]
        fields["lockdown"] = "integrity"
        sources["lockdown"] = Source(event=at.event, pcr=at.pcr, covered=None)
    elif line is not None:
        fields["lockdown"] = "none"
        sources["lockdown"] = sources["kernel_command_line"]


def claims_under(log: EventLog, quoted_pcrs: Mapping[int, bytes]) -> Claims:
    """Return what the log says, with the PCRs of a verified quote that bear it out (`Claims.explained`)."""
    explained = coverage(log, quoted_pcrs, ()).explained
    return replace(claims_of(log), explained=sorted(explained))


class _Firmware:
    """Reads the firmware's version, boot entries and actions in the order of the log."""

    __slots__ = ("_debugger", "_entries", "_exit", "_order", "_separated", "_version")

    def __init__(self) -> None:
        self._separated = False
        """PCR 0: what is extended after its separator, anyone may have added."""
        self._version: tuple[Event, bool | None] | None = None
        self._debugger: Event | None = None
        self._exit: tuple[Event, bool, bool | None] | None = None
        self._order: tuple[Event, bytes] | None = None
        self._entries: dict[str, bytes] = {}

    def take_known(self, event: Event, said: int, data: bytes) -> None:
        """Take the next event, of the type and data that its digest says, whatever the log says."""
        if said == ev.EV_EFI_ACTION:
            text = data.rstrip(b"\0")
            if text == DEBUG:
                self._debugger = self._debugger or event
            elif text == LEFT_FIRMWARE:
                self._exit = event, True, True
        elif event.pcr == 0:
            self._separated = True

    def take(self, event: Event) -> None:
        """Take the next event, of a type in _FIRMWARE."""
        if event.type == ev.EV_S_CRTM_VERSION:
            if event.pcr == 0 and self._version is None:
                self._version = event, None if self._separated else event.covered
        elif event.type in BOOT_VARIABLES:
            self._take_boot_variable(event)
        elif event.untrusted_data.rstrip(b"\0") == _LEFT_FAILED:
            self._exit = event, False, True if event.covered else None

    def _take_boot_variable(self, event: Event) -> None:
        found = whole_variable(event.untrusted_data)
        if found is None:
            return
        if found.name == "BootOrder":
            self._order = event, found.value
        elif _BOOT_ENTRY.fullmatch(found.name):
            self._entries[found.name.upper()] = found.value

    def claims(self, fields: dict[str, Any], sources: dict[str, Source]) -> None:
        """Write what was read: fields of Claims and where they stand."""
        if self._version is not None:
            event, sure = self._version
            fields["firmware_version"] = version_text(event.untrusted_data)
            sources["firmware_version"] = Source(event=event.index, pcr=0, covered=True if sure else None)
        if self._debugger is not None:
            fields["debugger"] = True
            sources["debugger"] = Source(event=self._debugger.index, pcr=self._debugger.pcr, covered=True)
        if self._exit is not None:
            event, fields["exit_boot_services"], sure = self._exit
            sources["exit_boot_services"] = Source(event=event.index, pcr=event.pcr, covered=sure)
        if self._order is not None:
            event, value = self._order
            numbers = [f"{number:04X}" for (number,) in iter_unpack("<H", value[: len(value) // 2 * 2])]
            fields["boot_order"] = [self._boot_entry(number) for number in numbers[:MAX_BOOT_ENTRIES]]
            # The values are hashed, the names are not.
            sources["boot_order"] = Source(event=event.index, pcr=event.pcr, covered=None)

    def _boot_entry(self, number: str) -> str:
        value = self._entries.get(f"BOOT{number}", b"")
        return (
            f"Boot{number} {_option_text(value)}" if 0 < len(value) <= MAX_OPTION_BYTES else f"Boot{number}"
        )


@lru_cache(maxsize=512)
def _option_text(value: bytes) -> str:
    try:
        option = uefi.parse_load_option(value)
    except Rejected:
        return "malformed"
    return f"'{option.description}' {option.path}"

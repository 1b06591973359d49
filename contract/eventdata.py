"""What the events of a firmware log say, how much of it their digests cover, and what order they must keep.

Describes events for people and reports what no honest firmware writes. It proves nothing: proof is the replay in
`contract.eventlog`. Source: TCG PC Client Platform Firmware Profile (PFP), version 1.06. No input raises anything.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from struct import pack
from typing import Final

from msgspec import Struct as Record

from contract import eventtypes as ev
from contract import uefi
from contract.errors import Rejected
from contract.eventcover import BOOT_VARIABLES, GRUB_PREFIXES, IMAGES, MUST_COVER
from contract.eventlog import SHA256, Event, EventLog, hash_of
from contract.messages import Finding, never_more
from contract.uefi import Entry, Variable, printable

MAX_DESCRIPTION_CHARS: Final = 200
MAX_ODDITIES: Final = 128
"""A log with so many is judged; further ones would tell nobody anything."""
MAX_CACHED_LIST_BYTES: Final = 64 * 1024
VARIABLES: Final = frozenset(
    {
        ev.EV_EFI_VARIABLE_DRIVER_CONFIG,
        ev.EV_EFI_VARIABLE_BOOT,
        ev.EV_EFI_VARIABLE_BOOT2,
        ev.EV_EFI_VARIABLE_AUTHORITY,
    }
)
# May be of something else as well, but not where the data looks like this program's own (authority; GRUB's texts).
_CHECKED: Final = MUST_COVER | {ev.EV_EFI_VARIABLE_AUTHORITY, ev.EV_IPL}
_TEXTS: Final = frozenset({ev.EV_IPL, ev.EV_ACTION, ev.EV_EFI_ACTION, ev.EV_POST_CODE, ev.EV_S_CRTM_CONTENTS})
KEY_LISTS: Final = {
    "PK": uefi.GLOBAL_VARIABLE,
    "KEK": uefi.GLOBAL_VARIABLE,
    "db": uefi.IMAGE_SECURITY,
    "dbx": uefi.IMAGE_SECURITY,
    "dbt": uefi.IMAGE_SECURITY,
    "dbr": uefi.IMAGE_SECURITY,
}
TAGS: Final = {
    0x8F3B22EC: "Linux initrd",
    0x8F3B22ED: "Linux load options",
    0xF5BC582A: "systemd loader.conf",
    0x6C46F751: "systemd device tree",
    0x49DFFE0F: "systemd initrd",
    0xDAC08E1A: "systemd microcode",
    0x13AED6DB: "systemd profile",
}
"""EV_EVENT_TAG: what the EFI stub of Linux and systemd-stub measure. The digest is that of the content."""
_SEPARATED: Final = range(8)
_SEPARATOR_VALUES: Final = (b"\0\0\0\0", b"\xff\xff\xff\xff")
LEFT_FIRMWARE: Final = b"Exit Boot Services Returned with Success"
DEBUG: Final = b"UEFI Debug Mode"
_GLOBAL_GUID: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_SECURE_BOOT: Final = pack("<16sQQ", _GLOBAL_GUID, 10, 1) + "SecureBoot".encode("utf-16-le")
_ERROR: Final = b"\1\0\0\0"


class Field(Record, frozen=True, gc=False):
    """One thing that an event says. All text is printable."""

    name: str
    text: str
    covered: bool | None
    """Whether the event's digest is that of bytes with this in them. None: it is only the log's word."""


class _Known(Record, frozen=True, gc=False):
    """What a digest means, whatever type and data stand beside it."""

    type: int
    data: bytes


@lru_cache(maxsize=8)
def _known(bank: int) -> dict[bytes, _Known]:
    """Return the digests of what has one meaning only: a log cannot hide such an event behind another type (l02)."""
    hashed = hash_of(bank)
    meant = [_Known(ev.EV_SEPARATOR, value) for value in (*_SEPARATOR_VALUES, _ERROR)]
    meant += [_Known(ev.EV_EFI_ACTION, text + end) for text in (LEFT_FIRMWARE, DEBUG) for end in (b"", b"\0")]
    meant += [_Known(ev.EV_EFI_VARIABLE_DRIVER_CONFIG, _SECURE_BOOT + value) for value in (b"\0", b"\1")]
    return {hashed(known.data).digest(): known for known in meant}


def known_digests(bank: int = SHA256) -> Collection[bytes]:
    """Return the digests of which `meant_by` may know better than the log."""
    return _known(bank).keys()


def meant_by(event: Event, bank: int = SHA256) -> tuple[int, bytes]:
    """Return type and data of an event, as far as its digest tells better than the log does.

    Separators and SecureBoot only in PCR 7: elsewhere a firmware may well hash four zeros for another reason.
    """
    known = _known(bank).get(event.digest)
    if known is None or (event.pcr != 7 and known.type != ev.EV_EFI_ACTION):
        return event.type, event.untrusted_data
    return known.type, known.data


def covered(event: Event) -> bool | None:
    """Return whether the digest is that of the data; None where it is not and by its type need not be (l03)."""
    return event.covered


def variable(data: bytes) -> tuple[str, bytes] | None:
    """Return name and value of UEFI_VARIABLE_DATA (PFP 10.4.2), or None when its lengths do not fit the record."""
    found = whole_variable(data)
    return (found.name, found.value) if found else None


def whole_variable(data: bytes) -> Variable | None:
    """Return UEFI_VARIABLE_DATA with its GUID, or None when its lengths do not fit the record."""
    try:
        return uefi.parse_variable(data)
    except Rejected:
        return None


def key_list(value: bytes) -> tuple[Entry, ...] | Rejected:
    """Return the entries of a key variable, or why it is malformed. A fleet shares its lists, so they are kept."""
    return _key_list(value) if len(value) <= MAX_CACHED_LIST_BYTES else _key_list.__wrapped__(value)


@lru_cache(maxsize=64)
def _key_list(value: bytes) -> tuple[Entry, ...] | Rejected:
    try:
        return tuple(uefi.parse_signature_lists(value))
    except Rejected as rejected:
        return Rejected(rejected.code, rejected.detail)


def describe(event: Event) -> str:
    """Return the event's data as one line of at most MAX_DESCRIPTION_CHARS, safe to print anywhere."""
    try:
        text = _text(event.type, event.untrusted_data)
    except Rejected:
        text = "lengths that do not fit"
    return never_more(text, MAX_DESCRIPTION_CHARS)


def _text(kind: int, data: bytes) -> str:
    """Return what the data says, in short. Raises Rejected `uefi.*`."""
    if kind in _TEXTS:
        return ipl_text(data)
    if kind in VARIABLES:
        found = uefi.parse_variable(data)
        shown = found.value.hex() if len(found.value) <= 8 else f"{len(found.value)} bytes"
        return f"{found.name} = {shown or 'nothing'}"
    if kind in IMAGES:
        image = uefi.parse_image(data)
        name = uefi.file_name(image.path)
        return f"{name} ({image.size_bytes} bytes)" if name else f"image of {image.size_bytes} bytes"
    if kind == ev.EV_S_CRTM_VERSION:
        return version_text(data)
    if kind in (ev.EV_EFI_PLATFORM_FIRMWARE_BLOB, ev.EV_EFI_PLATFORM_FIRMWARE_BLOB2):
        old = kind == ev.EV_EFI_PLATFORM_FIRMWARE_BLOB
        blob = uefi.parse_blob(data) if old else uefi.parse_blob2(data)
        return f"{blob.description} at {blob.base:#x}, {blob.size_bytes} bytes".strip()
    if kind in (ev.EV_EFI_GPT_EVENT, ev.EV_EFI_GPT_EVENT2):
        gpt = uefi.parse_gpt(data)
        return f"disk {gpt.disk}, {len(gpt.partitions)} partitions"
    if kind == ev.EV_EFI_HANDOFF_TABLES:
        return f"tables {', '.join(uefi.parse_handoff(data))}"
    if kind == ev.EV_EFI_HANDOFF_TABLES2:
        text, tables = uefi.parse_handoff2(data)
        return f"{text}: {', '.join(tables)}"
    if kind == ev.EV_EVENT_TAG:
        return tag_text(data)
    text = data.rstrip(b"\0").decode("latin-1")
    if text.isascii() and text.isprintable():
        return printable(text)
    return data[:16].hex() + ("…" if len(data) > 16 else "")


def ipl_text(data: bytes) -> str:
    """Return the text of a boot loader's event, which is UTF-16 where systemd wrote it; up to the first zero."""
    if data[1:2] == b"\0" and len(data) > 2:
        return printable(data.decode("utf-16-le", "backslashreplace").partition("\0")[0])
    return printable(data.partition(b"\0")[0].decode("utf-8", "backslashreplace"))


def version_text(data: bytes) -> str:
    """Return a firmware version: text in either encoding, or a GUID (PFP 10.4.2.3)."""
    if len(data) == 16 and not data.rstrip(b"\0").isascii():
        return uefi.guid_text(data)
    wide = len(data) % 2 == 0 and not any(data[1::2])
    text = uefi.utf16(data) if wide else data.rstrip(b"\0").decode("utf-8", "backslashreplace")
    return printable(text.strip(), 128)


def tag_text(data: bytes) -> str:
    """Return who wrote a tagged event and what it is called. Raises Rejected `uefi.tagged`."""
    tagged = uefi.parse_tagged(data)
    who = TAGS.get(tagged.tag, f"tag {tagged.tag:#010x}")
    return f"{who}: {ipl_text(tagged.data)}" if len(tagged.data) <= 512 else who


def fields(event: Event) -> tuple[Field, ...]:
    """Return what an event says, each with whether its digest covers it; for showing."""
    data, kind, sure = event.untrusted_data, event.type, event.covered
    try:
        if kind in VARIABLES:
            found = uefi.parse_variable(data)
            whole = None if kind in BOOT_VARIABLES else sure
            shown = found.value.hex() if len(found.value) <= 32 else f"{len(found.value)} bytes"
            return (
                Field("name", found.name, whole),
                Field("guid", found.guid, whole),
                Field("value", shown, sure),
            )
        if kind in IMAGES:
            image = uefi.parse_image(data)
            return (Field("path", image.path, None), Field("bytes", str(image.size_bytes), None))
        if kind == ev.EV_IPL:
            for prefix in GRUB_PREFIXES:
                if data.startswith(prefix):
                    label = prefix.decode().removesuffix(": ")
                    return (Field("label", label, None), Field("text", ipl_text(data[len(prefix) :]), sure))
        return (Field("text", _text(kind, data), sure),)
    except Rejected as rejected:
        return (Field("malformed", str(rejected), sure),)


class _Order:
    """What has been seen of a log so far, while `oddities` reads it."""

    __slots__ = ("findings", "left", "secure_boot_seen", "separated")

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.separated: set[int] = set()
        self.secure_boot_seen = self.left = False

    def add(self, code: str, event: Event, what: str) -> None:
        if len(self.findings) >= MAX_ODDITIES:
            return
        detail = f"PCR {event.pcr} event {event.index} {event.type_name} '{describe(event)}': {what}"
        self.findings.append(Finding(code=code, detail=detail, pcr=event.pcr, event=event.index))


def oddities(log: EventLog) -> list[Finding]:
    """Return what no honest firmware writes, in the order of the log.

    1. data whose digest does not cover it though its type says so (`eventlog.data`; l04)
    2. a separator or the SecureBoot variable under another type or other data, by its digest (`eventlog.type`; l02, l03)
    3. PCR 0 to 7: exactly one separator each, without the error value (`eventlog.separator`; PFP 3.3.4.6; l06)
    4. SecureBoot measured once, before the separator of PCR 7 (`eventlog.secure-boot`; l05)
    5. PCR 7: key lists and revocation level well formed (`eventlog.signatures`, `eventlog.sbat`; l12)
    6. nothing in PCR 0 to 7 after the firmware was left (`eventlog.after-exit`; l07)
    7. a firmware debugger (`eventlog.debugger`; PFP 3.3.4.8; l14)
    """
    known, seen = _known(log.bank), _Order()
    for event in log.events:
        kind, pcr = event.type, event.pcr
        if kind == ev.EV_NO_ACTION:
            continue
        if event.digest in known:
            kind = _check_known(event, log.bank, seen)  # 1, 2
        elif event.covered is False and kind in _CHECKED:  # 1
            seen.add("eventlog.data", event, "the digest is not that of the data")
        if pcr in _SEPARATED:
            if seen.left:  # 6
                seen.add("eventlog.after-exit", event, "after ExitBootServices")
            if kind == ev.EV_SEPARATOR:
                _check_separator(event, log.bank, seen)  # 3
            elif pcr == 7:
                _check_key_event(event, kind, seen)  # 4, 5
        if kind == ev.EV_EFI_ACTION:
            _check_action(event, log.bank, seen)  # 6, 7
    for pcr in _SEPARATED:  # 3
        if pcr not in seen.separated:
            detail = f"PCR {pcr}: no separator, so the firmware never said it was done"
            seen.findings.append(Finding(code="eventlog.separator", detail=detail, pcr=pcr))
    return seen.findings


def _check_known(event: Event, bank: int, seen: _Order) -> int:
    """Hold an event against what its digest means; returns the type to take it for."""
    kind, data = meant_by(event, bank)
    if kind != event.type:
        name = ev.EVENT_TYPES[kind]
        seen.add("eventlog.type", event, f"the digest is that of {name} '{_text(kind, data)}'")
    elif data != event.untrusted_data and (kind in MUST_COVER or event.pcr == 7):
        seen.add("eventlog.data", event, "the digest is not that of the data")
    return kind


def _check_separator(event: Event, bank: int, seen: _Order) -> None:
    _, data = meant_by(event, bank)
    if event.pcr in seen.separated:
        seen.add("eventlog.separator", event, "a second separator")
    if data not in _SEPARATOR_VALUES:
        seen.add("eventlog.separator", event, "the firmware reports an error")
    seen.separated.add(event.pcr)


def _check_key_event(event: Event, kind: int, seen: _Order) -> None:
    if kind not in VARIABLES:
        return
    found = whole_variable(event.untrusted_data)
    if kind == ev.EV_EFI_VARIABLE_DRIVER_CONFIG:
        # One that is malformed, or hidden behind another type, may be the second SecureBoot.
        if found is None or kind != event.type or found.name == "SecureBoot":
            if seen.secure_boot_seen or 7 in seen.separated or found is None:
                seen.add("eventlog.secure-boot", event, "twice, too late or malformed")
            seen.secure_boot_seen = True
        elif KEY_LISTS.get(found.name) == found.guid:
            listed = key_list(found.value)
            if isinstance(listed, Rejected):
                seen.add("eventlog.signatures", event, f"malformed: {listed.detail}")
    elif found is not None and found.name == "SbatLevel":
        try:
            uefi.parse_sbat_level(found.value)
        except Rejected as rejected:
            seen.add("eventlog.sbat", event, f"malformed: {rejected.detail}")


def _check_action(event: Event, bank: int, seen: _Order) -> None:
    _, data = meant_by(event, bank)
    text = data.rstrip(b"\0")
    seen.left = seen.left or text == LEFT_FIRMWARE
    if text == DEBUG:
        seen.add("eventlog.debugger", event, "a firmware debugger was on")

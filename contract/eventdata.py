"""What the events of a firmware log say, how much of it their digests cover, and what order they must keep.

Describes events for people and reports what no honest firmware writes. It proves nothing: proof is the replay in
`contract.eventlog`. Source: TCG PC Client Platform Firmware Profile (PFP), version 1.06. No input raises anything.
"""

from __future__ import annotations

from hashlib import sha256
from struct import Struct
from typing import Final

from contract import eventtypes
from contract.eventlog import Event, EventLog
from contract.messages import Finding, never_more

MAX_DESCRIPTION_CHARS: Final = 200
_VARIABLE = Struct("<16sQQ")  # UEFI_VARIABLE_DATA: GUID, name length in characters, data length in bytes
_IMAGE = Struct("<QQQQ")  # UEFI_IMAGE_LOAD_EVENT: location, length, link time address, device path length
_NODE = Struct("<BBH")  # EFI_DEVICE_PATH_PROTOCOL
_MEDIA_FILE_PATH: Final = (4, 4)
_VARIABLES: Final = frozenset(
    {
        eventtypes.EV_EFI_VARIABLE_DRIVER_CONFIG,
        eventtypes.EV_EFI_VARIABLE_BOOT,
        eventtypes.EV_EFI_VARIABLE_BOOT2,
        eventtypes.EV_EFI_VARIABLE_AUTHORITY,
    }
)
_IMAGES: Final = frozenset(
    {
        eventtypes.EV_EFI_BOOT_SERVICES_APPLICATION,
        eventtypes.EV_EFI_BOOT_SERVICES_DRIVER,
        eventtypes.EV_EFI_RUNTIME_SERVICES_DRIVER,
    }
)
# The digest is that of the whole data (PFP table 27), on every machine seen.
_COVERED: Final = frozenset(
    {
        eventtypes.EV_SEPARATOR,
        eventtypes.EV_EFI_ACTION,
        eventtypes.EV_EFI_GPT_EVENT,
        eventtypes.EV_EFI_VARIABLE_DRIVER_CONFIG,
    }
)
# GRUB puts these before the text in the log and hashes the text alone, without the closing zero.
_GRUB_PREFIXES: Final = (b"grub_cmd: ", b"kernel_cmdline: ")
_SEPARATED: Final = range(8)
_SEPARATOR_VALUES: Final = (b"\0\0\0\0", b"\xff\xff\xff\xff")
_LEFT_FIRMWARE: Final = b"Exit Boot Services Returned with Success"
_DEBUG: Final = b"UEFI Debug Mode"


def covered(event: Event) -> bool | None:
    """Return whether the digest is that of the data; None where by its type it need not be.

    None means that the data is only the log's word: whoever can write the log can write it (attack l03).
    """
    data = event.untrusted_data
    if event.type in _COVERED:
        return sha256(data).digest() == event.sha256
    if event.type == eventtypes.EV_EFI_VARIABLE_AUTHORITY:
        # Older shim logs one stray byte behind what it hashed.
        return event.sha256 in (sha256(data).digest(), sha256(data[:-1]).digest())
    if event.type == eventtypes.EV_IPL:
        for prefix in _GRUB_PREFIXES:
            if data.startswith(prefix):
                return sha256(data[len(prefix) :].removesuffix(b"\0")).digest() == event.sha256
    return None


def describe(event: Event) -> str:
    """Return the event's data as one line of at most MAX_DESCRIPTION_CHARS, safe to print anywhere."""
    data = event.untrusted_data
    if event.type in _VARIABLES:
        text = _variable_text(data)
    elif event.type in _IMAGES:
        text = _image_text(data)
    elif event.type in (eventtypes.EV_IPL, eventtypes.EV_ACTION, eventtypes.EV_EFI_ACTION):
        text = _printable(data.partition(b"\0")[0].decode("utf-8", "backslashreplace"))
    else:
        text = data[:16].hex() + ("…" if len(data) > 16 else "")
    return never_more(text, MAX_DESCRIPTION_CHARS)


def _printable(text: str) -> str:
    """Escape all that moves the cursor, ends the line or turns the direction of writing."""
    kept = text[: MAX_DESCRIPTION_CHARS + 1]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in kept)


def variable(data: bytes) -> tuple[str, bytes] | None:
    """Return name and value of UEFI_VARIABLE_DATA (PFP 10.4.2), or None when its lengths do not fit the record."""
    if len(data) < _VARIABLE.size:
        return None
    _, name_chars, value_size = _VARIABLE.unpack_from(data)
    value_at = _VARIABLE.size + 2 * name_chars
    # One byte more is the stray byte of older shim.
    if value_at + value_size not in (len(data), len(data) - 1):
        return None
    name = data[_VARIABLE.size : value_at].decode("utf-16-le", "backslashreplace")
    return name, data[value_at : value_at + value_size]


def _variable_text(data: bytes) -> str:
    found = variable(data)
    if found is None:
        return "lengths that do not fit"
    name, value = found
    shown = value.hex() if len(value) <= 8 else f"{len(value)} bytes"
    return f"{_printable(name)} = {shown or 'nothing'}"


def _image_text(data: bytes) -> str:
    """Return the size of a loaded image and its file name, as far as its device path has one (UEFI 2.10, 10.3)."""
    if len(data) < _IMAGE.size:
        return "lengths that do not fit"
    _, size, _, _ = _IMAGE.unpack_from(data)
    at = _IMAGE.size
    while at + _NODE.size <= len(data):
        kind, sub_kind, length = _NODE.unpack_from(data, at)
        if length < _NODE.size:
            break
        if (kind, sub_kind) == _MEDIA_FILE_PATH:
            path = data[at + _NODE.size : at + length].decode("utf-16-le", "backslashreplace")
            return f"{_printable(path.rstrip(chr(0)))} ({size} bytes)"
        at += length
    return f"image of {size} bytes"


def oddities(log: EventLog) -> list[Finding]:
    """Return what no honest firmware writes, in the order of the log.

    1. data whose digest does not cover it though its type says so (`eventlog.data`; l04)
    2. PCR 0 to 7: exactly one separator each, without the error value (`eventlog.separator`; PFP 3.3.4.6; l06)
    3. SecureBoot measured once, before the separator of PCR 7 (`eventlog.secure-boot`; l05)
    4. nothing in PCR 0 to 7 after the firmware was left (`eventlog.after-exit`; l07)
    5. a firmware debugger (`eventlog.debugger`; PFP 3.3.4.8; l14)
    """
    findings = []
    separated: set[int] = set()
    secure_boot_seen = left = False
    for event in log.events:
        if event.type == eventtypes.EV_NO_ACTION:
            continue
        if covered(event) is False:  # 1
            findings.append(_finding("eventlog.data", event, "the digest is not that of the data"))
        if left and event.pcr in _SEPARATED:  # 4
            findings.append(_finding("eventlog.after-exit", event, "after ExitBootServices"))
        if event.type == eventtypes.EV_SEPARATOR and event.pcr in _SEPARATED:  # 2
            if event.pcr in separated:
                findings.append(_finding("eventlog.separator", event, "a second separator"))
            if event.untrusted_data not in _SEPARATOR_VALUES:
                findings.append(_finding("eventlog.separator", event, "the firmware reports an error"))
            separated.add(event.pcr)
        if event.type == eventtypes.EV_EFI_VARIABLE_DRIVER_CONFIG and event.pcr == 7:  # 3
            found = variable(event.untrusted_data)
            if found is None or found[0] == "SecureBoot":
                if secure_boot_seen or 7 in separated or found is None:
                    findings.append(_finding("eventlog.secure-boot", event, "twice, too late or malformed"))
                secure_boot_seen = True
        if event.type == eventtypes.EV_EFI_ACTION:
            left = left or event.untrusted_data.rstrip(b"\0") == _LEFT_FIRMWARE
            if event.untrusted_data.rstrip(b"\0") == _DEBUG:  # 5
                findings.append(_finding("eventlog.debugger", event, "a firmware debugger was on"))
    for pcr in _SEPARATED:  # 2
        if pcr not in separated:
            detail = f"PCR {pcr}: no separator, so the firmware never said it was done"
            findings.append(Finding(code="eventlog.separator", detail=detail, pcr=pcr))
    return findings


def _finding(code: str, event: Event, what: str) -> Finding:
    detail = f"PCR {event.pcr} event {event.index} {event.type_name} '{describe(event)}': {what}"
    return Finding(code=code, detail=detail, pcr=event.pcr, event=event.index)

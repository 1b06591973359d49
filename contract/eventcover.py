"""Whether the digest of a firmware log's event is that of its data: by type, with what is seen in the field.

Source: TCG PC Client Platform Firmware Profile (PFP), version 1.06, table 27. The answer is about one event; that its
digest was extended at all is for the replay in `contract.eventlog` to show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from contract import eventtypes as ev
from contract import uefi
from contract.errors import Rejected

IMAGES: Final = frozenset(
    {ev.EV_EFI_BOOT_SERVICES_APPLICATION, ev.EV_EFI_BOOT_SERVICES_DRIVER, ev.EV_EFI_RUNTIME_SERVICES_DRIVER}
)
BOOT_VARIABLES: Final = frozenset({ev.EV_EFI_VARIABLE_BOOT, ev.EV_EFI_VARIABLE_BOOT2})
# The digest is that of the whole data, on every machine seen.
MUST_COVER: Final = frozenset(
    {ev.EV_SEPARATOR, ev.EV_EFI_ACTION, ev.EV_EFI_GPT_EVENT, ev.EV_EFI_VARIABLE_DRIVER_CONFIG}
)
# The digest is that of something else, which is not in the log.
_ELSEWHERE: Final = IMAGES | {ev.EV_NO_ACTION, ev.EV_EFI_PLATFORM_FIRMWARE_BLOB}
# GRUB puts these before the text in the log and hashes the text alone, without the closing zero.
GRUB_COMMAND: Final = b"grub_cmd: "
GRUB_KERNEL_LINE: Final = b"kernel_cmdline: "
GRUB_PREFIXES: Final = (GRUB_COMMAND, GRUB_KERNEL_LINE, b"module_cmdline: ")


class Digest(Protocol):
    """What a hash function returns."""

    def digest(self) -> bytes:
        """Return the digest."""
        ...


Hash = Callable[[bytes], Digest]


def covers(digest: bytes, kind: int, data: bytes, hashed: Hash) -> bool | None:
    """Return whether a digest is that of an event's data; None where it is not and by the type need not be.

    None means that the data is only the log's word: whoever can write the log can write it (attack l03). `hashed` is the
    hash function of the log's bank.
    """
    if kind == ev.EV_IPL:
        return _covers_ipl(digest, data, hashed)
    if kind in MUST_COVER:
        return hashed(data).digest() == digest
    if kind in _ELSEWHERE:
        return None
    if hashed(data).digest() == digest:
        return True
    if kind == ev.EV_EFI_VARIABLE_AUTHORITY:
        # Older shim logs one stray byte behind what it hashed.
        return hashed(data[:-1]).digest() == digest
    if kind in BOOT_VARIABLES:
        # Of the value alone, on every machine seen; the name is not covered then.
        try:
            value = uefi.parse_variable(data).value
        except Rejected:
            return None
        return True if hashed(value).digest() == digest else None
    return None


def _covers_ipl(digest: bytes, data: bytes, hashed: Hash) -> bool | None:
    if data[:10] == GRUB_COMMAND or data.startswith(GRUB_PREFIXES):
        start, end = data.index(b" ") + 1, len(data) - (data[-1] == 0)
        return hashed(data[start:end]).digest() == digest
    # systemd: command lines in UTF-16, with and without the closing zero; section names in UTF-16, hashed in ASCII.
    if hashed(data).digest() == digest:
        return True
    if data[1:2] != b"\0" or len(data) % 2:
        return None
    if hashed(data.removesuffix(b"\0\0")).digest() == digest or hashed(data[::2]).digest() == digest:
        return True
    return None

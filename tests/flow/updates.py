"""A kernel update on a recorded boot: the same firmware log with other digests where boot loader and firmware measured
the kernel and the initrd.

Only digests change, as they do in the field when an update keeps its paths (`/boot/vmlinuz`), so the TPM is extended with
the new values and the log leads to them.
"""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from contract.eventlog import parse_event_log
from contract.eventtypes import EV_EFI_BOOT_SERVICES_APPLICATION


class Kernel(NamedTuple):
    """SHA-256 digests of one kernel release."""

    authenticode: str
    """Of the image, as firmware and shim measure it into PCR 4."""
    image: str
    """Of the file, as GRUB measures it into PCR 9."""
    initrd: str


def boots(log: bytes) -> Kernel:
    """Return what a recorded log boots. Raises StopIteration where the log has no such events."""
    events = parse_event_log(log).events
    images = [event for event in events if event.type == EV_EFI_BOOT_SERVICES_APPLICATION and event.pcr == 4]
    files = [event for event in events if event.pcr == 9]
    return Kernel(
        authenticode=images[-1].sha256.hex(),
        image=next(e.sha256.hex() for e in files if e.untrusted_data.startswith(b"/boot/vmlinuz")),
        initrd=next(e.sha256.hex() for e in files if e.untrusted_data.startswith(b"/boot/initrd")),
    )


def release(name: str) -> Kernel:
    """Return the digests of a kernel that nobody has built."""
    return Kernel(*(sha256(f"{name} {part}".encode()).hexdigest() for part in Kernel._fields))


def updated(log: bytes, kernel: Kernel) -> bytes:
    """Return the log of the same machine after an update to `kernel`."""
    for before, after in zip(boots(log), kernel, strict=True):
        log = log.replace(bytes.fromhex(before), bytes.fromhex(after))
    return log

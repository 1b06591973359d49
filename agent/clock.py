"""The machine's clocks: what the kernel knows of its own error, wall against boot time, and the battery clock. Reads only.

The kernel's answer is adjtimex(2) without a mode; a time service (chrony, systemd-timesyncd, ntpd) tells the kernel when it has
set the clock, and the kernel withdraws that by itself when nobody renews it. Used through `agent.host.Host` only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_TIME_ERROR = 5
_STA_UNSYNC = 0x0040
_STA_NANO = 0x2000
_PAIR_NS = 1_000_000
"""Two clocks read so close together count as read at once."""


class KernelClock(NamedTuple):
    """What adjtimex(2) says."""

    synchronised: bool
    offset_s: float
    """What is still to be slewed away."""
    max_error_s: float
    """The kernel's own bound; grows by 500 millionths while nobody renews it."""


def boottime() -> float:
    """Return seconds on a clock that nobody can set and that counts suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Timex(ctypes.Structure):
    """struct timex of Linux; the tail is room for what is not read."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("tail", ctypes.c_long * 64),
    ]


class Clock:
    """The clocks of this machine; `sysfs_root` is where the battery clock is read."""

    def __init__(self, sysfs_root: Path) -> None:
        self._sysfs = sysfs_root
        self.ask: Callable[[], KernelClock] | None = None
        """Whom to ask where this process may not call adjtimex(2), which sets clocks too: the agent's unit forbids it."""

    def kernel(self) -> KernelClock:
        """Return what the kernel knows of its clock. Raises OSError."""
        if self.ask is not None:
            return self.ask()
        said = _Timex()
        libc = ctypes.CDLL(None, use_errno=True)
        state = libc.adjtimex(ctypes.byref(said))
        if state < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "adjtimex")
        unit = 1e-9 if said.status & _STA_NANO else 1e-6
        return KernelClock(
            synchronised=state != _TIME_ERROR and not said.status & _STA_UNSYNC,
            offset_s=said.offset * unit,
            max_error_s=said.maxerror * 1e-6,
        )

    def wall_at_boot_s(self) -> float:
        """Return the wall clock less the time since boot (suspend included): changes only if somebody sets the wall clock."""
        while True:
            before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            wall = time.time_ns()
            after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            if after - before < _PAIR_NS:
                return (wall - (before + after) // 2) / 1e9

    def boot_s(self) -> float:
        """Return seconds since boot, which nobody can set."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def battery_less_wall_s(self) -> float:
        """Return the battery clock (rtc0, taken as UTC, whole seconds) less the wall clock. Raises OSError."""
        text = (self._sysfs / "class/rtc/rtc0/since_epoch").read_text().strip()
        if not text.isdecimal():
            raise OSError(errno.EBADMSG, "no number", text)
        return int(text) - time.time()

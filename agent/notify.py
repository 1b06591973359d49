"""Tell systemd how we are (sd_notify(3)): READY, WATCHDOG, STOPPING. Does nothing where nobody asked."""

from __future__ import annotations

import os
import socket
from typing import Final

ANSWERED: Final = "STATUS=the controller answers"
"""As `systemctl status` shows it. Also in packaging/os/agent/upgrade: an agent that it never says may not stay."""
NOT_ANSWERED: Final = "STATUS=rules are in force; no session with the controller"


def notify(state: str) -> None:
    """Send one state line ("READY=1") to the supervisor; silently nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), address)
    except OSError:
        pass  # a supervisor that does not listen must not stop the fence


def watchdog_interval_s() -> float | None:
    """Return how often to send WATCHDOG=1 (half the time systemd allows), None if it does not ask."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    if not usec.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(usec) / 2_000_000

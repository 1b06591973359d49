"""Wakes the firewall when something outside of nftables changes what its rules must be: a unit's cgroup, a name.

systemd makes a unit's cgroup anew when the unit starts, and a rule for the old one matches nothing any more. The
kernel announces no such thing to nftables, so the few folders are looked at twice a second, by a thread that is there
only where a rule names a unit. It only wakes; the pass looks for itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from agent.firewall.local import resolved
from agent.firewall.section import Section
from agent.host import Host

_POLL_S = 0.5


class UnitWatch:
    """Calls `wake()` from its own thread when users or units of the section are others than they were."""

    def __init__(self, section: Section, host: Host, wake: Callable[[], object]) -> None:
        self._section, self._host, self._wake = section, host, wake
        self._seen = resolved(section, host)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="units", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(_POLL_S):
            found = resolved(self._section, self._host)
            if found != self._seen:
                self._seen = found
                self._wake()

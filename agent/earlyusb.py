"""USB in the early step: what the last confirmed baseline says of it, before the agent runs (ATTACKS d03).

What enumerates after this waits for its verdict, and what is there already gets it: by the very probe that the agent
will look with, so that the keyboard that a rule allows works for whoever has to repair a node whose agent does not start. Devices
that came before are told by the kernel's own count, as the agent does.

Refuses to touch anything where the baseline only observes USB. What a device says of itself cannot stop the step: what
cannot be read or set is said, and seen again by the agent.
Relies on: being called after the firewall's rules are loaded, which no device may hold up. Whatever enumerated before it, in
the initial ramdisk above all, has worked until then: against that there is `usbcore.authorized_default=0` on the
kernel's command line, and packaging/udev.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from agent import probes
from agent.host import Host
from agent.probes.usb import Probe, Section
from contract import baseline as baselines
from contract.baseline import Baseline

_LOOKS = 3
_PAUSE_S = 0.1
"""Whether a device is let in is settled when the kernel begins to enumerate it: one that was under way when the defaults were
shut still comes in, some hundredths of a second later, and is found by the next look."""
_MAX_SAID = 16


def enforced(held: Baseline) -> Section | None:
    """Return the `[usb]` section of a baseline, None where it has none or only observes. Raises Rejected."""
    if "usb" not in held.sections:
        return None
    section = baselines.section(held, "usb", Section)
    return section if probes.mode_of(section, held.head) == "enforce" else None


def decide(section: Section, host: Host, now: float) -> list[str]:
    """Shut the kernel's defaults, let in and shut out what is plugged in; return lines for people. Raises nothing."""
    probe = Probe(section, probes.Surroundings(host=host))
    for number in range(_LOOKS):
        if number:
            time.sleep(_PAUSE_S)
        drifts = probe.observe(now)
        if not drifts:
            break
        probe.repair(drifts, now)
    return list(_said(probe, now))[:_MAX_SAID]


def _said(probe: Probe, now: float) -> Iterator[str]:
    for drift in probe.observe(now):
        yield f"usb: {drift.key}: wanted {drift.wanted}, found {drift.found}"
    for notice in probe.notices(now):
        yield f"usb: {notice.summary}"

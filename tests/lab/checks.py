"""What a check is, and what is checked in the guest's first boot: installed as documented, and then tampered with.

A check returns what it saw, in words, or raises AssertionError, RuntimeError or TimeoutError with what it saw instead. It leaves
the guest up, and healthy where it does not say otherwise.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.lab.guest import Guest
from tests.lab.office import NODE, SITE, Office
from tests.lab.outside import answers, is_open

INSTALL = Path(__file__).resolve().parents[2] / "docs/install.md"
SOON_S, NEXT_S, FIRST_S = 180.0, 600.0, 900.0
"""Patience, no promise: beside the suite, behind it (`nice`), an emulated guest may be ten times slower than alone."""
SHUT_S = 10.0
"""So long nobody may answer before a port counts as shut."""


@dataclass
class Site:
    """What a check works with."""

    office: Office
    guest: Guest
    ek_id: str
    releases: Path
    """A folder with the packages of later releases."""
    rest_s: float = 600.0
    """How long the agent is left alone to see what it costs."""
    knocks: str = ""
    """What the last boot showed to somebody outside."""


Run = Callable[[Site], str]


class Check(NamedTuple):
    """One row of the table."""

    what: str
    run: Run
    module: str
    smoke: bool
    """Also when there is little time: what no namespace of this machine's kernel can show instead."""
    always: bool
    """The others stand on it."""


CHECKS: list[Check] = []


def check(what: str, *, smoke: bool = False, always: bool = False) -> Callable[[Run], Run]:
    """Put a check at the end of its module's."""

    def kept(one: Run) -> Run:
        CHECKS.append(Check(what, one, one.__module__, smoke, always))
        return one

    return kept


def install_commands() -> list[str]:
    """Return the commands of docs/install.md for a node, as they stand there."""
    section = INSTALL.read_text().partition("\n## A node\n")[2].partition("\n## ")[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    return [line.partition("      #")[0].rstrip() for line in lines]


@check("the guest boots measured: Secure Boot, firmware log, IMA", always=True)
def _boots(site: Site) -> str:
    took_s = site.guest.start()
    log = int(site.guest.must("wc -c < /sys/kernel/security/tpm0/binary_bios_measurements"))
    lines = int(site.guest.must("wc -l < /sys/kernel/security/ima/ascii_runtime_measurements"))
    on = site.guest.must("od -An -tu1 /sys/firmware/efi/efivars/SecureBoot-*").split()[-1]
    assert on == "1" and log > 10_000 and lines > 100, (on, log, lines)
    return f"up after {took_s:.0f} s; {log} bytes of firmware log, {lines} IMA lines"


@check("without Ringfence the guest's listener is reached from outside (so the probe works)", smoke=True)
def _reached(site: Site) -> str:
    assert answers(site.guest.outside, SOON_S), "nobody answered"
    return "reached"


@check("the package installs as docs/install.md says, and the node enrols by its EK alone", always=True)
def _installs(site: Site) -> str:
    office, guest = site.office, site.guest
    office.publish()
    office.admin("enrolments", "preregister", site.ek_id, "--site", SITE, "--node", NODE)
    guest.must("mkdir -p /media/stick && mount -o ro /dev/vdb /media/stick")
    ca = base64.b64encode(office.ca.read_bytes()).decode()
    guest.must(f"echo {ca} | base64 -d > /root/controller-ca.pem")
    guest.must("cp /media/stick/ringfence-agent_*.deb /root")
    for command in install_commands():
        guest.must(f"cd /root && {command}")
        if command.endswith("/etc/ringfence/agent.toml"):  # "then: node, site, controller"
            guest.must(f"sed -i 's#https://controller.example:8440#{office.url}#' /etc/ringfence/agent.toml")
    began = time.monotonic()
    office.in_force(FIRST_S, affirming=True)
    took_s = time.monotonic() - began
    assert not is_open(guest.outside, SHUT_S), "the listener is still reached from outside"
    return f"healthy and affirming under the signed baseline {took_s:.0f} s after the last command; the listener is shut"


@check("what the firmware measured is understood: keys, shim, kernel, command line", smoke=True)
def _claims(site: Site) -> str:
    claims = site.office.node()["boot_claims"]
    assert claims["secure_boot"] in (True, "on", "enabled"), claims["secure_boot"]
    assert "ima_policy=tcb" in str(claims["kernel_command_line"]), claims["kernel_command_line"]
    stages = {each["stage"] for each in claims["loaded"]}
    assert "kernel" in stages, stages
    return f"stages {', '.join(sorted(stages))}; signed by {len(claims['signers'])} keys"


def rules_stand(site: Site) -> bool:
    """Whether our table is in the kernel."""
    return "table inet ringfence" in site.guest.run("nft list tables").out


def cut(site: Site) -> bool:
    """Whether the node has cut itself off."""
    return "ringfence_cut" in site.guest.must("nft list tables")


def findings(site: Site, begin: str = "") -> list[str]:
    """What the controller says against the node, by the beginning of its codes."""
    found = site.office.node()["findings"]
    return [f"{each['code']}: {each['detail']}" for each in found if each["code"].startswith(begin)]


def agent_pid(site: Site) -> int:
    """The agent's process; 0 for none."""
    return int(site.guest.must("systemctl show -P MainPID ringfence-agent"))


@check("nft flush ruleset is undone", smoke=True)
def _flush(site: Site) -> str:
    site.guest.must("nft flush ruleset")
    began = time.monotonic()
    site.office.until("the rules are back", lambda: rules_stand(site), SOON_S)
    return f"back when looked at {time.monotonic() - began:.1f} s later (emulated processor)"


@check("kill -9 leaves the rules, and systemd brings the agent back")
def _killed(site: Site) -> str:
    before = agent_pid(site)
    since = time.time()
    site.guest.must(f"kill -9 {before}")
    assert rules_stand(site)
    site.office.until("another agent runs", lambda: agent_pid(site) not in (0, before), SOON_S)
    site.office.in_force(NEXT_S, since=since)
    return "rules stood, the agent is back and healthy"


@check("systemctl stop leaves the rules, and the controller says that the node is silent")
def _stopped(site: Site) -> str:
    site.guest.must("systemctl stop ringfence-agent")
    assert rules_stand(site)
    site.office.standing("unreachable", NEXT_S)
    site.guest.must("systemctl start ringfence-agent")
    site.office.in_force(NEXT_S)
    return "rules stood; unreachable, then healthy again"


@check("a USB stick never becomes a disk", smoke=True)
def _stick(site: Site) -> str:
    site.guest.monitor(
        "blockdev-add", driver="null-co", **{"node-name": "stick", "size": 16 << 20, "read-zeroes": True}
    )
    site.guest.monitor("device_add", driver="usb-storage", id="stick", drive="stick", bus="usb.0")
    find = "grep -l 46f4 /sys/bus/usb/devices/*/idVendor"
    site.office.until("the stick is seen", lambda: site.guest.run(find).code == 0, SOON_S)
    place = site.guest.must(find).strip().rpartition("/")[0]
    time.sleep(10)
    authorized = site.guest.must(f"cat {place}/authorized").strip()
    disks = site.guest.must("ls /sys/block").split()
    assert authorized == "0" and not [each for each in disks if each.startswith("sd")], (authorized, disks)
    site.office.until(
        "usb.refused is told",
        lambda: "usb.refused" in site.office.admin("events", "--node", NODE, "--limit", "200", "--json"),
        NEXT_S,
    )
    site.guest.monitor("device_del", id="stick")
    return "authorized 0, no disk, told as usb.refused"


@check("the keyboard that the baseline names works", smoke=True)
def _keyboard(site: Site) -> str:
    site.guest.monitor("device_add", driver="usb-kbd", id="keyboard", bus="usb.0")
    find = "grep -l 0627 /sys/bus/usb/devices/*/idVendor"
    site.office.until("the keyboard is seen", lambda: site.guest.run(find).code == 0, SOON_S)
    place = site.guest.must(find).strip().rpartition("/")[0]
    site.office.until(
        "the keyboard is let in", lambda: site.guest.must(f"cat {place}/authorized").strip() == "1", SOON_S
    )
    site.guest.monitor("device_del", id="keyboard")
    return "authorized 1"

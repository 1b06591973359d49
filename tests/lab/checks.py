"""What is checked in a guest, in this order: each check leaves the guest as the next one expects it.

A check returns what it saw, in words, or raises AssertionError, RuntimeError or TimeoutError with what it saw instead.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab import image
from tests.lab.guest import Guest
from tests.lab.office import NODE, SITE, Office

INSTALL = Path(__file__).resolve().parents[2] / "docs/install.md"
MAX_EXPOSURE = 5.2
"""Lower would take repairs away: docs/adr/0060."""
FIRST_S, NEXT_S = 420.0, 300.0


@dataclass
class Site:
    """What a check works with."""

    office: Office
    guest: Guest
    ek_id: str


CHECKS: dict[str, Callable[[Site], str]] = {}


def check(what: str) -> Callable[[Callable[[Site], str]], Callable[[Site], str]]:
    """Put a check at the end of the list."""

    def kept(one: Callable[[Site], str]) -> Callable[[Site], str]:
        CHECKS[what] = one
        return one

    return kept


def install_commands() -> list[str]:
    """Return the commands of docs/install.md for a node, as they stand there."""
    section = INSTALL.read_text().partition("\n## A node\n")[2].partition("\n## ")[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    return [line.partition("      #")[0].rstrip() for line in lines]


@check("the guest boots measured: Secure Boot, firmware log, IMA")
def _boots(site: Site) -> str:
    took_s = site.guest.start()
    log = int(site.guest.must("wc -c < /sys/kernel/security/tpm0/binary_bios_measurements"))
    lines = int(site.guest.must("wc -l < /sys/kernel/security/ima/ascii_runtime_measurements"))
    on = site.guest.must("od -An -tu1 /sys/firmware/efi/efivars/SecureBoot-*").split()[-1]
    assert on == "1" and log > 10_000 and lines > 100, (on, log, lines)
    return f"up after {took_s:.0f} s; {log} bytes of firmware log, {lines} IMA lines"


@check("the package installs as docs/install.md says, and the node enrols by its EK alone")
def _installs(site: Site) -> str:
    office, guest = site.office, site.guest
    office.publish(1)
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
    found = office.in_force(FIRST_S)
    assert found["summary"]["tier"] == "affirming", found["summary"]
    return f"healthy and affirming under the signed baseline {time.monotonic() - began:.0f} s after the last command"


@check("what the firmware measured is understood: keys, shim, kernel, command line")
def _claims(site: Site) -> str:
    claims = site.office.node()["boot_claims"]
    assert claims["secure_boot"] in (True, "on", "enabled"), claims["secure_boot"]
    assert "ima_policy=tcb" in str(claims["kernel_command_line"]), claims["kernel_command_line"]
    stages = {each["stage"] for each in claims["loaded"]}
    assert "kernel" in stages, stages
    return f"stages {', '.join(sorted(stages))}; signed by {len(claims['signers'])} keys"


def _rules_stand(site: Site) -> bool:
    return "table inet ringfence" in site.guest.run("nft list tables").out


@check("nft flush ruleset is undone")
def _flush(site: Site) -> str:
    site.guest.must("nft flush ruleset")
    began = time.monotonic()
    site.office.until("the rules are back", lambda: _rules_stand(site), 60)
    return f"back when looked at {time.monotonic() - began:.1f} s later (emulated processor)"


@check("kill -9 leaves the rules, and systemd brings the agent back")
def _killed(site: Site) -> str:
    before = site.guest.must("systemctl show -P MainPID ringfence-agent").strip()
    site.guest.must(f"kill -9 {before}")
    assert _rules_stand(site)
    site.office.until(
        "another agent runs",
        lambda: site.guest.must("systemctl show -P MainPID ringfence-agent").strip() not in ("0", before),
        60,
    )
    site.office.in_force(NEXT_S)
    return "rules stood, the agent is back and healthy"


@check("systemctl stop leaves the rules, and the controller says that the node is silent")
def _stopped(site: Site) -> str:
    site.guest.must("systemctl stop ringfence-agent")
    assert _rules_stand(site)
    site.office.standing("unreachable", NEXT_S)
    site.guest.must("systemctl start ringfence-agent")
    site.office.in_force(NEXT_S)
    return "rules stood; unreachable, then healthy again"


@check("a USB stick never becomes a disk")
def _stick(site: Site) -> str:
    site.guest.monitor(
        "blockdev-add", driver="null-co", **{"node-name": "stick", "size": 16 << 20, "read-zeroes": True}
    )
    site.guest.monitor("device_add", driver="usb-storage", id="stick", drive="stick", bus="usb.0")
    find = "grep -l 46f4 /sys/bus/usb/devices/*/idVendor"
    site.office.until("the stick is seen", lambda: site.guest.run(find).code == 0, 60)
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


@check("the keyboard that the baseline names works")
def _keyboard(site: Site) -> str:
    site.guest.monitor("device_add", driver="usb-kbd", id="keyboard", bus="usb.0")
    find = "grep -l 0627 /sys/bus/usb/devices/*/idVendor"
    site.office.until("the keyboard is seen", lambda: site.guest.run(find).code == 0, 60)
    place = site.guest.must(find).strip().rpartition("/")[0]
    site.office.until(
        "the keyboard is let in", lambda: site.guest.must(f"cat {place}/authorized").strip() == "1", 60
    )
    site.guest.monitor("device_del", id="keyboard")
    return "authorized 1"


@check("a reboot is a reboot: the same boot, affirmed again")
def _reboots(site: Site) -> str:
    took_s = site.guest.reboot()
    began = time.monotonic()
    found = site.office.in_force(NEXT_S)
    assert found["summary"]["tier"] == "affirming", found["summary"]
    return f"up after {took_s:.0f} s, affirming {time.monotonic() - began:.0f} s later"


@check("the early rules are in force before anything listens")
def _early(site: Site) -> str:
    show = "systemctl show -P {} {}"
    early = int(site.guest.must(show.format("ActiveEnterTimestampMonotonic", "ringfence-early.service")))
    network = int(site.guest.must(show.format("ActiveEnterTimestampMonotonic", "network.target")))
    interface = int(
        site.guest.must(show.format("ExecMainStartTimestampMonotonic", "systemd-networkd.service"))
    )
    assert 0 < early < min(network, interface), (early, interface, network)
    return f"loaded {(interface - early) / 1e6:.1f} s before the network's service was started"


@check("the agent's sandbox: systemd-analyze security")
def _sandbox(site: Site) -> str:
    last = (
        site.guest.must("systemd-analyze security --no-pager ringfence-agent.service")
        .strip()
        .splitlines()[-1]
    )
    exposure = float(re.findall(r"[0-9]+\.[0-9]+", last)[-1])
    assert exposure <= MAX_EXPOSURE, last
    return f"exposure {exposure} of at most {MAX_EXPOSURE}"


@check("another kernel command line is found and named, and the node is isolated")
def _command_line(site: Site) -> str:
    site.guest.stop()
    image.put_menu(site.guest.disk, image.menu(f"{image.KERNEL_ARGUMENTS} lab.changed=1"))
    site.guest.start()
    said = _isolated(site)
    assert "lab.changed=1" in said, said
    return said


@check("put back, a person closes the case and the node is healthy")
def _put_back(site: Site) -> str:
    site.guest.stop()
    image.put_menu(site.guest.disk, image.menu())
    site.guest.start()
    site.office.admin("release", "--site", SITE, "--reason", "put back")
    if site.office.node()["holds"]:
        site.office.admin("release", "--node", NODE, "--reason", "put back")
    found = site.office.in_force(NEXT_S)
    return f"tier {found['summary']['tier']}"


@check("Secure Boot off is found and named, and the node is isolated")
def _secure_boot_off(site: Site) -> str:
    site.guest.stop()
    site.guest.secure_boot(False)
    site.guest.start()
    return _isolated(site)


def _isolated(site: Site) -> str:
    """Wait until the controller names what differs and the node has cut itself; say what it said."""
    site.office.until(
        "the node is isolated",
        lambda: site.office.node().get("summary", {}).get("posture") == "isolated",
        FIRST_S,
        lambda: json.dumps(site.office.node())[:1500],
    )
    assert "ringfence_cut" in site.guest.must("nft list tables"), "no cut in the kernel"
    found = site.office.node()
    return "; ".join(f"{each['code']}: {each['detail']}" for each in found["findings"])[:900] or "no finding"

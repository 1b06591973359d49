"""A reboot, and the order of things in it: the fence before Python, the early rules, the network, and what is reached meanwhile."""

from __future__ import annotations

import re
import time

from tests.lab.checks import NEXT_S, SHUT_S, Site, check
from tests.lab.outside import Knocking, is_open

MAX_EXPOSURE = 3.0
"""Of the agent."""
MAX_CONTROLLER_EXPOSURE = 1.5


def _at(site: Site, unit: str, what: str) -> float:
    """A moment of a unit, in seconds since the kernel began."""
    return int(site.guest.must(f"systemctl show -P {what}TimestampMonotonic {unit}")) / 1e6


@check("a reboot is a reboot: the same boot, affirmed again")
def _reboots(site: Site) -> str:
    site.guest.stop()
    since = time.time()
    with Knocking(site.guest.outside) as knocking:
        took_s = site.guest.start()
        began = time.monotonic()
        found = site.office.in_force(NEXT_S, since=since)
    affirmed_s = time.monotonic() - began
    site.knocks = f"{knocking.tried} tries from power-on to affirmed, {knocking.answered} answered"
    assert found["summary"]["tier"] == "affirming", found["summary"]
    return f"up after {took_s:.0f} s, affirming {affirmed_s:.0f} s later"


@check("ringfence-fence: the last confirmed rules by plain nft, before Python and before the network")
def _fence(site: Site) -> str:
    unit = "ringfence-fence.service"
    result = site.guest.must(
        f"for p in Result ExecMainStatus ActiveState; do systemctl show -P $p {unit}; done"
    )
    assert result.split() == ["success", "0", "active"], result
    began, ended = _at(site, unit, "ExecMainStart"), _at(site, unit, "ExecMainExit")
    early = _at(site, "ringfence-early.service", "ExecMainStart")
    network = _at(site, "systemd-networkd.service", "ExecMainStart")
    assert 0 < began < ended < early and ended < network, (began, ended, early, network)
    said = site.guest.must(
        f"journalctl -b -o cat --no-pager -u {unit} | grep '^ringfence-agent fence: '"
    ).strip()
    assert re.search(r"fence: lab/[0-9]+ in posture normal", said) and "lock-down" not in said, said
    return (
        f"'{said}'; {(ended - began) * 1000:.0f} ms, ended {(early - ended) * 1000:.0f} ms before ringfence-early and "
        f"{network - ended:.1f} s before the network's service began"
    )


@check("the early rules are in force before the network's service starts")
def _early(site: Site) -> str:
    early = _at(site, "ringfence-early.service", "ActiveEnter")
    network = _at(site, "network.target", "ActiveEnter")
    interface = _at(site, "systemd-networkd.service", "ExecMainStart")
    assert 0 < early < min(network, interface), (early, interface, network)
    return f"loaded {interface - early:.1f} s before the network's service was started"


@check("somebody outside who tries all the while reaches nothing in that boot")
def _outside(site: Site) -> str:
    listens = _at(site, "lab-listener.socket", "ActiveEnter")
    early = _at(site, "ringfence-early.service", "ActiveEnter")
    assert site.knocks.endswith(" 0 answered"), site.knocks or "there was no reboot before this row"
    assert not is_open(site.guest.outside, SHUT_S)
    assert "LISTEN" in site.guest.must("ss -ltn | grep :7070")
    order = "before" if listens < early else "after"
    return f"{site.knocks}; it listened from {listens:.1f} s on, {order} the early rules at {early:.1f} s"


@check("the sandboxes of agent and controller: systemd-analyze security")
def _sandbox(site: Site) -> str:
    # The controller is not installed here: its unit is read as its package brings it.
    unit = "ringfence-controller.service"
    site.guest.must("mountpoint -q /media/stick || mount -o ro /dev/vdb /media/stick")
    site.guest.must(
        f"dpkg-deb --fsys-tarfile /media/stick/ringfence-controller_*.deb "
        f"| tar -xO ./usr/lib/systemd/system/{unit} > /run/{unit}"
    )
    agent = _exposure(site, "ringfence-agent.service")
    controller = _exposure(site, f"--offline=yes /run/{unit}")
    assert agent <= MAX_EXPOSURE and controller <= MAX_CONTROLLER_EXPOSURE, (agent, controller)
    return f"agent {agent} of at most {MAX_EXPOSURE}, controller {controller} of at most {MAX_CONTROLLER_EXPOSURE}"


def _exposure(site: Site, unit: str) -> float:
    told = site.guest.must(f"systemd-analyze security --no-pager {unit}")
    return float(re.findall(r"[0-9]+\.[0-9]+", told.strip().splitlines()[-1])[-1])

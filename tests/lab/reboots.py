"""The boot policy that is learned from a boot, and a reboot under it.

The order of things in that reboot: the fence before Python, the early rules, the network, and what is reached meanwhile.
"""

from __future__ import annotations

import base64
import re
import time
import tomllib
from pathlib import Path

from tests.lab.checks import NEXT_S, SHUT_S, Site, check
from tests.lab.office import NODE
from tests.lab.outside import Knocking, is_open

TREE = Path(__file__).resolve().parents[2]
MAX_EXPOSURE = 3.0
"""Of the agent."""
MAX_CONTROLLER_EXPOSURE = 1.5


def _at(site: Site, unit: str, what: str) -> float:
    """A moment of a unit, in seconds since the kernel began."""
    return int(site.guest.must(f"systemctl show -P {what}TimestampMonotonic {unit}")) / 1e6


@check(
    "`ringfence attest learn` proposes a boot policy from this first boot; signed, it holds the node from here on"
)
def _learns(site: Site) -> str:
    learned = site.office.admin("attest", "learn", NODE)
    boot = tomllib.loads(learned)["boot"]
    assert boot["secure_boot"] == "required" and {"kernel", "initrd"} <= set(boot["stages"]), learned
    site.office.boot = learned
    site.office.publish()
    site.office.in_force(NEXT_S, since=time.time(), affirming=True)
    return f"affirming under {', '.join(sorted({*boot, *boot['stages']} - {'stages'}))}"


@check("a reboot is a reboot: the same boot, affirmed again", smoke=True)
def _reboots(site: Site) -> str:
    site.guest.stop()
    since = time.time()
    with Knocking(site.guest.outside) as knocking:
        took_s = site.guest.start()
        began = time.monotonic()
        site.office.in_force(NEXT_S, since=since, affirming=True)
    affirmed_s = time.monotonic() - began
    site.knocks = f"{knocking.tried} tries from power-on to affirmed, {knocking.answered} answered"
    return f"up after {took_s:.0f} s, affirming {affirmed_s:.0f} s later"


@check(
    "ringfence-fence: the last confirmed rules by plain nft, before Python and before the network", smoke=True
)
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


@check("the early rules are in force before the network's service starts", smoke=True)
def _early(site: Site) -> str:
    early = _at(site, "ringfence-early.service", "ActiveEnter")
    network = _at(site, "network.target", "ActiveEnter")
    interface = _at(site, "systemd-networkd.service", "ExecMainStart")
    assert 0 < early < min(network, interface), (early, interface, network)
    return f"loaded {interface - early:.1f} s before the network's service was started"


@check(
    "the rules are in force before any service listens: in that boot somebody outside reached nothing",
    smoke=True,
)
def _outside(site: Site) -> str:
    assert site.knocks.endswith(" 0 answered"), site.knocks or "there was no reboot before this row"
    assert not is_open(site.guest.outside, SHUT_S)
    stands = _at(site, "ringfence-fence.service", "ExecMainExit")
    listens = {unit: _at(site, unit, "InactiveExit") for unit in _listening(site)}
    assert "lab-listener.socket" in listens and min(listens.values()) > stands, (listens, stands)
    # The initrd's address (image.INITRD): nothing but rules kept anybody out.
    had = re.search(r"IPV4ADDR='([0-9.]+)'", site.guest.must("cat /run/net-*.conf"))
    assert had is not None, "the initrd has brought no network up"
    first = min(listens, key=lambda unit: listens[unit])
    return (
        f"{site.knocks}; address {had[1]} since the initrd, rules from {stands:.1f} s on, and the first of {len(listens)} to listen "
        f"was {first} at {listens[first]:.1f} s"
    )


def _listening(site: Site) -> set[str]:
    """The units that have an IP socket open for whoever comes: systemd's own sockets by its list, the rest by the process."""
    own = site.guest.must("systemctl list-sockets --no-legend --no-pager").splitlines()
    found = {words[1] for line in own if re.match(r"\S*:[0-9]+$", (words := line.split())[0])}
    told = site.guest.must("ss -Hlntup")
    for pid in set(re.findall(r"pid=([0-9]+)", told)) - {"1"}:
        found.add(site.guest.must(f"cat /proc/{pid}/cgroup").strip().rpartition("/")[2])
    return found


@check("the sandboxes of agent and controller: systemd-analyze security", smoke=True)
def _sandbox(site: Site) -> str:
    # The controller is not installed here: its unit is read as its package brings it.
    unit = "ringfence-controller.service"
    brought = base64.b64encode((TREE / "packaging/systemd" / unit).read_bytes()).decode()
    site.guest.must(f"echo {brought} | base64 -d > /run/{unit}")
    agent = _exposure(site, "ringfence-agent.service")
    controller = _exposure(site, f"--offline=yes /run/{unit}")
    assert agent <= MAX_EXPOSURE and controller <= MAX_CONTROLLER_EXPOSURE, (agent, controller)
    return f"agent {agent} of at most {MAX_EXPOSURE}, controller {controller} of at most {MAX_CONTROLLER_EXPOSURE}"


def _exposure(site: Site, unit: str) -> float:
    told = site.guest.must(f"systemd-analyze security --no-pager {unit}")
    return float(re.findall(r"[0-9]+\.[0-9]+", told.strip().splitlines()[-1])[-1])

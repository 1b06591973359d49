"""Another release of the agent by order, in a Debian that systemd has booted: brought, refused, taken back (`roots.py`).

By apt, and by dnf with the agent installed as an rpm. The order is written as the agent writes it (agent/upgrade.py): without a
TPM there is no baseline that could ask for it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repository import Keys, apt, dnf
from roots import Failed, Root, bumped
from roots_booted import Booted, booted, set_up
from roots_cases import CASES, case
from rpms import asked, provided, rebuilt

__all__ = ["CASES"]
NEWER, BROKEN = "99.0-1", "100.0-1"
_ORDERS = "/var/lib/ringfence/upgrade"
_OUTCOMES = "/var/lib/ringfence-upgrade"
_SOURCE = "deb [signed-by=/srv/ringfence.asc] file:///srv/apt stable main"
_IMPATIENT = "sed -i s/^UP_S=120/UP_S=30/ /usr/lib/ringfence-agent/upgrade"
_DPKG = "dpkg-query -W -f '${Version}' ringfence-agent"
_RPM = "rpm -q --qf '%{EVR}' ringfence-agent"
_WATCHED = "while sleep 0.1; do nft list table inet ringfence >/dev/null 2>&1 || echo gone; done"
_BY_DNF = """
set -e
apt-get -qq update && apt-get -qq install -y --no-install-recommends dnf dnf-plugins-core rpm gpg >/dev/null
mkdir -p /etc/yum.repos.d && sed s,/srv/ringfence,/srv,g /srv/rpm/ringfence.repo > /etc/yum.repos.d/ringfence.repo
sed -i s/true/false/ /etc/dnf/plugins/local.conf  # which Debian turns on, and lacks the tools for
mkdir -p /etc/rpm && echo '%_dbpath /var/lib/rpm' > /etc/rpm/macros  # where it is on a system of rpm's own; Debian: ~/.rpmdb
rpmkeys --import /srv/ringfence.asc
dnf -y install ringfence-agent-{version} 2>&1
"""


@case()
def release_by_order(root: Root, source: Path) -> None:
    """By apt: a release that does not come up, or that the controller does not answer, is taken back; a good one comes, an older one
    when it is asked for; the fence stands all the time."""
    with _published(root) as (work, keys):
        deb = root.debs["ringfence-agent"]
        broken = bumped(deb, BROKEN, work, _break)
        apt([deb, root.debs["ringfence-agent-newer"], broken], root.path / "srv/apt", keys, 0)
    set_up(root, "ringfence-agent", "ringfence-controller")
    root.run(f"echo '{_SOURCE}' > /etc/apt/sources.list.d/ringfence.list")
    with _ordered_about(root, _DPKG):
        pass


@case()
def release_by_order_of_dnf(root: Root, source: Path) -> None:
    """The same by dnf, of an agent that was installed from the signed repository as an rpm."""
    rpm = next(source.glob("ringfence-agent-*.rpm"))
    with _published(root) as (work, keys):
        newer, broken = rebuilt(rpm, NEWER, work), rebuilt(rpm, BROKEN, work, _break)
        dnf([rpm, newer, broken, provided(newer, work)], root.path / "srv/rpm", keys)
    set_up(root, "ringfence-controller")
    root.run(_BY_DNF.format(version=asked(rpm, "%{EVR}")), network=True)
    with _ordered_about(root, _RPM) as machine:
        told = machine.tell("RINGFENCE_ON_REMOVE=open rpm -e ringfence-agent; nft list tables")
        if "opened, as asked" not in told or "table inet ringfence" in told:
            raise Failed(f"removed by rpm with the fence opened: {told}")


@contextmanager
def _published(root: Root) -> Iterator[tuple[Path, Keys]]:
    """Give a folder to build releases in and keys to sign them with; the public one goes into the root."""
    work = Path(tempfile.mkdtemp(prefix="ringfence-releases-"))
    keys = Keys(None)
    try:
        (root.path / "srv/ringfence.asc").write_bytes(keys.gpg("--armor", "--export", keys.fingerprint))
        yield work, keys
    finally:
        keys.close()
        shutil.rmtree(work)


def _break(folder: Path) -> None:
    (folder / "usr/lib/ringfence-agent/ringfence-agent").write_text(
        "#!/bin/sh\necho 'E: a release that does not start' >&2\nexit 1\n"
    )


@contextmanager
def _ordered_about(root: Root, version: str) -> Iterator[Booted]:
    """Boot it, order one release after the other, and give the machine. `version`: the command that says what is installed.

    Raises Failed.
    """
    root.run(_IMPATIENT)
    first = root.run(version)
    with booted(root.path) as machine:
        machine.until("systemctl is-active ringfence-agent ringfence-upgrade.path | xargs", "active active")
        machine.until("nft list tables", "table inet ringfence\n")
        machine.tell(f'setsid sh -c "{_WATCHED}" >/run/watched 2>&1 </dev/null &')

        def ordered(wanted: str, direction: str, outcome: str, installed: str) -> None:
            _ordered(machine, wanted, direction, f"{wanted}\n{outcome}")
            machine.until(version, installed)

        ordered("98.7-1", "newer", f"{first}\nfailed\n", first)
        ordered(BROKEN, "newer", f"{first}\nback\n", first)
        ordered(NEWER, "newer", f"{first}\ndone\n", NEWER)
        ordered(NEWER, "newer", f"{NEWER}\ndone\n", NEWER)
        ordered(first, "newer", f"{NEWER}\nfailed\n", NEWER)
        machine.tell(_IMPATIENT)
        machine.supervisor_hears("ringfence-agent", "STATUS=the controller answers")
        unheard = f"it came up and had no answer from the controller within 30 s, so {NEWER} was put back"
        ordered(first, "older", f"{NEWER}\nfailed\n{unheard}", NEWER)
        ordered(first, "older", f"{NEWER}\ndone\n", first)
        if watched := machine.tell("cat /run/watched"):
            raise Failed(f"the rules were gone, {watched.count('gone')} times")
        yield machine


def _ordered(machine: Booted, version: str, direction: str, outcome: str) -> None:
    """Order a release, and see outcome and agent, and that nothing is left behind. Raises Failed."""
    machine.tell(
        f"mkdir -p -m 700 {_ORDERS}; cd {_ORDERS} && rm -f {_OUTCOMES}/result && printf '{version}\\n{direction}\\n' > .order && mv .order order"
    )
    machine.until(f"cat {_OUTCOMES}/result 2>/dev/null", outcome)
    machine.until("systemctl is-active ringfence-agent", "active\n")
    if left := machine.tell(f"cd {_OUTCOMES} && ls -d {_ORDERS}/order running kept rpm asked 2>/dev/null"):
        raise Failed(f"{version} {direction}: {left} is left behind")

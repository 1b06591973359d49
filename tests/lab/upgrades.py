"""Upgrade and removal by apt while the agent runs: the fence stays, and opens when that was asked for."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.lab.checks import NEXT_S, SHUT_S, Site, agent_pid, check, rules_stand
from tests.lab.outside import Knocking, is_open

TREE = Path(__file__).resolve().parents[2]
NEWER = "99.0-1"
_APT_S = 420.0
_DEB = f"/media/stick/newer/ringfence-agent_{NEWER}_*.deb"
_UPGRADE = f"""
rm -f /run/lab-apt
( apt-get install -y {_DEB} >/run/lab-apt.log 2>&1; echo $? >/run/lab-apt ) &
looked=0 gone=0
until [ -e /run/lab-apt ] && p=$(systemctl show -P MainPID ringfence-agent) && [ $p != 0 ] && [ $p != %d ]; do
    looked=$((looked + 1)); nft list table inet ringfence >/dev/null 2>&1 || gone=$((gone + 1))
done
echo $(cat /run/lab-apt) $looked $gone
"""


def newer(deb: Path, folder: Path) -> None:
    """Make a later release of a package: the same files under a higher version."""
    sys.path.insert(0, str(TREE / "packaging/os"))
    from roots import bumped  # type: ignore[import-not-found,unused-ignore]

    bumped(deb, NEWER, folder)


@check(
    "an upgrade by apt while the agent runs: the rules stand all the time, and another agent comes",
    smoke=False,
)
def _upgraded(site: Site) -> str:
    before, since = agent_pid(site), time.time()
    try:
        with Knocking(site.guest.outside) as knocking:
            told = site.guest.must(_UPGRADE % before, within_s=_APT_S)
    except (RuntimeError, TimeoutError) as error:
        raise RuntimeError(f"{error}\n{site.guest.run('tail -20 /run/lab-apt.log').out}") from None
    code, looked, gone = map(int, told.split())
    assert code == 0, site.guest.must("tail -20 /run/lab-apt.log")
    version = site.guest.must("dpkg-query -W -f '${Version}' ringfence-agent")
    assert version == NEWER, version
    assert looked > 0 and gone == 0, f"the rules were gone {gone} of {looked} times"
    assert not knocking.answered, f"reached from outside {knocking.answered} times"
    came_s = time.time() - since
    site.office.in_force(NEXT_S, since=time.time())
    return (
        f"to {version} (the same files) and another agent within {came_s:.0f} s: the rules stood each of {looked} times that "
        f"they were looked at, {knocking.tried} tries from outside shut; healthy"
    )


@check("apt-get remove leaves the fence; installed again, the node is itself", smoke=False)
def _removed(site: Site) -> str:
    told = site.guest.must("apt-get remove -y ringfence-agent 2>&1", within_s=_APT_S)
    assert "stays in the kernel" in told, told[-1000:]
    assert rules_stand(site), "the rules are gone"
    assert not is_open(site.guest.outside, SHUT_S), "the listener is reached from outside"
    left = site.guest.run("systemctl is-active ringfence-agent; ls /usr/bin/ringfence-agent").out
    assert "/usr/bin" not in left and left.split()[0] != "active", left
    return f"no agent, the rules stand, the listener is shut; {_installed(site)}"


@check("RINGFENCE_ON_REMOVE=open apt-get remove opens the fence", smoke=False)
def _opened(site: Site) -> str:
    told = site.guest.must("RINGFENCE_ON_REMOVE=open apt-get remove -y ringfence-agent 2>&1", within_s=_APT_S)
    assert "opened, as asked" in told, told[-1000:]
    tables = site.guest.must("nft list tables")
    assert "ringfence" not in tables, tables
    assert is_open(site.guest.outside, 60.0), "nobody answered from outside"
    return f"no table of ours is left, the listener is reached; {_installed(site)}"


def _installed(site: Site) -> str:
    since = time.time()
    site.guest.must(f"apt-get install -y {_DEB}", within_s=_APT_S)
    site.guest.must("systemctl start ringfence-early ringfence-agent")
    found = site.office.in_force(NEXT_S, since=since)
    return f"installed again, {found['summary']['tier']} after {time.time() - since:.0f} s"


def stick(folder: Path, packages: Path) -> Path:
    """Return a disk that holds the packages, and in `newer` a later agent: the technician's stick."""
    files, disk = folder / "stick", folder / "stick.img"
    (files / "newer").mkdir(parents=True)
    for each in packages.glob("*.deb"):
        (files / each.name).write_bytes(each.read_bytes())
    newer(next(packages.glob("ringfence-agent_*.deb")), files / "newer")
    subprocess.run(["mke2fs", "-q", "-q", "-t", "ext4", "-d", files, "-F", disk, "512M"], check=True)
    return disk

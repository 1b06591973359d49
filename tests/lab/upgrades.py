"""Removal by apt while the agent runs: the fence stays, and opens when that was asked for. And what the technician's stick holds."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.lab import releases
from tests.lab.checks import NEXT_S, SHUT_S, SOON_S, Site, check, rules_stand
from tests.lab.outside import answers, is_open

NEWER = "99.0-1"
_APT_S = 900.0
_DEB = f"/media/stick/newer/ringfence-agent_{NEWER}_*.deb"


@check("apt-get remove leaves the fence; installed again, the node is itself")
def _removed(site: Site) -> str:
    told = site.guest.must("apt-get remove -y ringfence-agent 2>&1", within_s=_APT_S)
    assert "stays in the kernel" in told, told[-1000:]
    assert rules_stand(site), "the rules are gone"
    assert not is_open(site.guest.outside, SHUT_S), "the listener is reached from outside"
    left = site.guest.run("systemctl is-active ringfence-agent; ls /usr/bin/ringfence-agent").out
    assert "/usr/bin" not in left and left.split()[0] != "active", left
    return f"no agent, the rules stand, the listener is shut; {_installed(site)}"


@check("RINGFENCE_ON_REMOVE=open apt-get remove opens the fence")
def _opened(site: Site) -> str:
    told = site.guest.must("RINGFENCE_ON_REMOVE=open apt-get remove -y ringfence-agent 2>&1", within_s=_APT_S)
    assert "opened, as asked" in told, told[-1000:]
    tables = site.guest.must("nft list tables")
    assert "ringfence" not in tables, tables
    assert answers(site.guest.outside, SOON_S), "nobody answered from outside"
    return f"no table of ours is left, the listener is reached; {_installed(site)}"


def _installed(site: Site) -> str:
    since = time.time()
    site.guest.must(f"apt-get install -y {_DEB}", within_s=_APT_S)
    site.guest.must("systemctl start ringfence-early ringfence-agent")
    found = site.office.in_force(NEXT_S, since=since)
    return f"installed again, {found['summary']['tier']} after {time.time() - since:.0f} s"


def stick(folder: Path, packages: Path) -> Path:
    """Return a disk that holds the packages, in `newer` a later agent of the same files, and in `apt` the repository of releases."""
    files, disk = folder / "stick", folder / "stick.img"
    (files / "newer").mkdir(parents=True)
    for each in packages.glob("*.deb"):
        (files / each.name).write_bytes(each.read_bytes())
    deb = next(packages.glob("ringfence-agent_*.deb"))
    releases.later(deb, NEWER, files / "newer")
    releases.publish(deb, files, folder)
    subprocess.run(["mke2fs", "-q", "-q", "-t", "ext4", "-d", files, "-F", disk, "512M"], check=True)
    return disk

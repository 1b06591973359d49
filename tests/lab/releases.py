"""A later release of the agent, with other files, in a signed repository on the stick; and the baseline that asks for it.

The row comes while `[ima]` is enforced, so it stands among those of `strangers`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.checks import NEXT_S, Site, agent_pid
from tests.lab.outside import Knocking

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "packaging/os"))

RELEASE = "99.1-1"
TRIAL = "lab-trial"
"""A package of one file, by which the guest's package manager is seen at work before it is judged."""
_STICK = "/media/stick"
_FOLDER = "/var/lib/ringfence-upgrade"
_WITHIN_S = 600.0
SOURCE = f"""
mountpoint -q {_STICK} || mount -o ro /dev/vdb {_STICK}
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
install -m 0644 {_STICK}/apt/key.asc /etc/apt/keyrings/ringfence.asc
echo 'deb [signed-by=/etc/apt/keyrings/ringfence.asc] file://{_STICK}/apt stable main' > /etc/apt/sources.list.d/ringfence.list
"""
USED = f"""
export DEBIAN_FRONTEND=noninteractive
apt-get -q update && apt-get -q -y install {TRIAL}
cd /run && apt-get -q download {TRIAL} && dpkg --configure -a
systemd-run --quiet --collect --on-active=1 systemctl --version
systemctl show -P InvocationID ringfence-agent; systemctl is-active ringfence-agent
"""
"""What an upgrade runs besides the package's own: learned before it is judged."""
_WATCHED = f"""
looked=0 gone=0
until [ -e {_FOLDER}/result ]; do
    looked=$((looked + 1)); nft list table inet ringfence >/dev/null 2>&1 || gone=$((gone + 1))
    sleep 0.5
done
echo $looked $gone; cat {_FOLDER}/result
"""
"""Looks in between: without a pause it takes half of the one processor from what it looks at. Somebody outside tries five times a second besides."""


def later(
    deb: Path, version: str, folder: Path, change: Callable[[Path], object] = lambda folder: None
) -> Path:
    """Make a later release of a package."""
    from roots import bumped  # type: ignore[import-not-found,unused-ignore]

    made: Path = bumped(deb, version, folder, change)
    return made


def publish(deb: Path, stick: Path, folder: Path) -> None:
    """Put the repository on the stick, and the release beside it in `folder`, for whoever writes the baseline."""
    from repository import Keys, apt  # type: ignore[import-not-found,unused-ignore]

    release = later(deb, RELEASE, folder, _other_files)
    trial = folder / "trial"
    (trial / "DEBIAN").mkdir(parents=True)
    (trial / "DEBIAN/control").write_text(
        f"Package: {TRIAL}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    (trial / "DEBIAN/postinst").write_text("#!/bin/sh\nset -e\n")
    (trial / "DEBIAN/postinst").chmod(0o755)
    (trial / "usr/share/lab-trial").mkdir(parents=True)
    (trial / "usr/share/lab-trial/x").write_text("x\n")
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", trial, folder / "trial.deb"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    keys = Keys(None)
    try:
        apt([release, folder / "trial.deb"], stick / "apt", keys, 0)
        (stick / "apt/key.asc").write_bytes(keys.gpg("--armor", "--export", keys.fingerprint))
    finally:
        keys.close()


def _other_files(folder: Path) -> None:
    """Change a script, and libraries that the agent maps when it starts."""
    own = folder / "usr/lib/ringfence-agent"
    libraries = [own / "upgrade", *sorted((own / "_internal/tpm2_pytss").glob("*.so"))]
    assert len(libraries) > 1, "no library to change"
    for path in libraries:
        with path.open("ab") as file:
            file.write(b"\n# another release\n")


def asked_for(site: Site, text: str) -> str:
    """Return a baseline's text with the release and its files announced, as docs/operate.md says."""
    deb = next(site.releases.glob(f"ringfence-agent_{RELEASE}_*.deb"))
    return f'{text}{site.office.admin("reference", "package", deb)}\n[agent]\nrelease = "{RELEASE}"\n'


def brought(site: Site, text: str) -> str:
    """Publish such a baseline and wait for the outcome; returns what was seen. Raises AssertionError for rules that were gone."""
    before, since = agent_pid(site), time.time()
    site.guest.must(f"rm -f {_FOLDER}/result")
    with Knocking(site.guest.outside) as knocking:
        site.office.publish(text)
        told = site.guest.must(_WATCHED, within_s=_WITHIN_S)
    counted, *result = told.strip().splitlines()
    looked, gone = map(int, counted.split())
    assert result[:1] + result[2:3] == [RELEASE, "done"], told + site.guest.run(f"tail -30 {_FOLDER}/log").out
    assert site.guest.must("dpkg-query -W -f '${Version}' ringfence-agent") == RELEASE
    assert agent_pid(site) != before, "the same agent"
    assert looked > 0 and gone == 0, f"the rules were gone {gone} of {looked} times"
    assert not knocking.answered, f"reached from outside {knocking.answered} times"
    took_s = time.time() - since
    found = site.office.in_force(NEXT_S, since=time.time())
    return (
        f"{result[1]} -> {RELEASE} in {took_s:.0f} s, healthy, tier {found['summary']['tier']}; the rules stood each of {looked} "
        f"times that they were looked at, {knocking.tried} tries from outside shut"
    )

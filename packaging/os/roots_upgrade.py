"""Another release of the agent by order, in a Debian that systemd has booted: brought, refused, taken back (`roots.py`).

The order is written as the agent writes it (agent/upgrade.py): without a TPM there is no baseline that could ask for it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from repository import Keys, apt
from roots import Failed, Root, bumped
from roots_booted import SETUP, Booted, booted
from roots_cases import CASES, case

__all__ = ["CASES"]
NEWER, BROKEN = "99.0-1", "100.0-1"
_FOLDER = "/var/lib/ringfence/upgrade"
_SOURCE = "deb [signed-by=/srv/ringfence.asc] file:///srv/apt stable main"
_IMPATIENT = "sed -i s/^UP_S=120/UP_S=30/ /usr/lib/ringfence-agent/upgrade"
_VERSION = "dpkg-query -W -f '${Status} ${Version}' ringfence-agent"
_WATCHED = "while sleep 0.1; do nft list table inet ringfence >/dev/null 2>&1 || echo gone; done"


@case()
def release_by_order(root: Root, source: Path) -> None:
    """A release that does not come up, or that the controller does not answer, is taken back; a good one comes, an older one when
    it is asked for; the fence stands all the time."""
    _published(root)
    names = {
        name.rpartition("-")[2]: root.debs[name].name for name in ("ringfence-agent", "ringfence-controller")
    }
    root.run(SETUP.format(**names), network=True)
    root.run(f"echo '{_SOURCE}' > /etc/apt/sources.list.d/ringfence.list; {_IMPATIENT}")
    first = root.version().split()[-1]
    with booted(root.path) as machine:
        machine.until("systemctl is-active ringfence-agent ringfence-upgrade.path | xargs", "active active")
        machine.until("nft list tables", "table inet ringfence\n")
        machine.tell(f'setsid sh -c "{_WATCHED}" >/run/watched 2>&1 </dev/null &')
        _ordered(machine, "98.7-1", "newer", f"98.7-1\n{first}\nfailed\n", first)
        _ordered(machine, BROKEN, "newer", f"{BROKEN}\n{first}\nback\n", first)
        _ordered(machine, NEWER, "newer", f"{NEWER}\n{first}\ndone\n", NEWER)
        _ordered(machine, NEWER, "newer", f"{NEWER}\n{NEWER}\ndone\n", NEWER)
        _ordered(machine, first, "newer", f"{first}\n{NEWER}\nfailed\n", NEWER)
        machine.tell(_IMPATIENT)
        machine.supervisor_hears("ringfence-agent", "STATUS=the controller answers")
        unheard = f"{first}\n{NEWER}\nfailed\nit came up and had no answer from the controller within 30 s, so {NEWER} was put back"
        _ordered(machine, first, "older", unheard, NEWER)
        _ordered(machine, first, "older", f"{first}\n{NEWER}\ndone\n", first)
        if watched := machine.tell("cat /run/watched"):
            raise Failed(f"the rules were gone, {watched.count('gone')} times")


def _published(root: Root) -> None:
    """Put a signed repository with the release of today, a newer one and a broken one into the root."""
    work = Path(tempfile.mkdtemp(prefix="ringfence-releases-"))
    keys = Keys(None)
    try:
        deb = root.debs["ringfence-agent"]
        broken = bumped(deb, BROKEN, work, _break)
        apt([deb, root.debs["ringfence-agent-newer"], broken], root.path / "srv/apt", keys, 0)
        (root.path / "srv/ringfence.asc").write_bytes(keys.gpg("--armor", "--export", keys.fingerprint))
    finally:
        keys.close()
        shutil.rmtree(work)


def _break(folder: Path) -> None:
    (folder / "usr/lib/ringfence-agent/ringfence-agent").write_text(
        "#!/bin/sh\necho 'E: a release that does not start' >&2\nexit 1\n"
    )


def _ordered(machine: Booted, version: str, direction: str, wanted: str, installed: str) -> None:
    """Order a release, and see outcome, version and agent. Raises Failed."""
    machine.tell(
        f"mkdir -p -m 700 {_FOLDER}; cd {_FOLDER} && rm -f result && printf '{version}\\n{direction}\\n' > .order && mv .order order"
    )
    machine.until(f"cat {_FOLDER}/result 2>/dev/null", wanted)
    machine.until(_VERSION, f"install ok installed {installed}")
    machine.until("systemctl is-active ringfence-agent", "active\n")
    if left := machine.tell(f"cd {_FOLDER} && ls -d order running kept 2>/dev/null"):
        raise Failed(f"{version} {direction}: {left} is left behind")

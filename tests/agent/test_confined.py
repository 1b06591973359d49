"""The agent as its unit runs it: a user of its own with the unit's capabilities. What it sees, what it keeps, what it may not.

The kernel's own checks decide here, by setpriv(1). Filters of system calls and hidden folders are systemd's: those are seen in booted
machines (packaging/os/roots_booted.py, tests/lab).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.test_hold import until
from tests.parts.namespace import Namespace

TREE = Path(__file__).resolve().parents[2]
UID = 64_441
"""Nobody's on the machine that runs this."""
BASELINES = sorted((TREE / "baselines").glob("*.toml"))


def _capabilities() -> list[str]:
    unit = (TREE / "packaging/systemd/ringfence-agent.service").read_text()
    named = re.findall(r"^(?:CapabilityBoundingSet|AmbientCapabilities)=(.+)$", unit, re.M)
    assert len(named) == 2 and named[0] == named[1]
    return [each.removeprefix("CAP_").lower() for each in named[0].split()]


def _confined() -> list[str]:
    """What stands before a command that is to run as the unit would run it."""
    kept = ",".join(["-all", *(f"+{each}" for each in _capabilities())])
    words = [f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs"]
    return ["setpriv", *words, f"--bounding-set={kept}", f"--inh-caps={kept}", f"--ambient-caps={kept}"]


def _seen(baseline: Path, config: Path, *before: str) -> dict[str, tuple[str, str]]:
    """What differs, by section and key; without the firewall, which the command asks of the kernel for root alone."""
    command = [*before, sys.executable, "-P", "-m", "agent.start", "diff", str(baseline), "--json"]
    done = subprocess.run(
        [*command, "--config", config],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(TREE)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    found = {f"{each['section']} {each['key']}": each for each in json.loads(done.stdout)}
    return {
        key: (each["wanted"], each["found"])
        for key, each in found.items()
        if each["section"] not in ("firewall", "packages")
    }


def _open_way(folder: Path) -> None:
    """Let everybody through to a folder below /tmp."""
    for each in (folder, *folder.parents):
        if str(each).startswith("/tmp/"):
            each.chmod(0o755)


@pytest.mark.alone  # both look at this machine, which must not change in between
@pytest.mark.parametrize("baseline", BASELINES, ids=lambda path: path.stem)
def test_the_agents_user_sees_what_root_sees(baseline: Path, tmp_path: Path) -> None:
    """But for a few settings of the kernel, which are asked for (`agent.beside.RootsLooks`)."""
    _open_way(tmp_path)
    config = tmp_path / "agent.toml"
    config.write_text(
        f'node = "n1"\nstate_dir = "{tmp_path}/state"\n[controller]\nurl = "https://192.0.2.1:8440"\nca = "/nowhere"\n'
    )
    by_root, by_agent = _seen(baseline, config), _seen(baseline, config, *_confined())
    unseen = [
        key for key, (_, found) in by_agent.items() if found == "?" and by_root.get(key) != by_agent[key]
    ]
    for key in unseen:
        section, _, name = key.partition(" ")
        assert section == "sysctl"
        assert not Path("/proc/sys", *name.split(".")).stat().st_mode & 0o044, name
        by_agent.pop(key)
        by_root.pop(key, None)
    assert by_agent == by_root and by_root


def test_the_agents_user_keeps_the_firewall_and_can_change_nothing_else(tmp_path: Path) -> None:
    _open_way(tmp_path)
    state, config = tmp_path / "state", tmp_path / "agent.toml"
    state.mkdir(mode=0o700)
    os.chown(state, UID, UID)
    config.write_text(
        f'node = "n1"\nstate_dir = "{state}"\n[tpm]\ntcti = "device:/nowhere"\n'
        f'[controller]\nurl = "https://192.0.2.1:8440"\nca = "{tmp_path}/ca.pem"\n'
    )
    code = (
        "import os, sys\n"
        "from agent.start import main\n"
        "for path in ('/etc/shadow', '/etc/passwd', '/usr/bin/sh', '/proc/1/root/etc/shadow', '/proc/sys/kernel/sysrq'):\n"
        "    try: os.close(os.open(path, os.O_WRONLY))\n"
        "    except OSError: continue\n"
        "    sys.exit(f'{path} can be written')\n"
        "try: os.kill(os.getppid(), 0)\n"
        "except PermissionError: main()\n"
        "sys.exit('signals reach others')\n"
    )
    space = Namespace("confined")
    command = [*_confined(), sys.executable, "-P", "-c", code, "run", "--config", config]
    try:
        agent = space.start(*command, log=tmp_path / "log", env={**os.environ, "PYTHONPATH": str(TREE)})

        def said() -> str:
            return (tmp_path / "log").read_text()

        until(lambda: "table inet ringfence {" in space.ruleset() or agent.poll() is not None, 20)
        assert agent.poll() is None, said()
        space.run("nft", "delete", "table", "inet", "ringfence")
        until(lambda: "table inet ringfence {" in space.ruleset(), 5)
        agent.terminate()
        assert agent.wait(20) == 0, said()
        assert {path.lstat().st_uid for path in state.rglob("*")} == {UID}
    finally:
        space.remove()

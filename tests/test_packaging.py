"""What packages install, without building them: units, scripts and files that are there and agree with each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[1]
UNITS = sorted((TREE / "packaging/systemd").iterdir())
SCRIPTS = sorted(path for path in (TREE / "packaging/os").glob("*/p*") if path.is_file())


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_scripts_are_taken_by_the_shell_and_stop_at_the_first_error(path: Path) -> None:
    subprocess.run(["sh", "-n", path], check=True)
    assert "\nset -e\n" in path.read_text()


def test_scripts_enable_and_disable_every_unit_that_wants_to_be() -> None:
    wanting = {unit.name for unit in UNITS if "[Install]" in unit.read_text()} - {
        "ringfence-controller.service"
    }
    for script in ("postinst", "prerm"):
        named = set(
            re.findall(
                r"ringfence-[a-z]+\.(?:service|path)", (TREE / "packaging/os/agent" / script).read_text()
            )
        )
        assert wanting <= named, script
    for unit in UNITS:
        found = re.search(r"^WantedBy=(\S+)$", unit.read_text(), re.M)
        if found and unit.name in wanting:
            assert f"{unit.name}:{found[1]}" in (TREE / "packaging/os/agent/postinst").read_text()


def test_no_script_starts_anything_or_opens_the_fence() -> None:
    for path in SCRIPTS:
        text = path.read_text()
        assert "systemctl start" not in text
        assert not re.search(r"^\s*nft (flush|delete)", text, re.M)


def test_units_run_commands_that_there_are_and_wait_for_their_configuration() -> None:
    for unit in UNITS:
        text = unit.read_text()
        for program, command in re.findall(r"^ExecStart=/usr/bin/(ringfence[a-z-]*) ([a-z-]+)", text, re.M):
            module = {"ringfence-agent": "agent.start", "ringfence-controller": "controller.main"}[program]
            done = subprocess.run(
                [TREE / ".venv/bin/python", "-m", module, command, "--help"],
                cwd=TREE,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{unit.name}: {program} {command}: {done.stderr}"
    assert (
        "ConditionPathExists=/etc/ringfence/agent.toml"
        in (TREE / "packaging/systemd/ringfence-agent.service").read_text()
    )


def test_units_are_what_systemd_understands() -> None:
    """By systemd itself, where it is installed."""
    try:
        done = subprocess.run(["systemd-analyze", "--version"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no systemd-analyze here")
    assert done.returncode == 0
    for unit in UNITS:
        told = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
        wrong = [line for line in told.stderr.splitlines() if "Unknown" in line or "ignoring" in line]
        assert not wrong, f"{unit.name}: {wrong}"

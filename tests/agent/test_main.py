"""The command as people use it: processes, exit codes, output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.rig import baseline, in_own_namespace

TREE = Path(__file__).resolve().parents[2]


def agent(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent.main", *map(str, argv)],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "factory.toml"
    path.write_bytes(baseline(1, 8080))
    return path


def test_check_accepts_what_the_kernel_takes(good: Path) -> None:
    done = agent("check", good)
    assert done.returncode == 0, done.stderr
    assert "the kernel takes the rules of every posture" in done.stdout


@pytest.mark.parametrize("shipped", sorted(Path(TREE / "baselines").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_baselines_pass_the_check(shipped: Path) -> None:
    assert agent("check", shipped).returncode == 0


def test_check_names_file_line_and_key(good: Path) -> None:
    good.write_text(good.read_text().replace("[8080]", '["all"]'))
    done = agent("check", good)
    assert done.returncode == 2
    assert "factory.toml:" in done.stderr
    assert "firewall.inbound[0]" in done.stderr


def test_rendered_rules_are_taken_by_the_nft_program(good: Path, tmp_path: Path) -> None:
    for posture in ("normal", "isolated", "maintenance"):
        done = agent("render", good, "--posture", posture, "--config", tmp_path / "none")
        assert done.returncode == 0, done.stderr

        def load(rules: str = done.stdout) -> int:
            return subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=False).returncode

        assert in_own_namespace(load) == 0
        assert ("ringfence_cut {" in done.stdout) == (posture == "isolated")


def test_diff_tells_and_changes_nothing(good: Path, tmp_path: Path) -> None:
    def job() -> None:
        done = agent("diff", good, "--json", "--config", tmp_path / "none")
        assert done.returncode == 1, done.stderr
        assert {drift["section"] for drift in json.loads(done.stdout)} == {"firewall"}
        assert subprocess.run(["nft", "list", "tables"], capture_output=True, check=True).stdout == b""

    in_own_namespace(job)


def test_status_of_a_node_that_was_never_enrolled(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(
        f'node = "press-1"\nstate_dir = "{tmp_path}/state"\n'
        '[controller]\nurl = "https://192.0.2.10:8440"\nca = "/nowhere"\n'
    )
    done = agent("status", "--config", config, "--json")
    assert done.returncode == 1
    shown = json.loads(done.stdout)
    assert shown["site"] is None
    assert shown["baseline"] == "lock-down"


def test_wrong_usage_is_2() -> None:
    assert agent("check", "/no/such/file").returncode == 2
    assert agent("frobnicate").returncode == 2

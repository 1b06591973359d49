"""The agent's own release: databases that dpkg and rpm wrote, orders and outcomes as the folder's script leaves them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.host import Host
from agent.probes import Surroundings
from agent.probes.agent import DOUBLED, LONGEST_S, RETRY_S, UNTAKEN_S, Probe
from agent.upgrade import ORDERS, OUTCOMES
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace
from tests.parts.packagekit import Dpkg, Rpm, write_status

TOML = '[agent]\nrelease = "1.2.0-1"\n'
BACK = '[agent]\nrelease = "1.2.0-1"\nnewer = "replace"\n'


def _status(folder: Path, version: str, state: str = "installed") -> None:
    write_status(folder, ("ringfence-agent", version, state))


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    _status(folder, "1.2.0-1")
    (folder / ORDERS).mkdir(parents=True)
    status = folder / "var/lib/dpkg/status"
    yield Case(
        toml=TOML,
        around=Surroundings(host=Host(root=folder)),
        spoil=lambda: _status(folder, "1.1.0-1"),
        blind=status.unlink,
        state=lambda: tree_state(folder),
        trace=lambda: tree_trace(folder),
        mends=False,
    )


class Node:
    """A machine whose agent is of one release."""

    def __init__(self, folder: Path, version: str, toml: str = TOML) -> None:
        self.folder = folder
        self.upgrade, self.outcomes = folder / ORDERS, folder / OUTCOMES
        self.upgrade.mkdir(parents=True)
        self.outcomes.mkdir()
        _status(folder, version)
        self.around = Surroundings(host=Host(root=folder))
        self.probe: Probe = probe_of("agent", toml, self.around)

    def look(self, now: float | None = None) -> str:
        """One look with its repair, as the loop does; return what is left, for people."""
        now = time.time() if now is None else now
        drifts = self.probe.observe(now)
        if drifts:
            self.probe.repair(drifts, now)
        return "; ".join(f"{each.wanted} / {each.found}" for each in self.probe.observe(now))

    def ordered(self) -> str:
        path = self.upgrade / "order"
        return path.read_text() if path.exists() else ""

    def taken(self) -> None:
        """The script's first step."""
        (self.upgrade / "order").rename(self.outcomes / "running")

    def over(self, outcome: str, said: str = "so it is") -> None:
        """Its last."""
        (self.outcomes / "running").unlink(missing_ok=True)
        fresh = self.outcomes / "result.new"
        fresh.write_text(f"1.2.0-1\n1.1.0-1\n{outcome}\n{said}\n")
        fresh.rename(self.outcomes / "result")

    def told(self) -> list[str]:
        return [f"{each.severity} {each.kind}" for each in self.probe.notices(0)]


def test_an_older_agent_is_ordered_anew_once_and_known_to_be_on_its_way(tmp_path: Path) -> None:
    node = Node(tmp_path, "1.1.0-1")
    assert node.look() == "1.2.0-1 (ordered) / 1.1.0-1"
    assert node.ordered() == "1.2.0-1\nnewer\n"
    assert oct((node.upgrade / "order").stat().st_mode & 0o777) == "0o600"
    before = (node.upgrade / "order").stat()
    assert node.look() == "1.2.0-1 (ordered) / 1.1.0-1"
    assert (node.upgrade / "order").stat() == before, "ordered once"
    node.taken()
    assert node.look() == "1.2.0-1 (on its way) / 1.1.0-1" and not node.ordered()
    _status(tmp_path, "1.2.0-1", "unpacked")
    assert node.look() == "1.2.0-1 (on its way) / 1.2.0-1, unpacked"
    _status(tmp_path, "1.2.0-1")
    assert node.look() == ""
    node.over("done")
    assert node.look() == ""
    assert node.told() == ["info agent.upgrade-ordered", "info agent.upgraded"]
    assert node.told() == []


def test_the_drift_is_as_old_as_the_wrong_release(tmp_path: Path) -> None:
    node = Node(tmp_path, "1.1.0-1")
    began = time.time()
    assert [each.since for each in node.probe.observe(began)] == [began]
    node.look(began + 1)
    node.taken()
    assert [each.since for each in node.probe.observe(began + 2)] == [began]
    _status(tmp_path, "1.2.0-1")
    assert node.probe.observe(began + 3) == []
    _status(tmp_path, "1.1.0-1")
    assert [each.since for each in node.probe.observe(began + 4)] == [began + 4]


@pytest.mark.parametrize(
    ("around", "why"),
    [
        ({"on_trial": True}, "once this baseline is confirmed"),
        ({"posture": "isolated"}, "not while the node is isolated"),
    ],
)
def test_nothing_is_ordered_on_trial_or_in_isolation(
    tmp_path: Path, around: dict[str, object], why: str
) -> None:
    node = Node(tmp_path, "1.1.0-1")
    node.probe.around = Surroundings(host=node.around.host, **around)  # type: ignore[arg-type]
    assert node.look() == f"1.2.0-1 ({why}) / 1.1.0-1"
    assert not node.ordered()
    node.probe.around = node.around
    node.look()
    assert node.ordered()


def test_a_newer_agent_stays_unless_the_baseline_says_otherwise(tmp_path: Path) -> None:
    node = Node(tmp_path, "1.10.0-1")
    assert "an older agent is put back" in node.look() and not node.ordered()
    node.probe = probe_of("agent", BACK, node.around)
    assert node.look() == "1.2.0-1 (ordered) / 1.10.0-1"
    assert node.ordered() == "1.2.0-1\nolder\n"


def test_what_failed_is_tried_again_later_and_later(tmp_path: Path) -> None:
    node = Node(tmp_path, "1.1.0-1")
    now = time.time()
    node.look(now)
    node.taken()
    node.over("failed", "E: no such version")
    at = (node.outcomes / "result").stat().st_mtime
    assert node.look(at + 1) == (
        "1.2.0-1 (tried again 30 minutes after the last time: E: no such version) / 1.1.0-1"
    )
    assert node.told() == ["info agent.upgrade-ordered", "warning agent.upgrade-failed"]
    node.look(at + 2 * RETRY_S - 1)
    assert not node.ordered()
    node.look(at + 2 * RETRY_S)
    assert node.ordered()
    for _ in range(10):
        (node.upgrade / "order").unlink(missing_ok=True)
        node.over("failed", "E: no such version")
        at = (node.outcomes / "result").stat().st_mtime
        node.look(at + 1)
    node.look(at + RETRY_S * 2**DOUBLED - 1)
    assert not node.ordered()
    node.look(at + RETRY_S * 2**DOUBLED)
    assert node.ordered()


@pytest.mark.parametrize("outcome", ["back", "lost"])
def test_a_release_that_did_not_come_up_is_not_tried_again_and_another_one_is(
    tmp_path: Path, outcome: str
) -> None:
    node = Node(tmp_path, "1.1.0-1")
    node.look()
    node.taken()
    node.over(outcome, "it did not come up")
    year = time.time() + 365 * 86400
    assert node.look(year) == "1.2.0-1 (not tried again: it did not come up) / 1.1.0-1"
    assert not node.ordered()
    assert node.told()[-1].startswith("critical agent.upgrade-")
    node.probe = probe_of("agent", TOML.replace("1.2.0-1", "1.2.1-1"), node.around)
    node.look()
    assert node.ordered() == "1.2.1-1\nnewer\n"


def test_an_outcome_is_told_by_who_saw_it_come_and_by_no_other(tmp_path: Path) -> None:
    node = Node(tmp_path, "1.2.0-1")
    node.over("done")
    assert node.look() == "" and node.told() == []


def test_people_are_told_that_nobody_takes_an_order(tmp_path: Path) -> None:
    node = Node(tmp_path, "1.1.0-1")
    node.look()
    at = (node.upgrade / "order").stat().st_mtime
    assert "nobody takes" not in node.look(at + UNTAKEN_S - 1)
    assert "nobody takes the order: look at ringfence-upgrade.path" in node.look(at + UNTAKEN_S)


def test_a_run_that_was_cut_off_is_over(tmp_path: Path) -> None:
    """By the machine's end, or because it took longer than systemd lets it."""
    node = Node(tmp_path, "1.1.0-1")
    now = time.time()
    running = node.outcomes / "running"
    booted = now - Clock(tmp_path / "sys").boot_s()
    for at in (booted - 5, now - LONGEST_S):
        running.write_text("1.2.0-1\nnewer\n")
        os.utime(running, (at, at))
        node.look(now)
        assert node.ordered()
        (node.upgrade / "order").unlink()
    running.touch()
    assert "on its way" in node.look(now)


def test_an_order_that_nobody_has_taken_goes_with_its_baseline(tmp_path: Path) -> None:
    node = Node(tmp_path, "1.1.0-1")
    node.look()
    node.probe.undo()
    assert not node.ordered()
    node.probe.undo()


@pytest.mark.parametrize(
    "content", [b"", b"1.2.0-1\n", b"1.2.0-1\n1.1.0-1\nperhaps\nwhat\n", b"\xff\xfe\n\n\n\n", b"x" * 100_000]
)
def test_an_outcome_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    node = Node(tmp_path, "1.1.0-1")
    (node.outcomes / "result").write_bytes(content)
    assert "ordered" in node.look()
    assert node.told() == ["info agent.upgrade-ordered"]


def test_an_agent_that_is_no_package_is_told_and_left_alone(tmp_path: Path) -> None:
    node = Node(tmp_path, "1.1.0-1")
    status = tmp_path / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace("ringfence-agent", "ringfence"))
    assert node.look() == "1.2.0-1 / not installed as a package"
    assert not node.ordered()


def test_dpkgs_own_and_rpms_own_database_are_understood(tmp_path: Path) -> None:
    for kind in (Dpkg, Rpm):
        made = kind(tmp_path / kind.__name__)
        version = "1.1.0-1" if isinstance(made, Dpkg) else "1.1.0"  # rpmbuild puts the release behind it
        made.install("ringfence-agent", version, {"usr/lib/ringfence-agent/x": b"x"})
        probe = probe_of("agent", TOML, Surroundings(host=Host(root=made.root)))
        assert [(each.wanted, each.found) for each in probe.observe(0)] == [("1.2.0-1", "1.1.0-1")]


@pytest.mark.parametrize(
    "release", ["-1", "", "1.2 0", "1.2;reboot", "latest", "1.2\\n3", "$(id)", "1" * 129]
)
def test_a_release_that_the_script_would_not_take_is_refused(release: str) -> None:
    with pytest.raises(Rejected, match=r"agent\.release"):
        section_of("agent", f'[agent]\nrelease = "{release}"\n')

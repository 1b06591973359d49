"""USB devices and accounts of a grant end on time with the agent dead: `ringfence-agent end-grants`, as its unit runs it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent import grants
from agent.grantends import GRACE_S, found
from agent.grants import Clock, Kept
from agent.probes import parse_sections
from agent.store import State, fresh_state
from contract.baseline import parse_baseline
from contract.directive import Directive
from contract.grant import Grant
from tests.agent.grantrun import RULES, grant
from tests.agent.probes.test_access import _files, expiry
from tests.agent.rig import NODE, Rig, in_own_namespace
from tests.agent.test_hold import until
from tests.parts.signing import minimal_baseline
from tests.parts.usbtree import STORAGE_STICK, UsbTree

TREE = Path(__file__).resolve().parents[2]
MORE = """
[usb]
default = "block"

[[access.usb]]
ids = ["0951:1666"]
interfaces = ["08:*:*"]
max_s = 600
reason = "the technician's stick"

[[access.accounts]]
names = ["vendor"]
max_s = 600
reason = "the technician's account"
"""
BASELINE = minimal_baseline("factory", 1, extra=RULES + MORE)
WHAT = {"usb": ["0951:1666"], "accounts": ["vendor"]}


def ending(folder: Path) -> subprocess.Popen[bytes]:
    """Start what runs beside the agent."""
    (folder / "agent.toml").write_text(
        f'node = "{NODE}"\nstate_dir = "{folder}/state"\n[controller]\nurl = "https://192.0.2.10:8440"\n'
        f'ca = "/nowhere"\n[roots]\nroot = "{folder}/root"\nsysfs = "{folder}/sys"\n'
    )
    command = [sys.executable, "-m", "agent.start", "end-grants", "--config", str(folder / "agent.toml")]
    return subprocess.Popen(command, cwd=TREE, stderr=subprocess.PIPE)


@pytest.mark.usefixtures("in_both")
def test_a04_a_stick_and_an_account_end_on_time_with_the_agent_dead(tmp_path: Path) -> None:
    tree = UsbTree(tmp_path / "sys")
    tree.run()
    (tmp_path / "root").mkdir()
    _files(tmp_path / "root", "1")
    mark = tmp_path / "state/grants-open"

    def open_both() -> float:
        rig.start()
        rig.adopt(BASELINE, 1, 1)
        name.append(tree.plug(STORAGE_STICK))
        rig.loop.wake("usb")
        ends = time.time() + 7
        asked = grant(7, **WHAT)
        rig.direct(rig.signed(2, wanted=rig.kit.wanted("factory", 1), grants=[asked]))
        until(lambda: tree.authorized(name[0]) and expiry(tmp_path / "root") != "1", 20)
        assert mark.exists()
        rig.stop()
        return ends

    def back_again() -> None:
        rig.start()
        closed = [e.detail for e in rig.events() if e.kind == "grant.closed"]
        assert [each["why"] for each in closed] == ["ended"], "told when the agent is back"
        assert not mark.exists()
        rig.stop()

    name: list[str] = []
    rig = Rig(tmp_path, root=tmp_path / "root")
    ends = in_own_namespace(open_both)
    beside = ending(tmp_path)
    try:
        while time.time() < ends - 1.0:
            assert tree.authorized(name[0]) and expiry(tmp_path / "root") != "1", "not before its time"
            time.sleep(0.2)
        assert beside.wait(60) == 0
        assert time.time() >= ends
        assert not tree.authorized(name[0]) and expiry(tmp_path / "root") == "1"
        assert not mark.exists(), "nothing is waited for any more"
    finally:
        beside.kill()
        beside.communicate()
        tree.close()
    in_own_namespace(back_again)


NOW = 1_700_000_000.0


def state_of(*asked: Grant, at: Clock) -> State:
    """A node that has these open."""
    kept = {each.id: replace(grants.begun(each, at), open=True) for each in asked}
    directive = Directive(
        node=NODE, number=1, issued=NOW, expires=NOW + 60, posture="normal", grants=list(asked)
    )
    return replace(fresh_state(NOW), directive=directive, grants=kept)


def test_the_agent_comes_first_and_each_grant_is_waited_for() -> None:
    sections = parse_sections(parse_baseline(BASELINE, file="factory.toml"))
    begin = Clock(NOW, 1000.0, "b")
    short, long = grant(60, starts=NOW, **WHAT), grant(600, number=2, starts=NOW, **WHAT)
    state = state_of(short, long, at=begin)

    def at(seconds: float) -> tuple[list[int], list[int], float]:
        seen = found(state, sections, Clock(NOW, 1000.0 + seconds, "b"), {})
        return [each.id for each in seen.over], [each.id for each in seen.still], seen.left_s

    assert at(1) == ([], [1, 2], 59 + GRACE_S)
    assert at(60) == ([], [2], GRACE_S)
    assert at(60 + GRACE_S) == ([1], [2], 540.0)
    assert at(600 + GRACE_S) == ([1, 2], [], 0.0)


def test_a04_after_a_reboot_the_end_does_not_move_with_each_look() -> None:
    sections = parse_sections(parse_baseline(BASELINE, file="factory.toml"))
    state = state_of(grant(600, starts=NOW, **WHAT), at=Clock(NOW, 1000.0, "the boot before"))
    resumed: dict[int, Kept] = {}
    left = [
        found(state, sections, Clock(NOW, seconds, "this boot"), resumed).left_s for seconds in (5.0, 100.0)
    ]
    assert left == [600.0 + GRACE_S, 505.0 + GRACE_S], "the wall clock stands still, or somebody sets it back"
    assert found(state, sections, Clock(NOW, 700.0, "this boot"), resumed).over


def test_the_units_run_it_when_the_agent_has_marked_its_folder() -> None:
    units = TREE / "packaging/systemd"
    assert "PathExists=/var/lib/ringfence/grants-open\n" in (units / "ringfence-grants.path").read_text()
    service = (units / "ringfence-grants.service").read_text()
    assert "ExecStart=/usr/bin/ringfence-agent end-grants\n" in service
    assert "ringfence-agent.service" not in service, "it must outlive the agent"

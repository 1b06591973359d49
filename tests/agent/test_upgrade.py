"""Another release of the agent, ordered by a signed baseline; and what the packaged script makes of orders.

That package managers bring it, and take it back where it does not come up, is seen in booted Debians: packaging/os/roots_upgrade.py.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.upgrade import ORDERS, OUTCOMES, Result, Upgrade
from tests.agent.rig import Rig, baseline, in_own_namespace
from tests.agent.test_hold import until
from tests.parts.packagekit import write_status

SCRIPT = Path(__file__).parents[2] / "packaging/os/agent/upgrade"
WANTED = '[agent]\nrelease = "1.2.0-1"\n'


def _machine(folder: Path, version: str) -> Path:
    """A root with dpkg's word for the agent's release."""
    root = folder / "root"
    write_status(root, ("ringfence-agent", version, "installed"))
    return root


def test_a_release_is_ordered_when_its_baseline_is_confirmed_and_no_sooner(tmp_path: Path) -> None:
    root = _machine(tmp_path, "1.1.0-1")
    order = root / ORDERS / "order"

    def job() -> None:
        rig = Rig(tmp_path, root=root, confirm_s=300.0)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        wanted = rig.publish(baseline(2, 8080, extra=WANTED), 2)
        rig.direct(rig.signed(2, wanted=wanted))
        rig.fetch(wanted)
        drift = rig.call(lambda: rig.loop.machine.drifts["agent"])
        assert [each.wanted for each in drift] == ["1.2.0-1 (once this baseline is confirmed)"]
        rig.call(lambda: rig.loop.wake("agent"))
        rig.call(lambda: None)
        assert not order.exists(), "it may be taken back within seconds"
        rig.answer()
        until(order.exists)
        assert order.read_text() == "1.2.0-1\nnewer\n"
        until(lambda: "agent.upgrade-ordered" in rig.kinds())
        rig.stop()

    in_own_namespace(job)


def test_an_isolated_node_orders_nothing_and_one_that_is_let_go_does(tmp_path: Path) -> None:
    root = _machine(tmp_path, "1.1.0-1")
    order = root / ORDERS / "order"

    def job() -> None:
        rig = Rig(tmp_path, root=root)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        wanted = rig.publish(baseline(2, 8080, extra=WANTED), 2)
        rig.direct(rig.signed(2, posture="isolated", wanted=wanted))
        rig.fetch(wanted)
        rig.answer()
        rig.loop.wake("agent")
        until(lambda: "isolated" in str(rig.call(lambda: rig.loop.machine.drifts.get("agent"))))
        assert not order.exists()
        rig.direct(rig.signed(3, wanted=wanted))
        rig.loop.wake("agent")
        until(order.exists)
        rig.stop()

    in_own_namespace(job)


def _script(root: Path) -> subprocess.CompletedProcess[str]:
    for folder in (ORDERS, OUTCOMES):
        (root / folder).mkdir(parents=True, exist_ok=True)
    command = ["sh", SCRIPT, root / ORDERS, root / OUTCOMES]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def _left(root: Path) -> set[str]:
    """The names of what lies in both folders."""
    return {path.name for folder in (ORDERS, OUTCOMES) for path in (root / folder).iterdir()}


@pytest.mark.parametrize(
    "order",
    [
        "", "\n", "1.2.0-1\n", "1.2.0-1\nsideways\n", "-o APT::Get=1\nnewer\n", "1.2 0\nnewer\n", "1;reboot\nnewer\n",
        "$(reboot)\nnewer\n", "latest\nnewer\n", "../../x\nolder\n", "1.2\\\nnewer\n", "1\tx\nnewer\n", "1*\nnewer\n",
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_read_is_over_at_once(tmp_path: Path, order: str) -> None:
    (tmp_path / ORDERS).mkdir(parents=True)
    (tmp_path / ORDERS / "order").write_text(order)
    done = _script(tmp_path)
    assert done.returncode == 1, done.stderr
    result = _result(tmp_path)
    assert (result.outcome, result.said) == ("failed", "an order that cannot be read")
    assert _left(tmp_path) == {"log", "result"}, "nothing is left to be taken again"


def test_a07_an_order_is_read_and_nothing_is_written_where_the_agent_may_write(tmp_path: Path) -> None:
    """The folder of orders is the agent's: links in it lead root nowhere."""
    (tmp_path / ORDERS).mkdir(parents=True)
    (tmp_path / "theirs").write_text("1.2.0-1\nnewer\n")
    for name in ("order", "log", "running", "result", "result.new", "asked"):
        (tmp_path / ORDERS / name).symlink_to(tmp_path / "theirs")
    assert _script(tmp_path).returncode == 1
    assert _result(tmp_path).said == "an order that cannot be read"
    assert (tmp_path / "theirs").read_text() == "1.2.0-1\nnewer\n"
    assert not (tmp_path / ORDERS / "order").is_symlink()


def test_what_a_script_of_an_older_release_wrote_is_heard(tmp_path: Path) -> None:
    """It brought this release, and knows one folder."""
    (tmp_path / ORDERS).mkdir(parents=True)
    (tmp_path / ORDERS / "running").write_text("1.2.0-1\n")
    assert Upgrade(tmp_path).running_since() is not None
    (tmp_path / ORDERS / "result").write_text("1.2.0-1\n1.1.0-1\ndone\n1.1.0-1\n")
    assert _result(tmp_path).outcome == "done"


def test_without_a_package_or_an_order_nothing_is_done(tmp_path: Path) -> None:
    """No package of that name is installed where tests run."""
    assert _script(tmp_path).returncode == 1
    assert not _left(tmp_path)
    Upgrade(tmp_path).order("1.2.0-1", older=False)
    assert _script(tmp_path).returncode == 1
    result = _result(tmp_path)
    assert (result.version, result.outcome) == ("1.2.0-1", "failed")
    assert result.said == "ringfence-agent is not installed as a package"


def _result(root: Path) -> Result:
    result = Upgrade(root).result()
    assert result is not None
    return result

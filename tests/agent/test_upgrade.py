"""Another release of the agent, ordered by a signed baseline; and what the packaged script makes of orders.

That package managers bring it, and take it back where it does not come up, is seen in booted Debians: packaging/os/roots_upgrade.py.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.upgrade import FOLDER, Result, Upgrade
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
    order = root / FOLDER / "order"

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
    order = root / FOLDER / "order"

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


def _script(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", SCRIPT, folder], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    "order",
    [
        "", "\n", "1.2.0-1\n", "1.2.0-1\nsideways\n", "-o APT::Get=1\nnewer\n", "1.2 0\nnewer\n", "1;reboot\nnewer\n",
        "$(reboot)\nnewer\n", "latest\nnewer\n", "../../x\nolder\n", "1.2\\\nnewer\n", "1\tx\nnewer\n", "1*\nnewer\n",
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_read_is_over_at_once(tmp_path: Path, order: str) -> None:
    (tmp_path / "order").write_text(order)
    done = _script(tmp_path)
    assert done.returncode == 1, done.stderr
    result = _result(tmp_path)
    assert (result.outcome, result.said) == ("failed", "an order that cannot be read")
    assert {path.name for path in tmp_path.iterdir()} == {"log", "result"}, (
        "nothing is left to be taken again"
    )


def test_without_a_package_or_an_order_nothing_is_done(tmp_path: Path) -> None:
    """No package of that name is installed where tests run."""
    assert _script(tmp_path).returncode == 1
    assert not list(tmp_path.iterdir())
    Upgrade(tmp_path / "root").order("1.2.0-1", older=False)
    folder = tmp_path / "root" / FOLDER
    assert _script(folder).returncode == 1
    result = _result(folder)
    assert (result.version, result.outcome) == ("1.2.0-1", "failed")
    assert result.said == "ringfence-agent is not installed as a package"


def _result(folder: Path) -> Result:
    root = folder / "seen"
    (root / FOLDER).parent.mkdir(parents=True)
    (root / FOLDER).symlink_to(folder)
    result = Upgrade(root).result()
    (root / FOLDER).unlink()
    subprocess.run(["rm", "-r", root], check=True)
    assert result is not None
    return result

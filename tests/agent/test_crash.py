"""kill -9 at every step (ATTACKS a01): real process, real SIGKILL, real rules left in the kernel."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.store import Store
from tests.agent.rig import CONTROLLER, NODE, Rig, in_own_namespace, nft
from tests.agent.test_hold import until

TREE = Path(__file__).resolve().parents[2]
KEY = bytes(range(32))
STEPS = {"apply": 10, "isolate": 9}
"""At least so many kills; the run without one says how many steps there are."""


def play(folder: Path, scene: str, kill_at: int) -> tuple[int, str]:
    """Run a scene in the calling thread's namespace; returns (exit code, output)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.agent.crash", str(folder), KEY.hex(), scene, str(kill_at)],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def steps_of(scene: str, folder: Path) -> int:
    code, output = in_own_namespace(lambda: play(folder, scene, -1))
    assert code == 0, output
    return int(output.split()[-1])


@pytest.fixture
def key() -> Iterator[Ed25519PrivateKey]:
    yield Ed25519PrivateKey.from_private_bytes(KEY)


def closed() -> bool:
    """Default deny stands in the kernel, as the witness prints it, with the way to the controller."""
    rules = nft("list", "table", "inet", "ringfence")
    return CONTROLLER in rules and "hook input" in rules and "hook forward" in rules and "drop" in rules


@pytest.mark.parametrize("scene", ["apply", "isolate"])
def test_a01_kill_at_every_step_leaves_a_fence_and_a_known_state(
    scene: str, tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    steps = steps_of(scene, tmp_path / "whole")
    assert steps >= STEPS[scene]

    def one(kill_at: int) -> None:
        folder = tmp_path / f"{kill_at}"
        code, output = play(folder, scene, kill_at)
        assert code == -9, f"step {kill_at}: {output}"
        assert closed(), f"step {kill_at}: open after the kill"
        was_cut = "ringfence_cut" in nft("list", "tables")
        state = Store(folder / "state", NODE).load_state()
        assert state is not None
        rig = Rig(folder, key=key, confirm_s=0.3)
        rig.start()
        rules = nft("list", "table", "inet", "ringfence")
        assert closed(), f"step {kill_at}: open after the restart"
        cut = "ringfence_cut" in nft("list", "tables")
        if scene == "isolate":
            # On disk means in force, at once; not on disk means never ordered.
            assert cut == (state.directive_number == 2), f"step {kill_at}"
            assert cut or not was_cut, f"step {kill_at}: an isolation that was in force was forgotten"
            assert "8080" in rules or cut
        else:
            wanted = (
                "9090" if state.pending or (state.last_good and state.last_good.ref.version == 2) else "8080"
            )
            other = {"9090": "8080", "8080": "9090"}[wanted]
            assert wanted in rules and other not in rules, f"step {kill_at}"
            if state.pending is not None:
                # Nobody confirms: the deadline that was written down holds, and last-good returns.
                until(lambda: rig.loop.hold.state.pending is None)
                until(lambda: "8080" in nft("list", "table", "inet", "ringfence"))
                assert "baseline.reverted" in rig.kinds()
        rig.stop()

    for kill_at in range(1, steps + 1):
        in_own_namespace(lambda k=kill_at: one(k))  # type: ignore[misc]


def test_a01_kill_at_every_step_of_a_contest_leaves_a_fence_and_forgets_no_isolation(
    tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    steps = steps_of("contest", tmp_path / "whole")
    assert steps >= 12

    def one(kill_at: int) -> None:
        folder = tmp_path / f"{kill_at}"
        code, output = play(folder, "contest", kill_at)
        assert code == -9, f"step {kill_at}: {output}"
        was_cut = "ringfence_cut" in nft("list", "tables")
        state = Store(folder / "state", NODE).load_state()
        assert state is not None
        assert not was_cut or state.self_isolated, "on disk before the machine is touched"
        rig = Rig(folder, key=key)
        rig.start()
        assert closed(), f"step {kill_at}: open after the restart"
        until(lambda: rig.loop.hold.state.self_isolated == rig.loop.stance.reason)
        tables = nft("list", "tables")
        assert "table inet ringfence_guard" in tables
        cut = "table inet ringfence_cut" in tables
        assert cut == bool(rig.loop.hold.state.self_isolated)
        assert cut or not state.self_isolated, "on disk means in force"
        rig.stop()

    for kill_at in range(1, steps + 1):
        in_own_namespace(lambda k=kill_at: one(k))  # type: ignore[misc]


def test_a01_baseline_that_kills_the_agent_is_taken_back_after_some_starts(
    tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    def job() -> None:
        code, output = play(tmp_path, "apply", 7)
        assert code == -9, output
        for _ in range(5):
            rig = Rig(tmp_path, key=key)
            rig.start()
            version = rig.loop.hold.held.ref.version if rig.loop.hold.held.ref else 0
            rig.stop()
            if version == 1:
                return
        raise AssertionError("still on the baseline that kills")

    in_own_namespace(job)

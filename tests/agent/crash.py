"""A node that kills itself (SIGKILL) at the k-th step of a scene: `python -m tests.agent.crash FOLDER KEY SCENE K`.

Steps are counted where state reaches the disk and where rules reach the kernel, before and after each. Prints
the number of the last step reached, so that a run without a kill tells how many there are. Runs in the
network namespace it is started in.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.firewall.kept import Kept
from agent.netfilter import Cut, Netfilter
from agent.store import State, Store
from tests.agent.rig import Rig, baseline


class Steps:
    """Counts, and kills at the wanted one."""

    count = 0
    kill_at = -1
    armed = False


def step() -> None:
    """One instant at which the power may go."""
    if Steps.armed:
        Steps.count += 1
        if Steps.count == Steps.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class DyingStore(Store):
    """A store that may not live through a write."""

    def save_state(self, state: State) -> None:
        step()
        super().save_state(state)
        step()


class DyingNetfilter(Netfilter):
    """Rules that may be the last thing the agent did."""

    def load(self, text: str) -> None:
        step()
        super().load(text)
        step()

    def cut_now(self, cut: Cut) -> tuple[int, int]:
        step()
        done = super().cut_now(cut)
        step()
        return done

    def flush_conntrack(self, kept: Kept) -> int:
        step()
        return super().flush_conntrack(kept)

    def kill_sockets(self, kept: Kept) -> int:
        step()
        return super().kill_sockets(kept)


def until_stands(table: str) -> None:
    """Wait for a table of family inet."""
    while subprocess.run(["nft", "list", "table", "inet", table], capture_output=True).returncode:
        time.sleep(0.05)


def main() -> None:
    """Play one scene."""
    folder, key, scene, kill_at = Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    rig = Rig(
        folder, store=DyingStore, netfilter=DyingNetfilter, key=Ed25519PrivateKey.from_private_bytes(key)
    )
    rig.start()
    rig.adopt(baseline(1, 8080), 1, 1)
    if scene == "contest":
        before = [(time.time() - ago, "inet ringfence", "somebody") for ago in (20.0, 10.0)]
        rig.call(lambda: rig.loop.hold.change(healings=before))
    Steps.kill_at, Steps.armed = kill_at, True
    if scene == "apply":
        wanted = rig.publish(baseline(2, 9090), 2)
        rig.direct(rig.signed(2, wanted=wanted))
        rig.fetch(wanted)
        step()
        rig.answer()
    elif scene == "isolate":
        rig.direct(rig.signed(2, posture="isolated", wanted=rig.kit.wanted("factory", 1)))
    elif scene == "contest":
        subprocess.run(["nft", "flush ruleset"], check=True)
        rig.loop.wake("firewall")
        while not rig.loop.hold.state.self_isolated:
            time.sleep(0.02)
        until_stands("ringfence_cut")
        rig.call(lambda: None)
    step()
    print(Steps.count)
    rig.stop()


if __name__ == "__main__":
    main()

"""A node that kills itself (SIGKILL) at the k-th step of a scene: `python -m tests.agent.crash FOLDER KEY SCENE K`.

Steps are counted where state reaches the disk and where rules reach the kernel, before and after each. Prints
the number of the last step reached, so that a run without a kill tells how many there are. Runs in the
network namespace it is started in.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.firewall.flows import Peer
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

    def cut_now(self, cut: Cut, keep: Iterable[Peer]) -> tuple[int, int]:
        step()
        done = super().cut_now(cut, keep)
        step()
        return done


def main() -> None:
    """Play one scene."""
    folder, key, scene, kill_at = Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    rig = Rig(
        folder, store=DyingStore, netfilter=DyingNetfilter, key=Ed25519PrivateKey.from_private_bytes(key)
    )
    rig.start()
    rig.adopt(baseline(1, 8080), 1, 1)
    Steps.kill_at, Steps.armed = kill_at, True
    if scene == "apply":
        wanted = rig.publish(baseline(2, 9090), 2)
        rig.direct(rig.signed(2, wanted=wanted))
        rig.fetch(wanted)
        step()
        rig.answer()
    elif scene == "isolate":
        rig.direct(rig.signed(2, posture="isolated", wanted=rig.kit.wanted("factory", 1)))
    step()
    print(Steps.count)
    rig.stop()


if __name__ == "__main__":
    main()

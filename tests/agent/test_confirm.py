"""A pending baseline becomes last-good only when its rules are in force; the kernel refuses them after the dry run."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.agent.rig import Rig, baseline, in_own_namespace, nft
from tests.agent.test_hold import until

CHAINS_AT_A_HOOK = 1023
"""The kernel takes so many (MAX_HOOK_COUNT); rules and guard have one each."""


def fill(number: int = CHAINS_AT_A_HOOK - 2) -> None:
    """Take every place at the hook for incoming packets, so that no table can be made anew beside the one that it replaces."""
    chains = "".join(f"chain c{n} {{ type filter hook input priority 9; }}\n" for n in range(number))
    subprocess.run(["nft", "-f", "-"], input=f"table inet full {{\n{chains}}}\n", text=True, check=True)


def narrow(version: int, port: int, **changes: str) -> bytes:
    """A baseline whose addresses are of another kind: its table cannot be changed in part."""
    return baseline(version, port, **changes).replace(b"10.0.0.0/8", b"10.0.0.1")


def pending(rig: Rig) -> int:
    """Return the version that waits for its confirmation; 0 for none."""
    slot = rig.loop.hold.state.pending
    return slot.ref.version if slot else 0


def last_good(rig: Rig) -> int:
    """Return the version that is confirmed."""
    slot = rig.loop.hold.state.last_good
    return slot.ref.version if slot else 0


def apply(rig: Rig, raw: bytes) -> None:
    """Direct, fetch and apply version 2, and have a report of it answered."""
    rig.direct(rig.signed(2, wanted=rig.publish(raw, 2)))
    rig.fetch(rig.kit.wanted("factory", 2))
    rig.answer()


def test_a_baseline_whose_rules_did_not_load_is_confirmed_only_when_they_have(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path, confirm_s=300.0)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        fill()
        apply(rig, narrow(2, 9090))
        assert "flags interval" in nft("list", "table", "inet", "ringfence"), "still that of the old rules"
        assert (pending(rig), last_good(rig)) == (2, 1)
        assert "firewall.repair-failed" in rig.kinds()
        assert "baseline.confirmed" not in rig.kinds()[rig.kinds().index("firewall.repair-failed") :]
        subprocess.run(["nft", "delete", "table", "inet", "full"], check=True)
        rig.loop.wake("firewall")
        until(lambda: last_good(rig) == 2, 20)
        assert "flags interval" not in nft("list", "table", "inet", "ringfence")
        rig.stop()

    in_own_namespace(job)


def test_a_baseline_whose_rules_never_load_is_taken_back(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path, confirm_s=6.0)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        fill()
        apply(rig, narrow(2, 9090))
        until(lambda: "baseline.reverted" in rig.kinds(), 30)
        assert last_good(rig) == 1
        # On its own thread: what is just being written would be seen twice.
        [told] = rig.call(lambda: [each for each in rig.events() if each.kind == "baseline.reverted"])
        assert told.detail["code"] == "baseline.not-in-force"
        assert "inet ringfence" in told.summary
        rig.answer()
        assert last_good(rig) == 1
        assert "8080" in nft("list", "table", "inet", "ringfence")
        rig.stop()

    in_own_namespace(job)


def test_a_baseline_that_only_observes_needs_no_rules_in_force(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        fill()
        observing = narrow(2, 9090).replace(
            b"[firewall.zones", b'[firewall]\nmode = "observe"\n[firewall.zones', 1
        )
        apply(rig, observing)
        until(lambda: last_good(rig) == 2, 20)
        rig.stop()

    in_own_namespace(job)

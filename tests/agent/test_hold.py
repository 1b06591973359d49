"""Baselines, directives and lost state, on a real kernel and a real disk."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.store import Damaged, Store
from contract.directive import Response, WantedBaseline
from tests.agent.rig import CONTROLLER, NODE, Rig, baseline, in_own_namespace, nft


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)


def locked_down() -> bool:
    """The controller, default deny, and no port."""
    rules = nft("list", "table", "inet", "ringfence")
    return CONTROLLER in rules and "8080" not in rules and "9090" not in rules and "drop" in rules


def test_first_start_holds_lock_down_rules(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        assert locked_down()
        assert "state.new" in rig.kinds()
        rig.stop()
        assert locked_down(), "stopping must not open anything"

    in_own_namespace(job)


def test_baseline_is_applied_confirmed_and_held_over_a_restart(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        assert "8080" in nft("list", "table", "inet", "ringfence")
        assert rig.loop.hold.state.pending is None
        assert rig.loop.hold.state.last_good is not None
        rig.stop()
        nft("flush", "ruleset")
        rig.start()
        assert "8080" in nft("list", "table", "inet", "ringfence")
        assert {"baseline.applied", "baseline.confirmed"} <= set(rig.kinds())
        rig.stop()

    in_own_namespace(job)


def test_baseline_that_lets_no_report_through_is_taken_back(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path, confirm_s=0.3)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        wanted = rig.publish(baseline(2, 9090), 2)
        rig.direct(rig.signed(2, wanted=wanted))
        rig.fetch(wanted)
        assert "9090" in nft("list", "table", "inet", "ringfence")
        until(lambda: "baseline.reverted" in rig.kinds())
        # Written down first, so that a crash in between ends in last-good too; the kernel follows in the same pass.
        until(lambda: "8080" in nft("list", "table", "inet", "ringfence"))
        assert "9090" not in nft("list", "table", "inet", "ringfence")
        time.sleep(0.5)
        assert rig.kinds().count("baseline.applied") == 2, "not tried again under the same directive"
        rig.stop()

    in_own_namespace(job)


def test_answer_in_the_session_from_before_confirms_nothing(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        session = rig.call(rig.loop.session_opened)
        wanted = rig.publish(baseline(1, 8080), 1)
        rig.direct(rig.signed(1, wanted=wanted))
        rig.fetch(wanted)
        sha = bytes.fromhex(wanted.sha256)
        rig.call(lambda: rig.loop.answered(session, named_pending=sha, events_acked=0, healed=0))
        assert rig.loop.hold.state.pending is not None
        later = rig.call(rig.loop.session_opened)
        rig.call(lambda: rig.loop.answered(later, named_pending=sha, events_acked=0, healed=0))
        assert rig.loop.hold.state.pending is None
        rig.stop()

    in_own_namespace(job)


def test_baseline_the_kernel_or_a_probe_refuses_changes_nothing(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        before = nft("list", "ruleset")
        wanted = rig.publish(baseline(2, 9090, extra="[no_such_probe]\nx = 1\n"), 2)
        rig.direct(rig.signed(2, wanted=wanted))
        rig.fetch(wanted)
        assert nft("list", "ruleset") == before
        refused = [e for e in rig.events() if e.kind == "baseline.refused"]
        assert refused[-1].detail["code"] == "baseline.key"
        rig.stop()

    in_own_namespace(job)


@pytest.mark.parametrize("damage", ["deleted", "truncated", "flipped", "foreign"])
def test_a02_damaged_state_means_lock_down_never_open(tmp_path: Path, damage: str) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 7)
        rig.stop()
        state = Path(rig.config.state_dir)
        path = state / "state"
        if damage == "deleted":
            shutil.rmtree(state)
        elif damage == "truncated":
            path.write_bytes(path.read_bytes()[:-9])
        elif damage == "flipped":
            raw = bytearray(path.read_bytes())
            raw[-1] ^= 1
            path.write_bytes(raw)
        else:
            other = Store(tmp_path / "other", "another-node")
            found = rig.store.load_state()
            assert found is not None
            other.save_state(found)
            shutil.copy(tmp_path / "other" / "state", path)
        rig.start()
        assert locked_down()
        assert ("state.new" if damage == "deleted" else "state.damaged") in rig.kinds()
        assert rig.loop.hold.state.last_good is None
        if damage != "deleted":
            assert rig.loop.stance.posture == "isolated", "cut off until a directive says otherwise"
            assert "ringfence_cut" in nft("list", "tables")
            assert (state / "state.damaged").exists()
        # An order from before the loss, however well signed, opens nothing.
        old = rig.signed(8, wanted=rig.kit.wanted("factory", 1), issued=time.time() - 3000, lifetime_s=80_000)
        rig.direct(old)
        assert rig.loop.hold.state.directive is None
        assert locked_down()
        rig.stop()

    in_own_namespace(job)


def test_a02_state_file_under_another_name_or_node_is_damaged(tmp_path: Path) -> None:
    rig_store = Store(tmp_path / "a", NODE)
    from agent.store import fresh_state

    rig_store.save_state(fresh_state(1.0))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(Damaged):
        Store(tmp_path / "b", "another-node").load_state()
    shutil.copy(tmp_path / "a" / "state", tmp_path / "a" / "keys")
    with pytest.raises(Damaged):
        rig_store.stored_keys()


def test_a02_state_of_last_week_takes_no_order_of_last_week(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        old_state = (Path(rig.config.state_dir) / "state").read_bytes()
        order = rig.signed(5, posture="maintenance", issued=time.time() - 6 * 86_400, lifetime_s=80_000)
        rig.stop()
        (Path(rig.config.state_dir) / "state").write_bytes(old_state)
        rig.start()
        rig.direct(order)
        assert rig.loop.stance.posture == "normal"
        assert [e.detail["code"] for e in rig.events() if e.kind == "directive.refused"] == [
            "directive.expired"
        ]
        rig.stop()

    in_own_namespace(job)


def test_a07_hostile_controller_changes_nothing(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 10)
        before = nft("list", "ruleset")
        now = time.time()
        unsigned = WantedBaseline(name="factory", version=9, sha256="ab" * 32)
        orders = {
            "directive.signature": rig.signed(11, posture="maintenance", key=Ed25519PrivateKey.generate()),
            "directive.other-node": rig.signed(11, posture="maintenance", node="press-2"),
            "directive.number": rig.signed(9, posture="maintenance"),
            "directive.number-reused": rig.signed(10, posture="maintenance"),
            "directive.expired": rig.signed(11, posture="maintenance", issued=now - 7200),
            "directive.issued-in-future": rig.signed(11, posture="maintenance", issued=now + 4000),
            "directive.unknown-response": rig.signed(
                11, posture="maintenance", responses=[Response(name="run-shell")]
            ),
            "directive.response": rig.signed(
                11, posture="maintenance", responses=[Response(name="fence", addresses=["127.0.0.1"])]
            ),
            "directive.malformed": b"\x00garbage",
        }
        for order in orders.values():
            rig.direct(order)
        refused = [e.detail["code"] for e in rig.events() if e.kind == "directive.refused"]
        assert refused == list(orders)
        assert rig.loop.hold.state.directive_number == 10
        # A good directive for a baseline that nobody signed: asked for, refused, nothing changes.
        rig.direct(rig.signed(11, wanted=unsigned))
        from contract.errors import Rejected

        with pytest.raises(Rejected) as caught:
            rig.fetch(unsigned)
        refusal = caught.value
        rig.call(lambda: rig.loop.deliver(unsigned, refusal))
        assert nft("list", "ruleset") == before
        assert "baseline.refused" in rig.kinds()
        rig.stop()

    in_own_namespace(job)


def test_same_directive_again_is_no_offence(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        order = rig.signed(3, posture="isolated")
        rig.direct(order)
        rig.direct(order)
        assert "directive.refused" not in rig.kinds()
        assert rig.kinds().count("posture.changed") == 1
        rig.stop()

    in_own_namespace(job)


def test_isolation_cuts_and_stands_over_a_restart_and_is_released(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        rig.direct(rig.signed(2, posture="isolated", wanted=rig.kit.wanted("factory", 1)))
        assert "ringfence_cut" in nft("list", "tables")
        assert "isolate.applied" in rig.kinds()
        rig.stop()
        rig.start()
        assert "ringfence_cut" in nft("list", "tables")
        rig.direct(rig.signed(3, posture="normal", wanted=rig.kit.wanted("factory", 1)))
        assert "ringfence_cut" not in nft("list", "tables")
        rig.stop()

    in_own_namespace(job)


def test_firewall_that_is_only_observed_stands_in_nobodys_way(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        assert locked_down()
        rig.adopt(baseline(1, 8080, head='[firewall]\nmode = "observe"\n'), 1, 1)
        # Neither lock-down nor anything else of ours: a signed baseline wants to be told, and no more.
        assert nft("list", "tables") == ""
        assert rig.kinds().count("firewall.withdrawn") == 1
        assert [drift.key for drift in rig.loop.machine.drifts["firewall"]]
        wanted = rig.kit.wanted("factory", 1)
        rig.direct(rig.signed(2, posture="isolated", wanted=wanted))
        assert "ringfence_cut" in nft("list", "tables")
        rig.direct(rig.signed(3, posture="normal", wanted=wanted))
        assert nft("list", "tables") == ""
        rig.stop()
        rig.start()
        assert nft("list", "tables") == ""
        rig.adopt(baseline(2, 8080), 2, 4)
        assert "ringfence" in nft("list", "tables")
        rig.stop()

    in_own_namespace(job)


SILENT = "[baseline.offline]\nisolate_after_s = 1.0\n"


def changes(rig: Rig) -> list[str]:
    """Every change of posture that was told, oldest first."""
    return [event.detail["to"] for event in rig.events() if event.kind == "posture.changed"]


def test_offline_node_isolates_itself_and_only_a_person_releases_it(tmp_path: Path) -> None:
    def cut() -> bool:
        return rig.loop.stance.posture == "isolated" and "table inet ringfence_cut" in nft("list", "tables")

    def job() -> None:
        rig.start()
        rig.adopt(baseline(1, 8080, head=SILENT), 1, 1)
        rig.call(rig.loop.session_closed)  # it looks every second now
        until(cut, 20)
        rig.answer()
        rig.answer()
        assert cut(), "an answer is no release"
        wanted = rig.kit.wanted("factory", 1)
        rig.direct(rig.signed(2, wanted=wanted))
        assert cut(), "nor is what the controller says to every node that comes back"
        rig.stop()
        assert rig.store.load_state().self_isolated, "written down"  # type: ignore[union-attr]
        rig.start()
        rig.answer()
        assert cut(), "nor is a restart"
        rig.direct(rig.signed(3, wanted=wanted, release=1))
        assert cut(), "this release was of something else"
        rig.direct(rig.signed(4, wanted=wanted, release=4))
        assert changes(rig)[:2] == ["isolated", "normal"]
        rig.call(rig.loop.session_closed)
        until(cut, 20)  # nobody answers again
        rig.direct(rig.signed(5, wanted=wanted, release=4))
        assert cut(), "one release is good for one isolation"
        assert changes(rig) == ["isolated", "normal", "isolated"]
        rig.stop()

    rig = Rig(tmp_path)
    in_own_namespace(job)


def test_silence_under_an_order_to_isolate_ends_with_the_order(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080, head=SILENT), 1, 1)
        wanted = rig.kit.wanted("factory", 1)
        rig.direct(rig.signed(2, wanted=wanted, posture="isolated"))
        rig.call(rig.loop.session_closed)  # it looks every second now
        time.sleep(3.0)  # far more than it waits for an answer, and the order stands
        assert rig.loop.stance.posture == "isolated"
        rig.direct(rig.signed(3, wanted=wanted))
        until(lambda: "normal" in changes(rig))
        rig.stop()

    in_own_namespace(job)


def test_foreign_change_is_healed_and_told(tmp_path: Path) -> None:
    from agent.netfilter import Events

    def job() -> None:
        rig = Rig(tmp_path)
        loop = rig.build()
        events = Events(loop.firewall_changed)
        loop.start()
        nft("delete", "table", "inet", "ringfence")
        until(lambda: "firewall.healed" in rig.kinds())
        assert locked_down()
        assert any("nft" in e.detail.get("culprit", "") for e in rig.events() if e.kind == "firewall.healed")
        assert loop.machine.healed
        events.close()
        rig.stop()

    in_own_namespace(job)


def test_a03_read_only_disk_keeps_the_fence_and_the_events(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        state = Path(rig.config.state_dir)
        state.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", state], check=True)
        try:
            rig.start()
            assert locked_down()
            assert "state.unwritable" in rig.kinds()
            rig.direct(rig.signed(2, posture="isolated"))
            assert "ringfence_cut" in nft("list", "tables"), "an order to isolate needs no disk"
            assert "posture.changed" in rig.kinds()
            rig.stop()
        finally:
            subprocess.run(["umount", state], check=True)

    in_own_namespace(job)

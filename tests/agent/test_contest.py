"""A firewall that somebody fights over ends in isolation; a manager's restart does not."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from agent.firewall.section import Contest
from agent.plan import BURST_S, MANAGER_BURST_S, Healing, contest
from contract.messages import Drift
from tests.agent.rig import Rig, baseline, in_own_namespace, nft
from tests.agent.test_hold import until


def drift(
    culprit: str = "nft (pid 7, uid 0, of bash (pid 6)): nft flush ruleset", table: str = "ringfence"
) -> Drift:
    return Drift(
        section="firewall",
        key=f"inet {table} table {table}",
        wanted="present",
        found="absent",
        since=1.0,
        culprit=culprit,
    )


WINDOW_S = Contest().within_s
LIMITS: Any = {"times": Contest().healings, "within_s": WINDOW_S}


def fought(times: list[float], culprit: str = "evil (pid 9)") -> str:
    """Return the reason after healings at these times; empty where there is none."""
    kept: tuple[Healing, ...] = ()
    for at in times:
        kept, reason = contest(kept, [drift(culprit), drift(culprit, "ringfence_guard")], 1000 + at, **LIMITS)
        if reason:
            return reason
    return ""


def test_f11_three_bursts_within_the_window_are_a_contest_and_less_is_none() -> None:
    assert fought([0, 10]) == ""
    assert "healed 3 times within 20 s, last after evil (pid 9)" in fought([0, 10, 20])
    assert fought([0, WINDOW_S / 2, WINDOW_S]) == "", "the first is forgotten by then"
    assert fought([0, 0.1, 0.2, 0.5, 1.0, BURST_S - 0.1]) == "", "one burst, however many edits"
    assert "last after an unknown process" in fought([0, 10, 20], "")


def test_f11_what_a_manager_does_on_its_restart_counts_once_but_its_name_is_no_pardon() -> None:
    restart = "nft (pid 9, uid 0, of systemd (pid 1)): nft -f /etc/nftables.conf"
    for name in ("firewalld (pid 8, uid 0)", "dockerd (pid 9)", restart):
        assert fought([0, 3, 6, 9, MANAGER_BURST_S - 1], name) == ""
        assert fought([0, 31, 62], name) != ""
    assert fought([0, 3, 6], "dockerd2 (pid 9)") != ""


def test_f05_a_storm_that_does_not_end_is_a_contest() -> None:
    assert fought([number / 100 for number in range(600)]) != ""


def held(key: str, culprit: str = "evil (pid 9)") -> Drift:
    return Drift(section="firewall", key=key, wanted="", found="", since=1.0, culprit=culprit)


def test_f11_what_cannot_be_healed_is_fought_over_as_well() -> None:
    for key, said in (
        ("inet ringfence owner", "another process's hold on inet ringfence was found 3 times within 10 s"),
        ("foreign:ip evil pre", "rewriting past our rules was found 3 times within 10 s"),
    ):
        kept: tuple[Healing, ...] = ()
        reasons = []
        for number in range(3):
            kept, reason = contest(kept, [held(key)] * 2, 1000 + 5 * number, **LIMITS)
            reasons.append(reason)
        assert reasons[:2] == ["", ""] and reasons[2] == f"{said}, last after evil (pid 9)"


def test_f11_foreign_rewriting_under_ever_new_names_is_one_fight() -> None:
    kept: tuple[Healing, ...] = ()
    for number in range(3):
        kept, reason = contest(kept, [held(f"foreign:ip evil{number} pre")], 1000 + 5 * number, **LIMITS)
    assert reason != ""


def test_a04_a_clock_that_jumps_makes_no_contest() -> None:
    assert fought([0, -1e7, 1e7, 5, -1e7]) == ""


def test_different_tables_are_different_fights() -> None:
    kept: tuple[Healing, ...] = ()
    for number, table in enumerate(
        ("ringfence", "ringfence_cut", "ringfence_guard", "ringfence", "ringfence_cut")
    ):
        kept, reason = contest(kept, [drift(table=table)], 1000 + 5 * number, **LIMITS)
        assert reason == ""


def deed(text: str) -> None:
    subprocess.run(["nft", text], check=True)


def test_f11_a_contest_isolates_outlives_a_restart_and_is_released_by_order_only(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        for number in range(3):
            if number:
                time.sleep(BURST_S + 0.1)
            if number == 1:  # counted over a restart
                rig.stop()
                rig.start()
            for _ in range(4):
                deed("flush ruleset")
                rig.loop.wake("firewall")
                until(lambda: "hook input" in nft("list", "table", "inet", "ringfence"))
            cut = "ringfence_cut" in nft("list", "tables")
            assert not cut or number == 2
        until(lambda: "table inet ringfence_cut" in nft("list", "tables"))
        assert "firewall.contest" in rig.kinds()
        rig.stop()
        rig.start()
        assert "table inet ringfence_cut" in nft("list", "tables"), "never by itself"
        wanted = rig.kit.wanted("factory", 1)
        rig.direct(rig.signed(2, wanted=wanted))
        assert rig.loop.stance.posture == "isolated", "a directive that knows nothing of it is no release"
        rig.direct(rig.signed(3, wanted=wanted, posture="isolated"))
        rig.direct(rig.signed(4, wanted=wanted))
        assert rig.loop.stance.posture == "normal"
        assert "ringfence_cut" not in nft("list", "tables")
        rig.stop()

    in_own_namespace(job)


@pytest.mark.parametrize("edits", [1, 6])
def test_f11_one_reload_of_another_manager_isolates_nobody(tmp_path: Path, edits: int) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        for _ in range(edits):
            deed(
                "flush ruleset; add table ip docker; add chain ip docker x { type filter hook input priority 5; }"
            )
            rig.loop.wake("firewall")
            time.sleep(0.1)
        until(lambda: "8080" in nft("list", "table", "inet", "ringfence"))
        assert rig.loop.stance.posture == "normal"
        assert len(rig.loop.hold.state.healings) == 2, "the rules and the guard, once each"
        rig.stop()

    in_own_namespace(job)

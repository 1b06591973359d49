"""The decision of a rollout, pure: waves, proof, budgets, halts; and what holds whatever happens."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import Rejected
from controller import windows
from controller.baselinediff import changes
from controller.rollout import decide, waves_of
from controller.rollout_records import NodeFacts, Terms, Wave, Window

T0 = 1_700_000_000.0
TERMS = Terms(waves=(Wave(nodes=1), Wave(percent=50.0)), soak_s=100.0, deadline_s=300.0)


def node(name: str, wave: int = 1, **known: object) -> NodeFacts:
    fields: dict[str, object] = {
        "node": name, "site": "lyon", "wave": wave, "progress": "waiting", "since": T0, "holds": False,
        "standing": "healthy", "tier": "affirming", "drifts": 0, "last_report_at": T0, **known,
    }  # fmt: skip
    return msgspec.convert(fields, NodeFacts)


def proved(name: str, wave: int = 1, **known: object) -> NodeFacts:
    return node(name, wave, **{"progress": "proved", "holds": True, "last_report_at": T0 + 1, **known})


def sent(name: str, wave: int = 1, **known: object) -> NodeFacts:
    return node(name, wave, **{"progress": "sent", "last_report_at": T0 + 1, **known})


def test_waves_are_cumulative_and_every_node_is_in_one() -> None:
    nodes = [(f"n{n}", "lyon" if n < 10 else "lille", n != 3) for n in range(20)]
    waves = waves_of(nodes, (Wave(nodes=1), Wave(percent=25.0), Wave(sites=["lille"])))
    sizes = [list(waves.values()).count(n) for n in range(1, 5)]
    assert sum(sizes) == 20 and sizes[:2] == [1, 4]
    assert all(waves[name] <= 3 for name, site, _ in nodes if site == "lille")
    assert waves["n3"] == max(waves.values()), "who cannot prove anything is no canary"


def test_a_wave_of_nobody_is_left_out() -> None:
    assert waves_of([("n1", "lyon", True)], (Wave(nodes=1), Wave(percent=50.0))) == {"n1": 1}


def test_the_first_step_sends_to_the_canary_alone() -> None:
    step = decide(TERMS, 0, [node("a"), node("b", 2), node("c", 3)], T0, window_open=True)
    assert (step.send, step.wave, step.done) == (("a",), 1, False)


def test_sent_and_applied_are_not_proved() -> None:
    for facts in (sent("a"), sent("a", last_report_at=T0 - 1, holds=True), sent("a", holds=True, drifts=1)):
        step = decide(TERMS, 1, [facts, node("b", 2)], T0 + 10, window_open=True)
        assert (step.moved, step.send, step.wave) == ((), (), 1)


def test_evidence_without_drift_is_proof_and_the_next_wave_waits_for_the_soak() -> None:
    step = decide(TERMS, 1, [sent("a", holds=True), node("b", 2)], T0 + 10, window_open=True)
    assert [(m.node, m.progress) for m in step.moved] == [("a", "proved")]
    assert step.send == ()
    assert decide(TERMS, 1, [proved("a"), node("b", 2)], T0 + 99, window_open=True).send == ()
    step = decide(TERMS, 1, [proved("a"), node("b", 2)], T0 + 100, window_open=True)
    assert (step.send, step.wave) == (("b",), 2)


@pytest.mark.parametrize(
    "bad",
    [
        {"drifts": 2}, {"tier": "contraindicated"}, {"standing": "untrusted"}, {"standing": "isolated"},
        {"holds": False},
    ],
)  # fmt: skip
def test_a_canary_that_is_worse_off_halts_the_rollout_during_its_soak(bad: dict[str, object]) -> None:
    step = decide(TERMS, 1, [proved("a", **bad), node("b", 2)], T0 + 50, window_open=True)
    assert step.halt and step.send == ()
    assert [(m.node, m.progress) for m in step.moved] == [("a", "failed")]


def test_a_node_that_reports_and_does_not_hold_it_in_time_has_failed() -> None:
    facts = [sent("a", last_report_at=T0 + 299)]
    assert decide(TERMS, 1, facts, T0 + 299, window_open=True).halt == ""
    assert "a" in decide(TERMS, 1, facts, T0 + 300, window_open=True).halt


def test_failures_up_to_the_threshold_are_borne() -> None:
    terms = msgspec.structs.replace(TERMS, max_failures=1)
    facts = [node("a", progress="failed"), proved("b"), node("c", 2)]
    assert decide(terms, 1, facts, T0 + 200, window_open=True).send == ("c",)
    facts[1] = node("b", progress="failed")
    assert decide(terms, 1, facts, T0 + 200, window_open=True).halt


def test_nodes_that_cannot_be_reached_hold_nobody_up_but_prove_nothing() -> None:
    gone = sent("a", standing="unreachable", last_report_at=T0 - 60)
    step = decide(TERMS, 1, [gone, node("b", 2)], T0 + 1000, window_open=True)
    assert [(m.node, m.progress) for m in step.moved] == [("a", "away")]
    assert step.send == (), "somebody must have proved it before the second wave"
    facts = [proved("z"), node("a", progress="away", standing="unreachable"), node("b", 2)]
    assert decide(TERMS, 1, facts, T0 + 1000, window_open=True).send == ("b",)


def test_a_node_that_is_back_is_given_its_time_anew() -> None:
    back = node("a", progress="away", last_report_at=T0 + 5000)
    step = decide(TERMS, 1, [back, proved("z")], T0 + 5001, window_open=True)
    assert [(m.node, m.progress) for m in step.moved] == [("a", "sent")]
    assert step.halt == ""


def test_no_more_of_a_site_than_its_budget_are_under_way() -> None:
    terms = Terms(waves=(), soak_s=0.0, per_site=2)
    facts = [node(f"a{n}") for n in range(5)] + [node(f"b{n}", site="lille") for n in range(5)]
    step = decide(terms, 0, facts, T0, window_open=True)
    assert step.send == ("a0", "a1", "b0", "b1")
    facts[:2] = [sent("a0"), proved("a1")]
    facts[5:7] = [sent("b0", site="lille"), sent("b1", site="lille")]
    assert decide(terms, 1, facts, T0 + 1, window_open=True).send == ("a2",)


def test_outside_its_windows_nothing_is_sent_and_everything_is_judged() -> None:
    assert decide(TERMS, 0, [node("a")], T0, window_open=False).send == ()
    step = decide(TERMS, 1, [sent("a", holds=True), node("b", 2)], T0 + 10, window_open=False)
    assert [m.progress for m in step.moved] == ["proved"]
    assert decide(TERMS, 1, [proved("a"), node("b", 2)], T0 + 500, window_open=False).wave == 1


def test_it_is_done_when_the_last_wave_has_soaked_with_some_away() -> None:
    facts = [proved("a"), node("b", progress="away", standing="unreachable"), node("c", progress="withdrawn")]
    assert not decide(TERMS, 1, facts, T0 + 50, window_open=True).done
    assert decide(TERMS, 1, facts, T0 + 100, window_open=True).done


STANDINGS = st.sampled_from(["healthy", "overdue", "unreachable", "untrusted", "isolated"])
PROGRESSES = st.sampled_from(["waiting", "sent", "away", "proved", "failed", "withdrawn"])


@st.composite
def fleets(draw: st.DrawFn) -> list[NodeFacts]:
    return [
        node(
            f"n{n}", draw(st.integers(1, 4)), progress=draw(PROGRESSES), site=draw(st.sampled_from("xy")),
            since=T0 - draw(st.integers(0, 500)), holds=draw(st.booleans()), standing=draw(STANDINGS),
            tier=draw(st.sampled_from(["affirming", "warning", "contraindicated", "none"])),
            drifts=draw(st.integers(0, 2)), last_report_at=T0 - draw(st.integers(0, 600)),
        )
        for n in range(draw(st.integers(0, 8)))
    ]  # fmt: skip


@settings(max_examples=500)
@given(fleets(), st.integers(0, 4), st.booleans(), st.integers(0, 3), st.integers(0, 2))
def test_whatever_the_facts_nothing_is_sent_past_a_failure_or_ahead_of_its_wave(
    facts: list[NodeFacts], wave: int, window_open: bool, max_failures: int, per_site: int
) -> None:
    terms = msgspec.structs.replace(TERMS, max_failures=max_failures, per_site=per_site)
    step = decide(terms, wave, facts, T0, window_open=window_open)
    by_name = {each.node: each for each in facts}
    after = {n: f.progress for n, f in by_name.items()} | {m.node: m.progress for m in step.moved}
    failed = sum(progress == "failed" for progress in after.values())
    assert wave <= step.wave <= wave + 1
    if not window_open or failed > max_failures:
        assert step.send == () and step.wave == wave
    assert bool(step.halt) == (failed > max_failures)
    for name in step.send:
        assert by_name[name].progress == "waiting" and by_name[name].wave <= step.wave
    if step.wave > wave and wave:
        done = [n for n, f in by_name.items() if f.wave <= wave]
        assert not any(after[n] in ("waiting", "sent") for n in done)
    for move in step.moved:
        if move.progress == "proved":
            known = by_name[move.node]
            assert known.holds and not known.drifts and known.tier != "contraindicated"
            assert known.standing not in ("untrusted", "isolated", "unreachable")
    if per_site:
        for site in "xy":
            under_way = sum(after[n] == "sent" for n, f in by_name.items() if f.site == site)
            assert under_way + sum(by_name[n].site == site for n in step.send) <= max(per_site, under_way)


def at(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("moment", "open_"),
    [
        ("2026-11-27T21:59:59+01:00", False),  # a Friday
        ("2026-11-27T22:00:00+01:00", True),
        ("2026-11-28T03:59:59+01:00", True),
        ("2026-11-28T04:00:00+01:00", False),
        ("2026-11-28T23:00:00+01:00", False),  # it does not begin on a Saturday
        ("2026-07-03T20:30:00+00:00", True),  # 22:30 in summer
        ("2026-07-03T19:30:00+00:00", False),
    ],
)
def test_a_window_is_by_the_clock_of_its_zone_and_may_end_the_next_day(moment: str, open_: bool) -> None:
    night = Window(days=["mon", "fri"], begins="22:00", ends="04:00", zone="Europe/Paris")
    assert windows.is_open([night], at(moment)) is open_
    assert windows.is_open([], at(moment))


def test_a_zone_that_is_none_and_a_window_of_no_length_are_refused() -> None:
    for zone in ("Mars/Olympus", "../../etc/passwd", ""):
        with pytest.raises(Rejected, match=r"window\.zone"):
            windows.zone(zone)
    with pytest.raises(Rejected, match=r"window\.empty"):
        windows.checked([Window(days=["mon"], begins="08:00", ends="08:00")])


def test_the_difference_names_section_key_and_rule() -> None:
    before = b"""[baseline]
name = "f"
version = 1
summary = "s"
[usb]
default = "block"
[sysctl]
[sysctl.values]
"kernel.sysrq" = "0"
"""
    after = b"""[baseline]
name = "f"
version = 2
summary = "t"
mode = "observe"
[sysctl]
[sysctl.values]
"kernel.sysrq" = "1"
[[sysctl.more]]
a = 1
"""
    found = {c.section: (c.change, c.lines) for c in changes(before, after)}
    assert found["usb"] == ("removed", ['  default: "block" -> (not set)'])
    assert found["sysctl"] == ("changed", ['+ more: {"a":1}', '  values.kernel.sysrq: "0" -> "1"'])
    assert found["baseline"] == ("changed", ['  mode: "enforce" -> "observe"'])
    assert changes(after, after) == []
    assert {c.change for c in changes(b"", after)} == {"added"}

"""The agent's decisions, on facts alone."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.plan import (
    Apply,
    Confirm,
    Facts,
    Fetch,
    Revert,
    Stance,
    Stay,
    enforced,
    settle,
    stance,
    tell,
)
from agent.responses import Wanted
from contract.directive import Directive, WantedBaseline
from contract.messages import BaselineRef, Drift

ONE = WantedBaseline(name="factory", version=1, sha256="11" * 32)
TWO = WantedBaseline(name="factory", version=2, sha256="22" * 32)


def ref(wanted: WantedBaseline) -> BaselineRef:
    return BaselineRef(name=wanted.name, version=wanted.version, sha256=bytes.fromhex(wanted.sha256))


def directive(wanted: WantedBaseline | None = None, number: int = 5, **fields: Any) -> Directive:
    return Directive(
        node="press-1",
        number=number,
        issued=1.0,
        expires=2.0,
        baseline=wanted,
        **{"posture": "normal", **fields},
    )


def facts(**changed: Any) -> Facts:
    usual = Facts(
        directive=directive(TWO),
        last_good=ref(ONE),
        pending=None,
        pending_for_s=0.0,
        pending_starts=0,
        pending_had_contact=True,
        pending_answered=False,
        not_in_force="",
        turned_down={},
        ready=None,
        confirm_s=30.0,
    )
    return usual._replace(**changed)


def test_steps_from_wanted_to_confirmed() -> None:
    assert settle(facts()) == Fetch(TWO)
    assert settle(facts(ready=TWO)) == Apply(TWO)
    assert settle(facts(ready=ONE)) == Fetch(TWO)
    assert settle(facts(pending=ref(TWO))) == Stay()
    assert settle(facts(pending=ref(TWO), pending_answered=True)) == Confirm()
    assert settle(facts(last_good=ref(TWO))) == Stay()


def test_silence_reverts_only_where_the_controller_was_there_before() -> None:
    silent = facts(pending=ref(TWO), pending_for_s=31.0)
    assert isinstance(settle(silent), Revert)
    assert settle(silent._replace(pending_had_contact=False)) == Stay()
    assert settle(silent._replace(pending_answered=True)) == Confirm()


def test_an_answer_confirms_nothing_while_the_rules_are_not_in_force() -> None:
    answered = facts(
        pending=ref(TWO), pending_answered=True, not_in_force="inet ringfence chain input: found x"
    )
    assert settle(answered) == Stay()
    assert settle(answered._replace(not_in_force="")) == Confirm()
    late = settle(answered._replace(pending_for_s=31.0))
    assert isinstance(late, Revert)
    assert (late.code, "chain input" in late.reason) == ("baseline.not-in-force", True)
    away = answered._replace(pending_for_s=31.0, pending_answered=False, pending_had_contact=False)
    assert isinstance(settle(away), Revert), "this is no question of who can be reached"


def test_what_failed_here_is_not_tried_again_under_the_same_directive() -> None:
    assert settle(facts(turned_down={TWO.sha256: 5})) == Stay()
    assert settle(facts(turned_down={TWO.sha256: 4})) == Fetch(TWO)


def test_pending_that_is_no_longer_wanted_goes_back_first() -> None:
    step = settle(facts(pending=ref(ONE), last_good=None))
    assert isinstance(step, Revert)
    assert step.code == "baseline.withdrawn"


def test_no_directive_or_one_without_baseline_keeps_what_is_held() -> None:
    assert settle(facts(directive=None)) == Stay()
    assert settle(facts(directive=directive(None))) == Stay()


@given(
    posture=st.sampled_from(["normal", "isolated", "maintenance"]),
    wanted=st.lists(st.sampled_from([Wanted(), Wanted(posture="isolated"), Wanted(fenced=("192.0.2.1",))])),
    offline_s=st.floats(0, 1e9),
    after=st.none() | st.floats(1, 1e6),
)
def test_isolation_by_anyone_wins(
    posture: Any, wanted: list[Wanted], offline_s: float, after: float | None
) -> None:
    held = stance(
        directive(posture=posture), wanted, offline_s=offline_s, isolate_after_s=after, damaged=False
    )
    by_order = posture == "isolated" or any(each.posture == "isolated" for each in wanted)
    by_silence = after is not None and offline_s >= after
    assert (held.posture == "isolated") == (by_order or by_silence)
    assert held.posture in (posture, "isolated")
    assert held.fenced == (("192.0.2.1",) if any(each.fenced for each in wanted) else ())


def test_damaged_state_is_cut_off_and_a_new_one_is_not() -> None:
    assert stance(None, [], offline_s=0, isolate_after_s=None, damaged=True).posture == "isolated"
    assert stance(None, [], offline_s=0, isolate_after_s=None, damaged=False).posture == "normal"


def test_observe_mode_does_not_soften_isolation_or_fences() -> None:
    assert not enforced("firewall", "observe", Stance("normal", (), ""))
    assert enforced("firewall", "observe", Stance("isolated", (), ""))
    assert enforced("firewall", "observe", Stance("normal", ("192.0.2.1",), ""))
    assert not enforced("usb", "observe", Stance("isolated", (), ""))


def test_each_difference_is_told_once_and_its_end_too() -> None:
    drift = Drift(section="files", key="/etc/x", wanted="a", found="b", since=1.0)
    assert [t.kind for t in tell("files", [], [drift], [drift])] == ["files.drift"]
    assert tell("files", [drift], [drift], [drift]) == []
    assert [t.kind for t in tell("files", [drift], [drift], [])] == ["files.healed"]
    assert [t.kind for t in tell("files", [drift], [], [])] == ["files.cleared"]

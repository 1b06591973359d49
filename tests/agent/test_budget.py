"""The budget of repairs: pure, so by values."""

from __future__ import annotations

from agent.budget import (
    FIRST_REST_S,
    FLAPS,
    HOUR_S,
    LONGEST_REST_S,
    MAX_KEYS,
    WITHIN_S,
    Account,
    Cost,
    charge,
    decide,
)
from contract.baseline import RepairLimits

LIMITS = RepairLimits()
CHEAP = Cost(0.001, 100)


def test_nothing_rests_before_it_was_mended_often() -> None:
    account = Account()
    for number in range(FLAPS):
        assert decide(account, LIMITS, ["k"], float(number)).may == {"k"}
        account = charge(account, ["k"], CHEAP, float(number))
    decision = decide(account, LIMITS, ["k", "other"], float(FLAPS))
    assert decision.may == {"other"}
    assert decision.resting == {"k": f"repaired {FLAPS} times; rests {FIRST_REST_S:g} s"}


def test_a_key_rests_twice_as_long_each_time_up_to_a_limit_and_is_never_forgotten() -> None:
    account, now, rests = Account(), 0.0, []
    for _ in range(12):
        while not decide(account, LIMITS, ["k"], now).may:
            now += 1.0
        account = charge(account, ["k"], CHEAP, now)
        rests.append(account.tries["k"].rest_s)
    assert rests[: FLAPS - 1] == [0.0] * (FLAPS - 1)
    doubling = [FIRST_REST_S * 2**number for number in range(12)]
    assert rests[FLAPS - 1 :] == [min(each, LONGEST_REST_S) for each in doubling][: 13 - FLAPS]
    assert max(rests) == LONGEST_REST_S


def test_a_key_that_was_quiet_begins_anew() -> None:
    account = Account()
    for number in range(FLAPS):
        account = charge(account, ["k"], CHEAP, float(number))
    later = FLAPS + FIRST_REST_S + WITHIN_S
    account = charge(account, ["k"], CHEAP, later)
    assert account.tries["k"].times == 1
    assert decide(account, LIMITS, ["k"], later + 1).may == {"k"}


def test_slow_flapping_does_not_rest() -> None:
    account = Account()
    for number in range(20):
        account = charge(account, ["k"], CHEAP, number * WITHIN_S)
        assert account.tries["k"].rest_s == 0.0


def test_processor_and_writes_are_bounded_for_an_hour() -> None:
    for cost, word in (
        (Cost(LIMITS.processor_s, 0), "60 s of processor time"),
        (Cost(0.0, int(LIMITS.written_mb * 1e6)), "64 MB written"),
    ):
        account = charge(Account(), ["a"], cost, 100.0)
        decision = decide(account, LIMITS, ["b"], 101.0)
        assert decision.may == frozenset()
        assert decision.over == f"repair budget spent: {word} in an hour"
        assert decision.resting == {"b": decision.over}
        assert decide(account, LIMITS, ["b"], 100.0 + HOUR_S).may == {"b"}


def test_costs_add_up_and_an_account_stays_small() -> None:
    account = Account()
    for number in range(3 * MAX_KEYS):
        account = charge(account, [f"k{number}"], Cost(0.02, 1), float(number))
    assert len(account.tries) <= MAX_KEYS
    assert len(account.spent) <= HOUR_S / 60 + 1
    assert decide(account, LIMITS, ["x"], 3.0 * MAX_KEYS).over

"""Five standings that are never mixed."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.messages import Tier
from controller.records import Standing
from controller.standing import standing

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("tier", "held", "silent_s", "expected"),
    [
        ("affirming", False, 0, "healthy"),
        ("warning", False, 89.9, "healthy"),
        ("affirming", False, 90, "overdue"),
        ("affirming", False, 119.9, "overdue"),
        ("affirming", False, 120, "unreachable"),
        ("affirming", False, 1e9, "unreachable"),
        ("affirming", False, None, "unreachable"),
        ("none", False, 0, "unreachable"),
        ("none", False, None, "unreachable"),
        ("contraindicated", False, 0, "untrusted"),
        ("contraindicated", False, 1e6, "untrusted"),
        ("contraindicated", False, None, "untrusted"),
        ("affirming", True, 0, "isolated"),
        ("contraindicated", True, 1e6, "isolated"),
        ("affirming", False, -5, "healthy"),
    ],
)
def test_each_standing(tier: Tier, held: bool, silent_s: float | None, expected: Standing) -> None:
    last = None if silent_s is None else NOW - silent_s
    assert standing(tier=tier, held=held, last_report_at=last, interval_s=60, now=NOW) == expected


def test_silence_before_the_controller_came_up_is_not_counted() -> None:
    says = [
        standing(
            tier="affirming", held=False, last_report_at=NOW - 9999, interval_s=60, now=NOW + s, started=NOW
        )
        for s in (0, 91, 121)
    ]
    assert says == ["healthy", "overdue", "unreachable"]


@given(
    tier=st.sampled_from(get_args(Tier)),
    held=st.booleans(),
    last=st.none() | st.floats(min_value=0, max_value=2e9),
    now=st.floats(min_value=0, max_value=2e9),
    interval=st.floats(min_value=0.1, max_value=86400),
)
def test_healthy_is_only_ever_said_of_fresh_and_good_evidence(
    tier: Tier, held: bool, last: float | None, now: float, interval: float
) -> None:
    said = standing(tier=tier, held=held, last_report_at=last, interval_s=interval, now=now)
    if said in {"healthy", "overdue"}:
        assert tier in {"affirming", "warning"}
        assert not held
        assert last is not None
        assert now - last < 2 * interval
    if said == "unreachable":
        assert tier != "contraindicated"

"""The breaker's arithmetic."""

from __future__ import annotations

import pytest

from controller.breaker import may_isolate_node, may_isolate_site, node_budget, window_start
from controller.policy import BreakerLimits


@pytest.mark.parametrize(("fleet", "budget"), [(0, 3), (6, 3), (149, 3), (150, 3), (200, 4), (10_000, 200)])
def test_three_nodes_or_two_percent_whichever_is_more(fleet: int, budget: int) -> None:
    assert node_budget(BreakerLimits(), fleet) == budget


def test_it_opens_at_the_limit_and_says_why() -> None:
    limits = BreakerLimits()
    assert may_isolate_node(limits, fleet_nodes=6, placed_in_window=2) == ""
    assert "at most 3" in may_isolate_node(limits, fleet_nodes=6, placed_in_window=3)
    assert may_isolate_site(limits, placed_in_window=0) == ""
    assert "at most 1" in may_isolate_site(limits, placed_in_window=1)


def test_limits_of_zero_isolate_nothing() -> None:
    limits = BreakerLimits(nodes=0, fleet_fraction=0, sites=0)
    assert may_isolate_node(limits, fleet_nodes=10_000, placed_in_window=0)
    assert may_isolate_site(limits, placed_in_window=0)


def test_the_window_looks_back() -> None:
    assert window_start(BreakerLimits(window_s=600), 1000.0) == 400.0

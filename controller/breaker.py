"""The brake on automatic isolation (DESIGN.md, 6). Pure.

It counts what was *placed* by no person within the window, whether released since or not: a hold that was
released at once was still a cut. Holds placed by people are neither counted nor braked.
"""

from __future__ import annotations

import math

from controller.policy import BreakerLimits


def node_budget(limits: BreakerLimits, fleet_nodes: int) -> int:
    """So many nodes may be isolated automatically within one window: the fixed number or the fraction of the
    fleet, whichever is more."""
    return max(limits.nodes, math.floor(limits.fleet_fraction * fleet_nodes))


def may_isolate_node(limits: BreakerLimits, *, fleet_nodes: int, placed_in_window: int) -> str:
    """Return "" when one more node may be isolated, else why not."""
    budget = node_budget(limits, fleet_nodes)
    if placed_in_window < budget:
        return ""
    return f"breaker: {placed_in_window} nodes isolated automatically within {limits.window_s:g} s, at most {budget}"


def may_isolate_site(limits: BreakerLimits, *, placed_in_window: int) -> str:
    """Return "" when one more site may be isolated, else why not."""
    if placed_in_window < limits.sites:
        return ""
    return f"breaker: {placed_in_window} sites isolated automatically within {limits.window_s:g} s, at most {limits.sites}"


def window_start(limits: BreakerLimits, now: float) -> float:
    """Holds placed later than this count. A clock that jumped back must not empty the window, so holds from
    the future count as well."""
    return now - limits.window_s

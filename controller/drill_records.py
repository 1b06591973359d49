"""What a drill shows: all of isolating a site but the last step. Immutable structs, as in `controller.records`."""

from __future__ import annotations

from contract.directive import WantedBaseline
from controller.records import Record


class DrillPlan(Record, frozen=True, kw_only=True):
    """What isolating a site would do, from stored facts alone."""

    site: str
    would_isolate: list[str]
    isolated_already: list[str]
    orders: int
    """Directives that would be written."""
    fenced_addresses: int
    """That these directives would drop on neighbours, for holds that are in force on single nodes."""
    baselines: list[WantedBaseline]
    """Of the nodes: what stays reachable is what they say of posture `isolated`, and the controller."""
    without_baseline: list[str]
    """Nodes that hold their packaged lock-down rules."""
    breaker: str
    """Why the controller would not do it by itself now; empty when it could."""


class DrillView(Record, frozen=True, kw_only=True):
    """A drill. No posture was changed and no order was sent."""

    plan: DrillPlan
    connected: list[str]
    """Nodes whose socket the order would go over."""
    away: list[str]
    """They would get the order when they come back; the baseline says when they isolate themselves."""
    silent: list[str]
    """Connected, but no report came within the time that was given."""
    planned_ms: float
    """To read the facts and to write the orders."""
    answered_ms: list[float]
    """From the challenge to the judged report (with its quote), for each node that answered, ascending."""

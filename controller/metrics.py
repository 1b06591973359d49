"""Figures for Prometheus. Labels take only values of our own making, so their number is bounded; never a node's text."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from controller.outlet_records import OutletView
from controller.records import FleetCounts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry for one controller process."""

    def __init__(self) -> None:
        """Make every figure, at zero."""
        self.registry = CollectorRegistry()
        self.reports = Counter(
            "ringfence_reports", "Reports appraised, by trust tier", ["tier"], registry=self.registry
        )
        self.rejected = Counter(
            "ringfence_rejected", "What was refused, by code", ["code"], registry=self.registry
        )
        self.orders = Counter(
            "ringfence_orders", "Directives sent without being asked", registry=self.registry
        )
        self.report_seconds = Histogram(
            "ringfence_report_seconds",
            "From the last byte of a report to the answer",
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        )
        self.loop_lag_seconds = Histogram(
            "ringfence_loop_lag_seconds",
            "How late the event loop came back to who slept, looked at ten times a second",
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
        )
        self.faults = Counter("ringfence_faults", "Faults of the controller itself", registry=self.registry)
        self.sessions = Gauge("ringfence_sessions", "Open sessions of this process", registry=self.registry)

    def text(self, counts: FleetCounts, outlets: Sequence[OutletView] | None) -> bytes:
        """Return the exposition: the fleet's counts of this moment and, with `outlets`, what is nobody's site: they and the
        figures of this process."""
        shown = _of_fleet(counts)
        return shown if outlets is None else shown + _of_outlets(outlets) + generate_latest(self.registry)


def _of_outlets(outlets: Sequence[OutletView]) -> bytes:
    """Outlets are named by the owner."""
    registry = CollectorRegistry()
    for name, what, value in (
        ("ringfence_outlet_behind", "Events that an outlet has not passed yet", lambda o: o.behind),
        (
            "ringfence_outlet_failing",
            "1 while an outlet takes nothing",
            lambda o: o.failing_since is not None,
        ),
        (
            "ringfence_outlet_dead_letters",
            "Events that an outlet refused for good",
            lambda o: o.dead_letters,
        ),
    ):
        gauge = Gauge(name, what, ["outlet"], registry=registry)
        for outlet in outlets:
            gauge.labels(outlet.name).set(value(outlet))
    return generate_latest(registry)


def _of_fleet(counts: FleetCounts) -> bytes:
    registry = CollectorRegistry()
    nodes = Gauge("ringfence_nodes", "Nodes by standing", ["standing"], registry=registry)
    for standing, number in counts.nodes.items():
        nodes.labels(standing).set(number)
    for name, what, value in (
        ("ringfence_sites", "Sites", counts.sites),
        ("ringfence_sites_isolated", "Isolated sites", counts.sites_isolated),
        ("ringfence_incidents_open", "Open incidents", counts.incidents_open),
        (
            "ringfence_incidents_needing_a_person",
            "Incidents past the breaker",
            counts.incidents_needing_a_person,
        ),
        ("ringfence_enrolments_waiting", "Waiting enrolments", counts.enrolments_waiting),
    ):
        Gauge(name, what, registry=registry).set(value)
    return generate_latest(registry)

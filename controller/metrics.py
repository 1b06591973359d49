"""Figures for Prometheus. Labels take only values of our own making, so their number is bounded; never a node's text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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
        self.faults = Counter("ringfence_faults", "Faults of the controller itself", registry=self.registry)
        self.sessions = Gauge("ringfence_sessions", "Open sessions of this process", registry=self.registry)

    def text(self, counts: FleetCounts, *, whole: bool) -> bytes:
        """Return the exposition: the fleet's counts of this moment, and with `whole` the figures of this process."""
        return _of_fleet(counts) + (generate_latest(self.registry) if whole else b"")


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

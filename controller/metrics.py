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
        self.faults = Counter("ringfence_faults", "Faults of the controller itself", registry=self.registry)
        self.sessions = Gauge("ringfence_sessions", "Open sessions of this process", registry=self.registry)
        self._nodes = Gauge("ringfence_nodes", "Nodes by standing", ["standing"], registry=self.registry)
        self._sites = Gauge("ringfence_sites", "Sites", registry=self.registry)
        self._sites_isolated = Gauge("ringfence_sites_isolated", "Isolated sites", registry=self.registry)
        self._incidents = Gauge("ringfence_incidents_open", "Open incidents", registry=self.registry)
        self._needing = Gauge(
            "ringfence_incidents_needing_a_person", "Incidents past the breaker", registry=self.registry
        )
        self._waiting = Gauge("ringfence_enrolments_waiting", "Waiting enrolments", registry=self.registry)

        self._behind = Gauge(
            "ringfence_outlet_behind",
            "Events that an outlet has not passed yet",
            ["outlet"],
            registry=self.registry,
        )
        self._failing = Gauge(
            "ringfence_outlet_failing", "1 while an outlet takes nothing", ["outlet"], registry=self.registry
        )
        self._dead = Gauge(
            "ringfence_outlet_dead_letters",
            "Events that an outlet refused for good",
            ["outlet"],
            registry=self.registry,
        )

    def text(self, counts: FleetCounts, outlets: Sequence[OutletView]) -> bytes:
        """Return the exposition, with the fleet's counts of this moment. Outlets are named by the owner."""
        for outlet in outlets:
            self._behind.labels(outlet.name).set(outlet.behind)
            self._failing.labels(outlet.name).set(outlet.failing_since is not None)
            self._dead.labels(outlet.name).set(outlet.dead_letters)
        for standing, number in counts.nodes.items():
            self._nodes.labels(standing).set(number)
        self._sites.set(counts.sites)
        self._sites_isolated.set(counts.sites_isolated)
        self._incidents.set(counts.incidents_open)
        self._needing.set(counts.incidents_needing_a_person)
        self._waiting.set(counts.enrolments_waiting)
        return generate_latest(self.registry)

"""The metrics: their names, what they say, and their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, Histogram

from leakguard.core.pool import HOLD_BUCKETS, WAIT_BUCKETS

if TYPE_CHECKING:
    from leakguard.core.scope import Scope

NONE: Final = "none"
"""The label where there is no request, no method or no pool."""


class Metrics:
    """The metrics of one registry."""

    def __init__(self) -> None:
        self.findings = Counter(
            "leakguard_findings_total",
            "Findings, by the route of the request that they belong to.",
            ("kind", "method", "route", "pool"),
            registry=None,
        )
        self.unresolved = _gauge(
            "leakguard_unresolved_leaks",
            "Connections that were reported as leaked and have not come back.",
            "pool",
        )
        self.held = Histogram(
            "leakguard_connection_hold_seconds",
            "Time from checkout to return, by the route of the request.",
            ("route", "pool"),
            registry=None,
            buckets=HOLD_BUCKETS,
        )
        self.scopes = _gauge(
            "leakguard_open_scopes",
            "Requests, connections and jobs that have begun and not ended.",
            "type",
        )
        self.connections = _gauge(
            "db_client_connection_count",
            "Connections of the pool: in it (idle) and out of it (used).",
            "pool",
            "state",
        )
        self.limit = _gauge(
            "db_client_connection_max",
            "Connections that the pool may have out at once.",
            "pool",
        )
        self.waits = Histogram(
            "db_client_connection_wait_time_seconds",
            "Time from the request for a connection until there was one, or the pool gave up.",
            ("pool",),
            registry=None,
            buckets=WAIT_BUCKETS,
        )
        self.timeouts = Counter(
            "db_client_connection_timeouts_total",
            "Checkouts that got an error, because the pool had no connection in time.",
            ("pool",),
            registry=None,
        )


def _gauge(name: str, documentation: str, *labels: str) -> Gauge:
    """Make a gauge; in multiprocess mode it is the sum over the processes that are alive."""
    return Gauge(name, documentation, labels, registry=None, multiprocess_mode="livesum")


def route_label(scope: Scope | None) -> str:
    """Return the template of the route, `NONE` outside of a web application."""
    return NONE if scope is None else scope.route or NONE

"""The OpenTelemetry observer: metrics by semantic convention, and findings in traces.

Needs the extra `otel`. Nothing else in leakguard imports this module.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Final, cast

from leakguard.core.facts import flat_facts
from leakguard.core.hold import ConnectionHold
from leakguard.core.observer import Observer
from leakguard.core.pool import HOLD_BUCKETS, WAIT_BUCKETS
from leakguard.core.unresolved import UnresolvedLeaks
from leakguard.exceptions import SettingsError

try:
    from opentelemetry.metrics import MeterProvider, get_meter
    from opentelemetry.trace import (
        NonRecordingSpan,
        Span,
        TracerProvider,
        get_tracer,
        set_span_in_context,
    )
except ImportError as error:
    message = 'leakguard.observers.opentelemetry needs more: pip install "leakguard[otel]"'
    raise ImportError(message) from error

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext
    from opentelemetry.util.types import AttributeValue

    from leakguard.core.finding import Finding
    from leakguard.core.guard import Guard
    from leakguard.core.hold import Hold
    from leakguard.core.pool import PoolChange, Wait
    from leakguard.core.scope import Scope

EVENT: Final = "leakguard.finding"
"""The name of the event, and of a span that has only this event."""
_POOL: Final = "db.client.connection.pool.name"
_STATE: Final = "db.client.connection.state"
_NONE: Final = "none"


class OpenTelemetry(Observer):
    """Measures and traces with OpenTelemetry's API; what becomes of it, the application's SDK says.

    A finding becomes an event on the span of its request. Where that span has ended by then, or is
    not known any more, it becomes a span of no length with that event, in the same trace.
    """

    def __init__(
        self,
        *,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        """Take whose meters and tracers to use; by default OpenTelemetry's global ones.

        Raises `SettingsError` for what is no provider.
        """
        _check("meter_provider", meter_provider, MeterProvider)
        _check("tracer_provider", tracer_provider, TracerProvider)
        meter = get_meter("leakguard", meter_provider=meter_provider)
        self._tracer: Final = get_tracer("leakguard", tracer_provider=tracer_provider)
        self._connections: Final = meter.create_up_down_counter(
            "db.client.connection.count",
            "{connection}",
            "Connections of the pool: in it (idle) and out of it (used).",
        )
        self._limit: Final = meter.create_up_down_counter(
            "db.client.connection.max",
            "{connection}",
            "Connections that the pool may have out at once.",
        )
        self._waits: Final = meter.create_histogram(
            "db.client.connection.wait_time",
            "s",
            "Time from the request for a connection until there was one, or the pool gave up.",
            explicit_bucket_boundaries_advisory=WAIT_BUCKETS,
        )
        self._held: Final = meter.create_histogram(
            "db.client.connection.use_time",
            "s",
            "Time from checkout to return.",
            explicit_bucket_boundaries_advisory=HOLD_BUCKETS,
        )
        self._timeouts: Final = meter.create_counter(
            "db.client.connection.timeouts",
            "{timeout}",
            "Checkouts that got an error, because the pool had no connection in time.",
        )
        self._findings: Final = meter.create_counter(
            "leakguard.findings",
            "{finding}",
            "Findings, by the route of the request that they belong to.",
        )
        self._leaks: Final = meter.create_up_down_counter(
            "leakguard.unresolved_leaks",
            "{connection}",
            "Connections that were reported as leaked and have not come back.",
        )
        self._unresolved: Final = UnresolvedLeaks(self._count_unresolved)

    def released(self, hold: Hold) -> None:
        """Record how long the connection was out."""
        # One that is handed over to another guard is released there.
        if isinstance(hold, ConnectionHold) and hold.released_monotonic is not None:
            self._held.record(hold.held_for, {_POOL: hold.pool})

    def found(self, finding: Finding) -> None:
        """Count it, and a leak as unresolved, too; and show it in the trace of its request."""
        self._findings.add(1, _labels(finding))
        self._unresolved.found(finding)
        if finding.scope is not None:
            self._show(finding, finding.scope)

    def resolved(self, finding: Finding) -> None:
        """Count the leak as unresolved no more."""
        self._unresolved.resolved(finding)

    def uninstalled(self, guard: Guard) -> None:
        """Follow its leaks no more."""
        self._unresolved.forget(guard)

    def pool_changed(self, change: PoolChange) -> None:
        """Count the connections in the pool and out of it."""
        pool, idle, used, limit = change
        if idle:
            self._connections.add(idle, {_POOL: pool, _STATE: "idle"})
        if used:
            self._connections.add(used, {_POOL: pool, _STATE: "used"})
        if limit:
            self._limit.add(limit, {_POOL: pool})

    def waited(self, wait: Wait) -> None:
        """Record how long a checkout took, and count that it timed out."""
        attributes = {_POOL: wait.pool}
        self._waits.record(wait.seconds, attributes)
        if wait.timed_out:
            self._timeouts.add(1, attributes)

    def _show(self, finding: Finding, scope: Scope) -> None:
        trace = scope.trace
        if trace is None:
            return
        span = trace.span()
        if isinstance(span, Span) and span.is_recording():
            span.add_event(EVENT, _facts(finding))
            return
        parent = set_span_in_context(NonRecordingSpan(cast("SpanContext", trace.context)))
        now = time_ns()
        last = self._tracer.start_span(EVENT, parent, start_time=now)
        last.add_event(EVENT, _facts(finding), now)
        last.end(now)

    def _count_unresolved(self, finding: Finding, change: int) -> None:
        self._leaks.add(change, {_POOL: finding.pool or _NONE})


def _check(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise SettingsError(name, value, f"must be an OpenTelemetry {kind.__name__}, or None")


def _labels(finding: Finding) -> dict[str, AttributeValue]:
    scope = finding.scope
    labels: dict[str, AttributeValue] = {"leakguard.kind": finding.kind.value}
    if finding.pool is not None:
        labels[_POOL] = finding.pool
    if scope is not None and scope.method is not None:
        labels["http.request.method"] = scope.method
    if scope is not None and scope.route is not None:
        labels["http.route"] = scope.route
    return labels


def _facts(finding: Finding) -> dict[str, AttributeValue]:
    """Return what is known of it, as attributes of an event."""
    facts = flat_facts(finding).items()
    return {f"leakguard.{name}": value for name, value in facts if value is not None}

"""The Prometheus observer: what is found, held, waited for and out, as metrics.

The metrics change when something happens, not when they are scraped, which is what the
client's multiprocess mode needs.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import prometheus_client
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, multiprocess
from prometheus_client.metrics import MetricWrapperBase

from leakguard.core.hold import ConnectionHold
from leakguard.core.lock import LOCK
from leakguard.core.observer import Observer
from leakguard.core.pool import HOLD_BUCKETS, WAIT_BUCKETS
from leakguard.core.unresolved import UnresolvedLeaks
from leakguard.exceptions import SettingsError

if TYPE_CHECKING:
    from leakguard.core.finding import Finding
    from leakguard.core.guard import Guard
    from leakguard.core.hold import Hold
    from leakguard.core.pool import PoolChange, Wait
    from leakguard.core.scope import Scope

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]
Inc = Callable[[float], None]

_client: Final[Any] = prometheus_client
_multiprocess: Final[Any] = multiprocess
"""Like some of the client, these have no full types."""
_NONE: Final = "none"
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

    def register(self, registry: CollectorRegistry) -> None:
        """Add all of them to a registry, or none; raise `ValueError` where one is there already."""
        added: list[MetricWrapperBase] = []
        try:
            for metric in vars(self).values():
                registry.register(metric)
                added.append(metric)
        except ValueError:
            for metric in added:
                registry.unregister(metric)
            raise


def _gauge(name: str, documentation: str, *labels: str) -> Gauge:
    """Make a gauge; in multiprocess mode it is the sum over the processes that are alive."""
    return Gauge(name, documentation, labels, registry=None, multiprocess_mode="livesum")


_METRICS: Final[weakref.WeakKeyDictionary[CollectorRegistry, Metrics]] = weakref.WeakKeyDictionary()


class Prometheus(Observer):
    """Counts in a registry of the official client library; the default one if none is given.

    Any number of observers may share a registry: its metrics are made once.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Take the registry.

        Raises `SettingsError` for anything else, and where the registry has metrics of one of
        these names already that are not leakguard's.
        """
        _check_registry(registry)
        self._metrics: Final = _metrics_of(registry)
        # Children by their label values, because looking one up takes longer than counting.
        self._idle: dict[str, Inc] = {}
        self._used: dict[str, Inc] = {}
        self._held: dict[tuple[str, str], Inc] = {}
        self._waits: dict[str, Inc] = {}
        self._scopes: dict[str, Inc] = {}
        self._unrouted: dict[Scope, list[tuple[str, float]]] = {}
        """Pools and seconds of connections that came back before a router had said which route
        answers: to match all routes for it would cost more than all the rest."""
        self._unresolved = UnresolvedLeaks(self._count_unresolved)

    def scope_opened(self, scope: Scope) -> None:
        """Count it as open."""
        self._count_scope(scope, 1)

    def scope_closed(self, scope: Scope) -> None:
        """Count it as open no more."""
        self._count_scope(scope, -1)
        self._observe_unrouted(scope)

    def released(self, hold: Hold) -> None:
        """Observe how long the connection was out."""
        # One that is handed over to another guard is released there.
        if not isinstance(hold, ConnectionHold) or hold.released_monotonic is None:
            return
        scope = hold.scope
        if scope is None or _has_ended(scope) or scope.route_known:
            self._observe(scope, hold.pool, hold.held_for)
        else:
            self._unrouted.setdefault(scope, []).append((hold.pool, hold.held_for))
            if _has_ended(scope):  # in between, in another thread
                self._observe_unrouted(scope)

    def found(self, finding: Finding) -> None:
        """Count it, and a leak as unresolved, too."""
        scope = finding.scope
        method = None if scope is None else scope.method
        labels = (finding.kind.value, method or _NONE, _route(scope), finding.pool or _NONE)
        self._metrics.findings.labels(*labels).inc()
        self._unresolved.found(finding)

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
            self._inc(self._idle, pool, "idle")(idle)
        if used:
            self._inc(self._used, pool, "used")(used)
        if limit:
            self._metrics.limit.labels(pool).inc(limit)

    def waited(self, wait: Wait) -> None:
        """Observe how long a checkout took, or count that it timed out."""
        if wait.timed_out:
            self._metrics.timeouts.labels(wait.pool).inc()
        observe = self._waits.get(wait.pool)
        if observe is None:
            observe = self._waits[wait.pool] = self._metrics.waits.labels(wait.pool).observe
        observe(wait.seconds)

    def _observe_unrouted(self, scope: Scope) -> None:
        for pool, seconds in self._unrouted.pop(scope, ()):
            self._observe(scope, pool, seconds)

    def _observe(self, scope: Scope | None, pool: str, seconds: float) -> None:
        key = (_route(scope), pool)
        observe = self._held.get(key)
        if observe is None:
            observe = self._held[key] = self._metrics.held.labels(*key).observe
        observe(seconds)

    def _inc(self, known: dict[str, Inc], pool: str, state: str) -> Inc:
        inc = known.get(pool)
        if inc is None:
            inc = known[pool] = self._metrics.connections.labels(pool, state).inc
        return inc

    def _count_scope(self, scope: Scope, change: int) -> None:
        inc = self._scopes.get(scope.type)
        if inc is None:
            inc = self._scopes[scope.type] = self._metrics.scopes.labels(scope.type).inc
        inc(change)

    def _count_unresolved(self, finding: Finding, change: int) -> None:
        self._metrics.unresolved.labels(finding.pool or _NONE).inc(change)


def _metrics_of(registry: CollectorRegistry) -> Metrics:
    with LOCK:  # two at once would register the same metrics twice
        metrics = _METRICS.get(registry)
        if metrics is None:
            metrics = Metrics()
            try:
                metrics.register(registry)
            except ValueError as error:
                allowed = f"must not have metrics of the same names already: {error}"
                raise SettingsError("registry", registry, allowed) from error
            _METRICS[registry] = metrics
        return metrics


def _check_registry(registry: object) -> None:
    if not isinstance(registry, CollectorRegistry):
        allowed = "must be a prometheus_client.CollectorRegistry"
        raise SettingsError("registry", registry, allowed)


def _has_ended(scope: Scope) -> bool:
    return scope.closed_at is not None


def _route(scope: Scope | None) -> str:
    return _NONE if scope is None else scope.route or _NONE


def metrics_app(registry: CollectorRegistry = REGISTRY) -> AsgiApp:
    """Make an ASGI application that shows the metrics, to be mounted at `/metrics`.

    It shows those of `registry`. In the client's multiprocess mode it shows those of all
    processes, whichever of them answers, and gauges without the processes that have ended.

    Raises `SettingsError` for a bad registry, and where `PROMETHEUS_MULTIPROC_DIR` names no
    directory.
    """
    _check_registry(registry)
    folder = os.environ.get(_FOLDER_VARIABLE)
    if not folder:
        return _app_of(registry)
    if not Path(folder).is_dir():
        raise SettingsError(_FOLDER_VARIABLE, folder, "must be a directory that exists")

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  (ASGI's)
        _forget_ended_processes(Path(folder))
        every = CollectorRegistry()
        _multiprocess.MultiProcessCollector(every, folder)
        await _app_of(every)(scope, receive, send)

    return app


def _app_of(registry: CollectorRegistry) -> AsgiApp:
    app: AsgiApp = _client.make_asgi_app(registry)
    return app


_FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that turns the client's multiprocess mode on."""
_LIVE_FILE: Final = re.compile(r"gauge_live[a-z]*_(\d+)\.db")


def _forget_ended_processes(folder: Path) -> None:
    """Take the gauges of a process away that was killed, so that nobody could do it then."""
    found = map(_LIVE_FILE.fullmatch, os.listdir(folder))
    for process in {int(match[1]) for match in found if match is not None}:
        if not _is_alive(process):
            with suppress(FileNotFoundError):  # another process does the same
                _multiprocess.mark_process_dead(process, str(folder))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True

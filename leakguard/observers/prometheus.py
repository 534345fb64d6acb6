"""The Prometheus observer: what is found, held, waited for and out, as metrics.

What happens in every request is written down there, and counted a moment later with all that
happened in the meantime, or when the metrics are scraped: counting at once would add half again to
what leakguard costs a request. What pools have is asked for at a scrape. In multiprocess mode all
of it is counted as it happens, because the files that the client writes are all that is left of a
process.
"""

from __future__ import annotations

import os
import re
import weakref
from bisect import bisect_left
from collections import Counter as TallyCounter
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, TypeVar

import prometheus_client
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    multiprocess,
    values,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from leakguard.core.collector import COLLECTOR
from leakguard.core.faults import FAULTS
from leakguard.core.fork import in_child
from leakguard.core.lock import LOCK
from leakguard.core.observer import Observer, notes, of_connections
from leakguard.core.pool import HOLD_BUCKETS, WAIT_BUCKETS, pool_states
from leakguard.core.unresolved import UnresolvedLeaks
from leakguard.core.watch import WATCH
from leakguard.exceptions import SettingsError

if TYPE_CHECKING:
    from leakguard.core.finding import Finding
    from leakguard.core.guard import Guard
    from leakguard.core.hold import Hold
    from leakguard.core.pool import PoolChange, Wait
    from leakguard.core.scope import Scope

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]
T = TypeVar("T")

_client: Final[Any] = prometheus_client
_multiprocess: Final[Any] = multiprocess
_values: Final[Any] = values
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


def _gauge(name: str, documentation: str, *labels: str) -> Gauge:
    """Make a gauge; in multiprocess mode it is the sum over the processes that are alive."""
    return Gauge(name, documentation, labels, registry=None, multiprocess_mode="livesum")


class Counted(Collector):
    """The metrics of a registry, and what is yet to be counted in them."""

    def __init__(self) -> None:
        self.metrics: Final = Metrics()
        self._all: tuple[MetricWrapperBase, ...] = tuple(vars(self.metrics).values())
        self.scopes: Final[deque[tuple[str, int]]] = deque()
        """Types of scopes, and 1 for one that began or -1 for one that ended."""
        self.changes: Final[deque[PoolChange]] = deque()
        self.waits: Final[deque[Wait]] = deque()
        self.returns: Final[deque[_Return]] = deque()
        self._unrouted: list[_Return] = []
        """Those before a router had said which route answers: to match all routes for it would cost
        more than all the rest."""
        # Others show what this process has counted, whenever they are asked and however it ends.
        self._at_once = is_multiprocess()
        self.much: Final = 1 if self._at_once else _MUCH
        """With so much of a kind it is counted, though nobody asks."""
        self.asks_for_pools: Final = not self._at_once
        """Whether that is done at a scrape, so that nobody has to tell it in every request."""
        self._told: TallyCounter[tuple[str, ...]] = TallyCounter()
        """What pools have of which it is told all the same, by the labels of their gauges."""
        self._shown: set[tuple[str, ...]] = set()
        """The labels of the gauges of pools."""
        self._planned = False
        """Whether the watch will count what is written down."""
        _EVERY.add(self)

    def count_soon(self, written: int) -> None:
        """Have it counted, of which there is much; never raises."""
        # Where the collector interrupted some code, that may have a lock of the client's.
        if not (COLLECTOR.runs_here() or self._waits_for_watch(written)):
            self._count_now()
        elif not self._planned:
            self._planned = True
            WATCH.post(self._count_now)

    def _waits_for_watch(self, written: int) -> bool:
        return not self._at_once and WATCH.started and written < _TOO_MUCH

    def _count_now(self) -> None:
        try:
            self.count()
        except Exception as error:  # noqa: BLE001  (the request must not notice a full disk)
            FAULTS.report("leakguard's metrics", error, "They may be wrong.")

    def count(self) -> None:
        """Count what was written down."""
        with _COUNTING:  # two at once would count in parts, and a scrape see one of them
            self._planned = False  # first: whoever writes something down from now on plans anew
            self._count_scopes()
            self._count_connections()
            self._observe_waits()
            self._observe_returns()

    def collect(self) -> Iterator[Metric]:
        """Give the metrics, by all that happened until now."""
        with _COUNTING:  # the watch may be about to count
            self._count_now()
            if self.asks_for_pools:
                self._look_at_pools()
            families = [family for metric in self._all for family in metric.collect()]
        yield from families

    def describe(self) -> Iterator[Metric]:
        """Give the names of the metrics."""
        for metric in self._all:
            yield from metric.describe()

    def begin_child(self) -> None:
        """Go on in the child of a fork, in which no other thread of its parent is."""
        self._planned = False
        # Else what is written down is counted in the child's own copy of the metrics, too.
        if self._at_once:
            for written in (self.scopes, self.changes, self.waits, self.returns):
                written.clear()

    def _count_scopes(self) -> None:
        for (kind, change), times in tallied(self.scopes).items():
            self.metrics.scopes.labels(kind).inc(times * change)

    def _count_connections(self) -> None:
        for (pool, idle, used, limit), times in tallied(self.changes).items():
            if self.asks_for_pools:
                had = {(pool, "idle"): idle, (pool, "used"): used, (pool,): limit}
                self._told.update({labels: times * number for labels, number in had.items()})
                continue
            connections = self.metrics.connections
            if idle:
                connections.labels(pool, "idle").inc(times * idle)
            if used:
                connections.labels(pool, "used").inc(times * used)
            if limit:
                self.metrics.limit.labels(pool).inc(times * limit)

    def _look_at_pools(self) -> None:
        """Set the gauges by what the pools have now, of the guards that tell this registry."""
        values = self._told.copy()
        for guard, (pool, idle, used, limit) in pool_states():
            if any(getattr(observer, "_counted", None) is self for observer in guard.observers):
                values.update({(pool, "idle"): idle, (pool, "used"): used, (pool,): limit})
        self._shown.update(labels for labels, value in values.items() if value)
        for labels in self._shown:  # those of pools that are gone, too
            gauge = self.metrics.limit if len(labels) == 1 else self.metrics.connections
            gauge.labels(*labels).set(values[labels])

    def _observe_waits(self) -> None:
        waits: defaultdict[str, list[float]] = defaultdict(list)
        for wait in _drained(self.waits):
            waits[wait.pool].append(wait.seconds)
            if wait.timed_out:
                self.metrics.timeouts.labels(wait.pool).inc()
        for pool, seconds in waits.items():
            observe_all(self.metrics.waits.labels(pool), seconds)

    def _observe_returns(self) -> None:
        returns = [*self._unrouted, *_drained(self.returns)]
        self._unrouted.clear()
        seconds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for back in returns:
            scope, pool, held_for = back
            known = scope is None or scope.closed_at is not None or scope.route_known
            if known or len(self._unrouted) >= _TOO_MUCH:
                seconds[_route(scope), pool].append(held_for)
            else:
                self._unrouted.append(back)
        for labels, held in seconds.items():
            observe_all(self.metrics.held.labels(*labels), held)


_Return = tuple["Scope | None", str, float]
"""Of a connection that came back: its scope, its pool, and for how many seconds it was out."""

_MUCH: Final = 1000
"""With so much of a kind the watch counts."""
_TOO_MUCH: Final = 5000
"""With so much whoever writes it down counts: an observer may keep the watch busy."""

_EVERY: Final[weakref.WeakSet[Counted]] = weakref.WeakSet()
_COUNTED: Final[weakref.WeakKeyDictionary[CollectorRegistry, Counted]] = weakref.WeakKeyDictionary()


def _begin_child() -> None:
    for counted in list(_EVERY):
        counted.begin_child()


in_child(_begin_child)

_COUNTING: Final = RLock()
"""Held by who counts, in whatever registry. And during a fork: in its child the client's own locks
would stay taken for ever by a thread that counted in its parent."""


def _begin_fork() -> None:
    # In this order, in which a guard takes them that is uninstalled and has something counted.
    LOCK.acquire()
    _COUNTING.acquire()


def _end_fork() -> None:
    _COUNTING.release()
    LOCK.release()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(before=_begin_fork, after_in_parent=_end_fork, after_in_child=_end_fork)


def is_multiprocess() -> bool:
    """Return whether the client writes what it counts to files, which it decides at its import."""
    return bool(getattr(_values.ValueClass, "_multiprocess", False))


def _drained(written: deque[T]) -> Iterator[T]:
    """Take out what is there now; others go on to write at the other end."""
    with suppress(IndexError):
        for _ in range(len(written)):
            yield written.popleft()


def tallied(written: deque[T]) -> Mapping[T, int]:
    """Take out what is there now, and say how often each of it was."""
    return TallyCounter(_drained(written))


def observe_all(histogram: Any, amounts: Iterable[float]) -> None:  # noqa: ANN401  (one of the client's, of whose parts its types say nothing)
    """Observe many values at once, which the client does one by one."""
    amounts = list(amounts)
    bounds = histogram._upper_bounds  # noqa: SLF001  (no public way; tested)
    histogram._sum.inc(sum(amounts))  # noqa: SLF001  (no public way; tested)
    for bucket, times in TallyCounter(bisect_left(bounds, amount) for amount in amounts).items():
        histogram._buckets[bucket].inc(times)  # noqa: SLF001  (no public way; tested)


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
        self._counted: Final = _counted_in(registry)
        # Of one that overrides it, it is told.
        self._leakguard_asks = {Prometheus.pool_changed} if self._counted.asks_for_pools else ()
        self._unresolved = UnresolvedLeaks(self._count_unresolved)

    # What every request does is written down in as few steps as there can be.

    @notes
    def scope_opened(self, scope: Scope) -> None:
        """Count it as open."""
        counted = self._counted
        counted.scopes.append((scope.type, 1))
        if len(counted.scopes) >= counted.much:
            counted.count_soon(len(counted.scopes))

    @notes
    def scope_closed(self, scope: Scope) -> None:
        """Count it as open no more."""
        counted = self._counted
        counted.scopes.append((scope.type, -1))
        if len(counted.scopes) >= counted.much:
            counted.count_soon(len(counted.scopes))

    @notes
    @of_connections
    def released(self, hold: Hold) -> None:
        """Observe how long the connection was out."""
        ended = hold.released_monotonic
        # One that is handed over to another guard is released there.
        if hold.resource == "connection" and ended is not None:
            counted = self._counted
            counted.returns.append((hold.scope, hold.pool, ended - hold.acquired_monotonic))
            if len(counted.returns) >= counted.much:
                counted.count_soon(len(counted.returns))

    def found(self, finding: Finding) -> None:
        """Count it, and a leak as unresolved, too."""
        scope = finding.scope
        method = None if scope is None else scope.method
        labels = (finding.kind.value, method or _NONE, _route(scope), finding.pool or _NONE)
        self._counted.metrics.findings.labels(*labels).inc()
        self._unresolved.found(finding)

    def resolved(self, finding: Finding) -> None:
        """Count the leak as unresolved no more."""
        self._unresolved.resolved(finding)

    def uninstalled(self, guard: Guard) -> None:
        """Follow its leaks no more."""
        self._unresolved.forget(guard)
        self._counted.count()  # who would do it later may go with the guard

    @notes
    def pool_changed(self, change: PoolChange) -> None:
        """Count the connections in the pool and out of it.

        Called in multiprocess mode, and by observers that hand on what they are told.
        """
        counted = self._counted
        counted.changes.append(change)
        if len(counted.changes) >= counted.much:
            counted.count_soon(len(counted.changes))

    @notes
    def waited(self, wait: Wait) -> None:
        """Observe how long a checkout took, or count that it timed out."""
        counted = self._counted
        counted.waits.append(wait)
        if len(counted.waits) >= counted.much:
            counted.count_soon(len(counted.waits))

    def _count_unresolved(self, finding: Finding, change: int) -> None:
        self._counted.metrics.unresolved.labels(finding.pool or _NONE).inc(change)


def _counted_in(registry: CollectorRegistry) -> Counted:
    with LOCK:  # two at once would register the same metrics twice
        counted = _COUNTED.get(registry)
        if counted is None:
            counted = Counted()
            try:
                registry.register(counted)
            except ValueError as error:
                allowed = (
                    f"must have no other metrics of the names that leakguard's have ({error}): "
                    "take those out, or pass Prometheus(CollectorRegistry())"
                )
                raise SettingsError("registry", registry, allowed) from error
            _COUNTED[registry] = counted
        return counted


def _check_registry(registry: object) -> None:
    if not isinstance(registry, CollectorRegistry):
        allowed = "must be a prometheus_client.CollectorRegistry"
        raise SettingsError("registry", registry, allowed)


def _route(scope: Scope | None) -> str:
    return _NONE if scope is None else scope.route or _NONE


def metrics_app(registry: CollectorRegistry = REGISTRY) -> AsgiApp:
    """Make an ASGI application that shows the metrics, to be mounted at `/metrics`.

    It shows those of `registry`. In the client's multiprocess mode it shows those of all
    processes, whichever of them answers, and gauges without the processes that have ended.

    Raises `SettingsError` for a bad registry, and where `PROMETHEUS_MULTIPROC_DIR` names no
    directory, or was set after the client was imported.
    """
    _check_registry(registry)
    folder = os.environ.get(_FOLDER_VARIABLE)
    if not folder:
        return _app_of(registry)
    if not Path(folder).is_dir():
        raise SettingsError(_FOLDER_VARIABLE, folder, "must be a directory that exists")
    if not is_multiprocess():  # nothing would be counted there, and nothing shown
        allowed = "must be set before prometheus_client is imported"
        raise SettingsError(_FOLDER_VARIABLE, folder, allowed)

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

"""Counting: from what an observer is told to the values of the metrics.

What happens in every request is written down, and counted a moment later with all that
happened in the meantime, or when the metrics are scraped: counting at once would add half again to
what leakguard costs a request. What pools have is asked for at a scrape. In multiprocess mode all
of it is counted as it happens, because the files that the client writes are all that is left of a
process.
"""

from __future__ import annotations

import os
import weakref
from bisect import bisect_left
from collections import Counter as TallyCounter
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, TypeVar

from prometheus_client import CollectorRegistry, values
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from leakguard.core.collector import COLLECTOR
from leakguard.core.faults import FAULTS
from leakguard.core.fork import in_child
from leakguard.core.lock import LOCK
from leakguard.core.pool import pool_states
from leakguard.core.watch import WATCH
from leakguard.exceptions import SettingsError
from leakguard.observers.prometheus.metrics import Metrics, route_label

if TYPE_CHECKING:
    from leakguard.core.pool import PoolChange, Wait
    from leakguard.core.scope import Scope

T = TypeVar("T")

_values: Final[Any] = values
"""It has no full types."""


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
                seconds[route_label(scope), pool].append(held_for)
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


def counted_in(registry: CollectorRegistry) -> Counted:
    """Return what a registry has of leakguard's, which is made once.

    Raises `SettingsError` for anything else than a registry, and where it has other metrics of
    these names.
    """
    check_registry(registry)
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


def check_registry(registry: object) -> None:
    """Raise `SettingsError` for what is no registry of the client's."""
    if not isinstance(registry, CollectorRegistry):
        allowed = "must be a prometheus_client.CollectorRegistry"
        raise SettingsError("registry", registry, allowed)

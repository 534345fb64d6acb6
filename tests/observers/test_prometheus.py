"""The metrics are exact: whatever happens to connections, the gauges equal the truth."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sqlite3
import threading
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DisconnectionError, SAWarning
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    NullPool,
    Pool,
    PoolProxiedConnection,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from leakguard import (
    LeakGuard,
    LeakGuardMiddleware,
    Observer,
    PoolChange,
    Prometheus,
    Scope,
    SettingsError,
    metrics_app,
)
from leakguard.core.faults import FAULTS
from leakguard.core.lock import LOCK
from leakguard.core.pool import HOLD_BUCKETS
from leakguard.core.process import observe_everywhere, observe_no_more
from leakguard.core.watch import WATCH
from leakguard.observers.prometheus import counting as prometheus
from leakguard.observers.prometheus.counting import observe_all
from tests.core.fakes import FakeConnection, make_guard
from tests.load.client import call
from tests.support import PATIENCE, drain_watch, driver_ended, drivers_ended, fetch, patiently

QUERY = text("SELECT 1")
Labels = dict[str, str]


class Metrics:
    """A registry of the test's own, and its values."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.observer = Prometheus(self.registry)

    def value(self, name: str, **labels: str) -> float:
        """Give the value of a series; 0 where there is none."""
        drain_watch()
        return self.registry.get_sample_value(name, labels) or 0.0

    def series(self) -> dict[tuple[str, str], float]:
        """Give every value but those of buckets and times of creation."""
        drain_watch()
        return {
            (sample.name, ",".join(sample.labels.values())): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if not sample.name.endswith(("_bucket", "_created"))
        }

    def connections(self) -> tuple[float, float]:
        """Give how many are idle and used."""
        states = ("idle", "used")
        name = "db_client_connection_count"
        idle, used = (self.value(name, pool="main", state=state) for state in states)
        return idle, used


@pytest.fixture(params=[False, True], ids=["by and by", "at once"])
def metrics(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Metrics:
    """Return metrics that are counted when somebody asks, and those of multiprocess mode."""
    monkeypatch.setattr(prometheus, "is_multiprocess", lambda: request.param)
    return Metrics()


@pytest.fixture
def counting(metrics: Metrics) -> Iterator[LeakGuard]:
    """Give a guard that counts and tells nobody else."""
    with LeakGuard(mode="production", observers=[metrics.observer]) as guard:
        yield guard


by_and_by = pytest.mark.parametrize("metrics", [False], ids=["by and by"], indirect=True)
"""For what is written down first."""


class Driver:
    """SQLite connections that say which of them are open."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.open: weakref.WeakSet[object] = weakref.WeakSet()
        """A pool that goes with its engine does not close what it has: that goes, too."""

    def connect(self) -> sqlite3.Connection:
        """Open one."""
        driver = self

        class Connection(sqlite3.Connection):
            def close(self) -> None:
                driver.open.discard(self)
                super().close()

        connection = sqlite3.connect(self._file, check_same_thread=False, factory=Connection)
        self.open.add(connection)
        return connection

    def engine(self, pool: type[Pool], **options: Any) -> Engine:
        """Make an engine that uses them."""
        return create_engine(
            "sqlite://",
            creator=self.connect,
            poolclass=pool,
            pool_logging_name="main",
            **options,
        )


@pytest.fixture
def few_objects() -> Iterator[None]:
    """Have a collection look at what the test made only, which is much faster."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path / "counted.db")


# --- connections ----------------------------------------------------------------------------------


class Play:
    """A random sequence of what programs do to connections, and the truth about them."""

    def __init__(self, driver: Driver, engine: Engine, dice: random.Random) -> None:
        self._driver = driver
        self._engine = engine
        self._dice = dice
        self._out: list[PoolProxiedConnection] = []
        self._detached: list[PoolProxiedConnection] = []
        self.moves: tuple[Callable[[], None], ...] = (
            self.take,
            self.take,
            self.close,
            self.invalidate,
            self.invalidate_softly,
            self.detach,
            self.drop,
            self.close_detached,
            self.dispose,
        )

    def take(self) -> None:
        """Take one, if the pool allows it."""
        if not (self._out and isinstance(self._engine.pool, AssertionPool)):
            self._out.append(self._engine.raw_connection())

    def close(self) -> None:
        """Give one back."""
        if self._out:
            self._one(self._out).close()

    def invalidate(self) -> None:
        """Give one up for good; where all are one, all of them."""
        if self._out:
            self._one(self._out).invalidate()
            self._out = [one for one in self._out if one.is_valid]

    def invalidate_softly(self) -> None:
        """Have one replaced when it is taken next."""
        if self._out:
            one = self._one(self._out)
            one.invalidate(soft=True)
            one.close()

    def detach(self) -> None:
        """Take one out of the pool for good."""
        if self._out and not isinstance(self._engine.pool, StaticPool):
            one = self._one(self._out)
            one.detach()
            self._out = [other for other in self._out if other is not one]
            self._detached.append(one)

    def close_detached(self) -> None:
        """Close one that the pool does not know any more."""
        if self._detached:
            self._one(self._detached).close()

    def drop(self) -> None:
        """Leave one to the garbage collector."""
        if self._out:
            self._one(self._out)
            gc.collect()

    def dispose(self) -> None:
        """Have the engine make a new pool; those out go on in the old one."""
        if not isinstance(self._engine.pool, AssertionPool):
            self._engine.dispose()
            gc.collect()

    def truth(self) -> tuple[int, int]:
        """Count the connections in pools and out of them."""
        gc.collect()
        pooled = set(self._driver.open) - {one.dbapi_connection for one in self._detached}
        used = pooled & {one.dbapi_connection for one in self._out}
        return len(pooled) - len(used), len(used)

    def end(self) -> None:
        """Close everything."""
        for one in self._out + self._detached:
            one.close()
        self._out.clear()
        self._detached.clear()
        self._engine.dispose()

    def _one(self, connections: list[PoolProxiedConnection]) -> PoolProxiedConnection:
        return connections.pop(self._dice.randrange(len(connections)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "pool", [QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool]
)
@pytest.mark.usefixtures("counting", "few_objects")
def test_the_gauges_equal_the_truth(
    pool: type[Pool], seed: int, driver: Driver, metrics: Metrics
) -> None:
    """After every step of a random sequence, for every class of pool."""
    dice = random.Random(seed)  # noqa: S311  (a test's dice)
    play = Play(driver, driver.engine(pool), dice)
    for _ in range(60):
        move = dice.choice(play.moves)
        move()
        truth = play.truth()
        assert metrics.connections() == truth, move.__name__
    play.end()
    truth = play.truth()
    assert metrics.connections() == truth


@pytest.mark.usefixtures("counting")
def test_many_threads_are_counted_exactly(driver: Driver, metrics: Metrics) -> None:
    """Nothing is lost and nothing doubled where threads take, lose and give back at once."""
    engine = driver.engine(QueuePool, pool_size=3, max_overflow=-1)
    together = threading.Barrier(8)
    kept: list[PoolProxiedConnection] = []

    def work(number: int) -> None:
        together.wait(PATIENCE)
        for turn in range(50):
            connection = engine.raw_connection()
            if turn % 10 == number:
                connection.invalidate()
            elif turn % 10 != 9:
                connection.close()
        kept.append(engine.raw_connection())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    checked_in = len([one for one in driver.open if one is not None]) - 8
    assert metrics.connections() == (checked_in, 8)
    assert metrics.value("leakguard_connection_hold_seconds_count", route="none", pool="main") == (
        8 * 50
    )
    for connection in kept:
        connection.close()
    engine.dispose()
    assert metrics.connections() == (0, 0)


def test_what_there_was_before_is_counted(driver: Driver, metrics: Metrics) -> None:
    """A pool that is in use when the guard comes is counted from its first event on."""
    engine = driver.engine(QueuePool)
    connections = [engine.raw_connection() for _ in range(3)]
    for connection in connections[:2]:
        connection.close()
    with LeakGuard(mode="production", observers=[metrics.observer]):
        engine.raw_connection().close()
        assert metrics.connections() == (2, 0)
        connections[2].close()
        assert metrics.connections() == (3, 0)
        assert metrics.value("db_client_connection_max", pool="main") == 15
    assert metrics.connections() == (0, 0)
    assert metrics.value("db_client_connection_max", pool="main") == 0


def test_pools_of_one_name_are_counted_together(driver: Driver, metrics: Metrics) -> None:
    """Replicas, or an engine for each tenant; one that goes takes its own along."""
    engines = [driver.engine(QueuePool, pool_size=2, max_overflow=1) for _ in range(3)]
    with LeakGuard(mode="production", observers=[metrics.observer]):
        out = [engine.raw_connection() for engine in engines]
        assert metrics.connections() == (0, 3)
        assert metrics.value("db_client_connection_max", pool="main") == 9
        while out:
            out.pop().close()
        del engines[0]
        gc.collect()
        assert metrics.connections() == (2, 0)
        assert metrics.value("db_client_connection_max", pool="main") == 6


@pytest.mark.usefixtures("counting")
def test_a_listener_that_refuses_a_new_connection(driver: Driver, metrics: Metrics) -> None:
    """It is closed, and nobody had it."""
    engine = driver.engine(QueuePool)

    def refuse(*_: object) -> None:
        raise KeyError

    event.listen(engine, "connect", refuse)
    for _ in range(3):
        with pytest.raises(KeyError):
            engine.raw_connection()
    assert metrics.connections() == (0, 0)
    event.remove(engine, "connect", refuse)
    with engine.connect():
        assert metrics.connections() == (0, 1)
    assert metrics.connections() == (1, 0)
    engine.dispose()


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("pool", [QueuePool, StaticPool])
def test_a_listener_that_asks_for_another_connection(
    driver: Driver, metrics: Metrics, pool: type[Pool]
) -> None:
    """The one that it gets instead is out."""
    engine = driver.engine(pool)
    engine.connect().close()
    refused: list[object] = []

    def refuse(connection: object, *_: object) -> None:
        if not refused:
            refused.append(connection)
            raise DisconnectionError

    event.listen(engine, "checkout", refuse)
    with engine.connect():
        assert metrics.connections() == (0, 1)
    assert metrics.connections() == (1, 0)
    engine.dispose()


def test_what_comes_back_before_routing_has_the_route_that_answers(
    driver: Driver, metrics: Metrics
) -> None:
    """As what a middleware takes to find out who asks; nobody looks through the routes for it."""
    engine = driver.engine(QueuePool)
    looked_for: list[str] = []
    before: list[str] = []
    """What was looked for when the connection had come back."""

    class Looking(Route):
        def matches(self, scope: Any) -> Any:
            looked_for.append(scope["path"])
            return super().matches(scope)

    def item(_: Request) -> Response:
        return PlainTextResponse("item")

    routed = Starlette(routes=[Looking("/items/{number}", item)])

    async def app(*call: Any) -> None:
        engine.connect().close()
        metrics.series()
        before.extend(looked_for)
        await routed(*call)

    guarded = LeakGuardMiddleware(app, mode="production", observers=[metrics.observer])
    fetch(guarded, "/items/1")
    assert before == []
    fetch(guarded, "/else")
    name = "leakguard_connection_hold_seconds_count"
    assert metrics.value(name, route="/items/{number}", pool="main") == 1
    assert metrics.value(name, route="unmatched", pool="main") == 1
    guarded.guard.uninstall()
    engine.dispose()


class Unrouted(Scope):
    """A scope of which nobody knows the route while it is open."""

    @property
    def route_known(self) -> bool:
        return False


def returned(observer: Prometheus, scope: Scope) -> None:
    """Tell that a connection came back."""
    hold = FakeConnection(scope.guard, scope)
    hold.released_monotonic = hold.acquired_monotonic
    observer.released(hold)


def test_what_comes_back_before_routing_waits_for_the_end(metrics: Metrics) -> None:
    """But not all that ever comes back in one that no router ever sees."""
    scope = Unrouted(make_guard(), "WEBSOCKET", "websocket")
    name = "leakguard_connection_hold_seconds_count"
    returned(metrics.observer, scope)
    assert metrics.value(name, route="none", pool="main") == 0
    scope.closed_at = 1.0
    assert metrics.value(name, route="none", pool="main") == 1
    scope.closed_at = None
    for _ in range(5010):
        returned(metrics.observer, scope)
    assert metrics.value(name, route="none", pool="main") == 11
    scope.closed_at = 1.0
    assert metrics.value(name, route="none", pool="main") == 5011


def written(metrics: Metrics) -> Any:
    """Return what is written down and not yet counted; to look at it is no scrape."""
    return metrics.observer._counted  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # nobody may ask for it


def test_what_a_job_gave_back_is_measured_before_its_end(metrics: Metrics) -> None:
    """No router will ever say more of it."""
    guard = make_guard()
    with guard.scope("job") as scope:
        returned(metrics.observer, scope)
        name = "leakguard_connection_hold_seconds_count"
        assert metrics.value(name, route="none", pool="main") == 1


def test_what_nobody_asks_for_is_counted_when_it_is_much(metrics: Metrics, driver: Driver) -> None:
    """By the watch, which the first connection starts."""
    engine = driver.engine(QueuePool)
    with LeakGuard(mode="production", observers=[metrics.observer]):
        for _ in range(1001):
            engine.connect().close()
        patiently(lambda: len(written(metrics).changes) < 1000)


def test_a_pool_is_counted_whoever_else_is_told_of_it(metrics: Metrics, driver: Driver) -> None:
    """Another observer hears of every change, from whenever it is there."""
    told: list[PoolChange] = []

    class Pools(Observer):
        def pool_changed(self, change: PoolChange) -> None:
            told.append(change)

    engine = driver.engine(QueuePool)
    with LeakGuard(mode="production", observers=[metrics.observer]) as guard:
        first = engine.connect()
        assert metrics.connections() == (0, 1)
        observer = Pools()
        observe_everywhere(observer)
        second = engine.connect()
        first.close()
        assert metrics.connections() == (1, 1)
        assert told == [
            PoolChange("main", 1, 0, 0),
            PoolChange("main", -1, 1, 0),
            PoolChange("main", 1, -1, 0),
        ]
        observe_no_more(observer)
        second.close()
        assert metrics.connections() == (2, 0)
        assert len(told) == 3
        assert len(guard.observers) == 1


def test_what_another_observer_hands_on_is_counted(metrics: Metrics, driver: Driver) -> None:
    """No guard tells the metrics themselves."""

    class Wrapped(Observer):
        def pool_changed(self, change: PoolChange) -> None:
            metrics.observer.pool_changed(change)

    engine = driver.engine(QueuePool)
    with LeakGuard(mode="production", observers=[Wrapped()]):
        connection = engine.connect()
        assert metrics.connections() == (0, 1)
        connection.close()
        assert metrics.connections() == (1, 0)


def test_what_is_handed_on_adds_to_what_is_told(metrics: Metrics, driver: Driver) -> None:
    """Of one pool name, by a guard each."""

    class Wrapped(Observer):
        def pool_changed(self, change: PoolChange) -> None:
            metrics.observer.pool_changed(change)

    told, handed_on = driver.engine(QueuePool), driver.engine(QueuePool)
    with (
        LeakGuard(mode="production", observers=[metrics.observer], engines=[told]),
        LeakGuard(mode="production", observers=[Wrapped()], engines=[handed_on]),
    ):
        first, second = told.connect(), handed_on.connect()
        assert metrics.connections() == (0, 2)
        first.close()
        assert metrics.connections() == (1, 1)
        second.close()
        assert metrics.connections() == (2, 0)


def test_one_that_derives_from_the_metrics_is_told_of_pools(driver: Driver) -> None:
    """Though the metrics themselves ask for what pools have."""
    told: list[PoolChange] = []

    class Mine(Prometheus):
        def pool_changed(self, change: PoolChange) -> None:
            told.append(change)

    engine = driver.engine(QueuePool)
    with LeakGuard(mode="production", observers=[Mine(CollectorRegistry())]):
        engine.connect().close()
    assert PoolChange("main", 1, -1, 0) in told


@by_and_by
def test_a_scrape_shows_the_rest_where_counting_fails(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The registry has metrics of others, too."""
    with LeakGuard(mode="production", observers=[metrics.observer]) as guard, guard.scope("job"):
        monkeypatch.setattr(written(metrics).metrics, "scopes", None)
        assert metrics.series() is not None
    assert "leakguard's metrics raised AttributeError" in caplog.text
    FAULTS.forget()
    monkeypatch.undo()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_nobody_counts_during_a_fork() -> None:
    """In the child the locks of the client would stay taken."""
    counting, go_on = threading.Event(), threading.Event()

    def count() -> None:
        with prometheus._COUNTING:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as one that counts
            counting.set()
            go_on.wait(PATIENCE)

    thread = threading.Thread(target=count)
    thread.start()
    assert counting.wait(PATIENCE)
    threading.Timer(0.05, go_on.set).start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:  # pragma: no cover - in the child
        os._exit(0 if go_on.is_set() else 1)
    thread.join(PATIENCE)
    assert os.waitpid(child, 0)[1] == 0


def test_a_fork_waits_for_locks_in_the_order_of_a_guard_that_goes() -> None:
    """Which has its last changes counted under the lock of the process: else both wait for ever."""
    held = threading.Event()
    counted: list[bool] = []

    def uninstall() -> None:
        with LOCK:
            held.set()
            wants.wait(PATIENCE)
            counted.append(prometheus._COUNTING.acquire(timeout=0))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as one that counts
            if counted[0]:
                prometheus._COUNTING.release()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    class Asked:
        """The lock of the process, which tells that somebody wants it."""

        def acquire(self) -> None:
            wants.set()
            LOCK.acquire()

        def release(self) -> None:
            LOCK.release()

    wants = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prometheus, "LOCK", Asked())
        thread = threading.Thread(target=uninstall)
        thread.start()
        assert held.wait(PATIENCE)
        prometheus._begin_fork()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        prometheus._end_fork()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    thread.join(PATIENCE)
    assert counted == [True]


@by_and_by
def test_a_guard_that_goes_leaves_nothing_uncounted(metrics: Metrics, driver: Driver) -> None:
    """It may take the watch along, which would have counted it."""
    engine = driver.engine(QueuePool)
    with LeakGuard(mode="production", observers=[metrics.observer]) as guard:
        engine.connect().close()
        metrics.series()
        with guard.scope("job"):
            assert written(metrics).scopes
    assert not written(metrics).scopes
    assert metrics.value("leakguard_open_scopes", type="job") == 0


def test_with_several_processes_everything_is_counted_at_once(
    monkeypatch: pytest.MonkeyPatch, driver: Driver
) -> None:
    """Another one may show it at any moment, and this one may be killed."""
    monkeypatch.setattr(prometheus, "is_multiprocess", lambda: True)
    metrics = Metrics()
    counted = written(metrics)
    engine = driver.engine(QueuePool)
    with LeakGuard(mode="production", observers=[metrics.observer]) as guard, guard.scope("job"):
        connection = engine.connect()
        assert not any((counted.scopes, counted.changes, counted.waits))
        connection.close()
        assert not any((counted.changes, counted.returns))
    assert not counted.scopes
    assert metrics.value("leakguard_open_scopes", type="job") == 0


def test_counting_that_fails_is_logged_and_harms_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the disk is full that the client writes to; one that derives from it is disabled."""

    class Derived(Prometheus):
        def scope_closed(self, scope: Scope) -> None:
            raise OSError(scope.name)

    monkeypatch.setattr(prometheus, "is_multiprocess", lambda: True)
    metrics = Metrics()
    derived = Derived(CollectorRegistry())

    def full(kind: str) -> None:
        raise OSError(kind)

    monkeypatch.setattr(written(metrics).metrics.scopes, "labels", full)
    FAULTS.forget()
    for observer, told in ((metrics.observer, 1), (derived, 0)):
        with LeakGuard(mode="production", observers=[observer]) as guard:
            for _ in range(2):
                with guard.scope("job"):
                    pass
            assert len(guard.observers) == told
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "leakguard's metrics raised OSError",
        "leakguard's observer Derived raised OSError",
    ]


def forgetting(job: Callable[[], None]) -> None:
    """Stand for a watch that has ended, or is kept by an observer."""


@by_and_by
@pytest.mark.parametrize("started", [True, False])
def test_what_is_written_down_has_a_bound(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, *, started: bool
) -> None:
    """The watch may be kept by an observer that takes long, or not be there."""
    scope = Scope(make_guard(), "nightly import", "job")
    monkeypatch.setattr(WATCH, "started", started)
    monkeypatch.setattr(WATCH, "post", forgetting)
    most = 0
    for _ in range(12500):
        metrics.observer.scope_opened(scope)
        most = max(most, len(written(metrics).scopes))
    assert most == (4999 if started else 999)
    labels = {"type": "job"}
    assert metrics.registry.get_sample_value("leakguard_open_scopes", labels) == 12500


@by_and_by
@pytest.mark.parametrize("multiprocess", [True, False])
def test_the_child_of_a_fork_has_the_metrics_of_its_parent(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, *, multiprocess: bool
) -> None:
    """A copy of its own; in multiprocess mode the files are the parent's, who writes them."""
    metrics.observer.scope_opened(Scope(make_guard(), "nightly import", "job"))

    def open_jobs() -> float | None:
        return metrics.registry.get_sample_value("leakguard_open_scopes", {"type": "job"})

    written(metrics)._at_once = multiprocess  # noqa: SLF001  (as if a thread had come so far)
    child = os.fork()
    if child == 0:
        os._exit(int(open_jobs() or 0))
    expected = 0.0 if multiprocess else 1.0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == expected
    prometheus._begin_child()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # what the child has done
    assert (open_jobs() or 0) == expected


def test_values_are_observed_at_once_as_one_by_one() -> None:
    """In the same buckets, on their bounds and beyond the last one as well."""
    values = [0.0, 0.001, 0.0011, 5, 300, 301, 5]
    once, each = (
        Histogram(name, "of the test", buckets=HOLD_BUCKETS, registry=None)
        for name in ("once", "each")
    )
    observe_all(once, values)
    for value in values:
        each.observe(value)
    samples = [
        [
            (sample.labels, sample.value)
            for metric in one.collect()
            for sample in metric.samples
            if not sample.name.endswith("_created")
        ]
        for one in (once, each)
    ]
    assert samples[0] == samples[1]


def test_an_observer_of_two_guards_goes_on_to_count_the_leaks_of_one(metrics: Metrics) -> None:
    """When the other one is uninstalled."""
    engines = [create_engine("sqlite://", poolclass=NullPool) for _ in range(2)]
    first, second = (
        LeakGuard(mode="production", observers=[metrics.observer], engines=[engine]).install()
        for engine in engines
    )
    kept: list[Any] = []
    for guard, engine in ((first, engines[0]), (second, engines[1])):
        with guard.scope("job"):
            kept.append(engine.connect())
    name = "leakguard_unresolved_leaks"
    assert metrics.value(name, pool=":memory:") == 2
    first.uninstall()
    assert metrics.value(name, pool=":memory:") == 1
    for connection in kept:
        connection.close()
    assert metrics.value(name, pool=":memory:") == 0
    second.uninstall()


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_guards_count_every_connection_once(
    driver: Driver, metrics: Metrics, first_out: int
) -> None:
    """They share the metrics of a registry, and what one leaves the other goes on to count."""
    engine = driver.engine(QueuePool)
    guards = [
        LeakGuard(mode="production", observers=[Prometheus(metrics.registry)]).install()
        for _ in range(2)
    ]
    connection = engine.raw_connection()
    assert metrics.connections() == (0, 1)
    guards[first_out].uninstall()
    assert metrics.connections() == (0, 1)
    connection.close()
    assert metrics.connections() == (1, 0)
    guards[1 - first_out].uninstall()
    assert metrics.connections() == (0, 0)


def test_engines_that_nobody_watches_are_not_counted(driver: Driver, metrics: Metrics) -> None:
    """Until a guard comes that does."""
    watched, other = driver.engine(QueuePool), driver.engine(QueuePool)
    observers = [metrics.observer]
    with LeakGuard(mode="production", engines=[watched], observers=observers):
        other.raw_connection().close()
        assert metrics.connections() == (0, 0)
        watched.raw_connection().close()
        assert metrics.connections() == (1, 0)
        with LeakGuard(mode="production", observers=observers):
            assert metrics.connections() == (2, 0)
    assert metrics.connections() == (0, 0)


def test_what_a_guard_leaves_goes_to_one_that_watches_it(driver: Driver, metrics: Metrics) -> None:
    """And to nobody where there is none."""
    watched, other = driver.engine(QueuePool), driver.engine(QueuePool)
    everything = LeakGuard(mode="production", observers=[]).install()
    for engine in (watched, other):
        engine.raw_connection().close()
    with LeakGuard(mode="production", engines=[watched], observers=[metrics.observer]):
        assert metrics.connections() == (0, 0)
        everything.uninstall()
        assert metrics.connections() == (1, 0)
    assert metrics.connections() == (0, 0)


@pytest.mark.usefixtures("counting")
def test_checkouts_of_one_connection_that_end_together(driver: Driver, metrics: Metrics) -> None:
    """It comes back once."""
    engine = driver.engine(StaticPool)
    for connection in [engine.raw_connection() for _ in range(3)]:
        connection.close()
    assert metrics.connections() == (1, 0)


@contextmanager
def uncollected() -> Generator[None]:
    """Keep the collector from running by itself."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("multiprocess", [True, False])
def test_a_connection_that_a_finalizer_gives_back(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, *, multiprocess: bool
) -> None:
    """The collector may interrupt whoever holds a metric's lock: nobody waits for it there."""
    monkeypatch.setattr(prometheus, "is_multiprocess", lambda: multiprocess)
    metrics = Metrics()

    class Repository:
        def __init__(self) -> None:
            self.connection = engine.raw_connection()
            self.itself = self

        def __del__(self) -> None:
            self.connection.close()

    engine = driver.engine(QueuePool)
    with LeakGuard(mode="production", observers=[metrics.observer]), uncollected():
        Repository()
        assert metrics.connections() == (0, 1)
        registry: Any = metrics.registry
        counted = registry._names_to_collectors["db_client_connection_count"]  # noqa: SLF001  (no public way to its lock)
        connections = counted.metrics.connections
        with connections.labels("main", "used")._value._lock:  # noqa: SLF001  (as if the collector had come in the middle)
            gc.collect()
        assert metrics.connections() == (1, 0)


# --- waits ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("counting")
def test_waits_and_time_outs_are_counted(driver: Driver, metrics: Metrics) -> None:
    """How long every checkout took, and which of them got none."""
    engine = driver.engine(QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.02)
    connection = engine.raw_connection()
    with pytest.raises(PoolTimeoutError) as raised:
        engine.raw_connection()
    assert raised.value.code == "3o7r"
    connection.close()
    assert metrics.value("db_client_connection_timeouts_total", pool="main") == 1
    assert metrics.value("db_client_connection_wait_time_seconds_count", pool="main") == 2
    assert metrics.value("db_client_connection_wait_time_seconds_sum", pool="main") >= 0.02


@pytest.mark.usefixtures("counting")
def test_a_wait_that_ends_well_is_measured(driver: Driver, metrics: Metrics) -> None:
    """Whoever waits is given the connection that somebody else gives back."""
    engine = driver.engine(QueuePool, pool_size=1, max_overflow=0, pool_timeout=PATIENCE)
    connection = engine.raw_connection()
    taken: list[PoolProxiedConnection] = []
    thread = threading.Thread(target=lambda: taken.append(engine.raw_connection()))
    thread.start()
    thread.join(0.05)
    connection.close()
    thread.join(PATIENCE)
    taken[0].close()
    assert metrics.value("db_client_connection_timeouts_total", pool="main") == 0
    assert metrics.value("db_client_connection_wait_time_seconds_count", pool="main") == 2
    assert metrics.value("db_client_connection_wait_time_seconds_sum", pool="main") >= 0.05


def test_asynchronous_pools_wait_too(tmp_path: Path, metrics: Metrics) -> None:
    """The loop goes on meanwhile; what the collector throws away is out no more."""

    async def main() -> None:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path / 'async.db'}",
            pool_logging_name="main",
            poolclass=AsyncAdaptedQueuePool,
            pool_size=1,
            max_overflow=0,
            pool_timeout=0.02,
        )
        connection = await engine.connect()
        with pytest.raises(PoolTimeoutError):
            await engine.connect()
        assert metrics.connections() == (0, 1)
        await connection.close()
        assert metrics.connections() == (1, 0)
        connection = await engine.connect()
        kept = await connection.get_raw_connection()
        driver_connection: Any = kept.driver_connection
        del connection, kept
        gc.collect()
        assert metrics.connections() == (0, 0)
        await driver_ended(engine, driver_connection)
        await engine.dispose()

    threads = set(threading.enumerate())
    with (
        LeakGuard(mode="production", observers=[metrics.observer]),
        warnings.catch_warnings(action="ignore", category=SAWarning),
    ):
        asyncio.run(main())
        asyncio.run(drivers_ended(threads))
    assert metrics.value("db_client_connection_timeouts_total", pool="main") == 1


# --- scopes and findings --------------------------------------------------------------------------


def test_findings_are_counted_and_leaks_until_they_come_back(
    counting: LeakGuard, driver: Driver, metrics: Metrics
) -> None:
    """By kind and pool; a leak that comes back is unresolved no more."""
    engine = driver.engine(QueuePool)
    with counting.scope("nightly import"):
        assert metrics.value("leakguard_open_scopes", type="job") == 1
        first, second = engine.raw_connection(), engine.raw_connection()
    assert metrics.value("leakguard_open_scopes", type="job") == 0
    labels = {"method": "none", "route": "none", "pool": "main"}
    assert metrics.value("leakguard_findings_total", kind="leaked", **labels) == 2
    assert metrics.value("leakguard_unresolved_leaks", pool="main") == 2
    first.close()
    assert metrics.value("leakguard_unresolved_leaks", pool="main") == 1
    counting.uninstall()
    assert metrics.value("leakguard_unresolved_leaks", pool="main") == 0
    second.close()
    assert metrics.value("leakguard_findings_total", kind="leaked", **labels) == 2


def test_a_connection_that_goes_to_another_guard_is_measured_once(
    driver: Driver, metrics: Metrics
) -> None:
    """To the guard that hands it over it is gone, and still out."""
    engine = driver.engine(QueuePool)
    outer, inner = (
        LeakGuard(mode="production", observers=[Prometheus(metrics.registry)]) for _ in range(2)
    )
    with outer, inner:
        with outer.scope("outer"):
            session = Session(engine)
            with inner.scope("inner"):
                session.execute(QUERY)
            session.close()
        assert (
            metrics.value("leakguard_connection_hold_seconds_count", route="none", pool="main") == 1
        )


def test_clients_add_no_series(metrics: Metrics, driver: Driver) -> None:
    """Whatever paths, methods, headers and parameters of mounts they send."""
    dice = random.Random(1)  # noqa: S311  (a test's dice)
    engine = driver.engine(QueuePool)

    kept: list[Session] = []

    async def item(request: Request) -> Response:
        while kept:
            kept.pop().close()
        kept.append(Session(engine))
        kept[0].execute(QUERY)
        return PlainTextResponse("")

    async def main() -> None:
        inner = Starlette(routes=[Route("/items/{item}", item)])
        app = Starlette(routes=[Mount("/of/{tenant}", inner), Route("/items/{item}", item)])
        guarded = LeakGuardMiddleware(app, mode="production", observers=[metrics.observer])
        known: set[tuple[str, str]] = set()
        for number in range(2000):
            word = f"{dice.getrandbits(64):x}"
            path = dice.choice((f"/{word}", f"/items/{word}", f"/of/{word}/items/{word}"))
            await call(guarded, path, method=dice.choice(("GET", word.upper())))
            if number == 200:
                known = set(metrics.series())
        assert set(metrics.series()) == known

    asyncio.run(main())


# --- the registry ---------------------------------------------------------------------------------


def test_the_metrics_of_a_registry_are_made_once() -> None:
    """Starlette may build its middleware more than once."""
    registry = CollectorRegistry()
    Prometheus(registry)
    Prometheus(registry)


@pytest.mark.parametrize("bad", ["default", None, Counter])
def test_anything_else_is_no_registry(bad: Any) -> None:
    """The error says what is."""
    with pytest.raises(SettingsError, match=r"registry=.* must be a prometheus_client\.Coll"):
        Prometheus(bad)


def test_a_registry_that_has_such_names_already_is_refused() -> None:
    """And gets none of the metrics, however often one tries."""
    registry = CollectorRegistry()
    Counter("db_client_connection_timeouts", "Somebody else's.", registry=registry)
    for _ in range(2):
        with pytest.raises(SettingsError, match="db_client_connection_timeouts_total"):
            Prometheus(registry)
    assert [metric.name for metric in registry.collect()] == ["db_client_connection_timeouts"]


def test_the_metrics_are_shown(metrics: Metrics, driver: Driver) -> None:
    """Mounted in the application that they are about."""
    engine = driver.engine(QueuePool)

    def item(_: Request) -> Response:
        with Session(engine) as session:
            session.execute(QUERY)
        return PlainTextResponse("")

    routes = [Route("/items/{item}", item), Mount("/metrics", metrics_app(metrics.registry))]
    app = Starlette(routes=routes)
    app.add_middleware(LeakGuardMiddleware, mode="production", observers=[metrics.observer])
    fetch(app, "/items/7")
    shown = fetch(app, "/metrics/").text
    assert 'leakguard_connection_hold_seconds_count{pool="main",route="/items/{item}"} 1.0' in shown
    assert 'leakguard_open_scopes{type="http"} 1.0' in shown

"""Many threads, a collector that never rests, observers that raise, pools that are replaced."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool

from leakguard import Finding, FindingKind, LeakGuard, Observer, Scope
from leakguard.core.hold import Hold
from tests.support import PATIENCE, Recorder, drain_watch

QUERY = text("SELECT 1")
THREADS = 16


@pytest.fixture
def eager_collector() -> Iterator[None]:
    """Collect at every allocation, but look only at what the test makes."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def make_engine(folder: Path, **options: Any) -> Engine:
    options.setdefault("max_overflow", -1)
    return create_engine(
        f"sqlite:///{folder / 'threads.db'}",
        connect_args={"check_same_thread": False},
        **{name: value for name, value in options.items() if value is not None},
    )


def in_threads(work: Callable[[int], None], threads: int = THREADS) -> None:
    """Have so many threads do `work`, all at once; raise what one of them raises."""
    begin = threading.Barrier(threads)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        begin.wait(PATIENCE)
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001  (raised below)
            errors.append(error)

    started = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(PATIENCE * 6)
        assert not thread.is_alive(), "a deadlock"
    for error in errors:
        raise error


def everything_is_accounted_for(guard: LeakGuard, recorder: Recorder) -> None:
    """Assert that every hold came to one end, and to one error at most."""
    gc.collect()
    drain_watch()
    assert guard.open_holds() == ()
    assert Counter(recorder.holds_acquired) == Counter(recorder.holds_released)
    assert set(Counter(recorder.holds_acquired).values()) <= {1}
    errors = [one.hold for one in recorder.findings if one.kind.severity == "error"]
    assert set(Counter(errors).values()) <= {1}


# --- the collector --------------------------------------------------------------------------------


@pytest.mark.usefixtures("eager_collector")
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize("pool", [NullPool, None])
def test_collections_everywhere_lose_and_double_nothing(
    recorder: Recorder, tmp_path: Path, pool: type[NullPool] | None
) -> None:
    """16 threads open, close, keep and drop while some collect: each lost hold is found once."""
    engine = make_engine(tmp_path, **({"poolclass": pool, "max_overflow": None} if pool else {}))
    lost: Counter[str] = Counter()
    counting = threading.Lock()

    def work(number: int) -> None:
        for turn in range(12):
            with guard.scope("job"):
                session = Session(engine)
                session.execute(QUERY)
                if (number + turn) % 3 == 0:
                    with counting:
                        lost["session"] += 1
                else:
                    session.close()
                if turn % 4 == 0:
                    engine.raw_connection()
                    with counting:
                        lost["raw"] += 1
                session = None  # type: ignore[assignment]  # dropped, and collected at some time
            if number % 4 == 0:
                gc.collect()

    with LeakGuard(mode="production", observers=[recorder]) as guard:
        in_threads(work)
        everything_is_accounted_for(guard, recorder)
    errors = [one for one in recorder.findings if one.kind.severity == "error"]
    assert (
        Counter("session" if one.hold and one.hold.created_at else "raw" for one in errors) == lost
    )
    engine.dispose()


@pytest.mark.usefixtures("eager_collector")
def test_a_collection_inside_every_callback(tmp_path: Path) -> None:
    """Observers in which the collector runs and which look at the guard: nothing locks up."""

    class Collecting(Recorder):
        def acquired(self, hold: Hold) -> None:
            gc.collect(0)
            super().acquired(hold)

        def released(self, hold: Hold) -> None:
            gc.collect(0)
            super().released(hold)

        def found(self, finding: Finding) -> None:
            str(finding)
            super().found(finding)

    recorder = Collecting()
    engine = make_engine(tmp_path)

    def work(number: int) -> None:
        for turn in range(6):
            with guard.scope("job"):
                connections = [engine.raw_connection(), engine.raw_connection()]
                cycle: list[Any] = [connections[0]]
                cycle.append(cycle)
                if turn % 2:
                    connections[0].close()
                connections[1].close()
                guard.open_holds()

    with LeakGuard(mode="testing", observers=[recorder]) as guard:
        in_threads(work)
        everything_is_accounted_for(guard, recorder)
    errors = [one for one in recorder.findings if one.kind.severity == "error"]
    assert len(errors) == THREADS * 3
    engine.dispose()


# --- observers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken", ["scope_opened", "scope_closed", "acquired", "released", "found", "resolved"]
)
def test_an_observer_that_raises_under_threads(tmp_path: Path, broken: str) -> None:
    """It is not called again once every thread knows; the others are told of everything."""

    class Broken(Observer):
        calls = 0

    def fail(self: Broken, _: Scope | Hold | Finding) -> None:
        Broken.calls += 1
        raise KeyError(broken)

    setattr(Broken, broken, fail)
    recorder = Recorder()
    engine = make_engine(tmp_path)

    def work(number: int) -> None:
        for turn in range(10):
            with guard.scope("job"):
                session = Session(engine)
                session.execute(QUERY)
                if turn % 2:
                    session.close()
            session.close()

    with LeakGuard(mode="testing", observers=[Broken(), recorder]) as guard:
        in_threads(work)
        everything_is_accounted_for(guard, recorder)
    assert 1 <= Broken.calls <= THREADS
    assert recorder.kinds == [FindingKind.LEAKED] * THREADS * 5
    assert len(recorder.resolutions) == THREADS * 5
    assert len(recorder.scopes_closed) == len(recorder.scopes_opened) == THREADS * 10
    assert cast("QueuePool", engine.pool).checkedout() == 0
    engine.dispose()


# --- pools ----------------------------------------------------------------------------------------


def used_properly(engine: Engine, guard: LeakGuard) -> Callable[[int], None]:
    def work(number: int) -> None:
        for turn in range(25):
            with guard.scope("job"):
                if turn % 2:
                    with Session(engine) as session:
                        session.execute(QUERY)
                        if number == 0:
                            engine.dispose()
                        elif number == 1:
                            session.invalidate()
                else:
                    with engine.connect() as connection:
                        if number == 2:
                            connection.invalidate()
                        elif number == 3:
                            connection.detach()
                        else:
                            connection.execute(QUERY)

    return work


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool_recycle": 0},
        {"pool_pre_ping": True},
        {"pool_use_lifo": True},
        {"pool_reset_on_return": None},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_correct_code_on_pools_in_turmoil(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Disposed of, invalidated, detached, recycled and pinged under threads: nobody is accused."""
    engine = make_engine(tmp_path, **{"pool_recycle": -1, **options})
    in_threads(used_properly(engine, guard))
    everything_is_accounted_for(guard, recorder)
    assert recorder.findings == []
    engine.dispose()


@pytest.mark.parametrize("first", ["leakguard", "neighbour"])
def test_a_neighbour_that_asks_for_reconnects(
    recorder: Recorder, tmp_path: Path, first: str
) -> None:
    """Another listener that refuses every third checkout, before and after ours: all comes even."""
    engine = make_engine(tmp_path)
    mine = threading.local()
    told: Counter[str] = Counter()

    def refuse(*_: object) -> None:
        told["checkout"] += 1
        mine.turn = getattr(mine, "turn", 0) + 1
        if mine.turn % 3 == 0:  # not twice running: SQLAlchemy gives up then
            raise DisconnectionError

    def count(*_: object) -> None:
        told["checkin"] += 1

    guard = LeakGuard(mode="testing", observers=[recorder])
    if first == "leakguard":
        guard.install()
    event.listen(engine, "checkout", refuse)
    event.listen(engine, "checkin", count)
    guard.install()
    in_threads(used_properly(engine, guard))
    everything_is_accounted_for(guard, recorder)
    guard.uninstall()
    assert recorder.findings == []
    seen = told["checkout"]
    with engine.connect():  # theirs is still there
        assert told["checkout"] > seen
    engine.dispose()

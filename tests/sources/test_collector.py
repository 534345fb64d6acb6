"""The garbage collector may run at any point, and keeps nothing alive because of us."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool

from leakguard import FindingKind, LeakGuard
from tests.support import PATIENCE, Recorder

QUERY = text("SELECT 1")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Leave everything to reference counts."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def eager_collector() -> Iterator[None]:
    """Collect at every allocation."""
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("mode", ["production", "development"])
def test_a_dropped_connection_goes_at_once(engine: Engine, mode: str) -> None:
    """We make no reference cycle that would keep it: it is back without a collection."""
    guard = LeakGuard(mode=mode, observers=[])

    def drop_one() -> None:
        engine.raw_connection()

    with guard, guard.scope("job"):
        drop_one()
        assert cast("QueuePool", engine.pool).checkedout() == 0


@pytest.mark.parametrize("collected", [True, False])
def test_a_callback_tells_collected_from_closed(engine: Engine, collected: bool) -> None:
    """A weak reference's callback runs before the checkin of a collected proxy, else after it."""
    order: list[str] = []

    @event.listens_for(engine, "checkin")
    def checkin(*_: object) -> None:
        order.append("checkin")

    connection = engine.raw_connection()
    ref = weakref.ref(connection, lambda _: order.append("callback"))
    if not collected:
        connection.close()
    del connection
    gc.collect()
    assert ref() is None
    assert order == (["callback", "checkin"] if collected else ["checkin", "callback"])


def test_nothing_of_the_user_s_is_kept_alive(guard: LeakGuard, recorder: Recorder) -> None:
    """Engines, sessions, connections, tasks and local variables go, findings about them stay."""

    class Local:
        """Something that the user has in a local variable."""

    refs: list[weakref.ref[Any]] = []

    async def leak() -> None:
        local = Local()
        engine = create_engine("sqlite://", poolclass=NullPool)
        session = Session(engine)
        session.execute(QUERY)
        connection = engine.connect()
        task = asyncio.current_task()
        refs.extend(
            weakref.ref(one) for one in (local, engine, engine.pool, session, connection, task)
        )

    async def main() -> None:
        async with guard.scope("job"):
            await asyncio.create_task(leak())

    asyncio.run(main())
    for _ in range(3):  # SQLAlchemy's finalizers bring some of its own back once
        gc.collect()
    assert len(recorder.findings) >= 2
    assert [ref() for ref in refs] == [None] * 6


@pytest.mark.usefixtures("eager_collector")
def test_a_collector_at_every_allocation_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Threads that open, close and drop while the collector runs: every hold is dealt with once."""
    recorder = Recorder()
    guard = LeakGuard(mode="production", observers=[recorder])
    engine = create_engine(
        f"sqlite:///{tmp_path / 'eager.db'}",
        poolclass=NullPool,
        connect_args={"check_same_thread": False},
    )
    rounds, threads = 15, 8

    def work() -> None:
        for number in range(rounds):
            with guard.scope("job"):
                session = Session(engine)
                session.execute(QUERY)
                if number % 3 == 0:
                    session.close()
                elif number % 3 == 1:
                    engine.raw_connection()
                    session.close()
                session = None  # type: ignore[assignment]  # dropped, and collected at some time

    with guard:
        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE * 6)
            assert not worker.is_alive()
        gc.collect()
        recorder.wait_for(lambda: len(recorder.holds_released) == len(recorder.holds_acquired))
        assert guard.open_holds() == ()
    errors = [finding for finding in recorder.findings if finding.kind.severity == "error"]
    lost = threads * rounds * 2 // 3
    assert len(errors) == lost
    assert len({id(finding.hold) for finding in errors}) == lost
    assert set(recorder.holds_acquired) == set(recorder.holds_released)


def test_an_async_connection_that_is_collected_is_said_to_be_thrown_away(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """Drivers for asyncio cannot give back what only the collector found."""
    from sqlalchemy.exc import SAWarning  # noqa: PLC0415  (only here)
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine  # noqa: PLC0415  (only here)

    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'async.db'}")

    async def leak() -> AsyncSession:
        session = AsyncSession(engine)
        await session.execute(QUERY)
        return session

    async def main() -> None:
        before = set(threading.enumerate())
        async with guard.scope("job"):
            session = await leak()
        started = set(threading.enumerate()) - before
        workers = [thread for thread in started if thread.name != "leakguard"]
        assert recorder.kinds == [FindingKind.LEAKED]
        del session
        gc.collect()
        for worker in workers:  # the driver's thread needs the loop until it has ended
            await asyncio.to_thread(worker.join, PATIENCE)
        await engine.dispose()

    with pytest.warns(SAWarning, match="garbage collector"):
        asyncio.run(main())
    recorder.wait_for(lambda: recorder.resolutions)
    resolution = recorder.findings[0].resolution
    assert resolution is not None
    assert resolution.startswith("thrown away by the garbage collector")


@pytest.mark.usefixtures("no_collector")
def test_everything_that_one_collection_takes_is_found(engine: Engine) -> None:
    """All weak references are dead before the first callback runs: who looks then sees no close."""
    recorder = Recorder()

    @event.listens_for(engine, "reset")
    def look(*_: object) -> None:
        guard.open_holds()

    with LeakGuard(mode="testing", observers=[recorder]) as guard:
        for _ in range(5):
            Session(engine).execute(QUERY)
        gc.collect()
        recorder.wait_for(lambda: len(recorder.holds_released) == 10)
        assert recorder.kinds == [FindingKind.RECLAIMED] * 5


def test_sessions_that_nobody_closes_do_not_pile_up_in_a_long_scope(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Of those that the collector took, a scope keeps some for its end, and not all."""
    with guard.scope("ws", type="websocket") as scope:
        for _ in range(150):
            with Session(engine).no_autoflush as session:
                session.execute(QUERY)
                session.commit()
            del session
        gc.collect()
        recorder.wait_for(lambda: len(guard.open_holds()) == 0)
        recorder.wait_for(lambda: len(scope.open_sessions) == 100)
    assert recorder.kinds == [FindingKind.UNCLOSED_SESSION] * 100

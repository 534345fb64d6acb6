"""Work that is cancelled at every await point in turn: each hold is accounted for, once.

A driver runs a coroutine step by step in a task of its own and cancels it when it awaits for the
k-th time, for k = 1, 2, ... until the coroutine ends before its k-th await.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import QueuePool

from leakguard import FindingKind, LeakGuard
from tests.support import Recorder, drain_watch, drivers_ended

QUERY = text("SELECT 1")
Work = Callable[[AsyncEngine, list[Any]], Awaitable[None]]


class CancelledAt:
    """An awaitable that runs another one and has its task cancelled at the k-th await."""

    def __init__(self, inner: Awaitable[None], at: int) -> None:
        self._inner = inner
        self._at = at
        self.awaits = 0

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._inner.__await__()
        sent: Any = None
        raised: BaseException | None = None
        while True:
            try:
                waits_for = steps.send(sent) if raised is None else steps.throw(raised)
            except StopIteration:
                return
            self.awaits += 1
            if self.awaits == self._at:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            raised = None
            try:
                sent = yield waits_for
            except BaseException as error:  # noqa: BLE001  (handed on)
                raised = error


async def closing_session(engine: AsyncEngine, kept: list[Any]) -> None:
    """Close in any case."""
    async with AsyncSession(engine) as session:
        await session.execute(QUERY)
        await session.commit()
        await session.execute(QUERY)


async def closing_connection(engine: AsyncEngine, kept: list[Any]) -> None:
    """Close in any case."""
    async with engine.begin() as connection:
        await connection.execute(QUERY)
        async with connection.begin_nested():
            await connection.execute(QUERY)


async def closing_stream(engine: AsyncEngine, kept: list[Any]) -> None:
    """Close in any case."""
    async with AsyncSession(engine) as session:
        async for _ in await session.stream(QUERY):
            await asyncio.sleep(0)


async def careless_session(engine: AsyncEngine, kept: list[Any]) -> None:
    """Close only where nothing goes wrong."""
    session = AsyncSession(engine)
    kept.append(session)
    await session.execute(QUERY)
    await session.commit()
    await session.execute(QUERY)
    await session.close()


async def careless_connection(engine: AsyncEngine, kept: list[Any]) -> None:
    """Close only where nothing goes wrong."""
    connection = await engine.connect()
    kept.append(connection)
    await connection.execute(QUERY)
    await connection.close()


@pytest.fixture
def quick_collector() -> Iterator[None]:
    """Have collections look only at what the test makes."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collector")
@pytest.mark.filterwarnings("ignore:The garbage collector:sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize(
    "work",
    [closing_session, closing_connection, closing_stream, careless_session, careless_connection],
)
def test_cancelled_at_every_await(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path, work: Work, warm: bool
) -> None:
    """What the pool misses is found, what it has back is not, whichever await was cancelled."""
    at, cancelled = 1, True
    while cancelled:
        cancelled = asyncio.run(one_round(guard, recorder, tmp_path, work, at, warm=warm))
        at += 1
    assert at > 4, "there were no awaits to speak of"


async def one_round(  # noqa: PLR0913  (what is the same in all rounds)
    guard: LeakGuard, recorder: Recorder, folder: Path, work: Work, at: int, *, warm: bool
) -> bool:
    """Cancel the work at one await; say whether it came that far."""
    threads = threading.enumerate()
    engine = create_async_engine(f"sqlite+aiosqlite:///{folder / 'cancelled.db'}")
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    if warm:  # else it is cancelled while it connects, too
        async with engine.connect():
            pass
    kept: list[Any] = []
    told = len(recorder.findings), len(recorder.holds_acquired)
    driver = CancelledAt(work(engine, kept), at)
    task = asyncio.create_task(in_scope(guard, driver))
    (error,) = await asyncio.gather(task, return_exceptions=True)
    reached = driver.awaits >= at
    assert isinstance(error, asyncio.CancelledError) or error is None
    await others_done()
    drain_watch()
    acquired = [
        hold for hold in recorder.holds_acquired[told[1] :] if hold.resource == "connection"
    ]
    out = [hold for hold in guard.open_holds() if hold.resource == "connection"]
    errors = [one for one in recorder.findings[told[0] :] if one.kind.severity == "error"]
    # The pool, the open holds and the findings agree.
    assert len(out) == pool.checkedout(), f"cancelled at await {at}"
    assert [one.hold for one in errors] == out
    assert {one.kind for one in errors} <= {FindingKind.LEAKED}
    assert all((one.scope is not None and one.scope.cancelled) for one in errors)
    assert len(set(acquired)) == len(acquired)
    await give_back(kept)
    await engine.dispose()
    del kept, task, driver, error
    gc.collect()
    drain_watch()
    assert guard.open_holds() == ()
    assert all(finding.resolved for finding in errors)
    await drivers_ended(threads)
    return reached


async def in_scope(guard: LeakGuard, driver: CancelledAt) -> None:
    async with guard.scope("cancelled"):
        await driver


async def others_done() -> None:
    """Wait for the clean-up tasks that SQLAlchemy starts."""
    me = asyncio.current_task()
    while others := [task for task in asyncio.all_tasks() if task is not me]:
        await asyncio.wait(others)


async def give_back(kept: list[AsyncSession | AsyncConnection]) -> None:
    for one in kept:
        await one.close()

"""Pools of asynchronous engines: a file's queue, the one connection in memory, no pool."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SAWarning
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, StaticPool

from leakguard import FindingKind, LeakGuard
from leakguard.sources.sqlalchemy import SQLALCHEMY
from tests.support import PATIENCE, Recorder, driver_ended

QUERY = text("SELECT 1")


class Engines:
    """Asynchronous engines on SQLite, and their drivers' threads."""

    def __init__(self, url: str, pool: type[Any] | None) -> None:
        options = {} if pool is None else {"poolclass": pool}
        self.engine: AsyncEngine = create_async_engine(url, **options)
        self.threads = set(threading.enumerate())

    def run(self, main: Callable[[AsyncEngine], Coroutine[Any, Any, None]]) -> None:
        """Run something with the engine in a loop of its own that outlives the driver's threads."""

        async def run() -> None:
            await main(self.engine)
            await self.engine.dispose()
            started = set(threading.enumerate()) - self.threads
            for thread in started:
                if "_connection_worker_thread" in thread.name:
                    await asyncio.to_thread(thread.join, PATIENCE)

        asyncio.run(run())


@pytest.fixture(params=["file", "memory", "no pool"])
def engines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engines]:
    """Return an engine of each kind; afterwards the source remembers no connection."""
    gc.collect()
    file = f"sqlite+aiosqlite:///{tmp_path / 'async.db'}"
    url, pool = {
        "file": (file, AsyncAdaptedQueuePool),
        "memory": ("sqlite+aiosqlite://", None),
        "no pool": (file, NullPool),
    }[request.param]
    yield Engines(url, pool)
    checkouts = SQLALCHEMY._checkouts  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to look
    for name in ("out", "_by_record", "_detached"):
        assert getattr(checkouts, name) == {}


@contextmanager
def told_by_sqlalchemy() -> Generator[None, None, None]:
    """Expect SQLAlchemy's own warning on a collected connection, which names no line."""
    with pytest.warns(SAWarning, match="garbage collector"):
        yield


def test_memory_is_one_connection() -> None:
    """The default pool for a database in memory shares one connection: what the others rely on."""
    engine = create_async_engine("sqlite+aiosqlite://")
    assert isinstance(engine.pool, StaticPool)


async def by_block(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(QUERY)


async def by_hand(engine: AsyncEngine) -> None:
    connection = await engine.connect()
    await connection.execute(QUERY)
    await connection.close()


async def by_invalidation(engine: AsyncEngine) -> None:
    connection = await engine.connect()
    await connection.execute(QUERY)
    await connection.invalidate()
    await connection.close()


async def of_a_raw_connection(engine: AsyncEngine) -> None:
    def take_and_close(sync_connection: Any) -> None:
        sync_connection.engine.raw_connection().close()

    async with engine.connect() as connection:
        await connection.run_sync(take_and_close)


async def of_a_stream(engine: AsyncEngine) -> None:
    async with engine.connect() as connection, connection.stream(QUERY) as rows:
        async for _ in rows:
            break


async def in_another_task(engine: AsyncEngine) -> None:
    session = AsyncSession(engine)
    await session.execute(QUERY)
    await asyncio.create_task(session.close())


async def after_a_cancellation(engine: AsyncEngine) -> None:
    begun = asyncio.Event()

    async def wait_for_ever() -> None:
        async with AsyncSession(engine) as session:
            await session.execute(QUERY)
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait_for_ever())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "work",
    [
        by_block,
        by_hand,
        by_invalidation,
        of_a_raw_connection,
        of_a_stream,
        in_another_task,
        after_a_cancellation,
    ],
)
def test_what_comes_back_is_clean(
    guard: LeakGuard,
    recorder: Recorder,
    engines: Engines,
    work: Callable[[AsyncEngine], Awaitable[None]],
) -> None:
    """However a connection comes back: no finding, and nothing is open."""

    async def main(engine: AsyncEngine) -> None:
        async with guard.scope("job"):
            for _ in range(2):
                await work(engine)

    engines.run(main)
    assert [kind for kind in recorder.kinds if kind.severity == "error"] == []
    assert guard.open_holds() == ()
    assert set(recorder.holds_acquired) == set(recorder.holds_released)


def test_what_is_kept_has_leaked(guard: LeakGuard, recorder: Recorder, engines: Engines) -> None:
    """A connection that is still out is found, and resolved when it comes back."""

    async def main(engine: AsyncEngine) -> None:
        async with guard.scope("job"):
            connection = await engine.connect()
        assert recorder.kinds == [FindingKind.LEAKED]
        await connection.close()

    engines.run(main)
    recorder.wait_for(lambda: recorder.resolutions)
    resolution = recorder.findings[0].resolution
    assert resolution is not None
    assert resolution.startswith("given back")


def test_what_is_dropped_is_reclaimed(
    guard: LeakGuard, recorder: Recorder, engines: Engines
) -> None:
    """A connection that nobody refers to is found, and said to be thrown away."""

    async def main(engine: AsyncEngine) -> None:
        async with guard.scope("job"):
            dropped = await engine.raw_connection()
            driver_connection: Any = dropped.driver_connection
            with told_by_sqlalchemy():
                del dropped
            await driver_ended(engine, driver_connection)
        (finding,) = recorder.findings
        assert finding.kind is FindingKind.RECLAIMED
        assert finding.hold is not None
        assert finding.hold.lost_when_collected

    engines.run(main)


def test_many_that_are_dropped_are_not_remembered(engines: Engines) -> None:
    """Connections of asynchronous engines that are thrown away leave nothing with us."""

    async def main(engine: AsyncEngine) -> None:
        for _ in range(30):
            dropped = await engine.raw_connection()
            driver_connection: Any = dropped.driver_connection
            with told_by_sqlalchemy():
                del dropped
            await driver_ended(engine, driver_connection)

    with LeakGuard(mode="production", observers=[]) as guard:
        engines.run(main)
        assert guard.open_holds() == ()


def test_dispose_while_out(guard: LeakGuard, recorder: Recorder, tmp_path: Path) -> None:
    """A connection of a pool that was disposed of meanwhile is closed like any other."""

    async def main(engine: AsyncEngine) -> None:
        async with guard.scope("job"):
            before = await engine.connect()
            driver_connection: Any = (await before.get_raw_connection()).driver_connection
            await engine.dispose()
            async with engine.connect() as after:
                await after.execute(QUERY)
            await before.close()
        await driver_connection.close()  # its pool is gone, so that nobody else will

    Engines(f"sqlite+aiosqlite:///{tmp_path / 'disposed.db'}", None).run(main)
    assert recorder.findings == []
    assert guard.open_holds() == ()

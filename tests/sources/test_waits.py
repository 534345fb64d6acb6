"""Checkouts that time out: the error says why, whoever waits, with real pools."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from greenlet import greenlet
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, Pool, QueuePool

from leakguard import FindingKind, LeakGuard
from leakguard.core.exhaustion import Use
from leakguard.core.stacks import thread_stack
from leakguard.core.workers import Workers
from leakguard.sources import anyio as anyio_source
from leakguard.sources.sqlalchemy import waits
from leakguard.sources.sqlalchemy.activity import waits_for_pool
from leakguard.sources.sqlalchemy.pools import pool_limits
from tests.support import PATIENCE, Recorder, line_marked

QUERY = text("SELECT 1")
HERE = sys.modules[__name__]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Engine]:
    """Return an engine with two connections, for which nobody waits long."""
    engine = create_engine(
        f"sqlite:///{tmp_path / 'test.db'}",
        pool_size=1,
        max_overflow=1,
        pool_timeout=0.05,
        pool_logging_name="main",
    )
    yield engine
    engine.dispose()


@contextmanager
def exhausted(engine: Engine, size: int = 2) -> Generator[None]:
    """Have all the connections out."""
    with ExitStack() as stack:
        for _ in range(size):
            stack.enter_context(engine.connect())  # taken
        yield


def time_out(engine: Engine) -> PoolTimeoutError:
    """Wait for one more connection in vain."""
    with pytest.raises(PoolTimeoutError) as raised:
        engine.connect()  # waits
    return raised.value


@pytest.mark.usefixtures("guard")
def test_the_error_says_who_has_the_connections(small: Engine, recorder: Recorder) -> None:
    """Also where the application catches it: the finding is told all the same."""
    with exhausted(small):
        error = time_out(small)
    [finding] = recorder.findings
    assert finding.kind is FindingKind.POOL_EXHAUSTED
    assert error.__notes__ == [str(finding)]
    assert finding.exhaustion is not None
    [holders], [waiter] = finding.exhaustion.holders, finding.exhaustion.waiters
    assert holders.site is not None
    assert waiter.site is not None
    assert holders.site.line == line_marked(HERE, "taken")
    assert waiter.site.line == line_marked(HERE, "waits")
    assert (finding.exhaustion.limits.size, finding.exhaustion.limits.overflow) == (1, 1)
    assert finding.evidence.waited is not None
    assert finding.evidence.waited >= 0.05


def test_the_finding_belongs_to_the_scope_that_waited(
    guard: LeakGuard, small: Engine, recorder: Recorder
) -> None:
    """And not to those that have the connections."""
    with guard.scope("has them"), exhausted(small), guard.scope("waits") as scope:
        time_out(small)
    found = [one for one in recorder.findings if one.kind is FindingKind.POOL_EXHAUSTED]
    assert [one.scope for one in found] == [scope]


def test_without_a_guard_nothing_is_added(small: Engine, recorder: Recorder) -> None:
    """Nor where the guard watches other engines only."""
    with exhausted(small):
        with LeakGuard(mode="testing", observers=[recorder], engines=[create_engine("sqlite://")]):
            error = time_out(small)
        assert not hasattr(error, "__notes__")
        assert not hasattr(time_out(small), "__notes__")
    assert recorder.findings == []


@pytest.mark.usefixtures("guard")
def test_those_that_time_out_together_share_a_survey(
    small: Engine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are many, and each would say the same; after a while it is made anew."""
    for setting, value in (("_SURVEY_AGE", 0.0), ("_SURVEY_PAUSE", 0), ("_SURVEY_AGE", 1000.0)):
        monkeypatch.setattr(waits, setting, value)
    with exhausted(small):
        time_out(small)
        time_out(small)
    monkeypatch.setattr(waits, "_SURVEY_AGE", 0.0)
    small.dispose()  # the pool that comes then has none
    with exhausted(small):
        time_out(small)
        time_out(small)
    found = [finding.exhaustion for finding in recorder.findings]
    first, second, third, fourth = (one.holders for one in found if one is not None)
    assert first is second
    assert third is not fourth


@pytest.mark.usefixtures("guard")
def test_a_fault_of_ours_leaves_the_error_alone(
    small: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever waited in vain gets the pool's own error."""

    def fail(*_: object, **__: object) -> None:
        raise KeyError

    monkeypatch.setattr(waits, "survey", fail)
    with exhausted(small):
        assert not hasattr(time_out(small), "__notes__")
    assert [record.levelname for record in caplog.records] == ["ERROR"]


# --- who waits ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("guard")
def test_threads_that_wait_are_told(small: Engine, recorder: Recorder) -> None:
    """Each with its own line, in a copy of nobody's context."""
    pool: Any = small.pool
    pool._timeout = PATIENCE  # noqa: SLF001  (for the first to wait)
    waiting = threading.Event()
    queue = pool._pool  # noqa: SLF001  (to know that it waits)
    get = queue.get

    def get_and_tell(*arguments: Any) -> Any:
        waiting.set()
        return get(*arguments)

    def other() -> None:
        with Session(small) as db:
            db.execute(QUERY)  # in the thread

    thread = threading.Thread(target=other)
    with exhausted(small):
        queue.get = get_and_tell
        thread.start()
        assert waiting.wait(PATIENCE)
        pool._timeout = 0.05  # noqa: SLF001  (for the next)
        time_out(small)
        queue.get = get
    thread.join(PATIENCE)
    [finding] = recorder.findings
    assert finding.exhaustion is not None
    sites = [group.site for group in finding.exhaustion.waiters if group.site is not None]
    lines = {frame.line for site in sites for frame in site.frames}
    assert line_marked(HERE, "in the thread") in lines
    assert finding.exhaustion.waiting == 2


@pytest.mark.parametrize("scoped", [True, False])
def test_tasks_that_wait_are_told(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path, scoped: bool
) -> None:
    """A greenlet does not know its task, which is found by its scope, where it has one."""

    async def main() -> None:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path / 'test.db'}",
            poolclass=AsyncAdaptedQueuePool,  # not the default before SQLAlchemy 2.0.38
            pool_size=1,
            max_overflow=0,
            pool_timeout=0.2,
        )

        async def wait(name: str) -> None:
            if not scoped:
                await use()
                return
            async with guard.scope(name):
                await use()

        async def use() -> None:
            async with AsyncSession(engine) as db:
                await db.execute(QUERY)  # waits in its task

        async with AsyncSession(engine) as db:
            await db.execute(QUERY)
            tasks = [asyncio.create_task(wait(name)) for name in ("first", "second")]
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(answer) for answer in answers} == {PoolTimeoutError}
        await engine.dispose()

    asyncio.run(main())
    first = recorder.findings[0].exhaustion
    assert first is not None
    assert first.waiting == 2
    assert not first.blocks_loop
    line = line_marked(HERE, "waits in its task")
    lines = {group.site and group.site.line for group in first.waiters}
    # Of one in no scope only the one that times out itself has its own stack.
    assert lines == ({line} if scoped else {line, None})
    assert first.holders[0].use is Use.IN_USE or first.holders[0].use is Use.IDLE


@pytest.mark.parametrize("more", [False, True])
def test_what_waits_for_more_is_the_work_that_has_one(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path, more: bool
) -> None:
    """And not all of a scope: its tasks may have one each, and wait for nobody."""

    async def main() -> None:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path / 'test.db'}",
            poolclass=AsyncAdaptedQueuePool,  # not the default before SQLAlchemy 2.0.38
            pool_size=2,
            max_overflow=0,
            pool_timeout=0.5,
        )
        both = asyncio.Barrier(3)
        end = asyncio.Event()

        async def work() -> None:
            async with AsyncSession(engine) as db:
                await db.execute(QUERY)
                await both.wait()
                if more:
                    async with AsyncSession(engine) as inner:
                        await inner.execute(QUERY)
                await end.wait()

        async def late() -> None:
            await both.wait()
            async with engine.connect():
                raise AssertionError("there was one")

        async with guard.scope("import"):
            tasks = [asyncio.create_task(one()) for one in (work, work, late)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            end.set()
            await asyncio.gather(*tasks, return_exceptions=True)
        await engine.dispose()

    asyncio.run(main())
    first = next(one.exhaustion for one in recorder.findings if one.exhaustion is not None)
    assert first.waiting == (3 if more else 1)
    assert first.count(Use.IN_USE, Use.IDLE) == (0 if more else 2)
    assert first.count(Use.WAITING) == (2 if more else 0)


def test_a_checkout_that_stops_the_loop(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """Those who have the connections are tasks of the same loop."""
    engine = create_engine(
        f"sqlite:///{tmp_path / 'test.db'}", pool_size=1, max_overflow=0, pool_timeout=0.05
    )

    async def holding(taken: asyncio.Event, end: asyncio.Event) -> None:
        with guard.scope("holds"), engine.connect():
            taken.set()
            await end.wait()

    async def main() -> None:
        taken, end = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(holding(taken, end))
        await taken.wait()
        time_out(engine)
        end.set()
        await task

    asyncio.run(main())
    finding = next(one for one in recorder.findings if one.kind is FindingKind.POOL_EXHAUSTED)
    assert "stopped the event loop" in (finding.hint.cause or "")
    engine.dispose()


@pytest.mark.usefixtures("guard")
def test_a_checkout_on_a_loop_that_stops_nobody(small: Engine, recorder: Recorder) -> None:
    """Those who have the connections do not need the loop to give them back."""

    async def main() -> None:
        time_out(small)

    with exhausted(small):
        asyncio.run(main())
    [found] = [one.exhaustion for one in recorder.findings if one.exhaustion is not None]
    assert not found.blocks_loop


@pytest.mark.usefixtures("guard")
def test_other_pools_are_left_out(small: Engine, recorder: Recorder, tmp_path: Path) -> None:
    """Those who have their connections, and those who wait for one of them."""
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}", pool_size=1, max_overflow=0)
    pool: Any = other.pool
    queue = pool._pool  # noqa: SLF001  (to have one checkout within another)
    get = queue.get

    def get_within(*arguments: Any) -> Any:
        time_out(small)
        taken.close()
        return get(*arguments)

    with exhausted(small):
        taken = other.connect()
        queue.get = get_within
        other.connect().close()
        queue.get = get
    [finding] = recorder.findings
    assert finding.exhaustion is not None
    assert [group.count for group in finding.exhaustion.holders] == [2]
    assert finding.exhaustion.waiting == 1
    other.dispose()


@pytest.mark.usefixtures("guard")
def test_what_came_back_without_a_word_is_left_out(small: Engine, recorder: Recorder) -> None:
    """Where somebody has cleared the listeners of an event, the proxy still says what is true."""
    returned = small.raw_connection()
    for listener in list(small.pool.dispatch.checkin):
        event.remove(Pool, "checkin", listener)
    returned.close()
    with exhausted(small):
        time_out(small)
        found = recorder.findings[0].exhaustion
    assert found is not None
    assert [group.count for group in found.holders] == [2]


def test_a_checkout_in_a_greenlet_that_is_suspended_waits(
    guard: LeakGuard, recorder: Recorder, small: Engine
) -> None:
    """Within its checkout another one is made, and times out first."""

    def inner() -> None:
        time_out(small)

    pool: Any = small.pool
    queue = pool._pool  # noqa: SLF001  (to have one checkout within another)
    get = queue.get
    nested: list[greenlet] = []

    def get_within(*arguments: Any) -> Any:
        if not nested:
            nested.append(greenlet(inner))
            nested[0].switch()
        return get(*arguments)

    with exhausted(small), guard.scope("job"):
        queue.get = get_within
        outer = greenlet(lambda: time_out(small))
        outer.switch()
        queue.get = get
    first = recorder.findings[0].exhaustion
    assert first is not None
    assert first.waiting == 2
    assert len(recorder.findings) == 2


@pytest.mark.usefixtures("guard")
def test_the_time_out_of_another_pool_says_nothing_of_this_one(
    small: Engine, recorder: Recorder
) -> None:
    """One that is asked in order to connect, as for the address of a tenant."""

    def creator() -> sqlite3.Connection:
        small.connect()
        raise AssertionError("there was one")

    tenant = create_engine(
        "sqlite://", creator=creator, poolclass=QueuePool, pool_logging_name="tenant"
    )
    with exhausted(small), pytest.raises(PoolTimeoutError):
        tenant.connect()
    assert [finding.pool for finding in recorder.findings] == ["main"]
    tenant.dispose()


def test_a_statement_that_takes_longer_than_others_wait(recorder: Recorder, tmp_path: Path) -> None:
    """It began before they began to wait."""
    engine = create_engine(
        f"sqlite:///{tmp_path / 'test.db'}", pool_size=1, max_overflow=0, pool_timeout=0.05
    )
    running, waited = threading.Event(), threading.Event()

    def slow() -> int:
        running.set()
        assert waited.wait(PATIENCE)
        return 1

    def work() -> None:
        with engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            raw.create_function("slow", 0, slow)
            connection.execute(text("SELECT slow()"))

    with LeakGuard(mode="testing", observers=[recorder]):
        thread = threading.Thread(target=work)
        thread.start()
        assert running.wait(PATIENCE)
        time_out(engine)
        waited.set()
        thread.join()
    [finding] = recorder.findings
    assert finding.exhaustion is not None
    assert [one.use for one in finding.exhaustion.holders] == [Use.LONG_STATEMENT]
    engine.dispose()


@pytest.mark.usefixtures("guard")
def test_a_detached_connection_is_not_the_pool_s(small: Engine, recorder: Recorder) -> None:
    """Others may be taken in its place."""
    with small.connect() as connection:
        connection.detach()
        with exhausted(small):
            time_out(small)
    [finding] = recorder.findings
    assert finding.exhaustion is not None
    assert finding.exhaustion.out == 2


@pytest.mark.usefixtures("guard")
def test_of_very_many_that_wait_the_places_are_not_all_looked_for(
    small: Engine, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But all of them are counted."""
    monkeypatch.setattr(waits, "_LOOKED_AT", 0)
    waiting = threading.Thread(target=time_out, args=[small])
    with exhausted(small):
        waiting.start()
        time_out(small)
        waiting.join()
    found = [finding.exhaustion for finding in recorder.findings]
    assert 2 in [one.waiting for one in found if one is not None]


def test_a_greenlet_that_has_ended_is_nowhere() -> None:
    """As is one that another thread runs at this moment: only one that is suspended has a stack."""
    ended = greenlet(len)
    ended.switch("")
    checkout = waits._UnderWay(0, 0.0, None, 0, weakref.ref(ended))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as it is for a moment
    assert waits._work_of(checkout, Workers()) == (id(ended), [])  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the same
    del ended
    assert waits._work_of(checkout, Workers()) == (None, [])  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the same
    assert not waits_for_pool(thread_stack(threading.get_ident()))


def test_a_connection_that_is_being_opened_keeps_nobody_waiting(
    recorder: Recorder, tmp_path: Path
) -> None:
    """The pool has room for it."""
    opening, go_on = threading.Event(), threading.Event()

    def creator() -> sqlite3.Connection:
        opening.set()
        go_on.wait(PATIENCE)
        return sqlite3.connect(tmp_path / "test.db", check_same_thread=False)

    engine = create_engine(
        "sqlite://",
        creator=creator,
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=0.05,
    )
    with LeakGuard(mode="testing", observers=[recorder]):
        thread = threading.Thread(target=lambda: engine.connect().close())
        thread.start()
        assert opening.wait(PATIENCE)
        time_out(engine)
        go_on.set()
        thread.join(PATIENCE)
    found = recorder.findings[0].exhaustion
    assert found is not None
    assert [group.use for group in found.holders] == [Use.OPENING]
    assert found.waiting == 1
    engine.dispose()


# --- AnyIO ----------------------------------------------------------------------------------------


def test_the_limit_of_threads_is_told_in_them() -> None:
    """Elsewhere it is not what keeps anybody waiting."""

    async def main() -> None:
        limiter = anyio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = 7
        assert await anyio.to_thread.run_sync(anyio_source.thread_limit) == 7
        limiter.total_tokens = float("inf")
        assert await anyio.to_thread.run_sync(anyio_source.thread_limit) is None
        assert anyio_source.thread_limit() is None

    asyncio.run(main())


@pytest.mark.usefixtures("guard")
def test_who_waits_in_such_a_thread_is_told_the_limit(small: Engine, recorder: Recorder) -> None:
    """As every function of Starlette's that is not `async`."""

    async def main() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 7
        await anyio.to_thread.run_sync(time_out, small)

    with exhausted(small):
        asyncio.run(main())
    [finding] = recorder.findings
    assert finding.exhaustion is not None
    assert finding.exhaustion.threads == 7


def test_another_anyio_may_keep_it_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the limit is not known."""
    monkeypatch.setattr("leakguard.sources.anyio.modules", {})

    async def main() -> None:
        assert await anyio.to_thread.run_sync(anyio_source.thread_limit) is None

    asyncio.run(main())


# --- limits ---------------------------------------------------------------------------------------


def test_what_a_pool_allows() -> None:
    """As far as its class says so."""
    pool = QueuePool(lambda: None, pool_size=3, max_overflow=-1, timeout=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # never opened
    assert pool_limits(pool) == (limits := pool_limits(pool))
    assert (limits.size, limits.overflow, limits.timeout) == (3, None, 2.0)
    bare = pool_limits(NullPool(lambda: None))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # never opened
    assert (bare.size, bare.overflow, bare.timeout) == (None, None, None)

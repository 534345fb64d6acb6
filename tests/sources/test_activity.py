"""Whether a connection that is out is in use: as a statement runs, and as it does not."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from greenlet import greenlet
from sqlalchemy import (
    Connection,
    Engine,
    create_engine,
    event,
    literal,
    select,
    text,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import await_only

from leakguard import FindingKind, LeakGuard, LeakGuardMiddleware
from leakguard.core.hold import ConnectionHold
from leakguard.core.stacks import task_stack, thread_stack
from leakguard.core.workers import Workers
from leakguard.sources.sqlalchemy import SQLALCHEMY, activity
from leakguard.sources.sqlalchemy.activity import (
    Stream,
    begin_execution,
    is_in_database,
)
from leakguard.sources.sqlalchemy.checkout import Checkout
from tests.support import PATIENCE, Recorder

QUERY = text("SELECT 1")


@pytest.fixture
def watching(recorder: Recorder) -> Iterator[LeakGuard]:
    """Return a guard that follows statements, and reports nothing by itself."""
    with LeakGuard(mode="testing", observers=[recorder], held_after=3600.0) as guard:
        yield guard


def connection_of(guard: LeakGuard) -> ConnectionHold:
    """Return the one connection that is out."""
    [hold] = [hold for hold in guard.open_holds() if isinstance(hold, ConnectionHold)]
    return hold


def hold_of(connection: Connection) -> Checkout:
    """Return the hold of a connection that is out."""
    return SQLALCHEMY._checkouts.out[id(connection.connection)]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to see what it sees


def during_statements(engine: Engine, look: Callable[[], object]) -> list[object]:
    """Have `look` called while each statement runs, by the driver's place in it."""
    seen: list[object] = []

    @event.listens_for(engine, "do_execute")
    def execute(cursor: Any, *_: Any) -> None:
        seen.append(look())

    return seen


def test_a_statement_runs_until_it_has_run(watching: LeakGuard, engine: Engine) -> None:
    """As seen from another thread, too."""
    seen = during_statements(engine, lambda: in_thread(lambda: connection_of(watching).executing))
    with Session(engine) as db:
        for _ in range(3):
            db.execute(QUERY)
            assert not connection_of(watching).executing
    assert seen == [True, True, True]


def in_thread(look: Callable[[], object]) -> object:
    """Return what another thread sees."""
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(look()))
    thread.start()
    thread.join(PATIENCE)
    return seen[0]


def test_the_statement_of_another_connection_is_not_one_s_own(
    watching: LeakGuard, engine: Engine
) -> None:
    """Although it runs in the same thread, in a frame that may have the same address."""
    first = engine.connect()
    first.execute(QUERY)
    hold = connection_of(watching)
    seen = during_statements(engine, lambda: hold.executing)
    with engine.connect() as second:
        for _ in range(3):
            second.execute(QUERY)
    assert seen == [False, False, False]
    first.close()


def test_a_frame_that_another_statement_has_by_now() -> None:
    """The one that began last in the thread is the one that runs in it."""
    frame = sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
    first = begin_execution(frame)
    assert first.running
    second = begin_execution(frame)
    assert not first.running
    assert second.running


def test_a_statement_ends_with_its_greenlet() -> None:
    """Whatever frame has the address of its own by then."""
    frame = sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
    ended = greenlet(lambda: begin_execution(frame))
    execution = ended.switch()
    assert ended.dead
    assert not execution.running


def test_a_statement_within_a_statement(watching: LeakGuard, engine: Engine) -> None:
    """The outer one runs on."""
    outer = engine.connect()
    seen: list[bool] = []
    inner = engine.connect()

    @event.listens_for(engine, "do_execute")
    def execute(cursor: Any, statement: str, *_: Any) -> None:
        if statement == "SELECT 2":
            inner.execute(QUERY)
            seen.append(first.executing)

    first = next(one for one in watching.open_holds() if isinstance(one, ConnectionHold))
    outer.execute(text("SELECT 2"))
    assert seen == [True]
    inner.close()
    outer.close()


def test_a_statement_runs_in_its_greenlet(watching: LeakGuard, tmp_path: Any) -> None:
    """Seen from another task while it waits, and by no one once it has ended."""

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")
        waits, go = asyncio.Event(), asyncio.Event()

        @event.listens_for(engine.sync_engine, "do_execute")
        def execute(*_: Any) -> None:
            waits.set()
            await_only(go.wait())

        async with AsyncSession(engine) as db:
            running = asyncio.create_task(db.execute(QUERY))
            await waits.wait()
            hold = connection_of(watching)
            assert hold.executing
            assert in_thread(lambda: hold.executing)
            go.set()
            await running
            del running
            assert not hold.executing
        await engine.dispose()

    asyncio.run(main())


def test_a_greenlet_that_runs_is_on_the_stack_of_its_thread(
    watching: LeakGuard, tmp_path: Any
) -> None:
    """It is not suspended, and so has no stack of its own."""

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")
        seen = during_statements(engine.sync_engine, lambda: connection_of(watching).executing)
        async with AsyncSession(engine) as db:
            await db.execute(QUERY)
        assert seen == [True]
        await engine.dispose()

    asyncio.run(main())


def test_what_is_known_of_threads_has_a_bound(
    watching: LeakGuard, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that have ended nobody tells."""
    monkeypatch.setattr(activity, "_LATEST_LIMIT", 1)
    latest: dict[int, Any] = activity._latest  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to fill it
    latest.clear()
    latest.update({-1: None, -2: None})
    with Session(engine) as db:
        db.execute(QUERY)
        assert len(latest) == 1


class Context:
    """The execution context of a statement with a server-side cursor."""

    _is_server_side = True

    def __init__(self) -> None:
        self.cursor = SimpleNamespace(rownumber=1)


def test_where_another_guard_follows_statements_nothing_is_noted(
    recorder: Recorder, engine: Engine
) -> None:
    """The listener is there for that guard; this one wants nothing of them."""
    with (
        LeakGuard(mode="production", observers=[], held_after=None, engines=[engine]) as guard,
        LeakGuard(mode="testing", observers=[recorder]),
        guard.scope("job"),
        engine.connect() as connection,
    ):
        connection.execute(QUERY)
        hold: Any = connection_of(guard)
        assert hold.execution is None
        assert hold.statement is None


def test_rows_that_are_read_are_use(watching: LeakGuard, engine: Engine) -> None:
    """Those of a server-side cursor, for as long as the program keeps the result."""
    with Session(engine) as db:
        context = Context()
        db.execute(QUERY)
        hold: Any = connection_of(watching)
        hold.note_stream(Stream(context))
        db.execute(QUERY)
        [stream] = hold.streams  # though another statement began since
        assert stream.has_moved()
        assert not stream.has_moved()
        context.cursor.rownumber = 2
        assert stream.has_moved()
        assert hold.tells_idleness
        del context
        assert not stream.has_moved()
        assert hold.tells_idleness


def test_rows_that_sqlalchemy_has_read_ahead_are_use(watching: LeakGuard, engine: Engine) -> None:
    """Each that the program takes, though the driver's cursor stays where it is."""
    numbers = union_all(*(select(literal(number)) for number in range(5)))
    with Session(engine) as db:
        result: Any = db.execute(numbers, execution_options={"stream_results": True})
        hold: Any = connection_of(watching)
        [stream] = hold.streams
        next(result)
        assert stream.has_moved()
        next(result)
        assert stream.has_moved()
        assert not stream.has_moved()
        assert hold.tells_idleness
        assert len(result.fetchmany(3)) == 3  # they are read by somebody unseen
        assert not hold.tells_idleness
        context = weakref.ref(result.context)
        del result
        assert context() is None
        assert hold.tells_idleness


class Odd(Context):
    """The context of a dialect whose results are none of SQLAlchemy's."""

    def _setup_result_proxy(self) -> object:
        return "rows"


def test_whatever_a_dialect_returns_the_program_gets() -> None:
    """Its result is looked into where there is something to see."""
    context = Odd()
    stream = Stream(context)
    stream.follow_result()
    for _ in range(2):
        assert context._setup_result_proxy() == "rows"  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as SQLAlchemy does
    assert stream.tells


class Closed(Context):
    """A context whose cursor was closed, and whose rows are all read."""

    _leakguard_rows = SimpleNamespace(_rowbuffer=())

    def __init__(self) -> None:
        self.cursor = SimpleNamespace(rownumber=1, closed=True)


def test_of_a_result_that_is_read_nothing_is_read_any_more() -> None:
    """Whoever keeps it keeps the connection idle."""
    context = Closed()
    stream = Stream(context)
    assert stream.tells
    context.cursor.closed = False
    assert not stream.tells


def test_of_other_databases_a_cursor_says_whether_it_streams(
    watching: LeakGuard, engine: Engine
) -> None:
    """Only SQLite computes the rows of any other as they are read."""
    with engine.connect() as connection:
        hold: Any = connection_of(watching)
        hold.facts.is_sqlite = False
        connection.execution_options(yield_per=1).execute(QUERY).all()
        assert hold.streams == ()
        assert hold.execution is not None
        hold.facts.is_sqlite = True


def test_where_the_stack_is_short_nobody_is_taken_for_a_connection(
    watching: LeakGuard, engine: Engine
) -> None:
    """A greenlet may have no frame but those of the pool."""
    proxy = greenlet(engine.pool.connect).switch()
    assert not connection_of(watching).tells_idleness
    proxy.close()


def test_a_driver_s_word_that_a_command_runs_counts(watching: LeakGuard, tmp_path: Path) -> None:
    """As of one that it was given behind SQLAlchemy's back."""

    class Connection(sqlite3.Connection):
        status = 0

        def get_transaction_status(self) -> int:  # as psycopg2 calls it
            return self.status

    file = tmp_path / "test.db"
    engine = create_engine(f"sqlite:///{file}", connect_args={"factory": Connection})
    with engine.connect() as connection:
        driver_connection: Any = connection.connection.driver_connection
        hold = connection_of(watching)
        assert not hold.executing
        driver_connection.status = 1
        assert hold.executing
    assert not hold.executing
    engine.dispose()


@pytest.mark.parametrize("mode", ["production", "development"])
def test_every_statement_is_a_use(engine: Engine, mode: str) -> None:
    """Whether its text is kept or not: one may begin and end between two looks."""
    guard = LeakGuard(mode=mode, observers=[], held_after=3600.0)
    with guard, engine.connect() as connection:
        hold = connection_of(guard)
        hold.used_monotonic = hold.last_used - 1000
        connection.execute(QUERY)
        assert hold.idle_for < 500


def test_where_nothing_tells_of_reading_nothing_is_idle(
    watching: LeakGuard, engine: Engine
) -> None:
    """SQLite computes its rows as they are read; asyncpg does not say how many were."""
    with engine.connect() as connection:
        hold: Any = connection_of(watching)
        kept = connection.execute(QUERY)
        assert hold.tells_idleness
        kept = connection.execute(QUERY, execution_options={"yield_per": 10})
        assert not hold.tells_idleness
        assert kept.scalar() == 1
        del kept
        gc.collect()
        assert hold.tells_idleness
        connection.execute(QUERY, execution_options={"stream_results": True})
        assert len(hold.streams) == 1  # what cannot be read any more is not kept


class SlowCommits:
    """An engine whose commits take until somebody lets them go on."""

    def __init__(self, file: Path) -> None:
        self.committing, self.go_on = threading.Event(), threading.Event()
        slow = self

        class Connection(sqlite3.Connection):
            def commit(self) -> None:
                slow.committing.set()
                assert slow.go_on.wait(PATIENCE)
                super().commit()

        def connect() -> sqlite3.Connection:
            return sqlite3.connect(file, check_same_thread=False, factory=Connection)

        self.connection = Connection
        self.engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowCommits]:
    slow = SlowCommits(tmp_path / "slow.db")
    yield slow
    slow.engine.dispose()


def test_whoever_ends_its_transaction_elsewhere_uses_it(
    watching: LeakGuard, slow: SlowCommits
) -> None:
    """No event tells of that, and it need not be the thread that took it."""
    with slow.engine.connect() as connection:
        connection.execute(QUERY)
        hold: Any = connection_of(watching)
        assert not hold.used_elsewhere(Workers())
        thread = threading.Thread(target=connection.commit)
        thread.start()
        assert slow.committing.wait(PATIENCE)
        assert hold.used_elsewhere(Workers())
        slow.go_on.set()
        thread.join()
        assert not hold.used_elsewhere(Workers())


@pytest.mark.parametrize("wait", [asyncio.shield, asyncio.gather])
def test_a_task_that_ends_a_transaction_may_use_it(
    watching: LeakGuard, slow: SlowCommits, wait: Callable[[Any], Awaitable[object]]
) -> None:
    """Outside of any scope, where the tasks of the scope cannot be asked."""

    async def main() -> None:
        options: Any = {"connect_args": {"factory": slow.connection, "check_same_thread": False}}
        engine = create_async_engine("sqlite+aiosqlite://", **options)
        async with AsyncSession(engine) as db:
            await db.execute(QUERY)
            hold: Any = connection_of(watching)
            assert not hold.used_elsewhere(Workers())
            ending = asyncio.ensure_future(wait(db.commit()))
            await asyncio.to_thread(slow.committing.wait, PATIENCE)
            assert hold.used_elsewhere(Workers())
            slow.go_on.set()
            await ending
            assert not hold.used_elsewhere(Workers())
        await engine.dispose()

    asyncio.run(main())


def test_whoever_works_with_another_connection_does_not_use_this_one(
    watching: LeakGuard, slow: SlowCommits, engine: Engine
) -> None:
    """As the thread in which a request ends its transaction: it need not have begun it."""
    with engine.connect() as connection, slow.engine.connect() as other:
        connection.execute(QUERY)
        other.execute(QUERY)
        hold, busy = (hold_of(one) for one in (connection, other))
        thread = threading.Thread(target=other.commit)
        thread.start()
        assert slow.committing.wait(PATIENCE)
        workers = Workers()
        assert not hold.used_elsewhere(workers)
        assert busy.used_elsewhere(workers)
        slow.go_on.set()
        thread.join()
        assert busy.used_elsewhere(workers)  # it is of one moment
        assert not busy.used_elsewhere(Workers())


def test_rows_that_are_read_elsewhere_are_those_of_a_connection(
    watching: LeakGuard, engine: Engine, tmp_path: Path
) -> None:
    """A result knows the connection that executed the statement."""
    reading, go_on = threading.Event(), threading.Event()

    class Cursor(sqlite3.Cursor):
        def fetchall(self) -> list[Any]:
            reading.set()
            assert go_on.wait(PATIENCE)
            return super().fetchall()

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

    options = {"factory": Connection, "check_same_thread": False}
    slow = create_engine(f"sqlite:///{tmp_path / 'rows.db'}", connect_args=options)
    with engine.connect() as connection, slow.connect() as other:
        connection.execute(QUERY)
        result = other.execute(QUERY)
        hold, busy = (hold_of(one) for one in (connection, other))
        thread = threading.Thread(target=result.fetchall)
        thread.start()
        assert reading.wait(PATIENCE)
        workers = Workers()
        assert not hold.used_elsewhere(workers)
        assert busy.used_elsewhere(workers)
        go_on.set()
        thread.join()
    slow.dispose()


def test_where_it_is_not_known_whose_transaction_it_is_it_may_be_any(
    watching: LeakGuard, slow: SlowCommits, engine: Engine
) -> None:
    """As where a program ends that of the driver's own connection by SQLAlchemy's dialect."""
    dialect: Any = slow.engine.dialect
    proxy = slow.engine.raw_connection()
    with engine.connect() as connection:
        connection.execute(QUERY)
        hold = hold_of(connection)
        end = partial(dialect.do_commit, proxy.driver_connection)
        thread = threading.Thread(target=end)
        thread.start()
        assert slow.committing.wait(PATIENCE)
        assert hold.used_elsewhere(Workers())
        slow.go_on.set()
        thread.join()
    proxy.close()


# --- who has it -----------------------------------------------------------------------------------


def test_who_took_it_decides_whether_its_use_can_be_noticed(
    watching: LeakGuard, engine: Engine
) -> None:
    """Nobody notices what happens to the connection of a driver in C."""
    with engine.connect():
        assert connection_of(watching).tells_idleness
    with Session(engine) as db:
        db.execute(QUERY)
        assert connection_of(watching).tells_idleness
    with engine.connect() as connection:
        connection.invalidate()
        connection.execute(QUERY)  # by another one, which it takes in a way of its own
        assert connection_of(watching).tells_idleness
    raw = engine.raw_connection()
    hold = connection_of(watching)
    assert not hold.tells_idleness
    raw.close()
    assert not hold.tells_idleness
    from_pool = engine.pool.connect()
    assert not connection_of(watching).tells_idleness
    from_pool.close()


def test_whoever_works_with_another_connection_is_not(watching: LeakGuard, engine: Engine) -> None:
    """Its own is idle meanwhile."""
    with Session(engine) as idle, engine.connect() as busy:
        idle.execute(QUERY)
        holds = [hold for hold in watching.open_holds() if isinstance(hold, ConnectionHold)]
        seen: list[list[bool]] = []

        @event.listens_for(engine, "do_execute")
        def execute(*_: Any) -> None:
            # As if it were the driver that is asked: the listener itself is the user's code.
            caller = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
            seen.append([hold.executing or hold.occupied_by([caller]) for hold in holds])

        busy.execute(QUERY)
    assert seen == [[True, False]]  # it was taken with the first statement, after the other one


def test_whoever_commits_is_in_the_database(watching: LeakGuard, engine: Engine) -> None:
    """And not the user's code that SQLAlchemy calls meanwhile."""
    seen: list[bool] = []

    def look(*_: object) -> None:
        seen.append(connection_of(watching).occupied_by(thread_stack(threading.get_ident())))

    def trace(statement: str) -> None:
        if statement == "COMMIT":
            caller = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
            seen.append(connection_of(watching).occupied_by([caller]))

    with Session(engine) as db:
        event.listen(db, "before_commit", look)
        db.execute(text("create table numbers (number int)"))
        db.execute(text("insert into numbers values (1)"))
        driver: Any = db.connection().connection.driver_connection
        driver.set_trace_callback(trace)
        look()
        db.commit()
        driver.set_trace_callback(None)
    assert seen == [False, False, True]


def test_whoever_waits_for_a_connection_is_not_in_the_database(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has already is idle in the meantime."""
    engine = create_engine(f"sqlite:///{tmp_path / 'test.db'}", poolclass=QueuePool, pool_size=1)
    pool: Any = engine.pool
    seen: list[bool] = []

    def look(*_: Any, **__: Any) -> Any:
        seen.append(is_in_database(thread_stack(threading.get_ident()), None))
        raise LookupError

    with monkeypatch.context() as patch:
        patch.setattr(pool._pool, "get", look)  # noqa: SLF001  (what it waits in)
        with pytest.raises(LookupError):
            engine.connect()
    assert seen == [False]
    engine.dispose()


def test_the_function_of_run_sync_is_not_the_database(tmp_path: Path) -> None:
    """SQLAlchemy's frames around it do nothing but let it run."""

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")
        waits, go = asyncio.Event(), asyncio.Event()

        def work(_: Session) -> None:
            waits.set()
            await_only(go.wait())

        async def run() -> None:
            async with AsyncSession(engine) as db:
                await db.run_sync(work)

        task = asyncio.create_task(run())
        await waits.wait()
        seen = is_in_database(task_stack(task), None)
        go.set()
        await task
        await engine.dispose()
        assert not seen

    asyncio.run(main())


# --- the lifespan ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["thread", "task"])
def test_an_application_may_have_others_take_what_it_keeps(
    watching: LeakGuard, engine: Engine, how: str
) -> None:
    """As it starts: by a thread, or a task as that of `asyncio.wait_for()`."""

    async def take() -> Connection:
        return engine.connect()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if how == "thread":
            kept = await asyncio.to_thread(engine.connect)
        else:
            kept = await asyncio.create_task(take())
        assert connection_of(watching).lifelong
        kept.close()

    middleware = LeakGuardMiddleware(app, guard=watching)
    asyncio.run(middleware({"type": "lifespan"}, None, None))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # not used


@pytest.mark.parametrize("by_lifespan", [True, False])
def test_what_an_application_keeps_for_its_life(
    recorder: Recorder, engine: Engine, by_lifespan: bool
) -> None:
    """It may be idle for as long as it likes; what a task of the lifespan's takes may not."""
    held = threading.Event()

    class Held(Recorder):
        def found(self, finding: Any) -> None:
            super().found(finding)
            held.set()

    recorder = Held()

    async def work(end: asyncio.Event) -> None:
        with engine.connect():
            await end.wait()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        end = asyncio.Event()
        kept = engine.connect() if by_lifespan else None
        await send({"type": "lifespan.startup.complete"})
        task = asyncio.create_task(work(end))
        assert await asyncio.to_thread(held.wait, PATIENCE)
        assert [finding.kind for finding in recorder.findings] == [FindingKind.HELD]
        assert recorder.findings[0].evidence.now_at is not None
        assert recorder.findings[0].evidence.now_at.function.endswith("work")
        end.set()
        await task
        if kept is not None:
            kept.close()

    async def send(message: Any) -> None:
        sent.append(message["type"])

    sent: list[str] = []
    guard = LeakGuard(mode="testing", observers=[recorder], held_after=0.05)
    middleware = LeakGuardMiddleware(app, guard=guard)
    with guard:
        asyncio.run(middleware({"type": "lifespan"}, None, send))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # not used
    assert sent == ["lifespan.startup.complete"]
    assert len(recorder.findings) == 1

"""What leakguard cannot know.

Each test is one limit; its docstring is what docs/accuracy.md says about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
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
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.orm import Session
from sqlalchemy.pool import SingletonThreadPool

from leakguard import FindingKind, LeakGuard, LeakGuardMiddleware, Severity, allow
from leakguard.sources.sqlalchemy.checkout import Checkout
from tests.support import PATIENCE, Recorder

QUERY = text("SELECT 1")
LEAKED = FindingKind.LEAKED
SOON = 0.02
"""Seconds: a `late_after` that is over in no time."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    file = tmp_path / "limits.db"
    engine = create_engine(f"sqlite:///{file}", connect_args={"check_same_thread": False})
    yield engine
    engine.dispose()


@pytest.fixture
def hasty(recorder: Recorder) -> Iterator[LeakGuard]:
    """Return a guard that does not wait long for work which may give a connection back."""
    with LeakGuard(mode="testing", observers=[recorder], late_after=SOON) as guard:
        yield guard


def used(engine: Engine) -> Session:
    """Return a session that holds a connection."""
    session = Session(engine)
    session.execute(QUERY)
    return session


def test_a_thread_without_the_context(guard: LeakGuard, recorder: Recorder, engine: Engine) -> None:
    """Whose a thread is that was started without the request's context.

    `threading.Thread`, `loop.run_in_executor` and pools of one's own do not copy it, as
    `asyncio.to_thread`, `anyio.to_thread` and `asyncio.create_task` do. What such a thread takes is
    listed by `open_holds()` without a request, and not found while it is kept. Once the garbage
    collector has it, it is `reclaimed`, "outside of any scope".
    """
    kept: list[Connection] = []
    with guard.scope("request"):
        thread = threading.Thread(target=lambda: kept.append(engine.connect()))
        thread.start()
        thread.join(PATIENCE)
    assert [hold.scope for hold in guard.open_holds()] == [None]
    assert recorder.kinds == []
    kept.clear()
    gc.collect()
    recorder.wait_for(lambda: recorder.findings)
    (finding,) = recorder.findings
    assert (finding.kind, finding.scope) == (FindingKind.RECLAIMED, None)


def test_work_that_never_ends(guard: LeakGuard, recorder: Recorder, engine: Engine) -> None:
    """Whether work will ever end that a request leaves running.

    A connection in its hands is a notice, `outlives_scope`, for as long as the work runs. It is an
    error only once the work has ended without giving it back.
    """

    async def main() -> None:
        taken, end = asyncio.Event(), asyncio.Event()
        kept: list[Session] = []

        async def work() -> None:
            kept.append(used(engine))
            taken.set()
            await end.wait()

        with guard.scope("request"):
            task = asyncio.create_task(work())
            await taken.wait()
        assert recorder.kinds[-1] is FindingKind.OUTLIVES_SCOPE
        assert LEAKED not in recorder.kinds
        end.set()
        await task
        await asyncio.to_thread(recorder.wait_for, lambda: LEAKED in recorder.kinds)
        kept[0].close()

    asyncio.run(main())


def test_a_task_that_has_it_without_having_taken_it(
    hasty: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """What a task has to do with a connection that another one took.

    A session that a request hands to a task of its own is waited for, but no longer than
    `late_after`: then it is `leaked`, and `resolved` when the task closes it after all.
    """

    async def main() -> None:
        end = asyncio.Event()

        async def close(session: Session) -> None:
            await end.wait()
            session.close()

        with hasty.scope("request"):
            task = asyncio.create_task(close(used(engine)))
        await asyncio.to_thread(recorder.wait_for, lambda: LEAKED in recorder.kinds)
        assert recorder.findings[0].evidence.waited_for_return == SOON
        end.set()
        await task
        await asyncio.to_thread(recorder.wait_for, lambda: recorder.resolutions)

    asyncio.run(main())


def test_a_thread_that_has_it_without_having_taken_it(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Whether a thread is about to give back what it has not taken itself.

    It is not waited for: the connection is `leaked` as the request ends, and `resolved` when the
    thread closes it.
    """
    end = threading.Event()

    def close(session: Session) -> None:
        assert end.wait(PATIENCE)
        session.close()

    with guard.scope("request"):
        thread = threading.Thread(target=close, args=[used(engine)])
        thread.start()
    assert recorder.kinds == [LEAKED]
    end.set()
    thread.join(PATIENCE)
    recorder.wait_for(lambda: recorder.resolutions)


def test_a_callback_that_has_it_without_having_taken_it(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Whether a callback of the event loop is about to give a connection back.

    What is handed to `call_soon()`, `call_later()` or `add_done_callback()` is no task, and nobody
    tells what is due: the connection is `leaked` as the request ends, and `resolved` when the
    callback closes it. A task is waited for; but of trio's tasks and gevent's greenlets only the
    one that took the connection.
    """

    async def main() -> None:
        with guard.scope("request"):
            asyncio.get_running_loop().call_soon(used(engine).close)
        assert recorder.kinds[-1] is LEAKED
        await asyncio.to_thread(recorder.wait_for, lambda: recorder.resolutions)

    asyncio.run(main())


def test_a_session_from_before_the_request(
    hasty: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Whether somebody will close a session that was constructed before the request.

    Where that was outside of any scope, and the session still has a connection when the request
    ends, it is waited for, but no longer than `late_after`: then it is `leaked`, and `resolved`
    when it is closed.
    """
    session = Session(engine)
    with hasty.scope("request"):
        session.execute(QUERY)
    recorder.wait_for(lambda: LEAKED in recorder.kinds)
    session.close()
    recorder.wait_for(lambda: recorder.resolutions)


def test_on_purpose(guard: LeakGuard, recorder: Recorder, engine: Engine) -> None:
    """What is kept on purpose.

    A connection that a request keeps for later ones is `leaked`, unless the code says so:
    `with leakguard.allow("why"):` around the line that takes it.
    """
    with guard.scope("first request"):
        forgotten = engine.connect()
        with allow("the listener's connection"):
            kept = engine.connect()
    assert recorder.kinds.count(LEAKED) == 1
    assert recorder.findings[-1].hold is not None
    forgotten.close()
    assert [hold.allowed for hold in guard.open_holds()] == ["the listener's connection"]
    kept.close()


def test_a_worker_that_a_request_started(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """For which request a task or a callback works, other than by the context that it runs in.

    A worker that the first request starts, and that serves the others too, has the context of the
    first: what it takes is the first one's.
    """

    async def main() -> None:
        orders: asyncio.Queue[asyncio.Future[Session]] = asyncio.Queue()

        async def worker() -> None:
            (await orders.get()).set_result(used(engine))

        with guard.scope("first request"):
            task = asyncio.create_task(worker())
        with guard.scope("second request"):
            order: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
            await orders.put(order)
            session = await order
        await task
        await asyncio.to_thread(recorder.wait_for, lambda: LEAKED in recorder.kinds)
        (leak,) = (finding for finding in recorder.findings if finding.kind is LEAKED)
        assert leak.scope is not None
        assert leak.scope.name == "first request"
        session.close()

    asyncio.run(main())


def test_a_greenlet_without_the_context(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Whose a bare greenlet is.

    It begins with an empty context, so that what it takes has no request, as in a thread without
    the context. SQLAlchemy's own greenlets have the context of their task.
    """
    with guard.scope("request"):
        connection = greenlet(engine.connect).switch()
    assert recorder.kinds == []
    assert [hold.scope for hold in guard.open_holds()] == [None]
    connection.close()


def test_a_connection_that_the_driver_has(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """What becomes of a driver's connection that was detached from its pool.

    Once its `Connection` is dropped it counts as lost, although the program may close it through
    the driver.
    """
    with guard.scope("request"):
        connection = engine.connect()
        driver = connection.connection.driver_connection
        connection.detach()
        assert isinstance(driver, sqlite3.Connection)
        del connection
        gc.collect()
        driver.close()
    assert [kind for kind in recorder.kinds if kind.severity is Severity.ERROR] == [
        FindingKind.RECLAIMED
    ]


def test_a_connection_within_a_session_s_use(guard: LeakGuard, recorder: Recorder) -> None:
    """Which line took a `Connection` of a `SingletonThreadPool` that the thread had already.

    Such a pool, SQLite's for `:memory:`, says nothing of it. Where the session is closed that had
    it first, no session is named, but the line that took it first is. Where several requests had
    it at once without a session, nobody knows whose it is, and nobody is accused.
    """
    engine = create_engine("sqlite://", poolclass=SingletonThreadPool)
    with guard.scope("request"), used(engine):
        connection = engine.connect()
    (finding,) = recorder.findings
    assert finding.hold is not None
    assert finding.hold.created_at is None
    assert finding.hold.acquired_at is not None
    assert finding.hold.acquired_at.function == "used"
    connection.close()
    engine.dispose()


def test_connections_that_no_pool_handed_out(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """Connections that no SQLAlchemy pool hands out.

    The driver's own, those of another library's pool, and everything that is no connection.
    """
    with guard.scope("request"):
        connection = sqlite3.connect(tmp_path / "limits.db")
    assert guard.open_holds() == ()
    assert recorder.findings == []
    connection.close()


def test_what_was_out_before(recorder: Recorder, engine: Engine) -> None:
    """What was out before the guard was installed.

    It is no open hold, and no finding comes of it. The middleware installs its guard when
    the application is built.
    """
    connection = engine.connect()
    with LeakGuard(mode="testing", observers=[recorder]) as guard, guard.scope("request"):
        assert guard.open_holds() == ()
    connection.close()
    assert recorder.holds_released == []


def test_what_runs_outside_of_the_middleware(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """What runs outside of the middleware.

    That is a middleware that was added later, a container or a server around the application, and
    Starlette's handler of `Exception`. What they take has no request. That they may yet close what
    the request took is known only of sessions that were constructed before it, and of that handler.
    `app = LeakGuardMiddleware(app)`, around everything, has them inside.
    """
    kept: list[Session] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept.append(used(engine))

    inner = LeakGuardMiddleware(app, guard=guard)

    async def container(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)
        kept[0].close()
        kept.append(used(engine))

    asyncio.run(container({"type": "http", "method": "GET", "path": "/"}, None, None))
    assert recorder.kinds == [LEAKED]
    recorder.wait_for(lambda: recorder.resolutions)
    assert {hold.scope for hold in guard.open_holds()} == {None}
    kept[1].close()


def test_a_listener_that_makes_the_pool_lose_a_connection(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Which connections a pool loses without anybody having them.

    Where a listener of the program's own to `checkin` raises, SQLAlchemy does not put the
    connection back, and whoever returned it gets the exception.
    """

    def refuse(*_: object) -> None:
        raise KeyError("the listener's own")

    event.listen(engine, "checkin", refuse)
    with guard.scope("request"), pytest.raises(KeyError), engine.connect():
        pass
    assert guard.open_holds() == ()
    assert recorder.findings == []
    event.remove(engine, "checkin", refuse)


def test_what_the_driver_s_cursor_of_a_connection_does(recorder: Recorder, engine: Engine) -> None:
    """Whether a `Connection` is idle whose driver's cursor is used instead.

    What `connection.connection.cursor()` executes SQLAlchemy does not tell, and of short statements
    none may run at the moment of a look: such a connection is `held`, though it is in use. A
    `raw_connection()`, of which nothing is said, or `allow()` is for that.
    """
    with (
        LeakGuard(mode="testing", observers=[recorder], held_after=SOON),
        engine.connect() as connection,
    ):
        cursor = connection.connection.cursor()
        end = time.monotonic() + PATIENCE
        while not recorder.findings and time.monotonic() < end:
            cursor.execute("SELECT 1")
        cursor.close()
    assert recorder.kinds == [FindingKind.HELD]


def test_statements_that_another_listener_executes(
    recorder: Recorder, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statements that a listener of the program's own executes.

    SQLAlchemy ends with the first listener to `do_execute` that returns `True`. Where one for all
    engines was there before leakguard, its statements are not seen: their text is not known, and
    their connection may be `held` though it is in use.
    """

    def execute(cursor: Any, statement: str, parameters: Any, _: object) -> bool:
        cursor.execute(statement, parameters)
        return True

    # Listening sets this flag for good.
    monkeypatch.setattr(Dialect, "_has_events", Dialect._has_events)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no public way
    event.listen(Engine, "do_execute", execute)
    try:
        with (
            LeakGuard(mode="testing", observers=[recorder], held_after=3600.0) as guard,
            engine.connect() as connection,
        ):
            assert connection.scalar(QUERY) == 1
            [hold] = guard.open_holds()
            assert hold.statement is None
    finally:
        event.remove(Engine, "do_execute", execute)


def test_what_follows_in_the_request_of_an_asynchronous_dependency_with_a_block(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """What an `allow` block around the `yield` of an `async def` dependency is meant for.

    Such a dependency runs in the request's own context, so that the block exempts whatever the rest
    of the request takes. In a dependency that is `def` it exempts what the dependency takes.
    """

    async def get_db() -> AsyncGenerator[Session]:
        with allow("streams the export"), Session(engine) as db:
            yield db

    async def main() -> None:
        with guard.scope("request"):
            async with contextlib.asynccontextmanager(get_db)() as db:
                db.execute(QUERY)
                kept.append(used(engine))

    kept: list[Session] = []
    asyncio.run(main())
    assert LEAKED not in recorder.kinds
    kept.pop().close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_the_child_of_a_fork_within_a_scope(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """What the child of a fork leaks that was made in the middle of a request or job.

    Its copy of the scope, in which it goes on, may never end there, and then has no verdict.
    """
    with guard.scope("job"):
        child = os.fork()
        if child == 0:
            used(engine)
            os._exit(len(recorder.findings))
        _, status = os.waitpid(child, 0)
    assert status == 0


def test_a_batch_of_rows(recorder: Recorder, engine: Engine) -> None:
    """Whether somebody still reads rows that were taken out of a result in a batch.

    As by `partitions()`, and by the ORM with `yield_per`. While rows of a server-side cursor are
    yet to come, its connection is then not `held`, however long the batch takes.
    """
    numbers = union_all(*(select(literal(number)) for number in range(5)))
    with (
        LeakGuard(mode="testing", observers=[recorder], held_after=3600.0) as guard,
        engine.connect() as connection,
    ):
        result = connection.execute(numbers, execution_options={"yield_per": 2})
        assert len(next(result.partitions())) == 2
        [hold] = guard.open_holds()
        assert isinstance(hold, Checkout)
        assert not hold.tells_idleness

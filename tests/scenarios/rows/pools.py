"""Pools that run dry, pools of every class, and connections that are replaced."""

import asyncio
import threading
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]  # has none
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, SingletonThreadPool, StaticPool
from sqlalchemy.util import greenlet_spawn

from leakguard import FindingKind
from tests.scenarios.lab import Lab, Obstruction
from tests.scenarios.suite import CONNECTION_LEAKED, LEAKED, Expected, scenario
from tests.support import PATIENCE

QUERY = text("SELECT 1")
FULL: dict[str, Any] = {"pool_size": 15, "max_overflow": 0, "pool_timeout": 0.3}
REQUESTS = 40
CONNECTIONS = 15
SERVERS = ("PostgreSQL", "MariaDB")
NESTED = replace(CONNECTION_LEAKED, kind=FindingKind.NESTED_CHECKOUT)

# --- 19 and 20: the pool runs dry -----------------------------------------------------------------


EXHAUSTED = Expected(
    FindingKind.POOL_EXHAUSTED,
    status=500,
    times=REQUESTS - CONNECTIONS,
    says="no leak: 15 of 15 connections are out and idle, most of them while their owners are at ",
)
CROWDED = replace(
    EXHAUSTED,
    says=" wanted one at the same time, and the pool has 15 (size 15, overflow 0)",
)


@scenario(19, "40 requests at once, 15 connections, nothing leaks", EXHAUSTED)
async def more_requests_than_connections_sync(lab: Lab) -> None:
    engine = lab.make_engine(**FULL)
    await run_in_threadpool(open_all, engine)
    errors: list[PoolTimeoutError] = []
    go = threading.Event()

    @lab.app.get("/leak")
    def leak() -> None:
        with Session(engine) as db:
            try:
                db.execute(QUERY)
            except PoolTimeoutError as error:
                errors.append(error)
                if len(errors) == REQUESTS - CONNECTIONS:
                    go.set()
                raise
            go.wait(PATIENCE)

    await see_time_outs(lab, errors)


@scenario(19, "40 requests at once, 15 connections, nothing leaks", EXHAUSTED)
async def more_requests_than_connections_async(lab: Lab) -> None:
    engine = lab.make_async_engine(**FULL)
    await open_all_async(engine)
    errors: list[PoolTimeoutError] = []
    go = asyncio.Event()

    @lab.app.get("/leak")
    async def leak() -> None:
        async with AsyncSession(engine) as db:
            try:
                await db.execute(QUERY)
            except PoolTimeoutError as error:
                errors.append(error)
                if len(errors) == REQUESTS - CONNECTIONS:
                    go.set()
                raise
            await go.wait()

    await see_time_outs(lab, errors)


def open_all(engine: Engine) -> None:
    """Open the connections of the pool beforehand: that may take longer than the time-out."""
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(engine.connect())


async def open_all_async(engine: AsyncEngine) -> None:
    """Open them for an asynchronous engine."""
    async with AsyncExitStack() as stack:
        for _ in range(CONNECTIONS):
            await stack.enter_async_context(engine.connect())


async def see_time_outs(lab: Lab, errors: list[PoolTimeoutError]) -> None:
    """Make the requests; the very errors of the pool leave the application."""
    requests = [lab.get(raises=True) for _ in range(REQUESTS)]
    answers = await asyncio.gather(*requests, return_exceptions=True)
    raised = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(raised) == REQUESTS - CONNECTIONS
    assert set(map(id, raised)) == set(map(id, errors))
    assert {error.code for error in errors} == {"3o7r"}
    for error in errors:
        [note] = error.__notes__
        assert note.startswith("pool_exhausted: GET /leak (")


@scenario(19, "the same, while they run statements", CROWDED)
async def more_statements_than_connections_sync(lab: Lab) -> None:
    obstacle = lab.obstacle(**FULL)
    await run_in_threadpool(open_all, obstacle.engine)

    @lab.app.get("/leak")
    def leak() -> None:
        with Session(obstacle.engine) as db:
            db.execute(obstacle.statement)
            db.rollback()

    await see_crowd(lab, obstacle)


@scenario(19, "the same, while they run statements", CROWDED)
async def more_statements_than_connections_async(lab: Lab) -> None:
    obstacle = lab.obstacle(**FULL)
    await open_all_async(obstacle.async_engine)

    @lab.app.get("/leak")
    async def leak() -> None:
        async with AsyncSession(obstacle.async_engine) as db:
            await db.execute(obstacle.statement)
            await db.rollback()

    await see_crowd(lab, obstacle)


async def see_crowd(lab: Lab, obstacle: Obstruction) -> None:
    """Make the requests, and let their statements end when the others have waited in vain."""
    requests = [asyncio.create_task(lab.get(raises=True)) for _ in range(REQUESTS)]
    await lab.until(lambda: len(lab.recorder.findings) == REQUESTS - CONNECTIONS)
    obstacle.let_go()
    answers = await asyncio.gather(*requests, return_exceptions=True)
    assert sum(isinstance(one, PoolTimeoutError) for one in answers) == REQUESTS - CONNECTIONS


VICTIM = replace(
    EXHAUSTED,
    scope="GET /victim",
    times=1,
    says="leaks: 15 of 15 connections were never given back, most of them from ",
)


@scenario(20, "15 leaks, then a time-out", replace(LEAKED, times=CONNECTIONS), VICTIM)
async def leaks_then_time_out_sync(lab: Lab) -> None:
    engine = lab.make_engine(**FULL | {"pool_timeout": 0.05})

    @lab.app.get("/leak")
    def leak() -> None:
        db = lab.keep(Session(engine))  # leak
        db.execute(QUERY)  # checkout

    @lab.app.get("/victim")
    def victim() -> None:
        with Session(engine) as db:
            db.execute(QUERY)

    await leak_and_time_out(lab)


@scenario(20, "15 leaks, then a time-out", replace(LEAKED, times=CONNECTIONS), VICTIM)
async def leaks_then_time_out_async(lab: Lab) -> None:
    engine = lab.make_async_engine(**FULL | {"pool_timeout": 0.05})

    @lab.app.get("/leak")
    async def leak() -> None:
        db = lab.keep(AsyncSession(engine))  # leak
        await db.execute(QUERY)  # checkout

    @lab.app.get("/victim")
    async def victim() -> None:
        async with AsyncSession(engine) as db:
            await db.execute(QUERY)

    await leak_and_time_out(lab)


async def leak_and_time_out(lab: Lab) -> None:
    """Leak every connection; the next request waits in vain."""
    for _ in range(CONNECTIONS):
        await lab.get()
    await lab.get("/victim", status=500)


# --- 24: every class of pool ----------------------------------------------------------------------


@scenario(24, "`NullPool`: a leak", LEAKED)
async def null_pool_leak_sync(lab: Lab) -> None:
    engine = lab.make_engine(poolclass=NullPool)

    @lab.app.get("/leak")
    def leak() -> None:
        db = lab.keep(Session(engine))  # leak
        db.execute(QUERY)  # checkout

    await lab.get()


@scenario(24, "`NullPool`: a leak", LEAKED)
async def null_pool_leak_async(lab: Lab) -> None:
    engine = lab.make_async_engine(poolclass=NullPool)

    @lab.app.get("/leak")
    async def leak() -> None:
        db = lab.keep(AsyncSession(engine))  # leak
        await db.execute(QUERY)  # checkout

    await lab.get()


@scenario(24, "`NullPool`: closed")
async def null_pool_sync(lab: Lab) -> None:
    engine = lab.make_engine(poolclass=NullPool)

    @lab.app.get("/")
    def clean() -> None:
        with Session(engine) as db:
            db.execute(QUERY)

    await lab.get("/")


@scenario(24, "`NullPool`: closed")
async def null_pool_async(lab: Lab) -> None:
    engine = lab.make_async_engine(poolclass=NullPool)

    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(engine) as db:
            await db.execute(QUERY)

    await lab.get("/")


@scenario(24, "`StaticPool`: a leak beside a connection that is closed", LEAKED)
async def static_pool_leak_sync(lab: Lab) -> None:
    engine = lab.make_engine(poolclass=StaticPool)

    @lab.app.get("/leak")
    def leak() -> None:
        db = lab.keep(Session(engine))  # leak
        db.execute(QUERY)  # checkout
        with engine.connect() as connection:
            connection.execute(QUERY)

    await lab.get()


@scenario(24, "`StaticPool`: a leak beside a connection that is closed", LEAKED)
async def static_pool_leak_async(lab: Lab) -> None:
    engine = lab.make_async_engine(poolclass=StaticPool)

    @lab.app.get("/leak")
    async def leak() -> None:
        db = lab.keep(AsyncSession(engine))  # leak
        await db.execute(QUERY)  # checkout
        async with engine.connect() as connection:
            await connection.execute(QUERY)

    await lab.get()


@scenario(24, "`StaticPool`: nested connections, closed", crowd=False)
async def static_pool_sync(lab: Lab) -> None:
    engine = lab.make_engine(poolclass=StaticPool)

    @lab.app.get("/")
    def clean() -> None:
        with Session(engine) as db:
            db.execute(QUERY)
            with engine.connect() as connection:
                connection.execute(QUERY)

    await lab.get("/")


@scenario(24, "`StaticPool`: nested connections, closed", crowd=False)
async def static_pool_async(lab: Lab) -> None:
    engine = lab.make_async_engine(poolclass=StaticPool)

    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(engine) as db:
            await db.execute(QUERY)
            async with engine.connect() as connection:
                await connection.execute(QUERY)

    await lab.get("/")


@scenario(24, "`SingletonThreadPool`: a leak", LEAKED)
async def singleton_pool_leak_sync(lab: Lab) -> None:
    engine = lab.make_engine(poolclass=SingletonThreadPool)

    @lab.app.get("/leak")
    def leak() -> None:
        db = lab.keep(Session(engine))  # leak
        db.execute(QUERY)  # checkout

    await lab.get()


@scenario(24, "`SingletonThreadPool`: nested connections, closed", crowd=False)
async def singleton_pool_sync(lab: Lab) -> None:
    engine = lab.make_engine(poolclass=SingletonThreadPool)

    @lab.app.get("/")
    def clean() -> None:
        with engine.connect() as outer, engine.connect() as inner:
            outer.execute(QUERY)
            inner.execute(QUERY)

    await lab.get("/")


@scenario(24, "`QueuePool`: nested connections, closed", NESTED)
async def nested_connections_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        with lab.engine.connect() as outer:
            outer.execute(QUERY)
            with lab.engine.connect() as inner:  # checkout
                inner.execute(QUERY)

    await lab.get()


@scenario(24, "`QueuePool`: nested connections, closed", NESTED)
async def nested_connections_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        async with lab.async_engine.connect() as outer:
            await outer.execute(QUERY)
            async with lab.async_engine.connect() as inner:  # checkout
                await inner.execute(QUERY)

    await lab.get()


# --- 25: connections that are replaced ------------------------------------------------------------


@scenario(25, "`connection.invalidate()`, used on and closed")
async def invalidated_sync(lab: Lab) -> None:
    @lab.app.get("/")
    def clean() -> None:
        with lab.engine.connect() as connection:
            connection.execute(QUERY)
            connection.rollback()
            connection.invalidate()
            connection.execute(QUERY)

    await lab.get("/")


@scenario(25, "`connection.invalidate()`, used on and closed")
async def invalidated_async(lab: Lab) -> None:
    @lab.app.get("/")
    async def clean() -> None:
        async with lab.async_engine.connect() as connection:
            await connection.execute(QUERY)
            await connection.rollback()
            await connection.invalidate()
            await connection.execute(QUERY)

    await lab.get("/")


@scenario(25, "`detach()` and closed")
async def detached_sync(lab: Lab) -> None:
    @lab.app.get("/")
    def clean() -> None:
        with lab.engine.connect() as connection:
            connection.detach()
            connection.execute(QUERY)

    await lab.get("/")


@scenario(25, "`detach()` and closed")
async def detached_async(lab: Lab) -> None:
    @lab.app.get("/")
    async def clean() -> None:
        async with lab.async_engine.connect() as connection:
            await detach(lab, connection)
            await connection.execute(QUERY)

    await lab.get("/")


async def detach(lab: Lab, connection: AsyncConnection) -> None:
    """Detach a connection, as there is no method of its own for it."""
    raw = await connection.get_raw_connection()
    lab.keep_unterminated(raw.driver_connection)
    await connection.run_sync(lambda one: one.detach())


@scenario(25, "`pool_recycle`: every checkout gets a new connection")
async def recycled_sync(lab: Lab) -> None:
    engine = lab.make_engine(pool_recycle=0)

    @lab.app.get("/")
    def clean() -> None:
        with Session(engine) as db:
            db.execute(QUERY)

    await lab.get("/")
    await lab.get("/")


@scenario(25, "`pool_recycle`: every checkout gets a new connection")
async def recycled_async(lab: Lab) -> None:
    engine = lab.make_async_engine(pool_recycle=0)

    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(engine) as db:
            await db.execute(QUERY)

    await lab.get("/")
    await lab.get("/")


@scenario(25, "`pool_pre_ping` finds a dead connection and replaces it", databases=SERVERS)
async def pre_ping_sync(lab: Lab) -> None:
    engine = lab.make_engine(pool_pre_ping=True)
    pids: list[int] = []

    @lab.app.get("/")
    def clean() -> None:
        with Session(engine) as db:
            pids.append(db.scalars(text(lab.database.pid_statement)).one())

    await lab.get("/")
    await asyncio.to_thread(lab.database.kill, pids[0])
    await lab.get("/")
    assert len(set(pids)) == 2


@scenario(25, "`pool_pre_ping` finds a dead connection and replaces it", databases=SERVERS)
async def pre_ping_async(lab: Lab) -> None:
    engine = lab.make_async_engine(pool_pre_ping=True)
    pids: list[int] = []
    drivers: list[Any] = []

    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(engine) as db:
            raw = await (await db.connection()).get_raw_connection()
            drivers.append(raw.driver_connection)
            pids.append((await db.scalars(text(lab.database.pid_statement))).one())

    await lab.get("/")
    await asyncio.to_thread(lab.database.kill, pids[0])
    await told(drivers.pop())
    await lab.get("/")
    assert len(set(pids)) == 2


async def told(connection: Any) -> None:
    """Wait until asyncpg knows that its connection is closed.

    SQLAlchemy takes the server's last words for those of a connection that still is one before.
    """
    deadline = time.monotonic() + PATIENCE
    while hasattr(connection, "is_closed") and not connection.is_closed():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@scenario(25, "the database is restarted in the middle of a request", databases=SERVERS)
async def restarted_sync(lab: Lab) -> None:
    engine = lab.make_engine()

    @lab.app.get("/")
    def clean() -> None:
        with Session(engine) as db:
            lab.database.kill(db.scalars(text(lab.database.pid_statement)).one())
            db.execute(QUERY)

    await see_disconnection(lab)


@scenario(25, "the database is restarted in the middle of a request", databases=SERVERS)
async def restarted_async(lab: Lab) -> None:
    engine = lab.make_async_engine()

    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(engine) as db:
            pid = (await db.scalars(text(lab.database.pid_statement))).one()
            await asyncio.to_thread(lab.database.kill, pid)
            await db.execute(QUERY)

    await see_disconnection(lab)


async def see_disconnection(lab: Lab) -> None:
    """Make a request that loses its connection, and see that this is why it fails.

    asyncpg may be asked for a statement while it is still hearing of the end, and SQLAlchemy
    passes on what it says then as it is.
    """
    lost: list[bool] = []

    async def note(request: object, error: Exception) -> Any:
        lost.append(not isinstance(error, DBAPIError) or error.connection_invalidated)
        raise error

    lab.app.add_exception_handler(DBAPIError, note)
    lab.app.add_exception_handler(asyncpg.InternalClientError, note)
    await lab.get("/", status=500)
    assert lost
    assert all(lost)


# --- 26: detached and forgotten -------------------------------------------------------------------


@scenario(26, "`detach()`, never closed", CONNECTION_LEAKED)
async def detached_leak_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        connection = lab.keep(lab.engine.connect())  # checkout
        connection.detach()

    await lab.get()


@scenario(26, "`detach()`, never closed", CONNECTION_LEAKED)
async def detached_leak_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        connection = lab.keep(await lab.async_engine.connect())  # checkout
        await detach(lab, connection)

    await lab.get()


@scenario(26, "`detach()`, then dropped", replace(CONNECTION_LEAKED, kind=FindingKind.RECLAIMED))
async def detached_dropped_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        connection = lab.engine.raw_connection()  # checkout
        lab.keep(connection.driver_connection)
        connection.detach()

    await lab.get()


# --- 34: dispose ----------------------------------------------------------------------------------


@scenario(34, "`engine.dispose()` while a connection is out, which is closed later")
async def disposed_sync(lab: Lab) -> None:
    @lab.app.get("/")
    def clean() -> None:
        with Session(lab.engine) as db:
            db.execute(QUERY)
            pool = lab.engine.pool
            lab.engine.dispose()
            lab.keep(pool, pool.dispose)
            db.execute(QUERY)

    await lab.get("/")


@scenario(34, "`engine.dispose()` while a connection is out, which is closed later")
async def disposed_async(lab: Lab) -> None:
    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(lab.async_engine) as db:
            await db.execute(QUERY)
            pool = lab.async_engine.pool
            await lab.async_engine.dispose()
            lab.keep(pool, partial(greenlet_spawn, pool.dispose))
            await db.execute(QUERY)

    await lab.get("/")

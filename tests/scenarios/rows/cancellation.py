"""Requests whose client goes away or that are cancelled, and statements that time out."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Annotated, Any

import anyio
import anyio.lowlevel
from fastapi import Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from leakguard import FindingKind
from tests.scenarios.lab import AsgiApp, AsgiScope, Lab, Receive, Send, patiently
from tests.scenarios.suite import LEAKED, Expected, scenario

QUERY = text("SELECT 1")
CANCELLED = replace(LEAKED, status=None, says="cancelled")
DISCONNECTED = replace(LEAKED, says="cancelled")
UNCLOSED = Expected(FindingKind.UNCLOSED_SESSION, "leak", status=None)
_OPTIONS = inspect.signature(anyio.to_thread.run_sync).parameters
ABANDONED: dict[str, Any] = {
    "abandon_on_cancel" if "abandon_on_cancel" in _OPTIONS else "cancellable": True
}
"""What has a thread abandoned; the name is new since anyio 4.1."""


async def see_cancelled(task: asyncio.Task[object]) -> None:
    """Wait until a request has ended, as one that was cancelled."""
    with contextlib.suppress(asyncio.CancelledError):
        await patiently(task)
    assert task.cancelled()


# --- 7: cancelled ---------------------------------------------------------------------------------


class Cancellable:
    """A middleware that can give a request up, as those do that limit its time."""

    def __init__(self, app: AsgiApp, scopes: list[anyio.CancelScope]) -> None:
        self.app = app
        self.scopes = scopes

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Run the application in a cancel scope, and answer for it where it is cancelled."""
        with anyio.CancelScope() as cancel_scope:
            self.scopes.append(cancel_scope)
            await self.app(scope, receive, send)
        if cancel_scope.cancel_called:
            await Response(status_code=503)(scope, receive, send)


@scenario(7, "given up while a statement runs, clean-up with a `with` block")
async def cancelled_in_statement_sync(lab: Lab) -> None:
    obstruction = lab.obstacle()
    scopes: list[anyio.CancelScope] = []
    lab.outside(Cancellable, scopes=scopes)

    def work() -> None:
        with Session(obstruction.engine) as db:
            db.execute(obstruction.statement)

    @lab.app.get("/")
    async def clean() -> None:
        await run_in_threadpool(work)
        await anyio.lowlevel.checkpoint()

    task = asyncio.create_task(lab.get("/", status=503))
    await patiently(obstruction.running.wait())
    scopes[0].cancel()
    obstruction.let_go()
    await task


@scenario(
    7,
    "cancelled while a thread runs a statement, which goes on",
    Expected(FindingKind.OUTLIVES_SCOPE, "leak", "checkout", status=None, resolved=True),
)
async def cancelled_beside_thread_sync(lab: Lab) -> None:
    obstruction = lab.obstacle()

    @lab.app.get("/leak")
    def leak() -> None:
        with Session(obstruction.engine) as db:  # leak
            db.execute(obstruction.statement)  # checkout

    await see_cancelled(await lab.cancel("/leak", obstruction.running))
    obstruction.let_go()
    await lab.until(lambda: lab.guard.open_holds() == () and lab.recorder.resolutions)


@scenario(7, "cancelled while a statement runs, clean-up with a `with` block", served=False)
async def cancelled_in_statement_async(lab: Lab) -> None:
    obstruction = lab.obstacle()

    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(obstruction.async_engine) as db:
            await db.execute(obstruction.statement)

    task = await lab.cancel("/", obstruction.running)
    obstruction.let_go()
    await see_ended(lab, task)


@scenario(7, "cancelled while a statement runs, clean-up without `finally`", CANCELLED)
async def cancelled_without_finally_sync(lab: Lab) -> None:
    obstruction = lab.obstacle()
    scopes: list[anyio.CancelScope] = []
    lab.outside(Cancellable, scopes=scopes)

    def get_db() -> Iterator[Session]:
        db = lab.keep(Session(obstruction.engine))  # leak
        yield db
        db.close()

    def work(db: Session) -> None:
        db.execute(obstruction.statement)  # checkout

    @lab.app.get("/leak")
    async def leak(db: Annotated[Session, Depends(get_db)]) -> None:
        await run_in_threadpool(work, db)
        await anyio.lowlevel.checkpoint()

    task = asyncio.create_task(lab.get(status=503))
    await patiently(obstruction.running.wait())
    scopes[0].cancel()
    obstruction.let_go()
    await task


@scenario(
    7, "cancelled while a statement runs, no clean-up: the connection is thrown away", UNCLOSED
)
async def cancelled_without_finally_async(lab: Lab) -> None:
    obstruction = lab.obstacle()

    @lab.app.get("/leak")
    async def leak() -> None:
        db = lab.keep(AsyncSession(obstruction.async_engine))  # leak
        await db.execute(obstruction.statement)
        await db.close()

    task = await lab.cancel("/leak", obstruction.running)
    obstruction.let_go()
    await see_cancelled(task)


@scenario(7, "cancelled between statements, clean-up without `finally`", CANCELLED)
async def cancelled_between_statements_async(lab: Lab) -> None:
    reached = asyncio.Event()

    @lab.app.get("/leak")
    async def leak() -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout
        reached.set()
        await asyncio.Event().wait()
        await db.close()

    await see_cancelled(await lab.cancel("/leak", reached))


@scenario(7, "cancelled between statements, clean-up with a `with` block", served=False)
async def cancelled_in_block_async(lab: Lab) -> None:
    reached = asyncio.Event()

    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(lab.async_engine) as db:
            await db.execute(QUERY)
            reached.set()
            await asyncio.Event().wait()

    await see_ended(lab, await lab.cancel("/", reached))


async def see_ended(lab: Lab, task: asyncio.Task[object]) -> None:
    """Wait until a request has ended; a client of a server only hears no more of it."""
    with contextlib.suppress(asyncio.CancelledError):
        await patiently(task)
    await lab.until(lambda: lab.guard.open_holds() == ())


# --- 7: disconnected ------------------------------------------------------------------------------


@scenario(7, "the client disconnects from a stream, no clean-up", DISCONNECTED, served=True)
async def stream_disconnected_leak_async(lab: Lab) -> None:
    reached = asyncio.Event()

    async def rows() -> AsyncIterator[bytes]:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout
        yield b"row"
        reached.set()
        await asyncio.Event().wait()
        await db.close()

    @lab.app.get("/leak")
    async def leak() -> StreamingResponse:
        return StreamingResponse(rows())

    await lab.leave("/leak", reached)


@scenario(7, "the client disconnects from a stream, clean-up with a `with` block", served=True)
async def stream_disconnected_async(lab: Lab) -> None:
    reached = asyncio.Event()

    async def rows() -> AsyncIterator[bytes]:
        async with AsyncSession(lab.async_engine) as db:
            await db.execute(QUERY)
            yield b"row"
            reached.set()
            await asyncio.Event().wait()

    @lab.app.get("/")
    async def clean() -> StreamingResponse:
        return StreamingResponse(rows())

    await lab.leave("/", reached)
    await lab.until(lambda: lab.guard.open_holds() == ())


@scenario(
    7,
    "the client disconnects from an endpoint that returns then",
    replace(DISCONNECTED, status=None),
    served=True,
)
async def endpoint_disconnected_leak_async(lab: Lab) -> None:
    reached = asyncio.Event()

    @lab.app.get("/leak")
    async def leak(request: Request) -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout
        reached.set()
        await disconnection(request)
        raise ConnectionAbortedError

    await lab.leave("/leak", reached)


@scenario(
    7, "the client disconnects from an endpoint that returns then, in a `with` block", served=True
)
async def endpoint_disconnected_async(lab: Lab) -> None:
    reached = asyncio.Event()

    @lab.app.get("/")
    async def clean(request: Request) -> None:
        async with AsyncSession(lab.async_engine) as db:
            await db.execute(QUERY)
            reached.set()
            await disconnection(request)

    await lab.leave("/", reached)
    await lab.until(lambda: lab.guard.open_holds() == ())


@scenario(7, "the client disconnects from a synchronous endpoint, which goes on", served=True)
async def endpoint_disconnected_sync(lab: Lab) -> None:
    obstruction = lab.obstacle()

    def get_db() -> Iterator[Session]:
        with Session(obstruction.engine) as db:
            yield db

    @lab.app.get("/")
    def clean(db: Annotated[Session, Depends(get_db)]) -> None:
        db.execute(obstruction.statement)

    await lab.leave("/", obstruction.running)
    obstruction.let_go()
    await lab.until(lambda: lab.guard.open_holds() == ())


async def disconnection(request: Request) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- 30: time-outs --------------------------------------------------------------------------------


@scenario(30, "`asyncio.timeout()` fires around a statement")
async def timeout_async(lab: Lab) -> None:
    obstruction = lab.obstacle()
    timeouts: list[asyncio.Timeout] = []

    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(obstruction.async_engine) as db:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None) as timeout:
                    timeouts.append(timeout)
                    await db.execute(obstruction.statement)

    task = asyncio.create_task(lab.get("/"))
    await patiently(obstruction.running.wait())
    timeouts[0].reschedule(0)  # now: no duration is right for every machine
    await asyncio.sleep(0)
    obstruction.let_go()
    await task


@scenario(30, "`asyncio.timeout()` fires around the whole session")
async def timeout_around_session_async(lab: Lab) -> None:
    obstruction = lab.obstacle()
    timeouts: list[asyncio.Timeout] = []

    @lab.app.get("/")
    async def clean() -> None:
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(None) as timeout,
                AsyncSession(obstruction.async_engine) as db,
            ):
                timeouts.append(timeout)
                await db.execute(obstruction.statement)

    task = asyncio.create_task(lab.get("/"))
    await patiently(obstruction.running.wait())
    timeouts[0].reschedule(0)
    await asyncio.sleep(0)
    obstruction.let_go()
    await task


@scenario(30, "an anyio cancel scope around the whole session")
async def cancel_scope_async(lab: Lab) -> None:
    obstruction = lab.obstacle()
    scopes: list[anyio.CancelScope] = []

    @lab.app.get("/")
    async def clean() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            async with AsyncSession(obstruction.async_engine) as db:
                await db.execute(obstruction.statement)

    task = asyncio.create_task(lab.get("/"))
    await patiently(obstruction.running.wait())
    scopes[0].cancel()
    obstruction.let_go()
    await task
    # Its cancellation reaches the clean-up, too, which goes on in a task of its own.
    await lab.until(lambda: lab.guard.open_holds() == ())


@scenario(30, "an anyio cancel scope, clean-up in a shielded one")
async def shielded_cleanup_async(lab: Lab) -> None:
    obstruction = lab.obstacle()
    scopes: list[anyio.CancelScope] = []

    @lab.app.get("/")
    async def clean() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            db = AsyncSession(obstruction.async_engine)
            try:
                await db.execute(obstruction.statement)
            finally:
                # SQLAlchemy 2.0.30 cannot roll back what it has closed when it was cancelled.
                with anyio.CancelScope(shield=True), contextlib.suppress(DBAPIError):
                    await db.close()

    task = asyncio.create_task(lab.get("/"))
    await patiently(obstruction.running.wait())
    scopes[0].cancel()
    obstruction.let_go()
    await task


@scenario(
    30,
    "a cancel scope abandons the thread that runs the statement",
    Expected(FindingKind.OUTLIVES_SCOPE, "leak", "checkout", resolved=True),
)
async def abandoned_thread_sync(lab: Lab) -> None:
    obstruction = lab.obstacle()
    scopes: list[anyio.CancelScope] = []

    def work() -> None:
        with Session(obstruction.engine) as db:  # leak
            db.execute(obstruction.statement)  # checkout

    @lab.app.get("/leak")
    async def leak() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await anyio.to_thread.run_sync(work, **ABANDONED)

    task = asyncio.create_task(lab.get())
    await patiently(obstruction.running.wait())
    scopes[0].cancel()
    await task
    await lab.ended()
    obstruction.let_go()
    await lab.until(lambda: lab.recorder.resolutions)

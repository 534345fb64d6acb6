"""Work that goes on after the response: background tasks, child tasks, threads, clean-up."""

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from leakguard import FindingKind
from tests.scenarios.lab import AsgiApp, AsgiScope, Lab, Receive, Send
from tests.scenarios.suite import LEAKED, Expected, scenario
from tests.support import PATIENCE

QUERY = text("SELECT 1")
LATE = replace(
    LEAKED, kind=FindingKind.RETURNED_LATE, says="a background task, a clean-up, or a client"
)
OUTLIVES = replace(LEAKED, kind=FindingKind.OUTLIVES_SCOPE)
USED_AGAIN = replace(LEAKED, acquired="used again", says="used again after close()")
UNATTRIBUTED = Expected(FindingKind.RECLAIMED, acquired="checkout", scope=None, status=None)

# --- 14: background tasks -------------------------------------------------------------------------


@scenario(
    14,
    "the request's session in a background task that takes long",
    LATE,
    exits_first=(USED_AGAIN,),
    late_after=0.02,
)
async def long_background_task_sync(lab: Lab) -> None:
    def get_db() -> Iterator[Session]:
        with Session(lab.engine) as db:  # leak
            yield lab.keep(db)

    def work(db: Session) -> None:
        time.sleep(lab.late)
        db.execute(QUERY)  # used again

    @lab.app.get("/leak")
    def leak(db: Annotated[Session, Depends(get_db)], tasks: BackgroundTasks) -> None:
        db.execute(QUERY)  # checkout
        tasks.add_task(work, db)

    await lab.get()


@scenario(
    14,
    "the request's session in a background task that takes long",
    LATE,
    exits_first=(USED_AGAIN,),
    late_after=0.02,
)
async def long_background_task_async(lab: Lab) -> None:
    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(lab.async_engine) as db:  # leak
            yield lab.keep(db)

    async def work(db: AsyncSession) -> None:
        await asyncio.sleep(lab.late)
        await db.execute(QUERY)  # used again

    @lab.app.get("/leak")
    async def leak(db: Annotated[AsyncSession, Depends(get_db)], tasks: BackgroundTasks) -> None:
        await db.execute(QUERY)  # checkout
        tasks.add_task(work, db)

    await lab.get()


@scenario(
    14,
    "the request's session in a short background task",
    exits_first=(USED_AGAIN,),
    late_after=PATIENCE,
)
async def short_background_task_sync(lab: Lab) -> None:
    def get_db() -> Iterator[Session]:
        with Session(lab.engine) as db:  # leak
            yield lab.keep(db)

    def work(db: Session) -> None:
        db.execute(QUERY)  # used again

    @lab.app.get("/leak")
    def leak(db: Annotated[Session, Depends(get_db)], tasks: BackgroundTasks) -> None:
        db.execute(QUERY)
        tasks.add_task(work, db)

    await lab.get()


@scenario(
    14,
    "the request's session in a short background task",
    exits_first=(USED_AGAIN,),
    late_after=PATIENCE,
)
async def short_background_task_async(lab: Lab) -> None:
    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(lab.async_engine) as db:  # leak
            yield lab.keep(db)

    async def work(db: AsyncSession) -> None:
        await db.execute(QUERY)  # used again

    @lab.app.get("/leak")
    async def leak(db: Annotated[AsyncSession, Depends(get_db)], tasks: BackgroundTasks) -> None:
        await db.execute(QUERY)
        tasks.add_task(work, db)

    await lab.get()


@scenario(14, "a background task opens a session and never closes it", LEAKED)
async def leaky_background_task_sync(lab: Lab) -> None:
    def work() -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout

    @lab.app.get("/leak")
    def leak(tasks: BackgroundTasks) -> None:
        tasks.add_task(work)

    await lab.get()


@scenario(14, "a background task opens a session and never closes it", LEAKED)
async def leaky_background_task_async(lab: Lab) -> None:
    async def work() -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout

    @lab.app.get("/leak")
    async def leak(tasks: BackgroundTasks) -> None:
        tasks.add_task(work)

    await lab.get()


# --- 15: child tasks ------------------------------------------------------------------------------


@scenario(
    15, "a child task's session lives on after the response", replace(OUTLIVES, resolved=True)
)
async def child_task_sync(lab: Lab) -> None:
    taken, go = threading.Event(), threading.Event()
    tasks: list[asyncio.Task[None]] = []

    def work() -> None:
        with Session(lab.engine) as db:  # leak
            db.execute(QUERY)  # checkout
            taken.set()
            go.wait(PATIENCE)

    @lab.app.get("/leak")
    async def leak() -> None:
        tasks.append(asyncio.create_task(asyncio.to_thread(work)))
        await asyncio.to_thread(taken.wait, PATIENCE)

    await lab.get()
    go.set()
    await tasks[0]
    await lab.until(lambda: lab.recorder.resolutions)


@scenario(
    15, "a child task's session lives on after the response", replace(OUTLIVES, resolved=True)
)
async def child_task_async(lab: Lab) -> None:
    taken, go = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def work() -> None:
        async with AsyncSession(lab.async_engine) as db:  # leak
            await db.execute(QUERY)  # checkout
            taken.set()
            await go.wait()

    @lab.app.get("/leak")
    async def leak() -> None:
        tasks.append(asyncio.create_task(work()))
        await taken.wait()

    await lab.get()
    go.set()
    await tasks[0]
    await lab.until(lambda: lab.recorder.resolutions)


@scenario(15, "a child task lives on and ends without closing its session", OUTLIVES, LEAKED)
async def leaky_child_task_sync(lab: Lab) -> None:
    taken, go = threading.Event(), threading.Event()
    tasks: list[asyncio.Task[None]] = []

    def work() -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout
        taken.set()
        go.wait(PATIENCE)

    @lab.app.get("/leak")
    async def leak() -> None:
        tasks.append(asyncio.create_task(asyncio.to_thread(work)))
        await asyncio.to_thread(taken.wait, PATIENCE)

    await lab.get()
    go.set()
    await tasks.pop()


@scenario(15, "a child task lives on and ends without closing its session", OUTLIVES, LEAKED)
async def leaky_child_task_async(lab: Lab) -> None:
    taken, go = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def work() -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout
        taken.set()
        await go.wait()

    @lab.app.get("/leak")
    async def leak() -> None:
        tasks.append(asyncio.create_task(work()))
        await taken.wait()

    await lab.get()
    go.set()
    await tasks.pop()


# --- 16: threads ----------------------------------------------------------------------------------


def start_thread(work: Callable[..., object], *arguments: Any) -> threading.Thread:
    """Start work in a thread, in a copy of the current context."""
    run = contextvars.copy_context().run
    thread = threading.Thread(target=run, args=(work, *arguments))
    thread.start()
    return thread


@scenario(16, "a thread with a copy of the context", replace(OUTLIVES, resolved=True))
async def thread_sync(lab: Lab) -> None:
    taken, go = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        with Session(lab.engine) as db:  # leak
            db.execute(QUERY)  # checkout
            taken.set()
            go.wait(PATIENCE)

    @lab.app.get("/leak")
    def leak() -> None:
        threads.append(start_thread(work))
        taken.wait(PATIENCE)

    await lab.get()
    go.set()
    await asyncio.to_thread(threads[0].join, PATIENCE)
    await lab.until(lambda: lab.recorder.resolutions)


@scenario(16, "a thread with a copy of the context", replace(OUTLIVES, resolved=True))
async def thread_async(lab: Lab) -> None:
    taken, go = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []
    engine = lab.make_async_engine(poolclass=NullPool)  # connections belong to the thread's loop

    async def work() -> None:
        async with AsyncSession(engine) as db:  # leak
            await db.execute(QUERY)  # checkout
            taken.set()
            await asyncio.to_thread(go.wait, PATIENCE)

    @lab.app.get("/leak")
    async def leak() -> None:
        threads.append(start_thread(asyncio.run, work()))
        await asyncio.to_thread(taken.wait, PATIENCE)

    await lab.get()
    go.set()
    await asyncio.to_thread(threads[0].join, PATIENCE)
    await lab.until(lambda: lab.recorder.resolutions)


@scenario(16, "a thread with a copy of the context ends without closing", OUTLIVES, LEAKED)
async def leaky_thread_sync(lab: Lab) -> None:
    taken, go = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout
        taken.set()
        go.wait(PATIENCE)

    @lab.app.get("/leak")
    def leak() -> None:
        threads.append(start_thread(work))
        taken.wait(PATIENCE)

    await lab.get()
    go.set()
    await asyncio.to_thread(threads[0].join, PATIENCE)


@scenario(16, "an executor's job, without the context: no request is named")
async def executor_job_sync(lab: Lab) -> None:
    taken, go = asyncio.Event(), threading.Event()
    jobs: list[asyncio.Future[None]] = []

    def work(loop: asyncio.AbstractEventLoop) -> None:
        with Session(lab.engine) as db:
            db.execute(QUERY)
            loop.call_soon_threadsafe(taken.set)
            go.wait(PATIENCE)

    @lab.app.get("/")
    async def clean() -> None:
        loop = asyncio.get_running_loop()
        jobs.append(loop.run_in_executor(None, work, loop))
        await taken.wait()

    await lab.get("/")
    assert {hold.scope for hold in lab.guard.open_holds()} <= {None}
    go.set()
    await jobs[0]


@scenario(16, "an executor's job, without the context, drops a connection", UNATTRIBUTED)
async def leaky_executor_job_sync(lab: Lab) -> None:
    def work() -> None:
        lab.engine.raw_connection()  # checkout

    @lab.app.get("/leak")
    async def leak() -> None:
        await asyncio.get_running_loop().run_in_executor(None, work)

    await lab.get()


# --- 37 and 38: what else the request started -----------------------------------------------------


class CleanUpLater:
    """A library's middleware: the sessions of a request are closed by a task of its own."""

    def __init__(
        self, app: AsgiApp, lab: Lab, sessions: list[AsyncSession] | list[Session]
    ) -> None:
        self.app = app
        self.lab = lab
        self.sessions = sessions
        self.tasks: list[asyncio.Task[None]] = []

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Run the application, and leave its sessions to a task."""
        try:
            await self.app(scope, receive, send)
        finally:
            self.tasks.append(asyncio.create_task(self.clean_up()))

    async def clean_up(self) -> None:
        """Close the sessions after the request has ended."""
        await self.lab.until(lambda: self.lab.recorder.scopes_closed)
        for session in self.sessions:
            closing = session.close()
            if closing is not None:
                await closing


@scenario(37, "a clean-up task closes the session a moment after the request", late_after=PATIENCE)
async def clean_up_task_sync(lab: Lab) -> None:
    sessions: list[Session] = []
    lab.inside(CleanUpLater, lab=lab, sessions=sessions)

    @lab.app.get("/")
    def clean() -> None:
        db = Session(lab.engine)
        sessions.append(db)
        db.execute(QUERY)

    await lab.get("/")
    await lab.until(lambda: lab.guard.open_holds() == ())


@scenario(37, "a clean-up task closes the session a moment after the request", late_after=PATIENCE)
async def clean_up_task_async(lab: Lab) -> None:
    sessions: list[AsyncSession] = []
    lab.inside(CleanUpLater, lab=lab, sessions=sessions)

    @lab.app.get("/")
    async def clean() -> None:
        db = AsyncSession(lab.async_engine)
        sessions.append(db)
        await db.execute(QUERY)

    await lab.get("/")
    await lab.until(lambda: lab.guard.open_holds() == ())


@scenario(
    38, "a leak beside an endless task that has nothing to do with it", LEAKED, late_after=0.05
)
async def endless_task_sync(lab: Lab) -> None:
    tasks: list[asyncio.Task[bool]] = []

    async def start_task() -> None:
        tasks.append(asyncio.create_task(asyncio.Event().wait()))

    @lab.app.get("/leak", dependencies=[Depends(start_task)])
    def leak() -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout

    await lab.get()
    await lab.until(lambda: lab.recorder.findings)
    tasks[0].cancel()


@scenario(
    38, "a leak beside an endless task that has nothing to do with it", LEAKED, late_after=0.05
)
async def endless_task_async(lab: Lab) -> None:
    tasks: list[asyncio.Task[bool]] = []

    @lab.app.get("/leak")
    async def leak() -> None:
        tasks.append(asyncio.create_task(asyncio.Event().wait()))
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout

    await lab.get()
    await lab.until(lambda: lab.recorder.findings)
    tasks[0].cancel()

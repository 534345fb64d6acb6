"""Responses of every kind: streams, slow clients, WebSockets, errors, none at all."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Request, Response, WebSocket
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint

from leakguard import FindingKind, LeakGuardMiddleware
from tests.fastapi_version import EXITS_BEFORE_RESPONSE
from tests.scenarios.lab import AsgiApp, AsgiScope, Lab, Message, Obstruction, Receive, Send
from tests.scenarios.suite import LEAKED, Expected, scenario
from tests.support import PATIENCE

QUERY = text("SELECT 1")
LATE = replace(
    LEAKED, kind=FindingKind.RETURNED_LATE, says="a background task, a clean-up, or a client"
)
HELD = replace(LEAKED, kind=FindingKind.HELD, resolved=True, now="now")
HELD_AFTER = 0.2
"""Seconds, in what is clean."""
NUMBERS = text(
    "SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4 UNION ALL SELECT 5"
)
IN_WEBSOCKET = replace(LEAKED, scope="WEBSOCKET /leak/{room}", status=None)

# --- 12: streams ----------------------------------------------------------------------------------


@scenario(12, "a stream with `Depends(get_db)`, the database idle while it streams", served=True)
async def idle_stream_sync(lab: Lab) -> None:
    go = asyncio.Event()

    def get_db() -> Iterator[Session]:
        with Session(lab.engine) as db:
            yield db

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await go.wait()
        yield b"last"

    @lab.app.get("/")
    def clean(db: Annotated[Session, Depends(get_db)]) -> StreamingResponse:
        db.execute(QUERY)
        return StreamingResponse(chunks())

    await read_slowly(lab, go)


@scenario(12, "a stream with `Depends(get_db)`, the database idle while it streams", served=True)
async def idle_stream_async(lab: Lab) -> None:
    go = asyncio.Event()

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(lab.async_engine) as db:
            yield db

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await go.wait()
        yield b"last"

    @lab.app.get("/")
    async def clean(db: Annotated[AsyncSession, Depends(get_db)]) -> StreamingResponse:
        await db.execute(QUERY)
        return StreamingResponse(chunks())

    await read_slowly(lab, go)


async def read_slowly(lab: Lab, go: asyncio.Event) -> None:
    """Read the first part of a stream, let it go on, and read the rest."""
    async with lab.client() as client, client.stream("GET", "/") as response:
        parts = response.aiter_bytes()
        assert await anext(parts) == b"first"
        go.set()
        assert [part async for part in parts] == [b"last"]


@scenario(
    12,
    "a stream that stalls, with `Depends(get_db)`",
    HELD,
    exits_first=(),
    held_after=0.1,
    served=True,
)
async def stalled_stream_sync(lab: Lab) -> None:
    go = threading.Event()

    def get_db() -> Iterator[Session]:
        with Session(lab.engine) as db:  # leak
            yield db

    def chunks() -> Iterator[bytes]:
        yield b"first"
        go.wait(PATIENCE)  # now
        yield b"last"

    @lab.app.get("/leak")
    def leak(db: Annotated[Session, Depends(get_db)]) -> StreamingResponse:
        db.execute(QUERY)  # checkout
        return StreamingResponse(chunks())

    await read_stalled(lab, go)


@scenario(
    12,
    "a stream that stalls, with `Depends(get_db)`",
    HELD,
    exits_first=(),
    held_after=0.1,
    served=True,
)
async def stalled_stream_async(lab: Lab) -> None:
    go = asyncio.Event()

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(lab.async_engine) as db:  # leak
            yield db

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await go.wait()  # now
        yield b"last"

    @lab.app.get("/leak")
    async def leak(db: Annotated[AsyncSession, Depends(get_db)]) -> StreamingResponse:
        await db.execute(QUERY)  # checkout
        return StreamingResponse(chunks())

    await read_stalled(lab, go)


async def read_stalled(lab: Lab, go: asyncio.Event | threading.Event) -> None:
    """Read the first part of a stream, let it go on when that was noticed, and read the rest."""
    async with lab.client() as client, client.stream("GET", "/leak") as response:
        parts = response.aiter_bytes()
        assert await anext(parts) == b"first"
        if not EXITS_BEFORE_RESPONSE:
            await lab.until_held()
        go.set()
        assert [part async for part in parts] == [b"last"]
    await lab.ended()


class SlowClient:
    """Stands for the server and a client that takes its time with the end of the response."""

    def __init__(self, app: AsgiApp, lab: Lab) -> None:
        self.app = app
        self.lab = lab

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Run the application; the end of its response takes longer than `late_after`."""

        async def send_slowly(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                await asyncio.sleep(self.lab.late)
            await send(message)

        await self.app(scope, receive, send_slowly)


@scenario(
    12,
    "a stream with `Depends(get_db)`, read by a slow client",
    LATE,
    exits_first=(),
    late_after=0.02,
)
async def slow_client_sync(lab: Lab) -> None:
    lab.outside(SlowClient, lab=lab)

    def get_db() -> Iterator[Session]:
        with Session(lab.engine) as db:  # leak
            yield db

    @lab.app.get("/leak")
    def leak(db: Annotated[Session, Depends(get_db)]) -> StreamingResponse:
        db.execute(QUERY)  # checkout
        return StreamingResponse(iter([b"data: 1\n\n"]), media_type="text/event-stream")

    await lab.get()


@scenario(
    12,
    "a stream with `Depends(get_db)`, read by a slow client",
    LATE,
    exits_first=(),
    late_after=0.02,
)
async def slow_client_async(lab: Lab) -> None:
    lab.outside(SlowClient, lab=lab)

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(lab.async_engine) as db:  # leak
            yield db

    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"

    @lab.app.get("/leak")
    async def leak(db: Annotated[AsyncSession, Depends(get_db)]) -> StreamingResponse:
        await db.execute(QUERY)  # checkout
        return StreamingResponse(events(), media_type="text/event-stream")

    await lab.get()


@scenario(12, "a stream that opens a session and never closes it", LEAKED)
async def leaky_stream_sync(lab: Lab) -> None:
    def rows() -> Iterator[bytes]:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout
        yield b"row"

    @lab.app.get("/leak")
    def leak() -> StreamingResponse:
        return StreamingResponse(rows())

    await lab.get()


@scenario(12, "a stream that opens a session and never closes it", LEAKED)
async def leaky_stream_async(lab: Lab) -> None:
    async def rows() -> AsyncIterator[bytes]:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout
        yield b"row"

    @lab.app.get("/leak")
    async def leak() -> StreamingResponse:
        return StreamingResponse(rows())

    await lab.get()


# --- 13: across another service -------------------------------------------------------------------


@scenario(13, "a connection held across a call to another service")
async def across_call_sync(lab: Lab) -> None:
    @lab.app.get("/service")
    def service() -> None:
        pass

    def get_db() -> Iterator[Session]:
        with Session(lab.engine) as db:
            yield db

    def use(db: Annotated[Session, Depends(get_db)]) -> Session:
        db.execute(QUERY)
        return db

    @lab.app.get("/")
    async def clean(db: Annotated[Session, Depends(use)]) -> None:
        await lab.get("/service")
        await run_in_threadpool(db.execute, QUERY)

    await lab.get("/")


@scenario(13, "a connection held across a call to another service")
async def across_call_async(lab: Lab) -> None:
    @lab.app.get("/service")
    async def service() -> None:
        pass

    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(lab.async_engine) as db:
            await db.execute(QUERY)
            await lab.get("/service")
            await db.execute(QUERY)

    await lab.get("/")


@scenario(
    13, "a connection held across a slow call to another service", HELD, held_after=0.1, served=True
)
async def slow_call_sync(lab: Lab) -> None:
    @lab.app.get("/service")
    async def service() -> None:
        await lab.until_held()

    def get_db() -> Iterator[Session]:
        with Session(lab.engine) as db:  # leak
            yield db

    def use(db: Annotated[Session, Depends(get_db)]) -> Session:
        db.execute(QUERY)  # checkout
        return db

    @lab.app.get("/leak")
    def leak(db: Annotated[Session, Depends(use)]) -> None:
        lab.get_sync("/service")  # now
        db.execute(QUERY)

    await lab.get()


@scenario(
    13, "a connection held across a slow call to another service", HELD, held_after=0.1, served=True
)
async def slow_call_async(lab: Lab) -> None:
    @lab.app.get("/service")
    async def service() -> None:
        await lab.until_held()

    @lab.app.get("/leak")
    async def leak() -> None:
        async with AsyncSession(lab.async_engine) as db:  # leak
            await db.execute(QUERY)  # checkout
            await lab.get("/service")  # now
            await db.execute(QUERY)

    await lab.get()


@scenario(
    13,
    "a connection held in a task of its own, behind a middleware",
    replace(HELD, created=None),
    held_after=0.1,
)
async def slow_task_async(lab: Lab) -> None:
    lab.inside(BaseHTTPMiddleware, dispatch=pass_on)

    async def work() -> None:
        async with lab.async_engine.connect() as connection:  # checkout
            await connection.execute(QUERY)
            await lab.until_held()  # now

    @lab.app.get("/leak")
    async def leak() -> None:
        await asyncio.create_task(work())

    await lab.get()


async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Do what a middleware does that does nothing."""
    return await call_next(request)


@scenario(13, "a statement that takes long", held_after=HELD_AFTER, crowd=False)
async def long_statement_sync(lab: Lab) -> None:
    obstacle = lab.obstacle()

    @lab.app.get("/")
    def clean() -> None:
        with Session(obstacle.engine) as db:
            db.execute(obstacle.statement)
            db.rollback()

    await wait_for_long(lab, obstacle)


@scenario(13, "a statement that takes long", held_after=HELD_AFTER, crowd=False)
async def long_statement_async(lab: Lab) -> None:
    obstacle = lab.obstacle()

    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(obstacle.async_engine) as db:
            await db.execute(obstacle.statement)
            await db.rollback()

    await wait_for_long(lab, obstacle)


async def wait_for_long(lab: Lab, obstacle: Obstruction) -> None:
    """Make a request, and let its statement end long after it began."""
    request = asyncio.create_task(lab.get("/"))
    await obstacle.running.wait()
    await asyncio.sleep(4 * HELD_AFTER)
    obstacle.let_go()
    await request


@scenario(
    13,
    "rows of a server-side cursor, each of which takes a while",
    held_after=HELD_AFTER,
    crowd=False,
    databases=("PostgreSQL", "MariaDB"),
)
async def slow_rows_sync(lab: Lab) -> None:
    @lab.app.get("/")
    def clean() -> None:
        with Session(lab.engine) as db:
            rows = db.execute(NUMBERS, execution_options={"yield_per": 1})
            for _ in rows:
                time.sleep(HELD_AFTER / 2)

    await lab.get("/")


@scenario(
    13,
    "rows of a server-side cursor, each of which takes a while",
    held_after=HELD_AFTER,
    crowd=False,
    databases=("PostgreSQL", "MariaDB"),
)
async def slow_rows_async(lab: Lab) -> None:
    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(lab.async_engine) as db:
            rows = await db.stream(NUMBERS, execution_options={"yield_per": 1})
            async for _ in rows:
                await asyncio.sleep(HELD_AFTER / 2)

    await lab.get("/")


@scenario(
    13,
    "rows that SQLAlchemy has read from a server-side cursor, each of which takes a while",
    held_after=HELD_AFTER,
    crowd=False,
    databases=("PostgreSQL", "MariaDB"),
)
async def slow_buffered_rows_sync(lab: Lab) -> None:
    @lab.app.get("/")
    def clean() -> None:
        with Session(lab.engine) as db:
            for _ in db.execute(NUMBERS, execution_options={"stream_results": True}):
                time.sleep(HELD_AFTER / 2)

    await lab.get("/")


@scenario(
    13,
    "rows that SQLAlchemy has read from a server-side cursor, each of which takes a while",
    held_after=HELD_AFTER,
    crowd=False,
    databases=("PostgreSQL", "MariaDB"),
)
async def slow_buffered_rows_async(lab: Lab) -> None:
    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(lab.async_engine) as db:
            async for _ in await db.stream(NUMBERS):
                await asyncio.sleep(HELD_AFTER / 2)

    await lab.get("/")


# --- 17: WebSockets -------------------------------------------------------------------------------


@scenario(17, "a WebSocket with `Depends(get_db)` for its whole life", served=True)
async def websocket_sync(lab: Lab) -> None:
    def get_db() -> Iterator[Session]:
        with Session(lab.engine) as db:
            yield db

    @lab.app.websocket("/clean/{room}")
    async def clean(websocket: WebSocket, db: Annotated[Session, Depends(get_db)]) -> None:
        await websocket.accept()
        await run_in_threadpool(db.execute, QUERY)
        await websocket.send_text("ready")
        await websocket.receive_text()
        await websocket.close()

    async with lab.websocket("/clean/attic") as client:
        assert await client.recv() == "ready"
        await client.send("enough")


@scenario(17, "a WebSocket with `Depends(get_db)` for its whole life", served=True)
async def websocket_async(lab: Lab) -> None:
    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(lab.async_engine) as db:
            yield db

    @lab.app.websocket("/clean/{room}")
    async def clean(websocket: WebSocket, db: Annotated[AsyncSession, Depends(get_db)]) -> None:
        await websocket.accept()
        await db.execute(QUERY)
        await websocket.send_text("ready")
        await websocket.receive_text()
        await websocket.close()

    async with lab.websocket("/clean/attic") as client:
        assert await client.recv() == "ready"
        await client.send("enough")


QUIET = replace(HELD, scope="WEBSOCKET /leak/{room}", status=None, says="between its messages")


@scenario(17, "a WebSocket that is quiet, with a session", QUIET, held_after=0.1, served=True)
async def quiet_websocket_sync(lab: Lab) -> None:
    def get_db() -> Iterator[Session]:
        with Session(lab.engine) as db:  # leak
            yield db

    @lab.app.websocket("/leak/{room}")
    async def leak(websocket: WebSocket, db: Annotated[Session, Depends(get_db)]) -> None:
        await websocket.accept()
        await run_in_threadpool(lambda: db.execute(QUERY))  # checkout
        await websocket.receive_text()  # now
        await websocket.close()

    async with lab.websocket("/leak/attic") as client:
        await lab.until_held()
        await client.send("enough")


@scenario(17, "a WebSocket that is quiet, with a session", QUIET, held_after=0.1, served=True)
async def quiet_websocket_async(lab: Lab) -> None:
    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(lab.async_engine) as db:  # leak
            yield db

    @lab.app.websocket("/leak/{room}")
    async def leak(websocket: WebSocket, db: Annotated[AsyncSession, Depends(get_db)]) -> None:
        await websocket.accept()
        await db.execute(QUERY)  # checkout
        await websocket.receive_text()  # now
        await websocket.close()

    async with lab.websocket("/leak/attic") as client:
        await lab.until_held()
        await client.send("enough")


@scenario(17, "a WebSocket that does not close its session", IN_WEBSOCKET, served=True)
async def leaky_websocket_sync(lab: Lab) -> None:
    def use() -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout

    @lab.app.websocket("/leak/{room}")
    async def leak(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        await run_in_threadpool(use)
        await websocket.send_text(room)
        await websocket.close()

    async with lab.websocket("/leak/attic") as client:
        assert await client.recv() == "attic"


@scenario(17, "a WebSocket that does not close its session", IN_WEBSOCKET, served=True)
async def leaky_websocket_async(lab: Lab) -> None:
    @lab.app.websocket("/leak/{room}")
    async def leak(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout
        await websocket.send_text(room)
        await websocket.close()

    async with lab.websocket("/leak/attic") as client:
        assert await client.recv() == "attic"


# --- 33: errors, and no response at all -----------------------------------------------------------


class Leaky:
    """A middleware that never closes the session it opens for every request."""

    def __init__(self, app: AsgiApp, lab: Lab) -> None:
        self.app = app
        self.lab = lab

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Open a session, use it, and run the application."""
        if self.lab.bench.driver.form == "async":
            await self.use_async()
        else:
            await run_in_threadpool(self.use)
        await self.app(scope, receive, send)

    def use(self) -> None:
        """Use a session."""
        self.lab.keep(Session(self.lab.engine)).execute(QUERY)

    async def use_async(self) -> None:
        """Use an asynchronous session."""
        await self.lab.keep(AsyncSession(self.lab.async_engine)).execute(QUERY)


class Careful(Leaky):
    """The same, with a `with` block around the application."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Open a session, use it, run the application, and close it."""
        if self.lab.bench.driver.form == "async":
            async with AsyncSession(self.lab.async_engine) as db:
                await db.execute(QUERY)
                await self.app(scope, receive, send)
        else:
            with Session(self.lab.engine) as sync_db:
                await run_in_threadpool(sync_db.execute, QUERY)
                await self.app(scope, receive, send)


async def every_answer(lab: Lab) -> None:
    """Make a request for each of the usual errors, and a `HEAD` request."""

    @lab.app.get("/items/{item_id}")
    @lab.app.head("/items/{item_id}")
    async def item(item_id: int) -> int:
        return 1 // item_id

    await lab.get("/items/1")
    await lab.get("/items/0", status=500)
    await lab.get("/items/one", status=422)
    await lab.get("/items/1", status=405, method="DELETE")
    await lab.get("/items/1", method="HEAD")
    await lab.get("/elsewhere/1", status=404)


@scenario(33, "an error, 404, 405, 422 and `HEAD`, behind a middleware with a session")
async def every_answer_sync(lab: Lab) -> None:
    lab.inside(Careful, lab=lab)
    await every_answer(lab)


@scenario(33, "an error, 404, 405, 422 and `HEAD`, behind a middleware with a session")
async def every_answer_async(lab: Lab) -> None:
    lab.inside(Careful, lab=lab)
    await every_answer(lab)


IN_MIDDLEWARE = [
    Expected(FindingKind.LEAKED, "leak", "checkout", scope, status)
    for scope, status in [
        ("GET /items/{item_id}", 200),
        ("GET /items/{item_id}", 500),
        ("GET /items/{item_id}", 422),
        ("DELETE /items/{item_id}", 405),
        ("HEAD /items/{item_id}", 200),
        ("GET unmatched", 404),
    ]
]


@scenario(33, "an error, 404, 405, 422 and `HEAD`, behind a leaky middleware", *IN_MIDDLEWARE)
async def every_answer_leaks_sync(lab: Lab) -> None:
    class Middleware(Leaky):
        def use(self) -> None:
            db = lab.keep(Session(lab.engine))  # leak
            db.execute(QUERY)  # checkout

    lab.inside(Middleware, lab=lab)
    await every_answer(lab)


@scenario(33, "an error, 404, 405, 422 and `HEAD`, behind a leaky middleware", *IN_MIDDLEWARE)
async def every_answer_leaks_async(lab: Lab) -> None:
    class Middleware(Leaky):
        async def use_async(self) -> None:
            db = lab.keep(AsyncSession(lab.async_engine))  # leak
            await db.execute(QUERY)  # checkout

    lab.inside(Middleware, lab=lab)
    await every_answer(lab)


RAISED = replace(LEAKED, scope="GET unmatched", status=500)


@scenario(33, "the application raises: its exception passes unchanged", RAISED, served=False)
async def raises_sync(lab: Lab) -> None:
    error = LookupError("the very one")

    async def app(scope: AsgiScope, receive: Receive, send: Send) -> None:
        await run_in_threadpool(use)
        raise error

    def use() -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout

    lab.replace_app(LeakGuardMiddleware(app, guard=lab.guard))
    assert await raised_by(lab) is error


@scenario(33, "the application raises: its exception passes unchanged", RAISED, served=False)
async def raises_async(lab: Lab) -> None:
    error = LookupError("the very one")

    async def app(scope: AsgiScope, receive: Receive, send: Send) -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout
        raise error

    lab.replace_app(LeakGuardMiddleware(app, guard=lab.guard))
    assert await raised_by(lab) is error


async def raised_by(lab: Lab) -> BaseException | None:
    """Make a request and give what leaves the application."""
    try:
        await lab.get(raises=True)
    except LookupError as error:
        return error
    return None


NO_RESPONSE = replace(LEAKED, scope="GET unmatched", status=None)


@scenario(33, "no response is ever started", NO_RESPONSE, served=True)
async def no_response_sync(lab: Lab) -> None:
    async def app(scope: AsgiScope, receive: Receive, send: Send) -> None:
        await run_in_threadpool(use)

    def use() -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout

    lab.replace_app(LeakGuardMiddleware(app, guard=lab.guard))
    await lab.get(status=500)


@scenario(33, "no response is ever started", NO_RESPONSE, served=True)
async def no_response_async(lab: Lab) -> None:
    async def app(scope: AsgiScope, receive: Receive, send: Send) -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout

    lab.replace_app(LeakGuardMiddleware(app, guard=lab.guard))
    await lab.get(status=500)

"""An application with one leak of every usual kind, and the same things done right.

The lines that a report must name are marked: `# NAME created` constructs the session,
`# NAME checkout` takes the connection.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import Response

QUERY = text("SELECT 1")


class Shop:
    """What a test and the application share."""

    def __init__(self, engine: Engine, async_engine: AsyncEngine) -> None:
        self.engine = engine
        self.async_engine = async_engine
        self.kept: list[Any] = []
        """What leaks is kept here: the garbage collector shall not decide a test."""
        self.reached = threading.Event()
        """Set where a handler waits until its client is gone or it is cancelled."""

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncGenerator[None, None]:
        """Close at the end what leaked: drivers for asyncio can only do so on their loop."""
        yield
        for kept in self.kept:
            closing = kept.close()
            if closing is not None:
                await closing
        await self.async_engine.dispose()


def make_app(shop: Shop) -> FastAPI:  # noqa: C901, PLR0915  (a list of small handlers)
    """Make the application."""
    app = FastAPI(lifespan=shop.lifespan)

    def leaky_db() -> Iterator[Session]:
        db = Session(shop.engine)  # dependency created
        shop.kept.append(db)
        yield db
        db.close()

    async def leaky_async_db() -> AsyncIterator[AsyncSession]:
        db = AsyncSession(shop.async_engine)  # async dependency created
        shop.kept.append(db)
        yield db
        await db.close()

    def good_db() -> Iterator[Session]:
        with Session(shop.engine) as db:
            yield db

    async def good_async_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(shop.async_engine) as db:
            yield db

    @app.get("/leaks/dependency/{item_id}")
    def dependency(item_id: int, db: Annotated[Session, Depends(leaky_db)]) -> None:
        db.execute(QUERY)  # dependency checkout
        raise ValueError(item_id)

    @app.get("/leaks/dependency-http-error/{item_id}")
    def dependency_http_error(item_id: int, db: Annotated[Session, Depends(leaky_db)]) -> None:
        db.execute(QUERY)  # http error checkout
        raise HTTPException(404, f"no item {item_id}")

    @app.get("/leaks/async-dependency/{item_id}")
    async def async_dependency(
        item_id: int, db: Annotated[AsyncSession, Depends(leaky_async_db)]
    ) -> None:
        await db.execute(QUERY)  # async dependency checkout
        raise ValueError(item_id)

    @app.get("/leaks/sync-endpoint")
    def sync_endpoint() -> None:
        db = Session(shop.engine)  # sync endpoint created
        db.execute(QUERY)  # sync endpoint checkout
        shop.kept.append(db)

    @app.get("/leaks/async-endpoint")
    async def async_endpoint() -> None:
        db = AsyncSession(shop.async_engine)  # async endpoint created
        await db.execute(QUERY)  # async endpoint checkout
        shop.kept.append(db)

    @app.get("/leaks/core")
    def core() -> None:
        connection = shop.engine.connect()  # core checkout
        connection.execute(QUERY)
        shop.kept.append(connection)

    @app.get("/leaks/async-core")
    async def async_core() -> None:
        connection = await shop.async_engine.connect()  # async core checkout
        shop.kept.append(connection)

    @app.get("/leaks/raw")
    def raw() -> None:
        shop.kept.append(shop.engine.raw_connection())  # raw checkout

    @app.get("/leaks/dropped")
    def dropped() -> None:
        shop.engine.raw_connection()  # dropped checkout

    @app.get("/leaks/background")
    def background(tasks: BackgroundTasks) -> None:
        def work() -> None:
            db = Session(shop.engine)  # background created
            db.execute(QUERY)  # background checkout
            shop.kept.append(db)

        tasks.add_task(work)

    @app.get("/leaks/stream")
    async def stream() -> StreamingResponse:
        async def rows() -> AsyncIterator[bytes]:
            db = AsyncSession(shop.async_engine)  # stream created
            await db.execute(QUERY)  # stream checkout
            shop.kept.append(db)
            yield b"row"

        return StreamingResponse(rows())

    @app.websocket("/leaks/websocket/{room}")
    async def websocket(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        db = AsyncSession(shop.async_engine)  # websocket created
        await db.execute(QUERY)  # websocket checkout
        shop.kept.append(db)
        await websocket.send_text(room)
        await websocket.close()

    @app.get("/leaks/disconnect")
    async def disconnect(request: Request) -> None:
        db = AsyncSession(shop.async_engine)  # disconnect created
        await db.execute(QUERY)  # disconnect checkout
        shop.kept.append(db)
        shop.reached.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass

    @app.get("/leaks/cancelled")
    async def cancelled() -> None:
        db = AsyncSession(shop.async_engine)  # cancelled created
        await db.execute(QUERY)  # cancelled checkout
        shop.kept.append(db)
        shop.reached.set()
        await asyncio.Event().wait()

    @app.get("/clean/dependency/{item_id}")
    def clean_dependency(item_id: int, db: Annotated[Session, Depends(good_db)]) -> None:
        db.execute(QUERY)
        if item_id == 0:
            raise ValueError(item_id)

    @app.get("/clean/async-dependency/{item_id}")
    async def clean_async_dependency(
        item_id: int, db: Annotated[AsyncSession, Depends(good_async_db)]
    ) -> None:
        await db.execute(QUERY)
        if item_id == 0:
            raise HTTPException(404)

    @app.get("/clean/begin")
    def clean_begin() -> None:
        with shop.engine.begin() as connection:
            connection.execute(QUERY)

    @app.get("/clean/background")
    def clean_background(tasks: BackgroundTasks, db: Annotated[Session, Depends(good_db)]) -> None:
        db.execute(QUERY)
        tasks.add_task(db.execute, QUERY)

    @app.get("/clean/stream")
    async def clean_stream(
        db: Annotated[AsyncSession, Depends(good_async_db)],
    ) -> StreamingResponse:
        async def rows() -> AsyncIterator[bytes]:
            for _ in range(3):
                await db.execute(QUERY)
                yield b"row"

        return StreamingResponse(rows())

    @app.websocket("/clean/websocket/{room}")
    async def clean_websocket(
        websocket: WebSocket, room: str, db: Annotated[AsyncSession, Depends(good_async_db)]
    ) -> None:
        await websocket.accept()
        await db.execute(QUERY)
        await websocket.send_text(room)
        await websocket.close()

    @app.get("/clean/cancelled")
    async def clean_cancelled(db: Annotated[AsyncSession, Depends(good_async_db)]) -> None:
        await db.execute(QUERY)
        shop.reached.set()
        await asyncio.Event().wait()

    return app


class PassOn(BaseHTTPMiddleware):
    """Middleware of the kind that runs the rest of the application in a task of its own."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Do nothing but pass the request on."""
        return await call_next(request)
